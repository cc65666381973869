"""Element-wise curves: smooth functions that are convex or concave between known points.

Numerics: as in `bounds.ops.smooth`. Everything is computed in float64; a slope is chosen, rounded to the working type and from then on fixed;
the intercept is an upper bound on the supremum of act(x) - slope x that holds for every slope. Where the function is convex the supremum is
at an end; where it is concave every tangent lies above it, so the tangent at any point near the critical one gives a bound. What the values
and derivatives may be off by is stated by the class (`value_error`, `derivative_error`) and measured by tests against arbitrary-precision
arithmetic. A point between a convex and a concave part may itself be a rounded number: `slip` pays for what lies between the two.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import DomainError
from bounds.interval import Interval
from bounds.linear import Relaxation
from bounds.ops.base import Activation, Slopes
from bounds.ops.piecewise import finite_ends
from bounds.ops.smooth import FLOAT32_ULPS, KERNEL_ULPS

_EXACT = torch.float64
_BRIDGES = 4
"""Steps of the search for the line of the hull over the midpoint."""
_STEEPEST = 2.0**60


@dataclass(frozen=True, eq=False)
class Piece:
    """Part [left, right] of an interval where the curve is convex (bend 1) or concave (bend -1).

    left, right: float64, equal where the part is empty. bend: a number, or a tensor where intervals differ. arc: which part of the whole curve
    it lies in, from the left; turn: for periodic curves, how many half periods from the origin the part begins.
    """

    left: Tensor
    right: Tensor
    bend: int | Tensor
    turn: Tensor | None = None
    arc: int = 0


class Curve(Activation):
    """An element-wise curve. A subclass writes the function, its derivative, its convex and concave parts and where its derivative takes a
    given value there."""

    free = True
    stray: float = 0.0
    """How far what the curve stands for may be from act(x) anywhere: its planes and intervals include it."""
    least: ClassVar[float] = -torch.inf
    most: ClassVar[float] = torch.inf

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """act(x)."""

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """act'(x)."""

    @abstractmethod
    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        """The convex and concave parts of [lower, upper] on which sup act(x) - slope x can be attained for some slope, of either sign."""

    @abstractmethod
    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        """About the point of the piece's whole arc where the derivative is `slope`; any number, also infinite, where there is none."""

    def undefined(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Mask of the intervals on all of which the function is not defined."""
        return torch.zeros_like(lower, dtype=torch.bool)

    def value_error(self, x: Tensor, value: Tensor) -> Tensor:
        """How far computed values may be from act(x). Default: relative error `KERNEL_ULPS` * 2^-52, or the smallest normal number."""
        return KERNEL_ULPS * rounding.gamma(2, _EXACT) * value.abs() + rounding.underflow(1, _EXACT)

    def derivative_error(self, x: Tensor, derivative: Tensor) -> Tensor:
        """How far computed derivatives may be from act'(x). Default: twice as much and four roundings."""
        return (2 * KERNEL_ULPS * rounding.gamma(2, _EXACT) + rounding.gamma(4, _EXACT)) * derivative.abs() + rounding.underflow(4, _EXACT)

    def slip(self, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor | float:
        """What act(x) - slope x can change between where the pieces meet and where the curvature changes. Default: they are the same."""
        return 0.0

    def widest(self, x: Tensor) -> Tensor | float:
        """How far from a piece's end a point has to be to lie on its arc for sure."""
        return 0.0

    # -------------------------------------------------------------------------------------------------------------- what derives from it

    def forward(self, *xs: Tensor) -> Tensor:
        return self.value(xs[0])

    def interval(self, *xs: Interval) -> Interval:
        """The extremes, rounded outward. Raises DomainError where the function is not defined."""
        (x,) = xs
        lower, upper = self._ends(x)
        flat = torch.zeros_like(lower)
        low = (-self._supremum(lower, upper, flat, -1)).clamp(min=self.least, max=self.most)
        high = self._supremum(lower, upper, flat, 1).clamp(min=self.least, max=self.most)
        return Interval(rounding.round_down(low, x.lower.dtype), rounding.round_up(high, x.lower.dtype))

    def unstable(self, x: Interval) -> Tensor:
        """Everywhere but at single points."""
        return x.lower < x.upper

    def float_error(self, x: Interval) -> Tensor:
        """`FLOAT32_ULPS` of the largest absolute value on the interval."""
        return rounding.round_up(FLOAT32_ULPS * torch.finfo(torch.float32).eps * self.interval(x).magnitude, x.lower.dtype)

    def relax(self, x: Interval, slopes: Slopes = "adaptive") -> Relaxation:
        """Planes that enclose the curve on [lower, upper]; bounds that crossed by rounding are read as [upper, lower].

        "parallel": both slopes are the secant's. "adaptive": the lines of the concave hull (above) and of the convex hull (below) over the
        midpoint: a chord, a tangent, or what touches the curve on both sides. Raises NumericsError where a bound is NaN or infinite,
        DomainError where the function is not defined on all of an interval. Property: sound.
        """
        return self.fit(x, *self.usual_slopes(x, slopes))

    def usual_slopes(self, x: Interval, slopes: Slopes = "adaptive") -> tuple[Tensor, Tensor]:
        """See `relax`."""
        dtype = x.lower.dtype
        lower, upper = self._ends(x)
        secant = self._between(lower, upper, lower, upper)
        if slopes == "parallel":
            return _slope(secant, dtype), _slope(secant, dtype)
        low, high = (_slope(self._hull_slope(lower, upper, secant, side), dtype) for side in (-1, 1))
        return low, high

    def fit(self, x: Interval, lower_slope: Tensor, upper_slope: Tensor) -> Relaxation:
        """See `Activation.fit`. Property: sound."""
        lower, upper = self._ends(x)
        dtype = lower_slope.dtype
        low = -self._supremum(lower, upper, lower_slope.to(_EXACT), -1)
        high = self._supremum(lower, upper, upper_slope.to(_EXACT), 1)
        return Relaxation(lower_slope, rounding.round_down(low, dtype), upper_slope, rounding.round_up(high, dtype))

    def slope_range(self, x: Interval) -> tuple[Tensor, Tensor]:
        """The smallest and largest derivative on the interval, or slopes near them where it is infinite."""
        least, most = self._steepness(*self._ends(x))
        return _slope(least, x.lower.dtype), _slope(most, x.lower.dtype)

    def touching(self, x: Interval, slope: Tensor, *, below: bool) -> tuple[Tensor, ...]:
        """The ends of the pieces and the points between them where the derivative is the slope."""
        side = -1 if below else 1
        points = [x.lower, x.upper]
        with torch.no_grad():
            for piece in self.pieces(x.lower, x.upper):
                points += [] if piece.left is x.lower else [piece.left]
                if not isinstance(piece.bend, int) or piece.bend == -side:
                    points.append(self._inside(piece, slope))
        return tuple(torch.minimum(torch.maximum(point, x.lower), x.upper) for point in points)

    def _ends(self, x: Interval) -> tuple[Tensor, Tensor]:
        lower, upper = finite_ends(x, self)
        undefined = self.undefined(lower, upper)
        if bool(undefined.any()):
            low, high = (float(side[undefined].flatten()[0]) for side in (lower, upper))
            raise DomainError(
                f"{self!s} is not defined on all of [{low:.6g}, {high:.6g}], which its input may take as far as is known; "
                "take a smaller region, or split it"
            )
        return lower, upper

    def __str__(self) -> str:
        return type(self).__name__

    def _supremum(self, lower: Tensor, upper: Tensor, slope: Tensor, side: int) -> Tensor:
        """A number >= sup of side (act(x) - slope x) on [lower, upper] in real arithmetic, and as far beyond as the curve may stray."""
        best = torch.maximum(self._residual(lower, slope, side), self._residual(upper, slope, side))
        pieces = self.pieces(lower, upper)
        for piece in pieces:
            if len(pieces) > 1:
                best = torch.maximum(best, self._residual(piece.left, slope, side))
            if isinstance(piece.bend, int) and piece.bend == side:
                continue
            touch = torch.maximum(best, self._tangent(piece, slope, side))
            best = touch if isinstance(piece.bend, int) else torch.where(piece.bend == side, best, touch)
        return best + (self.slip(slope, lower, upper) + self.stray)

    def _tangent(self, piece: Piece, slope: Tensor, side: int) -> Tensor:
        """A number >= side (act(x) - slope x) on a piece where side * act is concave: the largest value of a tangent's.

        With p near the critical point, side (act(x) - slope x) <= side (act(p) - slope p) + side (act'(p) - slope) (x - p).
        """
        point = self._inside(piece, slope)
        derivative = self.derivative(point)
        tilt = side * (derivative - slope)
        error = self.derivative_error(point, derivative) + rounding.gamma(2, _EXACT) * (derivative.abs() + slope.abs())
        excess = torch.maximum((error + tilt) * (piece.right - point), (error - tilt) * (point - piece.left)).clamp(min=0.0)
        excess = excess * (1 + rounding.gamma(4, _EXACT)) + rounding.underflow(4, _EXACT)
        return rounding.above(self._residual(point, slope, side), excess.detach())

    @torch.no_grad()
    def _inside(self, piece: Piece, slope: Tensor) -> Tensor:
        """The piece's point nearest to the critical one. Without gradients: what is computed from it is stationary in it."""
        low, high = piece.left + self.widest(piece.left), piece.right - self.widest(piece.right)
        return torch.minimum(torch.maximum(self.critical(slope, piece), low), torch.maximum(low, high))

    def _residual(self, x: Tensor, slope: Tensor, side: int) -> Tensor:
        """A number >= side (act(x) - slope x) in real arithmetic."""
        value, product = self.value(x), slope * x
        error = self.value_error(x, value) + rounding.gamma(3, _EXACT) * (value.abs() + product.abs())
        return side * (value - product) + error + rounding.underflow(2, _EXACT)

    def _steepness(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest derivative: at the ends or where the curvature changes."""
        points = [lower, upper, *(piece.left for piece in self.pieces(lower, upper)[1:])]
        met = [self.derivative(point) for point in points]
        return functools.reduce(torch.minimum, met), functools.reduce(torch.maximum, met)

    def _between(self, a: Tensor, b: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """(act(b) - act(a)) / (b - a), kept within the derivative's range on [lower, upper]: cancellation cannot spoil it."""
        run = b - a
        least, most = self._steepness(lower, upper)
        secant = torch.where(run > 0, rounding.quotient(self.value(b) - self.value(a), run), self.derivative(a))
        return torch.minimum(torch.maximum(secant, least), most)

    def _hull_slope(self, lower: Tensor, upper: Tensor, secant: Tensor, side: int) -> Tensor:
        """Slope of the upper hull's line over the midpoint (the lower hull's for side -1).

        From the secant on: the line through the points, left and right of the midpoint, that stick out furthest for the slope at hand.
        """
        middle = lower / 2 + upper / 2
        pieces = self.pieces(lower, upper)
        tangent = self.derivative(middle)
        if len(pieces) == 1:
            bend = pieces[0].bend
            if isinstance(bend, int):
                return secant if bend == side else tangent
            return torch.where(bend == side, secant, tangent)
        slope = secant
        for _ in range(_BRIDGES):
            left, right = self._peak(lower, middle, slope, side), self._peak(middle, upper, slope, side)
            slope = torch.where(left < right, self._between(left, right, lower, upper), tangent)
        return slope

    @torch.no_grad()
    def _peak(self, lower: Tensor, upper: Tensor, slope: Tensor, side: int) -> Tensor:
        """About where side (act(x) - slope x) is largest on [lower, upper]."""
        points = [lower, upper]
        for piece in self.pieces(lower, upper):
            points += [piece.left, self._inside(piece, slope)]
        stacked = torch.stack(torch.broadcast_tensors(*points))
        heights = side * (self.value(stacked) - slope * stacked)
        return stacked.gather(0, heights.nan_to_num(nan=-torch.inf).argmax(0, keepdim=True)).squeeze(0)


def _slope(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Slopes in the working type, infinite ones cut: any slope will do."""
    return values.clamp(-_STEEPEST, _STEEPEST).to(dtype)


def split_at(lower: Tensor, upper: Tensor, knots: Sequence[float], bends: Sequence[int]) -> tuple[Piece, ...]:
    """The parts of [lower, upper] between ascending knots; bends: one more than knots."""
    inner = [torch.minimum(torch.maximum(torch.full_like(lower, knot), lower), upper) for knot in knots]
    ends = zip((lower, *inner), (*inner, upper), bends, strict=True)
    return tuple(Piece(a, b, bend, arc=arc) for arc, (a, b, bend) in enumerate(ends))
