"""Small ONNX models for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(7)


def R(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def I(*values: int) -> np.ndarray:  # noqa: E743
    return np.array(values, dtype=np.int64)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str | None]],
    constants: dict[str, np.ndarray] | None = None,
    outputs: Sequence[str | tuple[str, Sequence[int | str]]] = ("y",),
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
) -> bytes:
    """A small model as bytes."""
    values = [helper.make_tensor_value_info(n, dtype, s) for n, s in inputs.items()]
    results = [
        helper.make_tensor_value_info(o, dtype, None) if isinstance(o, str) else helper.make_tensor_value_info(o[0], dtype, o[1])
        for o in outputs
    ]
    initializers = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", values, results, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()
