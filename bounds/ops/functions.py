"""The curves that networks are made of: exp, log, powers, erf, GELU, sine and cosine; and the sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import UnsupportedOpError
from bounds.interval import Interval
from bounds.linear import Relaxation
from bounds.ops.base import Activation, Slopes
from bounds.ops.curves import Curve, Piece, split_at
from bounds.ops.piecewise import finite_ends
from bounds.ops.smooth import FLOAT32_ULPS

_EXACT = torch.float64
_TINY = 2.0**-1000
"""Where slopes of roots are taken instead of at 0."""
_GELU_TABLE, _GELU_STEPS, _GELU_END = 129, 4, 9.0
"""Size of the table, Newton steps, and where the derivative is 1 in every type."""


@dataclass(frozen=True, eq=False)
class Exp(Curve):
    """exp(x)."""

    convex = True
    least = 0.0

    def value(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        return (Piece(lower, upper, 1),)

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        return torch.log(slope.clamp(min=0.0))

    def float_error(self, x: Interval) -> Tensor:
        """That of the kernel, and what a softmax loses that subtracts its largest entry first: u |x_i - max x| <= 2 u max |x| of the argument."""
        largest = x.magnitude.to(_EXACT).flatten(1).amax(1).reshape(-1, *[1] * (x.lower.dim() - 1))
        relative = (FLOAT32_ULPS + 2 * largest) * torch.finfo(torch.float32).eps
        return rounding.round_up(relative * self.interval(x).upper.to(_EXACT), x.lower.dtype)


@dataclass(frozen=True, eq=False)
class Log(Curve):
    """log(x) for x > 0."""

    concave = True
    partial = True

    def value(self, x: Tensor) -> Tensor:
        return torch.log(x)

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / x

    def undefined(self, lower: Tensor, upper: Tensor) -> Tensor:
        return lower <= 0

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        return (Piece(lower, upper, -1),)

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        return 1 / slope.clamp(min=0.0)


@dataclass(frozen=True, eq=False)
class Power(Curve):
    """x^exponent. Where x^exponent has no real value for x < 0 the input has to be >= 0; for negative exponents it must not contain 0."""

    exponent: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.exponent) or self.exponent in (0.0, 1.0):
            raise UnsupportedOpError(
                f"a power's exponent is a number other than 0 and 1, got {self.exponent}; use a constant or the identity"
            )

    @property
    def convex(self) -> bool:  # type: ignore[override]
        """Whether it is convex on every interval on which it is defined."""
        return self._even or (not self._whole and not 0 < self.exponent < 1)

    @property
    def concave(self) -> bool:  # type: ignore[override]
        """Whether it is concave on every interval on which it is defined."""
        return 0 < self.exponent < 1

    @property
    def partial(self) -> bool:  # type: ignore[override]
        """Whether it is not defined for some numbers."""
        return self.exponent < 0 or not self._whole

    @property
    def least(self) -> float:  # type: ignore[override]
        """The smallest value it can take."""
        return 0.0 if self._even or not self._whole else -math.inf

    @property
    def _whole(self) -> bool:
        return float(self.exponent).is_integer()

    @property
    def _even(self) -> bool:
        return self._whole and self.exponent % 2 == 0

    def __str__(self) -> str:
        return {-1.0: "Reciprocal", 0.5: "Sqrt"}.get(self.exponent, f"Power({self.exponent:g})")

    def value(self, x: Tensor) -> Tensor:
        return torch.pow(x, self.exponent)

    def derivative(self, x: Tensor) -> Tensor:
        x = x.clamp(min=_TINY) if 0 < self.exponent < 1 else x
        return self.exponent * torch.pow(x, self.exponent - 1)

    def undefined(self, lower: Tensor, upper: Tensor) -> Tensor:
        if self.exponent > 0:
            return torch.zeros_like(lower, dtype=torch.bool) if self._whole else lower < 0
        return (lower <= 0) & (upper >= 0) if self._whole else lower <= 0

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        if self.convex or self.concave:
            return (Piece(lower, upper, 1 if self.convex else -1),)
        if self.exponent > 0:
            return split_at(lower, upper, (0.0,), (-1, 1))
        return (Piece(lower, upper, torch.where(lower > 0, 1, -1)),)

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        """|x|^(exponent - 1) = |slope / exponent| on the piece's side of 0; beyond the side's end where the derivative is never the slope."""
        ratio = slope / self.exponent
        size = ratio.abs() ** (1 / (self.exponent - 1))
        if self._even and self.exponent > 0:
            return torch.where(ratio < 0, -size, size)
        side = torch.where(piece.left + piece.right < 0, -1.0, 1.0)
        wanted = ratio * side if self._even else ratio
        return side * torch.where(wanted > 0, size, torch.inf if self.exponent < 1 else 0.0)

    def widest(self, x: Tensor) -> Tensor | float:
        return _TINY if 0 < self.exponent < 1 else 0.0

    def _steepness(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """A root is not met at 0 itself: no slope steeper than at a thousandth of the interval is worth trying."""
        return super()._steepness(torch.maximum(lower, upper * 1e-3) if 0 < self.exponent < 1 else lower, upper)


@dataclass(frozen=True, eq=False)
class Erf(Curve):
    """The error function 2 / sqrt(pi) * (integral of exp(-t^2) from 0 to x)."""

    least, most = -1.0, 1.0

    def value(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def derivative(self, x: Tensor) -> Tensor:
        return (2 / math.sqrt(math.pi)) * torch.exp(-x * x)

    def derivative_error(self, x: Tensor, derivative: Tensor) -> Tensor:
        """The rounding of x^2 counts x^2 times."""
        return super().derivative_error(x, derivative * (2 + x * x))

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        return split_at(lower, upper, (0.0,), (1, -1))

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        size = torch.sqrt(-torch.log((slope * (math.sqrt(math.pi) / 2)).clamp(min=0.0, max=1.0)))
        return size * (-torch.as_tensor(piece.bend))


@dataclass(frozen=True, eq=False)
class Gelu(Curve):
    """x (1 + erf(x / sqrt 2)) / 2. Its curvature changes at -sqrt 2 and sqrt 2."""

    least: ClassVar[float] = -0.1700  # at about -0.7518 it is -0.16997

    def value(self, x: Tensor) -> Tensor:
        return x * self._share(x)

    def derivative(self, x: Tensor) -> Tensor:
        return self._share(x) + x * self._density(x)

    def _share(self, x: Tensor) -> Tensor:
        """The normal distribution; erfc does not cancel where it is tiny."""
        return torch.erfc(x * -math.sqrt(0.5)) / 2

    def _density(self, x: Tensor) -> Tensor:
        return math.sqrt(0.5 / math.pi) * torch.exp(-x * x / 2)

    def value_error(self, x: Tensor, value: Tensor) -> Tensor:
        """The rounding of the argument counts x^2 times where x is negative."""
        return super().value_error(x, value * (2 + x * x))

    def derivative_error(self, x: Tensor, derivative: Tensor) -> Tensor:
        """Its two terms may cancel."""
        return super().derivative_error(x, (self._share(x) + x.abs() * self._density(x)) * (2 + x * x))

    def float_error(self, x: Interval) -> Tensor:
        """Runtimes may compute 1 + erf, which cancels."""
        return rounding.round_up(FLOAT32_ULPS * torch.finfo(torch.float32).eps * x.magnitude.to(_EXACT), x.lower.dtype)

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        return split_at(lower, upper, (-math.sqrt(2), math.sqrt(2)), (-1, 1, -1))

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        """By interpolation in a table and Newton's method. The derivative at -x is 1 less that at x, so that the right arc serves for the left."""
        if piece.bend == 1:
            return self._solve(slope, -math.sqrt(2), math.sqrt(2))
        left = piece.right <= 0
        mirrored = self._solve(torch.where(left, 1 - slope, slope), math.sqrt(2), _GELU_END)
        return torch.where(left, -mirrored, mirrored)

    def _solve(self, slope: Tensor, start: float, stop: float) -> Tensor:
        """The point of an arc where the derivative is `slope`, or an end."""
        share = torch.linspace(0, 1, _GELU_TABLE, dtype=slope.dtype, device=slope.device)
        # closer together at the ends, where the derivative hardly changes
        points = start + (stop - start) * (1 - torch.cos(math.pi * share)) / 2
        heights = self.derivative(points)
        rising = bool(heights[-1] > heights[0])
        ordered = heights if rising else heights.flip(0)
        after = torch.searchsorted(ordered, slope.contiguous()).clamp(1, _GELU_TABLE - 1)
        after = after if rising else _GELU_TABLE - after
        point = (points[after] + points[after - 1]) / 2
        low, high = torch.minimum(points[after], points[after - 1]), torch.maximum(points[after], points[after - 1])
        for _ in range(_GELU_STEPS):
            bend = self._density(point) * (2 - point * point)
            step = (slope - self.derivative(point)) / torch.where(bend == 0, 1.0, bend)
            point = torch.minimum(torch.maximum(point + step, low), high)
        return point

    def slip(self, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor | float:
        """No derivative exceeds 1.13; the knots are off by at most one unit in the last place."""
        return 3 * self.widest(lower) * (slope.abs() + 1.2)

    def widest(self, x: Tensor) -> float:
        return 2 * torch.finfo(x.dtype).eps


class Wave(Curve):
    """A sine wave of amplitude and frequency 1. `phase`: where, in half periods, a concave arc begins."""

    least, most = -1.0, 1.0
    phase: ClassVar[float]
    _FURTHEST: ClassVar[float] = 2.0**16

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        """The first three and the last three arcs: the peaks of act(x) - slope x rise or fall from one arc to the next of its kind, so that
        those between are never the highest."""
        first, last = (torch.floor(end.clamp(-self._FURTHEST, self._FURTHEST) / math.pi - self.phase) for end in (lower, upper))
        turns = [first, *(torch.minimum(first + k, last) for k in (1, 2)), *(torch.maximum(last - k, first) for k in (2, 1)), last]

        def start(turn: Tensor) -> Tensor:
            return torch.minimum(torch.maximum((turn + self.phase) * math.pi, lower), upper)

        return tuple(Piece(start(turn), start(turn + 1), torch.where(turn % 2 == 0, -1, 1), turn) for turn in turns)

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        """An arc's derivative falls (rises) like a cosine (its negative) from the arc's start."""
        if piece.turn is None or isinstance(piece.bend, int):
            raise TypeError("an arc of a wave knows how many half periods it is from the origin")
        return (piece.turn + self.phase) * math.pi + torch.arccos((-piece.bend * slope).clamp(-1.0, 1.0))

    def widest(self, x: Tensor) -> Tensor:
        """Multiples of pi are off by a few units in the last place."""
        return 4 * torch.finfo(x.dtype).eps * (x.abs() + 4)

    def slip(self, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor | float:
        """Far from the origin nothing but the amplitude is known, and act(x) - slope x <= 1 + |slope x|."""
        size = torch.maximum(-lower, upper).abs()
        far = 2 + 2 * slope.abs() * size
        return torch.where(size > self._FURTHEST, far, 3 * self.widest(size) * (slope.abs() + 1))

    def float_error(self, x: Interval) -> Tensor:
        return torch.full_like(x.lower, FLOAT32_ULPS * torch.finfo(torch.float32).eps)

    def _steepness(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        least, most = super()._steepness(lower, upper)
        wide = torch.maximum(-lower, upper).abs() > self._FURTHEST
        return torch.where(wide, -1.0, least), torch.where(wide, 1.0, most)


@dataclass(frozen=True, eq=False)
class Sin(Wave):
    """sin(x)."""

    phase = 0.0

    def value(self, x: Tensor) -> Tensor:
        return torch.sin(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.cos(x)


@dataclass(frozen=True, eq=False)
class Cos(Wave):
    """cos(x)."""

    phase = -0.5

    def value(self, x: Tensor) -> Tensor:
        return torch.cos(x)

    def derivative(self, x: Tensor) -> Tensor:
        return -torch.sin(x)


@dataclass(frozen=True, eq=False)
class Sign(Activation):
    """-1, 0 or 1."""

    free = True
    piecewise = True

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.sign(xs[0])

    def interval(self, *xs: Interval) -> Interval:
        return Interval(torch.sign(xs[0].lower), torch.sign(xs[0].upper))

    def unstable(self, x: Interval) -> Tensor:
        return (x.lower < 0) & (x.upper >= 0) | (x.lower == 0) & (x.upper > 0)

    def float_error(self, x: Interval) -> Tensor:
        return torch.zeros_like(x.lower)

    def relax(self, x: Interval, slopes: Slopes = "adaptive") -> Relaxation:
        """Around 0, above: from (lower, -1) to (0, 1), or flat at 1, whichever is lower at the midpoint; below likewise. "parallel": both
        slopes are the secant's. Property: sound."""
        return self.fit(x, *self.usual_slopes(x, slopes))

    def usual_slopes(self, x: Interval, slopes: Slopes = "adaptive") -> tuple[Tensor, Tensor]:
        """See `relax`."""
        lower, upper = finite_ends(x, self)
        dtype = x.lower.dtype
        around = (lower < 0) & (upper > 0)
        if slopes == "parallel":
            secant = torch.where(upper > lower, (torch.sign(upper) - torch.sign(lower)) / (upper - lower), 0.0)
            return secant.to(dtype), secant.to(dtype)
        rise, fall = (torch.where(side != 0, 2 / side.abs(), 0.0) for side in (lower, upper))
        low = torch.where(around & (lower + upper > 0), fall, 0.0)
        high = torch.where(around & (lower + upper < 0), rise, 0.0)
        return low.to(dtype), high.to(dtype)

    def fit(self, x: Interval, lower_slope: Tensor, upper_slope: Tensor) -> Relaxation:
        """See `Activation.fit`: the extremes are at the ends or next to 0. Property: sound."""
        lower, upper = finite_ends(x, self)
        low = -self._supremum(-upper, -lower, lower_slope.to(_EXACT))
        high = self._supremum(lower, upper, upper_slope.to(_EXACT))
        dtype = lower_slope.dtype
        return Relaxation(lower_slope, rounding.round_down(low, dtype), upper_slope, rounding.round_up(high, dtype))

    def _supremum(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """A number >= sign(x) - slope x on [lower, upper]; of the mirrored function for the mirrored interval."""

        def residual(point: Tensor) -> Tensor:
            product = slope * point
            error = torch.where(product == 0, 0.0, rounding.gamma(4, _EXACT) * (1 + product.abs()) + rounding.underflow(2, _EXACT))
            return torch.sign(point) - product + error

        ends = torch.maximum(residual(lower), residual(upper))
        beside = torch.where((lower <= 0) & (upper > 0), 1.0, torch.where((lower <= 0) & (upper == 0), 0.0, -torch.inf))
        return torch.maximum(ends, beside)

    def slope_range(self, x: Interval) -> tuple[Tensor, Tensor]:
        """Between flat and the line from the nearer end to the jump."""
        nearest = torch.minimum(x.lower.abs(), x.upper.abs())
        steepest = torch.where(self.unstable(x) & (nearest > 0), 2 / torch.where(nearest > 0, nearest, 1.0), 0.0)
        return torch.zeros_like(steepest), steepest

    def touching(self, x: Interval, slope: Tensor, *, below: bool) -> tuple[Tensor, ...]:
        """The ends and both sides of the jump."""
        tiny = torch.finfo(x.lower.dtype).smallest_normal
        return (
            x.lower,
            *(torch.minimum(torch.maximum(torch.full_like(x.lower, t), x.lower), x.upper) for t in (-tiny, 0.0, tiny)),
            x.upper,
        )

    def split_point(self, x: Interval) -> Tensor:
        return torch.zeros_like(x.lower)
