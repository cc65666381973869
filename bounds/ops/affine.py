"""Affine operators with weights: y = sum_j W_j x_j + b.

Weights stay exactly as the model stores them; a coefficient that has to be computed from several stored numbers (a batch normalisation's
scale) is computed in the working type and its roundings are counted in `terms`. Shapes in comments leave out the leading batch axis N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.ops.base import Affine, Shape, product

Sizes = tuple[int, ...]


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
class Conv(Affine):
    """Convolution. x: (1, channels, *spatial), weight: (out, channels / groups, *kernel), 1 to 3 spatial axes.

    pads: one (begin, end) per spatial axis, not negative. offset: broadcastable to the output or None.
    """

    weight: Tensor
    offset: Tensor | None
    strides: Sizes
    pads: tuple[tuple[int, int], ...]
    dilations: Sizes
    groups: int = 1

    @cached_property
    def absolute_weight(self) -> Tensor:
        """|W|."""
        return self.weight.abs()

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        x = xs[0].flatten(0, 1)
        return self._convolve(x, self.absolute_weight if absolute else self.weight).unflatten(0, xs[0].shape[:2])

    def bias(self) -> Tensor | None:
        return self.offset

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        weight = self.absolute_weight if absolute else self.weight
        spatial = shapes[0][2:]
        symmetric = all(begin == end for begin, end in self.pads)
        padded = tuple(size + begin + end for size, (begin, end) in zip(spatial, self.pads, strict=True))
        extra = tuple(
            size - ((out - 1) * s + d * (k - 1) + 1)
            for size, out, s, d, k in zip(padded, A.shape[3:], self.strides, self.dilations, self.weight.shape[2:], strict=True)
        )
        crop = tuple(begin if symmetric else 0 for begin, _ in self.pads)
        x = _CONV_TRANSPOSE[len(spatial)](A.flatten(0, 1), weight, None, self.strides, crop, extra, self.groups, self.dilations)
        if not symmetric:
            x = F.pad(x, [-p for pair in reversed(self.pads) for p in pair])
        return (x.unflatten(0, A.shape[:2]),)

    def terms(self, *shapes: Shape) -> int:
        return product(self.weight.shape[1:]) + (self.offset is not None)

    def adjoint_terms(self, *shapes: Shape) -> int:
        return self.weight.shape[0] // self.groups * _taps(self.weight.shape[2:], self.strides, self.dilations)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        padding = tuple(begin for begin, _ in self.pads)
        if any(begin != end for begin, end in self.pads):
            x, padding = F.pad(x, [p for pair in reversed(self.pads) for p in pair]), (0,) * len(self.pads)
        return _CONV[len(self.strides)](x, weight, None, self.strides, padding, self.dilations, self.groups)


@dataclass(frozen=True, eq=False)
class ConvTranspose(Affine):
    """Transposed convolution. x: (1, channels, *spatial), weight: (channels, out / groups, *kernel), 1 to 3 spatial axes.

    The full result of length (size - 1) stride + (kernel - 1) dilation + 1 is cropped by pads (begin, end) per spatial axis and, where
    the end is negative, extended by zeros (ONNX's output_padding). offset: broadcastable to the output or None.
    """

    weight: Tensor
    offset: Tensor | None
    strides: Sizes
    pads: tuple[tuple[int, int], ...]
    dilations: Sizes
    groups: int = 1

    @cached_property
    def absolute_weight(self) -> Tensor:
        """|W|."""
        return self.weight.abs()

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        weight = self.absolute_weight if absolute else self.weight
        zeros = (0,) * len(self.strides)
        convolve = _CONV_TRANSPOSE[len(self.strides)]
        y = convolve(xs[0].flatten(0, 1), weight, None, self.strides, zeros, zeros, self.groups, self.dilations)
        y = F.pad(y, [-p for pair in reversed(self.pads) for p in pair])
        return y.unflatten(0, xs[0].shape[:2])

    def bias(self) -> Tensor | None:
        return self.offset

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        weight = self.absolute_weight if absolute else self.weight
        full = F.pad(A.flatten(0, 1), [p for pair in reversed(self.pads) for p in pair])
        x = _CONV[len(self.strides)](full, weight, None, self.strides, 0, self.dilations, self.groups)
        return (x.unflatten(0, A.shape[:2]),)

    def terms(self, *shapes: Shape) -> int:
        taps = _taps(self.weight.shape[2:], self.strides, self.dilations)
        return self.weight.shape[0] // self.groups * taps + (self.offset is not None)

    def adjoint_terms(self, *shapes: Shape) -> int:
        return product(self.weight.shape[1:])


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _taps(kernel: Shape, strides: Sizes, dilations: Sizes) -> int:
    """The most kernel taps through which one input of a convolution reaches its outputs."""
    return math.prod(math.ceil(k * math.gcd(s, d) / s) for k, s, d in zip(kernel, strides, dilations, strict=True))
