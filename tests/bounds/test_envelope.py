"""Distances to planes: hand-computed, against a convex solver for every norm, and certificates that hold."""

from __future__ import annotations

import itertools
import math

import cvxpy
import numpy as np
import pytest
import torch

from bounds.envelope import certified_radius, distances, signed_distances
from bounds.errors import NumericsError, RegionError
from bounds.linear import LinearBounds
from bounds.region import LpBall

NORMS = [1.0, 1.5, 2.0, 3.0, math.inf]
DOMAINS = [None, (0.0, 1.0)]


def _planes(A: torch.Tensor, b: torch.Tensor) -> LinearBounds:
    return LinearBounds(A, b, A, b)


def _plane(a: list[float], b: float) -> LinearBounds:
    return _planes(torch.tensor([[a]], dtype=torch.float64), torch.tensor([[b]], dtype=torch.float64))


def _ball(x: list[float], eps: float, p: float, domain: tuple[float, float] | None = None) -> LpBall:
    return LpBall(torch.tensor([x], dtype=torch.float64), eps, p, domain)


@pytest.mark.parametrize(("p", "expected"), [(1.0, 0.25), (2.0, 0.2), (math.inf, 1 / 7)])
def test_without_a_domain_it_is_the_dual_norm(p: float, expected: float) -> None:
    # 3 x + 4 y + 1 at the origin: the distance is 1 / ||(3, 4)||_q.
    assert distances(_plane([3.0, 4.0], 1.0), _ball([0.0, 0.0], 1.0, p)).item() == pytest.approx(expected, rel=1e-12)


def test_the_domain_bends_the_way() -> None:
    # x - y + 0.5 = 0 from (0.1, 0): x may fall by 0.1 only, y has to rise by the other 0.5.
    plane = _plane([1.0, -1.0], 0.5)
    assert distances(plane, _ball([0.1, 0.0], 1.0, math.inf, (0.0, 1.0))).item() == pytest.approx(0.5)
    assert distances(plane, _ball([0.1, 0.0], 1.0, math.inf)).item() == pytest.approx(0.3)
    assert distances(plane, _ball([0.1, 0.0], 1.0, 1.0, (0.0, 1.0))).item() == pytest.approx(0.6)
    assert distances(plane, _ball([0.1, 0.0], 1.0, 2.0, (0.0, 1.0))).item() == pytest.approx(math.hypot(0.1, 0.5))


def test_a_plane_that_no_point_of_the_domain_reaches_sets_no_limit() -> None:
    plane, ball = _plane([1.0, 1.0], 0.1), _ball([0.3, 0.4], 0.25, math.inf, (0.0, 1.0))
    assert distances(plane, ball).item() == math.inf
    assert certified_radius(plane, ball).item() == 0.25


def test_a_plane_without_slope_is_never_reached_and_a_wrong_side_has_no_distance() -> None:
    assert distances(_plane([0.0, 0.0], 0.1), _ball([0.3, 0.4], 0.25, 2.0)).item() == math.inf
    wrong = _plane([1.0, 0.0], -0.5)
    assert distances(wrong, _ball([0.3, 0.4], 0.25, 2.0)).item() == 0.0
    assert signed_distances(wrong, _ball([0.3, 0.4], 0.25, 2.0)).item() == pytest.approx(-0.2)
    assert certified_radius(wrong, _ball([0.3, 0.4], 0.25, 2.0)).item() == 0.0


def _oracle(a: np.ndarray, value: float, x: np.ndarray, p: float, domain: tuple[float, float] | None) -> float:
    """min ||D||_p with a D + value on the other side of zero, by a conic solver."""
    step = cvxpy.Variable(len(a))
    constraints = [np.sign(value) * (a @ step + value) <= 0]
    if domain is not None:
        constraints += [x + step >= domain[0], x + step <= domain[1]]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(step, "inf" if p == math.inf else p)), constraints)
    problem.solve(solver=cvxpy.CLARABEL)
    return float(problem.value) if problem.status == "optimal" else math.inf


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_distances_are_those_of_a_convex_solver(p: float, domain: tuple[float, float] | None) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(2, 5, dtype=torch.float64, generator=generator)
    x[0, 0], x[1, 4] = 0.0, 1.0
    A = torch.randn(2, 4, 5, dtype=torch.float64, generator=generator)
    A[0, 0, 1] = 0.0
    values = torch.randn(2, 4, dtype=torch.float64, generator=generator)
    planes = _planes(A, values - torch.einsum("brn,bn->br", A, x))
    ball = LpBall(x, 0.3, p if p in (1.0, 2.0) else math.inf, domain)
    signed = signed_distances(planes, ball, p)
    assert torch.equal(distances(planes, ball, p), signed.clamp(min=0.0))
    for i in range(2):
        for r in range(4):
            expected = _oracle(A[i, r].numpy(), values[i, r].item(), x[i].numpy(), p, domain)
            assert signed[i, r].item() == pytest.approx(math.copysign(expected, values[i, r].item()), abs=2e-6)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("domain", DOMAINS)
