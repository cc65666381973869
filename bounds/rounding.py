"""The one place that reasons about floating-point error.

Notation: u is the unit roundoff of a type (2^-24, 2^-53) and gamma(n) = n u / (1 - n u). Whatever the order of summation and with
or without FMA, |fl(sum_{i<=n} a_i b_i) - sum a_i b_i| <= gamma(n) sum |a_i||b_i| + n eta, where eta covers underflow.
Every allowance returned here is inflated by `SAFETY`, which pays for computing the allowances themselves in floating point.

Reference: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, sections 3.1 and 3.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bounds.errors import NumericsError

SAFETY = 1.05
"""Allowances are sums of non-negative terms computed in the working type; their relative error is far below 5 %."""

_INF = math.inf


def unit_roundoff(dtype: torch.dtype) -> float:
    """u, half the distance from 1 to the next number: 2^-24 for float32, 2^-53 for float64."""
    return torch.finfo(dtype).eps / 2


def smallest_normal(dtype: torch.dtype) -> float:
    """eta, an upper bound on the absolute error of one product or sum that underflows (flush-to-zero included)."""
    return torch.finfo(dtype).smallest_normal


def gamma(terms: int, dtype: torch.dtype) -> float:
    """SAFETY * gamma(terms): relative error allowance of a sum of `terms` products in `dtype`.

    Raises:
        NumericsError: so many terms that the error bound is meaningless (terms * u >= 0.01).
    """
    nu = terms * unit_roundoff(dtype)
    if nu >= 0.01:
        raise NumericsError(f"a sum of {terms} products cannot be bounded in {dtype}; use float64")
    return SAFETY * nu / (1.0 - nu)


def underflow(terms: int, dtype: torch.dtype) -> float:
    """Absolute allowance for underflow in a sum of `terms` products."""
    return SAFETY * terms * smallest_normal(dtype)


def below(value: Tensor, error: Tensor | float = 0.0) -> Tensor:
    """A number <= value - error for the exact difference."""
    return torch.nextafter(value - error, value.new_tensor(-_INF))


def above(value: Tensor, error: Tensor | float = 0.0) -> Tensor:
    """A number >= value + error for the exact sum."""
    return torch.nextafter(value + error, value.new_tensor(_INF))


def round_down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The values converted to `dtype`, never upward."""
    converted = value.to(dtype)
    return torch.where(converted.to(value.dtype) > value, torch.nextafter(converted, converted.new_tensor(-_INF)), converted)


def round_up(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The values converted to `dtype`, never downward."""
    return -round_down(-value, dtype)


_SEGMENT = 256
"""Columns summed in the working type before the sum goes on in float64: gamma of a segment, not of the whole row, is paid."""


def dot(A: Tensor, v: Tensor) -> tuple[Tensor, float]:
    """<A_r, v> in float64 and a relative error g: the exact value lies within g <|A_r|, |v|> + underflow of the result.

    A: (B, R, n), v: (B, n), of one floating type -> (B, R). Zeros in v cost nothing, so only its non-zeros count as terms.
    """
    total = A.new_zeros(A.shape[:2], dtype=torch.float64)
    columns = v.shape[-1]
    width = columns if v.dtype == torch.float64 else _SEGMENT
    most = 0
    for start in range(0, columns, max(width, 1)):
        piece = v[:, start : start + width]
        terms = int((piece != 0).sum(-1).max())
        if terms == 0:
            continue
        most = max(most, terms)
        total += torch.bmm(A[:, :, start : start + width], piece.unsqueeze(-1)).squeeze(-1)
    return total, gamma(most + 1, v.dtype) + gamma(columns // max(width, 1) + 2, torch.float64)


def dot_above(A: Tensor, v: Tensor) -> Tensor:
    """An upper bound in float64 of <A_r, v> for non-negative A and v. A: (B, R, n), v: (B, n) -> (B, R)."""
    total, relative = dot(A, v)
    return above(total, relative * total + underflow(v.shape[-1] + 2, v.dtype))
