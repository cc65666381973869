"""Piecewise-linear activations.

An element-wise one writes only its data (`pieces`): knots, slopes and intercepts. Forward, interval, relaxation and the exact MILP encoding
derive from them. The maximum over an axis (`MaxReduce`) is the one that is not element-wise.

Numerics: planes are computed in float64 whatever the working type. A slope is chosen, rounded to the working type and from then on fixed;
for a piecewise-linear function the best intercept for a fixed slope is attained at an end or a knot, for *any* slope, so rounding the
slope never costs validity.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import NumericsError, UnsupportedOpError
from bounds.interval import Interval
from bounds.linear import Relaxation
from bounds.ops.base import Activation, Slopes

Values = Sequence[float | Tensor]


@dataclass(frozen=True, eq=False)
class Piecewise(Activation):
    """Element-wise, continuous and piecewise linear: act(x) = slopes[i] x + intercepts[i] for knots[i-1] <= x <= knots[i]."""

    exact_in_milp = True
    free = True
    piecewise = True

    @abstractmethod
    def pieces(self) -> tuple[Values, Values, Values]:
        """m ascending knots, m + 1 slopes and m + 1 intercepts: numbers, or tensors broadcastable to the node's shape.

        A knot may be infinite: the piece beyond it is never used.
        """

    @property
    def convex(self) -> bool:  # type: ignore[override]
        """Whether the slopes never fall from one piece to the next."""
        return _ascending(self.pieces()[1])

    @property
    def concave(self) -> bool:  # type: ignore[override]
        """Whether the slopes never rise from one piece to the next."""
        return _ascending(self.pieces()[1][::-1])

    def forward(self, *xs: Tensor) -> Tensor:
        (x,) = xs
        knots, slopes, intercepts = self.pieces()
        y = slopes[0] * x + intercepts[0]
        for knot, slope, intercept in zip(knots, slopes[1:], intercepts[1:], strict=True):
            y = torch.where(x > knot, slope * x + intercept, y)
        return y

    def interval(self, *xs: Interval) -> Interval:
        """Exact up to one outward rounding, monotone or not: the extremes are attained at an end or a knot."""
        (x,) = xs
        lower, upper = finite_ends(x, self)
        low, high = _Curve(self, lower, upper).range_minus(torch.zeros_like(lower))
        return Interval(rounding.round_down(low, x.lower.dtype), rounding.round_up(high, x.lower.dtype))

    def unstable(self, x: Interval) -> Tensor:
        """Where a knot at which the slope changes lies strictly inside the interval."""
        knots, slopes, _ = (_doubles(values, x.lower) for values in self.pieces())
        lower, upper = x.lower.double(), x.upper.double()  # a knot need not be a number of the working type
        mask = torch.zeros_like(lower, dtype=torch.bool)
        for knot, (left, right) in zip(knots, pairwise(slopes), strict=True):
            mask = mask | ((lower < knot) & (upper > knot) & (left != right))
        return mask

    def relax(self, x: Interval, slopes: Slopes = "adaptive") -> Relaxation:
        """Planes that enclose the activation on [lower, upper]; bounds that crossed by rounding are read as [upper, lower].

        A bound inside one piece gets that piece, exactly. Raises NumericsError where a bound is NaN or infinite.
        Property: sound; with "adaptive" the tightest over the midpoint, with "parallel" the smallest gap for the secant's slope.
        """
        return self.fit(x, *self.usual_slopes(x, slopes))

    def usual_slopes(self, x: Interval, slopes: Slopes = "adaptive") -> tuple[Tensor, Tensor]:
        """Lower and upper: the hull's over the midpoint, or twice the secant's."""
        curve = _Curve(self, *finite_ends(x, self))
        lower, upper = (curve.secant(),) * 2 if slopes == "parallel" else curve.hull_slopes()
        return lower.to(x.lower.dtype), upper.to(x.lower.dtype)

    def fit(self, x: Interval, lower_slope: Tensor, upper_slope: Tensor) -> Relaxation:
        """See `Activation.fit`. Property: sound."""
        return _Curve(self, *finite_ends(x, self)).fit(lower_slope, upper_slope)

    def slope_range(self, x: Interval) -> tuple[Tensor, Tensor]:
        """The smallest and largest slope of the pieces that the interval touches."""
        dtype = x.lower.dtype
        curve = _Curve(self, *finite_ends(x, self))
        met = [slope for slope, _ in (*curve.right[:-1], *curve.left[1:])]
        return functools.reduce(torch.minimum, met).to(dtype), functools.reduce(torch.maximum, met).to(dtype)

    def touching(self, x: Interval, slope: Tensor, *, below: bool) -> tuple[Tensor, ...]:
        """The knots, moved to the nearer end where they lie outside, and the ends unless convexity rules them out."""
        knots = (torch.as_tensor(knot, dtype=x.lower.dtype, device=x.lower.device) for knot in self.pieces()[0])
        inner = tuple(torch.minimum(torch.maximum(knot, x.lower), x.upper) for knot in knots)
        return inner if inner and (self.convex if below else self.concave) else (x.lower, *inner, x.upper)

    def split_point(self, x: Interval) -> Tensor:
        """The knot nearest to the middle, rounded to the working type; only knots strictly inside count."""
        middle = (x.lower + x.upper) / 2
        best = torch.where(torch.zeros_like(middle, dtype=torch.bool), middle, math.inf)
        for value in self.pieces()[0]:
            knot = torch.as_tensor(value, dtype=middle.dtype, device=middle.device).expand_as(middle)
            nearer = (x.lower < knot) & (knot < x.upper) & ((knot - middle).abs() < (best - middle).abs())
            best = torch.where(nearer, knot, best)
        return torch.where(torch.isfinite(best), best, middle)

    def float_error(self, x: Interval) -> Tensor:
        """One rounding of slope * x unless the slope is 0 or +-1, one of the addition unless a term is zero, and the constants' own."""
        magnitude, error = x.magnitude.double(), torch.zeros_like(x.lower, dtype=torch.float64)
        _, slopes, intercepts = (_doubles(values, x.lower) for values in self.pieces())
        for slope, intercept in zip(slopes, intercepts, strict=True):
            product = slope.abs() * magnitude
            multiplies, adds = (slope != 0) & (slope.abs() != 1), (slope != 0) & (intercept != 0)
            once = rounding.gamma(1, torch.float32) * product + rounding.underflow(1, torch.float32)
            again = rounding.gamma(2, torch.float32) * (product + intercept.abs())
            stored = (slope - slope.float()).abs() * magnitude + (intercept - intercept.float()).abs()
            error = torch.maximum(error, torch.where(multiplies, once, 0.0) + torch.where(adds, again, 0.0) + rounding.SAFETY * stored)
        return rounding.round_up(error, x.lower.dtype)


