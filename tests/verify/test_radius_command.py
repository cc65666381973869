"""`ringfence radius`, as a user runs it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bounds.crown import Crown
from bounds.network import Network
from bounds.region import LpBall
from tests.mnist_files import write_mnist
from verify import radius, radius_command
from verify.cli import main
from verify.datasets import load_dataset
from verify.radius_command import Command, Picture, Question
from verify.radius_search import Task
from verify.spec import class_margins

FIELDS = {"index", "label", "lower", "upper", "exact", "method", "bound_calls", "seconds", "finished", "reason", "certificate"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small network, net.onnx, and MNIST files whose images it classifies correctly."""
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (8, 28, 28)).astype(np.uint8)
    hidden = generator.standard_normal((6, 784)).astype(np.float32) / 28, np.zeros(6, np.float32)
    last = generator.standard_normal((10, 6)).astype(np.float32), generator.standard_normal(10).astype(np.float32)
    scores = np.maximum(images.reshape(8, -1) / np.float32(255) @ hidden[0].T, 0) @ last[0].T + last[1]
    write_mnist(tmp_path, images, scores.argmax(1).astype(np.uint8))
    save(tmp_path / "net.onnx", hidden, last)
    return tmp_path


def save(path: Path, *layers: tuple[np.ndarray, np.ndarray]) -> None:
    """Affine layers (weight, bias) with rectified units between them as an ONNX file."""
    nodes, tensors, value = [helper.make_node("Flatten", ["x"], ["v0"])], [], "v0"
    for number, (weight, bias) in enumerate(layers, start=1):
        tensors += [numpy_helper.from_array(weight, f"w{number}"), numpy_helper.from_array(bias, f"b{number}")]
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], [f"g{number}"], transB=1))
        value = f"g{number}"
        if number < len(layers):
            nodes.append(helper.make_node("Relu", [value], [f"v{number}"]))
            value = f"v{number}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 1, 28, 28]), (value, [1, len(layers[-1][1])]))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    with pytest.raises(SystemExit) as stopped:
        main(["radius", *arguments])
    told = capsys.readouterr()
    return int(stopped.value.code or 0), told.out, told.err


def asked(folder: Path, *more: str) -> tuple[str, ...]:
    return (str(folder / "net.onnx"), "--dataset", "mnist", "--data-dir", str(folder), *more)


def test_one_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lower end is proven again by an independent call; nothing but the document is printed, and nothing to stderr in a pipe."""
    code, text, complaint = run(capsys, *asked(folder, "--index", "1", "--json"))
    document = json.loads(text)
    assert (code, complaint, text.count("\n")) == (0, "", 1)
    assert {"schema", "network", "dataset", "norm", "clip", "tol", "eps_max"} | FIELDS == set(document)
    assert (document["index"], document["method"], document["finished"], document["reason"]) == (1, "crown", True, None)
    assert 0 < document["lower"] <= document["upper"]
    network = Network.from_onnx(folder / "net.onnx")
    x = torch.from_numpy(load_dataset("mnist", folder).pixels([1], network.input_shape)).double()
    label = torch.tensor([document["label"]])
    found = Crown()(network, LpBall(x, 0.999 * document["lower"], math.inf, (0.0, 1.0)), class_margins(label, 10).C)
    assert bool((found.objective.lower > 0).all())


@pytest.mark.parametrize("method, norm", [("fastlin", "2"), ("pec", "1"), ("alpha", "2"), ("alpha", "1")])
def test_methods_and_norms(method: str, norm: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, *asked(folder, "--norm", norm, "--method", method, "--tol", "0.01", "--eps-max", "1", "--json"))
    document = json.loads(text)
    assert code == 0
    assert (document["norm"], document["method"], document["eps_max"]) == (norm, method, 1.0)
    assert 0 < document["lower"] <= 1
    assert document["upper"] is None or document["lower"] <= document["upper"]


def test_several_images_as_text_and_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = asked(folder, "--index", "0,3", "--method", "fastlin", "--tol", "1e-3")
    code, text, _ = run(capsys, *arguments)
    assert code == 0
    first, second, last = text.splitlines()
    assert first.startswith("image 0 (label ")
    assert "by fastlin, rigorous proof; an adversary at 0." in second
    assert last.startswith("mean of 2 certified radii 0.")
    code, text, _ = run(capsys, *arguments, "--json")
    document = json.loads(text)
    assert code == 0
    assert [one["index"] for one in document["results"]] == [0, 3]
    assert all(set(one) == FIELDS for one in document["results"])


def test_a_misclassified_image_has_radius_zero_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = load_dataset("mnist", folder)
    write_mnist(folder, right.images[:, 0], (right.labels + 1) % 10)
    code, text, _ = run(capsys, *asked(folder, "--json"))
    document = json.loads(text)
    assert code == 0
    assert (document["lower"], document["upper"], document["exact"], document["reason"]) == (0.0, 0.0, 0.0, "misclassified")
    assert run(capsys, *asked(folder))[1] == f"image 0 (label {(right.labels[0] + 1) % 10}): radius 0, misclassified\n"


def test_the_exact_radius_of_two_pixels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores are the first two pixels, 0.2 and 0.6: both have to move by 0.2."""
    images = np.zeros((1, 28, 28), dtype=np.uint8)
    images[0, 0, :2] = (51, 153)
    write_mnist(folder, images, np.array([1], dtype=np.uint8))
    first = np.eye(2, 784, dtype=np.float32), np.zeros(2, np.float32)
    save(folder / "net.onnx", first, (np.eye(2, dtype=np.float32), np.zeros(2, np.float32)))
    code, text, _ = run(capsys, *asked(folder, "--method", "exact", "--json"))
    document = json.loads(text)
    assert code == 0
    assert document["exact"] == pytest.approx(0.2, abs=1e-5)
    assert document["lower"] <= document["exact"] <= document["upper"]


