"""Sliding windows as ONNX describes them: kernel, strides, dilations, pads, auto_pad and ceil_mode, read once for every user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bounds.onnx_graph import NodeReader
from bounds.ops.base import Shape


@dataclass(frozen=True)
class Windows:
    """Windows over the spatial axes `spatial`: output i of an axis covers positions i stride - begin + t dilation for t < kernel."""

    spatial: Shape
    kernel: Shape
    strides: Shape
    dilations: Shape
    pads: tuple[tuple[int, int], ...]
    output: Shape

    def covering_pads(self) -> tuple[tuple[int, int], ...]:
        """Pads whose end reaches exactly the end of the last window (negative where the last window ends earlier)."""
        ends = [
            (out - 1) * s + d * (k - 1) + 1 - n - begin
            for n, k, s, d, (begin, _), out in zip(
                self.spatial, self.kernel, self.strides, self.dilations, self.pads, self.output, strict=True
            )
        ]
        return tuple((begin, end) for (begin, _), end in zip(self.pads, ends, strict=True))

    def positions(self, axis: int) -> np.ndarray:
        """Positions (output, kernel) that the windows cover along a spatial axis; those outside 0 ... size - 1 lie in the padding."""
        starts = np.arange(self.output[axis]) * self.strides[axis] - self.pads[axis][0]
        return starts[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]


def sliding_windows(node: NodeReader, kernel: Shape) -> Windows:
    """The windows that a convolution or pooling node describes over the spatial axes of its first input.

    Raises:
        UnsupportedOpError: an auto_pad value that is not understood, negative pads, or strides that are not positive.
        ShapeError: the attributes do not fit the number of axes, or there is no output.
    """
    spatial = node.shape(0)[2:]
    axes = len(spatial)
    strides, dilations = (tuple(node.attribute(name, None) or [1] * axes) for name in ("strides", "dilations"))
    flat = list(node.attribute("pads", None) or [0] * 2 * axes)
    mode = node.attribute("auto_pad", "NOTSET")
    if not len(kernel) == len(strides) == len(dilations) == axes or len(flat) != 2 * axes:
        raise node.misfit(f"kernel {kernel}, strides {strides}, dilations {dilations} and pads {flat} do not fit {axes} spatial axes")
    if min(strides) < 1 or min(dilations) < 1 or min(flat) < 0:
        raise node.refuse(f"strides {strides}, dilations {dilations} or pads {flat} are out of range")
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    ceil = bool(node.attribute("ceil_mode", 0)) if node.node.op_type != "Conv" else False
    pads = tuple(zip(flat[:axes], flat[axes:], strict=True))
    if mode != "NOTSET":
        pads = _automatic_pads(node, mode, spatial, reach, strides)
    output = tuple(_count(n + sum(p) - r, s, n + p[0], ceil=ceil) for n, p, r, s in zip(spatial, pads, reach, strides, strict=True))
    if min(output, default=1) < 1:
        raise node.misfit(f"windows of extent {reach} do not fit an input of shape {node.shape(0)} with pads {pads}")
    return Windows(tuple(spatial), kernel, strides, dilations, pads, output)


def _count(room: int, stride: int, limit: int, *, ceil: bool) -> int:
    """Number of windows: room is the padded size minus the extent; a window may not start beyond position `limit` (padding at the end)."""
    if room < 0:
        return 0
    count = (-(-room // stride) if ceil else room // stride) + 1
    return count - 1 if ceil and (count - 1) * stride >= limit else count


def _automatic_pads(node: NodeReader, mode: str, spatial: Shape, reach: list[int], strides: Shape) -> tuple[tuple[int, int], ...]:
    if mode == "VALID":
        return ((0, 0),) * len(spatial)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise node.refuse(f"attribute auto_pad = {mode!r} is not understood")
    totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in zip(spatial, reach, strides, strict=True)]
    if mode == "SAME_UPPER":
        return tuple((t // 2, t - t // 2) for t in totals)
    return tuple((t - t // 2, t // 2) for t in totals)


def average_counts(windows: Windows, *, include_pad: bool) -> np.ndarray:
    """Divisor of each output's average, shape (*output): the taps inside the input, or inside the padded input."""
    counts = np.ones(())
    for axis, size in enumerate(windows.spatial):
        begin, end = windows.pads[axis]
        first, last = (-begin, size + end) if include_pad else (0, size)
        positions = windows.positions(axis)
        counts = np.multiply.outer(counts, ((positions >= first) & (positions < last)).sum(axis=1))
    return counts


def max_taps(windows: Windows) -> list[tuple[np.ndarray, np.ndarray]]:
    """Windows grouped by how many of their taps lie inside the input: per group the flat outputs (count,) and flat taps (count, taps).

    A group with no taps comes first if there is one. Without padding there is one group.
    """
    axes = len(windows.spatial)
    flat = np.zeros((1,) * 2 * axes, dtype=np.int64)
    inside = np.ones((1,) * 2 * axes, dtype=bool)
    for axis, size in enumerate(windows.spatial):
        positions = windows.positions(axis)
        shape = [1] * 2 * axes
        shape[axis], shape[axes + axis] = positions.shape
        positions = positions.reshape(shape)
        flat, inside = flat * size + positions, inside & (positions >= 0) & (positions < size)
    outputs = int(np.prod(windows.output))
    flat, inside = flat.reshape(outputs, -1), inside.reshape(outputs, -1)
    taps = inside.sum(axis=1)
    groups = []
    for count in np.unique(taps):
        members = np.flatnonzero(taps == count)
        groups.append((members, flat[members][inside[members]].reshape(len(members), count)))
    return groups
