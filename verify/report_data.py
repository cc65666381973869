"""What a report is about: the answers of one configuration, those it is compared with, and a summary of every family."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bounds.errors import ResultsError
from verify.records import Configuration, Row, Run
from verify.results import Results

OURS = "ringfence"
SOLVED = ("verified", "falsified")
MOST_COMPARED = 6
"""Configurations that one report compares with; more lines than this cannot be told apart."""
_SHOWN_OPTIONS = 3

Identity = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Answers:
    """What one configuration answered: the latest row of every instance, in the order in which they first came.

    label: what tells it from the others of the report. older: rows of the same instance under another limit that a later one replaced.
    """

    path: Path
    number: int
    configuration: Configuration
    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    older: int = 0
    label: str = ""

    @property
    def latest(self) -> str:
        """When its last row was finished; "" if it has none."""
        return max((row.finished for row in self.rows), default="")


@dataclass(frozen=True, eq=False)
class Selection:
    """The answers that a report is about, and those it compares them with.

    left_out: configurations beyond the MOST_COMPARED latest. apart: those of the same file that were asked nothing that `main` was.
    """

    main: Answers | None
    others: tuple[Answers, ...] = ()
    left_out: int = 0
    apart: tuple[Answers, ...] = ()


def identity(row: Row) -> Identity:
    """What two configurations were both asked: the hashes of network and specification."""
    return row.instance.network_hash, row.instance.spec_hash


def seconds(row: Row) -> float:
    """Seconds that the instance took: as the tool tells them, else as the sweep saw them."""
    total = row.outcome.seconds.get("total")
    return row.outcome.wall_s if total is None else total


def wrong(row: Row) -> bool:
    """Whether the verdict contradicts the expected one."""
    return row.outcome.contradicts(row.instance.expected)


def select(results: Path, against: Path | None = None, configuration: int | None = None) -> Selection:
    """Read what a report shows. configuration: its number in `results`; None for ours that answered last.

    It is compared with the configurations of `against`, or without that with the others of `results` that were asked some of the same.

    Raises:
        ResultsError: a file is missing, of another kind or version, or has no configuration of that number.
    """
    found = _read(results)
    if configuration is not None and configuration not in {a.number for a in found}:
        known = ", ".join(str(a.number) for a in found) or "none"
        raise ResultsError(f"{results}: no configuration {configuration} in it; there are: {known}")
    if not found:
        return Selection(None)
    chosen = [a for a in found if configuration in (None, a.number)]
    main = max(chosen, key=lambda a: (a.configuration.tool == OURS, a.latest, a.number))
    asked = {identity(row) for row in main.rows}
    rest = [a for a in found if a is not main]
    apart = [a for a in rest if asked.isdisjoint(identity(row) for row in a.rows)]
    others = [a for a in rest if a not in apart] if against is None else [a for a in _read(against) if a.rows]
    others.sort(key=lambda a: (a.latest, a.number), reverse=True)
    kept = tuple(others[:MOST_COMPARED])
    main, *named = _label((main, *kept, *apart))
    return Selection(main, tuple(named[: len(kept)]), len(others) - len(kept), tuple(named[len(kept) :]))


def _read(path: Path) -> list[Answers]:
    """The configurations of a file that have rows; all of them if none has."""
    with Results.read(path) as results:
        runs = {run.id: run for run in results.runs()}
        found = [_answers(path, number, named, runs, list(results.rows(number))) for number, named in results.configurations().items()]
    return [a for a in found if a.rows] or found


def _answers(path: Path, number: int, configuration: Configuration, runs: dict[int, Run], rows: Sequence[Row]) -> Answers:
    latest: dict[Identity, Row] = {}
    for row in rows:
        previous = latest.get(identity(row))
        if previous is None or row.finished >= previous.finished:
            latest[identity(row)] = row
    involved = tuple(runs[run] for run in sorted({row.run for row in rows}) if run in runs)
    return Answers(path, number, configuration, involved, tuple(latest.values()), len(rows) - len(latest))


def _label(found: Sequence[Answers]) -> tuple[Answers, ...]:
    """The same with labels that tell them apart: the tool, and whatever of version, options and file differs."""
    tools = {(a.configuration.tool, a.configuration.version) for a in found}
    versions = len(tools) > len({tool for tool, _ in tools})
    names = {name for a in found for name in a.configuration.options}
    labels = []
    for a in found:
        same = [b for b in found if b.configuration.tool == a.configuration.tool]
        parts = [a.configuration.tool + (f" {a.configuration.version}" if versions else "")]
        differing = [n for n in sorted(names) if len({repr(b.configuration.options.get(n)) for b in same}) > 1]
        parts += [f"{n}={a.configuration.options[n]}" for n in differing if n in a.configuration.options][:_SHOWN_OPTIONS]
        labels.append(", ".join(parts))
    labels = [f"{label}, {a.path.name}" if labels.count(label) > 1 else label for a, label in zip(found, labels, strict=True)]
    labels = [f"{label} ({i + 1})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]
    return tuple(Answers(a.path, a.number, a.configuration, a.runs, a.rows, a.older, label) for a, label in zip(found, labels, strict=True))


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of a group of rows, by name: how many of each verdict, seconds (of all rows), memory in MB of 2^20 bytes."""
    taken = [seconds(row) for row in rows]
    memory = [row.outcome.peak_mb for row in rows if row.outcome.peak_mb is not None]
    counts = {verdict: sum(row.outcome.verdict == verdict for row in rows) for verdict in (*SOLVED, "unknown", "error", "measured")}
    return {
        "instances": len(rows),
        **counts,
        "expected": sum(bool(row.instance.expected) for row in rows),
        "wrong": sum(map(wrong, rows)),
        "solver_proofs": sum(row.outcome.verdict == "verified" and row.outcome.proof == "solver" for row in rows),
        "median_s": statistics.median(taken) if taken else None,
        "max_s": max(taken, default=None),
        "total_s": sum(taken),
        "peak_mb": max(memory, default=None),
    }


def families(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """`summarise` for every family, in the order in which they first came."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.instance.family, []).append(row)
    return {name: summarise(group) for name, group in groups.items()}
