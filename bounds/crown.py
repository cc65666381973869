"""Linear relaxation engines: Fast-Lin, CROWN, CROWN-IBP.

They differ in two choices, the slopes of the planes and how hidden intervals are found; the sweep and the backward walk are shared.
References: thesis section 3.1.1, Algorithm 3.1; Weng et al. 2018 (Fast-Lin); Zhang et al. 2018 (CROWN); Zhang et al. 2020 (CROWN-IBP).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds import rounding
from bounds.backward import bound_node, bound_objective
from bounds.engine import DEFAULT_MEMORY_MB, Bounds, as_objective, elements, place
from bounds.interval import Interval
from bounds.linear import LinearBounds
from bounds.network import Network
from bounds.ops.base import Activation, Affine, MovesData, Shape, Slopes, product
from bounds.ops.bilinear import Bilinear
from bounds.ops.substituted import Substituted
from bounds.region import LpBall, Region
from bounds.sweep import Sweep
from bounds.trace import Semantics, Trace


@dataclass(frozen=True)
class LinearEngine:
    """The sweep shared by all linear relaxation engines. Property: sound. Numerics: outward rounded.

    intersect: tighten hidden intervals by one step of interval propagation, and walk back only from neurons that this leaves unstable.
    Without it hidden intervals are those of the backward walk alone, as in the published algorithms. deadline: a value of
    time.monotonic() after which TimeLimitError is raised. both: bound the objective from above as well as from below; without it the upper
    bounds are those of the output's interval, and up to half of the time is saved.
    """

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    semantics: Semantics = "real"
    memory_mb: float = DEFAULT_MEMORY_MB
    intersect: bool = True
    deadline: float | None = None
    both: bool = True

    slopes: ClassVar[Slopes] = "adaptive"
    walks_hidden: ClassVar[bool] = True

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
        C = as_objective(objective, net, where, self.dtype, device)
        sweep = Sweep(
            Trace(net, where, self.semantics, self.deadline), {i: interval.to(self.dtype, device) for i, interval in known.items()}
        )
        limit = elements(self.memory_mb, self.dtype)
        for index in range(len(net.nodes)):
            interval = sweep.visit(index, self.slopes)
            if index in net.preactivations:
                self._tighten(sweep.trace, index, limit, known=interval if index in known else None)
        linear, found = self._objective(sweep.trace, C, limit)
        return Bounds(sweep.intervals(), found, linear)

    def _objective(self, trace: Trace, C: Tensor, limit: int) -> tuple[LinearBounds, Interval]:
        """Planes of C f(x) and the interval they imply."""
        return bound_objective(trace, C, limit, self.both)

    def _tighten(self, trace: Trace, index: int, limit: int, known: Interval | None) -> None:
        """Replace the interval of a pre-activation by that of the backward walk, where it can matter; never beyond what is known."""
        net, interval = trace.network, trace.interval(index)
        ball = isinstance(trace.region, LpBall) and trace.region.p != math.inf
        first = net.affine_in_input[index]
        if not (self.walks_hidden or (first and ball)) or (first and not ball and _mixes_once(net, index)) or _is_curve(net, index):
            return
        if not self.intersect:
            found = bound_node(trace, index, _curved(net, index, interval), limit)
            partial = any(getattr(net.nodes[user].op, "partial", False) for user in net.successors[index])
            found = found.intersect(interval) if partial else found
            trace.narrow(index, found if known is None else found.intersect(known))
            return
        found = bound_node(trace, index, unstable(net, index, interval), limit, lambda narrower: _constant(net, index, narrower))
        trace.narrow(index, found.intersect(interval))


@dataclass(frozen=True)
class Crown(LinearEngine):
    """CROWN: adaptive planes, hidden intervals by backward walks. See `LinearEngine` for the fields."""


@dataclass(frozen=True)
class FastLin(LinearEngine):
    """Fast-Lin: parallel planes (thesis (3.4), (3.5)), hidden intervals by backward walks alone (Algorithm 3.1)."""

    intersect: bool = False
    slopes: ClassVar[Slopes] = "parallel"


@dataclass(frozen=True)
class CrownIbp(LinearEngine):
    """CROWN-IBP: adaptive planes over intervals from interval propagation, one backward walk for the objective."""

    walks_hidden: ClassVar[bool] = False


def unstable(network: Network, index: int, interval: Interval) -> Tensor:
    """Mask of the elements of node `index` that some activation reading it could relax better with a tighter interval."""
    mask = torch.zeros_like(interval.lower, dtype=torch.bool)
    for user in network.successors[index]:
        op = network.nodes[user].op
        if isinstance(op, Activation):
            mask |= op.unstable(interval)
        elif isinstance(op, Bilinear):
            mask |= interval.lower < interval.upper
    return mask


def _constant(network: Network, index: int, interval: Interval) -> Tensor:
    """Mask of the elements of node `index` on whose interval everything that reads them is a constant."""
    mask = torch.ones_like(interval.lower, dtype=torch.bool)
    for user in network.successors[index]:
        op = network.nodes[user].op
        if not (isinstance(op, Activation) and op.free and op.piecewise):
            return torch.zeros_like(mask)
        mask &= op.interval(interval).width == 0
    return mask


def _curved(network: Network, index: int, interval: Interval) -> Tensor:
    """Mask of the elements of node `index` that something other than a line in place of an activation reads: all but for substitutes."""
    mask = torch.zeros_like(interval.lower, dtype=torch.bool)
    for user in network.successors[index]:
        op = network.nodes[user].op
        mask |= ~op.pruned if isinstance(op, Substituted) else True
    return mask


def _is_curve(network: Network, index: int) -> bool:
    """Whether the node is a smooth activation's output, perhaps moved: its input is bounded already, and planes over an interval prove no more."""
    while isinstance(network.nodes[index].op, MovesData) and len(network.nodes[index].inputs) == 1:
        (index,) = network.nodes[index].inputs
    op = network.nodes[index].op
    return isinstance(op, Activation) and op.free and not op.piecewise


def _mixes_once(network: Network, index: int) -> bool:
    """Whether at most one op between the input and node `index` adds several numbers, none of them copies: interval propagation is exact."""
    mixing = 0
    pending, seen = [index], set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        node, shapes = network.nodes[current], network.input_shapes(current)
        if isinstance(node.op, Affine):
            mixing += not node.op.elementwise and node.op.fan_in(*shapes) > 0
            mixing += mixing > 0 and _copies(node.op, shapes, node.shape)
        if len(node.inputs) > 1:
            mixing += 1
        pending.extend(node.inputs)
    return mixing <= 1


def _copies(op: Affine, shapes: tuple[Shape, ...], shape: Shape) -> bool:
    """Whether an op that moves data or scales elements puts one input into several outputs."""
    if isinstance(op, MovesData):
        return op.fan_out(*shapes) > 1
    return op.elementwise and product(shape) > product(shapes[0])
