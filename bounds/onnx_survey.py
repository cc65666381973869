"""The nodes of an ONNX graph that may not be importable: what there is, and which nodes stand in the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from bounds.errors import ModelError
from bounds.onnx_file import STANDARD_DOMAINS, dimensions, parse_model, read_model
from bounds.onnx_handlers import HANDLERS
from bounds.ops.base import product

_FOLDED = {"Constant", "ConstantOfShape", "Shape", "Size"}


@dataclass(frozen=True)
class GraphRow:
    """One ONNX node. `shape`: of its first output as far as it can be inferred; `parameters`: numbers stored for it alone."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shape: tuple[int | str, ...] | None
    parameters: int
    supported: bool


def survey(model: str | Path | bytes) -> tuple[GraphRow, ...]:
    """Every node of the graph in its own order.

    `supported` is False where the operator is not known, or where its inputs are no constants and only constants could be folded away.

    Raises:
        ModelError: the file is missing or corrupt.
    """
    data, what, folder = read_model(model)
    proto = parse_model(data, what, folder)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except (RuntimeError, onnx.shape_inference.InferenceError):
        inferred = proto
    values = [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]
    shapes = {value.name: dimensions(value) for value in values}
    sizes = {tensor.name: product(tensor.dims) for tensor in proto.graph.initializer}
    if not proto.graph.node:
        raise ModelError(f"{what} holds no nodes; export it again")
    constants = set(sizes)
    rows = []
    for node in proto.graph.node:
        name = node.name or next((output for output in node.output if output), node.op_type)
        shape = shapes.get(node.output[0]) if node.output else None
        folded = node.op_type in _FOLDED or all(source in constants for source in node.input if source)
        if folded:
            constants.update(node.output)
        known = node.domain in STANDARD_DOMAINS and (folded or node.op_type in HANDLERS)
        stored = sum(sizes.get(source, 0) for source in node.input)
        rows.append(
            GraphRow(name, node.op_type, tuple(node.input), tuple(node.output), None if shape is None else tuple(shape), stored, known)
        )
    return tuple(rows)
