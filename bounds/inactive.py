"""Elements that are 0 on a region, left out by cutting rows and columns out of the stored weights.

Nothing is computed, so the smaller network has exactly the same values on the region, and proofs about it are proofs about the network.
`drop_inactive` cuts a whole network once its nodes are bounded; `plan` tells how to cut one layer, which a sweep does as it goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.errors import UnsupportedOpError
from bounds.interval import Interval
from bounds.network import Network, Node
from bounds.ops.affine import Linear, Scale, Shift
from bounds.ops.base import Activation, Op, Shape, product
from bounds.ops.convolution import Conv
from bounds.ops.shape import Reshape
from bounds.ops.substituted import Substituted
from bounds.substitutes import fixed


@dataclass(frozen=True, eq=False)
class Reduced:
    """A network without the elements that are 0 on a region; node for node the network it came from.

    kept: for every node with fewer elements, the positions of those that are left among the flattened ones.
    """

    network: Network
    kept: dict[int, Tensor]

    def narrowed(self, intervals: Mapping[int, Interval]) -> dict[int, Interval]:
        """Enclosures of the network's nodes, (B, *shape), as enclosures of the nodes of the smaller one."""
        return {k: v.select(self.kept[k], self.network.nodes[k].shape) if k in self.kept else v for k, v in intervals.items()}


def drop_inactive(network: Network, intervals: Mapping[int, Interval]) -> Reduced:
    """Cut out the elements of piecewise-linear activations that are 0 throughout the intervals, (1, *shape) by node index.

    See `plan` for the layers that are cut. Property: the same values on the region, exactly.
    """
    masks, found = fixed(network, intervals)
    smaller, kept = network, dict[int, Tensor]()
    for index, mask in masks.items():
        zero = mask & (found[index].slope == 0) & (found[index].intercept == 0)
        cut = plan(smaller, index, zero) if bool(zero.any()) else None
        if cut is not None:
            smaller = cut.of(smaller)
            kept |= dict.fromkeys(cut.shapes, cut.left)
    return Reduced(smaller, kept)


@dataclass(frozen=True, eq=False)
class Cut:
    """What leaves with one activation's zero elements.

    left: positions of the elements that stay. shapes: of the nodes that become smaller, the activation, what feeds it and what only passes it on. readers: the
    maps that read it. elements: how many there were.
    """

    left: Tensor
    shapes: dict[int, Shape]
    readers: tuple[int, ...]
    elements: int

    def of(self, network: Network) -> Network:
        """The smaller network; `network` is the one that was planned for, in any type."""
        nodes = list(network.nodes)
        for k, shape in self.shapes.items():
            nodes[k] = _narrow(nodes[k], self.left, shape)
        for k in self.readers:
            nodes[k] = replace(nodes[k], op=_fewer_columns(nodes[k].op, self.left, self.elements))
        return network.like(nodes)

    def products(self, network: Network) -> int:
        """Products that a walk of one row takes for each of the elements, in the maps above and below."""
        above = sum(_terms(network.nodes[k].op, network.input_shapes(k), inward=True) for k in self.shapes if _produces(network.nodes[k]))
        return above + sum(_terms(network.nodes[k].op, network.input_shapes(k), inward=False) for k in self.readers)


def plan(network: Network, index: int, zero: Tensor) -> Cut | None:
    """How to cut out elements of activation `index`, a mask of its shape, that are 0 wherever the network is going to be evaluated.

    A layer is cut where a linear map, or a convolution of which a whole channel is 0, feeds an activation that only linear maps or ungrouped
    convolutions read, with nothing but reshapes, scales and shifts between. None where it is not, or nothing would leave.
    """
    if isinstance(network.nodes[index].op, Substituted):
        return None
    above, below = _feeding(network, index), _reading(network, index)
    if not above or below is None:
        return None
    between, readers = below
    changed, elements = [index, *above, *between], zero.numel()
    block = _block(network, above, readers, elements)
    if block is None or any(product(network.nodes[k].shape) != elements for k in changed):
        return None
    stays = ~(zero.flatten() if block == 1 else zero.reshape(-1, block).all(1).repeat_interleave(block))
    left = stays.nonzero().flatten()
    if left.numel() == 0:  # some stay, so that no tensor is empty
        left = torch.arange(block, device=zero.device)
    count = left.numel()
    if count == elements:
        return None
    shapes = {k: _smaller(network.nodes[k].shape, count, elements) for k in changed}
    if any(product(shape) != count for shape in shapes.values()):
        return None
    return Cut(left, shapes, tuple(readers), elements)


def _terms(op: Op, shapes: tuple[Shape, ...], *, inward: bool) -> int:
    return (op.fan_in(*shapes) if inward else op.fan_out(*shapes)) if isinstance(op, Linear | Conv) else 0


