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

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding
from bounds.backward import Walk
from bounds.errors import UnsupportedOpError
from bounds.interval import Interval
from bounds.ops.base import Activation, Affine
from bounds.trace import Planes, Trace
from bounds.view import View

_EXACT = torch.float64
_ROOM = 1e-3
"""What a neuron counts that touches its lower plane where it would be split: the split's multiplier may still gain, in proportion to its room."""


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
    """The planes of one activation at the elements where rows differ, see the module.

    columns: positions of those elements in ascending order, (k,). low, high, drop, gap: (B, R, k). charge: what rounding costs there, None in
    an estimate. shared: the trace's planes elsewhere, and their charge (B, n).
    """

    columns: Tensor
    low: Tensor
    high: Tensor
    drop: Tensor
    gap: Tensor
    charge: Tensor | None
    shared: Planes
    shared_charge: Tensor


@dataclass(frozen=True, eq=False)
class RowView(View):
    """A trace whose activations have planes of their own for every row. rigorous: rounding errors are charged; else it is an estimate.

    seen: where given, filled with the coefficients (B, R, k) that arrive at the columns of each activation.
    """

    rows: Mapping[int, RowPlanes]
    splits: Mapping[int, Split]
    rigorous: bool
    seen: dict[int, Tensor] | None = None


class RowWalk(Walk):
    """A one-sided walk through a `RowView`."""

    view: RowView

    def _through_activation(self, index: int, op: Activation, A: Tensor) -> None:
        planes = self.view.rows.get(index)
        if planes is None:
            super()._through_activation(index, op, A)
            return
        flat = A.flatten(2)
        everywhere = planes.columns.numel() == flat.shape[2]
        picked = flat if everywhere else flat.index_select(2, planes.columns)
        if self.view.seen is not None:
            self.view.seen[index] = picked
        negative = picked.clamp(max=0)
        positive = picked - negative
        self._sum(positive, negative, planes)
        relaxed = torch.addcmul(positive * planes.low, negative, planes.high)
        if not everywhere:
            if planes.charge is not None:
                self._share(flat, planes)
            relaxed = (flat * planes.shared.slope.flatten(1).unsqueeze(1)).index_copy(2, planes.columns, relaxed)
        self._add(self.network.nodes[index].inputs[0], relaxed.view_as(A))

    def _sum(self, positive: Tensor, negative: Tensor, planes: RowPlanes) -> None:
        """Add the planes' offsets at the rows' own columns, less what rounding costs there."""
        if planes.charge is None:
            self.lower = self.lower + torch.addcmul(positive * planes.drop, negative, planes.gap).sum(-1).to(_EXACT)
            return
        terms = positive.to(_EXACT) * planes.drop, negative.to(_EXACT) * planes.gap
        size = (terms[0].abs() + terms[1].abs()).sum(-1)
        paid = ((positive - negative).to(_EXACT) * planes.charge.to(_EXACT)).sum(-1) * rounding.SAFETY
        self.lower = self.lower + (terms[0] + terms[1]).sum(-1) - rounding.gamma(positive.shape[-1] + 4, _EXACT) * size - paid

    def _share(self, flat: Tensor, planes: RowPlanes) -> None:
        """The other columns: their planes are stable, what is left is rounding."""
        paid = rounding.matvec(flat.abs(), planes.shared_charge).to(_EXACT) * rounding.SAFETY
        slack = 1 + rounding.dot_error(flat.dtype, flat.shape[-1])
        self.lower = self.lower - paid + slack * rounding.dot(flat.clamp(max=0), planes.shared.gap.flatten(1), planes.shared.segments)

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
            if isinstance(self.network.nodes[index].op, Affine):
                # What the walk rounds between this node and the activations below: other coefficients paid for it at the activation above.
                charge = trace.charge[index].flatten(1).unsqueeze(1).expand(batch, rows, -1).gather(2, elements).to(_EXACT)
                error = error + (multiplier.abs().to(_EXACT) * charge).sum(-1)
            self.lower = self.lower - error * rounding.SAFETY
        return total.unflatten(2, shape)


