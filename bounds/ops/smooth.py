"""S-shaped activations: increasing, point-symmetric about (0, centre), convex for x <= 0 and concave for x >= 0.

Numerics: everything is computed in float64 whatever the working type. A slope is chosen (any method will do), rounded to the working type
and from then on fixed; the intercept is then an upper bound on sup act(x) - slope x that holds for every slope. On the convex part the
supremum is at an end. On the concave part every tangent lies above the function, so the tangent at any point near the critical one gives
a bound. The values of exp and tanh carry `KERNEL_ULPS`, an allowance that a test measures against arbitrary-precision arithmetic.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds import rounding
from bounds.interval import Interval
from bounds.linear import Relaxation
from bounds.ops.base import Activation, Slopes
from bounds.ops.piecewise import finite_ends

KERNEL_ULPS = 4
"""Assumed accuracy of torch.sigmoid and torch.tanh in float64: relative error <= 4 * 2^-52, or absolute <= the smallest normal number."""

FLOAT32_ULPS = 8
"""Assumed accuracy of a float32 runtime's sigmoid and tanh: |error| <= 8 * 2^-23 times the largest absolute value of the function."""

_TANGENT_STEPS = 4
_LEAN = 0.7
"""Where on an interval around 0 planes are closest to the function. 0.5 makes their area least; but a row that uses the upper plane drives the
input up: 0.6 to 0.8 proves most on sigmoid and tanh networks of one and six hidden layers."""


@dataclass(frozen=True, eq=False)
class Smooth(Activation):
    """Element-wise and S-shaped. A subclass writes the function, its derivative and where that takes a given value."""

    free = True
    centre: ClassVar[float]
    low: ClassVar[float]
    high: ClassVar[float]

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """act(x), with the accuracy that `KERNEL_ULPS` states."""

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """act'(x), accurate to twice `KERNEL_ULPS` and four roundings even where it is tiny."""

    @abstractmethod
    def inverse_derivative(self, slope: Tensor) -> Tensor:
        """The point t >= 0 with act'(t) = slope: 0 for larger slopes than there are, infinity for slope <= 0."""

    def forward(self, *xs: Tensor) -> Tensor:
        return self.value(xs[0])

    def interval(self, *xs: Interval) -> Interval:
        """The values at the ends, widened by the kernel's allowance and cut to what monotony and the range imply."""
        (x,) = xs
        lower, upper = finite_ends(x, self)
        low, high = self.value(lower), self.value(upper)
        low, high = low - _value_error(low), high + _value_error(high)
        low = torch.maximum(low, torch.where(lower >= 0, self.centre, self.low))
        high = torch.minimum(high, torch.where(upper <= 0, self.centre, self.high))
        return Interval(rounding.round_down(low, x.lower.dtype), rounding.round_up(high, x.lower.dtype))

    def unstable(self, x: Interval) -> Tensor:
        """Everywhere but at single points."""
        return x.lower < x.upper

    def float_error(self, x: Interval) -> Tensor:
        """`FLOAT32_ULPS` of the function's largest absolute value (runtimes use rational approximations with absolute accuracy)."""
        return torch.full_like(x.lower, FLOAT32_ULPS * torch.finfo(torch.float32).eps * max(-self.low, self.high))

    def relax(self, x: Interval, slopes: Slopes = "adaptive") -> Relaxation:
        """Planes that enclose the activation on [lower, upper]; bounds that crossed by rounding are read as [upper, lower].

        "parallel": both slopes are the secant's, as in thesis (3.5). "adaptive": the chord on the side where the function is convex
        (concave), the tangent at the midpoint on the other; around 0 the line of the hull over a point `_LEAN` of the way to the end that the
        plane is used for: the tangent from the far end, the chord if it touches outside, or the tangent there beyond its point of contact.
        (CROWN always takes the first two, which stay far from the function on wide intervals.) Raises NumericsError where a bound is NaN or
        infinite. Property: sound.
        Reference: H. Zhang et al., Efficient neural network robustness certification with general activation functions (CROWN), 2018.
        """
        return self.fit(x, *self.usual_slopes(x, slopes))

    def usual_slopes(self, x: Interval, slopes: Slopes = "adaptive") -> tuple[Tensor, Tensor]:
        """See `relax`."""
        dtype = x.lower.dtype
        lower, upper = finite_ends(x, self)
        secant = self._secant(lower, upper)
        if slopes == "parallel":
            return secant.to(dtype), secant.to(dtype)
        return self._adaptive_slope(-upper, -lower, secant).to(dtype), self._adaptive_slope(lower, upper, secant).to(dtype)

    def fit(self, x: Interval, lower_slope: Tensor, upper_slope: Tensor) -> Relaxation:
        """See `Activation.fit`. Property: sound."""
        return self._planes(*finite_ends(x, self), lower_slope, upper_slope)

    def slope_range(self, x: Interval) -> tuple[Tensor, Tensor]:
        """The smallest and largest derivative on the interval."""
        lower, upper = finite_ends(x, self)
        nearest = torch.minimum(torch.maximum(lower, torch.zeros_like(lower)), upper)
        least = torch.minimum(self.derivative(lower), self.derivative(upper))
        return least.to(x.lower.dtype), self.derivative(nearest).to(x.lower.dtype)

    def touching(self, x: Interval, slope: Tensor, *, below: bool) -> tuple[Tensor, ...]:
        """The ends and the points between them where the derivative is the slope."""
        point = self.inverse_derivative(slope.detach())
        inner = (torch.minimum(torch.maximum(p, x.lower), x.upper) for p in (-point, point))
        return (x.lower, *inner, x.upper)

    def _planes(self, lower: Tensor, upper: Tensor, lower_slope: Tensor, upper_slope: Tensor) -> Relaxation:
        dtype = lower_slope.dtype
        low = -self._supremum(-upper, -lower, lower_slope.double(), -1)
        high = self._supremum(lower, upper, upper_slope.double(), 1)
        return Relaxation(lower_slope, rounding.round_down(low, dtype), upper_slope, rounding.round_up(high, dtype))

    def _secant(self, lower: Tensor, upper: Tensor) -> Tensor:
        """(act(upper) - act(lower)) / (upper - lower), kept within the derivative's range there: cancellation cannot spoil it."""
        run = upper - lower
        secant = torch.where(run > 0, rounding.quotient(self.value(upper) - self.value(lower), run), 0.0)
        steepest = self.derivative(torch.minimum(torch.maximum(lower, torch.zeros_like(lower)), upper))
        flattest = torch.minimum(self.derivative(lower), self.derivative(upper))
        return torch.minimum(torch.maximum(secant, flattest), steepest)

    def _adaptive_slope(self, lower: Tensor, upper: Tensor, secant: Tensor) -> Tensor:
        """Slope of the upper plane; of the lower one for the mirrored interval.

        Around 0 the line from the far end is max over t in [0, upper] of (act(t) - act(lower)) / (t - lower), by Dinkelbach's iteration: the
        t whose derivative is the ratio at hand raises the ratio, quadratically fast; its clamp to `upper` gives the chord.
        """
        start, value = lower.clamp(max=0.0), self.value(lower)
        touch = torch.minimum(-lower / 2, upper)  # where the tangent of a cubic touches: right near 0, and close enough elsewhere
        for _ in range(_TANGENT_STEPS):
            ratio = rounding.quotient(self.value(touch) - value, touch - start)
            touch = torch.minimum(self._critical(ratio), upper)
        around = (lower < 0) & (upper > 0)
        steepest = self.derivative(torch.zeros_like(lower))
        point = torch.where(around, (1 - _LEAN) * lower + _LEAN * upper, lower / 2 + upper / 2)
        tangent = self.derivative(point)
        line = torch.where(point > touch, tangent, torch.minimum(torch.maximum(ratio, secant), steepest))
        return torch.where(around, line, torch.where(lower >= 0, tangent, secant))

    def _supremum(self, lower: Tensor, upper: Tensor, slope: Tensor, side: int) -> Tensor:
        """A number >= sup of g(x) - slope x on [lower, upper] in real arithmetic, g(x) = act(x) for side 1 and -act(-x) for side -1.

        g is S-shaped with the derivative of act. Left of 0 the supremum is at an end. Right of 0, with p near the critical point,
        g(x) - slope x <= g(p) - slope p + (act'(p) - slope) (x - p).
        """
        middle = torch.minimum(torch.maximum(lower, torch.zeros_like(lower)), upper)
        ends = torch.maximum(self._residual(lower, slope, side), self._residual(middle, slope, side))
        point = torch.minimum(torch.maximum(self._critical(slope), middle), upper)
        derivative = self.derivative(point)
        tilt = derivative - slope
        error = 2 * _value_error(derivative) + rounding.gamma(5, torch.float64) * derivative + rounding.gamma(1, torch.float64) * slope
        excess = torch.maximum((error + tilt) * (upper - point), (error - tilt) * (point - middle)).clamp(min=0.0)
        excess = excess * (1 + rounding.gamma(4, torch.float64)) + rounding.underflow(4, torch.float64)
        return torch.maximum(ends, rounding.above(self._residual(point, slope, side), excess.detach()))

    @torch.no_grad()
    def _critical(self, slope: Tensor) -> Tensor:
        """`inverse_derivative` without gradients: what is computed from it is stationary in it."""
        return self.inverse_derivative(slope)

    def _residual(self, x: Tensor, slope: Tensor, side: int) -> Tensor:
        """A number >= g(x) - slope x in real arithmetic, g as in `_supremum`."""
        value, product = side * self.value(side * x), slope * x
        error = _value_error(value) + rounding.gamma(3, torch.float64) * (value.abs() + product.abs())
        return value - product + error + rounding.underflow(2, torch.float64)


