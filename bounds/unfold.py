"""Maxima written as ReLUs: max(a, b) = a + relu(b - a).

A maximum has no slopes to choose and no two states to split; ReLUs have both. Only taps that can be the largest on a region take part, so that
most windows come to one or two ReLUs or to none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.interval import Interval
from bounds.network import Network, Node
from bounds.ops.affine import AddBranches, SubBranches
from bounds.ops.base import Op, Shape, product
from bounds.ops.piecewise import MaxReduce, Relu
from bounds.ops.shape import Gather, Pad, Reshape, Slice

MOST = 9
"""Taps up to which a maximum is unfolded: every one is another ReLU on top of the others."""


@dataclass(frozen=True, eq=False)
class Unfolded:
    """A network with ReLUs for maxima. places: where the nodes of the network it came from are, by their index there."""

    network: Network
    places: dict[int, int]

    def moved(self, intervals: Mapping[int, Interval]) -> dict[int, Interval]:
        """Enclosures of the nodes of the network it came from as enclosures of the same nodes here."""
        return {self.places[index]: interval for index, interval in intervals.items()}


def unfold_maxima(network: Network, intervals: Mapping[int, Interval]) -> Unfolded:
    """Write maxima as ReLUs; the network itself where there are none, or with more than `MOST` contenders.

    intervals: of nodes, (1, *shape), by index. Property: the same values on the region, exactly: taps that are smaller than another one
    throughout their intervals are left out.
    """
    nodes: list[Node] = []
    places: dict[int, int] = {}
    for index, node in enumerate(network.nodes):
        inputs = tuple(places[source] for source in node.inputs)
        contest = _contest(intervals[node.inputs[0]]) if isinstance(node.op, MaxReduce) and node.inputs[0] in intervals else None
        if contest is None:
            nodes.append(Node(node.op, inputs, node.shape, node.name))
        else:
            _unfold(nodes, inputs[0], contest, node)
        places[index] = len(nodes) - 1
    return Unfolded(Network(tuple(nodes), network.original), places)


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


def _unfold(nodes: list[Node], source: int, contest: _Contest, node: Node) -> None:
    """Append what computes the maxima of node `source`; one contender after the other, for the windows that have so many."""

    def add(op: Op, inputs: tuple[int, ...], shape: Shape) -> int:
        nodes.append(Node(op, inputs, shape, f"{node.name}, unfolded"))
        return len(nodes) - 1

    n = len(contest.windows)
    flat = add(Reshape((product(nodes[source].shape),)), (source,), (product(nodes[source].shape),))
    largest = add(Gather(0, contest.taps[:, 0]), (flat,), (n,))
    for k in range(1, contest.taps.shape[1]):
        some = int((contest.counts > k).sum())
        tap = add(Gather(0, contest.taps[:some, k]), (flat,), (some,))
        so_far = add(Slice(((0, some, 1),)), (largest,), (some,))
        more = add(Relu(), (add(SubBranches(), (tap, so_far), (some,)),), (some,))
        padded = add(Pad(((0, n - some),)), (more,), (n,)) if some < n else more
        largest = add(AddBranches(), (largest, padded), (n,))
    ordered = add(Gather(0, contest.windows.argsort()), (largest,), (n,))
    add(Reshape(node.shape), (ordered,), node.shape)
