"""Interval bound propagation.

Reference: thesis section 3.1.2, equation (3.8) and Algorithm 3.2 (Gowal et al. 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding
from bounds.backward import bound_node, bound_tail
from bounds.engine import DEFAULT_MEMORY_MB, Bounds, as_objective, elements, place
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.base import Affine
from bounds.region import LpBall, Region
from bounds.trace import Semantics, Trace


@dataclass(frozen=True)
class Ibp:
    """Interval bound propagation: every node's interval from its inputs' intervals.

    Nodes that are affine in the input get the exact dual-norm bound on l1 and l2 balls. With `elide` the objective is folded into the last
    affine nodes before it is bounded (as margins are in robust training); otherwise the outputs' intervals are combined.

    Property: sound. Numerics: outward rounded.
    """

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    semantics: Semantics = "real"
    elide: bool = True
    memory_mb: float = DEFAULT_MEMORY_MB

    def __call__(
        self, network: Network, region: Region, objective: Tensor | None = None, known: dict[int, Interval] | None = None
    ) -> Bounds:
        """See `BoundEngine`."""
        device = place(self.device)
        with rounding.full_precision(device):
            return self._bound(network, region, objective, known or {}, device)

    def _bound(
        self, network: Network, region: Region, objective: Tensor | None, known: dict[int, Interval], device: torch.device
    ) -> Bounds:
        net, where = network.to(self.dtype, device), region.to(self.dtype, device)
        C = None if objective is None else as_objective(objective, net, where, self.dtype, device)
        trace = Trace(net, where, self.semantics)
        ball = isinstance(where, LpBall) and where.p != math.inf
        limit = elements(self.memory_mb, self.dtype)
        tail = _affine_tail(net) if C is not None and self.elide else frozenset()
        for index, node in enumerate(net.nodes):
            interval = trace.propagate(index)
            if index in known:
                interval = interval.intersect(known[index].to(self.dtype, device))
            exact = ball and net.affine_in_input[index]
            if exact or (index in tail and isinstance(node.op, Affine)):
                trace.visit(index, interval, "adaptive")
            elif index in tail:
                trace.anchor(index, interval)
            else:
                trace.record(index, interval)
            if exact and (index in net.preactivations or index == len(net.nodes) - 1):
                everything = torch.ones_like(interval.lower, dtype=torch.bool)
                trace.narrow(index, bound_node(trace, index, everything, limit).intersect(interval))
        intervals = tuple(trace.interval(i) for i in range(len(net.nodes)))
        if C is None:
            last = Interval(intervals[-1].lower.flatten(1).double(), intervals[-1].upper.flatten(1).double())
            return Bounds(intervals, last, None)
        if not self.elide:
            trace.anchor(len(net.nodes) - 1, intervals[-1])
        return Bounds(intervals, bound_tail(trace, C, None if self.elide else len(net.nodes) - 1), None)


def _affine_tail(network: Network) -> frozenset[int]:
    """The nodes from which the output is reached through affine nodes only, with the other nodes they start from."""
    tail: set[int] = {len(network.nodes) - 1}
    for index in range(len(network.nodes) - 1, -1, -1):
        if index in tail and isinstance(network.nodes[index].op, Affine):
            tail.update(network.nodes[index].inputs)
    return frozenset(tail)
