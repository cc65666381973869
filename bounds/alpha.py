"""alpha-CROWN: slopes of the relaxation optimised for every row, multipliers of split neurons with them (beta-CROWN).

A lower bound of a row is a concave-like function of the slopes below each activation (and above, for smooth ones) and of the multipliers of
split neurons; any choice gives a valid bound. `RowProblem` improves them by gradient ascent on an estimate in the working type and then
walks down once more with every rounding charged: only that bound is returned.

References: Xu et al. 2021, Fast and complete: enabling complete neural network verification with rapid and massively parallel incomplete
verifiers; Wang et al. 2021, Beta-CROWN.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds import rounding
from bounds.adam import Adam
from bounds.backward import Planar, Start, bound_objective, concretize, element_start, lower_plane, objective_start
from bounds.crown import LinearEngine, unstable
from bounds.errors import NumericsError
from bounds.interval import Interval
from bounds.linear import LinearBounds
from bounds.local import Rows
from bounds.network import Network
from bounds.ops.base import Activation, product
from bounds.rowwise import Freedom, RowView, RowWalk, Split, unstable_columns
from bounds.trace import Trace
from bounds.view import View

_EXACT = torch.float64
COPIES = 14
"""Tensors of the size of a row's coefficients that one step of the ascent holds: saved for the gradient, moments, the best so far."""

Alphas = dict[int, tuple[Tensor, ...]]
Betas = dict[int, Tensor]
Measure = Callable[[Tensor, Tensor], Tensor]
"""(A, constant) of lower planes in deviations from the region's origin -> what is to be maximised, (B, R)."""


@dataclass(frozen=True)
class Ascent:
    """Projected gradient ascent by Adam. steps: gradients taken; lr, beta_lr: first step sizes of alphas and of multipliers, these relative to
    the coefficients they are added to; smooth: the share of lr for smooth activations, whose best slopes are seldom the steepest or the
    flattest; decay: per step."""

    steps: int = 20
    lr: float = 0.1
    smooth: float = 0.2
    beta_lr: float = 0.1
    decay: float = 0.98


@dataclass(frozen=True, eq=False)
class Proven:
    """A x + b <= row for every x of the region, A: (B, R, *input_shape), b: (B, R); `bound` <= row, (B, R) float64."""

    A: Tensor
    b: Tensor
    bound: Tensor

    @staticmethod
    def join(parts: Sequence[Proven]) -> Proven:
        """Several groups of rows as one."""
        return Proven(*(torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("A", "b", "bound")))


