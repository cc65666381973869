"""Linear bounds: relaxations of activations, linear enclosures of outputs, half-spaces of outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds import rounding
from bounds.interval import Interval

if TYPE_CHECKING:
    from bounds.region import Region


@dataclass(frozen=True, eq=False)
class Relaxation:
    """For every input z of an activation inside its interval: lower_slope z + lower_intercept <= act(z) <= upper_slope z + upper_intercept.

    All tensors have the shape (batch, *shape) of the activation's *input*. The slopes are exact numbers of the working type and the
    intercepts are rounded outward after the slopes were fixed, so that the inequality holds for real arithmetic.
    For `MaxReduce` the planes are sums over the reduced axis and the intercepts have the shape of the output.
    """

    lower_slope: Tensor
    lower_intercept: Tensor
    upper_slope: Tensor
    upper_intercept: Tensor


@dataclass(frozen=True, eq=False)
class LinearBounds:
    """lower_A x + lower_b <= C f(x) <= upper_A x + upper_b for every x of the region.

    lower_A, upper_A: (batch, rows, *input_shape); lower_b, upper_b: (batch, rows), the accumulated rounding error already subtracted
    (added). The statement holds for real arithmetic with the coefficients as stored.
    """

    lower_A: Tensor
    lower_b: Tensor
    upper_A: Tensor
    upper_b: Tensor

    def concretize(self, region: Region) -> Interval:
        """The interval that the two planes imply on `region`, rounded outward; shape (batch, rows)."""
        lower = rounding.below(self.lower_b + region.minimise(self.lower_A))
        upper = rounding.above(self.upper_b - region.minimise(-self.upper_A))
        return Interval(lower, upper)


@dataclass(frozen=True, eq=False)
class Halfspaces:
    """The set {y : C y <= d} of network outputs; C: (rows, outputs) float64, d: (rows,) float64, y flattened in C order."""

    C: Tensor
    d: Tensor

    def margin(self, y: Tensor) -> Tensor:
        """max over rows of (C y - d): <= 0 exactly when y is in the set. y: (..., outputs)."""
        return (torch.einsum("ro,...o->...r", self.C.to(y), y) - self.d.to(y)).amax(dim=-1)

    def contains(self, y: Tensor) -> Tensor:
        """Whether y lies in the set, with zero tolerance, evaluated in the type of y."""
        return self.margin(y) <= 0
