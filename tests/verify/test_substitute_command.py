"""`ringfence substitute` as a user runs it: figures, files, pictures, bad input, limits."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bounds.network import Network
from bounds.onnx_export import export_onnx
from bounds.ops.piecewise import Relu
from bounds.ops.smooth import Tanh
from tests.bounds.networks import Draw, chain, fully_connected
from verify import substitute_command
from verify.cli import main
from verify.substitute import Estimator

KEYS = {
    "index", "label", "d_adv", "estimate", "certified_lower", "exact", "relative_difference", "relus_before", "relus_after", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def planar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of two inputs whose classes meet near the middle."""
    net = fully_connected(Relu(), seed=2, widths=(2, 12, 12, 3))
    y = net(torch.full((1, 2), 0.5))
    last = net.nodes[-1].op
    offset = last.offset - y[0] + torch.tensor([0.05, 0.0, -5.0])  # type: ignore[attr-defined]
    nodes = (*net.nodes[:-1], type(net.nodes[-1])(type(last)(last.weight, offset), net.nodes[-1].inputs, (3,), "last"))  # type: ignore[attr-defined, call-arg]
    path = tmp_path_factory.mktemp("planar") / "planar.onnx"
    path.write_bytes(export_onnx(Network(nodes)))
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three test images of 784 random pixels and a network that gives the first two their labels."""
    folder = tmp_path_factory.mktemp("digits")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    draw = Draw(5)
    network = chain((784,), draw.dense(6, 784), Relu(), draw.dense(10, 6))
    labels = network(torch.from_numpy(pixels.reshape(3, 784) / np.float32(255)).float()).argmax(1).numpy().astype(np.uint8)
    labels[2] = (labels[2] + 1) % 10
    head = {"images": (2051, 3, 28, 28), "labels": (2049, 3)}
    for name, data in (("images-idx3", pixels), ("labels-idx1", labels)):
        start = b"".join(n.to_bytes(4, "big") for n in head[name.split("-")[0]])
        (folder / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(start + data.tobytes()))
    (folder / "net.onnx").write_bytes(export_onnx(network))
    return folder / "net.onnx", folder


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["substitute", *map(str, arguments)])
    out = capsys.readouterr()
    return int(stopped.value.code or 0), out.out, out.err


def test_one_point_as_json(capsys: pytest.CaptureFixture[str], planar: Path) -> None:
    code, out, _ = ask(capsys, planar, "--at", "0.5,0.5", "--ratio", "0.6", "--exact", "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found) >= KEYS
    assert found["label"] == 0
    assert found["relus_before"] == 24
    assert found["relus_after"] <= 10
    assert 0 < found["certified_lower"] <= found["exact"] * (1 + 1e-6) <= found["d_adv"] * (1 + 2e-6)
    assert found["relative_difference"] == pytest.approx(abs(found["estimate"] - found["exact"]) / found["exact"])
    assert set(found["seconds"]) >= {"attack", "pruning", "milp", "runs"}


def test_without_exact_it_is_null_and_the_text_says_what_an_estimate_is(capsys: pytest.CaptureFixture[str], planar: Path) -> None:
    _, out, _ = ask(capsys, planar, "--at", "0.5,0.5", "--ratio", "0.6", "--json", "--type", "activation")
    assert json.loads(out)["exact"] is None
    assert json.loads(out)["delta"] > 0
    _, out, _ = ask(capsys, planar, "--at", "0.5,0.5", "--ratio", "0.6")
    assert "no certificate" in out
    assert "certified at least" in out


def test_the_saved_substitute_has_the_substitutes_values(capsys: pytest.CaptureFixture[str], planar: Path, tmp_path: Path) -> None:
    place = tmp_path / "substitute.onnx"
    code, _, _ = ask(capsys, planar, "--at", "0.5,0.5", "--ratio", "0.6", "--save", place)
    network, saved = Network.from_onnx(planar), Network.from_onnx(place)
    x = torch.full((1, 2), 0.5)
    assert code == 0
    assert torch.allclose(network(x), saved(x), atol=1e-4)
    assert sum(p.numel() for n in saved.nodes for p in n.op.parameters()) < sum(p.numel() for n in network.nodes for p in n.op.parameters())


def test_several_images_pass_over_the_misclassified_one(
    capsys: pytest.CaptureFixture[str], digits: tuple[Path, Path], tmp_path: Path
) -> None:
    model, folder = digits
    base = [model, "--dataset", "mnist", "--data-dir", folder, "--ratio", "0.5", "--timeout", "20"]
    code, out, _ = ask(capsys, *base, "--index", "0:3", "--json", "--save", tmp_path / "s.onnx")
    results = json.loads(out)["results"]
    assert code == 3
    assert [one["index"] for one in results] == [0, 1, 2]
    assert "misclassified" in results[2]["reason"]
    assert results[2]["estimate"] is None
    assert all(one["d_adv"] > 0 and one["certified_lower"] <= one["upper"] for one in results[:2])
    assert (tmp_path / "s-1.onnx").exists()
    code, _, err = ask(capsys, *base, "--index", "2")
    assert code == 2
    assert "misclassified" in err


def test_pictures_of_two_inputs(capsys: pytest.CaptureFixture[str], planar: Path, tmp_path: Path, digits: tuple[Path, Path]) -> None:
    pytest.importorskip("matplotlib")
    place = tmp_path / "picture.png"
    code, _, _ = ask(capsys, planar, "--at", "0.5,0.5", "--ratio", "0.6", "--norm", "2", "--plot", place)
    assert code == 0
    assert place.read_bytes()[:4] == b"\x89PNG"
    code, _, err = ask(capsys, digits[0], "--dataset", "mnist", "--data-dir", digits[1], "--plot", place)
    assert code == 2
    assert "two inputs" in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--at", "0.5"], "--at gives 1 numbers"),
        (["--at", "a,b"], "cannot read the point"),
        ([], "give images with --dataset"),
        (["--at", "0.5,0.5", "--ratio", "1"], "strictly between 0 and 1"),
        (["--at", "0.5,0.5", "--ratio", "0.5", "--step", "0.5"], "at a time"),
        (["--at", "0.5,0.5", "--type", "cubic"], "unknown type of substitute"),
        (["--at", "0.5,0.5", "--bounds", "magic"], "unknown bounds"),
        (["--at", "0.5,0.5", "--norm", "3"], "unknown norm"),
        (["--at", "1.5,0.5"], "outside the domain"),
        (["--at", "0.5,0.5", "--save", "x.txt"], "written as .onnx files"),
        (["--at", "0.5,0.5", "--save", "/nowhere/x.onnx"], "no such folder"),
        (["--at", "0.5,0.5", "--plot", "x.gif"], "unknown kind of picture"),
        (["--at", "0.5,0.5", "--device", "abacus"], "device"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], planar: Path, arguments: list[str], words: str) -> None:
    code, out, err = ask(capsys, planar, *arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_a_network_without_adversaries_or_activations(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    far = chain((2,), Draw(1).dense(3, 2), Relu(), Draw(2).dense(2, 3))
    last = far.nodes[-1]
    last.op.offset[0] += 100.0  # type: ignore[attr-defined]
    for name, network, words in (
        ("far", far, "no adversary of image 0"),
        ("affine", chain((2,), Draw(3).dense(2, 2)), "no activations"),
        ("smooth", chain((2,), Draw(1).dense(3, 2), Tanh(), Draw(2).dense(2, 3)), "not piecewise linear"),
    ):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(export_onnx(network))
        code, _, err = ask(capsys, path, "--at", "0.5,0.5", "--type", "activation")
        assert code == 2
        assert words in err


def test_a_smooth_network_gets_two_ends(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    network = fully_connected(Tanh(), seed=1, widths=(2, 8, 2))
    network.nodes[-1].op.offset.copy_(network.nodes[-1].op.offset - network(torch.full((1, 2), 0.5))[0] + torch.tensor([0.05, 0.0]))  # type: ignore[attr-defined]
    (tmp_path / "smooth.onnx").write_bytes(export_onnx(network))
    code, out, _ = ask(capsys, tmp_path / "smooth.onnx", "--at", "0.5,0.5", "--ratio", "0.5", "--json")
    found = json.loads(out)
    assert code == 3
    assert found["estimate"] is None
    assert 0 <= found["estimate_range"][0] <= found["estimate_range"][1]


def test_a_substitute_without_adversaries_is_an_answer(capsys: pytest.CaptureFixture[str], planar: Path) -> None:
    """A constant network, in the end: no other class is anywhere."""
    code, out, _ = ask(capsys, planar, "--at", "0.5,0.5", "--type", "constant", "--ratio", "0.99", "--certify", "0", "--json")
    found = json.loads(out)
    assert (code, found["estimate"], found["reason"]) == (0, None, "the substitute has no adversary in the domain")
    code, out, _ = ask(capsys, planar, "--at", "0.5,0.5", "--type", "constant", "--ratio", "0.99", "--certify", "0", "--no-clip")
    assert code == 3
    assert "estimate between" in out


def test_bounds_alone_certify_less(capsys: pytest.CaptureFixture[str], planar: Path) -> None:
    ends = [
        json.loads(ask(capsys, planar, "--at", "0.5,0.5", "--ratio", "0.6", "--certify", seconds, "--json")[1]) for seconds in ("0", "30")
    ]
    assert ends[0]["certified_lower"] <= ends[1]["certified_lower"] <= ends[1]["upper"]
    assert ends[0]["certified_proof"] == "rigorous"
    assert ends[0]["seconds"]["certificate"] == 0


def test_no_time_at_all_is_unknown(capsys: pytest.CaptureFixture[str], planar: Path) -> None:
    code, out, _ = ask(capsys, planar, "--at", "0.5,0.5", "--timeout", "0", "--json")
    assert code == 3
    assert json.loads(out)["reason"] == "time limit"
    assert math.isfinite(json.loads(out)["label"])


def test_an_interrupt_keeps_what_is_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, digits: tuple[Path, Path]
) -> None:
    class Stops(Estimator):
        def __call__(self, *arguments: object) -> object:  # type: ignore[override]
            raise KeyboardInterrupt

    monkeypatch.setattr(substitute_command, "Estimator", Stops)
    code, out, err = ask(capsys, digits[0], "--dataset", "mnist", "--data-dir", digits[1], "--index", "0:2", "--json")
    assert code == 130
    assert json.loads(out)["interrupted"]
    assert "interrupted" in err
