from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bounds.errors import OutputError, SpecError
from bounds.network import Network
from tests.verify.test_cli import dense, question
from verify.competition import main

FORM = re.compile(r"\((?:\([XY]_\d+ [-+0-9.e]+\)\s*)+\)")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return dense(tmp_path / "net.onnx")


def run(tmp_path: Path, net: Path, violation: str, seconds: float = 30.0) -> list[str]:
    spec = question(tmp_path / "p.vnnlib", violation)
    assert main(["run", str(net), str(spec), str(tmp_path / "result"), str(seconds)]) == 0
    return (tmp_path / "result").read_text().splitlines()


def test_unsat(tmp_path: Path, net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, net, "(>= Y_0 2.0)") == ["unsat"]
    assert capsys.readouterr().out == "unsat\n"


def test_sat_with_a_witness_that_replays(tmp_path: Path, net: Path) -> None:
    """The file is read as the competition's checker reads it: every input and output by name, run through the model again."""
    lines = run(tmp_path, net, "(>= Y_0 0.75)")
    assert lines[0] == "sat"
    text = "\n".join(lines[1:])
    assert FORM.fullmatch(text)
    pairs = {name: float(value) for name, value in re.findall(r"\(([XY]_\d+) ([^)]+)\)", text)}
    assert list(pairs) == ["X_0", "X_1", "Y_0", "Y_1"]
    x = np.array([[pairs["X_0"], pairs["X_1"]]], np.float32)
    assert np.all(np.abs(x) <= 1)
    original = Network.from_onnx(net).original
    assert original is not None
    assert np.array_equal(original(x)[0], np.array([pairs["Y_0"], pairs["Y_1"]], np.float32))
    assert pairs["Y_0"] >= 0.75


def test_timeout(tmp_path: Path, net: Path) -> None:
    assert run(tmp_path, net, "(>= Y_0 2.0)", 1e-6) == ["timeout"]


def test_what_cannot_be_asked_is_unknown(tmp_path: Path, net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, net, "(>= Y_7 2.0)") == ["unknown"]
    assert capsys.readouterr().err.startswith("ringfence: ")


def test_a_defect_leaves_a_result(tmp_path: Path, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("verify.competition.result_of", fail)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, net, "(>= Y_0 2.0)")
    assert (tmp_path / "result").read_text() == "unknown\n"


def test_prepare(tmp_path: Path, net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = question(tmp_path / "p.vnnlib", "(>= Y_0 2.0)")
    assert main(["prepare", str(net), str(spec)]) == 0
    assert main(["prepare", str(tmp_path / "none.onnx"), str(spec)]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_bad_arguments(tmp_path: Path, net: Path) -> None:
    with pytest.raises(SpecError, match="more than 0 seconds"):
        main(["run", str(net), "p.vnnlib", str(tmp_path / "result"), "0"])
    with pytest.raises(OutputError, match="cannot be written"):
        main(["run", str(net), "p.vnnlib", str(tmp_path / "none" / "result"), "5"])


@pytest.fixture
def scripts(root: Path, tmp_path: Path) -> Path:
    """The scripts beside an environment whose python is this one, in a folder with a blank in its name."""
    home = tmp_path / "the tool"
    shutil.copytree(root / "competition", home / "competition")
    (home / ".venv" / "bin").mkdir(parents=True)
    python = home / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return home / "competition"


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no sh")
def test_scripts(scripts: Path, tmp_path: Path, net: Path) -> None:
    question(tmp_path / "p.vnnlib", "(>= Y_0 2.0)")
    common = ["v1", "family", "net.onnx", "p.vnnlib"]
    assert _call(scripts / "prepare_instance.sh", *common, cwd=tmp_path).returncode == 0
    assert _call(scripts / "run_instance.sh", *common, "the result", "30", cwd=tmp_path).returncode == 0
    assert (tmp_path / "the result").read_text() == "unsat\n"
    question(tmp_path / "p.vnnlib", "(>= Y_0 0.75)")
    done = _call(scripts / "run_instance.sh", *common, "the result", "30", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "sat\n", "")
    told, _, witness = (tmp_path / "the result").read_text().partition("\n")
    assert told == "sat"
    assert FORM.fullmatch(witness.strip())
    assert _call(scripts / "run_instance.sh", *common, "the result", "1e-6", cwd=tmp_path).stdout == "timeout\n"
    assert (tmp_path / "the result").read_text() == "timeout\n"
    for name, arguments in (("prepare_instance.sh", ["v2", *common[1:]]), ("run_instance.sh", common), ("install_tool.sh", ["v2"])):
        done = _call(scripts / name, *arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith(f"{name}: expected ")


def _call(script: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(script), *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no sh")
def test_a_killed_run_leaves_timeout(scripts: Path, tmp_path: Path, net: Path) -> None:
    question(tmp_path / "p.vnnlib", "(>= Y_0 2.0)")
    arguments = [str(scripts / "run_instance.sh"), "v1", "family", str(net), str(tmp_path / "p.vnnlib"), str(tmp_path / "result"), "30"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "result").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "result").read_text() in ("timeout\n", "unsat\n")
