"""The one backward walk: linear bounds of any node in terms of the input.

Every engine that relaxes activations by planes calls `bound_node` for intervals of hidden nodes and `bound_objective` for the coefficients of
the output. The walk carries lower bounds only: an upper bound of a row is a lower bound of its negative. Until the first activation whose
two slopes differ, a row and its negative share their coefficients; there the rows are doubled.

Numerics: rigorous. Coefficients are taken as they are computed; what they differ from exact ones by is charged as explained in
`bounds.trace`. Constants and errors are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding
from bounds.groups import row_groups, row_size, rows_per_group
from bounds.interval import Interval
from bounds.linear import LinearBounds
from bounds.local import LocalWalk, Rows, is_local
from bounds.network import Network
from bounds.ops.base import Activation, Affine, Input
from bounds.ops.bilinear import Bilinear
from bounds.region import Box
from bounds.trace import Planes, ProductPlanes, Trace
from bounds.view import View

_EXACT = torch.float64
_WORTH_A_WALK = 2**17
"""Coefficients that a second walk must promise to save: fewer take no longer than its own overhead."""


@dataclass(frozen=True, eq=False)
class Planar:
    """What a walk arrives with: A d_0 + constant <= the rows' deviation (first `rows`) and its negative.

    d_0 is the input's deviation. When `doubled` is False the coefficients of the negated rows are -A, if the walk was two-sided at all.
    A: (B, rows or 2 rows, *input_shape); lower, upper: (B, rows) constants of the two, errors already subtracted.
    """

    A: Tensor
    lower: Tensor
    upper: Tensor
    doubled: bool
    two_sided: bool


class Walk:
    """One walk's state: coefficients pending at nodes and constants (errors subtracted) so far.

    two_sided: bound the negated rows as well. They share the coefficients until the first activation whose slopes differ.
    """

    def __init__(self, view: View, pending: dict[int, Tensor], lower: Tensor, upper: Tensor, two_sided: bool) -> None:
        self.view, self.network = view, view.trace.network
        self.pending, self.lower, self.upper = pending, lower, upper
        self.rows = lower.shape[1]
        self.two_sided, self.doubled = two_sided, False

    def run(self, start: int) -> Planar:
        """From node `start` down to the input."""
        for index in range(start, -1, -1):
            A = self._arrive(index, self.pending.pop(index, None))
            if A is None:
                continue
            op = self.network.nodes[index].op
            if isinstance(op, Input):
                return Planar(A, self.lower, self.upper, self.doubled, self.two_sided)
            if isinstance(op, Affine):
                self._through_affine(index, op, A)
            elif isinstance(op, Activation):
                self._through_activation(index, op, A)
            elif isinstance(op, Bilinear):
                self._through_bilinear(index, op, A)
        # The rows do not depend on the input at all.
        height = self.rows * (2 if self.doubled else 1)
        nothing = self.lower.new_zeros(self.lower.shape[0], height, *self.network.input_shape, dtype=self.view.trace.dtype)
        return Planar(nothing, self.lower, self.upper, self.doubled, self.two_sided)

    def _arrive(self, index: int, A: Tensor | None) -> Tensor | None:
        """The coefficients at node `index` once the walk has met all its users."""
        return A

    def run_to_frontier(self, start: int, stop: int | None) -> dict[int, Tensor]:
        """From node `start` through affine nodes only; the coefficients at the activations, the input or `stop`."""
        frontier: dict[int, Tensor] = {}
        for index in range(start, -1, -1):
            A = self.pending.pop(index, None)
            if A is None:
                continue
            op = self.network.nodes[index].op
            if isinstance(op, Affine) and index != stop:
                self._through_affine(index, op, A)
            else:
                frontier[index] = A
        return frontier

    def _add(self, index: int, A: Tensor) -> None:
        held = self.pending.get(index)
        self.pending[index] = A if held is None else held + A

    def _through_affine(self, index: int, op: Affine, A: Tensor) -> None:
        shapes = self.network.input_shapes(index)
        results = op.adjoint(A.flatten(0, 1), *shapes)
        for source, result in zip(self.network.nodes[index].inputs, results, strict=True):
            self._add(source, result.unflatten(0, A.shape[:2]))

    def _through_activation(self, index: int, op: Activation, A: Tensor) -> None:
        planes = self.view.planes(index)
        A, negative = self._fall(index, A, planes)
        relaxed = op.spread(A) * planes.slope.unsqueeze(1)
        if not planes.parallel:
            relaxed.addcmul_(op.spread(negative.view_as(A)), planes.step.unsqueeze(1))
        self._add(self.network.nodes[index].inputs[0], relaxed)

    def _through_bilinear(self, index: int, op: Bilinear, A: Tensor) -> None:
        planes, shapes = self.view.products(index), self.network.input_shapes(index)
        A, flat_negative = self._fall(index, A, planes)
        if planes.parallel:
            pulled = op.pull(A, planes.lower, *shapes)
        else:
            negative = flat_negative.view_as(A)
            above, below = op.pull(A - negative, planes.lower, *shapes), op.pull(negative, planes.upper, *shapes)
            pulled = (above[0] + below[0], above[1] + below[1])
        for source, relaxed in zip(self.network.nodes[index].inputs, pulled, strict=True):
            self._add(source, relaxed)

    def _fall(self, index: int, A: Tensor, planes: Planes | ProductPlanes) -> tuple[Tensor, Tensor]:
        """Subtract the gaps that rows meet at a relaxed node, and what passing it costs; the coefficients, doubled if need be, and their
        negative parts, flattened."""
        if self.two_sided and not planes.parallel and not self.doubled:
            A = self._double(A)
        flat = A.flatten(2)
        negative = flat.clamp(max=0)
        self._pay(index, flat.detach())
        gap, slack = planes.gap.flatten(1), 1 + rounding.dot_error(A.dtype, flat.shape[-1])
        fall = slack * rounding.dot(negative, gap, planes.segments)
        self.lower = self.lower + (fall[:, : self.rows] if self.doubled else fall)
        if self.doubled:
            self.upper = self.upper + fall[:, self.rows :]
        elif self.two_sided:
            self.upper = self.upper - slack * rounding.dot(flat - negative, gap, planes.segments)
        return A, negative

    def _double(self, A: Tensor) -> Tensor:
        """Let the negated rows go their own way from here on."""
        self.doubled = True
        self.pending = {k: torch.cat([v, -v], dim=1) for k, v in self.pending.items()}
        return torch.cat([A, -A], dim=1)

    def _pay(self, index: int, flat: Tensor) -> None:
        """Subtract <|A|, charge>."""
        total = rounding.matvec(flat.abs(), self.view.charge(index).flatten(1)).to(_EXACT) * rounding.SAFETY
        self.lower = self.lower - (total[:, : self.rows] if self.doubled else total)
        if self.two_sided:
            self.upper = self.upper - (total[:, self.rows :] if self.doubled else total)


def concretize(view: View, planar: Planar) -> tuple[Tensor, Tensor]:
    """Bounds of the rows' deviations over the regions from below and above (infinite unless the walk was two-sided), float64, outward; (images,
    rows)."""
    region, network = view.trace.region, view.trace.network
    rows = planar.lower.shape[1]
    fall = region.decrease(planar.A, view.images)
    if planar.doubled:
        return less(network, planar.lower, fall[:, :rows]), -less(network, planar.upper, fall[:, rows:])
    floor = less(network, planar.lower, fall)
    if not planar.two_sided:
        return floor, torch.full_like(floor, math.inf)
    rise = fall if region.symmetric else region.decrease(-planar.A, view.images)
    return floor, -less(network, planar.upper, rise)


def less(network: Network, constant: Tensor, fall: Tensor) -> Tensor:
    """constant - fall, less what the float64 roundings of a walk can amount to."""
    return constant - fall - _accumulated(network) * (constant.abs() + fall)


def _accumulated(network: Network) -> float:
    """Relative allowance for the float64 sum of a walk's constants, which all have one sign: a few roundings a node."""
    return rounding.gamma(64 + 4 * len(network.nodes), _EXACT)


