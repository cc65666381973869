"""What every stage of a run did: as data, as JSON and as text. Nothing heavy is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_HEAD = ("stage", "seconds", "open sets", "unstable", "margin at least", "")


@dataclass(frozen=True)
class StageRecord:
    """What one stage did with one specification, and what it left.

    question: position of the specification in the property. outcome: "verified", "falsified", "open" (handed on) or "skipped". reason: why it
    was skipped, what stood in its way, or how it decided; may be empty. open_sets: unsafe sets not excluded so far, of `sets`. unstable: neurons
    that the bounds leave unstable, None as long as no engine has bounded them. bound: proven lower bound of the worst margin, None without one.
    """

    stage: str
    kind: str
    question: int
    seconds: float
    outcome: str
    reason: str
    open_sets: int
    sets: int
    unstable: int | None
    bound: float | None

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return dict(vars(self))


def describe(records: Iterable[StageRecord]) -> list[dict[str, Any]]:
    """The field `stages` of the JSON document, in the order of the run."""
    return [record.to_dict() for record in records]


def explain(records: Sequence[StageRecord]) -> str:
    """A table with one row a stage; several specifications are one row: seconds and sets summed, the worst bound, the most unstable neurons."""
    groups: dict[tuple[int, str], list[StageRecord]] = {}
    for record, turn in zip(records, _turns(records), strict=True):
        groups.setdefault((turn, record.stage), []).append(record)
    rows = [_HEAD, *(_row(group) for group in groups.values())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEAD) - 1)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:], strict=True)), row[-1]]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _turns(records: Sequence[StageRecord]) -> list[int]:
    """Which stage of the run each record belongs to: two stages of one name are told apart by the question that comes again."""
    turns: list[int] = []
    turn, asked, name = 0, -1, ""
    for record in records:
        if record.stage != name or record.question <= asked:
            turn += 1
        turns.append(turn)
        asked, name = record.question, record.stage
    return turns


def _row(group: Sequence[StageRecord]) -> tuple[str, ...]:
    seconds = "skipped" if all(r.outcome == "skipped" for r in group) else f"{sum(r.seconds for r in group):.2f}"
    unstable = [r.unstable for r in group if r.unstable is not None]
    bounds = [r.bound for r in group]
    bound = None if any(b is None for b in bounds) else min(b for b in bounds if b is not None)
    return (
        group[0].stage,
        seconds,
        f"{sum(r.open_sets for r in group)} of {sum(r.sets for r in group)}",
        str(max(unstable)) if unstable else "-",
        "-" if bound is None else f"{bound:.6g}",
        _remark(group),
    )


def _remark(group: Sequence[StageRecord]) -> str:
    """What was decided, and the reasons given; with several specifications how many."""
    remarks = []
    for outcome in ("falsified", "verified"):
        count = sum(r.outcome == outcome for r in group)
        if count:
            remarks.append(outcome if len(group) == 1 else f"{count} of {len(group)} specifications {outcome}")
    reasons = dict.fromkeys(r.reason for r in group if r.reason)
    return "; ".join([*remarks, *reasons])
