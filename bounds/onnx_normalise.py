"""Mean and standard deviation in front of a network, as nodes of the ONNX model itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bounds.errors import ModelError, ShapeError
from bounds.onnx_file import dimensions, parse_model, read_model


def normalised(model: str | Path | bytes, mean: Sequence[float], std: Sequence[float]) -> bytes:
    """The model x -> model((x - mean) / std), as the bytes of an ONNX file; mean and std are stored in the model's input type.

    The engines and ONNX Runtime both see the two added nodes, so proofs and counterexamples are about the same function of pixels in [0, 1].
    mean, std: one number for all inputs or one a channel, where the channels are axis 1 or else the last axis of the model's input.

    Raises:
        ModelError: the file cannot be read, a std is not positive, the model does not have one floating-point input. ShapeError: the input
            has no axis with that many channels.
    """
    data, what, folder = read_model(model)
    proto = parse_model(data, what, folder)
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in stored]
    if len(inputs) != 1:
        raise ModelError(f"{what} has {len(inputs)} inputs; mean and std can be put in front of a model with one")
    if not all(math.isfinite(m) for m in mean) or not all(math.isfinite(s) and s > 0 for s in std):
        raise ModelError("mean has to be finite and std positive; give the numbers the network was trained with")
    _prepend(proto.graph, inputs[0], mean, std, what)
    return proto.SerializeToString()


def _prepend(graph: onnx.GraphProto, x: onnx.ValueInfoProto, mean: Sequence[float], std: Sequence[float], what: str) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(x.type.tensor_type.elem_type)
    if not np.issubdtype(dtype, np.floating):
        raise ModelError(f"{what} reads {dtype} inputs; mean and std need a floating-point input")
    rank, axis = _channels(x, max(len(mean), len(std)), what)
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {x.name}
    names = [_free(f"normalise_{part}", taken) for part in ("mean", "std", "shifted", "scaled")]
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == x.name:
                node.input[position] = names[3]
    for values, name in ((mean, names[0]), (std, names[1])):
        shape = [1] * rank
        shape[axis] = len(values)
        graph.initializer.append(numpy_helper.from_array(np.array(values, dtype).reshape(shape), name))
    graph.node.insert(0, helper.make_node("Sub", [x.name, names[0]], [names[2]], name=names[2]))
    graph.node.insert(1, helper.make_node("Div", [names[2], names[1]], [names[3]], name=names[3]))


def _channels(x: onnx.ValueInfoProto, count: int, what: str) -> tuple[int, int]:
    """The rank of the input and the axis of its channels."""
    shape = dimensions(x)
    if not shape:
        raise ShapeError(f"{what}: the shape of its input is not declared; export it with one")
    if count == 1:
        return len(shape), 0
    axis = next((axis for axis in (1, len(shape) - 1) if axis < len(shape) and shape[axis] == count), None)
    if axis is None:
        raise ShapeError(
            f"{what} reads inputs of shape {shape}, which has no axis of {count} channels for mean and std; give one number each"
        )
    return len(shape), axis


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