def bound_node(trace: Trace, index: int, wanted: Tensor, memory: int, settled: Callable[[Interval], Tensor] | None = None) -> Interval:
    """Intervals of the elements of node `index` selected by `wanted` (B, *shape), the node's propagated interval elsewhere.

    memory: how many elements the coefficient tensors of one chunk may hold at one node. settled: mask of the elements whose interval need
    not be tighter than the given one; such an element may keep its propagated lower bound. Property: sound. Returns the working type.
    """
    interval = trace.interval(index)
    best = Interval(interval.lower.flatten(1).clone(), interval.upper.flatten(1).clone())
    rows = wanted.flatten(1)
    if trace.parallel:
        _bound_both(trace, index, rows, memory, best)
    else:
        # Activations are flat on the negative side more often than not: an upper bound may say everything about an element.
        falling = rows & (trace.center[index].flatten(1) < 0)
        if settled is None or int(falling.sum()) * row_size(trace, index) < _WORTH_A_WALK:
            _bound_sides(trace, index, (rows, rows), memory, best)
        else:
            _bound_sides(trace, index, (rows & ~falling, rows), memory, best)
            open_ = ~settled(Interval(best.lower.reshape(interval.shape), best.upper.reshape(interval.shape))).flatten(1)
            _bound_sides(trace, index, (falling & open_, torch.zeros_like(rows)), memory, best)
    return Interval(best.lower.reshape(interval.shape), best.upper.reshape(interval.shape))


