"""How Resize, Upsample and the operators that trade channels for space become operators of ours; the table is at the end.

Interpolation is a product of one matrix an axis. The matrix is read off from the operator's reference implementation on unit vectors, so that
no coordinate rule is written again here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bounds.onnx_graph import Handler, NodeReader
from bounds.ops.affine import Linear
from bounds.ops.base import Shape
from bounds.ops.shape import Gather, Transpose

_INTERPOLATIONS = ("nearest", "linear", "cubic")
_UPSAMPLE = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
"""The rules of Upsample, and of Resize in operator set 10."""


def _resize(node: NodeReader) -> int:
    """Sizes or scales are constants; a region of interest is not supported."""
    node.require("keep_aspect_ratio_policy", "stretch")
    node.require("antialias", 0)
    node.ignore("extrapolation_value")
    if node.opset < 11:
        return _resampled(node, _per_axis(node, node.constant(1)), dict(_UPSAMPLE))
    rules = {
        "coordinate_transformation_mode": node.attribute("coordinate_transformation_mode", "half_pixel"),
        "nearest_mode": node.attribute("nearest_mode", "round_prefer_floor"),
        "cubic_coeff_a": node.attribute("cubic_coeff_a", -0.75),
        "exclude_outside": node.attribute("exclude_outside", 0),
    }
    if rules["coordinate_transformation_mode"] == "tf_crop_and_resize":
        raise node.refuse("coordinate_transformation_mode = 'tf_crop_and_resize' is not supported")
    scales = node.constant(2) if node.has(2) else np.empty(0)
    if scales.size:
        return _resampled(node, _per_axis(node, scales), rules)
    if not node.has(3):
        raise node.misfit("has neither scales nor sizes")
    return _resampled(node, _per_axis(node, node.constant(3)), rules, sized=True)


def _upsample(node: NodeReader) -> int:
    scales = node.constant(1) if node.has(1) else np.asarray(node.attribute("scales", []))
    return _resampled(node, _per_axis(node, scales), dict(_UPSAMPLE))


def _per_axis(node: NodeReader, values: np.ndarray) -> dict[int, float]:
    """Scales or sizes by axis."""
    rank, listed = len(node.shape(0)), node.attribute("axes")
    axes = range(rank) if listed is None else [node.axis(a, rank) for a in listed]
    if values.size != len(axes):
        raise node.misfit(f"{values.size} scales or sizes do not fit {len(axes)} axes")
    return dict(zip(axes, values.reshape(-1).tolist(), strict=True))


def _resampled(node: NodeReader, wanted: dict[int, float], rules: Mapping[str, Any], *, sized: bool = False) -> int:
    """One axis after the other: by index where every value is one of the input's, by a matrix elsewhere. wanted: scales, or sizes if `sized`."""
    mode, source = node.attribute("mode", "nearest"), node.source(0)
    mode = {"bilinear": "linear", "trilinear": "linear"}.get(mode, mode)
    if mode not in _INTERPOLATIONS:
        raise node.refuse(f"attribute mode = {mode!r} is not understood")
    for axis, value in wanted.items():
        size = node.builder.shape(source)[axis]
        if value != (size if sized else 1):
            source = _along(node, source, axis, _matrix(node, size, value, sized=sized, rules={**rules, "mode": mode}))
    return source


def _matrix(node: NodeReader, size: int, wanted: float, *, sized: bool, rules: Mapping[str, Any]) -> torch.Tensor:
    """W, (new size, size), with resized x = W x along one axis."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    kind, values = ("sizes", np.array([size, int(wanted)])) if sized else ("scales", np.array([1.0, wanted], np.float32))
    inputs = ["x", "", "", "sizes"] if sized else ["x", "", "scales"]
    made = onnx.helper.make_node("Resize", inputs, ["y"], **rules)
    graph = onnx.helper.make_graph(
        [made],
        "one axis",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [size, size])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(values, kind)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    try:
        (found,) = ReferenceEvaluator(model).run(None, {"x": np.eye(size, dtype=np.float32)})
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
        raise node.refuse(f"an axis of {size} cannot be resized to {wanted:g}: {str(error).splitlines()[0]}") from error
    return torch.from_numpy(np.ascontiguousarray(np.asarray(found, np.float32).T))


def _along(node: NodeReader, source: int, axis: int, matrix: torch.Tensor) -> int:
    """matrix x along an axis."""
    if bool(((matrix == 0) | (matrix == 1)).all() and (matrix.sum(1) == 1).all()):
        return node.emit(Gather(axis, matrix.argmax(1)), source)
    rank = len(node.builder.shape(source))
    order = (*(k for k in range(rank) if k != axis), axis)
    back = tuple(order.index(k) for k in range(rank))
    if axis == rank - 1:
        return node.emit(Linear(matrix), source)
    return node.emit(Transpose(back), node.emit(Linear(matrix), node.emit(Transpose(order), source)))


def _depth_to_space(node: NodeReader) -> int:
    n, channels, height, width = _image(node)
    block, mode = node.attribute("blocksize"), node.attribute("mode", "DCR")
    if channels % (block * block):
        raise node.misfit(f"{channels} channels are no multiple of {block} x {block}")
    left = channels // (block * block)
    shape, order = {
        "DCR": ((n, block, block, left, height, width), (0, 3, 4, 1, 5, 2)),
        "CRD": ((n, left, block, block, height, width), (0, 1, 4, 2, 5, 3)),
    }[mode]
    moved = node.emit(Transpose(order), node.reshape(node.source(0), shape))
    return node.reshape(moved, (n, left, height * block, width * block))


def _space_to_depth(node: NodeReader) -> int:
    n, channels, height, width = _image(node)
    block = node.attribute("blocksize")
    if height % block or width % block:
        raise node.misfit(f"blocks of {block} x {block} do not tile {height} x {width}")
    apart = node.reshape(node.source(0), (n, channels, height // block, block, width // block, block))
    return node.reshape(node.emit(Transpose((0, 3, 5, 1, 2, 4)), apart), (n, channels * block * block, height // block, width // block))


def _image(node: NodeReader) -> Shape:
    shape = node.shape(0)
    if len(shape) != 4:
        raise node.misfit(f"expects batch, channels, height and width, got shape {shape}")
    return shape


RESIZE_HANDLERS: dict[str, Handler] = {
    "DepthToSpace": _depth_to_space,
    "Resize": _resize,
    "SpaceToDepth": _space_to_depth,
    "Upsample": _upsample,
}
