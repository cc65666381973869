"""Sigmoid and tanh: the formulas of the thesis, CROWN's tangents, and how accurate the kernels are."""

from __future__ import annotations

import math

import flint
import pytest
import torch
from flint import arb, fmpq

from bounds.errors import NumericsError
from bounds.interval import Interval
from bounds.ops.base import Slopes
from bounds.ops.smooth import KERNEL_ULPS, Sigmoid, Smooth, Tanh

OPS: list[Smooth] = [Sigmoid(), Tanh()]
CHOICES: list[Slopes] = ["adaptive", "parallel"]
pytestmark = pytest.mark.parametrize("op", OPS, ids=lambda op: type(op).__name__)


def interval(*pairs: tuple[float, float]) -> Interval:
    ends = torch.tensor(pairs, dtype=torch.float64)
    return Interval(ends[:, 0].unsqueeze(0), ends[:, 1].unsqueeze(0))


def f(op: Smooth, x: float) -> float:
    return math.tanh(x) if isinstance(op, Tanh) else 1 / (1 + math.exp(-x))


def slope_at(op: Smooth, x: float) -> float:
    return 1 - math.tanh(x) ** 2 if isinstance(op, Tanh) else f(op, x) * (1 - f(op, x))


def table_3_1(op: Smooth, d: float) -> tuple[float, float]:
    """t1 < 0 < t2 as printed."""
    if isinstance(op, Tanh):
        return tuple(math.log((-(d - 2) + sign * 2 * math.sqrt(1 - d)) / d) / 2 for sign in (-1, 1))  # type: ignore[return-value]
    return tuple(-math.log((-(2 * d - 1) - sign * math.sqrt(1 - 4 * d)) / (2 * d)) for sign in (-1, 1))  # type: ignore[return-value]


def test_inverse_derivative_is_table_3_1(op: Smooth) -> None:
    top = slope_at(op, 0.0)
    d = torch.linspace(0.01, 0.99, 50, dtype=torch.float64) * top
    ours = op.inverse_derivative(d)
    printed = [table_3_1(op, float(v)) for v in d]
    assert ours.tolist() == pytest.approx([t2 for _, t2 in printed], rel=1e-9)
    assert (-ours).tolist() == pytest.approx([t1 for t1, _ in printed], rel=1e-9)
    assert torch.allclose(op.derivative(ours), d, rtol=1e-13)
    edge = op.inverse_derivative(torch.tensor([-1.0, 0.0, top, 2 * top], dtype=torch.float64))
    assert edge.tolist() == [math.inf, math.inf, 0.0, 0.0]


@pytest.mark.parametrize("low, high", [(-1.0, 2.0), (-3.0, 0.5), (-0.2, 0.1), (-6.0, 6.0)])
def test_parallel_planes_are_thesis_3_5(op: Smooth, low: float, high: float) -> None:
    """Two tangents of the secant's slope, where the tangent points lie inside the interval; else through an end."""
    r = op.relax(interval((low, high)), "parallel")
    d = (f(op, high) - f(op, low)) / (high - low)
    t1, t2 = table_3_1(op, d)
    above = f(op, t2) - d * t2 if t2 < high else f(op, high) - d * high
    below = f(op, t1) - d * t1 if t1 > low else f(op, low) - d * low
    assert r.lower_slope.item() == r.upper_slope.item() == pytest.approx(d, rel=1e-14)
    assert r.upper_intercept.item() == pytest.approx(above, abs=1e-14)
    assert r.lower_intercept.item() == pytest.approx(below, abs=1e-14)


