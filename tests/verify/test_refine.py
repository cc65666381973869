"""The refinement stage against the exact one, and distances from below against a grid and against exact ones."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.crown import Crown
from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.ops.base import Activation
from bounds.ops.piecewise import Relu
from bounds.ops.smooth import Tanh
from bounds.region import LpBall
from milp.activations import Curve
from milp.encode import Encoding, Pruned, encode
from milp.metric import Metric, Window, nearest
from milp.program import Status
from milp.solvers import get_solver
from tests.bounds.networks import fully_connected, max_pool
from verify.exact_radius import exact_radius
from verify.refine import Refine, certified_lower, proven_ends
from verify.run import verify
from verify.spec import Specification, output_bounds, robustness
from verify.stages import Bound, Exact, Options, Query
from verify.verdict import Falsified, Unknown, Verified

CROWN = Bound("crown", lambda dtype, options: Crown(torch.float64))
ONE_BY_ONE = Refine(few=0, first=1)


def net(seed: int = 1, widths: tuple[int, ...] = (3, 10, 8, 3)) -> Network:
    return fully_connected(Relu(), seed=seed, widths=widths).to(torch.float64)


def ball(seed: int = 1, eps: float = 0.6) -> LpBall:
    center = torch.rand(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return LpBall(center, torch.tensor(eps), math.inf)


@functools.cache
def least(seed: int) -> float:
    """The minimum of the first output on the ball, by the exact program and a second solver."""
    network, region = net(seed), ball(seed)
    first = Halfspaces(torch.eye(3, dtype=torch.float64)[:1], torch.zeros(1, dtype=torch.float64))
    found = get_solver("highs").solve(encode(network, region, first, Crown(torch.float64)(network, region).intervals).program)
    assert found.objective is not None
    return found.objective


def above(seed: int, offset: float) -> Specification:
    """The first output is above its minimum + offset."""
    return output_bounds(ball(seed), [least(seed) + offset, None, None], [None] * 3)


@pytest.mark.parametrize("stage", [ONE_BY_ONE, Refine(few=0, first=4), Refine()], ids=["one by one", "four", "default"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_verdict_is_the_exact_stage_s_on_both_sides_of_the_minimum(stage: Refine, seed: int) -> None:
    below, beyond = (verify(net(seed), above(seed, d), stages=[CROWN, stage]).verdict for d in (-1e-2, 1e-2))
    assert isinstance(below, Verified)
    assert below.proof == "solver"
    assert below.decided_by == "refine"
    assert "unstable neurons as binaries" in below.detail
    assert below.bound is not None
    assert 0 < below.bound <= 1.2e-2
    assert isinstance(beyond, Falsified)
    assert float(net(seed)(torch.from_numpy(beyond.x).double()[None])[0, 0]) <= least(seed) + 1e-2


def test_several_unsafe_sets_are_closed_together() -> None:
    network = net()
    bounds = [least(1) - 1e-2, *(float(v) - 50.0 for v in network(ball().origin)[0, 1:])]
    found = verify(network, output_bounds(ball(), bounds, [None] * 3), stages=[CROWN, ONE_BY_ONE]).verdict
    assert isinstance(found, Verified)
    bounds[2] = float(network(ball().origin)[0, 2]) + 1e-3
    assert isinstance(verify(network, output_bounds(ball(), bounds, [None] * 3), stages=[CROWN, ONE_BY_ONE]).verdict, Falsified)


@pytest.mark.parametrize("confirm", ["highs", "scip"])
def test_a_second_solver(confirm: str) -> None:
    found = verify(net(), above(1, -1e-2), stages=[CROWN, Refine(solver="scip")], confirm=confirm).verdict
    if confirm == "scip":
        assert isinstance(found, Unknown)
        assert "cannot be confirmed" in found.reason
    else:
        assert isinstance(found, Verified)
        assert "confirmed by highs" in found.detail


def test_max_pooling() -> None:
    network = max_pool().to(torch.float64)
    center = torch.rand(network.input_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = int(network(center[None]).argmax())
    for eps in (0.02, 0.4):
        question = robustness(center, label, eps, norm=math.inf, outputs=network.outputs)
        one, other = (verify(network, question, stages=[CROWN, stage]).verdict for stage in (ONE_BY_ONE, Exact()))
        assert type(one) is type(other)
        assert not isinstance(one, Unknown)


def query_after_crown(network: Network, question: Specification, options: Options | None = None) -> Query:
    found = CROWN(Query.of(network, question, options or Options()))
    assert isinstance(found, Query)
    return found


def test_what_it_is_not_for() -> None:
    query = query_after_crown(net(), above(1, -1e-2))
    assert "real arithmetic" in str(Refine().skips(replace(query, options=Options(semantics="float32-any-order"))))
    assert "no engine" in str(Refine().skips(replace(query, intervals={})))
    few = Refine(most_unstable=2)
    assert "more than 2" in str(few.skips(query))
    assert few(query) is query
    assert Refine().skips(query) is None


def test_smooth_activations_are_handed_on() -> None:
    network = fully_connected(Tanh(), seed=1, widths=(3, 6, 3)).to(torch.float64)
    found = verify(network, output_bounds(ball(), [-3.0, None, None], [None] * 3), stages=[CROWN, Refine()]).verdict
    assert isinstance(found, Verified | Unknown)
    if isinstance(found, Unknown):
        assert "no exact MILP form" in found.reason


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_limits(seconds: float) -> None:
    network = net(3, (3, 40, 40, 3))
    question = output_bounds(ball(3, 1.0), [float(v) - 1.0 for v in network(ball(3).origin)[0]], [None] * 3)
    query = query_after_crown(network, question, Options(time.monotonic() + 100.0))
    found = Refine(seconds=seconds, few=0)(query)
    assert isinstance(found, Query | Verified | Falsified)
    small = query_after_crown(network, question, Options(memory_mb=1e-3))
    told = Refine()(small)
    assert isinstance(told, Query)
    assert any("memory limit" in note for note in told.notes)


def test_an_unknown_solver() -> None:
    told = Refine(solver="nonesuch")(query_after_crown(net(), above(1, -1e-2)))
    assert isinstance(told, Query)
    assert "no solver" in told.notes[-1]


def test_bounds_of_open_sets_are_kept() -> None:
    """Not decided within one round: what the linear relaxation proved stays, and it is below the minimum."""
    query = query_after_crown(net(), above(1, -1e-2))
    told = Refine(few=0, first=1, seconds=1e-6)(query)
    assert isinstance(told, Query)
    assert told.bound is not None
    assert query.bound is not None
    assert query.bound <= told.bound <= 1e-2


# Distances


def image(seed: int, features: int = 2) -> Tensor:
    return torch.rand(features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def masks(network: Network, share: float, seed: int) -> dict[int, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {i: torch.rand(n.shape, generator=g) < share for i, n in enumerate(network.nodes) if isinstance(n.op, Activation)}


def on_grid(network: Network, x: Tensor, label: int, steps: int = 150) -> float:
    """Distance of the nearest adversary among the points of a grid on the unit square: no less than the true one."""
    axis = torch.linspace(0, 1, steps, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    scores = network(points)
    wrong = (scores > scores[:, label : label + 1]).any(1)
    return float((points[wrong] - x).abs().amax(1).amin()) if bool(wrong.any()) else math.inf


def centred(seed: int) -> tuple[Network, Tensor, int]:
    """A random network of two inputs whose boundary passes near the image."""
    network, x = fully_connected(Relu(), seed=seed, widths=(2, 6, 5, 2)).to(torch.float64), image(seed)
    last = network.nodes[-1]
    with torch.no_grad():
        y = network(x[None])[0]
    offset = last.op.offset - y + torch.tensor([0.15, 0.0], dtype=torch.float64)  # type: ignore[attr-defined]
    nodes = (*network.nodes[:-1], replace(last, op=replace(last.op, offset=offset)))  # type: ignore[type-var]
    return Network(nodes), x, 0


def relaxed_distance(network: Network, x: Tensor, label: int, pruned: Pruned, radius: float) -> float:
    """What the program with the surviving binaries proves on one ball."""
    metric = Metric(x, math.inf, (0.0, 1.0))
    region = metric.box(radius)
    rows = torch.eye(2, dtype=torch.float64)
    unsafe = Halfspaces((rows[label] - rows[1 - label])[None], torch.zeros(1, dtype=torch.float64))
    encoding = encode(network, region, unsafe, Crown(torch.float64)(network, region).intervals).loosened(pruned)
    found = get_solver("highs").solve(nearest(encoding, metric, Window(0.0, radius)))
    if found.status is Status.INFEASIBLE:
        return radius
    assert found.dual_bound is not None
    return found.dual_bound


def cases(count: int) -> Iterator[tuple[Network, Tensor, int, Pruned, float]]:
    """Random networks, half of them with most neurons pruned; the ball reaches a little beyond the nearest adversary on the grid."""
    for seed in range(count):
        network, x, label = centred(seed)
        yield network, x, label, masks(network, 0.3 + 0.6 * (seed % 2), seed), on_grid(network, x, label)


def test_the_certified_lower_end_holds_on_200_networks() -> None:
    """Whatever is pruned; the oracle is a grid that knows nothing of programs."""
    tight = []
    for network, x, label, pruned, known in cases(200):
        radius = min(1.2 * known, 0.6)
        lower = relaxed_distance(network, x, label, pruned, radius)
        assert -1e-9 <= lower <= known + 1e-6
        tight += [lower / known] if known < 0.5 else []
    assert len(tight) > 100
    assert np.median(tight) > 0.8


def cut_above(op: Relu, shape: tuple[int, ...], lower: np.ndarray, upper: np.ndarray) -> Curve:
    """Planted: neurons that may differ too little from their line, because the upper end of their interval is too low."""
    return CURVE(op, shape, lower, np.where((lower < 0) & (upper > 0), 0.3 * upper, upper))


def cut_below(op: Relu, shape: tuple[int, ...], lower: np.ndarray, upper: np.ndarray) -> Curve:
    """Planted: the same for the lower end."""
    return CURVE(op, shape, np.where((lower < 0) & (upper > 0), 0.3 * lower, lower), upper)


def flipped(op: Relu, shape: tuple[int, ...], lower: np.ndarray, upper: np.ndarray) -> Curve:
    """Planted: ends with their signs exchanged."""
    unstable = (lower < 0) & (upper > 0)
    return CURVE(op, shape, np.where(unstable, -upper, lower), np.where(unstable, -lower, upper))


CURVE = Curve.of


@pytest.mark.parametrize("error", [cut_above, cut_below, flipped], ids=lambda error: error.__name__)
def test_planted_errors_in_the_hulls_are_caught_by_the_same_networks(error: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Curve, "of", staticmethod(error))
    wrong = 0
    for network, x, label, pruned, known in cases(30):
        wrong += relaxed_distance(network, x, label, pruned, min(1.2 * known, 0.6)) > known + 1e-6
    assert wrong > 0


def wide(seed: int) -> tuple[Network, Tensor, int]:
    """A network whose relaxation is loose, so that programs on smaller balls prove more."""
    network, x = fully_connected(Relu(), seed=seed, widths=(2, 14, 12, 2)).to(torch.float64), image(seed)
    return network, x, int(network(x[None]).argmax())


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_the_sandwich_where_distances_are_exact(seed: int) -> None:
    network, x, label = wide(seed)
    exact = exact_radius(network, x, label)
    pruned = masks(network, 0.7, 3)
    single = exact_radius(network, x, label, relaxed=pruned)
    found = certified_lower(network, x, label, pruned, rounds=3)
    assert single.lower < found.lower <= exact.upper + 1e-9
    assert exact.lower - 1e-9 <= found.upper
    assert found.rigorous <= found.lower <= found.upper
    assert 0 < found.binaries < exact.binaries


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_other_norms(norm: float) -> None:
    network, x, label = centred(3)
    exact = exact_radius(network, x, label, norm=norm)
    assert math.isfinite(exact.upper)
    found = certified_lower(network, x, label, masks(network, 0.8, 3), rounds=3, norm=norm)
    assert 0 < found.lower <= exact.upper + 1e-7


def test_nothing_pruned_is_exact() -> None:
    network, x, label = centred(3)
    exact, found = exact_radius(network, x, label), certified_lower(network, x, label, masks(network, -1.0, 3))
    assert found.lower == pytest.approx(exact.lower, abs=2e-6)


def test_no_time_for_a_distance() -> None:
    network, x, label = centred(3)
    found = certified_lower(network, x, label, masks(network, 0.8, 3), seconds=0.0)
    assert found.status == "time limit"
    assert found.lower == found.rigorous


def test_relaxed_neurons_do_not_weaken_the_check_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check compares the program with all binaries; a relaxed one is never the network."""
    seen: list[int] = []

    def check(network: Network, unsafe: Halfspaces, encoding: Encoding, *rest: object) -> bool:
        seen.append(encoding.binaries)
        return False

    monkeypatch.setattr("milp.distance.reproduces", check)
    network, x, label = wide(6)
    found = exact_radius(network, x, label, relaxed=masks(network, 0.7, 3))
    assert found.status == "undecided"
    assert "does not reproduce" in found.reason
    assert found.lower == found.rigorous
    assert found.binaries < max(seen)


