"""Algorithm 1 and what is said about a network by its substitutes, against exact distances and samples."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from bounds.crown import Crown
from bounds.errors import ProofError, SpecError, TimeLimitError, UnsupportedOpError
from bounds.interval import Interval
from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.ops.affine import Linear, SubBranches
from bounds.ops.piecewise import LeakyRelu, Relu
from bounds.ops.smooth import Tanh
from bounds.region import LpBall
from bounds.substitutes import activations, rewrite, surviving
from milp.encode import encode
from milp.program import Limits as MilpLimits
from milp.solvers import get_solver
from tests.bounds.networks import Draw, chain, convolutional, fully_connected, max_pool
from verify import substitute as module
from verify.minimal import MinimalNorm
from verify.pruning import Limits, Pruning, agreement_radii, balls, prune
from verify.substitute import Estimator

ATTACK = MinimalNorm(steps=15, targets=2)
HALF = Pruning(ratio=0.5, step=0.2)


def small(seed: int = 0) -> Network:
    return fully_connected(Relu(), seed=seed, widths=(3, 10, 8, 3)).to(torch.float64)


def anchors(network: Network, count: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *network.input_shape, generator=generator, dtype=torch.float64)
    return x, network(x).flatten(1).argmax(1)


def attacked(network: Network, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Adversaries and their distances; no domain, so that there are some."""
    hits = ATTACK(network, x, y, domain=None)
    assert np.isfinite(hits.distance).all()
    return torch.from_numpy(hits.points), torch.from_numpy(hits.distance)


@pytest.mark.parametrize("kind, engine", [("constant", "ibp"), ("linear", "fastlin-ibp"), ("linear", "crown"), ("activation", "crown")])
def test_the_share_is_gone_and_the_points_are_kept(kind: str, engine: str) -> None:
    network = small()
    x, y = anchors(network)
    points, radii = attacked(network, x, y)
    pruning = Pruning(kind, 0.6, 0.2, engine=engine)  # type: ignore[arg-type]
    for b, one in enumerate(prune(network, x, points, balls(x, radii, math.inf, None), pruning)):
        assert sum(int(mask.sum()) for mask in one.pruned.values()) == math.floor(0.6 * 18)
        assert surviving(one.network) == 18 - math.floor(0.6 * 18) >= one.size.activations
        for form in (one.network, one.small):
            assert torch.allclose(form(x[b]), network(x[b]), atol=1e-10)
            assert kind != "linear" or torch.allclose(form(points[b]), network(points[b]), atol=1e-9)


def test_the_narrowest_neurons_go_first() -> None:
    network = small()
    x, y = anchors(network, 1)
    points, radii = attacked(network, x, y)
    ball = balls(x, radii, math.inf, None)
    (one,) = prune(network, x, points, ball, Pruning(ratio=0.3, step=0.29999, engine="ibp"))  # one round but for the rest
    from bounds.ibp import Ibp

    intervals = Ibp()(network, ball).intervals
    widths = torch.cat([intervals[network.nodes[i].inputs[0]].width.flatten() for i in activations(network)])
    gone = torch.cat([one.pruned[i].flatten() for i in activations(network)])
    assert float(widths[gone].max()) <= float(widths[~gone].min())


def test_the_first_layer_can_be_left_alone() -> None:
    network = small()
    x, y = anchors(network)
    points, radii = attacked(network, x, y)
    first, second = activations(network)
    for one in prune(network, x, points, balls(x, radii, math.inf, None), Pruning(ratio=0.5, step=0.2, first_layer=False)):
        assert list(one.pruned) == [second]
        assert int(one.pruned[second].sum()) == 4
    shallow = chain((3,), Draw(1).dense(4, 3), Relu(), Draw(2).dense(2, 4))
    with pytest.raises(SpecError, match="the first layer is left out"):
        prune(shallow, x, points, balls(x, radii, math.inf, None), Pruning(first_layer=False))
    assert first not in one.pruned


def test_stable_neurons_can_go_first() -> None:
    network = small(3)
    x, y = anchors(network)
    points, radii = attacked(network, x, y)
    ball = balls(x, radii, math.inf, None)
    intervals = Crown(torch.float64)(network, ball).intervals
    for b, one in enumerate(prune(network, x, points, ball, Pruning("activation", 0.3, 0.1, stable_first=True, engine="crown"))):
        for i, mask in one.pruned.items():
            op = network.nodes[i].op
            assert isinstance(op, Relu)
            source = intervals[network.nodes[i].inputs[0]]
            assert not bool((op.unstable(Interval(source.lower[b : b + 1], source.upper[b : b + 1]))[0] & mask).any())
        y = network(ball.sample(50, torch.Generator().manual_seed(1))[b])
        assert torch.allclose(one.network(ball.sample(50, torch.Generator().manual_seed(1))[b]), y, atol=1e-10)