class _Curve:
    """A piecewise-linear function restricted to [lower, upper], in float64: its breakpoints and the pieces they lie on."""

    def __init__(self, op: Piecewise, lower: Tensor, upper: Tensor) -> None:
        self.knots, self.slopes, self.intercepts = (_doubles(values, lower) for values in op.pieces())
        self.points = [lower, *(torch.minimum(torch.maximum(knot, lower), upper) for knot in self.knots), upper]
        # a knot outside the interval is clamped to an end, which lies on another piece: hence the lookup by position
        self.left = [self._piece(point, torch.gt) for point in self.points]
        self.right = [self._piece(point, torch.ge) for point in self.points]
        self.values = [slope * point + intercept for point, (slope, intercept) in zip(self.points, self.left, strict=True)]

    def _piece(self, point: Tensor, beyond: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Slope and intercept of the piece that holds `point`; on a knot the left one with `gt`, the right one with `ge`."""
        slope, intercept = self.slopes[0].expand_as(point), self.intercepts[0].expand_as(point)
        for knot, next_slope, next_intercept in zip(self.knots, self.slopes[1:], self.intercepts[1:], strict=True):
            mask = beyond(point, knot)
            slope, intercept = torch.where(mask, next_slope, slope), torch.where(mask, next_intercept, intercept)
        return slope, intercept

    def range_minus(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers <= min and >= max of act(x) - slope x over the interval, in real arithmetic; attained at the breakpoints."""
        shape = torch.broadcast_shapes(slope.shape, self.points[0].shape)
        low, high = slope.new_full(shape, math.inf), slope.new_full(shape, -math.inf)
        for point, left, right in zip(self.points, self.left, self.right, strict=True):
            # on a knot both pieces give the same real number: the one computed more exactly wins
            least, most = _enclose(*left, slope, point)
            other_least, other_most = _enclose(*right, slope, point)
            low, high = torch.minimum(low, torch.maximum(least, other_least)), torch.maximum(high, torch.minimum(most, other_most))
        return low, high

    def fit(self, lower_slope: Tensor, upper_slope: Tensor) -> Relaxation:
        """The tightest planes with these slopes, which are numbers of the working type."""
        dtype = lower_slope.dtype
        low, high = self.range_minus(lower_slope.double())[0], self.range_minus(upper_slope.double())[1]
        return Relaxation(lower_slope, rounding.round_down(low, dtype), upper_slope, rounding.round_up(high, dtype))

    def secant(self) -> Tensor:
        """(act(upper) - act(lower)) / (upper - lower); the piece's own slope where the interval lies in one piece."""
        return torch.where(self._single(), self.right[0][0], self._line(0, len(self.points) - 1))

    def hull_slopes(self) -> tuple[Tensor, Tensor]:
        """Slopes of the lines of the convex hull (below) and of the concave hull (above) over the interval's midpoint.

        Among the lines through two breakpoints on either side of the midpoint these are the lowest and the highest there.
        """
        middle = self.points[0] / 2 + self.points[-1] / 2
        single, own = self._single(), self.right[0][0]  # the piece just right of the lower end
        best_low, best_high = torch.full_like(middle, math.inf), torch.full_like(middle, -math.inf)
        low, high = own, own
        last = len(self.points) - 1
        for i in range(last):
            for j in range(i + 1, last + 1):
                distinct = (self.points[i] < self.points[i + 1]) & (self.points[j - 1] < self.points[j])
                valid = distinct & (self.points[i] <= middle) & (middle <= self.points[j])
                slope = self._line(i, j)
                at_middle = self.values[i] + slope * (middle - self.points[i])
                lower, higher = valid & (at_middle < best_low), valid & (at_middle > best_high)
                low, best_low = torch.where(lower, slope, low), torch.where(lower, at_middle, best_low)
                high, best_high = torch.where(higher, slope, high), torch.where(higher, at_middle, best_high)
        return torch.where(single, own, low), torch.where(single, own, high)

    def _line(self, i: int, j: int) -> Tensor:
        """Slope of the line through breakpoints i < j: the piece's own when they are neighbours, else kept in the slopes' range."""
        if j == i + 1:
            return self.slopes[i].expand_as(self.points[0])
        run = self.points[j] - self.points[i]
        slope = torch.where(run > 0, rounding.quotient(self.values[j] - self.values[i], run), self.right[0][0])
        bounds = torch.stack([s.expand_as(slope) for s in self.slopes])
        return torch.minimum(torch.maximum(slope, bounds.amin(0)), bounds.amax(0))

    def _single(self) -> Tensor:
        """Where no breakpoint lies strictly inside the interval."""
        lower, upper = self.points[0], self.points[-1]
        inside = torch.zeros_like(lower, dtype=torch.bool)
        for point in self.points[1:-1]:
            inside |= (point > lower) & (point < upper)
        return ~inside


def _enclose(a: Tensor, c: Tensor, slope: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers <= and >= (a - slope) point + c in real arithmetic.

    Allows for three roundings and an underflow, unless every step is exact by inspection; when c = 0 the rounded product has the exact sign.
    """
    factor = a - slope
    product = factor * point
    value = product + c
    vanishes = (factor == 0) | (point == 0)
    subtracts_exactly = (a == 0) | (slope == 0)
    is_exact = vanishes | (subtracts_exactly & (factor.abs() == 1) & (c == 0))
    error = rounding.gamma(2, torch.float64) * (product.abs() + value.abs()) + rounding.underflow(2, torch.float64)
    error = torch.where(is_exact, 0.0, error)
    sign = torch.where(c == 0, torch.sign(factor) * torch.sign(point), math.nan)
    least = torch.where(sign >= 0, (value - error).clamp(min=0.0), value - error)
    most = torch.where(sign <= 0, (value + error).clamp(max=0.0), value + error)
    return least, most


def finite_ends(x: Interval, op: Activation) -> tuple[Tensor, Tensor]:
    """The ends in float64, in order."""
    lower, upper = x.lower.double(), x.upper.double()
    # Infinite and NaN ends make this sum infinite or NaN.
    if not math.isfinite((upper - lower).sum().item()) and not x.is_finite():
        raise NumericsError(
            f"{type(op).__name__} met a NaN or infinite bound on its input; bound it finitely, or use float64 if it overflowed"
        )
    return torch.minimum(lower, upper), torch.maximum(lower, upper)


def _ascending(slopes: Values) -> bool:
    return all(bool((torch.as_tensor(a) <= torch.as_tensor(b)).all()) for a, b in pairwise(slopes))


def _doubles(values: Values, like: Tensor) -> list[Tensor]:
    return [torch.as_tensor(v, dtype=torch.float64, device=like.device) for v in values]


@dataclass(frozen=True, eq=False)
class Relu(Piecewise):
    """max(x, 0)."""

    def pieces(self) -> tuple[Values, Values, Values]:
        return [0.0], [0.0, 1.0], [0.0, 0.0]

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.relu(xs[0])

    def usual_slopes(self, x: Interval, slopes: Slopes = "adaptive") -> tuple[Tensor, Tensor]:
        """As for every `Piecewise`, in closed form: ReLU is most of what networks are made of."""
        lower, upper = finite_ends(x, self)
        run = upper - lower
        chord = rounding.quotient(upper.clamp(min=0), run).clamp(max=1.0)
        chord = torch.where((lower >= 0) & (upper > 0), 1.0, torch.where(upper <= 0, 0.0, chord)).to(x.lower.dtype)
        if slopes == "parallel":
            return chord, chord
        return torch.where((chord > 0) & (upper > -lower), 1.0, 0.0).to(chord), chord

    def fit(self, x: Interval, lower_slope: Tensor, upper_slope: Tensor) -> Relaxation:
        """See `Activation.fit`; the extremes are at the ends or at 0. Property: sound."""
        lower, upper = finite_ends(x, self)
        around = (lower < 0) & (upper > 0)
        low = torch.minimum(_excess(lower, lower_slope, -1), _excess(upper, lower_slope, -1))
        high = torch.maximum(_excess(lower, upper_slope, 1), _excess(upper, upper_slope, 1))
        low, high = torch.where(around, low.clamp(max=0.0), low), torch.where(around, high.clamp(min=0.0), high)
        return Relaxation(lower_slope, rounding.round_down(low, lower_slope.dtype), upper_slope, rounding.round_up(high, upper_slope.dtype))

    def interval(self, *xs: Interval) -> Interval:
        return Interval(xs[0].lower.clamp(min=0), xs[0].upper.clamp(min=0))

    def unstable(self, x: Interval) -> Tensor:
        return (x.lower < 0) & (x.upper > 0)

    def float_error(self, x: Interval) -> Tensor:
        return torch.zeros_like(x.lower)

    def relax(self, x: Interval, slopes: Slopes = "adaptive") -> Relaxation:
        """What the base class computes, in a tenth of its passes over memory: this is the hot case of every engine.

        Upper plane (both choices): s = u / (u - l), rounded; intercept max(-s l, (1 - s) u), rounded up. Lower plane: slope 1 if u > -l
        else 0 (adaptive), or s (parallel); intercept 0.
        """
        dtype = x.lower.dtype
        lower, upper = finite_ends(x, self)
        negative, positive = lower.clamp(max=0.0), upper.clamp(min=0.0)
        active = lower >= 0
        chord = torch.where(active, 1.0, rounding.quotient(positive, positive - negative)).to(dtype)
        exact = chord.double()
        gap = torch.maximum(-exact * negative, (1 - exact) * positive)
        error = 2 * rounding.gamma(2, torch.float64) * gap + rounding.underflow(2, torch.float64)
        upper_intercept = rounding.round_up(torch.where(active | (upper <= 0), 0.0, gap + error), dtype)
        lower_slope = chord if slopes == "parallel" else (active | (upper > -lower)).to(dtype)
        return Relaxation(lower_slope, torch.zeros_like(chord), chord, upper_intercept)


def _excess(x: Tensor, slope: Tensor, side: int) -> Tensor:
    """A number >= (side 1) or <= (side -1) relu(x) - slope x in real arithmetic, for float64 x: two factors, each rounded once; exactly 0
    where a factor vanishes."""
    value = torch.where(x > 0, 1 - slope.double(), -slope.double()) * x
    return value + side * (
        2 * rounding.gamma(2, torch.float64) * value.abs() + torch.where(value == 0, 0.0, rounding.underflow(2, torch.float64))
    )


@dataclass(frozen=True, eq=False)
class LeakyRelu(Piecewise):
    """max(x, 0) + slope min(x, 0)."""

    slope: float = 0.01

    def pieces(self) -> tuple[Values, Values, Values]:
        return [0.0], [self.slope, 1.0], [0.0, 0.0]


@dataclass(frozen=True, eq=False)
class PRelu(Piecewise):
    """max(x, 0) + slope min(x, 0) with a slope per element; slope broadcasts to the node's shape."""

    slope: Tensor

    def pieces(self) -> tuple[Values, Values, Values]:
        return [0.0], [self.slope, 1.0], [0.0, 0.0]


@dataclass(frozen=True, eq=False)
class Abs(Piecewise):
    """|x|."""

    def pieces(self) -> tuple[Values, Values, Values]:
        return [0.0], [-1.0, 1.0], [0.0, 0.0]

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].abs()


@dataclass(frozen=True, eq=False)
class Clip(Piecewise):
    """min(max(x, low), high); either end may be infinite, and low > high gives high everywhere, as ONNX says."""

    low: float | Tensor = -math.inf
    high: float | Tensor = math.inf

    def __post_init__(self) -> None:
        low, high = torch.as_tensor(self.low, dtype=torch.float64), torch.as_tensor(self.high, dtype=torch.float64)
        if bool((torch.isnan(low) | torch.isnan(high)).any()) or bool((low == math.inf).any()) or bool((high == -math.inf).any()):
            raise UnsupportedOpError(f"Clip limits are numbers with low < inf and high > -inf, got low {self.low} and high {self.high}")

    def pieces(self) -> tuple[Values, Values, Values]:
        if not isinstance(self.low, Tensor) and not isinstance(self.high, Tensor):
            low, high = min(self.low, self.high), self.high
            knots: Values = [limit for limit in (low, high) if math.isfinite(limit)]
            slopes: Values = [0.0] * math.isfinite(low) + [1.0] + [0.0] * math.isfinite(high)
            intercepts: Values = [low] * math.isfinite(low) + [0.0] + [high] * math.isfinite(high)
            return knots, slopes, intercepts
        high_values = torch.as_tensor(self.high, dtype=torch.float64)
        low_values = torch.minimum(torch.as_tensor(self.low, dtype=torch.float64, device=high_values.device), high_values)
        finite = [torch.where(torch.isfinite(v), v, 0.0) for v in (low_values, high_values)]
        return [low_values, high_values], [0.0, 1.0, 0.0], [finite[0], 0.0, finite[1]]

    def forward(self, *xs: Tensor) -> Tensor:
        (x,) = xs
        low, high = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (self.low, self.high))
        return torch.minimum(torch.maximum(x, low), high)


