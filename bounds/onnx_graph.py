"""The network under construction while an ONNX graph is read: plain records of the graph, and what a handler may ask and do.

Shapes are those of ONNX tensors with the batch axis set to 1. Nothing here imports onnx.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bounds.errors import ModelError, NumericsError, ShapeError, UnsupportedOpError
from bounds.network import Node
from bounds.ops.affine import LeftLinear, Linear, Scale
from bounds.ops.base import Input, Op, Shape, product
from bounds.ops.convolution import Conv, ConvTranspose
from bounds.ops.shape import Reshape
from bounds.ops.sign import Exceeds


@dataclass(frozen=True, eq=False)
class GraphNode:
    """One ONNX node: `name` is its own or that of its first output; absent optional inputs and outputs are empty strings."""

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int


@dataclass(eq=False)
class GraphBuilder:
    """Nodes made so far. `index` maps the name of a computed tensor to its node; `constants` holds the values known while reading.

    declared_batch: the batch size that the model fixes and that was set to 1, else 1; batch_is_baked_in: a Reshape names it too.
    """

    constants: dict[str, np.ndarray]
    readers: dict[str, int]
    nodes: list[Node] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)
    declared_batch: int = 1
    batch_is_baked_in: bool = False

    def shape(self, source: int) -> Shape:
        """Shape of node `source`."""
        return self.nodes[source].shape

    def add(self, op: Op, sources: Sequence[int], name: str) -> int:
        """Append an operator; reshapes of reshapes become one and reshapes that change nothing none. Returns the node's number."""
        sources = tuple(sources)
        if isinstance(op, Reshape):
            if product(op.shape) != product(self.shape(sources[0])):
                raise ShapeError(f"node {name!r} cannot reshape {self.shape(sources[0])} to {op.shape}: the numbers of values differ")
            while isinstance(self.nodes[sources[0]].op, Reshape):
                sources = self.nodes[sources[0]].inputs
            if op.shape == self.shape(sources[0]):
                return sources[0]
            self.nodes.append(Node(op, sources, op.shape, name))
            return len(self.nodes) - 1
        if isinstance(op, Scale) and self._undoes(op, sources[0]):
            return self.nodes[sources[0]].inputs[0]
        dtype = next((p.dtype for p in op.parameters()), torch.float32)
        try:
            shape = op.forward(*(torch.zeros(1, *self.shape(s), dtype=dtype) for s in sources)).shape
        except (RuntimeError, IndexError, ValueError) as error:
            shapes = ", ".join(str(self.shape(s)) for s in sources)
            reason = str(error).splitlines()[0]
            raise ShapeError(f"node {name!r} ({type(op).__name__}) does not fit its inputs of shape {shapes}: {reason}") from error
        self.nodes.append(Node(op, sources, tuple(shape[1:]), name))
        return len(self.nodes) - 1

    def _undoes(self, op: Scale, source: int) -> bool:
        """Whether multiplying by one number gives back what the source multiplied by a power of two."""
        held = self.nodes[source]
        if not isinstance(held.op, Scale) or op.factor.numel() != 1 or held.op.factor.numel() != 1 or op.factor.dim() > len(held.shape):
            return False
        first, second = float(held.op.factor), float(op.factor)
        return first * second == 1.0 and abs(math.frexp(first)[0]) == 0.5 and self.shape(held.inputs[0]) == held.shape

    def finish(self, output: int) -> tuple[Node, ...]:
        """The nodes that `output` depends on, in order, with one parameter type (the widest met, at least float32)."""
        needed = {0, output}
        for index in range(output, -1, -1):
            if index in needed:
                needed.update(self.nodes[index].inputs)
        order = sorted(needed)
        place = {old: new for new, old in enumerate(order)}
        kept = [replace(self.nodes[old], inputs=tuple(place[s] for s in self.nodes[old].inputs)) for old in order]
        for node in kept:
            if isinstance(node.op, Exceeds):
                raise UnsupportedOpError(
                    f"node {node.name!r}: a comparison is supported only where it cuts off a softplus; rewrite the model"
                )
        dtype = torch.float32
        for node in kept:
            for parameter in node.op.parameters():
                dtype = torch.promote_types(dtype, parameter.dtype)
        return tuple(replace(node, op=node.op.to(dtype)) for node in kept)


