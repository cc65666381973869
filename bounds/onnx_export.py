"""Network -> ONNX, for networks that were made here: substitutes of imported ones.

Every node becomes the ONNX op it was imported from, or a few that give its values; the leading axis of the input is a batch of one. What is
written is read back and compared before it is handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bounds.errors import ImportMismatchError, UnsupportedOpError
from bounds.network import Network
from bounds.ops.affine import AddBranches, BatchNormalization, Divide, Linear, Scale, Shift, SubBranches
from bounds.ops.base import Input, Op
from bounds.ops.convolution import Conv
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, PRelu, Relu
from bounds.ops.shape import Concat, Gather, Reshape, Transpose
from bounds.ops.smooth import Sigmoid, Tanh
from bounds.ops.substituted import Substituted

_OPSET, _IR = 17, 8
_PLAIN: dict[type[Op], str] = {Relu: "Relu", Abs: "Abs", Sigmoid: "Sigmoid", Tanh: "Tanh", AddBranches: "Sum", SubBranches: "Sub"}
_TOLERANCE = 1e-4


def export_onnx(network: Network) -> bytes:
    """The network as an ONNX model in float32, input "input" of shape (1, *input_shape), output "output" of shape (1, *output_shape).

    Raises:
        UnsupportedOpError: an op that is not written. ImportMismatchError: what was written does not give the network's values when read back.
    """
    data = _Writer(network.to(torch.float32)).model().SerializeToString()
    again = Network.from_onnx(data)
    points = np.random.default_rng(0).random((4, *network.input_shape))
    with torch.no_grad():
        x = torch.from_numpy(points)
        ours, theirs = (net.to(torch.float64)(x).flatten(1) for net in (network, again))
    if ours.shape != theirs.shape or bool(((ours - theirs).abs() > _TOLERANCE * (1 + ours.abs().max())).any()):
        raise ImportMismatchError(
            "the network that was written as ONNX has other values when it is read back: a defect; please report the model"
        )
    return data


class _Writer:
    """One network being written."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        """The whole model."""
        network = self.network
        values: list[str] = []
        for node in network.nodes:
            if isinstance(node.op, Input):
                values.append(self.reshape("input", network.input_shape))
            else:
                values.append(self.write(node.op, [values[source] for source in node.inputs], node.name))
        self.add("Reshape", [values[-1], self.constant(np.array([1, *network.output_shape], dtype=np.int64))], output="output")
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape])
            for name, shape in (("input", network.input_shape), ("output", network.output_shape))
        ]
        graph = helper.make_graph(self.nodes, "network", ends[:1], ends[1:], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR, producer_name="ringfence")

    def write(self, op: Op, inputs: list[str], name: str) -> str:
        """One operator; returns the name of its value."""
        if type(op) in _PLAIN:
            return self.add(_PLAIN[type(op)], inputs)
        for kind, write in _WRITERS:
            if isinstance(op, kind):
                return write(self, op, inputs)
        raise UnsupportedOpError(f"node {name!r} ({type(op).__name__}) cannot be written as ONNX yet; leave --save out")

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """An ONNX node; returns the name of its output."""
        name = output or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}_{len(self.nodes)}", **attributes))
        return name

    def constant(self, values: np.ndarray | Tensor | float) -> str:
        """An initializer; returns its name. Floating-point values become float32."""
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        array = array if array.dtype == np.int64 else array.astype(np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """The value with another shape."""
        return self.add("Reshape", [value, self.constant(np.array(shape, dtype=np.int64))])


def _linear(writer: _Writer, op: Linear, inputs: list[str]) -> str:
    value = writer.add("MatMul", [*inputs, writer.constant(op.weight.T)])
    return value if op.offset is None else writer.add("Add", [value, writer.constant(op.offset)])


def _conv(writer: _Writer, op: Conv, inputs: list[str]) -> str:
    extra = (
        [] if op.offset is None else [writer.constant(op.offset.expand(op.weight.shape[0], *op.offset.shape[-len(op.strides) :]).flatten())]
    )
    pads = [begin for begin, _ in op.pads] + [end for _, end in op.pads]
    sizes: dict[str, Any] = {"strides": list(op.strides), "pads": pads, "dilations": list(op.dilations), "group": op.groups}
    return writer.add("Conv", [*inputs, writer.constant(op.weight), *extra], **sizes)


def _shift(writer: _Writer, op: Shift, inputs: list[str]) -> str:
    return writer.add("Add", [*inputs, writer.constant(op.bias())])


def _batch_normalization(writer: _Writer, op: BatchNormalization, inputs: list[str]) -> str:
    parts = [writer.constant(values) for values in (op.gamma, op.beta, op.mean, op.variance)]
    return writer.add("BatchNormalization", [*inputs, *parts], epsilon=op.epsilon)


def _concat(writer: _Writer, op: Concat, inputs: list[str]) -> str:
    if op.gaps is not None:
        raise UnsupportedOpError("a concatenation with constants between its inputs cannot be written as ONNX yet; leave --save out")
    return writer.add("Concat", inputs, axis=op.axis)


def _clip(writer: _Writer, op: Clip, inputs: list[str]) -> str:
    ends = (torch.as_tensor(op.low), torch.as_tensor(op.high))
    if any(end.dim() for end in ends):
        raise UnsupportedOpError("a Clip with limits of several elements cannot be written as ONNX; leave --save out")
    return writer.add("Clip", [*inputs, *(writer.constant(end) for end in ends)])


def _substituted(writer: _Writer, op: Substituted, inputs: list[str]) -> str:
    """act(z) where nothing was pruned, plus the lines, which are 0 there."""
    pruned = op.pruned
    kept = writer.add("Mul", [writer.write(op.act, inputs, type(op.act).__name__), writer.constant((~pruned).float())])
    scaled = writer.add("Mul", [*inputs, writer.constant(torch.where(pruned, op.slope, 0.0))])
    line = writer.add("Add", [scaled, writer.constant(torch.where(pruned, op.intercept, 0.0))])
    return writer.add("Add", [kept, line])


_WRITERS: tuple[tuple[type[Op], Callable[[_Writer, Any, list[str]], str]], ...] = (
    (Substituted, _substituted),
    (Linear, _linear),
    (Conv, _conv),
    (Scale, lambda writer, op, inputs: writer.add("Mul", [*inputs, writer.constant(op.factor)])),
    (Divide, lambda writer, op, inputs: writer.add("Div", [*inputs, writer.constant(op.divisor)])),
    (Shift, _shift),
    (BatchNormalization, _batch_normalization),
    (Reshape, lambda writer, op, inputs: writer.reshape(inputs[0], op.shape)),
    (Transpose, lambda writer, op, inputs: writer.add("Transpose", inputs, perm=list(op.permutation))),
    (Gather, lambda writer, op, inputs: writer.add("Gather", [*inputs, writer.constant(op.index)], axis=op.axis)),
    (Concat, _concat),
    (LeakyRelu, lambda writer, op, inputs: writer.add("LeakyRelu", inputs, alpha=op.slope)),
    (PRelu, lambda writer, op, inputs: writer.add("PRelu", [*inputs, writer.constant(op.slope)])),
    (Clip, _clip),
)
