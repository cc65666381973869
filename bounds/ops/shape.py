"""Operators that only move data: every output is one input or a constant, so bounds pass through without rounding.

Shapes and axes are those of the node; the tensors have one more, leading, batch axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.ops.affine import sum_to
from bounds.ops.base import MovesData, Shape, product
from bounds.patch import Patch, as_map


@dataclass(frozen=True, eq=False)
class Reshape(MovesData):
    """The same values in C order with the shape `shape`."""

    shape: Shape

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return xs[0].reshape(xs[0].shape[0], *self.shape)

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return (A.reshape(A.shape[0], *shapes[0]),)

    def local_adjoint(self, patch: Patch, *shapes: Shape) -> tuple[Patch, ...] | None:
        return (patch,) if as_map(shapes[0]) == as_map(self.shape) else None


@dataclass(frozen=True, eq=False)
class Transpose(MovesData):
    """Axis i of the result is axis permutation[i] of x."""

    permutation: tuple[int, ...]

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return xs[0].permute(0, *(axis + 1 for axis in self.permutation))

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        inverse = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)
        return (A.permute(0, *(axis + 1 for axis in inverse)),)


@dataclass(frozen=True, eq=False)
class Expand(MovesData):
    """x broadcast to `shape`, which has the rank of x."""

    shape: Shape

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return xs[0].expand(xs[0].shape[0], *self.shape)

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return (sum_to(A, shapes[0]),)


@dataclass(frozen=True, eq=False)
class Slice(MovesData):
    """x[start:stop:step, ...] with one (start, stop, step) per axis, all non-negative and step positive."""

    slices: tuple[tuple[int, int, int], ...]

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return xs[0][self._index]

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        x = A.new_zeros(A.shape[0], *shapes[0])
        x[self._index] = A
        return (x,)

    @property
    def _index(self) -> tuple[slice, ...]:
        return (slice(None), *(slice(*bounds) for bounds in self.slices))


@dataclass(frozen=True, eq=False)
class Gather(MovesData):
    """Entries `index` of `axis`; that axis is replaced by the axes of `index` (int64, non-negative)."""

    axis: int
    index: Tensor

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        x, axis = xs[0], self.axis + 1
        return x.index_select(axis, self.index.flatten()).reshape(*x.shape[:axis], *self.index.shape, *x.shape[axis + 1 :])

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        axis = self.axis + 1
        x = A.new_zeros(A.shape[0], *shapes[0])
        flat = A.reshape(A.shape[0], *shapes[0][: self.axis], self.index.numel(), *shapes[0][axis:])
        return (x.index_add_(axis, self.index.flatten(), flat),)


@dataclass(frozen=True, eq=False)
class Window(MovesData):
    """The taps of pooling windows. x: (1, channels, *spatial) -> (1, channels, windows, taps).

    index: (windows, taps), int64, positions in the flattened spatial axes.
    """

    index: Tensor

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return xs[0].flatten(3).index_select(3, self.index.flatten()).unflatten(3, self.index.shape)

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        x = A.new_zeros(*A.shape[:3], product(shapes[0][2:]))
        return (x.index_add_(3, self.index.flatten(), A.flatten(3)).reshape(A.shape[0], *shapes[0]),)


@dataclass(frozen=True, eq=False)
class Concat(MovesData):
    """The inputs one after the other along `axis`, with constants between them.

    gaps: lengths of the constant parts before, between and after the inputs (one more than inputs), or None for none.
    offset: the constants at their places and zeros elsewhere, broadcastable to the output; None when there are no gaps.
    """

    axis: int
    gaps: tuple[int, ...] | None = None
    offset: Tensor | None = None

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        if self.gaps is None:
            return torch.cat(xs, dim=self.axis + 1)
        parts = [self._zeros(xs[0], self.gaps[0])]
        for x, gap in zip(xs, self.gaps[1:], strict=True):
            parts += [x, self._zeros(x, gap)]
        return torch.cat(parts, dim=self.axis + 1)

    def bias(self) -> Tensor | None:
        return self.offset

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        gaps = self.gaps or (0,) * (len(shapes) + 1)
        start, parts = gaps[0], []
        for shape, gap in zip(shapes, gaps[1:], strict=True):
            parts.append(A.narrow(self.axis + 1, start, shape[self.axis]))
            start += shape[self.axis] + gap
        return tuple(parts)

    def _zeros(self, like: Tensor, length: int) -> Tensor:
        shape = list(like.shape)
        shape[self.axis + 1] = length
        return like.new_zeros(shape)


@dataclass(frozen=True, eq=False)
class Pad(MovesData):
    """x framed by constants. pads: one (begin, end) per axis, negative to crop.

    offset: the constants in the frame and zeros elsewhere, broadcastable to the output; None for a frame of zeros.
    """

    pads: tuple[tuple[int, int], ...]
    offset: Tensor | None = None

    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        return F.pad(xs[0], [p for pair in reversed(self.pads) for p in pair])

    def bias(self) -> Tensor | None:
        return self.offset

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        return (F.pad(A, [-p for pair in reversed(self.pads) for p in pair]),)
