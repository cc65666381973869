"""Network: an immutable graph of operators in topological order."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from bounds.errors import ShapeError
from bounds.ops.base import Activation, Affine, Input, Op, Shape, product
from bounds.ops.bilinear import Bilinear

if TYPE_CHECKING:
    import networkx
    from torch import nn


class Original(Protocol):
    """The model as the user gave it, run by its own runtime: what a counterexample is replayed on."""

    @property
    def input_shape(self) -> Shape:
        """Shape of one input."""

    @property
    def input_dtype(self) -> np.dtype:
        """The type that inputs are cast to before they are run."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Outputs for a batch: (N, *input_shape) -> (N, *output_shape), each point evaluated as the original runtime does."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operator application: `inputs` index earlier nodes; `shape` excludes the batch dimension."""

    op: Op
    inputs: tuple[int, ...]
    shape: Shape
    name: str


_STRUCTURE = ("successors", "preactivations", "affine_in_input")
"""What is kept of a network once it was asked for, and depends on nothing but which node reads which and what family it is of."""


@dataclass(frozen=True, eq=False)
class Network:
    """nodes[0] is the input, nodes[-1] the output; every node's inputs come before it.

    Raises:
        ShapeError: the nodes are not in topological order, or the first one is not the only input.
    """

    nodes: tuple[Node, ...]
    original: Original | None = None

    def __post_init__(self) -> None:
        if not self.nodes or not isinstance(self.nodes[0].op, Input):
            raise ShapeError("a network starts with exactly one input node")
        for index, node in enumerate(self.nodes):
            if any(source >= index for source in node.inputs) or (index > 0 and not node.inputs):
                raise ShapeError(f"node {node.name!r} (number {index}) is not in topological order: its inputs are {node.inputs}")

    @staticmethod
    def from_onnx(model: str | Path | bytes, *, check: bool = True) -> Network:
        """Read an ONNX file (plain or gzipped) or its bytes; the import is checked against ONNX Runtime on random points.

        Raises:
            ModelError: see `bounds.errors`; the message names the node, the op and the way out.
        """
        from bounds.onnx_import import import_onnx

        return import_onnx(model, check=check)

    @staticmethod
    def from_torch(module: nn.Module, input_shape: Sequence[int], *, check: bool = True) -> Network:
        """Import a torch module in evaluation mode by exporting it to ONNX in memory. input_shape excludes the batch dimension."""
        from bounds.onnx_import import import_torch

        return import_torch(module, tuple(input_shape), check=check)

    @property
    def input_shape(self) -> Shape:
        """Shape of one input."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> Shape:
        """Shape of one output."""
        return self.nodes[-1].shape

    @property
    def outputs(self) -> int:
        """Number of output values."""
        return product(self.output_shape)

    @functools.cached_property
    def _parameters(self) -> tuple[Tensor, ...]:
        return tuple(p for node in self.nodes for p in node.op.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """The type the parameters are held in; without any, the type the network was converted to (float32 if it never was)."""
        return next((p.dtype for p in self._parameters), self.__dict__.get("_dtype", torch.float32))

    @functools.cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes that read it (once per use)."""
        users: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source in node.inputs:
                users[source].append(index)
        return tuple(tuple(u) for u in users)

    @functools.cached_property
    def preactivations(self) -> tuple[int, ...]:
        """Indices of the nodes that an activation or a bilinear op reads, in topological order."""
        found = {source for node in self.nodes if isinstance(node.op, Activation | Bilinear) for source in node.inputs}
        return tuple(sorted(found))

    @functools.cached_property
    def affine_in_input(self) -> tuple[bool, ...]:
        """For each node whether it is an affine function of the input."""
        flags: list[bool] = []
        for node in self.nodes:
            flags.append(isinstance(node.op, Affine | Input) and all(flags[source] for source in node.inputs))
        return tuple(flags)

    @functools.cached_property
    def graph(self) -> networkx.DiGraph:
        """The network as a networkx graph whose nodes are indices with attributes `name`, `op` and `shape`."""
        import networkx  # a tenth of a second that most questions do not need

        graph = networkx.DiGraph()
        for index, node in enumerate(self.nodes):
            graph.add_node(index, name=node.name, op=type(node.op).__name__, shape=node.shape)
            graph.add_edges_from((source, index) for source in node.inputs)
        return graph

    def input_shapes(self, index: int) -> tuple[Shape, ...]:
        """Shapes of the inputs of node `index`."""
        return tuple(self.nodes[source].shape for source in self.nodes[index].inputs)

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Network:
        """A copy with parameters of `dtype` on `device` (this network itself if nothing changes).

        Copies are made from the parameters as the model stores them, also when this network is itself a copy in a narrower type.
        """
        parameters = self._parameters
        wanted = torch.device(device) if device is not None else next((p.device for p in parameters), torch.device("cpu"))
        learns = any(p.requires_grad for p in parameters)  # then what is computed from the parameters is not kept: a graph serves one pass
        if (
            not learns
            and self.dtype == dtype
            and all(p.dtype == dtype and p.device == wanted for p in parameters)
            and (parameters or device is None)
        ):
            return self
        stored: Network = self.__dict__.get("_stored", self)
        cache: dict[tuple[torch.dtype, str], Network] = stored.__dict__.setdefault("_copies", {})
        key = (dtype, str(wanted))
        if key in cache:
            return cache[key]
        copy = replace(stored, nodes=tuple(replace(node, op=node.op.to(dtype, wanted)) for node in stored.nodes))
        copy.__dict__.update(_stored=stored, _dtype=dtype)
        if not learns:
            cache[key] = copy
        return copy

    def like(self, nodes: Sequence[Node]) -> Network:
        """The network with other operators and shapes at the same nodes: what reads what stays, and what was found out about that."""
        other = replace(self, nodes=tuple(nodes))
        other.__dict__.update((name, value) for name, value in self.__dict__.items() if name in _STRUCTURE)
        return other

    def values(self, x: Tensor) -> list[Tensor]:
        """Values of every node. x: (N, *input_shape)."""
        values: list[Tensor] = []
        for node in self.nodes:
            values.append(node.op.forward(x) if isinstance(node.op, Input) else node.op.forward(*(values[s] for s in node.inputs)))
        return values

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs for any number of leading batch dimensions. x: (*batch, *input_shape)."""
        rank = len(self.input_shape)
        batch = x.shape[: x.dim() - rank]
        if tuple(x.shape[x.dim() - rank :]) != self.input_shape:
            raise ShapeError(f"the network reads inputs of shape {self.input_shape}, got {tuple(x.shape)}")
        y = self.values(x.reshape(-1, *self.input_shape))[-1]
        return y.reshape(*batch, *self.output_shape)
