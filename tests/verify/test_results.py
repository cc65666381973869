from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bounds.errors import OutputError, ResultsError
from tests.verify.sample_results import OURS, write_sample
from verify.records import Configuration, Instance, Outcome, RunInfo
from verify.results import VERSION, Results

INFO = RunInfo("suite", "local", 1, None, {"host": "here"})
INSTANCE = Instance("family", "name", "net.onnx", "spec.vnnlib", "1" * 64, "2" * 64, "unsat", 5.0)
TOOL = Configuration("ringfence", "1", {"seed": 0})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


def store(path: Path, *outcomes: Outcome, instance: Instance = INSTANCE) -> None:
    with Results.write(path) as results:
        run, number = results.begin(INFO), results.configuration(TOOL)
        for outcome in outcomes:
            results.record(run, number, instance.key(TOOL), instance, outcome)
        results.end(run, "finished")


def test_everything_comes_back(path: Path) -> None:
    x = np.array([[0.1, np.nextafter(0.2, 1)]], np.float64)
    question = {"dataset": "mnist", "index": 3, "label": 7, "norm": "2", "eps": 0.1}
    instance = Instance("mnist", "image 3", "n.onnx", "image 3", "3" * 64, "4" * 64, "", None, question)
    outcome = Outcome(
        "falsified", None, -0.5, None, "real", "pgd", "", (0, 4), 0.1, 0.2, {"load": 0.5, "total": 1.5}, 1.6, 1.4, 200.0, {"input": x}
    )
    store(path, outcome, instance=instance)
    with Results.read(path) as results:
        (row,) = results.rows()
        assert row.instance == instance
        assert row.key == instance.key(TOOL)
        for name in (
            "verdict",
            "bound",
            "semantics",
            "decided_by",
            "rounded",
            "radius_lower",
            "radius_upper",
            "seconds",
            "wall_s",
            "peak_mb",
        ):
            assert getattr(row.outcome, name) == getattr(outcome, name), name
        assert row.outcome.detail is None
        arrays = results.arrays(row.key)
        assert list(arrays) == ["input"]
        assert arrays["input"].dtype == x.dtype
        assert np.array_equal(arrays["input"], x)
        assert results.configurations() == {row.configuration: TOOL}
        (run,) = results.runs()
        assert (run.status, run.info) == ("finished", INFO)
        assert run.finished is not None
        assert run.started <= row.finished <= run.finished


def test_an_answer_replaces_the_earlier_one_with_its_arrays(path: Path) -> None:
    store(path, Outcome("falsified", arrays={"input": np.zeros(2), "output": np.zeros(1)}))
    store(path, Outcome("unknown", "time limit"))
    with Results.read(path) as results:
        (row,) = results.rows()
        assert (row.outcome.verdict, row.attempts, row.run) == ("unknown", 2, 2)
        assert results.arrays(row.key) == {}


@pytest.mark.parametrize(
    "change",
    [{"network_hash": "9"}, {"spec_hash": "9"}, {"limit_s": 6.0}, {"limit_s": None}],
)
def test_key_depends_on_what_is_asked(change: dict[str, object]) -> None:
    assert Instance(**{**vars(INSTANCE), **change}).key(TOOL) != INSTANCE.key(TOOL)  # type: ignore[arg-type]


def test_key_depends_on_tool_version_and_options_but_not_on_names() -> None:
    keys = {INSTANCE.key(c) for c in (TOOL, Configuration("x", "1", {"seed": 0}), Configuration("ringfence", "2", {"seed": 0}), OURS)}
    assert len(keys) == 4
    renamed = Instance(**{**vars(INSTANCE), "family": "f", "name": "n", "network": "m", "spec": "s", "expected": ""})
    assert renamed.key(TOOL) == INSTANCE.key(TOOL)
    assert INSTANCE.key(Configuration("t", "1", {"a": 1, "b": 2})) == INSTANCE.key(Configuration("t", "1", {"b": 2, "a": 1}))


def test_rename_and_forget(path: Path) -> None:
    store(path, Outcome("falsified", arrays={"input": np.zeros(2)}))
    key = INSTANCE.key(TOOL)
    with Results.write(path) as results:
        results.rename(key, Instance("g", "m", "a", "b", "1" * 64, "2" * 64, "sat"))
        (row,) = results.rows()
        assert (row.instance.family, row.instance.name, row.instance.expected, row.outcome.verdict) == ("g", "m", "sat", "falsified")
        assert results.arrays(key)
        results.forget([key])
        assert list(results.rows()) == []
        assert results.arrays(key) == {}


