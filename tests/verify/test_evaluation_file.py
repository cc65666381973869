from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bounds.errors import DataError, ModelError, OutputError
from tests.mnist_files import write_mnist
from verify import evaluation_command as module
from verify.evaluate import Chunk, Limits, Settings
from verify.evaluation_command import Job
from verify.evaluation_file import Journal, read_chunks, to_record

SETTINGS = Settings(0.05, methods=("ibp", "crown", "pgd"), batch=2, steps=5, restarts=2)


@pytest.fixture
def job(root: Path, tmp_path: Path) -> Job:
    """The demo's network and images, two images a chunk."""
    stored = np.load(root / "demo" / "images.npz")
    write_mnist(tmp_path, stored["images"], stored["labels"])
    return Job(root / "demo" / "network.onnx", "mnist", tmp_path, SETTINGS, out=tmp_path / "results.jsonl")


def timeless(path: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in path.read_text().splitlines()]


def written(job: Job) -> Path:
    if job.out is None:
        raise ValueError
    return job.out


def test_every_cut_of_the_file_is_resumed(job: Job) -> None:
    """Wherever a kill cuts the file, the next run ends with the same results, and keeps whole lines as they are."""
    whole = job.run(Limits())
    path = written(job)
    data, lines = path.read_bytes(), timeless(path)
    assert len(lines) == 1 + 4
    for size in (0, 10, len(data) // 3, len(data) // 2, len(data) - 1, len(data)):
        path.write_bytes(data[:size])
        kept = data[:size].rpartition(b"\n")[0]
        found = job.run(Limits())
        assert path.read_bytes().startswith(kept)
        assert timeless(path) == lines
        assert replace(found, seconds={}) == replace(whole, seconds={})


def test_finished_results_need_no_work(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = job.run(Limits())
    monkeypatch.setattr("verify.evaluate.evaluate_chunk", None)
    assert job.run(Limits()) == whole
    assert job.finished() == whole
    half = replace(job, count=3)
    assert half.finished().images == half.run(Limits()).images == 3


def test_more_images_continue_the_file(job: Job) -> None:
    replace(job, count=3).run(Limits())
    assert job.finished().images == 3
    assert not job.finished().complete
    found = job.run(Limits())
    assert [line["first"] for line in timeless(written(job))[1:]] == [0, 2, 3, 5, 7]
    assert found.certified_error == replace(job, out=None).run(Limits()).certified_error


def test_reading_changes_nothing(job: Job) -> None:
    assert job.finished().images == 0
    assert not written(job).exists()
    job.run(Limits())
    cut = written(job).read_bytes()[:-5]
    written(job).write_bytes(cut)
    assert job.finished().images == 6
    assert written(job).read_bytes() == cut


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"eps": 0.06}, "eps is 0.05 instead of 0.06"),
        ({"norm": 2.0}, 'norm is "inf" instead of "2"'),
        ({"clip": False}, "clip is true instead of false"),
        ({"methods": ("ibp", "pgd")}, "methods is "),
        ({"batch": 3}, "batch is 2 instead of 3"),
        ({"seed": 1}, "attack is "),
        ({"semantics": "float32-any-order"}, "semantics is "),
    ],
)
def test_results_of_other_settings_are_refused(job: Job, change: dict[str, object], name: str) -> None:
    job.run(Limits())
    before = written(job).read_bytes()
    with pytest.raises(OutputError, match=f"results of another run, whose {name}"):
        replace(job, settings=replace(SETTINGS, **change)).run(Limits())  # type: ignore[arg-type]
    assert written(job).read_bytes() == before


def test_results_of_another_network_or_data_set_are_refused(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job.run(Limits())
    monkeypatch.setattr(module, "_digest", lambda model: "another")
    with pytest.raises(OutputError, match="whose network is"):
        job.run(Limits())
    monkeypatch.undo()
    monkeypatch.setattr(module, "version", lambda name: "0.0.0")
    with pytest.raises(OutputError, match="whose version is"):
        job.run(Limits())
    monkeypatch.undo()
    write_mnist(tmp_path, np.zeros((8, 28, 28), np.uint8), np.zeros(8, np.uint8))
    with pytest.raises(OutputError, match="whose images is"):
        job.run(Limits())


def test_packing_the_network_changes_nothing(job: Job, tmp_path: Path) -> None:
    import gzip

    whole = job.run(Limits())
    packed = tmp_path / "network.onnx.gz"
    packed.write_bytes(gzip.compress(job.model.read_bytes()))
    assert replace(job, model=packed).finished() == whole
    packed.write_bytes(packed.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"network\.onnx\.gz: cannot be read"):
        replace(job, model=packed).finished()


@pytest.mark.parametrize("text", ["hello", "hello\n", "[1]\n", '{"schema": "other"}\n'])
def test_other_files_are_left_alone(job: Job, text: str) -> None:
    written(job).write_text(text)
    with pytest.raises(OutputError, match=r"results\.jsonl"):
        job.run(Limits())
    assert written(job).read_text() == text


def damage(path: Path, number: int, change: Callable[[str], str]) -> None:
    lines = path.read_text().splitlines()
    lines[number] = change(lines[number])
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (2, lambda line: line[:20], "line 3 is damaged"),
        (2, lambda line: "null", "line 3 is no result"),
        (2, lambda line: line.replace('"first": 2', '"first": 0'), "line 3 begins at image 0 instead of 2, as if two runs wrote at once"),
        (3, lambda line: line.replace('"crown"', '"clown"'), "line 4 is no result of this run"),
        (3, lambda line: line.replace('"broken": [', '"broken": [true, '), "line 4 is no result of this run"),
        (3, lambda line: line.replace('"correct"', '"right"'), "line 4 is no result of this run"),
    ],
)
def test_damaged_lines_are_refused(job: Job, number: int, change: Callable[[str], str], message: str) -> None:
    job.run(Limits())
    damage(written(job), number, change)
    before = written(job).read_bytes()
    with pytest.raises(OutputError, match=message):
        job.run(Limits())
    assert written(job).read_bytes() == before


