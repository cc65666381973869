"""Local substitutes of a network: some of its activations replaced by lines that agree with it near an anchor.

For an anchor x0 with pre-activations z0 and an adversary with pre-activations z1, element by element:

    constant     act(z0)                                              any element-wise activation
    linear       the line through (z0, act(z0)) and (z1, act(z1))     any element-wise activation; constant where z1 = z0
    activation   the piece of the activation that z0 lies on          piecewise-linear activations

A substitute keeps the network's value at x0 (all three), at the adversary (linear), and on the whole neighbourhood on which no pruned element
leaves its piece (activation). Lines are rounded to the network's type, so "keeps" means up to rounding; what is said about a substitute says
nothing about the network unless a certificate of its own does.

The graph stays the same, node for node: the index of an activation in the network is its index in the substitute.

Reference: Robustness evaluation using local substitute networks, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from bounds.errors import ShapeError, SpecError, UnsupportedOpError
from bounds.interval import Interval
from bounds.network import Network, Node
from bounds.ops.base import Activation, product
from bounds.ops.piecewise import Piecewise
from bounds.ops.substituted import Substituted, substituted

Kind = Literal["constant", "linear", "activation"]
Pruned = Mapping[int, Tensor]
"""Index of an activation's node -> mask of its pruned elements, in the node's shape or with a leading batch axis."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Substitutes slope z + intercept of the elements of one activation; tensors of the activation's shape, or one more leading batch axis."""

    slope: Tensor
    intercept: Tensor


def activations(network: Network) -> tuple[int, ...]:
    """Indices of the activations, in topological order."""
    return tuple(index for index, node in enumerate(network.nodes) if isinstance(node.op, Activation))


def elementwise(network: Network, kind: Kind = "linear") -> tuple[int, ...]:
    """Indices of the activations that lines can replace.

    Raises:
        SpecError: an unknown kind. UnsupportedOpError: there is none, or one that this kind cannot replace.
    """
    if kind not in get_args(Kind):
        raise SpecError(f"unknown type of substitute {kind!r}; use one of {', '.join(get_args(Kind))}")
    found = activations(network)
    if not found:
        raise UnsupportedOpError("the network has no activations: it is affine, and there is nothing to replace")
    for index in found:
        node = network.nodes[index]
        if not _op(node).free:
            raise UnsupportedOpError(
                f"node {node.name!r} ({type(node.op).__name__}) is not element-wise; substitutes replace element-wise ones"
            )
        if kind == "activation" and not isinstance(node.op, Piecewise):
            raise UnsupportedOpError(
                f"node {node.name!r} ({type(node.op).__name__}) is not piecewise linear, which the type 'activation' needs; use 'linear'"
            )
    return found


def lines(network: Network, kind: Kind, anchor: Tensor, adversary: Tensor | None = None) -> dict[int, Lines]:
    """The substitute of every activation. anchor, adversary: (*input_shape), or (B, *input_shape) for lines with a leading batch axis.

    Numerics: values in float64, rounded to the network's type; slopes stay in the range of the activation's slopes between the two points.

    Raises:
        SpecError: an unknown kind, or "linear" without an adversary. UnsupportedOpError: see `elementwise`. ShapeError: a wrong shape.
    """
    found = elementwise(network, kind)
    if kind == "linear" and adversary is None:
        raise SpecError("the linear substitute needs an adversary: it keeps the network's value there")
    exact = network.to(torch.float64)
    here = _values(exact, anchor)
    there = here if adversary is None else _values(exact, adversary)
    single = anchor.dim() == len(network.input_shape)
    result = {}
    for index in found:
        node = exact.nodes[index]
        op, (source,) = _op(node), node.inputs
        z0, z1, y0, y1 = here[source], there[source], here[index], there[index]
        if kind == "activation":
            made = _piece(op, z0)
        else:
            slope = torch.zeros_like(y0) if kind == "constant" else _through(op, z0, z1, y0, y1)
            slope = slope.to(network.dtype)
            made = Lines(slope, y0 - slope.double() * z0)
        sides = (made.slope, made.intercept)
        result[index] = Lines(*((side[0] if single else side).to(network.dtype) for side in sides))
    return result


