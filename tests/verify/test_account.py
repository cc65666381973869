"""What a run tells about its stages: the records and the table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bounds.region import Box
from tests.verify.nets import bump, linear
from verify import account
from verify.account import StageRecord
from verify.attack import Pgd
from verify.bisection import SplitInput
from verify.document import to_json
from verify.run import Effort, default_stages, verify
from verify.spec import output_bounds
from verify.stages import Exact, Falsify, Selective, Tighten
from verify.verdict import Falsified, Unknown, Verified

SUM = linear([[1.0, 1.0]])
UNIT = Box(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
OPEN = StageRecord("crown", "bounds", 0, 0.25, "open", "", 2, 3, 17, -1.5)


def test_every_stage_up_to_the_decision_is_listed() -> None:
    result = verify(SUM, output_bounds(UNIT, [None], [3.0]))
    assert [(r.stage, r.outcome, r.open_sets) for r in result.stages] == [("attack", "open", 1), ("ibp", "verified", 0)]
    assert isinstance(result.verdict, Verified)
    assert result.stages[-1].bound == result.verdict.bound
    assert result.stages[0].unstable is None
    assert sum(r.seconds for r in result.stages) <= result.seconds["total"]
    found = verify(SUM, output_bounds(UNIT, [None], [1.5]))
    assert isinstance(found.verdict, Falsified)
    assert [r.outcome for r in found.stages] == ["falsified"]


def test_a_stage_that_is_not_for_the_query_says_why() -> None:
    question = output_bounds(UNIT, [None, None], [0.4, None])
    stages = (*default_stages()[1:3], SplitInput(most_inputs=1), Exact(most_unstable=0), Tighten())
    assert all(isinstance(stage, Selective) for stage in stages[2:])
    result = verify(bump(), question, semantics="float32-any-order", stages=stages)
    told = {r.stage: r.reason for r in result.stages if r.outcome == "skipped"}
    assert told["split"] == "2 inputs vary, more than 1"
    assert told["milp"] == "1 neurons are unstable, more than 0"
    assert "float32-any-order" in told["lp"]


@pytest.mark.parametrize("most", [1, 2])
def test_an_attack_rests_where_bisection_tries_points(most: int) -> None:
    question = output_bounds(UNIT, [None, None], [0.4, None])
    attack = Falsify(Pgd(steps=5, restarts=3), unless=SplitInput(most_inputs=most))
    result = verify(bump(), question, stages=(attack,))
    assert [r.outcome for r in result.stages] == ["falsified" if most == 1 else "skipped"]
    assert isinstance(verify(bump(), question).verdict, Falsified)


def test_stages_after_the_time_limit_are_listed_as_skipped() -> None:
    result = verify(bump(), output_bounds(UNIT, [None, None], [0.51, None]), timeout=0.0)
    assert isinstance(result.verdict, Unknown)
    assert [r.stage for r in result.stages] == [s.name for s in default_stages()]
    assert {(r.outcome, r.reason, r.seconds < 0.1) for r in result.stages} == {("skipped", "time limit", True)}


def test_several_specifications_are_one_row_a_stage() -> None:
    questions = tuple(output_bounds(UNIT, [None], [limit]) for limit in (3.0, 4.0))
    result = verify(SUM, questions)
    assert [(r.stage, r.question) for r in result.stages] == [("attack", 0), ("attack", 1), ("ibp", 0), ("ibp", 1)]
    head, first, second = account.explain(result.stages).splitlines()
    assert head.split()[:2] == ["stage", "seconds"]
    assert first.split()[0] == "attack"
    assert "2 of 2" in first
    assert second.endswith("2 of 2 specifications verified")
    assert "0 of 2" in second


def test_two_stages_of_one_name_are_two_rows() -> None:
    table = account.explain([OPEN, replace(OPEN, seconds=1.5), replace(OPEN, outcome="skipped", reason="time limit")])
    assert [line.split()[1] for line in table.splitlines()[1:]] == ["0.25", "1.50", "skipped"]
    assert table.splitlines()[-1].endswith("time limit")
    assert "2 of 3" in table
    assert "-1.5" in table


def test_the_worst_bound_of_all_is_shown_and_none_if_one_has_none() -> None:
    both = account.explain([OPEN, replace(OPEN, question=1, bound=-2.5, unstable=9)])
    assert "-2.5" in both
    assert " 17 " in both
    assert account.explain([OPEN, replace(OPEN, question=1, bound=None)]).splitlines()[1].rstrip().endswith("-")


def test_records_survive_json() -> None:
    (document,) = json.loads(to_json(account.describe([OPEN])))
    assert StageRecord(**document) == OPEN


@pytest.mark.parametrize("effort", ["quick", "normal", "thorough"])
def test_efforts_agree_where_they_decide(effort: Effort) -> None:
    for limit, kinds in ((0.51, (Verified, Unknown)), (0.4, (Falsified, Unknown))):
        verdict = verify(bump(), output_bounds(UNIT, [None, None], [limit, None]), effort=effort).verdict
        assert isinstance(verdict, kinds if effort == "quick" else kinds[:1])


def test_efforts_differ_in_what_they_try() -> None:
    quick, normal, thorough = (default_stages(3, effort) for effort in ("quick", "normal", "thorough"))
    assert [s.name for s in quick] == ["attack", "ibp", "crown", "alpha"]
    assert [s.name for s in normal] == [s.name for s in thorough]
    searches = [[s.attack.restarts for s in stages if isinstance(s, Falsify)] for stages in (normal, thorough)]  # type: ignore[attr-defined]
    assert all(more >= less for less, more in zip(*searches, strict=True))
    assert searches[0] != searches[1]
