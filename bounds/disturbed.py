"""Substitutes that prove something: what a line leaves out becomes a bounded disturbance, carried as a further input.

For z in [l, u] an activation is its substitute and a disturbance in a known range,

    act(z) = s z + t + delta,        delta in [min, max] over [l, u] of act(z) - (s z + t),

so f(x) is among g(x, delta) wherever the intervals hold, and whatever is proven about g on region x ranges is proven about f on the region: by any
engine, and by mixed-integer programs with binaries for the surviving elements only. The band around a line holds the hull of the activation, which
`milp.encode.Encoding.loosened` uses: that is tighter, and this is simpler, a network like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import ShapeError, UnsupportedOpError
from bounds.interval import Interval
from bounds.network import Network, Node
from bounds.ops.affine import AddBranches
from bounds.ops.base import Activation, Input, Shape, product
from bounds.ops.shape import Reshape, Slice
from bounds.region import Box, Region
from bounds.substitutes import Lines, Pruned, rewrite

_EXACT = torch.float64


@dataclass(frozen=True, eq=False)
class Disturbed:
    """g and its region. network: reads (flattened x, disturbances) as one vector; region: the box of both; nodes: where each node of the original
    network is found; ranges: of the disturbances, by the index of the activation in the original network, (1, *shape) each."""

    network: Network
    region: Box
    nodes: tuple[int, ...]
    ranges: dict[int, Interval]

    def point(self, x: Tensor, deltas: Mapping[int, Tensor]) -> Tensor:
        """An input of g. x: (N, *input_shape); deltas: (N, *shape) by activation, all of them -> (N, features)."""
        return torch.cat([x.flatten(1), *(deltas[index].flatten(1) for index in self.ranges)], dim=1)


def disturbance(op: Activation, x: Interval, line: Lines) -> Interval:
    """The range of act(z) - (slope z + intercept) over z in x; float64, shapes broadcast.

    Property: sound for real arithmetic, and exact up to rounding for any line: for a fixed slope the planes that fit most tightly touch the
    activation. Numerics: rounded outward. Raises: UnsupportedOpError where the op is not element-wise; NumericsError for an infinite interval.
    """
    wide = x.to(_EXACT)
    slope = line.slope.to(_EXACT).expand_as(wide.lower)
    planes = op.fit(wide, slope, slope)
    intercept = line.intercept.to(_EXACT)
    moved = intercept.ne(0)
    low, high = planes.lower_intercept - intercept, planes.upper_intercept - intercept
    return Interval(torch.where(moved, rounding.below(low), low), torch.where(moved, rounding.above(high), high))


def narrowest(op: Activation, x: Interval) -> Lines:
    """The secants of the interval, moved to the middle of what they leave out: no smaller disturbance for this slope. (1, *shape) -> (*shape)."""
    wide = x.to(_EXACT)
    slope = op.usual_slopes(wide, "parallel")[0]
    planes = op.fit(wide, slope, slope)
    return Lines(slope[0], ((planes.lower_intercept + planes.upper_intercept) / 2)[0])


def disturb(
    network: Network, region: Region, intervals: Mapping[int, Interval], pruned: Pruned, lines: Mapping[int, Lines] | None = None
) -> Disturbed:
    """g for a network on one region: lines and disturbances in place of the pruned elements.

    Args:
        intervals: sound enclosures on the region of what the pruned activations read, by node index, (1, *shape) each.
        pruned: masks of the elements that go, by the activation's node. lines: what stands in their place; None for `narrowest`.

    Property: for every x of the region there is a disturbance in its range with g(x, delta) = f(x), in real arithmetic. A ball enters as its box.

    Raises:
        ShapeError: a batch of regions, a missing interval, masks or lines that do not fit. UnsupportedOpError: an op that is not element-wise.
    """
    if region.batch != 1 or region.shape != network.input_shape:
        raise ShapeError(f"expected one region of shape {network.input_shape}, got {region.batch} of shape {region.shape}")
    pruned = dict(sorted(pruned.items()))
    masks = {index: mask.reshape(network.nodes[index].shape) for index, mask in pruned.items()}
    ranges, used = {}, {}
    for index, mask in masks.items():
        op, x = _element_wise(network, index), intervals.get(network.nodes[index].inputs[0])
        if x is None:
            raise ShapeError(f"node {network.nodes[index].name!r} has no interval of its input; bound it with an engine first")
        line = narrowest(op, x) if lines is None else lines[index]
        used[index] = Lines(line.slope.to(_EXACT), line.intercept.to(_EXACT))
        found = disturbance(op, x, used[index])
        ranges[index] = Interval(*(torch.where(mask, side, 0.0).reshape(1, *mask.shape) for side in (found.lower, found.upper)))
    box = region.box()
    sides = [
        torch.cat([getattr(part, side).to(_EXACT).flatten(1) for part in (box, *ranges.values())], dim=1) for side in ("lower", "upper")
    ]
    graph = _Graph(rewrite(network.to(_EXACT), masks, used), product(network.input_shape))
    return Disturbed(graph.network(list(ranges)), Box(*sides), tuple(graph.places), ranges)


def _element_wise(network: Network, index: int) -> Activation:
    node = network.nodes[index]
    if not isinstance(node.op, Activation) or not node.op.free:
        raise UnsupportedOpError(f"node {node.name!r} ({type(node.op).__name__}) is no element-wise activation: lines cannot replace it")
    return node.op


class _Graph:
    """The rewritten network with a longer input, from which each activation adds its part."""

    def __init__(self, substitute: Network, features: int) -> None:
        self.substitute, self.features = substitute, features
        self.nodes: list[Node] = []
        self.places: list[int] = []

    def network(self, disturbed: list[int]) -> Network:
        nodes = self.substitute.nodes
        width = self.features + sum(product(nodes[index].shape) for index in disturbed)
        self.nodes = [Node(Input(), (), (width,), nodes[0].name)]
        self.places = [self.part(0, nodes[0].shape, "x")]
        start = self.features
        for index, node in enumerate(nodes[1:], 1):
            self.nodes.append(replace(node, inputs=tuple(self.places[source] for source in node.inputs)))
            place = len(self.nodes) - 1
            if index in disturbed:
                delta = self.part(start, node.shape, f"{node.name} disturbance")
                start += product(node.shape)
                self.nodes.append(Node(AddBranches(), (place, delta), node.shape, f"{node.name} disturbed"))
                place = len(self.nodes) - 1
            self.places.append(place)
        return Network(tuple(self.nodes))

    def part(self, start: int, shape: Shape, name: str) -> int:
        """Nodes that cut a part out of the input and give it a shape; the number of the last one."""
        stop = start + product(shape)
        self.nodes.append(Node(Slice(((start, stop, 1),)), (0,), (stop - start,), f"{name} slice"))
        self.nodes.append(Node(Reshape(shape), (len(self.nodes) - 1,), shape, name))
        return len(self.nodes) - 1
