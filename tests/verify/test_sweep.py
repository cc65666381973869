from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bounds.errors import DataError, OutputError
from tests.verify.fake_answers import SETTINGS, task
from verify.records import Instance, Outcome
from verify.results import Results
from verify.sweep import Sweep, Tally, machine, missing, revision
from verify.tasks import Done, Order, Task


@dataclass
class Inline:
    """An engine in this process: the first word of an instance's name is its verdict."""

    count: int = 1
    asked: list[str] = field(default_factory=list)
    stop_after: int | None = None
    closed: bool = False

    def run(self, orders: Sequence[Order]) -> Iterator[Done]:
        try:
            for number, order in enumerate(orders):
                if number == self.stop_after:
                    raise KeyboardInterrupt
                self.asked.append(order.task.instance.name)
                yield Done(order, Outcome(order.task.instance.name.split()[0], wall_s=1.0))
        finally:
            self.closed = True

    def running(self) -> list[tuple[str, float]]:
        return []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


def sweep(path: Path, *tasks: Task, engine: Inline | None = None, **settings: object) -> tuple[Tally, Inline]:
    engine = engine or Inline()
    with Results.write(path) as results:
        tally = Sweep("suite", tasks, SETTINGS, **settings).run(results, engine)  # type: ignore[arg-type]
    return tally, engine


def verdicts(path: Path) -> dict[str, str]:
    with Results.read(path) as results:
        return {row.instance.name: row.outcome.verdict for row in results.rows()}


TASKS = (task("verified 1"), task("unknown 2"), task("error 3"), task("falsified 4", expected="unsat", family="other"))


def test_counts_by_family(path: Path) -> None:
    tally, _ = sweep(path, *TASKS)
    assert tally.families["fake"].verdicts == {"verified": 1, "unknown": 1, "error": 1}
    assert (tally.families["other"].wrong, tally.families["fake"].wrong) == (1, 0)
    assert (tally.all.total, tally.all.done, tally.all.wrong, tally.all.seconds, tally.asked, tally.left) == (4, 4, 1, 4.0, 4, 4)
    assert verdicts(path) == {"verified 1": "verified", "unknown 2": "unknown", "error 3": "error", "falsified 4": "falsified"}


def test_the_same_sweep_again_asks_nothing_and_counts_the_same(path: Path) -> None:
    first, _ = sweep(path, *TASKS)
    second, engine = sweep(path, *TASKS)
    assert engine.asked == []
    assert second.families == first.families
    assert (second.asked, second.left) == (0, 0)


def test_interrupted_sweep_goes_on_where_it_stopped(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(path, *TASKS, engine=Inline(stop_after=2))
    _, engine = sweep(path, *TASKS)
    assert engine.asked == ["error 3", "falsified 4"]
    assert len(verdicts(path)) == 4
    with Results.read(path) as results:
        assert [run.status for run in results.runs()] == ["interrupted", "finished"]
        assert [row.run for row in results.rows()] == [1, 1, 2, 2]


@pytest.mark.parametrize("retry, asked", [({"unknown"}, ["unknown 2"]), ({"unknown", "error"}, ["unknown 2", "error 3"])])
def test_retry(path: Path, retry: set[str], asked: list[str]) -> None:
    first, _ = sweep(path, *TASKS)
    tally, engine = sweep(path, *TASKS, retry=retry)
    assert engine.asked == asked
    assert tally.families == first.families
    with Results.read(path) as results:
        assert {row.instance.name for row in results.rows() if row.attempts == 2} == set(asked)


def test_other_options_or_limits_are_other_results(path: Path) -> None:
    sweep(path, task("verified 1", 5.0))
    assert sweep(path, task("verified 1", 6.0))[1].asked == ["verified 1"]
    assert sweep(path, task("verified 1", 5.0), timeout=5.0)[1].asked == ["verified 1"]
    with Results.write(path) as results:
        engine = Inline()
        Sweep("suite", [task("verified 1", 5.0)], dataclasses.replace(SETTINGS, seed=1)).run(results, engine)
        assert engine.asked == ["verified 1"]
        assert len(list(results.rows())) == 4
        assert len(results.configurations()) == 3


def test_repeated_instances_are_asked_once(path: Path) -> None:
    copy = dataclasses.replace(task("verified 1"), instance=dataclasses.replace(task("verified 1").instance, name="verified copy"))
    tally, engine = sweep(path, task("verified 1"), copy, task("verified 1"))
    assert engine.asked == ["verified 1"]
    assert (tally.repeated, tally.all.total) == (2, 1)


def test_repeated_instances_that_expect_different_answers_are_refused(path: Path) -> None:
    with pytest.raises(DataError, match="expected to be sat in one row and unsat in another"):
        sweep(path, task("verified 1", expected="sat"), task("verified 1", expected="unsat"))


def test_what_cannot_be_asked_is_an_error_until_it_can(path: Path) -> None:
    sound = task("verified 1")
    broken = dataclasses.replace(sound, instance=missing(sound.instance), broken="net: no such file")
    tally, engine = sweep(path, broken, task("unknown 2"))
    assert engine.asked == ["unknown 2"]
    assert tally.all.verdicts == {"error": 1, "unknown": 1}
    with Results.read(path) as results:
        assert next(results.rows()).outcome.reason == "net: no such file"
    assert sweep(path, broken, task("unknown 2"))[0].asked == 0
    tally, engine = sweep(path, sound, task("unknown 2"))
    assert engine.asked == ["verified 1"]
    assert verdicts(path) == {"verified 1": "verified", "unknown 2": "unknown"}


def test_what_the_suite_says_is_brought_up_to_date(path: Path) -> None:
    sweep(path, task("verified 1"))
    tally, engine = sweep(path, task("verified 1", expected="sat", family="new"))
    assert engine.asked == []
    assert (tally.all.wrong, list(tally.families)) == (1, ["new"])
    with Results.read(path) as results:
        assert [(row.instance.family, row.instance.expected) for row in results.rows()] == [("new", "sat")]


def test_observer_is_told_after_the_row_is_stored(path: Path) -> None:
    seen = []

    def observe(instance: Instance, outcome: Outcome, tally: Tally) -> None:
        seen.append((instance.name, outcome.verdict, tally.asked, len(verdicts(path)), tally.eta_s))

    with Results.write(path) as results:
        Sweep("suite", TASKS[:2], SETTINGS).run(results, Inline(), observe)
    assert [entry[:4] for entry in seen] == [("verified 1", "verified", 1, 1), ("unknown 2", "unknown", 2, 2)]
    assert seen[1][4] == 0.0


def test_a_full_disk_ends_the_sweep_and_the_workers(path: Path) -> None:
    engine = Inline()
    sweep(path, task("verified 0"))
    many = Sweep("suite", [task(f"verified {'x' * 3000}{i}") for i in range(100)], SETTINGS)
    with Results.write(path) as results:
        results._connection.execute("PRAGMA max_page_count = 20")
        with pytest.raises(OutputError, match="full"):
            many.run(results, engine)
        assert engine.closed
        stored = sum(1 for _ in results.rows())
    assert 1 <= stored < 100
    assert stored == len(verdicts(path))


def test_revision_and_machine_are_told(root: Path) -> None:
    found = revision()
    assert (found is None) == (not (root / ".git").exists())
    assert found is None or len(found.removesuffix("+changes")) == 40
    assert machine()["packages"]["torch"]
