"""Convolutions and the other affine operators on windows.

Weights stay exactly as the model stores them. Shapes in comments leave out the leading batch axis N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds import rounding
from bounds.ops.base import Affine, Shape, product
from bounds.patch import Patch

Sizes = tuple[int, ...]


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
        if self._is_thin and symmetric:
            return (self._scatter(A.flatten(0, 1), weight, spatial, crop).unflatten(0, A.shape[:2]),)
        x = _CONV_TRANSPOSE[len(spatial)](A.flatten(0, 1), weight, None, self.strides, crop, extra, self.groups, self.dilations)
        if not symmetric:
            x = F.pad(x, [-p for pair in reversed(self.pads) for p in pair])
        return (x.unflatten(0, A.shape[:2]),)

    def terms(self, *shapes: Shape) -> int:
        return product(self.weight.shape[1:]) + (self.offset is not None)

    def adjoint_terms(self, *shapes: Shape) -> int:
        return self.weight.shape[0] // self.groups * _taps(self.weight.shape[2:], self.strides, self.dilations)

    @property
    def _is_thin(self) -> bool:
        """So few input channels for its stride that a matrix product and a scatter beat the library's transposed convolution 2 to 3 times."""
        channels, kernel = self.weight.shape[1], product(self.weight.shape[2:])
        strided = any(s > 1 for s in self.strides)
        return len(self.strides) == 2 and self.groups == 1 and (channels <= 4 or (strided and (channels <= 8 or kernel == 1)))

    def _scatter(self, A: Tensor, weight: Tensor, size: Sizes, padding: Sizes) -> Tensor:
        """The adjoint as products with all kernel taps, added up where they fall. A: (M, out, *spatial) -> (M, channels, *size)."""
        if rounding.wants_gradient(A) and not weight.requires_grad:
            return _Scattered.apply(A, weight, size, padding, self.strides, self.dilations)  # type: ignore[no-untyped-call]
        return _scattered(A, weight, size, padding, self.strides, self.dilations)

    @cached_property
    def _rows(self) -> Tensor:
        """The kernel of each output channel, (out, height * width * channels)."""
        return self.weight.permute(0, 2, 3, 1).flatten(1).contiguous()

    def local_adjoint(self, patch: Patch, *shapes: Shape) -> tuple[Patch, ...] | None:
        if len(self.strides) != 2 or any(d != 1 for d in self.dilations):
            return None
        A, kernel = patch.A, self.weight.shape[2:]
        if patch.size == (1, 1) and self.groups == 1:
            A = torch.matmul(A.flatten(1), self._rows).view(A.shape[0], *kernel, -1).permute(0, 3, 1, 2)
        elif self._is_thin:
            size = tuple((n - 1) * s + k for n, s, k in zip(patch.size, self.strides, kernel, strict=True))
            A = self._scatter(A, self.weight, size, (0, 0))
        else:
            A = F.conv_transpose2d(A, self.weight, None, self.strides, 0, 0, self.groups)
        scale = patch.scale[0] * self.strides[0], patch.scale[1] * self.strides[1]
        offset = [o * s - begin for o, s, (begin, _) in zip(patch.offset, self.strides, self.pads, strict=True)]
        return (replace(patch, A=A.contiguous(memory_format=torch.channels_last), scale=scale, offset=(offset[0], offset[1])),)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        padding = tuple(begin for begin, _ in self.pads)
        if any(begin != end for begin, end in self.pads):
            x, padding = F.pad(x, [p for pair in reversed(self.pads) for p in pair]), (0,) * len(self.pads)
        return _CONV[len(self.strides)](x, weight, None, self.strides, padding, self.dilations, self.groups)


def _scattered(A: Tensor, weight: Tensor, size: Sizes, padding: Sizes, strides: Sizes, dilations: Sizes) -> Tensor:
    taps = torch.matmul(weight.flatten(1).T, A.flatten(2))
    return F.fold(taps, size, weight.shape[2:], dilations, padding, strides)


class _Scattered(torch.autograd.Function):
    """`_scattered`, with the convolution as its derivative: torch's own goes back tap by tap, which takes three times as long."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, weight: Tensor, size: Sizes, padding: Sizes, strides: Sizes, dilations: Sizes) -> Tensor:
        ctx.window = weight, padding, strides, dilations
        return _scattered(A, weight, size, padding, strides, dilations)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, padding, strides, dilations = ctx.window
        return F.conv2d(gradient, weight, None, strides, padding, dilations), None, None, None, None, None


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


@dataclass(frozen=True, eq=False)
class AveragePool(Affine):
    """Sum over a window divided by a count. x: (1, channels, *spatial), 1 to 3 spatial axes.

    pads: one (begin, end) per spatial axis, the end long enough for the last window; counts: the divisors, shape (*output spatial).
    """

    kernel: Sizes
    strides: Sizes
    pads: tuple[tuple[int, int], ...]
    counts: Tensor

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        x = F.pad(xs[0].flatten(0, 1), [p for pair in reversed(self.pads) for p in pair])
        return self._window_sum(x).unflatten(0, xs[0].shape[:2]) / self.counts

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        axes = len(self.kernel)
        ones = A.new_ones(1, 1, *self.kernel)
        x = _CONV_TRANSPOSE[axes]((A / self.counts).flatten(0, 2).unsqueeze(1), ones, None, self.strides)
        x = F.pad(x, [-p for pair in reversed(self.pads) for p in pair])
        return (x.reshape(A.shape[0], *shapes[0]),)

    def terms(self, *shapes: Shape) -> int:
        return product(self.kernel) + 1

    def adjoint_terms(self, *shapes: Shape) -> int:
        return _taps(self.kernel, self.strides, (1,) * len(self.kernel)) + 1

    def _window_sum(self, x: Tensor) -> Tensor:
        if len(self.kernel) == 1:
            return F.avg_pool2d(x.unsqueeze(-2), (1, *self.kernel), (1, *self.strides), divisor_override=1).squeeze(-2)
        pool = F.avg_pool2d if len(self.kernel) == 2 else F.avg_pool3d
        return pool(x, self.kernel, self.strides, divisor_override=1)


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _taps(kernel: Shape, strides: Sizes, dilations: Sizes) -> int:
    """The most kernel taps through which one input of a convolution reaches its outputs."""
    return math.prod(math.ceil(k * math.gcd(s, d) / s) for k, s, d in zip(kernel, strides, dilations, strict=True))
