"""How each ONNX operator that only moves data becomes operators of ours. One function an operator; the table is at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from bounds.onnx_graph import Handler, NodeReader
from bounds.ops.base import Shape
from bounds.ops.shape import Concat, Expand, Gather, Pad, Slice, Transpose


def _identity(node: NodeReader) -> int:
    return node.source(0)


def _dropout(node: NodeReader) -> int:
    node.ignore("ratio", "seed")
    node.require("is_test", 1)
    if node.has(2) and bool(node.constant(2).any()):
        raise node.refuse("training_mode is on", "export the model in evaluation mode")
    return node.source(0)


_FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16 = 1, 10, 11, 16


def _cast(node: NodeReader) -> int:
    """Between floating-point types: the identity over the reals."""
    node.ignore("saturate")
    node.require("to", _FLOAT, _DOUBLE, _FLOAT16, _BFLOAT16)
    return node.source(0)


def _cast_like(node: NodeReader) -> int:
    """As `_cast`; tensors computed from the input have floating-point type."""
    node.ignore("saturate")
    if node.is_constant(1) and not np.issubdtype(node.constant(1).dtype, np.floating):
        raise node.refuse(f"a cast to {node.constant(1).dtype} is not supported")
    return node.source(0)


def _reshape(node: NodeReader) -> int:
    shape = node.shape(0)
    wanted = node.integers(1) if node.has(1) else node.attribute("shape")
    if wanted is None:
        raise node.misfit("has no target shape")
    if node.builder.declared_batch > 1 and wanted[:1] == [node.builder.declared_batch]:
        node.builder.batch_is_baked_in = True
        wanted = [1, *wanted[1:]]
    keep_zero = bool(node.attribute("allowzero", 0))
    target = [shape[i] if n == 0 and not keep_zero and i < len(shape) else n for i, n in enumerate(wanted)]
    if -1 in target:
        known = math.prod(n for n in target if n != -1)
        if target.count(-1) > 1 or known == 0 or math.prod(shape) % known:
            raise node.misfit(f"cannot reshape {shape} to {wanted}")
        target[target.index(-1)] = math.prod(shape) // known
    if math.prod(target) != math.prod(shape):
        raise node.misfit(
            f"cannot reshape {shape} to {wanted}; if the model was exported for another batch size, export it for batch size 1"
        )
    return node.reshape(node.source(0), target)


def _flatten(node: NodeReader) -> int:
    shape = node.shape(0)
    axis = node.attribute("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        raise node.misfit(f"axis {axis} is out of range for an input of shape {shape}")
    axis = axis + len(shape) if axis < 0 else axis
    return node.reshape(node.source(0), (math.prod(shape[:axis]), math.prod(shape[axis:])))


def _listed_axes(node: NodeReader) -> list[int] | None:
    """Axes from the second input, or from the attribute of old operator sets."""
    return node.integers(1) if node.has(1) else node.attribute("axes")


def _squeeze(node: NodeReader) -> int:
    shape = node.shape(0)
    listed = _listed_axes(node)
    axes = [i for i, n in enumerate(shape) if n == 1] if listed is None else node.axes(listed, len(shape))
    if any(shape[axis] != 1 for axis in axes):
        raise node.misfit(f"axes {axes} of shape {shape} are not all of size 1")
    return node.reshape(node.source(0), [n for i, n in enumerate(shape) if i not in axes])


def _unsqueeze(node: NodeReader) -> int:
    listed = _listed_axes(node)
    if listed is None:
        raise node.misfit("has no axes")
    rank = len(node.shape(0)) + len(listed)
    axes, rest = node.axes(listed, rank), iter(node.shape(0))
    return node.reshape(node.source(0), [1 if i in axes else next(rest) for i in range(rank)])


def _transpose(node: NodeReader) -> int:
    rank = len(node.shape(0))
    permutation = tuple(node.attribute("perm", list(reversed(range(rank)))))
    if sorted(permutation) != list(range(rank)):
        raise node.misfit(f"perm {permutation} does not permute the axes of shape {node.shape(0)}")
    return node.source(0) if permutation == tuple(range(rank)) else node.emit(Transpose(permutation), node.source(0))


def _slice(node: NodeReader) -> int:
    """x[start:end:step] per axis; axes with a negative step are gathered."""
    shape = node.shape(0)
    starts, ends, axes, steps = _slice_arguments(node, len(shape))
    slices = [(0, n, 1) for n in shape]
    backward: list[tuple[int, np.ndarray]] = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step == 0:
            raise node.misfit("a step is 0")
        bounds = slice(start, end if step > 0 or end >= -shape[axis] else None, step).indices(shape[axis])
        if len(range(*bounds)) == 0:
            raise node.misfit(f"takes nothing from axis {axis} of shape {shape}")
        if step > 0:
            slices[axis] = bounds
        else:
            backward.append((axis, np.arange(*bounds)))
    source = node.source(0)
    if slices != [(0, n, 1) for n in shape]:
        source = node.emit(Slice(tuple(slices)), source)
    for axis, index in backward:
        source = node.emit(Gather(axis, torch.from_numpy(index)), source)
    return source


def _slice_arguments(node: NodeReader, rank: int) -> tuple[Sequence[int], Sequence[int], tuple[int, ...], Sequence[int]]:
    if node.has(1):
        starts, ends = node.integers(1), node.integers(2)
        axes = node.integers(3) if node.has(3) else range(len(starts))
        steps = node.integers(4) if node.has(4) else [1] * len(starts)
    else:
        starts, ends = node.attribute("starts", []), node.attribute("ends", [])
        axes, steps = node.attribute("axes", list(range(len(starts)))), [1] * len(starts)
    found = tuple(node.axis(a, rank) for a in axes)
    if len({len(starts), len(ends), len(found), len(steps), len(set(found))}) != 1:
        raise node.misfit(f"starts {starts}, ends {ends}, axes {list(axes)} and steps {steps} do not go together")
    return starts, ends, found, steps


def _gather(node: NodeReader) -> int:
    shape = node.shape(0)
    axis = node.axis(node.attribute("axis", 0), len(shape))
    index = node.constant(1).astype(np.int64)
    if index.size == 0 or index.min() < -shape[axis] or index.max() >= shape[axis]:
        raise node.misfit(f"indices do not fit axis {axis} of shape {shape}")
    return node.emit(Gather(axis, torch.from_numpy(np.asarray(index % shape[axis]))), node.source(0))


def _split(node: NodeReader) -> list[int]:
    shape, outputs = node.shape(0), len(node.node.outputs)
    axis = node.axis(node.attribute("axis", 0), len(shape))
    chunk = -(-shape[axis] // node.attribute("num_outputs", outputs))
    even = [chunk] * (outputs - 1) + [shape[axis] - chunk * (outputs - 1)]
    sizes = node.integers(1) if node.has(1) else node.attribute("split", even)
    if len(sizes) != outputs or sum(sizes) != shape[axis] or min(sizes) < 1:
        raise node.misfit(f"sizes {sizes} do not split axis {axis} of shape {shape} into {outputs}")
    ends = [sum(sizes[: i + 1]) for i in range(outputs)]
    return [node.emit(Slice(_one_axis(shape, axis, (end - size, end, 1))), node.source(0)) for size, end in zip(sizes, ends, strict=True)]


def _one_axis(shape: Shape, axis: int, bounds: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    return tuple(bounds if i == axis else (0, n, 1) for i, n in enumerate(shape))


def _concat(node: NodeReader) -> int:
    """Computed tensors and constants along an axis; the constants become gaps filled by the bias."""
    rank = len(node.shape(0))
    axis = node.axis(node.attribute("axis"), rank)
    sources, gaps, parts = [], [0], []
    for position in range(node.inputs):
        shape = node.shape(position)
        if len(shape) != rank or any(n != m for i, (n, m) in enumerate(zip(shape, node.shape(0), strict=True)) if i != axis):
            raise node.misfit(f"shapes {node.shape(0)} and {shape} cannot be joined along axis {axis}")
        if node.is_constant(position):
            gaps[-1] += shape[axis]
            parts.append(node.weight(position))
        else:
            sources.append(node.source(position))
            gaps.append(0)
            parts.append(torch.zeros(shape))
    if sum(gaps) == 0:
        return node.emit(Concat(axis), *sources)
    constants = [part.dtype for i, part in enumerate(parts) if node.is_constant(i)]
    offset = torch.cat([part.to(constants[0]) for part in parts], dim=axis)
    return node.emit(Concat(axis, tuple(gaps), offset), *sources)


def _pad(node: NodeReader) -> int:
    shape = node.shape(0)
    rank, mode = len(shape), node.attribute("mode", "constant")
    flat = node.integers(1) if node.has(1) else node.attribute("pads")
    axes = [node.axis(a, rank) for a in node.integers(3)] if node.has(3) else list(range(rank))
    if flat is None or len(flat) != 2 * len(axes) or len(set(axes)) < len(axes):
        raise node.misfit(f"pads {flat} do not fit an input of shape {shape}")
    pads = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        pads[axis] = (flat[i], flat[len(axes) + i])
    if mode != "constant":
        return _pad_by_index(node, mode, pads)
    value = float(node.weight(2).reshape(-1)[0]) if node.has(2) else node.attribute("value", 0.0)
    if not math.isfinite(value):
        raise node.refuse(f"the padding value is {value}")
    if value == 0.0:
        return node.emit(Pad(tuple(pads)), node.source(0)) if any(map(any, pads)) else node.source(0)
    like = node.weight(2).dtype if node.has(2) else torch.float32
    offset = F.pad(torch.zeros(shape, dtype=like), [p for pair in reversed(pads) for p in pair], value=value)
    return node.emit(Pad(tuple(pads), offset), node.source(0))


_NUMPY_MODES = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}


def _pad_by_index(node: NodeReader, mode: str, pads: list[tuple[int, int]]) -> int:
    """Padding that repeats entries of the input, as one gather per padded axis."""
    if mode not in _NUMPY_MODES:
        raise node.refuse(f"attribute mode = {mode!r} is not understood")
    source = node.source(0)
    for axis, (begin, end) in enumerate(pads):
        if (begin, end) == (0, 0):
            continue
        size = node.builder.shape(source)[axis]
        index = np.pad(np.arange(size), (max(begin, 0), max(end, 0)), mode=_NUMPY_MODES[mode])  # type: ignore[call-overload]
        index = index[max(-begin, 0) : len(index) - max(-end, 0)]
        source = node.emit(Gather(axis, torch.from_numpy(index)), source)
    return source


def _expand(node: NodeReader) -> int:
    try:
        shape = np.broadcast_shapes(node.shape(0), tuple(node.integers(1)))
    except ValueError as error:
        raise node.misfit(f"cannot broadcast {node.shape(0)} to {node.integers(1)}") from error
    source = node.with_rank(node.source(0), len(shape))
    return source if node.builder.shape(source) == shape else node.emit(Expand(shape), source)


def _tile(node: NodeReader) -> int:
    source, repeats = node.source(0), node.integers(1)
    if len(repeats) != len(node.shape(0)) or min(repeats, default=1) < 1:
        raise node.misfit(f"repeats {repeats} do not fit an input of shape {node.shape(0)}")
    for axis, (size, times) in enumerate(zip(node.shape(0), repeats, strict=True)):
        if times > 1:
            source = node.emit(Gather(axis, torch.arange(size).repeat(times)), source)
    return source


SHAPE_HANDLERS: dict[str, Handler] = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