def test_the_curve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = folder / "curve.png"
    code, text, _ = run(capsys, *asked(folder, "--curve", "2", "--method", "pec", "--plot", str(plot), "--json"))
    document = json.loads(text)
    eps, verdict, envelope = (document["curve"][name] for name in ("eps", "verdict", "envelope"))
    assert code == 0
    assert document["index"] == 2
    assert len(eps) == len(verdict) == len(envelope) > 100
    assert max(envelope) == pytest.approx(document["lower"], abs=2e-4)
    assert all(v in (0.0, e) and v <= d for e, v, d in zip(eps, verdict, envelope, strict=True))
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_range_of_a_curve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, *asked(folder, "--curve", "0", "--eps-min", "0.01", "--eps-max", "0.02", "--json"))
    eps = json.loads(text)["curve"]["eps"]
    assert code == 0
    assert (eps[0], eps[-1]) == (0.01, 0.02)


def test_the_histogram(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = folder / "hist.svg"
    code, text, _ = run(
        capsys,
        *asked(folder, "--index", "0:4", "--method", "fastlin", "--tol", "1e-3", "--histogram", "--target", "0.02", "--plot", str(plot)),
    )
    assert code == 0
    assert len(text.splitlines()) == 5
    assert "reach 0.02 -->" in plot.read_text()


def test_without_an_attack(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, *asked(folder, "--no-attack"))
    assert code == 0
    assert "no adversary known" in text
    document = json.loads(run(capsys, *asked(folder, "--no-attack", "--json"))[1])
    assert document["lower"] > 0
    assert document["upper"] is None


def test_no_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, *asked(folder, "--timeout", "0", "--json"))
    document = json.loads(text)
    assert code == 3
    assert (document["lower"], document["finished"], document["reason"]) == (0.0, False, "time limit")


def test_no_time_for_the_curve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = folder / "curve.png"
    code, text, complaint = run(capsys, *asked(folder, "--curve", "0", "--plot", str(plot), "--timeout", "0", "--json"))
    assert code == 3
    assert json.loads(text)["reason"] == "time limit"
    assert complaint.startswith("ringfence: no curve: the time limit was reached")
    assert not plot.exists()


def test_an_interrupt_keeps_the_ends_so_far(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    advance, calls = Task.advance, iter(range(100))

    def interrupted(*arguments: Any) -> None:
        if next(calls) == 5:
            raise KeyboardInterrupt
        advance(*arguments)

    monkeypatch.setattr(Task, "advance", interrupted)
    plot = folder / "hist.png"
    code, text, complaint = run(capsys, *asked(folder, "--index", "0:2", "--histogram", "--plot", str(plot), "--json"))
    document = json.loads(text)
    assert (code, complaint) == (130, "ringfence: interrupted; the best ends so far are told\n")
    assert document["interrupted"] is True
    assert any(0 < one["lower"] <= one["upper"] and one["reason"] == "interrupted" for one in document["results"])
    assert not plot.exists()


def test_an_interrupt_while_the_curve_is_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(radius_command, "radius_curve", interrupted)
    told: list[str] = []
    question = Question("mnist", folder, "0", math.inf, "fastlin", 1e-2)
    command = Command(folder / "net.onnx", question, radius.Limits(), told.append, True, Picture(curve=True))
    assert command.run() == 130
    document = json.loads(told[0])
    assert document["interrupted"] is True
    assert document["results"][0]["finished"] is True


@pytest.mark.parametrize(
    "more, message",
    [
        (("--index", "99"), "out of range"),
        (("--index", "3:1"), "names no image"),
        (("--norm", "3"), "unknown norm '3'; use inf, 2 or 1"),
        (("--method", "newton"), "unknown method 'newton'; use one of fastlin, pec, crown, alpha, exact"),
        (("--tol", "1e-15"), "a tolerance of 1e-15 is below what rounding lets the search tell apart"),
        (("--tol", "nan"), "a tolerance of nan"),
        (("--tol", "inf"), "the tolerance must be finite"),
        (("--tol", "0"), "a tolerance of 0"),
        (("--eps-max", "0"), "the largest radius must be positive and finite, got 0"),
        (("--eps-max", "1e-5"), "the tolerance 0.0001 must be below the largest radius 1e-05"),
        (("--curve", "0", "--eps-min", "0.3", "--eps-max", "0.1", "--json"), "reversed: --eps-min 0.3 must be below --eps-max 0.1"),
        (("--eps-min", "0.1"), "--eps-min is where the curve starts; add --curve INDEX"),
        (("--curve", "0", "--index", "1"), "--curve 0 names its image itself; leave --index 1 out"),
        (("--curve", "99", "--json"), "out of range"),
        (("--curve", "0"), "--curve needs a file to draw to, or --json"),
        (("--curve", "0", "--histogram", "--plot", "a.png"), "two pictures"),
        (("--histogram",), "--histogram needs a file to draw to"),
        (("--plot", "a.png"), "--plot needs to know what to draw"),
        (("--target", "0.1"), "--target marks a positive, finite radius in the histogram, got 0.1"),
        (("--histogram", "--plot", "hist.bmp"), "unknown kind of picture '.bmp'"),
        (("--histogram", "--plot", "nowhere/hist.png"), "no such folder nowhere"),
        (("--device", "tpu"), "device 'tpu' is not known"),
        (("--memory-limit", "lots"), "cannot read the memory limit 'lots'"),
        (("--data-dir", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line(
    more: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    code, text, complaint = run(capsys, *asked(folder, *more))
    assert (code, text) == (2, "")
    assert message in complaint
    assert complaint.count("\n") == 1
    assert "Traceback" not in complaint
