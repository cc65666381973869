"""A report's rows and figures as CSV, as one JSON document and as lines of text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from verify.document import SCHEMA
from verify.records import SECONDS, Instance, Outcome, Row
from verify.report_data import Answers, Selection, families, identity, seconds, summarise, wrong

_QUESTION = ("dataset", "index", "label", "norm", "eps")
_COUNTS = ("instances", "verified", "falsified", "unknown", "error", "measured", "wrong")


def record(row: Row) -> dict[str, Any]:
    """A row as JSON values; its arrays are not part of it."""
    instance, outcome = row.instance, row.outcome
    return {
        "family": instance.family,
        "name": instance.name,
        "network": instance.network,
        "spec": instance.spec,
        "question": None if instance.question is None else dict(instance.question),
        "expected": instance.expected or None,
        "limit_s": instance.limit_s,
        "verdict": outcome.verdict,
        "wrong": wrong(row),
        "reason": outcome.reason,
        "bound": outcome.bound,
        "proof": outcome.proof,
        "semantics": outcome.semantics,
        "decided_by": outcome.decided_by,
        "detail": outcome.detail,
        "rounded": list(outcome.rounded),
        "radius_lower": outcome.radius_lower,
        "radius_upper": outcome.radius_upper,
        "seconds": {kind: outcome.seconds.get(kind) for kind in SECONDS},
        "wall_s": outcome.wall_s,
        "cpu_s": outcome.cpu_s,
        "peak_mb": outcome.peak_mb,
        "attempts": row.attempts,
        "finished": row.finished,
        "network_hash": instance.network_hash,
        "spec_hash": instance.spec_hash,
    }


def to_csv(rows: Sequence[Row]) -> str:
    """One line a row under a header; what is not known is empty. Nested values become columns of their own, lists are JSON text."""
    lines = [_flat(record(row)) for row in rows]
    header = list(_flat(record(_BLANK)))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


_BLANK = Row("", Instance("", "", "", "", "", ""), Outcome("unknown"), 0, 0, 0, "")


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in entry.items():
        if name == "question":
            flat |= {key: (value or {}).get(key) for key in _QUESTION}
        elif name == "seconds":
            flat |= {f"{kind}_s": value[kind] for kind in SECONDS}
        elif name == "rounded":
            flat[name] = json.dumps(value) if value else None
        elif name == "wrong":
            flat[name] = "yes" if value else "no"
        else:
            flat[name] = value
    return flat


def document(selection: Selection) -> dict[str, Any]:
    """The JSON document of `ringfence report --json`: figures of all and of every family, comparisons, and every row."""
    main = selection.main
    rows = () if main is None else main.rows
    return {
        "schema": SCHEMA,
        "configuration": None if main is None else describe(main),
        "summary": summarise(rows),
        "families": families(rows),
        "comparisons": [] if main is None else [describe(other) | compare(main, other) for other in selection.others],
        "results": [record(row) for row in rows],
    }


def describe(answers: Answers) -> dict[str, Any]:
    """Where answers come from."""
    return {
        "label": answers.label,
        "file": answers.path.name,
        "number": answers.number,
        "tool": answers.configuration.tool,
        "version": answers.configuration.version,
        "options": dict(answers.configuration.options),
        "rows": len(answers.rows),
        "older": answers.older,
        "latest": answers.latest,
        "runs": [
            {
                "id": run.id,
                "started": run.started,
                "finished": run.finished,
                "status": run.status,
                "suite": run.info.suite,
                "engine": run.info.engine,
                "workers": run.info.workers,
                "revision": run.info.revision,
                "machine": dict(run.info.machine),
            }
            for run in answers.runs
        ],
    }


def compare(main: Answers, other: Answers) -> dict[str, Any]:
    """Both configurations on the instances that both were asked.

    contradictions: one verified what the other falsified. other_limits: pairs asked with another limit, whose seconds compare badly.
    """
    theirs = {identity(row): row for row in other.rows}
    pairs = [(row, theirs[identity(row)]) for row in main.rows if identity(row) in theirs]
    verdicts = [(a.outcome.verdict, b.outcome.verdict) for a, b in pairs]
    ours_solved, theirs_solved = ([_solved(pair[side]) for pair in pairs] for side in (0, 1))
    return {
        "common": len(pairs),
        "only_here": len(main.rows) - len(pairs),
        "only_there": len(theirs) - len(pairs),
        "solved_here": sum(ours_solved),
        "solved_there": sum(theirs_solved),
        "contradictions": sum(set(pair) == {"verified", "falsified"} for pair in verdicts),
        "other_limits": sum(a.instance.limit_s != b.instance.limit_s for a, b in pairs),
        "seconds_here": sum(seconds(a) for a, _ in pairs),
        "seconds_there": sum(seconds(b) for _, b in pairs),
    }


def _solved(row: Row) -> bool:
    return row.outcome.verdict in ("verified", "falsified")


def say(selection: Selection) -> str:
    """The figures as a table, one line a family, and one line for every comparison."""
    main = selection.main
    if main is None or not main.rows:
        return "no results yet"
    groups, together = list(families(main.rows).items()), summarise(main.rows)
    shown = [name for name in _COUNTS if name != "measured" or together["measured"]]
    table = [("family", *shown, "median s", "max s", "peak MB")]
    for name, group in groups if len(groups) == 1 else [*groups, ("all", together)]:
        figures = (f"{group['median_s']:.2f}", f"{group['max_s']:.2f}", "-" if group["peak_mb"] is None else f"{group['peak_mb']:.0f}")
        table.append((name, *(str(group[kind]) for kind in shown), *figures))
    lines = [f"{main.label}, {main.path.name}", *_columns(table)]
    for other in selection.others:
        found = compare(main, other)
        lines.append(
            f"against {other.label}: {found['common']} instances in common, solved {found['solved_here']} here and {found['solved_there']} there,"
            f" {found['seconds_here']:.1f} s here and {found['seconds_there']:.1f} s there, {found['contradictions']} contradictory verdicts"
        )
    for other in selection.apart:
        lines.append(f"also in the file: {other.label}, {len(other.rows)} other instances; show them with --configuration {other.number}")
    return "\n".join(lines)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