def fixed(network: Network, intervals: Mapping[int, Interval]) -> tuple[dict[int, Tensor], dict[int, Lines]]:
    """The elements of piecewise-linear activations that are affine on the given intervals, and these affine functions, exactly.

    intervals: enclosures of the activations' inputs, by node index, (B, *shape) each; for B = 1 the results have no batch axis. The lines are
    float64, so nothing is rounded. Property: the substitute with these lines equals the network wherever the intervals hold.
    """
    masks, found = {}, {}
    for index in activations(network):
        node = network.nodes[index]
        if not isinstance(node.op, Piecewise) or node.inputs[0] not in intervals:
            continue
        x = intervals[node.inputs[0]]
        mask = ~node.op.unstable(x)
        own = _piece(node.op, x.lower.double())
        single = mask.shape[0] == 1
        masks[index] = mask[0] if single else mask
        found[index] = Lines(own.slope[0], own.intercept[0]) if single else own
    return masks, found


def rewrite(network: Network, pruned: Pruned, replacements: Mapping[int, Lines]) -> Network:
    """The network with lines in place of the pruned elements; it has no original but itself.

    Raises:
        ShapeError: a mask or a line does not fit its node, or the node is no activation. UnsupportedOpError: see `Substituted`.
    """
    nodes = list(network.nodes)
    for index, mask in pruned.items():
        node = nodes[index]
        if not isinstance(node.op, Activation) or index not in replacements:
            raise ShapeError(f"node {node.name!r} (number {index}) is no activation with a substitute: nothing of it can be pruned")
        line = replacements[index]
        for what, tensor in (("mask", mask), ("slope", line.slope), ("intercept", line.intercept)):
            if tuple(tensor.shape[max(0, tensor.dim() - len(node.shape)) :]) != node.shape or tensor.dim() > len(node.shape) + 1:
                raise ShapeError(f"the {what} for node {node.name!r} has shape {tuple(tensor.shape)}, expected {node.shape}")
        nodes[index] = replace(node, op=substituted(node.op, mask, line.slope, line.intercept))
    return Network(tuple(nodes))


def surviving(network: Network) -> int:
    """How many elements of activations are not replaced by lines."""
    nodes = [node for node in network.nodes if isinstance(node.op, Activation)]
    return sum(product(node.shape) - (int(node.op.pruned.sum()) if isinstance(node.op, Substituted) else 0) for node in nodes)


def _op(node: Node) -> Activation:
    if not isinstance(node.op, Activation):
        raise ShapeError(f"node {node.name!r} is no activation")
    return node.op


def _values(network: Network, x: Tensor) -> list[Tensor]:
    if tuple(x.shape[x.dim() - len(network.input_shape) :]) != network.input_shape or x.dim() > len(network.input_shape) + 1:
        raise ShapeError(f"the network reads inputs of shape {network.input_shape}, got a point of shape {tuple(x.shape)}")
    with torch.no_grad():
        first = next((p for p in network.nodes[-1].op.parameters()), None)
        device = x.device if first is None else first.device
        return network.values(x.detach().to(device, torch.float64).reshape(-1, *network.input_shape))


def _through(op: Activation, z0: Tensor, z1: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
    """Slope of the line through both points; 0 where they agree."""
    run = z1 - z0
    slope = torch.where(run == 0, 0.0, (y1 - y0) / torch.where(run == 0, 1.0, run))
    least, most = op.slope_range(Interval(torch.minimum(z0, z1), torch.maximum(z0, z1)))
    return torch.where(run == 0, 0.0, torch.minimum(torch.maximum(slope, least), most))


def _piece(op: Activation, z: Tensor) -> Lines:
    """Slope and intercept of the piece at z, on a knot the one to its right; float64."""
    if not isinstance(op, Piecewise):
        raise UnsupportedOpError(f"{type(op).__name__} is not piecewise linear")
    knots, slopes, intercepts = ([torch.as_tensor(v, dtype=torch.float64, device=z.device) for v in values] for values in op.pieces())
    slope, intercept = slopes[0].expand_as(z), intercepts[0].expand_as(z)
    for knot, next_slope, next_intercept in zip(knots, slopes[1:], intercepts[1:], strict=True):
        slope, intercept = torch.where(z >= knot, next_slope, slope), torch.where(z >= knot, next_intercept, intercept)
    return Lines(slope, intercept)
