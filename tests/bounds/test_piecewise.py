"""Piecewise-linear activations: values worked out by hand, shapes, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bounds.errors import NumericsError, UnsupportedOpError
from bounds.interval import Interval
from bounds.ops.base import Slopes
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, MaxReduce, Piecewise, PRelu, Relu

CHOICES: list[Slopes] = ["adaptive", "parallel"]


def interval(*pairs: tuple[float, float], dtype: torch.dtype = torch.float64) -> Interval:
    """One batch of scalar nodes."""
    ends = torch.tensor(pairs, dtype=dtype)
    return Interval(ends[:, 0].unsqueeze(0), ends[:, 1].unsqueeze(0))


def planes(op: Piecewise, low: float, high: float, slopes: Slopes) -> list[float]:
    r = op.relax(interval((low, high)), slopes)
    return [float(t) for t in (r.lower_slope, r.lower_intercept, r.upper_slope, r.upper_intercept)]


@pytest.mark.parametrize(
    "op, low, high, slopes, expected",
    [
        (Relu(), -1.0, 3.0, "adaptive", [1, 0, 0.75, 0.75]),
        (Relu(), -3.0, 1.0, "adaptive", [0, 0, 0.25, 0.75]),
        (Relu(), -1.0, 1.0, "adaptive", [0, 0, 0.5, 0.5]),
        (Relu(), -1.0, 3.0, "parallel", [0.75, 0, 0.75, 0.75]),
        (Relu(), 0.0, 3.0, "parallel", [1, 0, 1, 0]),
        (Relu(), -3.0, 0.0, "adaptive", [0, 0, 0, 0]),
        (Relu(), 0.0, 0.0, "parallel", [1, 0, 1, 0]),
        (Abs(), -1.0, 3.0, "adaptive", [1, 0, 0.5, 1.5]),
        (Abs(), -3.0, 1.0, "adaptive", [-1, 0, -0.5, 1.5]),
        (Abs(), -1.0, 3.0, "parallel", [0.5, 0, 0.5, 1.5]),
        (Abs(), -2.0, -1.0, "parallel", [-1, 0, -1, 0]),
        (LeakyRelu(0.5), -2.0, 2.0, "parallel", [0.75, 0, 0.75, 0.5]),
        (LeakyRelu(0.5), -1.0, 3.0, "adaptive", [1, 0, 0.875, 0.375]),
        (LeakyRelu(2.0), -1.0, 3.0, "adaptive", [1.25, -0.75, 1, 0]),
        (Clip(0.0, 6.0), -2.0, 4.0, "adaptive", [1, 0, 2 / 3, 4 / 3]),
        (Clip(0.0, 6.0), 2.0, 10.0, "adaptive", [0.5, 1, 1, 0]),
        (Clip(0.0, 6.0), 4.0, 12.0, "adaptive", [0.25, 3, 0, 6]),
        (Clip(0.0, 6.0), -4.0, 12.0, "adaptive", [0.5, 0, 0.6, 2.4]),
        (Clip(0.0, 6.0), 7.0, 12.0, "parallel", [0, 6, 0, 6]),
        (Clip(-math.inf, 1.0), 0.0, 4.0, "parallel", [0.25, 0, 0.25, 0.75]),
        (Clip(0.0, math.inf), -1.0, 3.0, "parallel", [0.75, 0, 0.75, 0.75]),
        (Clip(), -1.0, 3.0, "adaptive", [1, 0, 1, 0]),
        (Clip(2.0, 1.0), -1.0, 3.0, "adaptive", [0, 1, 0, 1]),
    ],
)
def test_planes_by_hand(op: Piecewise, low: float, high: float, slopes: Slopes, expected: list[float]) -> None:
    assert planes(op, low, high, slopes) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slopes", CHOICES)
def test_relu_equals_the_derived_relaxation(dtype: torch.dtype, slopes: Slopes) -> None:
    rng = torch.Generator().manual_seed(0)
    lower = torch.randn(7, 50, generator=rng, dtype=dtype) * 10.0 ** torch.randint(-9, 9, (7, 50), generator=rng)
    x = Interval(lower, lower + torch.rand(7, 50, generator=rng, dtype=dtype) * lower.abs() * 3)
    fast, derived = Relu().relax(x, slopes), Piecewise.fit(Relu(), x, *Piecewise.usual_slopes(Relu(), x, slopes))
    assert torch.equal(fast.lower_slope, derived.lower_slope)
    assert torch.equal(fast.lower_intercept, derived.lower_intercept)
    assert torch.equal(fast.upper_slope, derived.upper_slope)
    assert torch.equal(fast.upper_intercept, derived.upper_intercept)
    assert torch.equal(Relu().unstable(x), Piecewise.unstable(Relu(), x))
    assert torch.equal(Relu().interval(x).lower, Piecewise.interval(Relu(), x).lower)
    assert torch.equal(Relu().interval(x).upper, Piecewise.interval(Relu(), x).upper)
    assert torch.equal(Relu().float_error(x), Piecewise.float_error(Relu(), x))
    assert torch.equal(Relu().forward(lower), Piecewise.forward(Relu(), lower))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu_fits_any_slopes_as_derived(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(1)
    lower = torch.randn(7, 50, generator=rng, dtype=dtype)
    x = Interval(lower, lower + torch.rand(7, 50, generator=rng, dtype=dtype) * 3)
    slopes = [torch.rand(4, 7, 50, generator=rng, dtype=dtype) * 1.5 - 0.25 for _ in range(2)]
    fast, derived = Relu().fit(x, *slopes), Piecewise.fit(Relu(), x, *slopes)
    tiny = 1e-6 if dtype == torch.float32 else 1e-14
    assert torch.allclose(fast.lower_intercept, derived.lower_intercept, rtol=0, atol=tiny)
    assert torch.allclose(fast.upper_intercept, derived.upper_intercept, rtol=0, atol=tiny)
    points = x.lower.double() + (x.upper.double() - x.lower.double()) * torch.rand(100, 1, 7, 50, generator=rng, dtype=torch.float64)
    for side, slope, intercept in ((1, slopes[1], fast.upper_intercept), (-1, slopes[0], fast.lower_intercept)):
        assert bool((side * (slope.double() * points + intercept.double() - points.clamp(min=0)) >= -1e-15).all())
    for choice in CHOICES:
        assert all(
            torch.equal(a, b) for a, b in zip(Relu().usual_slopes(x, choice), Piecewise.usual_slopes(Relu(), x, choice), strict=True)
        )


def test_interval_of_a_function_that_is_not_monotone() -> None:
    y = Abs().interval(interval((-1.0, 3.0), (-4.0, -2.0), (0.0, 0.0)))
    assert y.lower.tolist() == [[0.0, 2.0, 0.0]]
    assert y.upper.tolist() == [[3.0, 4.0, 0.0]]
    bent = LeakyRelu(-1.0).interval(interval((-1.0, 3.0)))
    assert bent.lower.item() == 0.0
    assert bent.upper.item() == 3.0


def test_slope_per_channel() -> None:
    op = PRelu(torch.tensor([0.5, 1.0, -1.0]).reshape(3, 1, 1))
    x = Interval(torch.full((2, 1, 3, 2, 2), -1.0), torch.full((2, 1, 3, 2, 2), 1.0))
    r = op.relax(x, "parallel")
    assert r.upper_slope.shape == (2, 1, 3, 2, 2)
    assert r.upper_slope[0, 0, :, 0, 0].tolist() == [0.75, 1.0, 0.0]
    assert r.upper_intercept[1, 0, :, 1, 1].tolist() == pytest.approx([0.25, 0.0, 1.0])
    assert op.unstable(x)[0, 0, :, 0, 0].tolist() == [True, False, True]  # a slope of 1 bends nothing
    assert op.forward(torch.full((2, 1, 3, 2, 2), -2.0))[0, 0, :, 0, 0].tolist() == [-1.0, -2.0, 2.0]
    assert op.to(torch.float64).slope.dtype == torch.float64


def test_unstable_means_a_knot_strictly_inside() -> None:
    x = interval((-1.0, 0.0), (0.0, 1.0), (-1.0, 1.0), (5.0, 7.0), (6.0, 7.0))
    assert Relu().unstable(x).tolist() == [[False, False, True, False, False]]
    assert Clip(0.0, 6.0).unstable(x).tolist() == [[False, False, True, True, False]]


def test_a_knot_between_two_floats_counts() -> None:
    third = torch.tensor(1 / 3, dtype=torch.float32)
    near = torch.nextafter(third, torch.tensor(0.0))
    x = Interval(near.reshape(1, 1), third.reshape(1, 1))
    assert Clip(1 / 3, 1.0).unstable(x).item() == (near.item() < 1 / 3 < third.item())
    assert Clip(1 / 3, 1.0).unstable(x).item()


@pytest.mark.parametrize("slopes", CHOICES)
def test_bounds_that_crossed_are_read_in_order(slopes: Slopes) -> None:
    crossed, ordered = interval((1e-9, -1e-9)), interval((-1e-9, 1e-9))
    for op in (Relu(), Abs(), Clip(0.0, 6.0)):
        a, b = op.relax(crossed, slopes), op.relax(ordered, slopes)
        assert torch.equal(a.lower_slope, b.lower_slope)
        assert torch.equal(a.upper_intercept, b.upper_intercept)


@pytest.mark.parametrize("op", [Relu(), Abs(), Clip(0.0, 6.0), LeakyRelu(0.1), MaxReduce()])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bounds_that_are_not_numbers_are_refused(op: Piecewise | MaxReduce, bad: float) -> None:
    with pytest.raises(NumericsError, match=f"{type(op).__name__} met a NaN or infinite bound"):
        op.relax(interval((0.0, bad)))
    with pytest.raises(NumericsError, match="infinite"):
        op.relax(interval((-bad, 0.0)))


@pytest.mark.parametrize("low, high", [(math.nan, 1.0), (0.0, math.nan), (math.inf, 1.0), (0.0, -math.inf)])
def test_clip_limits_that_mean_nothing_are_refused(low: float, high: float) -> None:
    with pytest.raises(UnsupportedOpError, match="Clip limits"):
        Clip(low, high)


def test_clip_with_tensors_some_of_them_infinite() -> None:
    op = Clip(torch.tensor([0.0, -math.inf]), torch.tensor([math.inf, 1.0]))
    x = Interval(torch.tensor([[-2.0, -2.0]]), torch.tensor([[2.0, 2.0]]))
    r = op.relax(x, "parallel")
    assert r.upper_slope.tolist() == [[0.5, 0.75]]
    assert r.upper_intercept[0].tolist() == pytest.approx([1.0, 0.25])
    assert op.interval(x).lower.tolist() == [[0.0, -2.0]]
    assert op.interval(x).upper.tolist() == [[2.0, 1.0]]
    assert op.forward(torch.tensor([[-5.0, 5.0]])).tolist() == [[0.0, 1.0]]


def test_float_error_counts_the_roundings() -> None:
    x = interval((-2.0, 4.0))
    u = 2.0**-24
    assert Relu().float_error(x).item() == Abs().float_error(x).item() == Clip(0.0, 0.5).float_error(x).item() == 0.0
    assert 4 * 0.5 * u <= LeakyRelu(0.5).float_error(x).item() <= 1.2 * 4 * 0.5 * u
    assert LeakyRelu(0.1).float_error(x).item() >= 4 * 0.1 * u  # and 0.1 is not a float32


# ------------------------------------------------------------------------------------------------------------------------- maximum


def window(lower: list[float], upper: list[float]) -> Interval:
    return Interval(torch.tensor([[lower]], dtype=torch.float64), torch.tensor([[upper]], dtype=torch.float64))


def values(*tensors: Tensor) -> list[object]:
    return [t.squeeze().tolist() for t in tensors]


def test_maximum_planes_by_hand() -> None:
    r = MaxReduce().relax(window([0.0, 1.0, -5.0], [4.0, 2.0, 0.0]))
    assert r.lower_slope.shape == (1, 1, 3)
    assert r.lower_intercept.shape == r.upper_intercept.shape == (1, 1)
    assert values(r.lower_slope, r.lower_intercept) == [[0.0, 1.0, 0.0], 0.0]
    assert values(r.upper_slope) == [[0.5, 0.0, 0.0]]
    assert r.upper_intercept.item() == pytest.approx(2.0, abs=1e-14)


def test_maximum_of_a_window_that_one_tap_dominates_is_exact() -> None:
    x = window([2.0, 1.0, -5.0], [4.0, 2.0, 0.0])
    r = MaxReduce().relax(x)
    assert values(r.lower_slope, r.upper_slope, r.lower_intercept, r.upper_intercept) == [[1, 0, 0], [1, 0, 0], 0, 0]
    assert not MaxReduce().unstable(x).any()


def test_maximum_breaks_ties_towards_the_better_tap() -> None:
    assert values(MaxReduce().relax(window([0.0, 0.0], [1.0, 2.0])).lower_slope) == [[0, 1]]  # equal lower: larger upper
    r = MaxReduce().relax(window([0.0, 1.0, -1.0], [2.0, 2.0, 2.0]))
    assert values(r.upper_slope, r.upper_intercept) == [[0, 0, 0], 2.0]


def test_maximum_over_one_tap_is_the_tap() -> None:
    x = window([-1.0], [1.0])
    r = MaxReduce().relax(x)
    assert values(r.lower_slope, r.upper_slope, r.lower_intercept, r.upper_intercept) == [1, 1, 0, 0]
    assert not MaxReduce().unstable(x).any()


def test_maximum_unstable_taps_are_the_contenders() -> None:
    assert values(MaxReduce().unstable(window([0.0, 1.0, -5.0], [4.0, 2.0, 0.0]))) == [[True, True, False]]


def test_maximum_forward_interval_and_spread() -> None:
    x = window([0.0, 1.0, -5.0], [4.0, 2.0, 0.0])
    y = MaxReduce().interval(x)
    assert values(y.lower, y.upper) == [1.0, 4.0]
    assert MaxReduce().forward(torch.tensor([[[1.0, 3.0, 2.0]]])).tolist() == [[3.0]]
    A = torch.randn(2, 5, 3, 4)
    spread = MaxReduce().spread(A)
    assert spread.data_ptr() == A.data_ptr()
    assert (spread * torch.ones(3, 4, 9)).shape == (2, 5, 3, 4, 9)
