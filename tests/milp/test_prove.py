"""Proofs, candidates and tightened intervals against samples, enumeration and each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from bounds.crown import Crown
from bounds.interval import Interval
from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.ops.piecewise import Relu
from bounds.region import LpBall, Region
from milp.program import Limits, Program, Solution, Status, StopRule, Tolerances
from milp.prove import PROOF_MARGIN, most_promising_first, prove
from milp.solvers import get_solver
from milp.tighten import Effort, tighten
from tests.milp.test_encode import ZOO, box_of, build, intervals_of, margin_at, mlp

SCIP = "scip"


def shifted(unsafe: Halfspaces, minimum: float, gap: float) -> Halfspaces:
    """The same half-space moved so that its margin's minimum is `gap`."""
    return Halfspaces(unsafe.C, unsafe.d + minimum - gap)


ONE = Halfspaces(torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
TWO = Halfspaces(torch.tensor([[1.0, -1.0], [0.5, 1.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))


def minimum_of(network: Network, region: Region, unsafe: Halfspaces) -> float:
    from milp.encode import encode

    return get_solver("highs").solve(encode(network, region, unsafe, intervals_of(network, region)).program).objective


@pytest.mark.parametrize("name", ["scip", "highs", "pulp:CBC"])
@pytest.mark.parametrize("unsafe", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("kind", ZOO)
def test_signs(kind: str, unsafe: Halfspaces, name: str) -> None:
    network = ZOO[kind]
    region = box_of(network)
    intervals, minimum = intervals_of(network, region), minimum_of(network, region, unsafe)
    positive = prove(network, region, shifted(unsafe, minimum, 0.01), intervals, get_solver(name))
    assert positive.status == "proved"
    assert 0 < positive.bound <= 0.01 + 1e-5
    negative = prove(network, region, shifted(unsafe, minimum, -0.01), intervals, get_solver(name))
    assert negative.status == "point"
    assert margin_at(network, shifted(unsafe, minimum, -0.01), negative.point) <= 0
    assert bool(region.contains(torch.from_numpy(negative.point)[None, None])[0, 0])


def test_too_close_to_call_is_undecided() -> None:
    network = ZOO["relu"]
    region = box_of(network)
    intervals, minimum = intervals_of(network, region), minimum_of(network, region, ONE)
    outcome = prove(network, region, shifted(ONE, minimum, PROOF_MARGIN / 4), intervals, get_solver(SCIP))
    assert outcome.status in ("undecided", "point")
    if outcome.status == "undecided":
        assert "close" in outcome.reason


def test_a_relaxation_that_suffices_is_rigorous() -> None:
    network = ZOO["relu"]
    region = box_of(network, radius=0.05)
    unsafe = shifted(ONE, minimum_of(network, region, ONE), 5.0)
    outcome = prove(network, region, unsafe, intervals_of(network, region), get_solver(SCIP))
    assert (outcome.status, outcome.proof) == ("proved", "rigorous")
    assert "relaxation" in str(outcome)


@dataclass
class Stub:
    """A solver with a ready answer."""

    answer: Solution
    name: str = "stub"

    def solve(self, program: Program, limits: Limits = Limits(), stop: StopRule | None = None) -> Solution:  # noqa: B008
        return self.answer


def hard_question() -> tuple[Network, Region, Halfspaces, tuple[Interval, ...]]:
    """Positive minimum that the relaxation does not prove."""
    network = mlp(Relu(), 1, (3, 6, 6, 2))
    region = box_of(network)
    minimum = minimum_of(network, region, ONE)
    return network, region, shifted(ONE, minimum, 0.01), intervals_of(network, region)


def no_answer(status: Status, bound: float | None = None) -> Solution:
    return Solution(status, None, None, bound, None, 0.0, "stub", Tolerances())


def test_confirmation() -> None:
    network, region, unsafe, intervals = hard_question()
    agreed = prove(network, region, unsafe, intervals, get_solver(SCIP), confirm=get_solver("highs"))
    assert (agreed.status, agreed.proof) == ("proved", "solver")
    assert agreed.confirmed_by.startswith("highs")
    assert "tolerances" in str(agreed)
    doubt = prove(network, region, unsafe, intervals, get_solver(SCIP), confirm=Stub(no_answer(Status.TIME_LIMIT)))
    assert (doubt.status, doubt.bound) == ("undecided", None)
    assert "stub did not confirm" in doubt.reason


@pytest.mark.parametrize("status", list(Status))
def test_no_status_without_evidence_proves(status: Status) -> None:
    network, region, unsafe, intervals = hard_question()
    outcome = prove(network, region, unsafe, intervals, Stub(no_answer(status, 0.0)))
    assert outcome.status == "undecided"
    assert outcome.reason
    assert outcome.bound <= 0.0


@pytest.mark.parametrize("name", ["scip", "highs"])
def test_unsound_intervals_are_noticed(name: str) -> None:
    """Intervals that exclude the region's centre leave a program in which nothing unsafe is left; it must not count as a proof."""
    network, region, unsafe, intervals = hard_question()
    has_counterexample = Halfspaces(unsafe.C, unsafe.d + 0.31)
    assert prove(network, region, has_counterexample, intervals, get_solver(name)).status == "point"
    narrow = Interval(intervals[1].lower, intervals[1].lower + 0.2 * (intervals[1].upper - intervals[1].lower))
    outcome = prove(network, region, has_counterexample, {1: narrow, 3: intervals[3]}, get_solver(name))
    assert outcome.status == "undecided"
    assert outcome.bound is None
    assert "centre" in outcome.reason


def test_an_empty_program_proves_nothing() -> None:
    network, region, unsafe, intervals = hard_question()
    liar = Stub(no_answer(Status.SIGN_DECIDED, 1.0))
    outcome = prove(network, region, unsafe, intervals, liar)
    assert outcome.status == "undecided"
    assert "centre" in outcome.reason


def test_time_limit_is_undecided_with_a_bound() -> None:
    network, region, unsafe, intervals = hard_question()
    outcome = prove(network, region, unsafe, intervals, get_solver(SCIP), Limits(seconds=0.0))
    assert outcome.status == "undecided"
    assert outcome.reason


@pytest.mark.parametrize("domain", [None, (-0.5, 0.4)], ids=["free", "clipped"])
def test_l2_ball(domain: tuple[float, float] | None) -> None:
    network = ZOO["relu"]
    region = LpBall(torch.tensor([[0.1, -0.2, 0.3]]), torch.tensor([[0.5, 0.25, 0.8]]), 2.0, domain)
    intervals = intervals_of(network, region)
    samples = region.sample(20000, torch.Generator().manual_seed(0))
    values = ONE.margin(network.to(torch.float64)(samples[0]).flatten(1))
    lowest = float(values.min())
    safe = prove(network, region, Halfspaces(ONE.C, ONE.d + lowest - 0.2), intervals, get_solver(SCIP), Limits(20.0))
    assert safe.status == "proved"
    unsafe = Halfspaces(ONE.C, ONE.d + lowest + 0.02)
    broken = prove(network, region, unsafe, intervals, get_solver(SCIP), Limits(20.0))
    assert broken.status == "point"
    assert bool(region.contains(torch.from_numpy(broken.point)[None, None])[0, 0])
    assert margin_at(network, unsafe, broken.point) <= 0


def test_order() -> None:
    assert most_promising_first([0.5, -1.0, math.nan, 0.0]) == [1, 3, 0, 2]


@pytest.mark.parametrize("kind", [kind for kind in ZOO if kind != "affine"])
@pytest.mark.parametrize("exact", [False, True], ids=["lp", "milp"])
def test_tightened_intervals_hold_and_are_tighter(kind: str, exact: bool) -> None:
    network = ZOO[kind]
    region = box_of(network)
    before = intervals_of(network, region)
    effort = Effort(get_solver(SCIP) if exact else None, settle_only=False, refresh=Crown())
    found = tighten(network, region, before, effort=effort)
    assert found.finished
    assert exact or found.proof == "rigorous"
    values = network.to(torch.float64).values(region.sample(500, torch.Generator().manual_seed(0))[0].double())
    for index, interval in found.intervals.items():
        assert (interval.lower >= before[index].lower).all()
        assert (interval.upper <= before[index].upper).all()
        assert (values[index] >= interval.lower).all()
        assert (values[index] <= interval.upper).all()


def test_exact_tightening_reaches_the_extremes() -> None:
    network = mlp(Relu(), 1, (2, 4, 4, 2))
    region = box_of(network)
    effort = Effort(get_solver(SCIP), settle_only=False)
    found = tighten(network, region, intervals_of(network, region), effort=effort)
    grid = torch.linspace(0, 1, 301, dtype=torch.float64)
    points = region.lower + torch.cartesian_prod(grid, grid) * (region.upper - region.lower)
    values = network.to(torch.float64).values(points)[3]
    interval = found.intervals[3]
    unstable = (values.amin(0) < -0.05) & (values.amax(0) > 0.05)
    assert unstable.any()
    assert torch.allclose(interval.lower[0][unstable], values.amin(0)[unstable], atol=0.02)
    assert torch.allclose(interval.upper[0][unstable], values.amax(0)[unstable], atol=0.02)


def test_a_neuron_that_only_a_program_can_settle() -> None:
    """(x + 5) - relu(x) - relu(-x) - 2.9 >= 0.1 on [-1, 1], where interval arithmetic on the three terms says -0.9."""
    split = Linear(torch.tensor([[1.0], [1.0], [-1.0]]), torch.tensor([5.0, 0.0, 0.0]))
    join = Linear(torch.tensor([[1.0, -1.0, -1.0]]), torch.tensor([-2.9]))
    network = build((1,), (split, (0,)), (Relu(), (1,)), (join, (2,)), (Relu(), (3,)), (Linear(torch.ones(2, 1)), (4,)))
    region = LpBall(torch.zeros(1, 1), 1.0)
    before = intervals_of(network, region)
    assert before[3].lower.item() < 0
    found = tighten(network, region, before)
    assert found.settled == 1
    assert found.intervals[3].lower.item() == pytest.approx(0.1, abs=1e-5)


def test_limits_rows_and_early_end() -> None:
    network = mlp(Relu(), 1, (3, 6, 6, 2))
    region = box_of(network)
    before = intervals_of(network, region)
    stopped = tighten(network, region, before, Limits(seconds=0.0))
    assert not stopped.finished
    assert stopped.solves == 0
    nothing = tighten(network, region, before, rows={3: torch.zeros(1, 6, dtype=torch.bool)})
    assert nothing.solves == 0
    deep = mlp(Relu(), 1, (3, 6, 6, 6, 2))
    every = tighten(deep, region, intervals_of(deep, region))
    asked: list[int] = []
    early = tighten(deep, region, intervals_of(deep, region), decided=lambda known: not asked.append(len(known)))
    assert len(asked) == 1
    assert 0 < early.solves < every.solves


def test_tightening_a_ball_uses_its_curvature() -> None:
    network = mlp(Relu(), 1, (3, 6, 6, 2))
    ball = LpBall(torch.zeros(1, 3), 0.7, 2.0)
    box = replace(ball, p=math.inf)
    intervals = intervals_of(network, box)
    around, inside = tighten(network, box, intervals), tighten(network, ball, intervals)
    assert float(inside.intervals[3].width.sum()) < float(around.intervals[3].width.sum()) - 1e-3
    values = network.to(torch.float64).values(ball.sample(2000, torch.Generator().manual_seed(0))[0].double())[3]
    assert (values >= inside.intervals[3].lower - 1e-12).all()
    assert (values <= inside.intervals[3].upper + 1e-12).all()


def test_outputs_of_points_are_arrays_of_the_input_shape() -> None:
    network = ZOO["convolutional"]
    region = box_of(network)
    minimum = minimum_of(network, region, ONE)
    outcome = prove(network, region, shifted(ONE, minimum, -0.1), intervals_of(network, region), get_solver(SCIP))
    assert isinstance(outcome.point, np.ndarray)
    assert outcome.point.dtype == np.float64
    assert outcome.point.shape == network.input_shape