def _bound_both(trace: Trace, index: int, wanted: Tensor, memory: int, best: Interval) -> None:
    """Write both bounds of the wanted elements (B, n) into `best`; for parallel planes, where one walk gives both."""
    dtype = trace.dtype
    for images, elements, valid in row_groups(trace, index, wanted, memory):
        trace.check_time()
        view = _view(trace, images)
        floor, ceiling = _walk_elements(view, Rows(index, elements, None))
        base, where = view.pick(trace.center[index], elements), (images.unsqueeze(1).expand_as(elements)[valid], elements[valid])
        best.lower[where] = rounding.round_down(rounding.below(base + floor), dtype)[valid]
        best.upper[where] = rounding.round_up(rounding.above(base + ceiling), dtype)[valid]


def _bound_sides(trace: Trace, index: int, sides: tuple[Tensor, Tensor], memory: int, best: Interval) -> None:
    """Write lower bounds of the elements wanted in sides[0] (B, n) and upper bounds of those in sides[1] into `best`."""
    count = sides[0].shape[1]
    ends = torch.cat([best.lower, -best.upper], dim=1)
    for images, places, valid in row_groups(trace, index, torch.cat(sides, dim=1), memory):
        trace.check_time()
        falls = places >= count
        elements, sign = places - falls * count, (1 - 2 * falls.to(trace.dtype))
        view = _view(trace, images)
        floor, _ = _walk_elements(view, Rows(index, elements, sign))
        found = rounding.round_down(rounding.below(view.pick(trace.center[index], elements) * sign + floor), trace.dtype)
        where = images.unsqueeze(1).expand_as(places)
        ends[where[valid], places[valid]] = found[valid]
    best.lower.copy_(ends[:, :count])
    best.upper.copy_(-ends[:, count:])


def _view(trace: Trace, images: Tensor) -> View:
    return View(trace, None if images.numel() == trace.batch == 1 else images)


def _walk_elements(view: View, rows: Rows) -> tuple[Tensor, Tensor]:
    """Bounds of the signed elements' deviations: from below, and for two-sided walks from above; (images, rows) float64, outward."""
    fee = _element_fee(view, rows)
    network, two_sided = view.trace.network, rows.sign is None
    if not is_local(network, rows.start):
        return concretize(view, Walk(view, _first_coefficients(view, rows), -fee, -fee, two_sided).run(rows.start))
    local = LocalWalk(view, rows, fee)
    resume = local.run()
    lower, upper = (t.view(rows.elements.shape) for t in (local.lower, local.upper))
    falls = local.decrease() if resume == 0 else None
    if falls is None:
        return concretize(view, Walk(view, local.dense(), lower, upper, two_sided).run(resume))
    fall, rise = (t.view(rows.elements.shape) for t in falls)
    return less(network, lower, fall), -less(network, upper, rise)