class NodeReader:
    """One ONNX node being translated: typed access to its attributes and inputs, and the means to emit operators for it.

    An attribute that no handler asked for is refused by `check_attributes`.
    """

    def __init__(self, node: GraphNode, builder: GraphBuilder) -> None:
        self.node = node
        self.builder = builder
        self._asked: set[str] = set()

    @property
    def opset(self) -> int:
        """Version of the operator set."""
        return self.node.opset

    @property
    def inputs(self) -> int:
        """Number of inputs, trailing absent ones not counted."""
        return max((i + 1 for i, name in enumerate(self.node.inputs) if name), default=0)

    def refuse(self, reason: str, way_out: str = "") -> UnsupportedOpError:
        """The error to raise for something in this node that is not supported."""
        way_out = way_out or "rewrite or simplify the model so that it is not needed"
        return UnsupportedOpError(f"node {self.node.name!r} ({self.node.op_type}): {reason}; {way_out}")

    def misfit(self, reason: str) -> ShapeError:
        """The error to raise for shapes that do not go together."""
        return ShapeError(f"node {self.node.name!r} ({self.node.op_type}): {reason}")

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value. Float defaults are rounded to float32, the type of ONNX's float attributes."""
        self._asked.add(name)
        default = float(np.float32(default)) if isinstance(default, float) else default
        return self.node.attributes.get(name, default)

    def ignore(self, *names: str) -> None:
        """Attributes that do not change the value computed at inference."""
        self._asked.update(names)

    def require(self, name: str, *allowed: Any) -> None:
        """Refuse the attribute unless it is absent or has one of the values given."""
        value = self.attribute(name, allowed[0])
        if value not in allowed:
            raise self.refuse(f"attribute {name} = {value!r} is not supported, only {' or '.join(map(repr, allowed))}")

    def check_attributes(self) -> None:
        """Refuse attributes that were not read."""
        unknown = sorted(set(self.node.attributes) - self._asked)
        if unknown:
            raise self.refuse(f"attribute {unknown[0]!r} is not understood", "export the model without it")

    def has(self, position: int) -> bool:
        """Whether an optional input is given."""
        return position < len(self.node.inputs) and self.node.inputs[position] != ""

    def is_constant(self, position: int) -> bool:
        """Whether an input is known while reading."""
        return self._name(position) in self.builder.constants

    def constant(self, position: int) -> np.ndarray:
        """An input that must be known while reading."""
        name = self._name(position)
        if name not in self.builder.constants:
            raise self.refuse(f"input {name!r} is computed from the network's input, but only a constant is supported here")
        return self.builder.constants[name]

    def integers(self, position: int) -> list[int]:
        """A constant input that is a list of integers."""
        return [int(v) for v in self.constant(position).reshape(-1)]

    def weight(self, position: int) -> Tensor:
        """A constant input used as a coefficient: finite and of floating-point type.

        Raises:
            NumericsError: it holds NaN or infinity.
        """
        name, array = self._name(position), self.constant(position)
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise self.refuse(f"constant {name!r} has type {array.dtype}, expected a floating-point type")
        if not np.isfinite(array).all():
            raise NumericsError(f"constant {name!r} of node {self.node.name!r} holds NaN or infinity; repair or retrain the model")
        return torch.tensor(array)

    def source(self, position: int) -> int:
        """The node that computes an input."""
        name = self._name(position)
        if name not in self.builder.index:
            raise self.refuse(f"input {name!r} is a constant, but it has to be computed from the network's input here")
        return self.builder.index[name]

    def shape(self, position: int) -> Shape:
        """Shape of an input, constant or computed."""
        return tuple(self.constant(position).shape) if self.is_constant(position) else self.builder.shape(self.source(position))

    def axis(self, value: int, rank: int) -> int:
        """A non-negative axis."""
        if not -rank <= value < rank:
            raise self.misfit(f"axis {value} is out of range for a tensor of rank {rank}")
        return value % rank

    def axes(self, values: Sequence[int], rank: int) -> tuple[int, ...]:
        """Non-negative axes in ascending order."""
        found = tuple(sorted(self.axis(v, rank) for v in values))
        if len(set(found)) < len(found):
            raise self.misfit(f"axes {list(values)} are not distinct")
        return found

    def emit(self, op: Op, *sources: int) -> int:
        """Append an operator for this node."""
        return self.builder.add(op, sources, self.node.name)

    def reshape(self, source: int, shape: Sequence[int]) -> int:
        """The tensor of `source` with another shape."""
        return self.emit(Reshape(tuple(shape)), source)

    def with_rank(self, source: int, rank: int) -> int:
        """The tensor of `source` with ones put in front of its shape up to `rank`."""
        shape = self.builder.shape(source)
        return self.reshape(source, (1,) * (rank - len(shape)) + shape) if len(shape) < rank else source

    def with_offset(self, position: int, offset: Tensor) -> int | None:
        """The linear map that computes an input, with `offset` as its bias; None where that would change the arithmetic or repeat work."""
        node = self.builder.nodes[self.source(position)]
        if not isinstance(node.op, Linear | LeftLinear | Conv | ConvTranspose) or node.op.offset is not None:
            return None
        if self.builder.readers[self._name(position)] > 1 or offset.dtype != node.op.weight.dtype:
            return None
        if not fits_into(offset.shape, node.shape):
            return None
        if offset.dim() > 1 and offset.numel() == offset.shape[-1]:
            offset = offset.reshape(-1)
        self.builder.nodes.append(replace(node, op=replace(node.op, offset=offset)))
        return len(self.builder.nodes) - 1

    def _name(self, position: int) -> str:
        if not self.has(position):
            raise ModelError(f"node {self.node.name!r} ({self.node.op_type}) lacks input number {position + 1}")
        name = self.node.inputs[position]
        if name not in self.builder.constants and name not in self.builder.index:
            raise ModelError(f"node {self.node.name!r} ({self.node.op_type}) reads {name!r}, which nothing before it produces")
        return name


def fits_into(small: Sequence[int], large: Sequence[int]) -> bool:
    """Whether a tensor of shape `small` broadcasts to exactly `large`."""
    aligned = zip(reversed(small), reversed(large), strict=False)
    return len(small) <= len(large) and all(n in (1, m) for n, m in aligned)


Handler = Callable[[NodeReader], int | list[int]]


def new_builder(constants: dict[str, np.ndarray], readers: dict[str, int], input_name: str, shape: Shape, *, strip: bool) -> GraphBuilder:
    """A builder whose first node is the input, its leading batch axis of size 1 stripped if asked, followed by the reshape that restores it."""
    builder = GraphBuilder(constants, readers)
    user_shape = shape[1:] if strip else shape
    builder.nodes.append(Node(Input(), (), user_shape, input_name))
    builder.index[input_name] = builder.add(Reshape(shape), (0,), input_name) if strip else 0
    return builder