def _block(network: Network, above: list[int], readers: list[int], elements: int) -> int | None:
    """How many neighbouring elements go together: those of a channel where a convolution is around, else one."""
    counts = {network.nodes[k].shape[1] for k in above if isinstance(network.nodes[k].op, Conv)}
    counts |= {network.input_shapes(k)[0][1] for k in readers if isinstance(network.nodes[k].op, Conv)}
    if not counts:
        return 1
    return elements // counts.pop() if len(counts) == 1 else None


def _produces(node: Node) -> bool:
    return isinstance(node.op, Linear | Conv)


def _feeding(network: Network, index: int) -> list[int]:
    """The nodes from an activation up to the map that feeds it and nobody else; empty where there is no such map."""
    path: list[int] = []
    while not path or not _produces(network.nodes[path[-1]]):
        (index,) = network.nodes[index].inputs
        node = network.nodes[index]
        if len(network.successors[index]) != 1 or not (_passes(node) or (_produces(node) and _fits(node))):
            return []
        path.append(index)
    return path


def _reading(network: Network, index: int) -> tuple[list[int], list[int]] | None:
    """Nodes between an activation and the maps that read it, and these maps; None where something else reads it."""
    between, readers, pending = [], [], list(network.successors[index])
    while pending:
        current = pending.pop()
        node = network.nodes[current]
        if isinstance(node.op, Reshape | Scale) and network.successors[current]:  # a shift would turn 0 into something else
            between.append(current)
            pending.extend(network.successors[current])
        elif isinstance(node.op, Linear) or (isinstance(node.op, Conv) and node.op.groups == 1):
            readers.append(current)
        else:
            return None
    matrices = any(isinstance(network.nodes[k].op, Linear) and not _reads_all(network, k) for k in readers)
    return None if matrices or not readers else (between, readers)


def _reads_all(network: Network, index: int) -> bool:
    """Whether a linear map reads a vector, not the rows of a matrix."""
    op, (shape,) = network.nodes[index].op, network.input_shapes(index)
    return isinstance(op, Linear) and product(shape) == op.weight.shape[1]


def _passes(node: Node) -> bool:
    """Whether a node hands elements on one by one."""
    return isinstance(node.op, Reshape | Scale | Shift)


def _fits(node: Node) -> bool:
    return (
        product(node.shape) == node.op.weight.shape[0] if isinstance(node.op, Linear) else isinstance(node.op, Conv) and node.op.groups == 1
    )


def _smaller(shape: Shape, left: int, elements: int) -> Shape:
    """The shape with `left` instead of all elements: the axis of channels, or the only long one, becomes shorter."""
    axis = 1 if len(shape) > 2 else max(range(len(shape)), key=lambda k: shape[k])
    return tuple(n * left // elements if k == axis else n for k, n in enumerate(shape))


def _narrow(node: Node, left: Tensor, shape: Shape) -> Node:
    """A node with fewer elements."""
    op, elements = node.op, product(node.shape)

    def part(values: Tensor) -> Tensor:
        return values.expand(node.shape).flatten().index_select(0, left).reshape(shape)

    if isinstance(op, Reshape):
        return Node(Reshape(shape), node.inputs, shape, node.name)
    if isinstance(op, Linear):
        offset = None if op.offset is None else part(op.offset).flatten()
        return Node(replace(op, weight=op.weight.index_select(0, left), offset=offset), node.inputs, shape, node.name)
    if isinstance(op, Conv):
        rows = torch.unique_consecutive(left // (elements // node.shape[1]))
        offset = None if op.offset is None else op.offset.expand(node.shape[1], *op.offset.shape[-len(op.strides) :])[rows]
        return Node(replace(op, weight=op.weight.index_select(0, rows), offset=offset), node.inputs, shape, node.name)
    if isinstance(op, Scale):
        return Node(Scale(part(op.factor)), node.inputs, shape, node.name)
    if isinstance(op, Shift):
        return Node(replace(op, offset=part(op.offset)), node.inputs, shape, node.name)
    if not isinstance(op, Activation):
        raise UnsupportedOpError(f"node {node.name!r} ({type(op).__name__}) cannot be narrowed")
    chosen = op.at(left, node.shape)
    changed = {name: value.reshape(shape) for name, value in vars(chosen).items() if isinstance(value, Tensor) and value.dim() == 1}
    return Node(replace(chosen, **changed) if changed else chosen, node.inputs, shape, node.name)  # type: ignore[type-var]


def _fewer_columns(op: Op, left: Tensor, elements: int) -> Op:
    """A linear map or a convolution that reads fewer elements."""
    if isinstance(op, Linear):
        return replace(op, weight=op.weight.index_select(1, left))
    if isinstance(op, Conv):
        return replace(op, weight=op.weight.index_select(1, torch.unique_consecutive(left // (elements // op.weight.shape[1]))))
    raise UnsupportedOpError(f"{type(op).__name__} cannot read fewer elements")
