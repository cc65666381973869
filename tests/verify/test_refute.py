"""Sets excluded by contradiction: known answers, what is handed on, limits, and planted bugs."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from bounds.crown import Crown
from bounds.implied import ImpliedProblem
from bounds.ops.piecewise import Relu
from bounds.ops.smooth import Tanh
from bounds.region import LpBall, Region
from tests.verify.test_branch import CROWN, IBP, UNIT, asked, minimum, random_network
from verify.branch import SplitNeurons
from verify.reduce import Reduce
from verify.refute import Refute
from verify.run import verify
from verify.stages import Options, Query
from verify.verdict import Unknown, Verified

ROW = [1.0, -1.0, 0.0]


def asked_between(seed: int, share: float, activation: type = Relu, region: Region = UNIT) -> tuple[Query, float]:
    """A question whose threshold lies `share` of the way from the minimum to CROWN's bound, after CROWN; and how far it is from the minimum."""
    network = random_network(seed, activation)
    least = minimum(network, region, ROW)
    gap = share * (least - float(Crown()(network, region, torch.tensor([ROW])).objective.lower))
    query = CROWN(IBP(Query.of(network, asked(network, region, [ROW], [least - gap]), Options())))
    assert isinstance(query, Query)
    return query, gap


@pytest.mark.parametrize(
    ("seed", "activation", "region"),
    [(0, Relu, UNIT), (1, Relu, UNIT), (2, Relu, UNIT), (3, Tanh, UNIT), (0, Relu, LpBall(torch.zeros(1, 3), 1.2, 2.0))],
)
def test_what_crown_leaves_open_is_excluded(seed: int, activation: type, region: Region) -> None:
    query, gap = asked_between(seed, 0.9, activation, region)
    assert gap > 0.1
    outcome = Refute(steps=20)(query)
    assert isinstance(outcome, Verified), outcome
    assert (outcome.proof, outcome.bound) == ("rigorous", None)  # only that the set is not reached, not by how much


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("activation", [Relu, Tanh])
def test_a_set_that_is_reached_is_never_excluded(seed: int, activation: type) -> None:
    query, _ = asked_between(seed, -0.15, activation)
    outcome = Refute(rounds=20)(query)
    assert isinstance(outcome, Query)
    x = UNIT.to(torch.float64).sample(20000, torch.Generator().manual_seed(4))[0]
    values = query.network.to(torch.float64).values(x)
    reached = query.goal.of(values[-1]).amin(-1) <= 0
    assert bool(reached.any())
    for index, interval in outcome.implied[0].items():
        assert bool((interval.lower <= values[index][reached]).all() and (values[index][reached] <= interval.upper).all())


def test_what_is_implied_helps_the_next_stage() -> None:
    query, _ = asked_between(0, 0.05)
    stage = SplitNeurons(rows=32, steps=5, root_steps=10)
    alone, handed = stage(query), Refute(rounds=3)(query)
    assert isinstance(handed, Query)
    together = stage(handed)
    assert isinstance(alone, Verified)
    assert isinstance(together, Verified)
    assert int(together.detail.split()[0]) < int(alone.detail.split()[0])
    assert together.bound is None
    unsafe, _ = asked_between(0, -0.01)
    left = Refute(rounds=3)(unsafe)
    assert isinstance(left, Query)
    assert not isinstance(stage(left), Verified)


def test_sets_of_several_rows_and_several_sets() -> None:
    network = random_network(1)
    together = asked(network, UNIT, [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], [-4.0, -4.0], together=True)
    assert isinstance(verify(network, together, stages=(IBP, CROWN, Refute(), SplitNeurons())).verdict, Verified)
    least = [minimum(network, UNIT, row) for row in (ROW, [0.0, 1.0, -1.0])]
    one_reached = asked(network, UNIT, [ROW, [0.0, 1.0, -1.0]], [least[0] - 4.0, least[1] + 0.1])
    query = Refute(steps=20)(CROWN(IBP(Query.of(network, one_reached, Options()))))
    assert isinstance(query, Query)
    assert query.closed.tolist() == [True, False]


def test_limits_and_what_is_left_alone() -> None:
    query, _ = asked_between(0, 0.05)
    late = Refute()(replace(query, options=Options(deadline=time.monotonic() - 1)))
    assert isinstance(late, Query)
    assert not bool(late.closed.any())
    untouched = Query.of(query.network, query.specification, Options())
    assert Refute()(untouched) is untouched
    assert Refute().skips(untouched) is not None
    reduced = Reduce(0.0)(replace(query, implied={0: dict(query.intervals)}))
    assert isinstance(reduced, Query)
    assert not reduced.implied


def test_a_planted_bug_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ImpliedProblem.implied
    monkeypatch.setattr(ImpliedProblem, "implied", lambda self, a, b: right(self, a, b) + 4.0)
    found = []
    for seed in range(2):
        query, _ = asked_between(seed, -0.02)
        found.append(Refute()(query))
    assert any(isinstance(outcome, Verified) for outcome in found)  # false: the set is reached


def test_the_default_stages_use_it() -> None:
    query, _ = asked_between(1, 0.5)
    result = verify(query.network, query.specification)
    assert not isinstance(result.verdict, Unknown)
    assert Refute().name in [record.stage for record in result.stages] or result.verdict.decided_by in ("alpha", "split")
