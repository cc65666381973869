"""Affine operators with weights: y = sum_j W_j x_j + b.

Weights stay exactly as the model stores them; a coefficient that has to be computed from several stored numbers (a batch normalisation's
scale) is computed in the working type and its roundings are counted in `terms`. Shapes in comments leave out the leading batch axis N.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.ops.base import Affine, Shape, product
from bounds.patch import Patch


@dataclass(frozen=True, eq=False)
class Linear(Affine):
    """y = x W^T + b over the last axis. x: (..., n), weight: (m, n), offset: broadcastable to the output (..., m) or None."""

    weight: Tensor
    offset: Tensor | None = None

    @cached_property
    def absolute_weight(self) -> Tensor:
        """|W|."""
        return self.weight.abs()

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return F.linear(xs[0], self.absolute_weight if absolute else self.weight)

    def bias(self) -> Tensor | None:
        return self.offset

    def forward(self, *xs: Tensor) -> Tensor:
        if self.offset is not None and self.offset.dim() == 1:
            return F.linear(xs[0], self.weight, self.offset)
        return super().forward(*xs)

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return (torch.matmul(A, self.absolute_weight if absolute else self.weight),)

    def unit_adjoint(self, elements: Tensor, *shapes: Shape) -> tuple[Tensor, ...] | None:
        if product(shapes[0]) != self.weight.shape[1]:
            return None
        return (self.weight.index_select(0, elements.flatten()).reshape(*elements.shape, *shapes[0]),)

    def terms(self, *shapes: Shape) -> int:
        return self.weight.shape[1] + (self.offset is not None)

    def adjoint_terms(self, *shapes: Shape) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class LeftLinear(Affine):
    """y = W x + b over the last axis but one. x: (..., n, k), weight: (m, n), offset: broadcastable to the output (..., m, k) or None."""

    weight: Tensor
    offset: Tensor | None = None

    @cached_property
    def absolute_weight(self) -> Tensor:
        """|W|."""
        return self.weight.abs()

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return _multiply_left(self.absolute_weight if absolute else self.weight, xs[0])

    def bias(self) -> Tensor | None:
        return self.offset

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return (_multiply_left((self.absolute_weight if absolute else self.weight).T, A),)

    def terms(self, *shapes: Shape) -> int:
        return self.weight.shape[1] + (self.offset is not None)

    def adjoint_terms(self, *shapes: Shape) -> int:
        return self.weight.shape[0]


def _multiply_left(weight: Tensor, x: Tensor) -> Tensor:
    """W x; a single column per point becomes one matrix product over the whole batch."""
    if x.shape[-1] == 1:
        return F.linear(x.squeeze(-1), weight).unsqueeze(-1)
    return torch.matmul(weight, x)


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """y = s x element-wise. factor: broadcast against x, rank at most that of x; the result may be larger than x."""

    elementwise = True

    factor: Tensor

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return xs[0] * (self.factor.abs() if absolute else self.factor)

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return (sum_to(A * (self.factor.abs() if absolute else self.factor), shapes[0]),)

    def terms(self, *shapes: Shape) -> int:
        return 1

    def adjoint_terms(self, *shapes: Shape) -> int:
        return 1 + broadcast_copies(self.factor.shape, shapes[0])


@dataclass(frozen=True, eq=False)
class Divide(Affine):
    """y = x / d element-wise, one rounding, the quotient never replaced by a product. divisor: broadcast like `Scale.factor`, not 0."""

    elementwise = True

    divisor: Tensor

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return xs[0] / (self.divisor.abs() if absolute else self.divisor)

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return (sum_to(A / (self.divisor.abs() if absolute else self.divisor), shapes[0]),)

    def terms(self, *shapes: Shape) -> int:
        return 1

    def adjoint_terms(self, *shapes: Shape) -> int:
        return 1 + broadcast_copies(self.divisor.shape, shapes[0])


@dataclass(frozen=True, eq=False)
class Shift(Affine):
    """y = x + f t element-wise. offset t: broadcast against x, rank at most that of x; factor f: a scalar tensor, or None for 1."""

    elementwise = True

    offset: Tensor
    factor: Tensor | None = None

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        x = xs[0]
        return x.expand(x.shape[0], *broadcast_shape(x.shape[1:], self.offset.shape))

    def bias(self) -> Tensor:
        return self.offset if self.factor is None else self.offset * self.factor

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return (sum_to(A, shapes[0]),)

    def terms(self, *shapes: Shape) -> int:
        return 1 if self.factor is None else 2

    def adjoint_terms(self, *shapes: Shape) -> int:
        return broadcast_copies(self.offset.shape, shapes[0]) + (self.factor is not None)


@dataclass(frozen=True, eq=False)
class AddBranches(Affine):
    """y = x_1 + ... + x_n with broadcasting; all inputs have the same rank."""

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return functools.reduce(torch.add, xs)

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return tuple(sum_to(A, shape) for shape in shapes)

    def local_adjoint(self, patch: Patch, *shapes: Shape) -> tuple[Patch, ...] | None:
        return (patch,) * len(shapes) if len(set(shapes)) == 1 else None


@dataclass(frozen=True, eq=False)
class SubBranches(Affine):
    """y = x_1 - x_2 with broadcasting; both inputs have the same rank."""

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return xs[0] + xs[1] if absolute else xs[0] - xs[1]

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return sum_to(A, shapes[0]), sum_to(A if absolute else -A, shapes[1])

    def local_adjoint(self, patch: Patch, *shapes: Shape) -> tuple[Patch, ...] | None:
        return (patch, replace(patch, A=-patch.A)) if len(set(shapes)) == 1 else None


@dataclass(frozen=True, eq=False)
class BatchNormalization(Affine):
    """y = s (x - mean) + beta with s = gamma / sqrt(variance + epsilon) per channel. x: (1, channels, *spatial); parameters: (channels,).

    The four parameters stay as stored: s and the bias beta - s mean are computed in the working type, with 4 and 2 roundings.
    """

    elementwise = True

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor
    epsilon: float
    spatial: int

    @cached_property
    def scale(self) -> Tensor:
        """s, shaped (channels, 1, ..., 1)."""
        return self._per_channel(self.gamma / torch.sqrt(self.variance + self.epsilon))

    @cached_property
    def shift(self) -> Tensor:
        """beta - s mean, shaped (channels, 1, ..., 1)."""
        return self._per_channel(self.beta) - self.scale * self._per_channel(self.mean)

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return xs[0] * (self.scale.abs() if absolute else self.scale)

    def bias(self) -> Tensor:
        return self.shift

    def bias_magnitude(self) -> Tensor:
        """|s| |mean| + |beta|: the original runtime may subtract the mean from x first, and so do the roundings of the bias."""
        return self.scale.abs() * self._per_channel(self.mean).abs() + self._per_channel(self.beta).abs()

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return (self.linear(A, absolute=absolute),)

    def terms(self, *shapes: Shape) -> int:
        return 8

    def adjoint_terms(self, *shapes: Shape) -> int:
        return 7

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *(1,) * self.spatial)


@dataclass(frozen=True, eq=False)
class ReduceSum(Affine):
    """y = sum of x over `axes` (of the node's shape, not negative)."""

    axes: tuple[int, ...]
    keepdims: bool

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return xs[0].sum(dim=[axis + 1 for axis in self.axes], keepdim=self.keepdims)

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return (_spread_over(A, shapes[0], self.axes),)


@dataclass(frozen=True, eq=False)
class ReduceMean(Affine):
    """y = mean of x over `axes` (of the node's shape, not negative): the sum divided by the count, so one more rounding."""

    axes: tuple[int, ...]
    keepdims: bool

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        total = xs[0].sum(dim=[axis + 1 for axis in self.axes], keepdim=self.keepdims)
        return total / product([xs[0].shape[axis + 1] for axis in self.axes])

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return (_spread_over(A / product([shapes[0][axis] for axis in self.axes]), shapes[0], self.axes),)

    def terms(self, *shapes: Shape) -> int:
        return product([shapes[0][axis] for axis in self.axes]) + 1

    def adjoint_terms(self, *shapes: Shape) -> int:
        return 1


def sum_to(A: Tensor, shape: Shape) -> Tensor:
    """The adjoint of broadcasting: A (M, *large) summed to (M, *shape), the shapes aligned at the right."""
    surplus = A.dim() - 1 - len(shape)
    axes = [*range(1, surplus + 1), *(k + surplus + 1 for k, n in enumerate(shape) if n == 1 and A.shape[k + surplus + 1] != 1)]
    return A.sum(dim=axes).reshape(A.shape[0], *shape) if axes else A


def broadcast_shape(*shapes: Shape) -> Shape:
    """The shape that tensors of these shapes broadcast to (torch's own function takes 0.3 s the first time, for symbolic sizes)."""
    return np.broadcast_shapes(*(tuple(shape) for shape in shapes))


def broadcast_copies(constant: Shape, shape: Shape) -> int:
    """How many outputs one element of `shape` reaches when it is broadcast against `constant`; 0 when each reaches one."""
    copies = product(broadcast_shape(constant, shape)) // product(shape)
    return copies if copies > 1 else 0


def _spread_over(A: Tensor, shape: Shape, axes: tuple[int, ...]) -> Tensor:
    kept = [1 if axis in axes else n for axis, n in enumerate(shape)]
    return A.reshape(A.shape[0], *kept).expand(A.shape[0], *shape)
