"""The demo's questions are answered, and the files it ships agree with each other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bounds.network import Network
from demo.run import EPS, main
from verify.spec import robustness
from verify.vnnlib import read_vnnlib


def test_demo_verifies_falsifies_and_replays(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    out = capsys.readouterr().out
    verdicts = re.findall(r"test image +\d+, a \d: +(\w+)", out)
    assert len(verdicts) == 8
    assert verdicts.count("verified") >= 5
    assert verdicts[-1] == "falsified"
    moved = re.search(r"no pixel moves by more than ([\d.]+), and the network sees a (\d)", out)
    assert moved is not None
    assert float(moved.group(1)) <= EPS
    assert moved.group(2) != "6"
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize("name, place", [("robust", 0), ("fragile", -1)])
def test_questions_are_those_of_the_images(root: Path, name: str, place: int) -> None:
    stored = np.load(root / "demo" / "images.npz")
    x = stored["images"][place].astype(np.float64) / 255
    network = Network.from_onnx(root / "demo" / "network.onnx")
    (from_file,) = read_vnnlib(root / "demo" / f"{name}.vnnlib").specifications(network.input_shape, network.outputs)
    from_array = robustness(x.reshape(network.input_shape), int(stored["labels"][place]), EPS, norm=np.inf, outputs=network.outputs)
    for ours, theirs in zip(
        (from_file.region.box().lower, from_file.region.box().upper),
        (from_array.region.box().lower, from_array.region.box().upper),
        strict=True,
    ):
        assert float((ours - theirs).abs().max()) < 1e-8
    rows = {tuple(unsafe.C.flatten().tolist()) for unsafe in from_file.unsafe}
    assert rows == {tuple(unsafe.C.flatten().tolist()) for unsafe in from_array.unsafe}


def test_readme_example_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    monkeypatch.chdir(root)
    namespace: dict[str, object] = {}
    for block in blocks:  # a later block goes on where the one before stopped
        exec(compile(block, "README.md", "exec"), namespace)
