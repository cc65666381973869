"""kill -9 at random moments: nothing is lost but what was running, nothing is doubled, and the answers are the same in the end."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.verify.fake_answers import SETTINGS, make_fake, task
from verify.results import Results
from verify.sweep import Sweep
from verify.tasks import Task
from verify.workers import Workers

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
VERDICTS = ("verified", "falsified", "unknown")


def tasks(log: Path, count: int) -> list[Task]:
    return [task(f"log {VERDICTS[i % 3]} {log}", number=i, expected="unsat" if i % 3 == 0 else "") for i in range(count)]


def drive(path: Path, log: Path, count: int) -> None:
    with Results.write(path) as results:
        Sweep("kills", tasks(log, count), SETTINGS).run(results, Workers(WORKERS, make_fake))


def stored(path: Path) -> list[tuple[str, str, float | None, int]]:
    if not path.exists():
        return []
    with Results.read(path) as results:
        return [(row.key, row.outcome.verdict, row.outcome.bound, row.attempts) for row in results.rows()]


@pytest.mark.parametrize("kills, count", [(5, 100)])
def test_killed_sweep_is_resumed_without_loss(tmp_path: Path, kills: int, count: int) -> None:
    path, log, rng = tmp_path / "killed.sqlite", tmp_path / "log", random.Random(0)
    script = (
        "from pathlib import Path; from tests.verify.test_sweep_kill import drive\n"
        f"if __name__ == '__main__': drive(Path({str(path)!r}), Path({str(log)!r}), {count})"
    )
    before = 0
    for _ in range(kills):
        driver = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        start = _lines(log)
        while _lines(log) < start + rng.randrange(4, 15) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001 * rng.random())
        driver.kill()
        _, said = driver.communicate()
        assert said == b""
        rows = stored(path)
        asked, before = _lines(log) - start, len(rows) - before
        assert 0 <= asked - before <= WORKERS, f"{asked} asked, {before} stored"
        assert len({key for key, *_ in rows}) == len(rows)
        before = len(rows)
    assert 0 < before < count
    drive(path, log, count)
    drive(tmp_path / "quiet.sqlite", tmp_path / "quiet log", count)
    rows = stored(path)
    assert len(rows) == count
    assert {attempts for *_, attempts in rows} == {1}
    assert sorted(verdict for _, verdict, *_ in rows) == sorted(verdict for _, verdict, *_ in stored(tmp_path / "quiet.sqlite"))
    assert all(bound == len(verdict) for _, verdict, bound, _ in rows)
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert _lines(log) <= count + kills * WORKERS


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