def _value_error(value: Tensor) -> Tensor:
    """What `KERNEL_ULPS` allows, for computed values in float64."""
    return KERNEL_ULPS * rounding.gamma(2, torch.float64) * value.abs() + rounding.underflow(1, torch.float64)


@dataclass(frozen=True, eq=False)
class Sigmoid(Smooth):
    """1 / (1 + exp(-x))."""

    centre, low, high = 0.5, 0.0, 1.0

    def value(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x)

    def inverse_derivative(self, slope: Tensor) -> Tensor:
        """t2 of thesis Table 3.1 without its cancellation: with r = sqrt(1 - 4 d), log((1 + r)^2 / (4 d))."""
        ratio = (4 * slope).clamp(min=0.0, max=1.0)
        return 2 * torch.log1p(torch.sqrt(1 - ratio)) - torch.log(ratio)


@dataclass(frozen=True, eq=False)
class Tanh(Smooth):
    """(exp(2x) - 1) / (exp(2x) + 1)."""

    centre, low, high = 0.0, -1.0, 1.0

    def value(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def derivative(self, x: Tensor) -> Tensor:
        return 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)

    def inverse_derivative(self, slope: Tensor) -> Tensor:
        """t2 of thesis Table 3.1 without its cancellation: with r = sqrt(1 - d), atanh(r) = log((1 + r)^2 / d) / 2."""
        ratio = slope.clamp(min=0.0, max=1.0)
        return torch.log1p(torch.sqrt(1 - ratio)) - torch.log(ratio) / 2