def test_a_batch_is_pruned_as_its_images_are_alone() -> None:
    network = convolutional().to(torch.float64)
    x, y = anchors(network)
    points, radii = attacked(network, x, y)
    together = prune(network, x, points, balls(x, radii, math.inf, None), HALF)
    for b, one in enumerate(together):
        k = slice(b, b + 1)
        (alone,) = prune(network, x[k], points[k], balls(x[k], radii[k], math.inf, None), HALF)
        assert all(bool((one.pruned[i] == alone.pruned[i]).all()) for i in one.pruned)


@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
def test_delta_is_a_ball_of_equal_values(norm: float) -> None:
    """Sampled, and by mixed-integer programming: no output of network and substitute differs on the ball."""
    network = small(1)
    x, y = anchors(network)
    points, radii = attacked(network, x, y)
    made = prune(network, x, points, balls(x, radii, math.inf, None), Pruning("activation", 0.5, 0.2))
    delta = agreement_radii(network, x, [one.pruned for one in made], 3 * radii, norm=norm, domain=None)
    assert bool((delta > 0).any())
    for b, one in enumerate(made):
        ball = balls(x[b : b + 1], delta[b : b + 1], norm, None)
        sample = ball.sample(300, torch.Generator().manual_seed(b))[0]
        assert torch.allclose(one.network(sample), network(sample), atol=1e-10)
    if norm == math.inf:
        assert largest_difference(network, made[0].network, x[0], float(delta[0])) < 1e-7


def largest_difference(first: Network, second: Network, x: torch.Tensor, radius: float) -> float:
    """max |first - second| over the ball and the outputs, by mixed-integer programs."""
    shift = len(first.nodes) - 1
    nodes = [*first.nodes, *(replace(n, inputs=tuple(0 if i == 0 else i + shift for i in n.inputs)) for n in second.nodes[1:])]
    last = shift + len(second.nodes) - 1
    both = Network((*nodes, replace(nodes[shift], op=SubBranches(), inputs=(shift, last), name="difference")))
    ball = LpBall(x[None], torch.tensor([radius], dtype=torch.float64))
    intervals = Crown(torch.float64)(both, ball).intervals
    worst = 0.0
    for row in torch.cat([torch.eye(both.outputs), -torch.eye(both.outputs)]).double():
        program = encode(both, ball, Halfspaces(row[None], torch.zeros(1, dtype=torch.float64)), intervals).program
        solution = get_solver("highs").solve(program, MilpLimits())
        assert solution.dual_bound is not None
        worst = max(worst, -solution.dual_bound)
    return worst


def test_planted_error_in_a_line_breaks_the_equality_on_the_ball() -> None:
    network = small(1)
    x, y = anchors(network, 1)
    points, radii = attacked(network, x, y)
    (one,) = prune(network, x, points, balls(x, radii, math.inf, None), Pruning("activation", 0.5, 0.2))
    delta = agreement_radii(network, x, [one.pruned], radii, domain=None)
    wrong = {i: replace(line, intercept=line.intercept + 1e-3) for i, line in one.lines.items()}
    planted = rewrite(network, one.pruned, wrong)
    assert largest_difference(network, planted, x[0], float(delta[0])) > 1e-5


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("kind", ["linear", "activation", "constant"])
def test_ends_hold_and_estimates_are_near(seed: int, kind: str) -> None:
    network = small(seed)
    x, y = anchors(network, 1, seed)
    pruning, limits = Pruning(kind, 0.3, 0.1), Limits(20.0, "highs")  # type: ignore[arg-type]
    estimator = Estimator(network, pruning, domain=None, limits=limits, exact=True, certify=1.0, attack=ATTACK)
    (found,) = estimator(x, y)
    assert found.exact is not None
    assert found.estimate is not None
    assert 0 <= found.certified_lower <= found.exact * (1 + 1e-5) + 1e-6
    assert found.exact <= found.upper <= found.d_adv
    assert kind != "linear" or found.estimate <= found.d_adv * (1 + 1e-6)
    assert found.clamped is not None
    assert abs(found.clamped - found.exact) <= abs(found.estimate - found.exact) + 1e-6
    assert found.after.activations <= found.before.activations - 5
    assert found.relative_difference == pytest.approx(abs(found.estimate - found.exact) / found.exact)


def test_certified_lower_rests_on_bounds_programs_and_delta() -> None:
    """Without an exact distance the lower end is the largest of them, and never beyond the exact one."""
    network = small(2)
    x, y = anchors(network, 2, 2)
    plain = Estimator(network, Pruning("activation", 0.3, 0.1), domain=None, limits=Limits(20.0, "highs"), certify=1.0, attack=ATTACK)
    bounds_alone = plain.start(x, y)
    for one, truth, first in zip(plain(x, y), replace(plain, exact=True, certify=0.0)(x, y), bounds_alone, strict=True):
        assert one.exact is None
        assert one.relative_difference is None
        assert truth.exact is not None
        assert first.certified_lower <= one.certified_lower <= truth.exact * (1 + 1e-5)
        assert one.delta is not None
        assert one.certified_lower >= min(one.delta, one.estimate_range[0]) - 1e-12