def _first_coefficients(view: View, rows: Rows) -> dict[int, Tensor]:
    """The rows as coefficients at node `start`, or at what it reads where that is a look-up."""
    node, shapes = view.trace.network.nodes[rows.start], view.trace.network.input_shapes(rows.start)
    found = node.op.unit_adjoint(rows.elements, *shapes) if isinstance(node.op, Affine) and len(set(node.inputs)) == 1 else None
    if found is not None:
        (A,) = found
        return {node.inputs[0]: A if rows.sign is None else A * rows.sign.view(*rows.sign.shape, *[1] * len(shapes[0]))}
    A = torch.zeros(*rows.elements.shape, math.prod(node.shape), dtype=view.trace.dtype, device=rows.elements.device)
    ones = torch.ones_like(rows.elements, dtype=A.dtype) if rows.sign is None else rows.sign
    A.scatter_(2, rows.elements.unsqueeze(-1), ones.unsqueeze(-1))
    return {rows.start: A.unflatten(2, node.shape)}


def bound_objective(trace: Trace, objective: Tensor, memory: int, both: bool = True) -> tuple[LinearBounds, Interval]:
    """Linear bounds of C f(x) and their concrete interval. objective C: (B, R, *output_shape), exact in the working type.

    both: walk for upper bounds as well; else they are what the interval of f(x) implies, and their planes are constants.
    Property: sound. The interval is float64 and never wider than what the linear bounds imply.
    """
    last = len(trace.network.nodes) - 1
    rows = rows_per_group(trace, last, memory)
    images_per_chunk = max(1, rows // max(1, objective.shape[1]))
    parts: list[tuple[LinearBounds, Interval]] = []
    for first in range(0, trace.batch, images_per_chunk):
        images = torch.arange(first, min(first + images_per_chunk, trace.batch), device=objective.device)
        view = View(trace, None if images.numel() == trace.batch else images)
        pieces = [_objective_chunk(view, last, C, both) for C in objective[images].split(rows, dim=1)]
        parts.append((_join_linear([p[0] for p in pieces], 1), _join([p[1] for p in pieces], 1)))
    return _join_linear([p[0] for p in parts], 0), _join([p[1] for p in parts], 0)


def _objective_chunk(view: View, last: int, C: Tensor, both: bool) -> tuple[LinearBounds, Interval]:
    start = objective_start(view, C)
    planar = Walk(view, start.pending, -start.fee, -start.fee, two_sided=both).run(last)
    floor, ceiling = concretize(view, planar)
    lower = rounding.below(start.value + floor, start.slack)
    if not both:
        upper = _largest(view, last, C)
        A, b = lower_plane(view, planar, start.value, start.slack)
        return LinearBounds(A, b, torch.zeros_like(A[:1, :1]).expand_as(A), upper), Interval(lower, upper)
    interval = Interval(lower, rounding.above(start.value + ceiling, start.slack))
    return linear_bounds(view, planar, start.value, start.slack), interval


def _largest(view: View, last: int, C: Tensor) -> Tensor:
    """An upper bound of C f(x) from the interval of f(x) alone, (images, rows) float64."""
    interval, wide = view.trace.interval(last), C.flatten(2).to(_EXACT)
    low, high = (view.part(side).flatten(1).to(_EXACT) for side in (interval.lower, interval.upper))
    total = rounding.matvec(wide.clamp(min=0), high) + rounding.matvec(wide.clamp(max=0), low)
    size = rounding.matvec(wide.abs(), torch.maximum(low.abs(), high.abs()))
    return rounding.above(total, rounding.gamma(wide.shape[-1] + 4, _EXACT) * size)


@dataclass(frozen=True, eq=False)
class Start:
    """Rows at the node a walk begins with: their coefficients, what their rounding costs (`fee`), and their value at the centre, known up
    to `slack`. fee, value, slack: (images, rows) float64."""

    pending: dict[int, Tensor]
    fee: Tensor
    value: Tensor
    slack: Tensor


def objective_start(view: View, C: Tensor) -> Start:
    """The rows C f(x). C: (images, rows, *output_shape)."""
    last = len(view.trace.network.nodes) - 1
    flat = C.flatten(2)
    fee = rounding.matvec(flat.abs(), view.charge(last).flatten(1)).to(_EXACT) * rounding.SAFETY
    fee = fee + view.underflow().unsqueeze(1) * (1 + flat.abs().amax(-1))
    middle = view.part(view.trace.center[last]).flatten(1)
    value, size = rounding.matvec(flat.to(_EXACT), middle), rounding.matvec(flat.abs().to(_EXACT), middle.abs())
    return Start({last: C.clone()}, fee, value, rounding.gamma(flat.shape[-1] + 2, _EXACT) * size)


def element_start(view: View, rows: Rows) -> Start:
    """Signed elements of a node."""
    value = view.pick(view.trace.center[rows.start], rows.elements)
    value = value if rows.sign is None else value * rows.sign
    return Start(_first_coefficients(view, rows), _element_fee(view, rows), value, torch.zeros_like(value))


def _element_fee(view: View, rows: Rows) -> Tensor:
    charge = view.pick(view.trace.charge[rows.start], rows.elements)
    return charge.to(_EXACT) * rounding.SAFETY + 2 * view.underflow().unsqueeze(1)


def linear_bounds(view: View, planar: Planar, value: Tensor, slack: Tensor) -> LinearBounds:
    """The planes in terms of the input itself: A (x - origin) + constant + value of the centre."""
    lower_A, lower_b = lower_plane(view, planar, value, slack)
    upper_A = -planar.A[:, planar.lower.shape[1] :] if planar.doubled else planar.A
    high, error = _at_zero(view, upper_A, value, slack)
    upper_b = rounding.above(high - planar.upper, error + _accumulated(view.trace.network) * planar.upper.abs())
    return LinearBounds(lower_A, lower_b, upper_A, upper_b)


def lower_plane(view: View, planar: Planar, value: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """The planes below alone: coefficients and constants."""
    A = planar.A[:, : planar.lower.shape[1]]
    low, error = _at_zero(view, A, value, slack)
    return A, rounding.below(low + planar.lower, error + _accumulated(view.trace.network) * planar.lower.abs())


def _at_zero(view: View, A: Tensor, value: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """value - A origin in float64, and what it may be wrong by."""
    origin, wide = view.part(view.trace.region.origin).flatten(1), A.flatten(2).to(_EXACT)
    shift, size = rounding.matvec(wide, origin), rounding.matvec(wide.abs(), origin.abs())
    return value - shift, slack + rounding.gamma(wide.shape[-1] + 4, _EXACT) * (size + value.abs())


def bound_tail(trace: Trace, objective: Tensor, stop: int | None = None) -> Interval:
    """Interval of C f(x) from the intervals of the last activations: C is folded into the affine nodes after them.

    stop: a node to stop at instead (the output itself: no folding). The nodes stopped at must be anchored. Returns float64, outward.
    """
    last = len(trace.network.nodes) - 1
    flat = objective.flatten(2)
    fee = rounding.matvec(flat.abs(), trace.charge[last].flatten(1))
    nothing = torch.zeros_like(fee, dtype=_EXACT)
    walk = Walk(View(trace, None), {last: objective.clone()}, nothing, nothing, two_sided=True)
    frontier = walk.run_to_frontier(last, stop)
    fall = torch.zeros_like(walk.lower)
    rise = torch.zeros_like(walk.lower)
    for index, A in frontier.items():
        down, up = _spread(trace, index, A)
        fall, rise = fall + down, rise + up
    middle = trace.center[last].flatten(1)
    value, size = rounding.matvec(flat.to(_EXACT), middle), rounding.matvec(flat.abs().to(_EXACT), middle.abs())
    slack = rounding.gamma(flat.shape[-1] + 8, _EXACT) * (size + fall + rise) + trace.underflow.unsqueeze(1) * (1 + flat.abs().amax(-1))
    error = fee.to(_EXACT) * rounding.SAFETY + slack
    return Interval(rounding.below(value, fall + error), rounding.above(value, rise + error))


def _spread(trace: Trace, index: int, A: Tensor) -> tuple[Tensor, Tensor]:
    """How far rows A of an anchored node, or of the input, can fall below and rise above their value at its centre; (B, R) float64."""
    region = trace.region
    if isinstance(trace.network.nodes[index].op, Input) and not isinstance(region, Box):
        fall = region.decrease(A)
        return fall, fall if region.symmetric else region.decrease(-A)
    fall = rounding.dot_above(A.flatten(2).abs(), trace.reach[index].flatten(1))
    return fall, fall


def _join(parts: list[Interval], dim: int) -> Interval:
    return Interval(torch.cat([p.lower for p in parts], dim), torch.cat([p.upper for p in parts], dim))


def _join_linear(parts: list[LinearBounds], dim: int) -> LinearBounds:
    names = ("lower_A", "lower_b", "upper_A", "upper_b")
    return LinearBounds(*(torch.cat([getattr(p, name) for p in parts], dim) for name in names))