def test_the_strongest_binaries_prove_more_than_none() -> None:
    network, x, label = wide(7)
    exact = exact_radius(network, x, label)
    ends = [certified_lower(network, x, label, keep, rounds=3) for keep in (0, 4, 100)]
    assert [found.binaries for found in ends[:2]] == [0, 4]
    assert ends[0].lower < ends[1].lower <= exact.upper + 1e-9
    assert ends[2].lower == pytest.approx(exact.lower, abs=1e-5)


def far_adversary(network: Network, x: Tensor, label: int) -> np.ndarray:
    """Some point of another class."""
    axis = torch.linspace(0, 1, 21, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    return points[network(points).argmax(1) != label][0].numpy()


@pytest.mark.parametrize("keep", [None, 4])
@pytest.mark.parametrize("norm", [1.0, math.inf])
def test_both_ends_are_drawn_together(norm: float, keep: int | None) -> None:
    network, x, label = centred(3)
    exact = exact_radius(network, x, label, norm=norm)
    found = proven_ends(network, x, label, keep, adversary=far_adversary(network, x, label), norm=norm)
    assert found.rigorous <= found.lower <= exact.upper + 1e-9
    assert exact.lower - 1e-9 <= found.upper <= found.lower + 0.05 * exact.upper
    assert keep is not None or (found.proof, found.solves) == ("rigorous", 0)


@pytest.mark.parametrize("make, norm", [(Tanh, math.inf), (Relu, 2.0)])
def test_both_ends_hold_where_time_is_short(make: type[Activation], norm: float) -> None:
    network, x = fully_connected(make(), seed=2, widths=(2, 6, 2)).to(torch.float64), image(2)
    label = int(network(x[None]).argmax())
    found = proven_ends(network, x, label, None, adversary=far_adversary(network, x, label), norm=norm, seconds=0.5)
    assert found.proof == "rigorous"
    assert 0 <= found.lower <= math.sqrt(2) * on_grid(network, x, label) + 1e-9
    assert found.upper >= found.lower


def test_no_time_for_both_ends() -> None:
    network, x, label = centred(3)
    found = proven_ends(network, x, label, 4, adversary=far_adversary(network, x, label), lower=1e-3, seconds=0.0)
    assert (found.lower, found.proof, found.status) == (1e-3, "rigorous", "undecided")
