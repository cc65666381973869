"""Curves x times a share of it: GELU, its approximation by tanh, SiLU (swish), and Mish."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds import rounding
from bounds.interval import Interval
from bounds.ops.curves import Curve, Piece, split_at
from bounds.ops.smooth import FLOAT32_ULPS

_TABLE, _STEPS = 1025, 2
"""Size of the table of derivatives, and Newton steps from the line between two entries."""
TANH_RATE = math.sqrt(2 / math.pi)
TANH_CUBE = 0.044715


class Gated(Curve):
    """x s(x), s a share that rises from 0 to 1: concave, convex between the two knots, concave again.

    A subclass writes the share, its derivative and that one's logarithmic derivative.
    """

    knots: ClassVar[tuple[float, float]]
    """Where the curvature changes; they may be off by one unit in the last place."""
    ends: ClassVar[tuple[float, float]]
    """Before the first the derivative is 0 in every type, up to 1e-17, from the second on it is 1."""

    @abstractmethod
    def share(self, x: Tensor) -> Tensor:
        """s(x), accurate also where it is tiny."""

    @abstractmethod
    def density(self, x: Tensor) -> Tensor:
        """s'(x)."""

    @abstractmethod
    def bend(self, x: Tensor) -> Tensor:
        """The second derivative divided by the density: 2 + x s''(x) / s'(x)."""

    def amplification(self, x: Tensor) -> Tensor | float:
        """By how much more than once the rounding of the argument may count in the share and the density."""
        return 1.0

    def value(self, x: Tensor) -> Tensor:
        return x * self.share(x)

    def derivative(self, x: Tensor) -> Tensor:
        return self.share(x) + x * self.density(x)

    def value_error(self, x: Tensor, value: Tensor) -> Tensor:
        return super().value_error(x, value * (1 + self.amplification(x)))

    def derivative_error(self, x: Tensor, derivative: Tensor) -> Tensor:
        """Its two terms may cancel."""
        return super().derivative_error(x, (self.share(x) + x.abs() * self.density(x)) * (1 + self.amplification(x)))

    def float_error(self, x: Interval) -> Tensor:
        """Runtimes may compute the share with absolute accuracy only."""
        return rounding.round_up(FLOAT32_ULPS * torch.finfo(torch.float32).eps * x.magnitude.to(torch.float64), x.lower.dtype)

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        return split_at(lower, upper, self.knots, (-1, 1, -1))

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        """By interpolation in a table and Newton's method."""
        limits = (self.ends[0], *self.knots, self.ends[1])
        return self._solve(slope, limits[piece.arc], limits[piece.arc + 1])

    def _solve(self, slope: Tensor, start: float, stop: float) -> Tensor:
        """The point of an arc where the derivative is `slope`, or an end."""
        points, heights = _table(type(self), start, stop, slope.dtype, slope.device)
        after = torch.searchsorted(heights, slope.contiguous()).clamp(1, _TABLE - 1)
        near, far, base = points[after - 1], points[after], heights[after - 1]
        rise = heights[after] - base
        share = torch.where(rise > 0, (slope - base) / torch.where(rise > 0, rise, 1.0), 0.5)
        point = near + (far - near) * share.clamp(0, 1)
        low, high = torch.minimum(near, far), torch.maximum(near, far)
        for _ in range(_STEPS):
            density = self.density(point)
            curvature, derivative = density * self.bend(point), self.share(point) + point * density
            step = (slope - derivative) / torch.where(curvature == 0, 1.0, curvature)
            point = torch.minimum(torch.maximum(point + step, low), high)
        return point

    def slip(self, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor | float:
        """No derivative exceeds 1.13; the knots are off by at most one unit in the last place."""
        return 3 * self.widest(lower) * (slope.abs() + 1.2)

    def widest(self, x: Tensor) -> float:
        return 2 * max(map(abs, self.knots)) * torch.finfo(x.dtype).eps


@functools.lru_cache(maxsize=64)
def _table(kind: type[Gated], start: float, stop: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Points of an arc and the derivatives there, these ascending."""
    share = torch.linspace(0, 1, _TABLE, dtype=dtype, device=device)
    # closer together at the ends, where the derivative hardly changes
    points = start + (stop - start) * (1 - torch.cos(math.pi * share)) / 2
    heights = kind().derivative(points)
    return (points, heights) if bool(heights[-1] > heights[0]) else (points.flip(0), heights.flip(0))


@dataclass(frozen=True, eq=False)
class Gelu(Gated):
    """x (1 + erf(x / sqrt 2)) / 2."""

    stray: float = 0.0

    knots = (-math.sqrt(2), math.sqrt(2))
    ends = (-9.0, 9.0)
    least: ClassVar[float] = -0.1700  # at about -0.7518 it is -0.16997

    def share(self, x: Tensor) -> Tensor:
        """The normal distribution; erfc does not cancel where it is tiny."""
        return torch.erfc(x * -math.sqrt(0.5)) / 2

    def density(self, x: Tensor) -> Tensor:
        return math.sqrt(0.5 / math.pi) * torch.exp(-x * x / 2)

    def bend(self, x: Tensor) -> Tensor:
        return 2 - x * x

    def amplification(self, x: Tensor) -> Tensor:
        """The rounding of the argument counts x^2 times."""
        return 1 + x * x


@dataclass(frozen=True, eq=False)
class GeluTanh(Gated):
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 = x sigmoid(u), u twice the argument of tanh."""

    stray: float = 0.0

    knots = (-1.4185040087908284, 1.4185040087908284)  # by Newton's method in 40 digits
    ends = (-9.0, 9.0)
    least: ClassVar[float] = -0.1701  # at about -0.7525 it is -0.17004

    def share(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self._argument(x))

    def density(self, x: Tensor) -> Tensor:
        x = x.clamp(-40.0, 40.0)  # it is 0 in every type there, and its factors do not overflow yet
        u = self._argument(x)
        return torch.sigmoid(u) * torch.sigmoid(-u) * self._rate(x)

    def bend(self, x: Tensor) -> Tensor:
        growth = 6 * TANH_CUBE * x / (1 + 3 * TANH_CUBE * x * x)
        return 2 + x * (growth - torch.tanh(self._argument(x) / 2) * self._rate(x))

    def amplification(self, x: Tensor) -> Tensor:
        """The roundings of the argument count as often as it is large; where it is huge the share is 0 or 1."""
        return 1 + self._argument(x).abs().clamp(max=800.0)

    def _argument(self, x: Tensor) -> Tensor:
        return 2 * TANH_RATE * x * (1 + TANH_CUBE * x * x)

    def _rate(self, x: Tensor) -> Tensor:
        return 2 * TANH_RATE * (1 + 3 * TANH_CUBE * x * x)


@dataclass(frozen=True, eq=False)
class Silu(Gated):
    """x / (1 + exp(-x)), also called swish."""

    knots = (-2.3993572805154676, 2.3993572805154676)  # where x tanh(x / 2) = 2
    ends = (-45.0, 45.0)
    least: ClassVar[float] = -0.2785  # at about -1.2785 it is -0.27846

    def share(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def density(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x)

    def bend(self, x: Tensor) -> Tensor:
        return 2 - x * torch.tanh(x / 2)


@dataclass(frozen=True, eq=False)
class Mish(Gated):
    """x tanh(log(1 + exp(x))) = x n / (n + 2) with n = w (w + 2), w = exp(x)."""

    stray: float = 0.0

    knots = (-2.256376396360793, 1.4905711794854284)  # by Newton's method in 40 digits
    ends = (-45.0, 22.0)
    least: ClassVar[float] = -0.3089  # at about -1.1924 it is -0.30884

    def share(self, x: Tensor) -> Tensor:
        w = self._growth(x)
        n = w * (w + 2)
        return n / (n + 2)

    def density(self, x: Tensor) -> Tensor:
        w = self._growth(x)
        return 4 * w * (w + 1) / (w * (w + 2) + 2).square()

    def bend(self, x: Tensor) -> Tensor:
        w = self._growth(x)
        return 2 + x * ((2 * w + 1) / (w + 1) - 4 * w * (w + 1) / (w * (w + 2) + 2))

    def _growth(self, x: Tensor) -> Tensor:
        """exp(x), where it is so large that the share is 1 in every type a smaller number."""
        return torch.exp(x.clamp(max=30.0))
