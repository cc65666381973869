from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import sweep_kills as module
from benchmarks.sweep_kills import Bench, compare, count, faults, kill, stored, whole
from tests.verify.fake_answers import SETTINGS, task
from tests.verify.test_sweep import Inline
from verify.records import Row
from verify.results import Results
from verify.sweep import Sweep


def rows(path: Path, *names: str, expected: str = "") -> dict[str, Row]:
    """What a sweep stores of instances named after their verdicts; the number of an instance is its place."""
    with Results.write(path) as results:
        tasks = [task(name, family=f"family {i % 2}", number=i, expected=expected) for i, name in enumerate(names)]
        tasks = [dataclasses.replace(t, instance=dataclasses.replace(t.instance, spec_hash="same")) for t in tasks]
        Sweep("suite", tasks, SETTINGS).run(results, Inline())
    assert whole(path) == "ok"
    found = stored(path)
    assert count(path) == len(found) == len(names)
    return found


def test_nothing_there(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    assert (stored(path), count(path), whole(path)) == ({}, 0, "ok")
    path.touch()
    assert (stored(path), count(path)) == ({}, 0)


def test_faults_are_named(tmp_path: Path) -> None:
    before = rows(tmp_path / "a", "verified", "unknown")
    after = rows(tmp_path / "b", "verified", "unknown", "falsified", "verified")
    assert faults(before, after, 2, "ok") == faults(before, after, 1, "ok") == ()
    assert faults(before, after, 3, "ok") == ("3 answers told, 2 stored",)
    assert faults(before, after, 0, "ok") == ("0 answers told, 2 stored",)
    assert faults(after, before, 0, "ok") == ("lost: falsified, verified",)
    assert faults(before, before, 0, "row missing") == ("SQLite: row missing",)
    key, row = next(iter(before.items()))
    twice = before | {key: dataclasses.replace(row, attempts=2)}
    assert faults(before, twice, 0, "ok") == ("asked twice: verified",)
    other = before | {key: dataclasses.replace(row, outcome=dataclasses.replace(row.outcome, verdict="falsified"))}
    assert faults(before, other, 0, "ok") == ("changed: verified",)


def test_comparison(tmp_path: Path) -> None:
    one = rows(tmp_path / "one", "verified", "verified", "unknown", "verified", expected="sat")
    two = rows(tmp_path / "two", "verified", "unknown", "unknown", "falsified", "verified", expected="sat")
    lines = compare(one, two).splitlines()
    assert lines[0] == "rows: 4 killed, 5 left alone; only killed 0, only left alone 1"
    assert lines[1] == "asked more than once: 0"
    assert lines[2] == "contradictions: 1; of what is expected: 3 killed, 2 left alone"
    assert lines[3] == "same verdict: 2 of 4; decided in one and open in the other: 1"
    assert lines[6:8] == ["  family 0: 2 of 2 the same", "  family 1: 0 of 2 the same"]
    assert lines[8:] == [
        "  family 1 falsified: verified 1.00 s killed, falsified 1.00 s left alone",
        "  family 1 unknown: verified 1.00 s killed, unknown 1.00 s left alone",
    ]
    assert "contradictions: 0" in compare(two, two)


class Slow(Bench):
    """Instead of the command: a sweep that prints as it does and answers nothing heavy."""

    def start(self, out: Path, told: Path) -> subprocess.Popen[bytes]:
        script = (
            "import time; from tests.verify.fake_answers import SETTINGS, task; from tests.verify.test_sweep import Inline\n"
            "from verify.results import Results; from verify.sweep import Sweep\n"
            "def observe(instance, outcome, tally): print(f'{tally.all.done}/{tally.all.total}  fake', flush=True); time.sleep(0.05)\n"
            f"with Results.write({str(out)!r}) as results:\n"
            "    Sweep('s', [task('verified', number=i) for i in range(40)], SETTINGS).run(results, Inline(), observe)"
        )
        with told.open("wb") as file:
            return subprocess.Popen([sys.executable, "-c", script], cwd=module.ROOT, stdout=file)


def test_a_kill_and_what_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    bench = Slow("suite", ())
    first = kill(1, 3, 0.0, bench, tmp_path)
    assert (first.faults, first.before) == ((), 0)
    assert first.after >= 3
    assert first.line().startswith("kill  1")
    second = kill(2, 40, 0.5, bench, tmp_path)
    assert (second.faults, second.before, second.after) == ((), first.after, 40)
