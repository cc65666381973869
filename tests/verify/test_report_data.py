from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bounds.errors import ResultsError
from tests.verify.sample_results import OURS, write_sample
from verify.records import Configuration, Instance, Outcome, RunInfo
from verify.report_data import families, identity, seconds, select, summarise
from verify.report_export import say
from verify.results import Results


def store(path: Path, *rows: tuple[Configuration, Instance, Outcome]) -> Path:
    with Results.write(path) as results:
        run = results.begin(RunInfo("suite", "local", 1, None, {}))
        for configuration, instance, outcome in rows:
            results.record(run, results.configuration(configuration), instance.key(configuration), instance, outcome)
    return path


def question(number: int, **changes: Any) -> Instance:
    fields: dict[str, Any] = {
        "family": "f",
        "name": f"{number}",
        "network": "net",
        "spec": "s",
        "network_hash": "n",
        "spec_hash": str(number),
    }
    return Instance(**fields | changes)


def test_ours_is_reported_even_if_another_tool_answered_last(tmp_path: Path) -> None:
    path = tmp_path / "both.sqlite"
    write_sample(path, 16)
    found = select(path)
    assert found.main is not None
    assert (found.main.configuration.tool, [other.configuration.tool for other in found.others]) == ("ringfence", ["other"])
    assert [len(found.main.rows), len(found.others[0].rows)] == [8, 8]
    assert list(map(identity, found.main.rows)) == list(map(identity, found.others[0].rows))
    turned = select(path, configuration=found.others[0].number)
    assert turned.main is not None
    assert turned.main.configuration.tool == "other"


def test_the_latest_of_our_configurations_is_reported(tmp_path: Path) -> None:
    newer = replace(OURS, version="0.2.0")
    path = store(tmp_path / "r.sqlite", (OURS, question(1), Outcome("unknown")))
    with Results.write(path) as results:
        run = results.begin(RunInfo("suite", "local", 1, None, {}))
        time.sleep(0.002)
        results.record(run, results.configuration(newer), question(1).key(newer), question(1), Outcome("verified"))
    found = select(path)
    assert found.main is not None
    assert (found.main.label, [other.label for other in found.others]) == ("ringfence 0.2.0", ["ringfence 0.1.0"])


def test_labels_name_what_differs(tmp_path: Path) -> None:
    slow = replace(OURS, options={**OURS.options, "timeout": 10.0})
    path = store(tmp_path / "a.sqlite", (OURS, question(1), Outcome("verified")), (slow, question(1), Outcome("unknown")))
    labels = {a.configuration.options["timeout"]: a.label for a in (select(path).main, *select(path).others) if a is not None}
    assert labels == {60.0: "ringfence, timeout=60.0", 10.0: "ringfence, timeout=10.0"}
    other = store(tmp_path / "b.sqlite", (slow, question(1), Outcome("unknown")))
    chosen = next(a.number for a in (select(path).main, *select(path).others) if a is not None and a.configuration == slow)
    found = select(path, other, chosen)
    assert found.main is not None
    assert [found.main.label, found.others[0].label] == ["ringfence, a.sqlite", "ringfence, b.sqlite"]


def test_an_instance_asked_under_two_limits_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    store(path, (OURS, question(1, limit_s=1.0), Outcome("unknown", "time limit")), (OURS, question(2, limit_s=1.0), Outcome("verified")))
    store(path, (OURS, question(1, limit_s=60.0), Outcome("falsified")))
    main = select(path).main
    assert main is not None
    assert ([row.outcome.verdict for row in main.rows], main.older) == (["falsified", "verified"], 1)


def test_configurations_with_nothing_in_common_are_named_apart(tmp_path: Path) -> None:
    other = replace(OURS, tool="other")
    path = store(tmp_path / "r.sqlite", (OURS, question(1), Outcome("verified")), (other, question(2), Outcome("verified")))
    found = select(path)
    assert (found.others, [a.label for a in found.apart]) == ((), ["other"])
    assert "also in the file: other, 1 other instances; show them with --configuration 2" in say(found)
    compared = select(path, store(tmp_path / "s.sqlite", (other, question(3), Outcome("verified"))))
    assert [a.path.name for a in compared.others] == ["s.sqlite"]


def test_too_many_configurations_are_counted(tmp_path: Path) -> None:
    path = store(tmp_path / "r.sqlite", *((replace(OURS, version=str(k)), question(1), Outcome("verified")) for k in range(9)))
    found = select(path)
    assert (len(found.others), found.left_out) == (6, 2)


def test_nothing_there(tmp_path: Path) -> None:
    with Results.write(tmp_path / "empty.sqlite"):
        pass
    assert select(tmp_path / "empty.sqlite").main is None
    with pytest.raises(ResultsError, match="no configuration 3 in it; there are: none"):
        select(tmp_path / "empty.sqlite", configuration=3)
    with pytest.raises(ResultsError, match="no such results file"):
        select(tmp_path / "absent.sqlite")
    path = store(tmp_path / "r.sqlite", (OURS, question(1), Outcome("verified")))
    with pytest.raises(ResultsError, match="absent"):
        select(path, tmp_path / "absent.sqlite")


def test_figures(tmp_path: Path) -> None:
    rows = [
        (OURS, question(1, expected="sat"), Outcome("verified", proof="solver", seconds={"total": 1.0}, wall_s=9.0, peak_mb=10.0)),
        (OURS, question(2, expected="unsat"), Outcome("verified", proof="rigorous", seconds={"total": 3.0}, wall_s=9.0, peak_mb=30.0)),
        (OURS, question(3, expected="unsat"), Outcome("falsified", wall_s=8.0)),
        (OURS, question(4, family="g"), Outcome("measured", radius_lower=0.1, wall_s=2.0)),
    ]
    main = select(store(tmp_path / "r.sqlite", *rows)).main
    assert main is not None
    assert [seconds(row) for row in main.rows] == [1.0, 3.0, 8.0, 2.0]
    total = summarise(main.rows)
    counts = {
        "instances": 4,
        "verified": 2,
        "falsified": 1,
        "unknown": 0,
        "error": 0,
        "measured": 1,
        "expected": 3,
        "wrong": 2,
        "solver_proofs": 1,
    }
    assert total == counts | {"median_s": 2.5, "max_s": 8.0, "total_s": 14.0, "peak_mb": 30.0}
    assert [(name, group["instances"]) for name, group in families(main.rows).items()] == [("f", 3), ("g", 1)]
    assert summarise([])["median_s"] is None
