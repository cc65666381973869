"""Smaller networks with the same function: what pruning leaves over is folded together.

`collapse` writes every surviving pre-activation, and the output, as one affine map of the inputs and of the survivors before it:

    v_0 = x (or the values of a node that everything later goes through)        v_l = act_l(W_l [v_0, ..., v_{l-1}] + b_l)        y = W [v_0, ...] + b

so that lines vanish into the maps, constants into the biases, and elements and inputs that nothing reads disappear. That pays when few elements
survive; `shrink` takes the smallest of all its forms and the network itself. Maps are multiplied in float64 and rounded to the network's type:
the function is kept up to rounding, which is good enough for estimates and not for proofs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.errors import ShapeError, UnsupportedOpError
from bounds.network import Network, Node
from bounds.ops.affine import Linear
from bounds.ops.base import Activation, Affine, Input, Op, Shape, product
from bounds.ops.shape import Concat, Gather, Reshape
from bounds.ops.substituted import Substituted
from bounds.substitutes import surviving

_ROWS = 256
"""Rows walked back at a time."""


@dataclass(frozen=True)
class Size:
    """activations: elements that are not affine; parameters: stored numbers of all operators."""

    activations: int
    parameters: int


def size(network: Network) -> Size:
    """How large a network is."""
    return Size(surviving(network), sum(p.numel() for node in network.nodes for p in node.op.parameters()))


def shrink(network: Network) -> Network:
    """The form with the fewest parameters: the network itself, or collapsed behind its input or behind a node that everything goes through."""
    costs = {keep: _cost(network, keep) for keep in _gates(network)} if _collapsible(network) else {}
    forms = [network]
    for keep, cost in sorted(costs.items(), key=lambda item: item[1])[:2]:
        if cost < 2 * size(network).parameters:  # a guess from above: unread survivors are not counted off
            forms.append(collapse(network, keep))
    return min(forms, key=lambda form: size(form).parameters)


def collapse(network: Network, keep: int = 0) -> Network:
    """The collapsed form behind node `keep`, whose own values become v_0; the nodes before it stay as they are.

    Raises:
        UnsupportedOpError: an activation that is not element-wise, or a product of computed tensors, after that node. ShapeError: some later
            node reads from before `keep`, or a substitute has a batch axis.
    """
    if keep not in _gates(network):
        raise ShapeError(
            f"node {network.nodes[keep].name!r} is not one that everything later goes through: nothing can be collapsed behind it"
        )
    if not _collapsible(network, keep):
        raise UnsupportedOpError("only element-wise activations and affine maps can be folded together; leave this network as it is")
    exact = network.to(torch.float64)
    last = len(exact.nodes) - 1
    layers = [_Layer(last, torch.arange(product(exact.nodes[last].shape)), last)]
    needed: dict[int, Tensor] = {}
    layers[0].fill(exact, keep, needed)
    for index in range(last, keep, -1):
        if isinstance(exact.nodes[index].op, Activation) and index in needed:
            columns = needed[index].nonzero().flatten()
            if columns.numel():
                layers.append(_Layer(index, columns, exact.nodes[index].inputs[0]))
                layers[-1].fill(exact, keep, needed)
    return _assemble(network, exact, keep, layers[::-1], needed)


@dataclass(eq=False)
class _Layer:
    """Elements of node `start`, which node `index` reads or is, as an affine map of sources: coefficients (rows, elements) by node."""

    index: int
    columns: Tensor
    start: int
    maps: dict[int, Tensor] = field(default_factory=dict)
    constant: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def fill(self, network: Network, keep: int, needed: dict[int, Tensor]) -> None:
        """Walk back to the sources, and note in `needed` which of their elements are read."""
        maps, constants = [], []
        for columns in self.columns.split(_ROWS):
            found, constant = _walk(network, self.start, columns, keep)
            maps.append(found)
            constants.append(constant)
        sources = sorted({source for found in maps for source in found})
        for source in sources:
            width = product(network.nodes[source].shape)
            blank = [torch.zeros(len(c), width, dtype=torch.float64) for c in constants]
            whole = torch.cat([found.get(source, zero) for found, zero in zip(maps, blank, strict=True)])
            used = whole.ne(0).any(0)
            if bool(used.any()):
                self.maps[source] = whole
                needed[source] = needed.get(source, torch.zeros_like(used)) | used
        self.constant = torch.cat(constants)


def _walk(network: Network, start: int, columns: Tensor, keep: int) -> tuple[dict[int, Tensor], Tensor]:
    """Some elements of a node as affine maps of node `keep` and of surviving elements of activations."""
    units = torch.zeros(len(columns), product(network.nodes[start].shape), dtype=torch.float64)
    units[torch.arange(len(columns)), columns] = 1.0
    pending = {start: units.reshape(len(columns), *network.nodes[start].shape)}
    constant = torch.zeros(len(columns), dtype=torch.float64)
    found: dict[int, Tensor] = {}
    while pending:
        index = max(pending)
        A, node = pending.pop(index), network.nodes[index]
        op = node.op
        below: tuple[Tensor, ...] = ()
        if index == keep:
            found[index] = A.flatten(1)
        elif isinstance(op, Affine):
            bias = op.bias()
            constant = constant if bias is None else constant + (A * bias).flatten(1).sum(1)
            below = op.adjoint(A, *network.input_shapes(index))
        else:
            kept, A_line, offset = _through(op, A)
            found[index], constant = kept.flatten(1), constant + offset
            below = () if A_line is None else (A_line,)
        for source, part in zip(node.inputs, below, strict=False):
            pending[source] = pending[source] + part if source in pending else part
    return found, constant


def _through(op: Op, A: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Coefficients on an activation's output: those of survivors, those on its input through the lines, and what lines add."""
    if not isinstance(op, Substituted):
        return A, None, A.new_zeros(A.shape[0])
    lines = torch.where(op.pruned, A, 0.0)
    return torch.where(op.pruned, 0.0, A), lines * op.slope, (lines * op.intercept).flatten(1).sum(1)


