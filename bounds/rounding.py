"""The one place that reasons about floating-point error.

Notation: u is the unit roundoff of a type (2^-24, 2^-53) and gamma(n) = n u / (1 - n u). Whatever the order of summation and with
or without FMA, |fl(sum_{i<=n} a_i b_i) - sum a_i b_i| <= gamma(n) sum |a_i||b_i| + n eta, where eta covers underflow.
Every allowance returned here is inflated by `SAFETY`, which pays for computing the allowances themselves in floating point.

Reference: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, sections 3.1 and 3.5.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bounds.errors import NumericsError

SAFETY = 1.05
"""Allowances are sums of non-negative terms computed in the working type; their relative error is far below 5 %."""


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Kernels that round every product and sum once in the working type: no TF32 or bfloat16 products, no autocast, no Winograd or FFT.

    Every engine computes inside it; the summation bounds of this module hold for no other kernels.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), _plain_convolutions(device):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _plain_convolutions(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """cuDNN picks its algorithm by speed, transforms included; without it convolutions are matrix products."""
    return torch.backends.cudnn.flags(enabled=False) if device.type == "cuda" else contextlib.nullcontext()


@functools.lru_cache(maxsize=64)
def _infinity(sign: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(sign * math.inf, dtype=dtype, device=device)


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


class _Neighbour(torch.autograd.Function):
    """The next number towards another one, with the derivative of the identity: torch defines none."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, towards: Tensor) -> Tensor:
        return torch.nextafter(value, towards)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _neighbour(value: Tensor, sign: int) -> Tensor:
    """The next number below (sign -1) or above (sign 1)."""
    towards = _infinity(sign, value.dtype, value.device)
    return _Neighbour.apply(value, towards) if wants_gradient(value) else torch.nextafter(value, towards)  # type: ignore[no-untyped-call]


def quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b where that is used. With gradients a zero divisor counts as 1, so that the quotients not used have finite derivatives."""
    return a / torch.where(b == 0, 1.0, b) if wants_gradient(a, b) else a / b


def below(value: Tensor, error: Tensor | float = 0.0) -> Tensor:
    """A number <= value - error for the exact difference."""
    return _neighbour(value - error, -1)


def above(value: Tensor, error: Tensor | float = 0.0) -> Tensor:
    """A number >= value + error for the exact sum."""
    return _neighbour(value + error, 1)


def sum_below(a: Tensor, b: Tensor) -> Tensor:
    """The largest number <= a + b for the exact sum of finite numbers."""
    total, rest = _two_sum(a, b)
    return torch.where(rest < 0, _neighbour(total, -1), total)


def sum_above(a: Tensor, b: Tensor) -> Tensor:
    """The smallest number >= a + b for the exact sum of finite numbers."""
    return -sum_below(-a, -b)


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Knuth's TwoSum: the rounded sum and what it misses, whose exact sum is a + b."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def round_down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The values converted to `dtype`, never upward."""
    if value.dtype == dtype:
        return value
    converted = value.to(dtype)
    return torch.where(converted > value, _neighbour(converted, -1), converted)


def round_up(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The values converted to `dtype`, never downward."""
    if value.dtype == dtype:
        return value
    converted = value.to(dtype)
    return torch.where(converted < value, _neighbour(converted, 1), converted)


_SEGMENT = 256
"""Non-zero terms summed in the working type before the sum goes on in float64: gamma of a segment, not of the whole row, is paid."""

_FEW = 2**15
"""Numbers a segment up to which its overhead counts more than a pass over memory."""


def segments(v: Tensor) -> tuple[tuple[int, int], ...]:
    """Column ranges of v (B, *shape), flattened to (B, n), that hold at most `_SEGMENT` columns with a non-zero; zero columns may be left out."""
    columns = math.prod(v.shape[1:])
    if v.dtype == torch.float64 or columns <= _SEGMENT:
        return ((0, columns),) if bool(v.any()) else ()
    used = v.flatten(1).ne(0).any(0).nonzero().flatten()
    if used.numel() == 0:
        return ()
    starts = used[::_SEGMENT].tolist()
    stops = [*(used[_SEGMENT - 1 :: _SEGMENT] + 1).tolist(), int(used[-1]) + 1]
    return tuple(zip(starts, stops[: len(starts)], strict=True))


def matvec(A: Tensor, v: Tensor) -> Tensor:
    """<A_r, v> in the tensors' type, by sums of products in some order. A: (B, R, n), v: (B, n) -> (B, R).

    The vector stands on the left: on a CPU torch's batched product of matrices with columns takes five to fifteen times as long.
    """
    if A.shape[1] == 1:
        return (A * v.unsqueeze(1)).sum(-1)
    return torch.bmm(v.unsqueeze(1), A.transpose(1, 2)).squeeze(1)


def dot(A: Tensor, v: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    """<A_r, v> in float64. A: (B, R, n), v: (B, n), ranges = segments(v). The relative error against <|A_r|, |v|> is `dot_error`."""
    if A.numel() <= _FEW * len(ranges):
        return (A * v.unsqueeze(1)).sum(-1, dtype=torch.float64)  # every product is rounded once, and few tensors are made
    total = A.new_zeros(A.shape[:2], dtype=torch.float64)
    for start, stop in ranges:
        total += matvec(A[:, :, start:stop], v[:, start:stop])
    return total


def dot_error(dtype: torch.dtype, columns: int) -> float:
    """Relative error allowance of `dot` for rows of `columns` entries."""
    terms = columns if dtype == torch.float64 else min(columns, _SEGMENT)
    return gamma(terms + 1, dtype) + gamma(columns // _SEGMENT + 2, torch.float64)


def dot_above(A: Tensor, v: Tensor, ranges: tuple[tuple[int, int], ...] | None = None) -> Tensor:
    """An upper bound in float64 of <A_r, v> for non-negative A and v. A: (B, R, n), v: (B, n) -> (B, R). ranges: segments(v), or those of a
    batch that v is part of."""
    total = dot(A, v, segments(v) if ranges is None else ranges)
    return above(total, dot_error(v.dtype, v.shape[-1]) * total + underflow(v.shape[-1] + 2, v.dtype))
