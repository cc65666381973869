"""Maxima written as ReLUs, max(a, b) = a + relu(b - a), and products as squares, 4 s a b = (a + s b)^2 - (a - s b)^2.

A maximum or a product has no slopes to choose and nothing to split; ReLUs and squares have both. Only taps that can be the largest on a region take
part in a maximum, so that most windows come to one or two ReLUs or to none. With s the ratio of the widths of a and b, rounded to a power of two
so that nothing else is, the planes of the two squares are about as far apart as McCormick's planes of the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.network import Network, Node
from bounds.ops.affine import AddBranches, ReduceSum, Scale, SubBranches
from bounds.ops.base import Op, Shape, product
from bounds.ops.bilinear import Bilinear
from bounds.ops.functions import Power
from bounds.ops.piecewise import MaxReduce, Relu
from bounds.ops.shape import Gather, Pad, Reshape, Slice

MOST = 9
"""Taps up to which a maximum is unfolded: every one is another ReLU on top of the others."""
MOST_TERMS = 1000
"""Terms of all products up to which they are unfolded: each is two squares with slopes of their own in every row."""


@dataclass(frozen=True, eq=False)
class Unfolded:
    """A network with ReLUs for maxima and squares for products. places: where the nodes of the network it came from are, by their index there."""

    network: Network
    places: dict[int, int]

    def moved(self, intervals: Mapping[int, Interval]) -> dict[int, Interval]:
        """Enclosures of the nodes of the network it came from as enclosures of the same nodes here."""
        return {self.places[index]: interval for index, interval in intervals.items()}


def unfold(network: Network, intervals: Mapping[int, Interval]) -> Unfolded:
    """Write maxima as ReLUs, but for those with more than `MOST` contenders, and products as squares, where there are at most `MOST_TERMS` terms.

    intervals: of nodes, (1, *shape), by index. Property: the same values on the region, exactly: taps that are smaller than another one
    throughout their intervals are left out.
    """
    nodes: list[Node] = []
    places: dict[int, int] = {}
    squares = _terms(network) <= MOST_TERMS
    for index, node in enumerate(network.nodes):
        inputs, known = tuple(places[source] for source in node.inputs), [intervals.get(source) for source in node.inputs]
        contest = _contest(known[0]) if isinstance(node.op, MaxReduce) and known[0] is not None else None
        if contest is not None:
            _maximum(_Chain(nodes, node), inputs[0], contest)
        elif isinstance(node.op, Bilinear) and squares and known[0] is not None and known[1] is not None:
            _product(_Chain(nodes, node), (inputs[0], inputs[1]), (known[0], known[1]), node.op, network.dtype)
        else:
            nodes.append(Node(node.op, inputs, node.shape, node.name))
        places[index] = len(nodes) - 1
    return Unfolded(Network(tuple(nodes), network.original), places)


def _terms(network: Network) -> int:
    """Terms of all products."""
    total = 0
    for index, node in enumerate(network.nodes):
        if isinstance(node.op, Bilinear):
            total += node.op.sums(*network.input_shapes(index)) * product(node.shape)
    return total


@dataclass(frozen=True, eq=False)
class _Contest:
    """Windows in descending order of their contenders. windows: (n,) their positions; taps: (n, most), positions in the flattened input, contenders
    first; counts: (n,)."""

    windows: Tensor
    taps: Tensor
    counts: Tensor


def _contest(x: Interval) -> _Contest | None:
    """Who can be the largest, the one with the largest lower bound first; None where too many can."""
    lower, upper = (side.flatten(0, -2) for side in (x.lower, x.upper))
    floor = lower.amax(dim=1, keepdim=True)
    counts = (upper >= floor).sum(1)
    most = int(counts.max())
    if most > MOST:
        return None
    # The others in descending order of what they may reach; whoever cannot be the largest comes last.
    rank = torch.where(upper >= floor, upper, -torch.inf).scatter(1, lower.argmax(dim=1, keepdim=True), torch.inf)
    order = rank.argsort(dim=1, descending=True, stable=True)[:, :most]
    windows = counts.argsort(descending=True, stable=True)
    taps = order + torch.arange(len(order)).unsqueeze(1) * x.lower.shape[-1]
    return _Contest(windows, taps[windows], counts[windows])


class _Chain:
    """Appends to `nodes` those that stand for `node`."""

    def __init__(self, nodes: list[Node], node: Node) -> None:
        self.nodes, self.shape, self.name = nodes, node.shape, f"{node.name}, unfolded"

    def add(self, op: Op, inputs: tuple[int, ...], shape: Shape) -> int:
        """Another node; its index."""
        self.nodes.append(Node(op, inputs, shape, self.name))
        return len(self.nodes) - 1

    def flat(self, source: int) -> int:
        """A node's elements in one row."""
        shape = (product(self.nodes[source].shape),)
        return self.add(Reshape(shape), (source,), shape)


def _maximum(chain: _Chain, source: int, contest: _Contest) -> None:
    """Append what computes the maxima of node `source`; one contender after the other, for the windows that have so many."""
    n = len(contest.windows)
    flat = chain.flat(source)
    largest = chain.add(Gather(0, contest.taps[:, 0]), (flat,), (n,))
    for k in range(1, contest.taps.shape[1]):
        some = int((contest.counts > k).sum())
        tap = chain.add(Gather(0, contest.taps[:some, k]), (flat,), (some,))
        so_far = chain.add(Slice(((0, some, 1),)), (largest,), (some,))
        more = chain.add(Relu(), (chain.add(SubBranches(), (tap, so_far), (some,)),), (some,))
        padded = chain.add(Pad(((0, n - some),)), (more,), (n,)) if some < n else more
        largest = chain.add(AddBranches(), (largest, padded), (n,))
    ordered = chain.add(Gather(0, contest.windows.argsort()), (largest,), (n,))
    chain.add(Reshape(chain.shape), (ordered,), chain.shape)


def _product(chain: _Chain, sources: tuple[int, int], known: tuple[Interval, Interval], op: Bilinear, dtype: torch.dtype) -> None:
    """Append what computes the sum of the products of two nodes' elements."""
    shapes = [chain.nodes[source].shape for source in sources]
    places = [torch.arange(product(shape)).reshape(1, *shape) for shape in shapes]
    first, second = torch.broadcast_tensors(*op.lift(places[0], places[1]))
    terms, n = tuple(first.shape[1:]), first.numel()
    widths = [x.width.flatten().to(torch.float64)[at.flatten()] for x, at in zip(known, (first, second), strict=True)]
    ratio = torch.where((widths[0] > 0) & (widths[1] > 0), widths[0] / widths[1], 1.0)
    scale = torch.exp2(ratio.log2().round().clamp(-20, 20)).to(dtype)
    a = chain.add(Gather(0, first.flatten()), (chain.flat(sources[0]),), (n,))
    b = chain.add(Scale(scale), (chain.add(Gather(0, second.flatten()), (chain.flat(sources[1]),), (n,)),), (n,))
    total, rest = (chain.add(Power(2.0), (chain.add(way, (a, b), (n,)),), (n,)) for way in (AddBranches(), SubBranches()))
    quarters = chain.add(SubBranches(), (total, rest), (n,))
    result = chain.add(Scale(0.25 / scale), (quarters,), (n,))
    if terms == chain.shape:
        chain.add(Reshape(terms), (result,), terms)
        return
    chain.add(ReduceSum((len(terms) - 2,), keepdims=False), (chain.add(Reshape(terms), (result,), terms),), chain.shape)
