from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.verify.sample_results import write_sample
from verify.cli import main

Runner = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Runner:
    """`ringfence report` in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["report", *map(str, arguments)])
        captured = capfd.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.sqlite"
    write_sample(path, 24)
    return path


def test_everything_at_once(run: Runner, sample: Path, tmp_path: Path) -> None:
    code, out, err = run(sample, "--html", tmp_path / "out.html", "--csv", tmp_path / "out.csv")
    assert (code, err) == (0, "")
    assert out.startswith("ringfence, sample.sqlite\nfamily ")
    assert f"{tmp_path / 'out.html'} written" in out
    assert (tmp_path / "out.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()) == 13


@pytest.mark.skipif(os.name == "nt", reason="devices as POSIX has them")
def test_into_a_device(run: Runner, sample: Path, tmp_path: Path) -> None:
    """The device is named through a link in a folder of the test's own, so that nothing else could be replaced."""
    (tmp_path / "null").symlink_to(os.devnull)
    code, out, err = run(sample, "--html", tmp_path / "null")
    assert (code, err) == (0, "")
    assert "written" not in out
    assert (tmp_path / "null").is_symlink()


def test_json(run: Runner, sample: Path) -> None:
    code, out, err = run(sample, "--json", "--timeout", "1", "--device", "cpu", "--memory-limit", "1GB", "--seed", "0")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["results"]) == 12


def test_against_another_file_and_configuration(run: Runner, sample: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "again.sqlite", 24)
    code, out, _ = run(sample, "--against", tmp_path / "again.sqlite", "--configuration", "2")
    assert code == 0
    assert out.startswith("other, sample.sqlite")
    assert out.count("\nagainst ") == 2


def test_bad_input_is_one_line_and_code_2_and_nothing_is_written(run: Runner, sample: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("no results\n")
    before = sample.read_bytes()
    page = tmp_path / "page.html"
    for arguments, expected in (
        ((tmp_path / "absent.sqlite", "--html", page), "no such results file"),
        ((text, "--html", page), "not a results file"),
        ((sample, "--html", page, "--against", text), "not a results file"),
        ((sample, "--html", page, "--configuration", 7), "there are: 1, 2"),
        ((sample, "--html", sample), "named twice"),
        ((sample, "--html", page, "--csv", page), "named twice"),
        ((sample, "--html", tmp_path / "no" / "page.html"), "no folder"),
        ((sample, "--html", tmp_path), "it is a folder"),
        ((sample, "--csv", tmp_path), "it is a folder"),
    ):
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert expected in err
        assert err.startswith("ringfence: ")
        assert not page.exists()
    assert sample.read_bytes() == before


def test_report_does_not_load_torch(root: Path, sample: Path) -> None:
    script = f"import sys\nfrom verify.cli import main\ntry:\n    main(['report', {str(sample)!r}])\nfinally:\n    assert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
