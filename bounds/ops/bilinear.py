"""Products of two computed tensors: y = sum over terms of a b, element-wise or as matrices.

Planes. For every term, with midpoints c and radii r of the two intervals and deviations d from the midpoints, a b = c_a c_b + c_b d_a + c_a d_b +
d_a d_b and, for any sigma in [-1, 1],

    sigma (r_b d_a + r_a d_b) - r_a r_b <= d_a d_b <= sigma (r_b d_a - r_a d_b) + r_a r_b:

sigma = -1 and 1 are McCormick's planes, sigma = 0 the tangent plane at the midpoints, whose slopes are the same on both sides.

Numerics: planes are computed in float64. Slopes p (of a) and q (of b) are chosen, rounded to the working type and from then on fixed; since
a b - p a - q b = (a - q) (b - p) - p q is bilinear, its extremes are at corners, for any slopes.

Reference: G. McCormick, Computability of global solutions to factorable nonconvex programs, 1976; Z. Shi et al., Robustness verification for
transformers, 2020.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding
from bounds.interval import Interval
from bounds.ops.affine import broadcast_shape, sum_to
from bounds.ops.base import Op, Shape, Slopes, product

_EXACT = torch.float64
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class TwoPlanes:
    """sum of (lower[0] a + lower[1] b) + below <= y <= sum of (upper[0] a + upper[1] b) + above, the sums over each output's terms.

    Slopes (B, *terms) in the working type, exact; intercepts (B, *output) in float64, rounded outward after the slopes were fixed.
    parallel: the slopes of both sides are the same.
    """

    lower: Pair
    below: Tensor
    upper: Pair
    above: Tensor
    parallel: bool


class Bilinear(Op):
    """y = sum over terms of a b. A subclass says how its two inputs and its output are laid out over the terms.

    Slopes, products and charges live on the terms, (N, *terms); tensors that `lift` and `spread` return broadcast to that shape.
    """

    @abstractmethod
    def lift(self, a: Tensor, b: Tensor) -> Pair:
        """The inputs laid out over the terms."""

    @abstractmethod
    def collect(self, terms: Tensor) -> Tensor:
        """Terms added up: (N, *terms) -> (N, *output)."""

    @abstractmethod
    def spread(self, A: Tensor) -> Tensor:
        """Coefficients on the output laid out over the terms. A: (..., *output)."""

    @abstractmethod
    def sums(self, *shapes: Shape) -> int:
        """Number of terms of one output."""

    @abstractmethod
    def pull(self, A: Tensor, slopes: Pair, *shapes: Shape) -> Pair:
        """Coefficients on the two inputs: A times the slopes, summed over the terms that an element is in.

        A: (B, R, *output), slopes: (B, *terms) each -> (B, R, *shape) each.
        """

    def uses(self, *shapes: Shape) -> int:
        """Largest number of terms that one element of an input is in."""
        terms = self.sums(*shapes) * product(self._output(*shapes))
        return max(terms // product(shape) for shape in shapes)

    def _output(self, *shapes: Shape) -> Shape:
        return tuple(self.forward(*(torch.zeros(1, *shape) for shape in shapes)).shape[1:])

    def interval(self, *xs: Interval) -> Interval:
        """Every term's smallest and largest corner, added up and rounded outward."""
        lowers, uppers = self.lift(*(x.lower.to(_EXACT) for x in xs)), self.lift(*(x.upper.to(_EXACT) for x in xs))
        low, high = _corners(lowers[0], uppers[0], lowers[1], uppers[1])
        dtype = xs[0].lower.dtype
        error = self._rounding(torch.maximum(low.abs(), high.abs()), 2)
        lower, upper = rounding.below(self.collect(low), error), rounding.above(self.collect(high), error)
        return Interval(rounding.round_down(lower, dtype), rounding.round_up(upper, dtype))

    def magnitude(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum of |a| |b|, for magnitudes a and b."""
        left, right = self.lift(a, b)
        return self.collect(left * right)

    def relax(self, a: Interval, b: Interval, slopes: Slopes = "adaptive") -> TwoPlanes:
        """Planes that enclose the product for a and b in their intervals. "parallel": sigma = 0. "adaptive": the sigma of every term whose plane
        is best on the term's own box; of several the one furthest from 0. Property: sound."""
        dtype = a.lower.dtype
        mids = self.lift(*(x.lower.to(_EXACT) / 2 + x.upper.to(_EXACT) / 2 for x in (a, b)))
        if slopes == "parallel":
            shared = self._slopes(mids, dtype)
            below, above = self._intercept(a, b, shared, -1), self._intercept(a, b, shared, 1)
            return TwoPlanes(shared, below, shared, above, parallel=True)
        radii = self.lift(*((x.upper.to(_EXACT) - x.lower.to(_EXACT)) / 2 for x in (a, b)))
        pairs = []
        for side in (-1, 1):
            sigma = _best_sigma(mids, radii, side)
            pairs.append(self._slopes((mids[0] - side * sigma * radii[0], mids[1] + sigma * radii[1]), dtype))
        lower, upper = pairs
        return TwoPlanes(lower, self._intercept(a, b, lower, -1), upper, self._intercept(a, b, upper, 1), parallel=False)

    def _slopes(self, values: Pair, dtype: torch.dtype) -> Pair:
        """The slope of a is a value of b and the other way round, rounded and laid out over the terms."""
        a, b = torch.broadcast_tensors(*values)
        return b.to(dtype), a.to(dtype)

    def _intercept(self, a: Interval, b: Interval, slopes: Pair, side: int) -> Tensor:
        """A number >= (side 1) or <= (side -1) y less the slopes' part on the box: the extreme corners of (a - q) (b - p) - p q, added up."""
        p, q = (s.to(_EXACT) for s in slopes)
        low_a, low_b = self.lift(a.lower.to(_EXACT), b.lower.to(_EXACT))
        high_a, high_b = self.lift(a.upper.to(_EXACT), b.upper.to(_EXACT))
        low, high = _corners(low_a - q, high_a - q, low_b - p, high_b - p)
        extreme, constant = high if side > 0 else low, p * q
        error = self._rounding(torch.maximum(low.abs(), high.abs()) + constant.abs(), 5)
        total = self.collect(extreme - constant)
        return rounding.above(total, error) if side > 0 else rounding.below(total, error)

    def _rounding(self, sizes: Tensor, each: int) -> Tensor:
        """What adding up terms of these sizes may lose in float64, when each has been rounded `each` times."""
        total = self.collect(sizes)
        count = math.prod(sizes.shape[1:]) // max(1, math.prod(total.shape[1:]))
        return rounding.gamma(count + each, _EXACT) * total + rounding.underflow(count + each, _EXACT)


def _corners(low_a: Tensor, high_a: Tensor, low_b: Tensor, high_b: Tensor) -> Pair:
    """The smallest and largest product of the ends."""
    products = (low_a * low_b, low_a * high_b, high_a * low_b, high_a * high_b)
    low, high = torch.minimum(products[0], products[1]), torch.maximum(products[0], products[1])
    for other in products[2:]:
        low, high = torch.minimum(low, other), torch.maximum(high, other)
    return low, high


def _best_sigma(mids: Pair, radii: Pair, side: int) -> Tensor:
    """The sigma that makes |c_b + sigma r_b| r_a + |c_a -+ sigma r_a| r_b smallest, -+ by side: what the plane may lose over the box.

    The sum is flat between the two zeros, clamped to [-1, 1]. Of these the one further from 0 is taken, a corner plane where there is one: on
    attention layers that gives bounds up to a tenth narrower than their mean. The sign of the first factor decides between -1 and 1.
    """
    zeros = []
    for mid, radius, sign in ((mids[1], radii[1], -1.0), (mids[0], radii[0], float(side))):
        zeros.append((sign * mid / torch.where(radius > 0, radius, 1.0)).clamp(-1.0, 1.0))
    first, second = zeros
    return torch.where(first.abs() > second.abs(), first, second)


@dataclass(frozen=True, eq=False)
class Multiply(Bilinear):
    """y = a b element-wise with broadcasting; both inputs have the same rank."""

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] * xs[1]

    def lift(self, a: Tensor, b: Tensor) -> Pair:
        return a, b

    def collect(self, terms: Tensor) -> Tensor:
        return terms

    def spread(self, A: Tensor) -> Tensor:
        return A

    def sums(self, *shapes: Shape) -> int:
        return 1

    def pull(self, A: Tensor, slopes: Pair, *shapes: Shape) -> Pair:
        left, right = (sum_to((A * slope.unsqueeze(1)).flatten(0, 1), shape) for slope, shape in zip(slopes, shapes, strict=True))
        return left.unflatten(0, A.shape[:2]), right.unflatten(0, A.shape[:2])