def _assemble(network: Network, exact: Network, keep: int, layers: list[_Layer], needed: dict[int, Tensor]) -> Network:
    dtype, nodes = network.dtype, list(network.nodes[: keep + 1])

    def add(op: Op, inputs: tuple[int, ...], shape: Shape, name: str) -> int:
        nodes.append(Node(op, inputs, shape, name))
        return len(nodes) - 1

    width = product(exact.nodes[keep].shape)
    place = add(Reshape((width,)), (keep,), (width,), "flat")
    read = needed.get(keep, torch.zeros(width, dtype=torch.bool))
    if bool(read.any()) and not bool(read.all()):
        columns = read.nonzero().flatten()
        place = add(Gather(0, columns), (place,), (len(columns),), "read")
    else:
        columns = torch.arange(width)
    places, chosen = {keep: place}, {keep: columns}
    for layer in layers:
        node = exact.nodes[layer.index]
        maps = layer.maps or {keep: torch.zeros(len(layer.columns), width, dtype=torch.float64)}
        sources = sorted(maps)
        weight = torch.cat([maps[s][:, chosen[s]] for s in sources], 1).to(dtype)
        inputs = tuple(places[s] for s in sources)
        if len(sources) > 1:
            inputs = (add(Concat(0), inputs, (weight.shape[1],), f"{node.name}_read"),)
        rows = (len(layer.columns),)
        at = add(Linear(weight, layer.constant.to(dtype)), inputs, rows, f"{node.name}_map")
        own = network.nodes[layer.index].op
        if layer.start != layer.index and isinstance(own, Activation):
            act = own.act if isinstance(own, Substituted) else own
            places[layer.index] = add(act.at(layer.columns, node.shape), (at,), rows, node.name)
            chosen[layer.index] = layer.columns
        else:
            add(Reshape(node.shape), (at,), node.shape, f"{node.name}_output")
    return Network(tuple(nodes))


def _gates(network: Network) -> list[int]:
    """The input and the activations that everything later goes through."""
    gates, least = [], len(network.nodes)
    for index in range(len(network.nodes) - 2, -1, -1):
        least = min(least, *network.nodes[index + 1].inputs)
        if least >= index and isinstance(network.nodes[index].op, Activation | Input):
            gates.append(index)
    return gates[::-1]


def _collapsible(network: Network, keep: int = 0) -> bool:
    ops = [node.op for node in network.nodes[keep + 1 :]]
    return all(isinstance(op, Affine) or (isinstance(op, Activation) and op.free) for op in ops)


def _cost(network: Network, keep: int) -> int:
    """Parameters of the collapsed form, from above."""
    total = sum(p.numel() for node in network.nodes[: keep + 1] for p in node.op.parameters())
    width = product(network.nodes[keep].shape)
    for node in network.nodes[keep + 1 :]:
        if isinstance(node.op, Activation):
            rows = product(node.shape) - (int(node.op.pruned.sum()) if isinstance(node.op, Substituted) else 0)
            total, width = total + rows * (width + 1), width + rows
    return total + network.outputs * (width + 1)