def test_planted_error_a_delta_that_is_too_large_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower end then passes an adversary that replays."""
    network = small(0)
    x, y = anchors(network, 3, 0)
    estimator = Estimator(
        network, Pruning("activation", 0.8, 0.3), domain=None, limits=Limits(20.0, "highs"), exact=True, certify=0.0, attack=ATTACK
    )
    for right in estimator(x, y):
        assert right.exact is not None
        assert right.certified_lower <= right.exact * (1 + 1e-6)
    monkeypatch.setattr(module, "agreement_radii", lambda network, anchors, pruned, most, **_: most)
    with pytest.raises(ProofError, match="but there is one at"):
        estimator(x, y)


def test_smooth_networks_have_substitutes_but_no_exact_distance() -> None:
    network = fully_connected(Tanh(), seed=1, widths=(3, 8, 3)).to(torch.float64)
    x, y = anchors(network, 2)
    points, radii = attacked(network, x, y)
    (one, _) = prune(network, x, points, balls(x, radii, math.inf, None), Pruning(ratio=0.5, step=0.2))
    assert torch.allclose(one.network(points[0]), network(points[0]), atol=1e-9)
    with pytest.raises(UnsupportedOpError, match="not piecewise linear"):
        Estimator(network, Pruning("activation", 0.5, 0.2), domain=None)(x, y)


def test_bad_input() -> None:
    network = small()
    x, y = anchors(network, 1)
    for ratio, step in ((0.0, 0.1), (1.0, 0.1), (math.nan, 0.1), (0.5, 0.5), (0.5, 0.0)):
        with pytest.raises(SpecError, match="strictly between"):
            Pruning(ratio=ratio, step=step)
    with pytest.raises(SpecError, match="unknown type of substitute 'cubic'"):
        Pruning("cubic")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="unknown order 'age'"):
        Pruning(order="age")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="unknown bounds 'magic'"):
        Pruning(engine="magic")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="misclassified"):
        Estimator(network, HALF, domain=None, attack=ATTACK)(x, (y + 1) % 3)
    far = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    never = chain((2,), Draw(1).dense(2, 2), LeakyRelu(0.1), replace(Draw(2).dense(2, 2), offset=torch.tensor([99.0, 0.0]))).to(
        torch.float64
    )
    with pytest.raises(SpecError, match="no adversary of image 0"):
        Estimator(never, HALF, attack=ATTACK)(far, torch.tensor([0]))
    with pytest.raises(UnsupportedOpError, match="not element-wise"):
        Estimator(max_pool(), HALF)(torch.rand(1, 1, 1, 4, 4), torch.tensor([0]))
    with pytest.raises(UnsupportedOpError, match="no activations"):
        Estimator(chain((3,), Draw(1).dense(2, 3)), HALF)(x, torch.tensor([0]))
    points, radii = attacked(network, x, y)
    with pytest.raises(TimeLimitError):
        prune(network, x, points, balls(x, radii, math.inf, None), HALF, deadline=time.monotonic() - 1)


def test_neurons_of_the_smallest_effect_go_first() -> None:
    """Lines that differ little, or that the margin does not read, cost least: against values by hand."""
    weight, head = torch.eye(3), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    network = chain((3,), Linear(weight), Relu(), Linear(head, torch.tensor([0.3, 0.0]))).to(torch.float64)
    x = torch.tensor([[0.1, 0.0, 0.05]], dtype=torch.float64)
    point = torch.tensor([[-0.2, 0.3, -0.5]], dtype=torch.float64)
    made = Pruning("activation", 0.67, 0.3, order="effect", engine="ibp")
    # On the ball of radius 0.4: the second neuron is read by nobody; the first may lie 0.3 below its line, the third 0.35, and counts twice.
    (one,) = prune(network, x, point, balls(x, torch.tensor([0.4]), math.inf, None), made)
    assert one.pruned[activations(network)[0]].tolist() == [True, True, False]


def test_the_effect_is_zero_where_neurons_are_stable() -> None:
    network = small(3)
    x, y = anchors(network)
    points, radii = attacked(network, x, y)
    ball = balls(x, radii, math.inf, None)
    stable = prune(network, x, points, ball, Pruning("activation", 0.3, 0.1, order="effect", engine="crown"))
    for b, one in enumerate(stable):
        sample = ball.sample(50, torch.Generator().manual_seed(1))[b]
        assert torch.allclose(one.network(sample), network(sample), atol=1e-10)
