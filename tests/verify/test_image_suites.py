from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bounds.errors import DataError, SpecError
from bounds.network import Network
from tests.mnist_files import write_mnist
from verify.datasets import Dataset, load_dataset
from verify.image_suites import ImageSuite, first_correct, models_of
from verify.records import Configuration
from verify.tasks import Normalisation

TOOL = Configuration("ringfence", "1", {})


def first_pixels(path: Path, outputs: int = 10) -> Path:
    """y = the first pixels of the image: its class is the brightest of them."""
    W = np.eye(784, outputs, dtype=np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "W"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 28, 28])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outputs])
    graph = helper.make_graph(nodes, "first", [x], [y], [numpy_helper.from_array(W, "W")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return first_pixels(tmp_path / "first.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """300 images, more than one batch; the labels of the images 1 and 260 are wrong."""
    images = np.zeros((300, 28, 28), np.uint8)
    labels = np.arange(300, dtype=np.uint8) % 10
    images[np.arange(300), 0, labels] = 200
    images[[1, 260], 0, labels[[1, 260]]] = 0
    write_mnist(tmp_path, images, labels)
    return tmp_path


@dataclasses.dataclass
class Contrary:
    """The original model, but for one image, which it gives to another class."""

    original: Any
    wrong: np.ndarray

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return -self.original(x) if np.array_equal(x.reshape(-1), self.wrong.reshape(-1)) else self.original(x)


def test_wrong_images_are_left_out_across_batches(model: Path, folder: Path) -> None:
    network, data = Network.from_onnx(model), load_dataset("mnist", folder)
    assert first_correct(network, data, 3) == ([0, 2, 3], 4)
    chosen, seen = first_correct(network, data, None)
    assert (chosen, seen) == ([i for i in range(300) if i not in (1, 260)], 300)
    assert first_correct(network, data, 298)[0] == chosen
    with pytest.raises(DataError, match="299 images were asked for; only 298 of the 300 of mnist here are classified correctly"):
        first_correct(network, data, 299)


def test_the_original_has_the_last_word(model: Path, folder: Path) -> None:
    network, data = Network.from_onnx(model), load_dataset("mnist", folder)
    original = Contrary(network.original, data.pixels([2], network.input_shape))
    chosen, seen = first_correct(dataclasses.replace(network, original=original), data, 3)  # type: ignore[arg-type]
    assert (chosen, seen) == ([0, 3, 4], 5)


def test_a_near_tie_is_left_to_the_original(model: Path) -> None:
    images = np.zeros((1, 1, 28, 28), np.uint8)
    images[0, 0, 0, [3, 7]] = 200
    for label, correct in ((3, True), (7, False), (5, False)):
        found = [] if not correct else [0]
        assert first_correct(Network.from_onnx(model), Dataset("mnist", images, np.array([label], np.uint8)), None)[0] == found


def test_a_network_with_too_few_classes_is_refused(tmp_path: Path, folder: Path) -> None:
    network = Network.from_onnx(first_pixels(tmp_path / "few.onnx", 4))
    with pytest.raises(DataError, match="the network has 4 outputs, mnist has the label 9; use its own data set"):
        first_correct(network, load_dataset("mnist", folder), 1)


def test_models_times_radii_times_images(tmp_path: Path, model: Path, folder: Path) -> None:
    other = first_pixels(tmp_path / "other.onnx")
    other.write_bytes(other.read_bytes().replace(b"first", b"firsu"))
    tasks = ImageSuite("mnist", folder, (model, other), "inf", (0.01, None), 2, 5.0).tasks()
    assert [t.instance.family for t in tasks[::2]] == ["first linf 0.01", "first linf radius", "other linf 0.01", "other linf radius"]
    assert [t.instance.name for t in tasks[:2]] == ["mnist image 0", "mnist image 2"]
    assert len({t.instance.key(TOOL) for t in tasks}) == 8
    assert {t.instance.limit_s for t in tasks} == {5.0}
    assert tasks[1].instance.question == {"dataset": "mnist", "index": 2, "label": 2, "norm": "inf", "eps": 0.01, "clip": True}


@pytest.mark.parametrize("norm, named", [("inf", "linf"), ("linf", "linf"), ("2", "l2"), ("l2", "l2"), ("1", "l1")])
def test_names_of_norms_are_one_name(model: Path, folder: Path, norm: str, named: str) -> None:
    (task,) = ImageSuite("mnist", folder, (model,), norm, (0.5,), 1, None).tasks()
    assert task.instance.family == f"first {named} 0.5"
    assert (task.instance.question or {})["norm"] == named[1:]


def test_a_normalised_network_is_another_network_on_the_same_pixels(model: Path, folder: Path) -> None:
    """With the standard deviation tiny the classes stay; the question is about the same image in [0, 1]."""
    plain = ImageSuite("mnist", folder, (model,), "inf", (0.01,), 3, None)
    scaled = dataclasses.replace(plain, normalisation=Normalisation((0.1307,), (0.3081,)))
    one, two = plain.tasks()[2], scaled.tasks()[2]
    assert one.instance.spec_hash == two.instance.spec_hash
    assert one.instance.network_hash != two.instance.network_hash
    assert two.normalisation == scaled.normalisation
    other = dataclasses.replace(plain, normalisation=Normalisation((0.1307,), (0.3,))).tasks()[2]
    assert other.instance.network_hash != two.instance.network_hash


@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf")])
def test_radii_that_mean_nothing_are_refused(model: Path, folder: Path, eps: float) -> None:
    with pytest.raises(SpecError, match="eps must be finite and not negative"):
        ImageSuite("mnist", folder, (model,), "inf", (0.1, eps), 1, None).tasks()


def test_models_of_folders(tmp_path: Path, model: Path) -> None:
    packed = tmp_path / "nets" / "b.onnx.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(model.read_bytes()))
    plain = first_pixels(tmp_path / "nets" / "a.onnx")
    (tmp_path / "nets" / "readme.txt").write_text("no network")
    assert models_of([tmp_path / "nets", model, plain]) == (plain, packed, model)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "gone.onnx"):
        with pytest.raises(DataError, match="no such ONNX file, nor a folder of them"):
            models_of([model, path])
