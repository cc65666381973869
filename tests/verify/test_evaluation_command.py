from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.mnist_files import write_mnist
from verify.evaluate import Evaluation, Limits, Settings
from verify.evaluation_command import Command, Job, say

SLOW = """
import sys, time
from pathlib import Path
from verify import evaluate
from verify.evaluate import Limits, Settings
from verify.evaluation_command import Command, Job
chunk = evaluate.evaluate_chunk
def slow(*arguments):
    time.sleep(float(sys.argv[1]) if arguments[-1] else 0)
    return chunk(*arguments)
evaluate.evaluate_chunk = slow
job = Job(Path(sys.argv[2]), "mnist", Path(sys.argv[3]), Settings(0.05, methods=("ibp",), batch=2), out=Path(sys.argv[4]))
sys.exit(Command(job, Limits(), lambda text: print(text, flush=True), True).run())
"""


@pytest.fixture
def job(root: Path, tmp_path: Path) -> Job:
    stored = np.load(root / "demo" / "images.npz")
    write_mnist(tmp_path, stored["images"], stored["labels"])
    settings = Settings(0.05, methods=("ibp", "crown", "pgd"), batch=3, steps=5, restarts=2)
    return Job(root / "demo" / "network.onnx", "mnist", tmp_path, settings)


def command(job: Job, wait: float) -> list[str]:
    return [sys.executable, "-B", "-c", SLOW, str(wait), str(job.model), str(job.folder), str(job.folder / "out.jsonl")]


def test_document_and_exit_code(job: Job) -> None:
    told: list[str] = []
    assert Command(job, Limits(), told.append, True).run() == 0
    (text,) = told
    document = json.loads(text)
    assert (document["schema"], document["dataset"], document["norm"], document["eps"]) == ("ringfence/1", "mnist", "inf", 0.05)
    assert (document["images"], document["requested"], document["complete"], document["reason"]) == (8, 8, True, None)
    assert set(document["certified_error"]) == set(document["average_certified_bound"]) == {"ibp", "crown"}
    assert set(document["seconds"]) == {"ibp", "crown", "pgd", "total"}
    assert document["clean_error"] <= document["pgd_error"] <= document["certified_error"]["crown"] <= document["certified_error"]["ibp"]


def test_late_runs_end_with_3(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    assert Command(job, Limits(deadline=0.0), told.append, False).run() == 3
    assert "clean error   -" in told[0]
    assert capsys.readouterr().err == "ringfence: time limit after 0 of 8 images\n"


def test_progress_is_told_after_every_chunk(job: Job) -> None:
    seen: list[Evaluation] = []
    job.run(Limits(), seen.append)
    assert [found.images for found in seen] == [0, 3, 6, 8]
    assert seen[-1].complete


def test_text_has_every_figure(job: Job) -> None:
    found = Evaluation(
        8, 10, 12.5, 25.0, {"ibp": 50.0, "crown": 37.5}, {"ibp": 0.025, "crown": 0.03125}, {"ibp": 1.0, "crown": 2.0, "pgd": 3.0}
    )
    lines = say(job, found).splitlines()
    assert lines[0] == "network.onnx: first 8 images of mnist, l-inf radius 0.05, pixels in [0, 1]"
    assert [line.split() for line in lines[1:]] == [
        ["clean", "error", "12.50", "%"],
        ["pgd", "error", "25.00", "%", "3.0", "s"],
        ["method", "certified", "error", "average", "certified", "bound", "seconds"],
        ["ibp", "50.00", "%", "0.025", "1.0"],
        ["crown", "37.50", "%", "0.03125", "2.0"],
    ]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_interrupt_keeps_what_is_finished(job: Job, root: Path) -> None:
    process = subprocess.Popen(command(job, 30.0), cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path = job.folder / "out.jsonl"
    wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") == 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    document = json.loads(out)
    assert (document["images"], document["complete"], document["reason"]) == (2, False, "interrupted")
    assert document["certified_error"]["ibp"] is not None
    assert err == f"ringfence: interrupted after 2 of 8 images; results kept in {path}\n"


def test_progress_bar_only_on_a_terminal(job: Job, root: Path) -> None:
    quiet = subprocess.run(command(job, 0.0), cwd=root, capture_output=True, text=True, timeout=120)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    ours, theirs = pty.openpty()
    shown = subprocess.Popen(command(job, 0.0), cwd=root, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    out = shown.communicate(timeout=120)[0]
    bar = os.read(ours, 1 << 16)
    os.close(ours)
    assert shown.returncode == 0
    assert b"8/8" in bar
    assert json.loads(out)["certified_error"] == json.loads(quiet.stdout)["certified_error"]
