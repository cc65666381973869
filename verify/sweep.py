"""Many instances, durable results: what is already answered is kept, what is not is asked, every answer is on the disk before it counts."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from bounds.errors import DataError
from verify.records import Configuration, Instance, Outcome, RunInfo
from verify.results import Results
from verify.tasks import Done, Order, Settings, Task, combine

TOOL = "ringfence"
MISSING = "missing"
"""What stands in the place of a hash where a file could not be read."""


class Engine(Protocol):
    """Who answers orders. `verify.workers.Workers` does it with local processes, `verify.cluster.RayEngine` on a cluster."""

    count: int

    def run(self, orders: Sequence[Order]) -> Iterator[Done]:
        """Answer all orders, in the order in which they are finished."""

    def running(self) -> list[tuple[str, float]]:
        """The instances being worked on, by name, and for how many seconds."""


@dataclass
class Count:
    """How the instances of one family stand; `seconds` is the sum of what the answered ones took."""

    total: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """How many are answered."""
        return sum(self.verdicts.values())

    def add(self, outcome_verdict: str, wrong: bool, seconds: float, sign: int = 1) -> None:
        """Count an answer, or with sign -1 take one back."""
        self.verdicts[outcome_verdict] += sign
        self.wrong += sign * wrong
        self.seconds += sign * seconds


@dataclass
class Tally:
    """How a sweep stands: by family, and since it was started (`asked` of `left` instances answered, at `began` on time.monotonic())."""

    families: dict[str, Count] = field(default_factory=dict)
    left: int = 0
    asked: int = 0
    repeated: int = 0
    began: float = field(default_factory=time.monotonic)

    def family(self, name: str) -> Count:
        """The count of a family."""
        return self.families.setdefault(name, Count())

    @property
    def all(self) -> Count:
        """All families together."""
        counts = self.families.values()
        verdicts: Counter[str] = Counter()
        for count in counts:
            verdicts.update(count.verdicts)
        return Count(sum(c.total for c in counts), verdicts, sum(c.wrong for c in counts), sum(c.seconds for c in counts))

    @property
    def eta_s(self) -> float | None:
        """Seconds that the instances left will take at the pace so far; None before there is a pace."""
        return None if not self.asked else (time.monotonic() - self.began) / self.asked * (self.left - self.asked)


Observer = Callable[[Instance, Outcome, Tally], None]


@dataclass(frozen=True)
class Sweep:
    """A suite under settings. timeout: seconds for every instance instead of the suite's own; it is part of what a result is a result of.

    retry: stored results with one of these verdicts are asked again.
    """

    suite: str
    tasks: Sequence[Task]
    settings: Settings
    timeout: float | None = None
    retry: Collection[str] = ()

    @functools.cached_property
    def configuration(self) -> Configuration:
        """What the results are stored under."""
        options: dict[str, Any] = {"timeout": self.timeout, **vars(self.settings)}
        return Configuration(TOOL, _version(), options)

    @functools.cached_property
    def orders(self) -> tuple[list[Order], int]:
        """One order for every key, and how many tasks were the same as an earlier one.

        Raises:
            DataError: the same instance is expected to be both sat and unsat.
        """
        configuration, orders = self.configuration, dict[str, Order]()
        repeated = 0
        for task in self.tasks:
            order = Order(task.instance.key(configuration), task, self.settings)
            first = orders.setdefault(order.key, order).task.instance
            if first is not task.instance:
                repeated += 1
                if {first.expected, task.instance.expected} == {"sat", "unsat"}:
                    raise DataError(f"{task.instance.family}: {task.instance.name} is expected to be sat in one row and unsat in another")
        return list(orders.values()), repeated

    def run(self, results: Results, engine: Engine, observe: Observer | None = None, tally: Tally | None = None) -> Tally:
        """Answer what is not answered yet. tally: filled while the sweep runs, for somebody who watches it.

        Raises:
            OutputError: a result cannot be stored. WorkerError: the engine cannot work. KeyboardInterrupt: whatever is stored is kept.
        """
        tally = Tally() if tally is None else tally
        orders, tally.repeated = self.orders
        number = results.configuration(self.configuration)
        run = results.begin(RunInfo(self.suite, type(engine).__name__.lower(), engine.count, revision(), machine()))
        status = "failed"
        try:
            left = self._take_stock(orders, results, number, tally)
            tally.left, tally.began = len(left), time.monotonic()
            with closing(_answers(left, engine)) as answers:
                for done in answers:
                    results.record(run, number, done.order.key, done.order.task.instance, done.outcome)
                    _count(tally, done)
                    if observe is not None:
                        observe(done.order.task.instance, done.outcome, tally)
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            results.end(run, status)
        return tally

    def _take_stock(self, orders: Sequence[Order], results: Results, number: int, tally: Tally) -> list[Order]:
        """Count what is stored, bring its names up to date, and return what is left to ask."""
        stored = {row.key: row for row in results.rows(number)}
        left, stale = [], []
        for order in orders:
            instance = order.task.instance
            count = tally.family(instance.family)
            count.total += 1
            if order.task.broken is None:
                stale.append(missing(instance).key(self.configuration))
            row = stored.get(order.key)
            if row is None or row.outcome.verdict in self.retry:
                left.append(order)
                continue
            if row.instance != instance:
                results.rename(order.key, instance)
            count.add(row.outcome.verdict, row.outcome.contradicts(instance.expected), row.outcome.wall_s)
        results.forget(key for key in stale if key in stored)
        return left


def missing(instance: Instance) -> Instance:
    """The same instance as it is stored while one of its files cannot be read."""
    return replace(instance, network_hash=MISSING, spec_hash=combine(instance.family, instance.network, instance.spec))


def _answers(orders: Sequence[Order], engine: Engine) -> Generator[Done, None, None]:
    """First the errors of what cannot be asked, then the engine's answers."""
    for order in orders:
        if order.task.broken is not None:
            yield Done(order, Outcome("error", order.task.broken))
    sound = [order for order in orders if order.task.broken is None]
    if sound:
        yield from engine.run(sound)


def _count(tally: Tally, done: Done) -> None:
    instance, outcome = done.order.task.instance, done.outcome
    tally.asked += 1
    tally.family(instance.family).add(outcome.verdict, outcome.contradicts(instance.expected), outcome.wall_s)


def _version() -> str:
    try:
        return version(TOOL)
    except PackageNotFoundError:
        return "unknown"


def revision() -> str | None:
    """The git revision of this code, with "+changes" where files differ from it; None where the code is not in a repository of its own."""
    folder, name = Path(__file__).parent, Path(__file__).name
    try:
        _git(folder, "ls-files", "--error-unmatch", name)
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """What a run is said to have run on."""
    packages = {}
    for name in ("torch", "numpy", "onnxruntime", "pyscipopt", "highspy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": packages,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
