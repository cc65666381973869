"""Distances against an oracle that solves one convex program for every activation pattern; limits, misuse and planted errors."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace

import cvxpy
import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from bounds.crown import Crown
from bounds.engine import Bounds
from bounds.errors import ProofError, SpecError, UnsupportedOpError
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.ops.piecewise import Relu
from bounds.ops.smooth import Sigmoid
from bounds.region import Region
from milp.distance import Distance, Effort, Start, exact_distance
from milp.incumbent import Adversary
from milp.metric import Metric
from milp.program import Limits, Program, Solution, Status, StopRule, Tolerances
from milp.solvers import get_solver
from tests.milp.test_encode import build, mlp

NETS = {"2d": (2, 3, 3, 3), "3d": (3, 5, 3)}
UNIT = (0.0, 1.0)


@functools.cache
def anchored(kind: str, seed: int = 0) -> tuple[Network, torch.Tensor, int]:
    """A random network, a point and its class."""
    network = mlp(Relu(), seed, NETS[kind]).to(torch.float64)
    x = torch.rand(NETS[kind][0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return network, x, int(network(x[None]).argmax())


def nearest_of_pattern(pattern: tuple[int, ...], network: Network, metric: Metric, label: int) -> float:
    """The distance to the points of another class whose neurons are on and off as the pattern says."""
    layers = [node.op for node in network.nodes if isinstance(node.op, Linear)]
    size = metric.center.numel()
    A, b, sides, taken = np.eye(size), np.zeros(size), [], 0
    for number, layer in enumerate(layers):
        weight, bias = (p.double().numpy() for p in layer.parameters())
        A, b = weight @ A, weight @ b + bias
        if number < len(layers) - 1:
            on = np.array(pattern[taken : taken + len(b)], dtype=float)
            taken += len(b)
            sides.append(((1 - 2 * on)[:, None] * A, (2 * on - 1) * b))
            A, b = on[:, None] * A, on * b
    return min(
        closest_on(
            np.vstack([G for G, _ in sides] + [(A[label] - A[j])[None]]),
            np.concatenate([h for _, h in sides] + [[b[j] - b[label]]]),
            metric,
        )
        for j in set(range(len(b))) - {label}
    )


def closest_on(G: np.ndarray, h: np.ndarray, metric: Metric) -> float:
    """min ||x - center||_p with G x <= h and x in the domain: a linear program, for l2 a quadratic one where that is feasible."""
    center, size = metric.center.numpy(), metric.center.numel()
    extra = size if metric.p == 1.0 else 1
    pick = np.eye(size) if metric.p == 1.0 else np.ones((size, 1))
    rows = np.block([[G, np.zeros((len(h), extra))], [np.eye(size), -pick], [-np.eye(size), -pick]])
    limits = [metric.domain or (None, None)] * size + [(0, None)] * extra
    found = linprog(np.r_[np.zeros(size), np.ones(extra)], A_ub=rows, b_ub=np.r_[h, center, -center], bounds=limits)
    if found.status != 0 or metric.p != 2.0:
        return found.fun if found.status == 0 else math.inf
    x = cvxpy.Variable(size)
    inside = [] if metric.domain is None else [x >= metric.domain[0], x <= metric.domain[1]]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(x - center)), [G @ x <= h, *inside])
    return float(problem.solve(solver=cvxpy.CLARABEL))


@functools.cache
def oracle(kind: str, seed: int, p: float, domain: tuple[float, float] | None) -> float:
    network, x, label = anchored(kind, seed)
    patterns = itertools.product((0, 1), repeat=sum(NETS[kind][1:-1]))
    return min(nearest_of_pattern(pattern, network, Metric(x, p, domain), label) for pattern in patterns)


@dataclass
class Replay:
    """Accepts points whose float64 margin is at most -least."""

    network: Network
    metric: Metric
    label: int
    least: float = 0.0
    refuses: bool = False

    def __call__(self, point: np.ndarray) -> Adversary | None:
        scores = self.network(torch.from_numpy(point)[None])[0].numpy()
        others = np.where(np.arange(scores.size) == self.label, -np.inf, scores)
        if self.refuses or scores[self.label] - others.max() > -self.least:
            return None
        step = point - self.metric.center.numpy()
        return Adversary(point, self.metric.length(step) * (1 + 1e-15), int(others.argmax()))


def distance_of(
    kind: str = "2d",
    p: float = math.inf,
    domain: tuple[float, float] | None = UNIT,
    *,
    seed: int = 8,
    solver: str = "scip",
    **options: object,
) -> Distance:
    network, x, label = anchored(kind, seed)
    metric = Metric(x, p, domain)
    start = Start(**{k: options.pop(k) for k in ("lower", "adversary", "most") if k in options})
    accept = Replay(network, metric, label, **{k: options.pop(k) for k in ("least", "refuses") if k in options})
    effort = Effort(get_solver(solver), get_solver(solver, precise=True), **({"tol": 2e-7} | options))
    return exact_distance(network, label, metric, accept, start, effort)


def beyond(seed: int = 8, factor: float = 1.05) -> np.ndarray:
    """An adversary that is not the nearest one."""
    center, nearest = anchored("2d", seed)[1].numpy(), distance_of("2d", seed=seed).point
    assert nearest is not None
    return center + factor * (nearest - center)


@pytest.mark.parametrize("solver", ["scip", "highs"])
@pytest.mark.parametrize("domain", [UNIT, None], ids=["clipped", "free"])
@pytest.mark.parametrize("p", [math.inf, 1.0, 2.0])
@pytest.mark.parametrize("kind, seed", [("2d", 8), ("2d", 4), ("3d", 2), ("3d", 8)])
def test_the_oracle_agrees(kind: str, seed: int, p: float, domain: tuple[float, float] | None, solver: str) -> None:
    expected = oracle(kind, seed, p, domain)
    found = distance_of(kind, p, domain, seed=seed, solver=solver, most=math.inf if domain else 20.0)
    if expected == math.inf:
        assert (found.status, found.lower, found.upper, found.point) == ("no adversary", math.inf, math.inf, None)
        return
    assert found.status == "optimal"
    assert found.rigorous <= found.lower <= found.upper
    assert found.lower == pytest.approx(expected, abs=1e-6)
    assert found.upper == pytest.approx(expected, abs=1e-6)
    assert found.lower <= expected + 1e-8
    assert found.upper >= expected - 1e-7
    network, _, label = anchored(kind, seed)
    assert int(network(torch.from_numpy(found.point)[None]).argmax()) == found.target != label


def test_what_is_known_beforehand_saves_programs() -> None:
    alone = distance_of("2d")
    again = distance_of("2d", adversary=alone.point, lower=0.9 * alone.lower)
    assert again.status == "optimal"
    assert again.upper <= alone.upper
    assert again.solves <= alone.solves
    far = distance_of("2d", adversary=beyond())
    assert far.upper == pytest.approx(alone.upper, abs=1e-6)


@pytest.mark.parametrize("kind, seed", [("2d", 8), ("3d", 2), ("3d", 8)])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_an_adversary_just_beyond_the_balls_that_are_looked_at(kind: str, seed: int, p: float) -> None:
    """Intervals hold on the ball below the adversary; whether the program agrees with the network is asked there, not at the adversary."""
    expected = oracle(kind, seed, p, UNIT)
    known = distance_of(kind, p, seed=seed).point
    assert known is not None
    found = distance_of(kind, p, seed=seed, adversary=known, lower=0.9 * expected, tol=1e-3)
    assert found.status == "optimal"
    assert found.lower <= expected <= found.upper + 1e-7


def test_classes_beyond_the_best_adversary_need_no_program() -> None:
    """Class 1 is 0.2 away, class 2 further than any point of the domain: planes of affine networks are exact, so nothing is left to solve."""
    W = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    network = build((2,), (Linear(W, torch.tensor([0.0, 1.0, -5.0])), (0,))).to(torch.float64)
    metric = Metric(torch.tensor([0.7, 0.5], dtype=torch.float64), math.inf, UNIT)
    adversary = np.array([0.5, 0.5])
    found = exact_distance(network, 0, metric, Replay(network, metric, 0), Start(adversary=adversary), Effort(get_solver("scip")))
    assert (found.status, found.proof, found.solves) == ("optimal", "rigorous", 0)
    assert found.lower == pytest.approx(0.2, abs=1e-6)


def test_a_misclassified_image_has_distance_0() -> None:
    network, x, label = anchored("2d", 8)
    other = (label + 1) % 3
    metric = Metric(x, math.inf, UNIT)
    found = exact_distance(network, other, metric, Replay(network, metric, other), Start(), Effort(get_solver("scip")))
    assert (found.status, found.lower, found.upper, found.target) == ("misclassified", 0.0, 0.0, label)


def test_no_adversary_within_the_radius_of_interest() -> None:
    radius = oracle("2d", 8, math.inf, UNIT) / 2
    found = distance_of("2d", most=radius)
    assert (found.status, found.point) == ("no adversary", None)
    assert found.lower == pytest.approx(radius, abs=1e-6)


@pytest.mark.parametrize("known", [False, True])
def test_no_time(known: bool) -> None:
    found = distance_of("2d", lower=0.01, adversary=beyond() if known else None, limits=Limits(seconds=0.0))
    assert (found.status, found.lower, found.rigorous, found.solves) == ("time limit", 0.01, 0.01, 0)
    assert (found.point is not None) == math.isfinite(found.upper) == known


def test_replays_that_need_more_than_the_boundary() -> None:
    """A model that is evaluated roughly sees the label a little beyond the boundary: the adversary is pushed out until it does not."""
    expected = oracle("2d", 8, math.inf, UNIT)
    found = distance_of("2d", least=1e-7, tol=1e-6)
    assert found.status == "optimal"
    assert expected <= found.upper <= expected + 1e-6


def test_a_nearest_point_that_never_replays() -> None:
    found = distance_of("2d", refuses=True)
    assert (found.status, found.point, found.upper) == ("undecided", None, math.inf)
    assert "replay" in found.reason
    assert found.lower <= oracle("2d", 8, math.inf, UNIT)


def test_nothing_bounds_the_search() -> None:
    with pytest.raises(SpecError, match="nothing bounds the search"):
        distance_of("2d", domain=None)


def test_a_network_without_an_exact_form() -> None:
    network = mlp(Sigmoid(), 0, (2, 3, 2)).to(torch.float64)
    metric = Metric(torch.full((2,), 0.5, dtype=torch.float64), math.inf, UNIT)
    label = int(network(metric.center[None]).argmax())
    with pytest.raises(UnsupportedOpError, match="no exact MILP form"):
        exact_distance(network, label, metric, Replay(network, metric, label), Start(), Effort(get_solver("scip")))


def test_a_certified_radius_that_is_wrong_is_noticed() -> None:
    with pytest.raises(ProofError, match="farther away"):
        distance_of("2d", lower=0.6, adversary=beyond())


@dataclass(frozen=True)
class Narrowing:
    """A planted error: hidden intervals that hold little but the values at the centre."""

    def __call__(
        self, network: Network, region: Region, objective: torch.Tensor | None = None, known: dict[int, Interval] | None = None
    ) -> Bounds:
        sound = Crown(torch.float64)(network, region, objective, known)
        values = network.to(torch.float64).values(region.origin)
        narrow = [
            Interval(torch.maximum(b.lower, v - 0.05), torch.minimum(b.upper, v + 0.05)) if i in network.preactivations else b
            for i, (b, v) in enumerate(zip(sound.intervals, values, strict=True))
        ]
        return replace(sound, intervals=tuple(narrow))


def test_unsound_intervals_prove_nothing() -> None:
    found = distance_of("2d", seed=5, adversary=beyond(5), engine=Narrowing())
    assert found.status == "undecided"
    assert "reproduce" in found.reason
    assert found.lower == found.rigorous


@dataclass
class Liar:
    """A solver that always says the same."""

    status: Status
    bound: float | None
    name: str = "liar"

    def solve(self, program: Program, limits: Limits = Limits(), stop: StopRule | None = None) -> Solution:  # noqa: B008
        return Solution(self.status, None, None, self.bound, None, 0.0, self.name, Tolerances())


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("bound", [None, 10.0])
def test_claims_of_a_solver_need_evidence(status: Status, bound: float | None) -> None:
    network, x, label = anchored("2d", 8)
    metric = Metric(x, math.inf, UNIT)
    found = exact_distance(network, label, metric, Replay(network, metric, label), Start(), Effort(Liar(status, bound)))
    assert found.status in ("undecided", "memory limit", "time limit")
    assert found.lower == found.rigorous <= oracle("2d", 8, math.inf, UNIT)
