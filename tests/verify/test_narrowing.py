"""Branching before programs: the ends of exact radii against an oracle over activation patterns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from milp.distance import Effort, Start
from milp.metric import Metric
from milp.pattern import nearest_in_pattern
from milp.program import Limits
from milp.solvers import get_solver
from tests.milp.test_distance import UNIT, anchored, beyond, oracle
from verify import narrowing
from verify.exact_radius import Replayer, exact_radius
from verify.narrowing import narrowed, worthwhile

NEAR = {"2d": 8, "3d": 8}


def ends(kind: str, p: float, seconds: float | None = None) -> tuple[Start, Start, Metric]:
    """Before and after narrowing, from an adversary that is a fifth too far away, or a corner of the domain."""
    network, x, label = anchored(kind, NEAR[kind])
    metric = Metric(x, p, UNIT)
    replayer = Replayer(network, x, label, p, UNIT)
    corners = torch.cartesian_prod(*([torch.tensor([0.0, 1.0], dtype=torch.float64)] * x.numel()))
    other = next(c for c in corners if int(network(c[None]).argmax()) != label)
    start = Start(0.0, other.numpy())
    effort = Effort(get_solver("scip"), get_solver("scip", precise=True), Limits(seconds), 1e-6, replayer.slack)
    return start, narrowed(network, label, metric, replayer, start, effort), metric


@pytest.mark.parametrize("p", [math.inf, 1.0])
@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_the_ends_enclose_the_oracle_and_come_close(kind: str, p: float) -> None:
    expected = oracle(kind, NEAR[kind], p, UNIT)
    before, after, metric = ends(kind, p)
    assert after.adversary is not None
    upper = metric.length(after.adversary - metric.center.numpy())
    assert before.lower < after.lower <= expected <= upper + 1e-9
    assert upper - after.lower <= 0.02 * expected  # the program that follows does the rest; boxes usually meet


def test_no_time_leaves_the_ends() -> None:
    before, after, _ = ends("2d", math.inf, 0.0)
    assert (after.lower, after.most) == (before.lower, before.most)


def test_the_nearest_point_of_a_pattern() -> None:
    """The nearest adversary of all shares its pattern with one a little beyond."""
    network, x, label = anchored("2d", 8)
    metric, replayer = Metric(x, math.inf, UNIT), Replayer(network, x, label, math.inf, UNIT)
    known = replayer(beyond(8, 1.001))
    assert known is not None
    row = (torch.eye(3, dtype=torch.float64)[label] - torch.eye(3, dtype=torch.float64)[known.target]).unsqueeze(0)
    point = nearest_in_pattern(network, row, metric, known, get_solver("scip", precise=True), Limits())
    assert point is not None
    assert metric.length(point - x.numpy()) == pytest.approx(oracle("2d", 8, math.inf, UNIT), abs=1e-6)
    assert nearest_in_pattern(network, row, Metric(x, 2.0, UNIT), known, get_solver("scip"), Limits()) is None


def test_only_networks_with_many_unstable_neurons_branch_first(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, _ = anchored("3d", 8)
    metric = Metric(x, math.inf, UNIT)
    start = Start(0.0, np.asarray(metric.clip(x.numpy() + 0.6)))
    assert not worthwhile(network, metric, start)
    monkeypatch.setattr(narrowing, "MANY", 0)
    assert worthwhile(network, metric, start)
    assert not worthwhile(network, metric, Start())


def test_both_ways_give_the_same_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, label = anchored("3d", 8)
    expected = oracle("3d", 8, math.inf, UNIT)
    _, after, _ = ends("3d", math.inf)
    monkeypatch.setattr(narrowing, "MANY", 0)
    found = exact_radius(network, x, label, adversary=after.adversary, tol=1e-6)
    assert found.status == "optimal"
    assert found.lower <= expected + 1e-8
    assert found.lower == pytest.approx(expected, abs=2e-6)
    assert found.upper == pytest.approx(expected, abs=2e-6)
