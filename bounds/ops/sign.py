"""Jumps: the sign, and comparisons that other operators make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import UnsupportedOpError
from bounds.interval import Interval
from bounds.linear import Relaxation
from bounds.ops.base import Activation, Op, Slopes
from bounds.ops.piecewise import finite_ends

_EXACT = torch.float64


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


@dataclass(frozen=True, eq=False)
class Exceeds(Op):
    """Whether x > threshold. A network never holds it: while a model is read it stands for a condition until what that selects is known."""

    threshold: float

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] > self.threshold

    def interval(self, *xs: Interval) -> Interval:
        raise UnsupportedOpError("a comparison has no bounds; rewrite the model without it")
