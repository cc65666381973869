"""`ringfence region`, as a user runs it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bounds.crown import Crown
from bounds.errors import DataError, OutputError, RegionError, SpecError
from bounds.network import Network
from bounds.region import LpBall
from tests.mnist_files import write_mnist
from verify import region_command
from verify.cli import main
from verify.region_command import Command, Question, Settings
from verify.spec import class_margins


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    stored = np.load(root / "demo" / "images.npz")
    write_mnist(tmp_path, stored["images"], stored["labels"])
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    with pytest.raises(SystemExit) as stopped:
        main(["region", *arguments])
    told = capsys.readouterr()
    return int(stopped.value.code or 0), told.out, told.err


def demo(root: Path, folder: Path, *more: str) -> tuple[str, ...]:
    return (str(root / "demo" / "network.onnx"), "--dataset", "mnist", "--data-dir", str(folder), *more)


def test_one_image(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is written is certified by an independent call, and the figures are those of the file."""
    out, plot = folder / "region.npz", folder / "map.png"
    code, text, _ = run(capsys, *demo(root, folder, "--index", "1", "--out", str(out), "--plot", str(plot), "--json"))
    document, stored = json.loads(text), np.load(out)
    assert code == 0
    assert (document["index"], document["verified"], document["finished"], document["reason"]) == (1, True, True, None)
    assert document["ratio"] == pytest.approx(document["eps_geometric_mean"] / document["eps_uniform"])
    assert document["ratio"] > 1
    eps, center = torch.from_numpy(stored["eps"]), torch.from_numpy(stored["center"])
    assert eps.log().mean().exp().item() == pytest.approx(document["eps_geometric_mean"], rel=1e-9)
    network = Network.from_onnx(root / "demo" / "network.onnx")
    C = class_margins(torch.tensor([document["label"]]), network.outputs).C
    found = Crown()(network, LpBall(center, eps, math.inf, (0.0, 1.0)), C)
    assert bool((found.objective.lower > 0).all())
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert {"schema", "network", "dataset", "norm", "clip", "engine", "method", "label", "bound_calls", "seconds"} <= set(document)


def test_several_images(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "region.npz"
    code, text, _ = run(
        capsys,
        *demo(root, folder, "--index", "0:2", "--out", str(out), "--plot", str(folder / "m.svg"), "--norm", "2", "--learn", "--json"),
    )
    document, stored = json.loads(text), np.load(out)
    assert code == 0
    assert [one["index"] for one in document["results"]] == [0, 1] == stored["index"].tolist()
    assert stored["eps"].shape == stored["center"].shape
    assert stored["norm"] == 2
    assert sorted(path.name for path in folder.glob("*.svg")) == ["m-0.svg", "m-1.svg"]


def test_text_and_engines(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for engine in ("ibp", "fastlin"):
        code, text, _ = run(capsys, *demo(root, folder, "--engine", engine, "--no-clip"))
        assert code in (0, 3)
        assert text.startswith("image 0 (label ")
        assert ("times the best uniform" in text) == (code == 0)


def test_a_mask(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = Network.from_onnx(root / "demo" / "network.onnx").input_shape
    free = np.zeros(shape, dtype=bool)
    free.reshape(-1)[100:140] = True
    np.save(folder / "free.npy", free)
    out = folder / "region.npz"
    code, _, _ = run(capsys, *demo(root, folder, "--free", str(folder / "free.npy"), "--most", "0.3", "--out", str(out)))
    eps = np.load(out)["eps"][0]
    assert code == 0
    assert (eps[~free] == 0).all()
    assert ((eps[free] > 0) & (eps[free] <= 0.3)).all()


def test_a_misclassified_image(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = np.load(root / "demo" / "images.npz")
    write_mnist(folder, stored["images"], (stored["labels"] + 1) % 10)
    code, text, _ = run(capsys, *demo(root, folder, "--json"))
    document = json.loads(text)
    assert code == 3
    assert (document["verified"], document["eps_geometric_mean"], document["ratio"]) == (False, 0.0, None)
    assert document["reason"].startswith(f"misclassified as {stored['labels'][0]}")


def test_no_time(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, *demo(root, folder, "--timeout", "0", "--json"))
    document = json.loads(text)
    assert code == 3
    assert (document["verified"], document["finished"], document["reason"]) == (False, False, "the time limit was reached")


def test_an_interrupt_keeps_what_was_found(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    largest = region_command.largest_region
    calls: list[int] = []

    def stops(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return largest(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(region_command, "largest_region", stops)
    told: list[str] = []
    question = Question("mnist", folder, "0:3", math.inf)
    command = Command(root / "demo" / "network.onnx", question, Settings(), told.append, True, folder / "region.npz")
    assert command.run() == 130
    assert capsys.readouterr().err == "ringfence: interrupted; the regions so far are told\n"
    document = json.loads(told[0])
    assert document["interrupted"] is True
    assert [one["index"] for one in document["results"]] == [0] == np.load(folder / "region.npz")["index"].tolist()


@pytest.mark.parametrize(
    "more, kind, message",
    [
        (("--index", "99"), DataError, "out of range"),
        (("--norm", "3"), SpecError, "unknown norm '3'; use inf, 2 or 1"),
        (("--engine", "alpha"), SpecError, "unknown engine 'alpha'; use one of crown, fastlin, crown-ibp, ibp"),
        (("--method", "newton"), SpecError, "unknown method 'newton'; use one of convex, lagrangian"),
        (("--least", "0.2", "--most", "0.1"), SpecError, "the range of eps is reversed: --least 0.2 must be below --most 0.1"),
        (("--out", "region.txt"), OutputError, "regions are written as .npz files"),
        (("--out", "nowhere/region.npz"), OutputError, "no such folder nowhere"),
        (("--plot", "map.bmp"), OutputError, "unknown kind of picture '.bmp'"),
        (("--free", "missing.npy"), DataError, "missing.npy: cannot be read"),
        (("--device", "tpu"), Exception, "device 'tpu' is not known"),
    ],
)
def test_bad_input_is_one_line(
    more: tuple[str, ...], kind: type[Exception], message: str, root: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, complaint = run(capsys, *demo(root, folder, *more))
    assert (code, text) == (2, "")
    assert message in complaint
    assert complaint.count("\n") == 1
    assert issubclass(kind, Exception)


def test_a_mask_that_fixes_everything(root: Path, folder: Path) -> None:
    shape = Network.from_onnx(root / "demo" / "network.onnx").input_shape
    np.save(folder / "free.npy", np.zeros(shape))
    question = Question("mnist", folder, "0", math.inf, free=folder / "free.npy")
    with pytest.raises(RegionError, match="no feature may move"):
        Command(root / "demo" / "network.onnx", question, Settings(), print).run()
    (folder / "free.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"cannot be read as a .npy array"):
        Command(root / "demo" / "network.onnx", question, Settings(), print).run()