@pytest.mark.parametrize("low, high", [(0.5, 2.0), (-4.0, -1.0)])
def test_one_sided_intervals(op: Smooth, low: float, high: float) -> None:
    """Chord and midpoint tangent (adaptive); chord and parallel tangent (parallel)."""
    chord = (f(op, high) - f(op, low)) / (high - low)
    tangent = slope_at(op, (low + high) / 2)
    adaptive, parallel = (op.relax(interval((low, high)), slopes) for slopes in CHOICES)
    lower, upper = (chord, tangent) if low > 0 else (tangent, chord)
    assert adaptive.lower_slope.item() == pytest.approx(lower, rel=1e-12)
    assert adaptive.upper_slope.item() == pytest.approx(upper, rel=1e-12)
    through_ends = f(op, low) - chord * low
    own, other = (parallel.lower_intercept, parallel.upper_intercept) if low > 0 else (parallel.upper_intercept, parallel.lower_intercept)
    assert own.item() == pytest.approx(through_ends, abs=1e-14)
    assert abs(other.item() - through_ends) > 0.01


@pytest.mark.parametrize("low, high", [(-1.0, 5.0), (-2.0, 9.0), (-0.3, 1.0), (-1e-3, 20.0), (-3.0, 3.1)])
def test_around_zero_the_upper_plane_leans_to_the_upper_end(op: Smooth, low: float, high: float) -> None:
    """Where the tangent from the lower end touches early, the plane touches at 0.7 of the way, below the tangent there."""
    point = low + 0.7 * (high - low)
    touch = bisect(op, low, high)
    assert point > touch
    r = op.relax(interval((low, high), (-high, -low)), "adaptive")
    assert r.upper_slope[0, 0].item() == pytest.approx(slope_at(op, point), rel=1e-9)
    assert r.upper_slope[0, 0] * point + r.upper_intercept[0, 0] == pytest.approx(f(op, point), abs=1e-12)
    assert r.upper_slope[0, 0] * low + r.upper_intercept[0, 0] > f(op, low)
    assert r.lower_slope[0, 1].item() == pytest.approx(r.upper_slope[0, 0].item(), rel=1e-9)  # the mirrored interval


@pytest.mark.parametrize("low, high", [(-5.0, 2.0), (-2.0, 1.1), (-9.0, 3.1), (-0.3, 0.1)])
def test_around_zero_the_upper_plane_is_the_tangent_from_the_lower_end(op: Smooth, low: float, high: float) -> None:
    touch = bisect(op, low, high)
    assert low + 0.7 * (high - low) < touch
    r = op.relax(interval((low, high), (-high, -low)), "adaptive")
    expected = (f(op, touch) - f(op, low)) / (touch - low)
    assert r.upper_slope[0, 0].item() == pytest.approx(expected, rel=1e-6 if high > 1e-3 else 1e-4)
    assert r.upper_slope[0, 0] * low + r.upper_intercept[0, 0] == pytest.approx(f(op, low), abs=1e-12)
    assert r.lower_slope[0, 1].item() == pytest.approx(r.upper_slope[0, 0].item(), rel=1e-6)  # the mirrored interval


def bisect(op: Smooth, low: float, high: float) -> float:
    """The t in [0, high] at which the line from (low, act(low)) is a tangent, or high."""
    left, right = 0.0, high
    for _ in range(200):
        t = (left + right) / 2
        left, right = (t, right) if slope_at(op, t) * (t - low) > f(op, t) - f(op, low) else (left, t)
    return left


def test_the_chord_serves_where_the_tangent_touches_outside(op: Smooth) -> None:
    r = op.relax(interval((-5.0, 0.5)), "adaptive")
    assert r.upper_slope.item() == pytest.approx((f(op, 0.5) - f(op, -5.0)) / 5.5, rel=1e-13)
    assert 0.5 * r.upper_slope.item() + r.upper_intercept.item() == pytest.approx(f(op, 0.5), abs=1e-13)


def test_adaptive_is_no_looser_than_the_interval_at_the_midpoint(op: Smooth) -> None:
    x = interval((-2.0, 1.0), (0.1, 0.2), (-9.0, -1.0), (3.0, 3.0), (-1e-12, 1e-12))
    r, y = op.relax(x, "adaptive"), op.interval(x)
    middle = (x.lower + x.upper) / 2
    assert bool((r.upper_slope * middle + r.upper_intercept <= y.upper + 1e-15).all())
    assert bool((r.lower_slope * middle + r.lower_intercept >= y.lower - 1e-15).all())