@dataclass(frozen=True, eq=False)
class MatrixProduct(Bilinear):
    """y = a b over the last two axes, (..., n, t) and (..., t, m) -> (..., n, m), the axes before them broadcast; both inputs have the same rank.

    The terms are (..., n, t, m).
    """

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.matmul(*xs)

    def lift(self, a: Tensor, b: Tensor) -> Pair:
        return a.unsqueeze(-1), b.unsqueeze(-3)

    def collect(self, terms: Tensor) -> Tensor:
        return terms.sum(-2)

    def spread(self, A: Tensor) -> Tensor:
        return A.unsqueeze(-2)

    def sums(self, *shapes: Shape) -> int:
        return shapes[0][-1]

    def magnitude(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b)

    def pull(self, A: Tensor, slopes: Pair, *shapes: Shape) -> Pair:
        """Batched matrix products: for every n over m, and for every m over n."""
        p, q = slopes
        rows = A.movedim(1, -2)  # (B, ..., n, R, m)
        left = torch.matmul(rows, p.transpose(-1, -2)).movedim(-2, 1)
        columns = A.transpose(-1, -2).movedim(1, -2)  # (B, ..., m, R, n)
        right = torch.matmul(columns, q.movedim(-1, -3)).movedim(-2, 1).transpose(-1, -2)
        pulled = [sum_to(x.flatten(0, 1), shape).unflatten(0, A.shape[:2]) for x, shape in zip((left, right), shapes, strict=True)]
        return pulled[0], pulled[1]

    def _output(self, *shapes: Shape) -> Shape:
        return (*broadcast_shape(shapes[0][:-2], shapes[1][:-2]), shapes[0][-2], shapes[1][-1])