class RowProblem:
    """Lower bounds of rows that start at one node, as a function of alphas and multipliers.

    columns: of each activation, where rows may differ; by default all that are unstable. intervals: of activations' inputs there, by the
    activation's index, (B, R or 1, k), where rows know more than the trace. splits: by node.
    """

    def __init__(
        self,
        trace: Trace,
        top: int,
        start: Start,
        *,
        intervals: Mapping[int, Interval] | None = None,
        splits: Mapping[int, Split] | None = None,
        columns: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.trace, self.top, self.start = trace, top, start
        self.splits = dict(splits or {})
        self.free: dict[int, Freedom] = {}
        for index in ancestors(trace.network, top):
            op = trace.network.nodes[index].op
            if isinstance(op, Activation) and op.free:
                where = unstable_columns(trace, index) if columns is None else columns.get(index)
                if where is not None and where.numel():
                    self.free[index] = Freedom(trace, index, where, (intervals or {}).get(index))

    def initial(self) -> Alphas:
        """The slopes of CROWN."""
        return {index: freedom.initial() for index, freedom in self.free.items()}

    def estimate(self, alphas: Alphas, betas: Betas, measure: Measure | None = None) -> Tensor:
        """The rows' lower bounds (B, R) without regard to rounding, differentiable."""
        planar = self._walk(alphas, betas, rigorous=False)
        constant = planar.lower + self.start.value
        return constant - self.trace.region.decrease(planar.A) if measure is None else measure(planar.A, constant)

    def prove(self, alphas: Alphas, betas: Betas) -> Proven:
        """What these alphas and multipliers prove. Numerics: outward rounded."""
        planar = self._walk(alphas, betas, rigorous=True)
        view, start = View(self.trace, None), self.start
        floor, _ = concretize(view, planar)
        A, b = lower_plane(view, planar, start.value, start.slack)
        return Proven(A, b, rounding.below(start.value + floor, start.slack))

    def maximise(
        self, alphas: Alphas, betas: Betas, ascent: Ascent, enough: Tensor | None = None, measure: Measure | None = None
    ) -> tuple[Alphas, Betas, Tensor]:
        """The best alphas and multipliers met for every row, and their estimates (B, R).

        enough: the ascent ends once every row's estimate is above it.
        """
        shape = self.start.fee.shape
        wide = {k: tuple(a.detach().expand(*shape, -1) for a in v) for k, v in alphas.items()}
        multipliers = {k: b.detach().expand(*shape, -1) for k, b in betas.items()}
        units = self._units(wide, multipliers)
        slopes = [a for v in wide.values() for a in v]
        pieces = [*slopes, *(b / units[k] for k, b in multipliers.items())]
        # One tensor for all of them: a step is a few operations, however many layers there are.
        best = torch.cat(pieces, dim=2) if pieces else self.start.fee.new_zeros(*shape, 0)
        widths, count = [piece.shape[2] for piece in pieces], sum(a.shape[2] for a in slopes)

        def parts(packed: Tensor) -> tuple[Alphas, Betas]:
            supply = iter(packed.split(widths, dim=2) if widths else ())
            return {k: tuple(next(supply) for _ in v) for k, v in wide.items()}, {k: next(supply) * units[k] for k in betas}

        variable = best.clone().requires_grad_()
        adam = Adam([variable], [self._rates(wide, ascent, widths)])
        record = torch.full_like(self.start.fee, -torch.inf)
        for step in range(ascent.steps + 1):
            with torch.enable_grad():
                value = self.estimate(*parts(variable), measure)
            found = value.detach()
            better = found > record
            record = torch.where(better, found, record)
            torch.where(better.unsqueeze(-1), variable.detach(), best, out=best)
            done = enough is not None and bool((record > enough).all())
            if step == ascent.steps or done or self.trace.late or not value.requires_grad:
                break
            adam.rise(torch.autograd.grad(value.sum(), [variable], allow_unused=True), ascent.decay)
            with torch.no_grad():
                variable[..., :count].clamp_(0, 1)
                self._admit(variable[..., count:])
        return *parts(best), record

    def _rates(self, alphas: Alphas, ascent: Ascent, widths: Sequence[int]) -> float | Tensor:
        """First step sizes of all that is chosen, alphas before multipliers, `widths` elements each: a number where they are the same."""
        rates = [ascent.lr * (1.0 if self.free[k].op.piecewise else ascent.smooth) for k, v in alphas.items() for _ in v]
        rates += [ascent.beta_lr] * (len(widths) - len(rates))
        if len(set(rates)) <= 1:
            return rates[0] if rates else 0.0
        each = torch.tensor(rates, dtype=self.trace.dtype).repeat_interleave(torch.tensor(widths))
        return each.to(self.start.fee.device)

    def _admit(self, betas: Tensor) -> None:
        """Bring multipliers back to where they are valid, in place."""
        betas.clamp_(min=0)

    def _units(self, alphas: Alphas, betas: Betas) -> Betas:
        """What multipliers of each node are measured in: the largest coefficient that the row's walk brings there, (B, R, 1)."""
        if not betas:
            return {}
        seen = self.coefficients(alphas, betas)
        units = {}
        for source in betas:
            found = [seen[user].abs().amax(-1, keepdim=True) for user in self.trace.network.successors[source] if user in seen]
            units[source] = torch.stack([*found, torch.full_like(betas[source][..., :1], 1e-6)]).amax(0)
        return units

    def coefficients(self, alphas: Alphas, betas: Betas) -> dict[int, Tensor]:
        """The coefficients (B, R, k) of every activation's output at its unstable columns, for these choices."""
        seen: dict[int, Tensor] = {}
        with torch.no_grad():
            self._walk(alphas, betas, rigorous=False, seen=seen)
        return seen

    def _walk(self, alphas: Alphas, betas: Betas, *, rigorous: bool, seen: dict[int, Tensor] | None = None) -> Planar:
        planes = {k: freedom.fitted(alphas[k]) if rigorous else freedom.estimated(alphas[k]) for k, freedom in self.free.items()}
        splits = {k: replace(split, beta=betas[k]) for k, split in self.splits.items()}
        view = RowView(self.trace, None, planes, splits, rigorous, seen)
        fee = self.start.fee if rigorous else torch.zeros_like(self.start.fee)
        return RowWalk(view, dict(self.start.pending), -fee, -fee, two_sided=False).run(self.top)


def ancestors(network: Network, top: int) -> list[int]:
    """The nodes that node `top` is computed from, itself included, in order."""
    wanted = {top}
    for index in range(top, -1, -1):
        if index in wanted:
            wanted.update(network.nodes[index].inputs)
    return sorted(wanted)


@dataclass(frozen=True)
class AlphaCrown(LinearEngine):
    """alpha-CROWN. Property: sound, never looser than `Crown` with the same fields. Numerics: outward rounded.

    steps, lr: of the ascent, see `Ascent`. hidden: optimise the bounds of hidden nodes too, as long as the walk from a node takes at most
    `most_hidden` coefficients (rows times numbers that they pass), and until `hidden_until`, a value of time.monotonic(); later ones keep CROWN's.
    """

    steps: int = 20
    lr: float = 0.1
    hidden: bool = True
    most_hidden: int = 2_000_000
    hidden_until: float | None = None

    def _objective(self, trace: Trace, C: Tensor, limit: int) -> tuple[LinearBounds, Interval]:
        linear, found = bound_objective(trace, C, limit, self.both)
        rows = C.shape[1]
        wanted = torch.cat([C, -C], dim=1) if self.both else C
        top = len(trace.network.nodes) - 1

        def start(trace: Trace, part: slice) -> Start:
            return objective_start(View(trace, None), wanted[:, part].to(trace.dtype))

        proven = self._rows(trace, top, wanted.shape[1], limit, start)
        better = proven.bound[:, :rows] > found.lower
        lower_A, lower_b = _where(better, proven, slice(0, rows), linear.lower_A, linear.lower_b)
        lower, upper, upper_A, upper_b = torch.maximum(found.lower, proven.bound[:, :rows]), found.upper, linear.upper_A, linear.upper_b
        if self.both:
            below = -proven.bound[:, rows:]
            A, b = _where(below < found.upper, proven, slice(rows, None), -linear.upper_A, -linear.upper_b)
            upper, upper_A, upper_b = torch.minimum(found.upper, below), -A, -b
        return LinearBounds(lower_A, lower_b, upper_A, upper_b), Interval(lower, upper)

    def _tighten(self, trace: Trace, index: int, limit: int, known: Interval | None) -> None:
        super()._tighten(trace, index, limit, known)
        interval = trace.interval(index)
        mask = unstable(trace.network, index, interval).flatten(1)
        count = int(mask.sum(1).max())
        over = self.hidden_until is not None and time.monotonic() >= self.hidden_until
        if not self.hidden or over or trace.network.affine_in_input[index] or count == 0:
            return
        if 2 * count * neurons(trace.network, index) > self.most_hidden:
            return
        chosen = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        elements = torch.cat([chosen, chosen], dim=1)
        sign = torch.where(torch.arange(2 * count, device=mask.device) < count, 1.0, -1.0).to(trace.dtype).expand_as(elements)

        def start(trace: Trace, part: slice) -> Start:
            return element_start(View(trace, None), Rows(index, elements[:, part], sign[:, part].to(trace.dtype)))

        bounds = self._rows(trace, index, 2 * count, limit, start).bound
        low, high = rounding.round_down(bounds[:, :count], trace.dtype), rounding.round_up(-bounds[:, count:], trace.dtype)
        # Padding is left as it was, so that a region's bounds do not depend on the others in its batch.
        valid = mask.gather(1, chosen)
        lower, upper = interval.lower.flatten(1), interval.upper.flatten(1)
        lower = lower.scatter(1, chosen, torch.where(valid, torch.maximum(lower.gather(1, chosen), low), lower.gather(1, chosen)))
        upper = upper.scatter(1, chosen, torch.where(valid, torch.minimum(upper.gather(1, chosen), high), upper.gather(1, chosen)))
        trace.narrow(index, Interval(lower.view_as(interval.lower), upper.view_as(interval.upper)))

    def _rows(self, trace: Trace, top: int, count: int, limit: int, start: Callable[[Trace, slice], Start]) -> Proven:
        """Optimised bounds of the rows, some rows at a time. The ascent is a search, and takes half the time in float32."""
        height = max(1, 8 * limit // (COPIES * trace.batch * neurons(trace.network, top)))
        single = self._single(trace)
        parts = []
        for first in range(0, count, height):
            trace.check_time()
            part = slice(first, first + height)
            problem = search = RowProblem(trace, top, start(trace, part))
            if single is not trace:
                columns = {index: freedom.columns for index, freedom in problem.free.items()}
                search = RowProblem(single, top, start(single, part), columns=columns)
            alphas, betas, _ = search.maximise(search.initial(), {}, Ascent(self.steps, self.lr))
            parts.append(problem.prove({k: tuple(a.to(trace.dtype) for a in v) for k, v in alphas.items()}, betas))
        return Proven.join(parts)

    def _single(self, trace: Trace) -> Trace:
        """The trace in float32; itself where numbers are too large for that."""
        try:
            return trace if trace.dtype == torch.float32 else trace.in_type(torch.float32, self.slopes)
        except NumericsError:
            return trace


def neurons(network: Network, top: int) -> int:
    """Numbers of all nodes that a walk from `top` passes."""
    return sum(product(network.nodes[index].shape) for index in ancestors(network, top))


def _where(better: Tensor, proven: Proven, rows: slice, A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    mask = better.reshape(*better.shape, *[1] * (A.dim() - 2))
    return torch.where(mask, proven.A[:, rows], A), torch.where(better, proven.b[:, rows], b)
