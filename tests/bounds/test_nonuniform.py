"""Non-uniform certificates: against convex programs where they are exact, and what must hold everywhere."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.crown import Crown, CrownIbp, FastLin
from bounds.engine import BoundEngine, Bounds
from bounds.errors import GradientError, RegionError
from bounds.ibp import Ibp
from bounds.interval import Interval
from bounds.network import Network
from bounds.nonuniform import Goal, NonUniform, Search, largest_region, mean_direction
from bounds.ops.affine import Linear
from bounds.ops.piecewise import Relu
from bounds.region import LpBall
from tests.bounds.networks import Draw, chain, convolutional, fully_connected

EXACT = torch.float64
FINE = Search(steps=60, tol=1e-5)


def margins(network: Network, x: Tensor) -> Tensor:
    """Rows y[label] - y[j] for the label that the network gives: (N, outputs - 1, outputs)."""
    labels = network.to(EXACT)(x).flatten(1).argmax(1)
    identity = torch.eye(network.outputs, dtype=EXACT)
    return torch.stack([torch.stack([identity[k] - identity[j] for j in range(network.outputs) if j != k]) for k in labels.tolist()])


def linear_case() -> tuple[Network, Tensor, Tensor]:
    """A linear network: its margins are planes, and the largest region is a convex problem."""
    draw = Draw(3)
    network = chain((5,), Linear(draw.normal(4, 5), draw.normal(4)))
    x = draw.normal(3, 5).double()
    return network, x, margins(network, x)


def small() -> tuple[Network, Tensor, Tensor]:
    network = fully_connected(Relu(), seed=21, widths=(6, 12, 10, 3))
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(5), dtype=EXACT)
    return network, x, margins(network, x)


def solve(network: Network, x: Tensor, C: Tensor, p: float, domain: tuple[float, float] | None) -> list[float]:
    """The optimum of the linear case by cvxpy: the geometric mean of eps for every input."""
    op = network.nodes[-1].op
    assert isinstance(op, Linear)
    assert op.offset is not None
    W, b, best = op.weight.double().numpy(), op.offset.double().numpy(), []
    for center, rows in zip(x.numpy(), C.numpy(), strict=True):
        A, value, eps = np.abs(rows @ W), rows @ (W @ center + b), cp.Variable(5)
        if p == math.inf:
            limits = [A @ eps <= value]
        else:
            limits = [cp.norm(cp.multiply(a, eps), 2 if p == 2 else "inf") <= v for a, v in zip(A, value, strict=True)]
        if domain is not None:
            farthest = np.maximum(center - domain[0], domain[1] - center)
            limits.append(eps <= farthest * 5 ** (1 / p))
        cp.Problem(cp.Maximize(cp.sum(cp.log(eps))), limits).solve(solver=cp.CLARABEL)
        best.append(float(np.exp(np.log(eps.value).mean())))
    return best


@pytest.mark.parametrize("p", [math.inf, 2.0, 1.0])
def test_a_linear_network_gets_the_optimum(p: float) -> None:
    network, x, C = linear_case()
    found = largest_region(network, x, C, (p, None), Crown(dtype=EXACT), search=FINE)
    tolerance = 1e-4 if p > 1 else 0.02  # p = 1 has kinks everywhere
    assert bool(found.verified.all())
    assert bool(found.finished.all())
    for mean, best in zip(found.geometric_mean.tolist(), solve(network, x, C, p, None), strict=True):
        assert best * (1 - tolerance) <= mean <= best * (1 + 1e-5)


def test_a_linear_network_in_a_domain_that_does_not_cut_before_the_limit() -> None:
    """The inputs sit at one end of the domain: then a box within its limits is cut on one side only, where rows do not fall."""
    network, x, C = linear_case()
    x = torch.where(C[:, 0] @ network.nodes[-1].op.weight.double() > 0, 1.0, -1.0).to(EXACT)  # type: ignore[attr-defined]
    C = margins(network, x)
    found = largest_region(network, x, C, (math.inf, (-1.0, 1.0)), Crown(dtype=EXACT), search=FINE)
    free = largest_region(network, x, C, (math.inf, None), Crown(dtype=EXACT), goal=Goal(most=2.0), search=FINE)
    assert bool((found.geometric_mean >= free.geometric_mean * (1 - 1e-3)).all())
    assert bool((found.eps <= 2.0).all())


def test_weights_by_hand() -> None:
    """One margin a . x + b: eps_i = weight_i value / (|a_i| sum weight)."""
    a, weight = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 2.0, 5.0])
    network = chain((3,), Linear(torch.stack([a, -a]), torch.tensor([1.0, 0.0])))
    C = torch.tensor([[[0.5, -0.5]]], dtype=EXACT)  # a . x + 0.5
    x = torch.tensor([[1.0, 1.0, 1.0]], dtype=EXACT)
    found = largest_region(network, x, C, (math.inf, None), Crown(dtype=EXACT), Goal(weight=weight), FINE)
    value = float(a.sum()) + 0.5
    assert found.eps[0].tolist() == pytest.approx((weight * value / (a.abs() * 8)).tolist(), rel=2e-3)
    assert found.uniform.item() == pytest.approx(value / 3.5, rel=1e-4)


ENGINES: tuple[BoundEngine, ...] = (Crown(), FastLin(), CrownIbp(), Ibp())


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("p, domain", [(math.inf, None), (math.inf, (0.0, 1.0)), (2.0, (0.0, 1.0)), (1.0, None)])
def test_regions_are_verified_and_no_smaller_than_the_ball(engine: BoundEngine, p: float, domain: tuple[float, float] | None) -> None:
    network, x, C = small()
    found = largest_region(network, x, C, (p, domain), engine, search=Search(steps=15))
    assert bool(found.verified.all())
    assert bool((found.ratio >= 1).all())
    assert found.ratio.max() > (1.002 if isinstance(engine, Ibp) else 1.1)
    again = engine(network, LpBall(x, found.eps, p, domain), C).objective.lower
    assert bool((again > 0).all())
    points = found.regions.sample(200, torch.Generator().manual_seed(0))
    outputs = network.to(EXACT)(points).flatten(2)
    assert bool((torch.einsum("bro,bso->bsr", C, outputs) > 0).all())
    if domain is not None:
        assert points.min() >= 0
        assert points.max() <= 1


@pytest.mark.parametrize("p", [math.inf, 2.0, 1.0])
def test_the_uniform_optimum_is_that_of_a_plain_bisection(p: float) -> None:
    network, x, C = small()
    engine = Crown()
    found = largest_region(network, x, C, (p, None), engine, search=Search(steps=0, tol=1e-4))
    for i in range(len(x)):
        low, high = 0.0, 4.0
        while high > low * (1 + 1e-5):
            middle = (low + high) / 2
            held = bool((engine(network, LpBall(x[i : i + 1], middle, p), C[i : i + 1]).objective.lower > 0).all())
            low, high = (middle, high) if held else (low, middle)
        assert found.uniform[i].item() == pytest.approx(low, rel=3e-4)
        assert found.geometric_mean[i].item() >= found.uniform[i].item()


@dataclass(frozen=True)
class Watched:
    """An engine that remembers the regions on which every row was positive; `blind` to non-uniform ones, it finds nothing there."""

    blind: bool = False
    held: list[Tensor] = field(default_factory=list)

    def __call__(
        self, network: Network, region: LpBall, objective: Tensor | None = None, known: dict[int, Interval] | None = None
    ) -> Bounds:
        found = Crown()(network, region, objective, known)
        eps = torch.as_tensor(region.eps).detach().flatten(1)
        lower = found.objective.lower
        if self.blind:
            lower = torch.where((eps == eps[:, :1]).all(1, keepdim=True), lower, lower - 1e3)
            found = replace(found, objective=Interval(lower, torch.maximum(lower, found.objective.upper)))
        self.held.extend(eps[(lower > 0).all(1)])
        return found


@pytest.mark.parametrize("method", ["convex", "lagrangian"])
def test_what_is_returned_was_verified_as_it_is(method: str) -> None:
    network, x, C = small()
    engine = Watched()
    found = largest_region(network, x, C, engine=engine, search=Search(method=method, steps=12))  # type: ignore[arg-type]
    for eps in found.eps:
        assert any(torch.equal(eps, held) for held in engine.held)


@pytest.mark.parametrize("method", ["convex", "lagrangian"])
def test_the_ball_is_returned_where_nothing_better_is_verified(method: str) -> None:
    network, x, C = small()
    found = largest_region(network, x, C, engine=Watched(blind=True), search=Search(method=method, steps=8))  # type: ignore[arg-type]
    assert torch.allclose(found.eps, found.uniform.unsqueeze(1).expand_as(found.eps), rtol=1e-12)
    assert found.ratio.tolist() == [1.0] * 4
    assert bool(found.verified.all())


def test_lagrangian_reaches_the_linear_optimum() -> None:
    network, x, C = linear_case()
    found = largest_region(network, x, C, (math.inf, None), Crown(dtype=EXACT), search=Search("lagrangian", steps=300))
    for mean, best in zip(found.geometric_mean.tolist(), solve(network, x, C, math.inf, None), strict=True):
        assert best * 0.97 <= mean <= best * (1 + 1e-5)


def test_convex_steps_against_the_lagrangian_in_a_fifth_of_the_calls() -> None:
    network, x, C = small()
    convex = largest_region(network, x, C, search=Search(steps=25))
    lagrangian = largest_region(network, x, C, search=Search("lagrangian", steps=120))
    assert bool((convex.geometric_mean >= 0.97 * lagrangian.geometric_mean).all())
    assert convex.geometric_mean.log().mean() >= lagrangian.geometric_mean.log().mean() - 5e-3


# ----------------------------------------------------------------------------------------------------------------------------- goals


def test_a_mask_and_groups() -> None:
    network, x, C = small()
    free = torch.tensor([True, True, True, False, True, True])
    groups = torch.tensor([4, 4, 9, 9, 9, 1])
    found = largest_region(network, x, C, goal=Goal(free=free, groups=groups))
    eps = found.eps
    assert bool((eps[:, 3] == 0).all())
    most = torch.maximum(x, 1 - x)
    for i, j in ((0, 1), (2, 4)):
        together = torch.maximum(eps[:, i], eps[:, j])
        assert torch.equal(eps[:, i], torch.minimum(together, most[:, i]))
        assert torch.equal(eps[:, j], torch.minimum(together, most[:, j]))
    alone = largest_region(network, x, C, goal=Goal(free=free))
    assert bool((alone.geometric_mean >= found.geometric_mean * 0.999).all())
    assert bool((found.ratio >= 1).all())


def test_one_group_is_the_uniform_optimum() -> None:
    network, x, C = small()
    found = largest_region(network, x, C, (math.inf, None), goal=Goal(groups=torch.zeros(6)), search=Search(tol=1e-5))
    assert found.ratio.tolist() == pytest.approx([1.0] * 4, abs=1e-4)


def test_the_largest_region_that_contains_a_given_one() -> None:
    network, x, C = small()
    plain = largest_region(network, x, C)
    least = 0.6 * plain.eps.amin(1, keepdim=True) * torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 1.5], dtype=EXACT)
    found = largest_region(network, x, C, goal=Goal(least=least, most=0.8))
    assert bool(found.verified.all())
    assert bool((found.eps >= least).all())
    assert bool((found.eps <= 0.8).all())  # 0.8 as a float64: limits are not rounded to float32 on the way
    assert bool((found.ratio >= 1).all())


def test_a_region_that_is_not_certified_cannot_be_enlarged() -> None:
    network, x, C = small()
    found = largest_region(network, x, C, (math.inf, None), goal=Goal(least=50.0))
    assert not bool(found.verified.any())
    assert found.eps.abs().sum() == 0
    assert bool(torch.isnan(found.ratio).all())


# ------------------------------------------------------------------------------------------------------------------ starts and limits


def test_images_do_not_depend_on_their_batch() -> None:
    network, x, C = small()
    together, apart = (largest_region(network, x, C, search=Search(batch=b, steps=10)) for b in (4, 1))
    assert torch.allclose(together.eps, apart.eps, rtol=1e-3)


def test_starting_in_the_mean_direction() -> None:
    network, x, C = small()
    first = largest_region(network, x[:3], C[:3])
    direction = mean_direction(first.eps)
    assert direction is not None
    assert direction.norm() == pytest.approx(1.0, abs=0.2)
    for search in (Search(direction=direction, steps=6), Search(learn=True, batch=1, steps=6)):
        found = largest_region(network, x, C, search=search)
        assert bool((found.ratio >= 1).all())
        assert found.ratio.mean() > 1.1
    assert mean_direction(torch.zeros(2, 6)) is None


def test_a_convolutional_network() -> None:
    network = convolutional()
    x = torch.randn(2, *network.input_shape, generator=torch.Generator().manual_seed(1), dtype=EXACT)
    found = largest_region(network, x, margins(network, x), (math.inf, None), search=Search(steps=12))
    assert found.eps.shape == x.shape
    assert bool((found.ratio > 1.05).all())


def test_a_misclassified_anchor_has_no_region() -> None:
    network, x, C = small()
    C = torch.cat([-C[:2], C[2:]])
    found = largest_region(network, x, C, search=Search(steps=3))
    assert found.verified.tolist() == [False, False, True, True]
    assert found.geometric_mean[:2].tolist() == found.uniform[:2].tolist() == [0.0, 0.0]
    assert found.calls[:2].tolist() == [0, 0]
    assert bool(found.finished.all())
    everyone = largest_region(network, x, -C[2:].repeat(2, 1, 1))
    assert not bool(everyone.verified.any())


def test_a_deadline_leaves_the_best_so_far() -> None:
    network, x, C = small()
    past = largest_region(network, x, C, search=Search(deadline=0.0))
    assert not bool(past.finished.any())
    assert not bool(past.verified.any())
    soon = largest_region(network, x, C, engine=Crown(), search=Search("lagrangian", steps=10**6, deadline=time.monotonic() + 0.6))
    assert not bool(soon.finished.any())
    assert bool(soon.verified.all())
    assert soon.seconds < 30
    again = Crown()(network, LpBall(x, soon.eps, math.inf, (0.0, 1.0)), C).objective.lower
    assert bool((again > 0).all())


# -------------------------------------------------------------------------------------------------------------------------- bad input


def test_masks_that_fix_everything() -> None:
    network, x, C = small()
    for goal in (Goal(free=torch.zeros(6, dtype=torch.bool)), Goal(weight=0.0), Goal(least=0.3, most=0.3), Goal(most=0.0)):  # type: ignore[arg-type]
        with pytest.raises(RegionError, match="no feature may move"):
            largest_region(network, x, C, goal=goal)
    with pytest.raises(RegionError, match="no feature may move"):
        largest_region(network, torch.ones(1, 6), C[:1], (math.inf, (1.0, 1.0)))


def test_reversed_ranges_and_unfit_shapes() -> None:
    network, x, C = small()
    with pytest.raises(RegionError, match="range of eps is reversed"):
        largest_region(network, x, C, goal=Goal(least=torch.tensor([0.1, 0.1, 0.4, 0.1, 0.1, 0.1]), most=0.3))
    with pytest.raises(RegionError, match="range of eps is reversed or negative"):
        largest_region(network, x, C, goal=Goal(least=-0.1))
    with pytest.raises(RegionError, match="`free` has shape \\(5,\\)"):
        largest_region(network, x, C, goal=Goal(free=torch.ones(5)))
    with pytest.raises(RegionError, match="weights of features must be finite and not negative"):
        largest_region(network, x, C, goal=Goal(weight=torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0])))


def test_norms_domains_and_searches() -> None:
    network, x, C = small()
    with pytest.raises(RegionError, match=r"norm 3.0 is not supported"):
        largest_region(network, x, C, (3.0, None))
    with pytest.raises(RegionError, match="must lie in its domain"):
        largest_region(network, x + 5, C)
    with pytest.raises(RegionError, match="unknown search 'newton'"):
        Search("newton")  # type: ignore[arg-type]
    with pytest.raises(RegionError, match="relative tolerance"):
        Search(tol=1e-12)
    with pytest.raises(RegionError, match="batch must be at least 1"):
        Search(batch=0)


@pytest.mark.parametrize("method", ["convex", "lagrangian"])
def test_an_engine_without_gradients(method: str) -> None:
    network, x, C = small()

    def numb(network: Network, region: LpBall, objective: Tensor | None = None, known: dict[int, Interval] | None = None) -> Bounds:
        with torch.no_grad():
            return Crown()(network, region, objective, known)

    with pytest.raises(GradientError, match="gives no gradients of its bounds in eps; use Crown"):
        largest_region(network, x, C, engine=numb, search=Search(method=method))  # type: ignore[arg-type]


def test_the_result_knows_its_fields() -> None:
    network, x, C = small()
    found = largest_region(network, x, C, search=Search(steps=2))
    assert isinstance(found, NonUniform)
    assert found.eps.dtype == EXACT
    assert found.calls.tolist() == [int(c) for c in found.calls]
    assert int(found.calls.min()) >= 4
    assert found.seconds > 0
    assert found.regions.p == math.inf
