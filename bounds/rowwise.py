"""Planes chosen for every row of a backward walk on its own, and multipliers of split neurons.

The rows of one walk may differ in what they know and in what they choose: branch and bound walks a batch of sub-problems down as the rows of
one region, each with its own intervals of split neurons; alpha-CROWN gives each row the slopes that suit it. Centres, reaches and charges
are those of the shared trace, whose intervals enclose every row's.

With act the activation, m its input's centre and c its own, a row with slopes s and S uses, for deviations d of the input,

    s d + drop <= act(m + d) - c <= S d + gap,      drop = s m + t - c,  gap = S m + T - c,

where t and T are the best intercepts for those slopes on the row's interval. A row that assumes z >= p (z <= p) for a neuron z may subtract
beta (z - p) (add it) for any beta >= 0: the multipliers of Lagrange, beta-CROWN's.

References: Xu et al. 2021, Fast and complete (alpha-CROWN); Wang et al. 2021, Beta-CROWN, (7) to (10).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding
from bounds.backward import View, Walk
from bounds.interval import Interval
from bounds.ops.base import Activation
from bounds.trace import Trace

_EXACT = torch.float64


@dataclass(frozen=True, eq=False)
class Choice:
    """What the rows chose for one activation. interval: of its input, (B, R or 1, *shape); slopes broadcast against it."""

    interval: Interval
    lower_slope: Tensor
    upper_slope: Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Multipliers of one node's split elements. All tensors (B, R, k) or broadcastable.

    elements: positions in the flattened node, each named at most twice with assumed != 0. assumed: +1 where the row assumes z >= point, -1
    for z <= point, 0 for neither. point: float64. beta >= 0, in the working type.
    """

    elements: Tensor
    assumed: Tensor
    point: Tensor
    beta: Tensor


@dataclass(frozen=True, eq=False)
class RowPlanes:
    """The planes of one activation, see the module; drop, gap and charge (B, R, *shape), charge None in an estimate."""

    low: Tensor
    high: Tensor
    drop: Tensor
    gap: Tensor
    charge: Tensor | None


@dataclass(frozen=True, eq=False)
class RowView(View):
    """A trace whose activations have planes of their own for every row. rigorous: rounding errors are charged; else it is an estimate."""

    rows: Mapping[int, RowPlanes]
    splits: Mapping[int, Split]
    rigorous: bool


class RowWalk(Walk):
    """A one-sided walk through a `RowView`."""

    view: RowView

    def _through_activation(self, index: int, op: Activation, A: Tensor) -> None:
        planes = self.view.rows.get(index)
        if planes is None:
            super()._through_activation(index, op, A)
            return
        negative = A.clamp(max=0)
        positive = A - negative
        wide = _EXACT if self.view.rigorous else A.dtype
        terms = positive.to(wide) * planes.drop, negative.to(wide) * planes.gap
        fall = (terms[0] + terms[1]).flatten(2).sum(-1).to(_EXACT)
        if planes.charge is not None:
            size = (terms[0].abs() + terms[1].abs()).flatten(2).sum(-1)
            paid = (A.abs().to(_EXACT) * planes.charge.to(_EXACT)).flatten(2).sum(-1) * rounding.SAFETY
            fall = fall - rounding.gamma(A[0, 0].numel() + 4, _EXACT) * size - paid
        self.lower = self.lower + fall
        self._add(self.network.nodes[index].inputs[0], positive * planes.low + negative * planes.high)

    def _arrive(self, index: int, A: Tensor | None) -> Tensor | None:
        """Add the multipliers of the elements that rows split at this node."""
        split = self.view.splits.get(index)
        if split is None:
            return A
        shape = self.network.nodes[index].shape
        trace = self.view.trace
        dtype = trace.dtype
        batch, rows = self.lower.shape
        elements = split.elements.expand(batch, rows, -1)
        multiplier = (-split.assumed * split.beta).to(dtype).expand_as(elements)
        center = trace.center[index].flatten(1).unsqueeze(1).expand(batch, rows, -1).gather(2, elements)
        offset = center - split.point
        wide = multiplier.to(_EXACT) * offset
        self.lower = self.lower + wide.sum(-1)
        flat = A.flatten(2) if A is not None else multiplier.new_zeros(batch, rows, trace.center[index][0].numel())
        total = flat.scatter_add(2, elements, multiplier)
        if self.view.rigorous:
            reach = trace.reach[index].flatten(1).unsqueeze(1).expand(batch, rows, -1).gather(2, elements).to(_EXACT)
            size = total.gather(2, elements).abs().to(_EXACT) + 2 * multiplier.abs().to(_EXACT)
            error = rounding.gamma(2, dtype) * (size * reach).sum(-1)
            error = error + rounding.gamma(elements.shape[-1] + 4, _EXACT) * (
                multiplier.abs().to(_EXACT) * (center.abs() + offset.abs())
            ).sum(-1)
            self.lower = self.lower - error * rounding.SAFETY
        return total.unflatten(2, shape)


def fitted(trace: Trace, index: int, choice: Choice) -> RowPlanes:
    """The planes of activation `index` for chosen slopes. Numerics: outward rounded."""
    node = trace.network.nodes[index]
    (source,) = node.inputs
    op = node.op
    low, high = choice.lower_slope, choice.upper_slope
    planes = op.fit(choice.interval, low, high)  # type: ignore[attr-defined]
    z, c = trace.center[source].unsqueeze(1), trace.center[index].unsqueeze(1)

    def at_center(slope: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        term = slope.to(_EXACT) * z
        wide = intercept.to(_EXACT)
        return term + wide - c, rounding.gamma(4, _EXACT) * (term.abs() + wide.abs() + c.abs())

    drop, gap = rounding.below(*at_center(low, planes.lower_intercept)), rounding.above(*at_center(high, planes.upper_intercept))
    return RowPlanes(low, high, drop, gap, trace.activation_charge(index, low, high))


def estimated(trace: Trace, index: int, choice: Choice) -> RowPlanes:
    """As `fitted`, in the working type, without regard to rounding and differentiable in the slopes."""
    node = trace.network.nodes[index]
    (source,) = node.inputs
    op, dtype = node.op, trace.dtype
    z, c = trace.center[source].unsqueeze(1).to(dtype), trace.center[index].unsqueeze(1).to(dtype)

    def extreme(slope: Tensor, pick: str) -> Tensor:
        best = None
        for point in op.touching(choice.interval, slope):  # type: ignore[attr-defined]
            value = op.forward(point) - c - slope * (point - z)
            best = value if best is None else getattr(torch, pick)(best, value)
        return best  # type: ignore[return-value]

    low, high = choice.lower_slope, choice.upper_slope
    return RowPlanes(low, high, extreme(low, "minimum"), extreme(high, "maximum"), None)


def is_free(trace: Trace, index: int) -> bool:
    """Whether rows may choose the slopes of node `index`."""
    op = trace.network.nodes[index].op
    return isinstance(op, Activation) and op.free
