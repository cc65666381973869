from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.verify.sample_results import OURS, write_sample
from verify.document import to_json
from verify.records import Configuration, Instance, Outcome, Row
from verify.report_data import Answers, select
from verify.report_export import compare, document, record, say, to_csv


def row(number: int, verdict: str, taken: float, limit: float | None = 60.0) -> Row:
    instance = Instance("f", f"name {number}", "net", "spec", "n", str(number), limit_s=limit)
    return Row(str(number), instance, Outcome(verdict, wall_s=taken), 1, 1, 1, "2026-01-01")


def answers(*rows: Row, tool: str = "ringfence") -> Answers:
    return Answers(Path("r.sqlite"), 1, Configuration(tool, "1", {}), (), rows, label=tool)


def test_csv_holds_every_row_and_value(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    write_sample(path, 80)
    main = select(path).main
    assert main is not None
    lines = list(csv.DictReader(io.StringIO(to_csv(main.rows))))
    assert len(lines) == len(main.rows) == 40
    for line, entry in zip(lines, main.rows, strict=True):
        assert (line["name"], line["verdict"], line["family"]) == (entry.instance.name, entry.outcome.verdict, entry.instance.family)
        assert (float(line["bound"]) if line["bound"] else None) == entry.outcome.bound
        assert (float(line["total_s"]) if line["total_s"] else None) == entry.outcome.seconds.get("total")
        assert float(line["wall_s"]) == entry.outcome.wall_s
        assert (line["index"] or None) == (None if entry.instance.question is None else str(entry.instance.question["index"]))
        assert json.loads(line["rounded"] or "[]") == list(entry.outcome.rounded)
    assert [line["name"] for line in lines if line["wrong"] == "yes"] == ["net_0 prop_0"]


def test_csv_survives_commas_quotes_and_newlines() -> None:
    awkward = 'a, "b"\nc'
    entry = row(1, "error", 1.0)
    entry = replace(entry, instance=replace(entry.instance, name=awkward), outcome=replace(entry.outcome, reason=awkward))
    (line,) = csv.DictReader(io.StringIO(to_csv([entry]), newline=""))
    assert (line["name"], line["reason"]) == (awkward, awkward)
    assert to_csv([]).count("\n") == 1


def test_json_agrees_with_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    write_sample(path, 80)
    selection = select(path)
    found = json.loads(to_json(document(selection)))
    assert selection.main is not None
    assert [entry["verdict"] for entry in found["results"]] == [entry.outcome.verdict for entry in selection.main.rows]
    assert found["summary"]["instances"] == sum(group["instances"] for group in found["families"].values()) == 40
    assert found["configuration"]["options"] == dict(OURS.options)
    assert found["comparisons"][0]["common"] == 40
    assert found["results"][0] == json.loads(to_json(record(selection.main.rows[0])))


def test_comparison() -> None:
    main = answers(row(1, "verified", 1.0), row(2, "falsified", 2.0), row(3, "unknown", 4.0), row(4, "verified", 8.0))
    other = answers(
        row(1, "falsified", 16.0), row(2, "falsified", 32.0, 10.0), row(3, "verified", 64.0), row(9, "verified", 1.0), tool="other"
    )
    expected: dict[str, Any] = {"common": 3, "only_here": 1, "only_there": 1, "solved_here": 2, "solved_there": 3}
    expected |= {"contradictions": 1, "other_limits": 1, "seconds_here": 7.0, "seconds_there": 112.0}
    assert compare(main, other) == expected


def test_text_adds_up(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    write_sample(path, 80)
    lines = say(select(path)).splitlines()
    header, *families, total = (line.split() for line in lines[1:7])
    assert header[:4] == ["family", "instances", "verified", "falsified"]
    # The names of families may hold blanks, so columns are counted from the right.
    for column in range(len(header) - 11, -4):
        assert sum(int(line[column]) for line in families) == int(total[column])
    assert "against other" in lines[7]


def test_text_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    write_sample(path, 0)
    assert say(select(path)) == "no results yet"
    assert document(select(path))["results"] == []
