"""Interval: an element-wise enclosure lower <= x <= upper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding


def chosen(whole: Tensor, elements: Tensor, shape: Sequence[int]) -> Tensor:
    """Some elements of each region's values (batch, ...), by their positions in the flattened shape, as (batch, *shape)."""
    return whole.flatten(1).index_select(1, elements).unflatten(1, shape)


@dataclass(frozen=True, eq=False)
class Interval:
    """Element-wise enclosure ``lower <= x <= upper``; both tensors have shape (batch, *shape)."""

    lower: Tensor
    upper: Tensor

    @property
    def magnitude(self) -> Tensor:
        """max(|lower|, |upper|), an upper bound on |x|."""
        return torch.maximum(-self.lower, self.upper)

    @property
    def width(self) -> Tensor:
        """upper - lower (rounded to nearest: for reporting and scoring, not for proofs)."""
        return self.upper - self.lower

    @property
    def shape(self) -> torch.Size:
        """Shape of the bounds, batch dimension first."""
        return self.lower.shape

    def intersect(self, other: Interval) -> Interval:
        """The enclosure that both operands imply."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Interval:
        """Convert outward: the result contains this interval also when `dtype` is narrower."""
        if torch.finfo(dtype).bits < torch.finfo(self.lower.dtype).bits:
            return Interval(rounding.round_down(self.lower.to(device), dtype), rounding.round_up(self.upper.to(device), dtype))
        return Interval(self.lower.to(device=device, dtype=dtype), self.upper.to(device=device, dtype=dtype))

    def select(self, elements: Tensor, shape: Sequence[int]) -> Interval:
        """Some elements, by their positions in the flattened shape, as (batch, *shape)."""
        return Interval(chosen(self.lower, elements, shape), chosen(self.upper, elements, shape))

    def is_finite(self) -> bool:
        """Whether every bound is an ordinary number."""
        return bool(torch.isfinite(self.lower).all() and torch.isfinite(self.upper).all())