def test_chunks_survive_the_file(tmp_path: Path) -> None:
    chunk = Chunk(0, (True, False), {"ibp": (0.1 + 0.2, None), "crown": (-1e-300, None)}, (False, True), {"ibp": 0.5})
    journal = Journal(tmp_path / "file")
    journal.resume({"a": 1})
    journal.append(to_record(chunk))
    settings = replace(SETTINGS, methods=("ibp", "crown", "pgd"))
    assert read_chunks(journal.resume({"a": 1}), settings, journal.path) == [chunk]


def test_radii_survive_the_file(tmp_path: Path) -> None:
    margins: dict[str, tuple[float | None, ...]] = {"crown": (0.1, None), "pec": (0.1, None)}
    chunk = Chunk(0, (True, False), margins, None, {"crown": 0.5, "pec": 0.1}, (0.1 + 0.2, None))
    journal = Journal(tmp_path / "file")
    journal.resume({"a": 1})
    journal.append(to_record(chunk))
    settings = Settings(0.3, methods=("crown", "pec"))
    assert read_chunks(journal.resume({"a": 1}), settings, journal.path) == [chunk]
    for other in (replace(chunk, radii=None), replace(chunk, radii=(0.3,))):
        with pytest.raises(OutputError, match="line 2 is no result of this run"):
            read_chunks([to_record(other)], settings, journal.path)


def test_no_such_folder(job: Job, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        replace(job, out=tmp_path / "absent" / "results.jsonl").run(Limits())
    with pytest.raises(OutputError, match="it is no ordinary file"):
        replace(job, out=tmp_path).run(Limits())


def test_counts_that_are_not_there(job: Job) -> None:
    for count in (0, -1, 9):
        with pytest.raises(DataError, match=f"{count} images were asked for; mnist has 8 here, so use 1 to 8"):
            replace(job, count=count).run(Limits())


PROGRAM = """
import sys, time
from pathlib import Path
from verify import evaluate
from verify.evaluate import Limits, Settings
from verify.evaluation_command import Job
chunk = evaluate.evaluate_chunk
def slow(*arguments):
    time.sleep(float(sys.argv[4]))
    return chunk(*arguments)
evaluate.evaluate_chunk = slow
settings = Settings(0.05, methods=("ibp", "crown", "pgd"), batch=2, steps=5, restarts=2)
Job(Path(sys.argv[1]), "mnist", Path(sys.argv[2]), settings, out=Path(sys.argv[3])).run(Limits())
"""


def start(job: Job, root: Path, wait: float, limit: int | None = None) -> subprocess.Popen[str]:
    """The same evaluation in a process of its own, slowed down; files there may not grow beyond `limit` bytes."""

    def confine() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    arguments = [sys.executable, "-B", "-c", PROGRAM, str(job.model), str(job.folder), str(job.out), str(wait)]
    return subprocess.Popen(arguments, cwd=root, preexec_fn=confine, stderr=subprocess.PIPE, text=True)


def test_kill_loses_only_the_running_chunk(job: Job, root: Path) -> None:
    process = start(job, root, wait=0.2)
    path = written(job)
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = path.read_bytes()
    assert 3 <= kept.count(b"\n") < 5
    found = job.run(Limits())
    assert found.complete
    assert path.read_bytes().startswith(kept)
    assert found.certified_error == replace(job, out=None).run(Limits()).certified_error


def test_full_disk(job: Job, root: Path) -> None:
    """A file that cannot grow: one typed line, whole records before it are kept, nothing is half-written."""
    whole = job.run(Limits())
    path = written(job)
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    process = start(job, root, wait=0.0, limit=sum(map(len, lines[:3])) + 20)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "OutputError" in errors
    assert "results.jsonl: cannot be written (File too large); finished results before it are kept" in errors
    kept = path.read_bytes()
    assert kept.endswith(b"\n")
    assert kept.count(b"\n") in (2, 3)
    assert job.run(Limits()).certified_error == whole.certified_error