def test_rows_of_one_configuration(path: Path) -> None:
    write_sample(path)
    with Results.read(path) as results:
        every = list(results.rows())
        ours = [number for number, c in results.configurations().items() if c == OURS]
        assert [row.key for row in results.rows(ours[0])] == [row.key for row in every if row.configuration == ours[0]]
        assert {row.outcome.verdict for row in every} == {"verified", "falsified", "unknown", "error", "measured"}
        assert any(row.outcome.contradicts(row.instance.expected) for row in every)


@pytest.mark.parametrize(
    "verdict, expected, wrong",
    [
        ("verified", "sat", True),
        ("falsified", "unsat", True),
        ("verified", "unsat", False),
        ("unknown", "sat", False),
        ("verified", "", False),
    ],
)
def test_contradiction(verdict: str, expected: str, wrong: bool) -> None:
    assert Outcome(verdict).contradicts(expected) is wrong


def test_second_writer_is_refused_and_a_reader_is_not(path: Path) -> None:
    with Results.write(path) as results:
        with pytest.raises(ResultsError, match="another process is writing"):
            Results.write(path)
        results.record(results.begin(INFO), results.configuration(TOOL), INSTANCE.key(TOOL), INSTANCE, Outcome("verified"))
        with Results.read(path) as reader:
            assert [row.outcome.verdict for row in reader.rows()] == ["verified"]
    Results.write(path).close()


def test_a_link_to_the_file_shares_its_lock(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.sqlite"
    link.symlink_to(path)
    with Results.write(path), pytest.raises(ResultsError, match=r"link\.sqlite: another process is writing"):
        Results.write(link)
    Results.write(link).close()
    assert [p.name for p in link.parent.iterdir()] == ["link.sqlite"]


def test_lock_ends_with_the_process_that_held_it(path: Path) -> None:
    script = f"import os; from verify.results import Results; r = Results.write({str(path)!r}); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False).returncode == -9
    Results.write(path).close()


def test_committed_rows_survive_a_kill(path: Path) -> None:
    script = f"""
import os
from tests.verify.test_results import INFO, INSTANCE, TOOL, Outcome, Results
results = Results.write({str(path)!r})
results.record(results.begin(INFO), results.configuration(TOOL), INSTANCE.key(TOOL), INSTANCE, Outcome("verified"))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False).returncode == -9
    with Results.read(path) as results:
        assert [row.outcome.verdict for row in results.rows()] == ["verified"]
        assert [run.status for run in results.runs()] == [None]


def test_other_version_is_refused_and_kept(path: Path) -> None:
    write_sample(path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    for way in (Results.write, Results.read):
        with pytest.raises(ResultsError, match=f"schema version {VERSION + 1}, this ringfence reads and writes version {VERSION}"):
            way(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM results").fetchone()[0] > 0
    connection.close()


def test_other_files_are_refused_and_kept(path: Path) -> None:
    path.write_text("onnx,vnnlib,timeout\n" * 500)
    for way in (Results.write, Results.read):
        with pytest.raises(ResultsError, match="not a results file"):
            way(path)
    assert path.read_text() == "onnx,vnnlib,timeout\n" * 500
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(ResultsError, match="not a results file"):
        Results.write(path)


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no folder"):
        Results.write(tmp_path / "none" / "r.sqlite")
    with pytest.raises(ResultsError, match="no such results file"):
        Results.read(tmp_path / "r.sqlite")
    with pytest.raises(OutputError, match="cannot"):
        Results.write(tmp_path)


def test_interrupted_creation_is_taken_up(path: Path) -> None:
    """A kill between the first write and the commit of the schema leaves an empty database."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    store(path, Outcome("verified"))
    with Results.read(path) as results:
        assert len(list(results.rows())) == 1


def test_full_disk_is_an_error_and_keeps_what_was_there(path: Path) -> None:
    store(path, Outcome("verified"))
    with Results.write(path) as results:
        results._connection.execute("PRAGMA max_page_count = 1")
        big = Outcome("falsified", arrays={"input": np.zeros(1_000_000)})
        with pytest.raises(OutputError, match="full"):
            results.record(1, 1, INSTANCE.key(TOOL), INSTANCE, big)
        assert [row.outcome.verdict for row in results.rows()] == ["verified"]


def test_reading_leaves_no_files_behind(path: Path) -> None:
    write_sample(path)
    path.chmod(0o444)
    with Results.read(path) as results:
        assert list(results.rows())
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, path.name + ".lock"]