@dataclass(frozen=True, eq=False)
class MaxReduce(Activation):
    """Maximum over the last axis: (..., k) -> (...).

    The planes are sums over that axis: slopes have the shape of the input, intercepts the shape of the output.
    """

    exact_in_milp = True

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0].amax(dim=-1)

    def interval(self, *xs: Interval) -> Interval:
        return Interval(xs[0].lower.amax(dim=-1), xs[0].upper.amax(dim=-1))

    def float_error(self, x: Interval) -> Tensor:
        return torch.zeros_like(x.lower[..., 0])

    def gather(self, terms: Tensor) -> Tensor:
        return terms.sum(-1)

    def spread(self, A: Tensor) -> Tensor:
        """(..., *output_shape) -> (..., *output_shape, 1), which broadcasts against slopes of the input's shape without a copy."""
        return A.unsqueeze(-1)

    def unstable(self, x: Interval) -> Tensor:
        """The taps that could be the maximum, in windows where no tap is at least as large as every other one throughout."""
        _, top, second = _leader(x.lower, x.upper)
        contested = torch.gather(x.lower, -1, top) < second
        return contested & (x.upper >= x.lower.amax(dim=-1, keepdim=True))

    def relax(self, x: Interval, slopes: Slopes = "adaptive") -> Relaxation:
        """Lower plane: x_i for the tap i with the largest lower bound (then the largest upper bound).

        Upper plane: with j the tap of the largest upper bound and u2 the largest upper bound of the others, max(x) <= max(x_j, u2), a
        convex function of x_j that lies below its chord on [l_j, u_j]; exactly x_j where l_j >= u2. For the rounded slope s the smallest
        intercept is attained at an end: max(u2 - s l_j, (1 - s) u_j). Both choices of slopes give these planes.
        """
        dtype = x.lower.dtype
        lower, upper = finite_ends(x, self)
        u, top, second = _leader(lower, upper)
        floor = torch.gather(lower, -1, top)
        dominant = floor >= second
        slope = torch.where(dominant, 1.0, rounding.quotient(u - second, u - floor)).to(dtype)
        level, s, zero = torch.where(dominant, floor, second), slope.double(), torch.zeros_like(u)
        intercept = torch.maximum(_enclose(zero, level, s, floor)[1], _enclose(zero + 1, zero, s, u)[1])
        intercept = torch.where(dominant, 0.0, intercept).squeeze(-1)
        highest_floor = torch.where(lower == lower.amax(dim=-1, keepdim=True), upper, -math.inf).argmax(dim=-1, keepdim=True)
        zeros = torch.zeros_like(x.lower)
        lower_slope = zeros.scatter(-1, highest_floor, 1.0)
        return Relaxation(lower_slope, zeros[..., 0], zeros.scatter(-1, top, slope), rounding.round_up(intercept, dtype))


def _leader(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along the last axis, kept: the largest upper bound, the tap that has it (ties: largest lower), the largest of the other taps."""
    largest = upper.amax(dim=-1, keepdim=True)
    tap = torch.where(upper == largest, lower, -math.inf).argmax(dim=-1, keepdim=True)
    others = upper.scatter(-1, tap, -math.inf).amax(dim=-1, keepdim=True)
    return largest, tap, others
