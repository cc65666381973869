"""Logarithm of a sum of exponentials over an axis, from which softmax is made: softmax(x)_i = exp(x_i - LSE(x)).

Numerics: planes are computed in float64; slopes are chosen, rounded and from then on fixed, and the intercepts below hold for any slopes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding
from bounds.interval import Interval
from bounds.linear import Relaxation
from bounds.ops.base import Activation, Slopes
from bounds.ops.piecewise import finite_ends
from bounds.ops.smooth import FLOAT32_ULPS, KERNEL_ULPS

_EXACT = torch.float64


@dataclass(frozen=True, eq=False)
class LogSumExp(Activation):
    """LSE(x) = log sum_j exp(x_j) over the last axis: (..., k) -> (...). Convex, increasing, its gradient is softmax(x).

    The planes are sums over that axis: slopes have the shape of the input, intercepts the shape of the output.
    """

    convex = True

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.logsumexp(xs[0], dim=-1)

    def interval(self, *xs: Interval) -> Interval:
        """The values at the ends."""
        (x,) = xs
        lower, upper = finite_ends(x, self)
        low, high = torch.logsumexp(lower, -1), torch.logsumexp(upper, -1)
        dtype = x.lower.dtype
        return Interval(
            rounding.round_down(rounding.below(low, _kernel_error(lower, low)), dtype),
            rounding.round_up(rounding.above(high, _kernel_error(upper, high)), dtype),
        )

    def unstable(self, x: Interval) -> Tensor:
        """Everywhere but at single points."""
        return x.lower < x.upper

    def float_error(self, x: Interval) -> Tensor:
        """A float32 execution subtracts the largest entry, adds k exponentials of relative accuracy `FLOAT32_ULPS` and takes the logarithm."""
        size, terms = x.magnitude.to(_EXACT).amax(-1), x.lower.shape[-1]
        eps = torch.finfo(torch.float32).eps
        error = (terms + 2 * FLOAT32_ULPS) * eps + 4 * eps * size + FLOAT32_ULPS * eps * (size + torch.log(torch.tensor(float(terms))))
        return rounding.round_up(rounding.SAFETY * error, x.lower.dtype)

    def gather(self, terms: Tensor) -> Tensor:
        return terms.sum(-1)

    def spread(self, A: Tensor) -> Tensor:
        """(..., *output_shape) -> (..., *output_shape, 1), which broadcasts against slopes of the input's shape without a copy."""
        return A.unsqueeze(-1)

    def relax(self, x: Interval, slopes: Slopes = "adaptive") -> Relaxation:
        """Below: the tangent at the midpoint m, LSE(x) >= LSE(m) + <softmax(m), x - m>. Above, with c = log sum_j (exp l_j + exp u_j) / 2,

            LSE(x) <= c - 1 + sum_j exp(x_j - c) <= c - 1 + sum_j chord_j(x_j),

        the chords of exp(x_j - c) on [l_j, u_j]: of all c the lowest at m. "parallel" takes the tangent's slopes s for both: the second sum is
        at most sum_j s_j x_j + max over the ends of exp(x_j - c) - s_j x_j. Property: sound. Reference: D. Wei et al., Convex bounds on the
        softmax function with applications to robustness verification, 2023, sections 3 and 4.
        """
        dtype = x.lower.dtype
        lower, upper = finite_ends(x, self)
        middle = lower / 2 + upper / 2
        value, weights = torch.logsumexp(middle, -1), torch.softmax(middle, -1)
        low = weights.to(dtype)
        tallest = torch.logsumexp(torch.cat([lower, upper], -1), -1) - torch.log(torch.tensor(2.0, dtype=_EXACT))
        ends = [torch.exp(side - tallest.unsqueeze(-1)) for side in (lower, upper)]
        run = upper - lower
        chord = torch.where(run > 0, (ends[1] - ends[0]) / torch.where(run > 0, run, 1.0), ends[0])
        chord = torch.minimum(torch.maximum(chord, ends[0]), ends[1])
        high = low if slopes == "parallel" else chord.to(dtype)
        return Relaxation(
            low,
            rounding.round_down(self._below((lower, upper), middle, (value, weights), low.to(_EXACT)), dtype),
            high,
            rounding.round_up(self._above((lower, upper), tallest, ends, high.to(_EXACT)), dtype),
        )

    def _below(self, ends: tuple[Tensor, Tensor], point: Tensor, tangent: tuple[Tensor, Tensor], slope: Tensor) -> Tensor:
        """A number <= LSE(x) - <slope, x> on the interval: the tangent's at `point`, less what slopes that differ from its can lose."""
        value, weights = tangent
        terms = point.shape[-1]
        reach = torch.maximum(ends[1] - point, point - ends[0])
        softmax_error = (terms + 8 * KERNEL_ULPS) * 2 * rounding.gamma(1, _EXACT) + 2 * rounding.gamma(2, _EXACT) * point.abs().amax(
            -1, keepdim=True
        )
        loss = ((slope - weights).abs() + (1 + weights) * softmax_error * weights + rounding.underflow(8, _EXACT)) * reach
        products = slope * point
        error = loss.sum(-1) + rounding.gamma(terms + 4, _EXACT) * (products.abs().sum(-1) + value.abs()) + _kernel_error(point, value)
        return rounding.below(value - products.sum(-1), error * rounding.SAFETY)

    def _above(self, ends: tuple[Tensor, Tensor], c: Tensor, heights: list[Tensor], slope: Tensor) -> Tensor:
        """A number >= LSE(x) - <slope, x> on the interval: c - 1 + the sum over j of the larger of exp(x_j - c) - slope_j x_j at the two ends."""
        terms = slope.shape[-1]
        tops, sizes = [], []
        for end, height in zip(ends, heights, strict=True):
            product = slope * end
            shift = (end - c.unsqueeze(-1)).abs()
            error = height * ((KERNEL_ULPS + 4) * 2 + 2 * shift) * rounding.gamma(1, _EXACT) + rounding.underflow(4, _EXACT)
            tops.append(height - product + error)
            sizes.append(height + product.abs())
        total = torch.maximum(*tops).sum(-1)
        size = torch.maximum(*sizes).sum(-1) + c.abs() + 1
        return rounding.above(c - 1 + total, rounding.gamma(terms + 8, _EXACT) * size)


def _kernel_error(x: Tensor, value: Tensor) -> Tensor:
    """What torch.logsumexp may be off by in float64: it subtracts the largest entry, adds k exponentials and takes the logarithm."""
    largest = x.amax(-1)
    spread = (x - largest.unsqueeze(-1)).abs()
    lost = (torch.exp(-spread) * (1 + spread)).sum(-1)  # the rounding of x_j - max counts for what exp(x_j - max) adds
    relative = (x.shape[-1] + 4 * KERNEL_ULPS) * 2 * rounding.gamma(1, _EXACT)
    return relative + 2 * rounding.gamma(1, _EXACT) * (lost + largest.abs() + value.abs()) * KERNEL_ULPS
