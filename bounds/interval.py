"""Interval: an element-wise enclosure lower <= x <= upper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        lower, upper = self.lower.to(device=device, dtype=dtype), self.upper.to(device=device, dtype=dtype)
        if torch.finfo(dtype).bits < torch.finfo(self.lower.dtype).bits:
            lower = torch.where(lower > self.lower, torch.nextafter(lower, lower.new_tensor(-torch.inf)), lower)
            upper = torch.where(upper < self.upper, torch.nextafter(upper, upper.new_tensor(torch.inf)), upper)
        return Interval(lower, upper)

    def is_finite(self) -> bool:
        """Whether every bound is an ordinary number."""
        return bool(torch.isfinite(self.lower).all() and torch.isfinite(self.upper).all())