def test_within_the_certified_radius_every_plane_is_positive(p: float, domain: tuple[float, float] | None) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(6, 7, dtype=torch.float64, generator=generator)
    A = torch.randn(6, 3, 7, dtype=torch.float32, generator=generator)
    values = torch.rand(6, 3, dtype=torch.float64, generator=generator)
    planes = _planes(A, values - torch.einsum("brn,bn->br", A.double(), x))
    ball = LpBall(x, 0.2, p, domain)
    radius = certified_radius(planes, ball)
    nearest = distances(planes, ball).amin(-1).clamp(max=0.2)
    assert (radius <= 0.2).all()
    assert ((radius - nearest).abs() <= 1e-9).all()
    inside = LpBall(x, radius.unsqueeze(1), p, domain)
    assert (planes.lower_b + inside.minimise(A) > 0).all()
    beyond = LpBall(x, nearest.unsqueeze(1) * 1.001 + 1e-9, p, domain)
    short = (nearest < 0.2).nonzero().flatten()
    assert (planes.lower_b + beyond.minimise(A) < 0).any(-1)[short].all()


def test_distances_are_differentiable_in_the_planes() -> None:
    A = torch.randn(1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    b = torch.full((1, 2), 0.2, dtype=torch.float64, requires_grad=True)
    for p, domain in itertools.product((1.0, 2.0, math.inf), DOMAINS):
        ball = _ball([0.2, 0.4, 0.6, 0.8], 1.0, p, domain)
        assert torch.autograd.gradcheck(lambda A, b, ball=ball: distances(_planes(A, b), ball), (A, b))


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(RegionError, match=r"0\.5 is not a norm"):
        distances(_plane([1.0], 1.0), _ball([0.0], 1.0, 2.0), 0.5)
    with pytest.raises(NumericsError, match="NaN"):
        distances(_plane([math.nan], 1.0), _ball([0.0], 1.0, 2.0))
    uneven = LpBall(torch.zeros(1, 2), torch.tensor([[0.1, 0.2]]), 2.0)
    with pytest.raises(RegionError, match="same eps"):
        certified_radius(_plane([1.0, 1.0], 1.0), uneven)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_known_of_the_rows_changes_nothing(p: float, domain: tuple[float, float] | None, dtype: torch.dtype) -> None:
    """With and without the rows' bounds on the ball; the nearest plane is often not the lowest, and some are beyond eps or behind x."""
    generator = torch.Generator().manual_seed(11)
    x = torch.rand(40, 9, dtype=torch.float64, generator=generator).mul(8).round().div(8)
    A = torch.randn(40, 6, 9, dtype=dtype, generator=generator) * torch.rand(40, 6, 1, dtype=dtype, generator=generator).mul(4).exp()
    values = torch.rand(40, 6, dtype=torch.float64, generator=generator) * A.double().abs().sum(-1) * 0.2
    values[::9, 0] = -0.01
    planes = _planes(A, values - torch.einsum("brn,bn->br", A.double(), x))
    ball = LpBall(x, 0.15, p, domain)
    lower = planes.concretize(ball).lower
    radius = certified_radius(planes, ball, lower)
    assert torch.equal(radius, certified_radius(planes, ball))
    nearest = distances(planes, ball).amin(-1).clamp(max=0.15)
    assert (radius <= nearest).all()
    assert ((radius - nearest).abs() <= 1e-9).all()
    assert torch.equal(radius == 0.15, (lower > 0).all(-1))
    assert (radius[::9] == 0).all()
    lowest = distances(planes, ball).gather(1, lower.argmin(-1, keepdim=True)).squeeze(1)
    assert (lowest > nearest + 1e-3).any()


def test_norms_close_to_the_ends_of_the_range() -> None:
    """p -> 1 and p -> inf from inside, where exponents are extreme, and features that do not matter at all."""
    plane, ball = _plane([2.0, 1.0, 0.0], 0.5), _ball([0.1, 0.2, 0.5], 1.0, math.inf, (0.0, 1.0))
    unclipped = _ball([0.1, 0.2, 0.5], 1.0, math.inf)
    for p, limit in ((1.001, 1.0), (1e4, math.inf)):
        for where in (ball, unclipped):
            reached = distances(_plane([2.0, 1.0, 0.0], -0.1), where, p).item()
            assert reached == pytest.approx(distances(_plane([2.0, 1.0, 0.0], -0.1), where, limit).item(), rel=2e-3)
    assert distances(plane, ball, 1.001).item() == math.inf  # 2 x + y + 0.5 is positive on the whole domain