class Freedom:
    """What rows may choose for one activation: alphas in [0, 1] that place a slope between the smallest and largest worth trying.

    columns: positions of the elements where they may, ascending, (k,): all that are unstable in some region. interval: of the activation's input there,
    (B, R or 1, k), inside the trace's; None for the trace's own. The plane above has no alpha where the activation is convex, the plane below
    none where it is concave: their best slope is the chord's.
    """

    def __init__(self, trace: Trace, index: int, columns: Tensor, interval: Interval | None = None) -> None:
        node = trace.network.nodes[index]
        (source,) = node.inputs
        if not (isinstance(node.op, Activation) and node.op.free):
            raise UnsupportedOpError(f"node {node.name!r} has no slopes that could be chosen")
        self.trace, self.index, self.columns = trace, index, columns
        self.op = node.op.at(columns, node.shape)
        self.interval = interval or _pick(trace.interval(source), columns)
        self.least, most = self.op.slope_range(self.interval)
        self.span = most - self.least
        self.z, self.c = (trace.center[i].flatten(1)[:, columns].unsqueeze(1) for i in (source, index))
        self.sides = (not self.op.concave, not self.op.convex)
        self._z, self._c = self.z.to(trace.dtype), self.c.to(trace.dtype)
        self._fixed_contacts = {below: self._contacts(self.least, below) for below in (True, False)} if self.op.piecewise else {}
        self._drop = None if self.sides[0] else self._extreme(self.usual[0], below=True)
        self._gap = None if self.sides[1] else self._extreme(self.usual[1], below=False)
        self._shared = _without(trace.planes[index], columns)
        self._shared_charge = trace.charge[index].flatten(1).index_fill(1, columns, 0.0)

    @functools.cached_property
    def usual(self) -> tuple[Tensor, Tensor]:
        """The slopes of CROWN's planes: rows that bring slopes of their own for both sides do without, and on curves they take long."""
        return self.op.usual_slopes(self.interval)

    def initial(self) -> tuple[Tensor, ...]:
        """The alphas of the planes that CROWN takes."""
        span = torch.where(self.span > 0, self.span, 1.0)
        return tuple(((slope - self.least) / span).clamp(0, 1) for slope, free in zip(self.usual, self.sides, strict=True) if free)

    def slopes(self, alphas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Slopes below and above, (B, R, *shape)."""
        chosen = iter(alphas)
        low, high = (self.least + next(chosen) * self.span if free else self.usual[side] for side, free in enumerate(self.sides))
        return low, high

    def estimated(self, alphas: Sequence[Tensor]) -> RowPlanes:
        """The planes in the working type, without regard to rounding and differentiable in the alphas."""
        low, high = self.slopes(alphas)
        drop = self._extreme(low, below=True) if self._drop is None else self._drop
        gap = self._extreme(high, below=False) if self._gap is None else self._gap
        return RowPlanes(self.columns, low, high, drop, gap, None, self._shared, self._shared_charge)

    def fitted(self, alphas: Sequence[Tensor]) -> RowPlanes:
        """The planes, rounded outward, and what a walk through them costs."""
        low, high = self.slopes(alphas)
        planes = self.op.fit(self.interval, low, high)

        def at_center(slope: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
            term, wide = slope.to(_EXACT) * self.z, intercept.to(_EXACT)
            return term + wide - self.c, rounding.gamma(4, _EXACT) * (term.abs() + wide.abs() + self.c.abs())

        drop, gap = rounding.below(*at_center(low, planes.lower_intercept)), rounding.above(*at_center(high, planes.upper_intercept))
        charge = self.trace.activation_charge(self.index, low, high, self.columns)
        return RowPlanes(self.columns, low, high, drop, gap, charge, self._shared, self._shared_charge)

    def loss(self, alphas: Sequence[Tensor], coefficient: Tensor | None) -> tuple[Tensor, Tensor]:
        """How much the planes cost rows with these coefficients (B, R, k) where a split would cut, 0 at stable elements; and that point."""
        point = self.op.split_point(self.interval)
        planes, lever = self.estimated(alphas), point - self._z
        value = self.op.forward(point) - self._c
        if coefficient is None:
            return torch.zeros_like(value), point
        below, above = value - planes.low * lever - planes.drop, planes.high * lever + planes.gap - value
        room = torch.minimum(self.interval.upper - point, point - self.interval.lower)
        loss = coefficient.clamp(min=0) * (below + _ROOM * room) - coefficient.clamp(max=0) * above
        return torch.where(self.op.unstable(self.interval), loss.clamp(min=1e-12), 0.0), point

    def _extreme(self, slope: Tensor, *, below: bool) -> Tensor:
        """min (max unless `below`) over the interval of act(x) - c - slope (x - m)."""
        contacts = self._fixed_contacts.get(below) or self._contacts(slope, below)
        pick = torch.minimum if below else torch.maximum
        return functools.reduce(pick, (height - slope * lever for height, lever in contacts))

    def _contacts(self, slope: Tensor, below: bool) -> list[tuple[Tensor, Tensor]]:
        """act(x) - c and x - m at the points where the extreme may be."""
        points = self.op.touching(self.interval, slope, below=below)
        return [(self.op.forward(point) - self._c, point - self._z) for point in points]


def unstable_columns(trace: Trace, index: int) -> Tensor:
    """Positions of the elements of activation `index` that are unstable in some region."""
    node = trace.network.nodes[index]
    mask = node.op.unstable(trace.interval(node.inputs[0]))  # type: ignore[attr-defined]
    return mask.flatten(1).any(0).nonzero().flatten()


def _pick(interval: Interval, columns: Tensor) -> Interval:
    """The interval at some elements, as (B, 1, k)."""
    return Interval(interval.lower.flatten(1)[:, columns].unsqueeze(1), interval.upper.flatten(1)[:, columns].unsqueeze(1))


def _without(planes: Planes, columns: Tensor) -> Planes:
    """The planes with no gap at some elements."""
    gap = planes.gap.flatten(1).index_fill(1, columns, 0.0)
    return Planes(planes.slope, planes.step, gap, rounding.segments(gap), planes.parallel)