@pytest.mark.parametrize("slopes", CHOICES)
def test_slopes_of_narrow_intervals_do_not_suffer_from_cancellation(op: Smooth, slopes: Slopes) -> None:
    x = interval((1.0, 1.0 + 1e-15), (-1e-200, 1e-200), (0.3, 0.3), (-7.0, -7.0 + 1e-14))
    r = op.relax(x, slopes)
    wanted = [slope_at(op, p) for p in (1.0, 0.0, 0.3, -7.0)]
    assert r.lower_slope.squeeze().tolist() == pytest.approx(wanted, rel=1e-12)
    assert r.upper_slope.squeeze().tolist() == pytest.approx(wanted, rel=1e-12)
    assert bool((r.upper_intercept - r.lower_intercept < 1e-13).all())


def test_interval_stays_in_the_range(op: Smooth) -> None:
    y = op.interval(interval((-1e300, 1e300), (-800.0, 800.0), (0.0, 0.0), (-1e-320, 1e-320)))
    assert bool((y.lower >= op.low).all())
    assert bool((y.upper <= op.high).all())
    assert y.lower[0, 2].item() == y.upper[0, 2].item() == op.centre


def test_unstable_unless_a_point(op: Smooth) -> None:
    assert op.unstable(interval((0.0, 0.0), (0.0, 1e-300), (5.0, 6.0))).tolist() == [[False, True, True]]


def test_bounds_that_are_not_numbers_are_refused(op: Smooth) -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(NumericsError, match=f"{type(op).__name__} met a NaN or infinite bound"):
            op.relax(interval((0.0, bad)))


def grid() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    spread = torch.randn(3000, generator=rng, dtype=torch.float64) * 10.0 ** torch.linspace(-300, 2.8, 3000, dtype=torch.float64)
    return torch.cat(
        [spread, torch.randn(5000, generator=rng, dtype=torch.float64) * 4, torch.linspace(-745, 745, 1000, dtype=torch.float64)]
    )


def true_value(op: Smooth, x: float) -> arb:
    p = arb(fmpq(*x.as_integer_ratio()))
    return p.tanh() if isinstance(op, Tanh) else 1 / (1 + (-p).exp())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_kernels_are_as_accurate_as_assumed(op: Smooth, device: str) -> None:
    """KERNEL_ULPS, measured; the derivative has twice that and four roundings."""
    flint.ctx.prec = 160
    x = grid().to(device)
    tiny = fmpq(*torch.finfo(torch.float64).smallest_normal.as_integer_ratio())
    for point, value, derivative in zip(x.tolist(), op.value(x).tolist(), op.derivative(x).tolist(), strict=True):
        real = true_value(op, point)
        assert abs(real - arb(value)) < KERNEL_ULPS * 2.0**-52 * abs(real) + arb(tiny)
        scale = 2 if isinstance(op, Tanh) else 1
        half = 1 / (1 + (-arb(scale) * arb(point)).exp())
        steepness = scale * scale * half / (1 + (arb(scale) * arb(point)).exp())
        assert abs(steepness - arb(derivative)) < (2 * KERNEL_ULPS + 2) * 2.0**-52 * steepness + 2 * arb(tiny)


def test_float32_kernels_stay_within_their_allowance(op: Smooth) -> None:
    x = torch.cat([torch.linspace(-30, 30, 100_001), torch.linspace(-1e-3, 1e-3, 1001)])
    error = (op.forward(x).double() - op.forward(x.double())).abs()
    allowance = op.float_error(Interval(x.unsqueeze(0), x.unsqueeze(0)))
    assert bool((error <= allowance).all())
