"""Regions against convex programs, rational arithmetic and their own promises."""

from __future__ import annotations

import math
from fractions import Fraction

import cvxpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.errors import RegionError
from bounds.region import Box, LpBall, Region

NORMS = [1.0, 2.0, math.inf]
DTYPES = [torch.float32, torch.float64]


def T(*values: float | list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------------ exact minimum

CENTER = random(1, 5)[0]
CASES: dict[str, tuple[Tensor, Tensor | None, Tensor | None]] = {  # eps, and the domain's distances below and above the centre
    "ball": (torch.full((5,), 0.7), None, None),
    "an eps for every feature": (torch.tensor([0.1, 3.0, 0.5, 1.0, 0.01]), None, None),
    "fixed features": (torch.tensor([0.0, 1.0, 0.0, 2.0, 0.3]), None, None),
    "all features fixed": (torch.zeros(5), None, None),
    "loose domain": (torch.full((5,), 0.7), torch.full((5,), 9.0), torch.full((5,), 9.0)),
    "domain": (torch.tensor([0.5, 1.0, 2.0, 1.0, 0.7]), torch.full((5,), 0.4), torch.tensor([0.1, 0.8, 0.2, 3.0, 0.6])),
    "domain and fixed features": (torch.tensor([0.0, 1.0, 0.0, 1.0, 0.7]), torch.full((5,), 0.4), torch.full((5,), 0.3)),
    "centre on the border": (torch.full((5,), 1.0), torch.tensor([0.0, 0.0, 0.5, 9.0, 0.2]), torch.tensor([0.3, 0.0, 0.0, 0.0, 9.0])),
    "domain inside the ball": (torch.full((5,), 10.0), torch.full((5,), 0.3), torch.full((5,), 0.2)),
    "half open": (torch.full((5,), 1.0), torch.full((5,), math.inf), torch.full((5,), 0.1)),
}
ROWS = torch.cat([random(3, 5, seed=1), torch.zeros(1, 5), torch.eye(5)[:1], torch.ones(1, 5)]).double()


def program(eps: Tensor, p: float, low: Tensor, high: Tensor, row: Tensor) -> float:
    """min <row, x> by a convex solver."""
    x = cvxpy.Variable(5)
    moving = eps.numpy() > 0
    constraints = [x[~moving] == CENTER.numpy()[~moving]] if not moving.all() else []
    if moving.any():
        constraints.append(cvxpy.norm((x - CENTER.numpy())[moving] / eps.numpy()[moving], p) <= 1)
    for side, sign in ((low, 1), (high, -1)):
        finite = torch.isfinite(side).numpy()
        if finite.any():
            constraints.append(sign * x[finite] >= sign * side.numpy()[finite])
    problem = cvxpy.Problem(cvxpy.Minimize(row.numpy() @ x), constraints)
    return float(problem.solve(solver=cvxpy.CLARABEL))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("case", CASES)
def test_minimum_is_that_of_a_convex_program(case: str, p: float) -> None:
    eps, below, above = CASES[case]
    domain = None if below is None or above is None else (CENTER - below, CENTER + above)
    ball = LpBall(CENTER[None], eps[None], p, domain)
    found = ball.minimise(ROWS[None])[0]
    low, high = domain or (torch.full((5,), -math.inf), torch.full((5,), math.inf))
    for row, value in zip(ROWS, found, strict=True):
        assert float(value) == pytest.approx(program(eps.double(), p, low, high, row), abs=2e-6)


def test_minimum_over_a_box() -> None:
    box = Box(T(-1.0, 2.0, 0.5), T(3.0, 2.0, 1.0))
    rows = torch.tensor([[[1.0, -1.0, 2.0], [-1.0, 0.0, -4.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    assert torch.allclose(box.minimise(rows), T(-2.0, -7.0, 0.0), atol=1e-12)
    assert torch.allclose(box.decrease(rows), T(2.5, 3.0, 0.0), atol=1e-12)


def test_sets_of_a_batch_are_independent() -> None:
    center, eps = random(4, 2, 3), random(4, 2, 3, seed=1).abs()
    rows = random(4, 3, 2, 3, seed=2)
    for p in NORMS:
        for domain in (None, (center.amin() - 0.1, center.amax() + 0.1)):
            ball = LpBall(center, eps, p, domain)
            together = ball.minimise(rows)
            for index in range(4):
                alone = LpBall(center[index : index + 1], eps[index : index + 1], p, domain).minimise(rows[index : index + 1])
                assert torch.allclose(together[index : index + 1], alone, rtol=1e-12, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------- rounding, in rationals


def frac(values: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in values.double().flatten().tolist()]


def exact_decrease(A: list[Fraction], region: LpBall) -> Fraction:
    """max <a, c - x> for p = 1 and inf in rational arithmetic, for p = 2 its square (no domain)."""
    center, eps = frac(region.center), frac(torch.as_tensor(region.eps))
    reach = list(eps)
    if region.domain is not None:
        low, high = (frac(torch.as_tensor(side)) for side in region.domain)
        reach = [min(e, c - lo if a > 0 else hi - c) for a, e, c, lo, hi in zip(A, eps, center, low, high, strict=True)]
    if region.p == math.inf:
        return sum((abs(a) * r for a, r in zip(A, reach, strict=True)), Fraction(0))
    if region.p == 2:
        return sum(((a * e) ** 2 for a, e in zip(A, eps, strict=True)), Fraction(0))
    budget, total = Fraction(1), Fraction(0)
    for gain, e, r in sorted(((abs(a) * e, e, r) for a, e, r in zip(A, eps, reach, strict=True) if e > 0), reverse=True):
        spent = min(budget, r / e)
        budget, total = budget - spent, total + spent * gain
    return total


SIZES = st.floats(min_value=1e-6, max_value=1e6) | st.just(0.0)
SIGNED = st.floats(min_value=-1e6, max_value=1e6)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_decrease_is_never_less_than_the_exact_one(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))

    def column(values: st.SearchStrategy[float]) -> list[float]:
        return data.draw(st.lists(values, min_size=count, max_size=count))

    center, eps = T(*column(SIGNED)), T(*column(SIZES))
    p = data.draw(st.sampled_from(NORMS))
    domain = None
    if p != 2 and data.draw(st.booleans()):
        domain = (torch.minimum(center - T(*column(SIZES)), center), torch.maximum(center + T(*column(SIZES)), center))
    dtype = data.draw(st.sampled_from(DTYPES))
    A = T(*column(SIGNED)).to(dtype)
    ball = LpBall(center, eps, p, domain)
    exact = exact_decrease(frac(A), ball)
    found = float(ball.decrease(A.unsqueeze(1)))
    assert Fraction(found) ** (2 if p == 2 else 1) >= exact
    lost = 1e-15 * float((A.double() * center).abs().sum())  # the box's ends are numbers near the centre
    assert (found**2 if p == 2 else found) <= float(exact) * (1 + 1e-9) + lost + 1e-100
    middle = sum((a * c for a, c in zip(frac(A), frac(center), strict=True)), Fraction(0))
    for region in (ball, ball.to(dtype)):
        least = Fraction(float(region.minimise(A.unsqueeze(1))))
        assert middle >= least
        assert (middle - least) ** (2 if p == 2 else 1) >= exact


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(SIGNED, SIZES), min_size=1, max_size=6))
def test_the_box_of_a_ball_is_the_smallest_that_contains_it(pairs: list[tuple[float, float]]) -> None:
    center, eps = (T(*side) for side in zip(*pairs, strict=True))
    box = LpBall(center, eps).box()
    for c, e, low, high in zip(frac(center), frac(eps), box.lower[0].tolist(), box.upper[0].tolist(), strict=True):
        assert Fraction(low) <= c - e < Fraction(math.nextafter(low, math.inf))
        assert Fraction(high) >= c + e > Fraction(math.nextafter(high, -math.inf))


@pytest.mark.parametrize("p", NORMS)
def test_conversion_contains_the_region(p: float) -> None:
    center, eps = random(2, 6) * 100, random(2, 6, seed=1).abs()
    ball = LpBall(center, eps, p, (center - eps / 2, center + 2 * eps))
    narrow = ball.to(torch.float32)
    assert bool((narrow.box().lower <= ball.box().lower).all() and (narrow.box().upper >= ball.box().upper).all())
    assert isinstance(narrow, Box) == (p == math.inf)
    box = Box(center - eps, center + eps).to(torch.float32)
    assert box.lower.dtype == torch.float32
    assert bool((box.lower.double() <= center - eps).all() and (box.upper.double() >= center + eps).all())
    assert bool((box.lower.double() >= center - eps - 2e-5).all())


# ------------------------------------------------------------------------------------------------------------------------- members


def is_member(x: list[Fraction], ball: LpBall) -> bool:
    """Membership in rational arithmetic (batch 1)."""
    center, eps = frac(ball.center), frac(torch.as_tensor(ball.eps))
    if ball.domain is not None:
        low, high = (frac(torch.as_tensor(side)) for side in ball.domain)
        if any(v < lo or v > hi for v, lo, hi in zip(x, low, high, strict=True)):
            return False
    steps = []
    for v, c, e in zip(x, center, eps, strict=True):
        if e == 0 and v != c:
            return False
        steps.append(abs(v - c) / e if e else Fraction(0))
    if ball.p == math.inf:
        return max(steps) <= 1
    return sum(s if ball.p == 1 else s * s for s in steps) <= 1


def borders(ball: LpBall, count: int, seed: int) -> Tensor:
    """Points around the surface, a few units in the last place inside and outside: (1, count, n)."""
    direction = random(1, count, *ball.shape, seed=seed) * torch.as_tensor(ball.eps).unsqueeze(1)
    eps = torch.as_tensor(ball.eps).unsqueeze(1)
    steps = torch.where(eps > 0, direction / eps.clamp_min(1e-300), 0.0)
    norm = torch.linalg.vector_norm(steps.flatten(2), ord=ball.p, dim=-1, keepdim=True)
    wiggle = 1 + random(1, count, 1, seed=seed + 1) * 1e-15
    return ball.center.unsqueeze(1) + direction / norm * wiggle


@pytest.mark.parametrize("p", NORMS)
def test_no_point_outside_is_called_a_member(p: float) -> None:
    """Membership may be denied to points within rounding of the surface, for p = inf it is exact."""
    exact_says, ours_says = [], []
    for seed in range(4):
        eps = random(1, 3, seed=seed).abs() * torch.tensor([1.0, 0.0 if seed == 3 else 1e-3, 10.0])
        ball = LpBall(random(1, 3, seed=seed + 9), eps, p)
        x = torch.cat([borders(ball, 60, seed), ball.center.unsqueeze(1), ball.center.unsqueeze(1) + eps.unsqueeze(1) / 4], dim=1)
        if p == math.inf:
            ends = torch.cat([ball.box().lower, ball.box().upper]).unsqueeze(0)
            x = torch.cat([x, ends, torch.nextafter(ends, ball.center.expand_as(ends))], dim=1)
        exact_says += [is_member(frac(point), ball) for point in x[0]]
        ours_says += ball.contains(x)[0].tolist()
    assert not any(ours and not exact for ours, exact in zip(ours_says, exact_says, strict=True))
    assert 10 < sum(exact_says) < len(exact_says) - 10
    assert ours_says == exact_says if p == math.inf else sum(ours_says) >= 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("scale, eps", [(0.5, 0.1), (100.0, 0.5), (100.0, 1e-3), (0.5, 30.0)])
def test_projected_points_are_members(p: float, dtype: torch.dtype, clipped: bool, scale: float, eps: float) -> None:
    for features in (4, 900):
        center = (torch.rand(2, features, generator=torch.Generator().manual_seed(2)) * scale).double()
        radius = torch.full((features,), eps, dtype=torch.float64)
        radius[::3] = 0.0
        radius[1::3] *= 0.25
        ball = LpBall(center, radius, p, (0.0, scale) if clipped else None)
        away = center.unsqueeze(1) + random(2, 20, features) * eps * torch.logspace(-3, 3, 20).reshape(1, -1, 1)
        projected = ball.project(away.to(dtype))
        assert projected.dtype == dtype
        assert bool(ball.contains(projected).all())
        assert all(is_member(frac(x), LpBall(center[:1], radius, p, ball.domain and (0.0, scale))) for x in projected[0, -2:])


def test_projection_where_the_type_lacks_the_centre() -> None:
    """0.1 is no float32: points still land inside where the ball has room for that, fixed features cannot."""
    center = torch.full((1, 50), 0.1, dtype=torch.float64)
    for p in NORMS:
        ball = LpBall(center, 1e-3, p)
        assert bool(ball.contains(ball.project(random(1, 20, 50).float())).all())
    fixed = LpBall(center, 0.0)
    assert torch.equal(fixed.project(random(1, 2, 50)), center.unsqueeze(1).expand(1, 2, 50))
    assert not bool(fixed.contains(fixed.project(random(1, 2, 50).float())).any())


@pytest.mark.parametrize("p", NORMS)
def test_projection_moves_no_further_than_it_must(p: float) -> None:
    center = random(1, 6)
    for domain in (None, (center - 0.2, center + 0.3)):
        ball = LpBall(center, 0.5, p, domain)
        inside = ball.sample(40, torch.Generator().manual_seed(0))
        near = center.unsqueeze(1) + 0.99 * (inside - center.unsqueeze(1))
        assert torch.allclose(ball.project(near), near, atol=1e-12)
    ball, outside = LpBall(center, 0.5, p), center.unsqueeze(1) + random(1, 40, 6, seed=4).sign() * 3
    distance = torch.linalg.vector_norm((ball.project(outside) - center) / 0.5, ord=p, dim=-1)
    assert torch.allclose(distance, torch.ones_like(distance), atol=1e-6)
    assert torch.equal(Box(center - 1, center + 2).project(outside), torch.clamp(outside, center - 1, center + 2))


def test_projection_onto_the_l1_ball_is_euclidean() -> None:
    """(3, 1, 0) and (2, 2, 2) onto |x|_1 <= 2: soft thresholding by 1 and by 4/3."""
    ball = LpBall(torch.zeros(1, 3), 2.0, 1.0)
    found = ball.project(torch.tensor([[[3.0, 1.0, 0.0], [2.0, 2.0, -2.0], [0.5, -0.5, 0.0]]], dtype=torch.float64))
    wanted = torch.tensor([[[2.0, 0.0, 0.0], [2 / 3, 2 / 3, -2 / 3], [0.5, -0.5, 0.0]]], dtype=torch.float64)
    assert torch.allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize("p", [*NORMS, None])
def test_samples_are_members_and_fill_the_region(p: float | None) -> None:
    center = random(3, 2, 2)
    eps = torch.full((2, 2), 0.5, dtype=torch.float64)
    eps[0, 0] = 0.0
    region: Region = Box(center - eps, center + eps) if p is None else LpBall(center, eps, p, (center - 0.1, center + 9.0))
    x = region.sample(400, torch.Generator().manual_seed(1))
    assert x.shape == (3, 400, 2, 2)
    assert bool(region.contains(x).all())
    assert bool((x[:, :, 0, 0] == center[:, 0, 0].unsqueeze(1)).all())
    box = region.box()
    spread = (x.amax(1) - x.amin(1)) / (box.upper - box.lower).clamp_min(1e-300)
    assert float(spread.flatten(1)[:, 1:].min()) > 0.5
    again = region.sample(400, torch.Generator().manual_seed(1))
    assert torch.equal(x, again)


# ------------------------------------------------------------------------------------------------------------------------- plumbing


@pytest.mark.parametrize("p", [*NORMS, None])
def test_select_takes_some_sets(p: float | None) -> None:
    center, eps = random(4, 3), random(4, 3, seed=1).abs()
    region: Region = Box(center - eps, center + eps) if p is None else LpBall(center, eps, p, (center - eps / 2, center + eps / 2))
    rows, whole = random(4, 2, 3, seed=2), None
    whole = region.decrease(rows)
    for indices in (torch.tensor([3, 1]), slice(1, 3)):
        some = region.select(indices)
        assert (some.batch, some.shape) == (2, (3,))
        assert torch.equal(some.origin, region.origin[indices])
        assert torch.allclose(some.decrease(rows[indices]), whole[indices], rtol=1e-12)


def test_an_eps_for_every_set_or_feature() -> None:
    center = torch.zeros(2, 3, 4, dtype=torch.float64)
    assert LpBall(center, torch.tensor([0.1, 0.2])).box().upper.amax((1, 2)).tolist() == pytest.approx([0.1, 0.2])
    assert LpBall(center, torch.arange(12.0).reshape(3, 4)).box().upper[1].flatten().tolist() == list(range(12))
    per_set = LpBall(center, 1.0, domain=(torch.tensor([-0.5, -2.0]), 0.25)).box()
    assert (per_set.lower.amin((1, 2)).tolist(), per_set.upper.amax().item()) == ([-0.5, -1.0], 0.25)


def test_float32_data_is_read_exactly() -> None:
    ball = LpBall(torch.tensor([[0.1]]), torch.tensor([[0.2]]))
    assert ball.center.item() == float(torch.tensor(0.1)) != 0.1
    assert torch.as_tensor(ball.eps).item() == float(torch.tensor(0.2))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LpBall(torch.zeros(1, 2), -0.1), "not negative, got a minimum of -0.1"),
        (lambda: LpBall(torch.zeros(1, 2), math.nan), "finite and not negative"),
        (lambda: LpBall(torch.zeros(1, 2), math.inf), "finite and not negative"),
        (lambda: LpBall(torch.zeros(1, 2), 0.1, 3.0), "norm 3.0 is not supported: use 1, 2 or inf"),
        (lambda: LpBall(torch.zeros(1, 2), 0.1, math.nan), "norm nan is not supported"),
        (lambda: LpBall(torch.tensor([[math.nan]]), 0.1), "centre of a ball must be finite"),
        (lambda: LpBall(torch.tensor([[math.inf]]), 0.1), "centre of a ball must be finite"),
        (lambda: LpBall(torch.tensor([[2.0]]), 0.1, domain=(0.0, 1.0)), "must lie in its domain"),
        (lambda: LpBall(torch.tensor([[0.5]]), 0.1, domain=(math.nan, 1.0)), "must lie in its domain"),
        (lambda: LpBall(torch.tensor([[0.5]]), 0.1, domain=(1.0, 0.0)), "must lie in its domain"),
        (lambda: LpBall(torch.zeros(1, 2), torch.ones(3)), r"shape \(3,\) does not fit regions of shape \(1, 2\)"),
        (lambda: Box(torch.zeros(1, 2), torch.ones(1, 3)), r"lower has shape \(1, 2\), upper \(1, 3\)"),
        (lambda: Box(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.5]])), "input 1 has lower bound 1.0 above its upper bound 0.5"),
        (lambda: Box(torch.tensor([[-math.inf]]), torch.ones(1, 1)), "finite bounds for every input"),
        (lambda: Box(torch.zeros(1, 1), torch.tensor([[math.nan]])), "finite bounds for every input"),
    ],
)
def test_errors_name_what_is_wrong(make: object, message: str) -> None:
    with pytest.raises(RegionError, match=message):
        make()  # type: ignore[operator]
