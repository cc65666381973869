"""Coefficients that live in a small window of a map.

A row of a backward walk that starts at one position of a map touches, some convolutions further down, only a window around it. A `Patch`
holds the windows of T rows of one node. All rows share one geometry: the row that started at (y, x) has its window's corner at
(y, x) * scale + offset. Entries beyond the map's edge belong to zero padding; whoever reads a patch drops them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds import rounding

Shape = tuple[int, ...]
Pair = tuple[int, int]


def as_map(shape: Shape) -> tuple[int, int, int] | None:
    """(channels, height, width) if the shape is such a map up to leading ones, else None."""
    if len(shape) < 3 or any(size != 1 for size in shape[:-3]):
        return None
    return shape[-3], shape[-2], shape[-1]


def as_maps(values: Tensor) -> Tensor:
    """Values (B, ..., channels, height, width) with ones between as (B, channels, height, width)."""
    return values.reshape(values.shape[0], *values.shape[-3:])


@dataclass(frozen=True, eq=False)
class Patch:
    """Windows A (T, channels, height, width), channels last in memory, of rows that belong to `image` (T,) and started at position y, x (T,) each."""

    A: Tensor
    image: Tensor
    y: Tensor
    x: Tensor
    scale: Pair = (1, 1)
    offset: Pair = (0, 0)

    @property
    def size(self) -> Pair:
        """Height and width of the windows."""
        return self.A.shape[2], self.A.shape[3]

    def _corner(self) -> tuple[Tensor, Tensor]:
        return self.y * self.scale[0] + self.offset[0], self.x * self.scale[1] + self.offset[1]

    def windows(self, maps: Tensor) -> Tensor:
        """The rows' windows of maps (images, channels, height, width): (T, channels, *size), zero beyond the edges, channels last in memory."""
        padded, rows = self._places(maps.shape[2], maps.shape[3])
        above, below, before, after = padded
        last = F.pad(maps, (before, after, above, below)).permute(0, 2, 3, 1).contiguous()
        run = self.size[1] * maps.shape[1]
        # Row k of this view is the run of `width` positions that starts at position k: a gather of windows copies whole runs.
        runs = last.as_strided((last.numel() // maps.shape[1] - self.size[1] + 1, run), (maps.shape[1], 1))
        stride = last.shape[1] * last.shape[2]
        found = runs.index_select(0, (self.image.unsqueeze(1) * stride + rows).flatten())
        return found.view(len(self.y), *self.size, maps.shape[1]).permute(0, 3, 1, 2)

    def _places(self, height: int, width: int) -> tuple[tuple[int, int, int, int], Tensor]:
        """How far windows reach beyond a map (above, below, before, after), and where each window row starts in the padded map, (T, tall)."""
        (tall, wide), (top, left) = self.size, self._corner()
        low_y, high_y, low_x, high_x = torch.stack([top.min(), top.max(), left.min(), left.max()]).tolist()
        above, below = max(0, -low_y), max(0, high_y + tall - height)
        before, after = max(0, -low_x), max(0, high_x + wide - width)
        lines = (top + above).unsqueeze(1) + torch.arange(tall, device=top.device)
        return (above, below, before, after), lines * (before + width + after) + (left + before).unsqueeze(1)

    @staticmethod
    def sums(values: Tensor) -> Tensor:
        """Sums over a window's positions in the working type, then over channels in float64: (T, channels, height, width) -> (T,)."""
        return values.permute(0, 2, 3, 1).flatten(1, 2).sum(1).to(torch.float64).sum(1)

    def sums_error(self) -> float:
        """Relative error allowance of `sums` of products with windows like these."""
        return rounding.gamma(self.size[0] * self.size[1] + 2, self.A.dtype) + rounding.gamma(self.A.shape[1] + 2, torch.float64)

    def inside(self, height: int, width: int) -> Patch:
        """The same patch with entries beyond the edges of a (height, width) map set to zero."""
        top, left = self._corner()
        rows = top.unsqueeze(1) + torch.arange(self.size[0], device=top.device)
        columns = left.unsqueeze(1) + torch.arange(self.size[1], device=top.device)
        good_rows, good_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        if bool(good_rows.all()) and bool(good_columns.all()):
            return self
        mask = good_rows.unsqueeze(2) & good_columns.unsqueeze(1)
        return replace(self, A=self.A * mask.unsqueeze(1))

    def dense(self, channels: int, height: int, width: int) -> Tensor:
        """The rows as whole maps (T, channels, height, width)."""
        (above, below, before, after), rows = self._places(height, width)
        full = self.A.new_zeros(len(self.y), above + height + below, before + width + after, channels)
        stride = full.shape[1] * full.shape[2]
        runs = full.as_strided((full.numel() // channels - self.size[1] + 1, self.size[1] * channels), (channels, 1))
        starts = torch.arange(len(self.y), device=self.y.device).unsqueeze(1) * stride + rows
        runs.index_copy_(0, starts.flatten(), self.A.permute(0, 2, 3, 1).reshape(starts.numel(), -1))
        return full[:, above : above + height, before : before + width].permute(0, 3, 1, 2).contiguous()

    def merge(self, other: Patch) -> Patch | None:
        """The sum of two patches of the same rows and node, in the smallest window that holds both; None if their scales differ."""
        if self.scale != other.scale:
            return None
        offset = min(self.offset[0], other.offset[0]), min(self.offset[1], other.offset[1])
        ends = [max(p.offset[axis] + p.size[axis] for p in (self, other)) for axis in (0, 1)]

        def widened(patch: Patch) -> Tensor:
            top, left = patch.offset[0] - offset[0], patch.offset[1] - offset[1]
            bottom, right = ends[0] - patch.offset[0] - patch.size[0], ends[1] - patch.offset[1] - patch.size[1]
            return F.pad(patch.A, (left, right, top, bottom)) if top or left or bottom or right else patch.A

        return replace(self, A=widened(self) + widened(other), offset=offset)
