"""The sub-problems of a branch and bound over activations, and how batches of them become the rows of one walk.

A `Part` is what the search keeps of a sub-problem, on the host; a `Batch` is several of them as the rows of a `RowProblem`, whose trace (centres,
reaches and charges of the whole region) they share. Each row has its own intervals at the neurons that are unstable on the whole region:
those of the region, or what is implied where the row's unsafe set is reached (`Query.implied`), cut at the row's splits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.alpha import COPIES, Alphas, Betas, RowProblem
from bounds.backward import Start, objective_start
from bounds.engine import elements, place
from bounds.errors import NumericsError
from bounds.interval import Interval
from bounds.ops.base import product
from bounds.rowwise import Split
from bounds.trace import Trace, trace_through
from bounds.view import View
from verify.spec import Margins
from verify.stages import Query

_RISE = 0.01
"""A bound that rises by less, relatively, has hardly risen."""


@dataclass(frozen=True, eq=False)
class Part:
    """A sub-problem: one unsafe set on the part of the region where split neurons keep to their sides.

    bound: proven lower bound of the set's margin. splits: (s, 4) float64, each the activation, the position among its unstable columns, the
    side (+1: z >= point) and the point. betas: (rows, s). alphas: by activation, (rows, k) each, in half precision. candidates: (t, 3), what to
    split next: activation, position, point. stalled: how many ascents in a row have hardly raised the bound.
    """

    bound: float
    unsafe: int
    splits: Tensor
    betas: Tensor
    alphas: dict[int, tuple[Tensor, ...]]
    candidates: Tensor
    stalled: int = 0

    def halves(self, sides: Sequence[Tensor]) -> list[Part]:
        """The parts of this sub-problem on both sides of a new split, (1, 4) each; one of the same neuron and side that it implies is dropped."""
        betas = torch.nn.functional.pad(self.betas, (0, 1))
        rest = (betas, self.alphas, self.candidates, self.stalled)
        made = [Part(self.bound, self.unsafe, torch.cat([self.splits, new]), *rest) for new in sides]
        again = bool((self.splits[:, :2] == sides[0][:, :2]).all(1).any())
        return [part._without_implied() for part in made] if again else made

    def _without_implied(self) -> Part:
        """Without earlier splits of the newest one's neuron and side."""
        kept = (self.splits[:, :3] != self.splits[-1, :3]).any(1)
        kept[-1] = True
        return replace(self, splits=self.splits[kept], betas=self.betas[:, kept])


@dataclass(frozen=True, eq=False)
class Batch:
    """Several sub-problems as the rows of one problem.

    owner, thresholds: the sub-problem of each row and what its bound must exceed, (R,). slots: by node, where the multipliers of the splits (all
    rows' one after the other) are found in `betas`: their positions in that list, their rows and their places.
    """

    problem: RowProblem
    alphas: Alphas
    betas: Betas
    owner: Tensor
    thresholds: Tensor
    slots: dict[int, tuple[Tensor, Tensor, Tensor]]


class SubProblems:
    """Parts of one query's unsafe sets, and their batches. most: rows bounded at once, as far as memory allows. deadline: of the walks."""

    def __init__(self, query: Query, most: int, deadline: float | None) -> None:
        self.query, self.deadline = query, deadline
        self.goal: Margins = query.goal
        self.device = place(query.options.device)
        self.C, self.d = self.goal.C.to(self.device), self.goal.d.to(self.device, torch.float64)
        self.rows_of = [torch.arange(start, stop) for start, stop in self.goal.ranges]
        self.traces: dict[torch.dtype, Trace] = {}
        root = RowProblem(*self._start(torch.float32, self.C[:1]))
        self.activations = sorted(root.free)
        self.columns = {index: root.free[index].columns for index in self.activations}
        self.root_intervals = {index: self._of_sets(index, root.free[index].interval) for index in self.activations}
        places = [(index, place_) for index in self.activations for place_ in range(len(self.columns[index]))]
        self.where = torch.tensor(places, dtype=torch.float64).reshape(-1, 2)
        numbers = sum(product(node.shape) for node in query.network.nodes)
        self.most_rows = max(2, min(most, 8 * elements(query.options.memory_mb, torch.float32) // (COPIES * numbers)))

    def _of_sets(self, activation: int, interval: Interval) -> Interval:
        """The interval of an activation's unstable columns for each unsafe set, (sets, k): the region's, or what the set implies."""
        (source,) = self.query.network.nodes[activation].inputs
        lower, upper = (side[0].expand(len(self.goal.ranges), -1).clone() for side in (interval.lower, interval.upper))
        for number, known in self.query.implied.items():
            if source not in known:
                continue
            inside = known[source].to(interval.lower.dtype, self.device)
            columns = self.columns[activation]
            low = torch.maximum(lower[number], inside.lower.flatten()[columns])
            high = torch.minimum(upper[number], inside.upper.flatten()[columns])
            apart = low > high  # the two can only miss each other by a rounding, where either one is right
            lower[number], upper[number] = torch.where(apart, lower[number], low), torch.where(apart, upper[number], high)
        return Interval(lower, upper)

    def conditional(self, part: Part) -> bool:
        """Whether what is proven of a part holds only where its unsafe set is reached."""
        return part.unsafe in self.query.implied

    def _trace(self, dtype: torch.dtype) -> Trace:
        """What is proven of every node on the whole region, made once for each working type."""
        if dtype not in self.traces:
            network, region = self.query.network.to(dtype, self.device), self.query.specification.region.to(dtype, self.device)
            trace = trace_through(network, region, self.query.intervals, self.query.options.semantics, self.deadline)
            if trace is None:
                raise NumericsError(
                    "two enclosures of one neuron have nothing in common: a defect of this project; please report the question"
                )
            self.traces[dtype] = trace
        return self.traces[dtype]

    def _start(self, dtype: torch.dtype, C: Tensor) -> tuple[Trace, int, Start]:
        trace = self._trace(dtype)
        objective = C.to(dtype).unsqueeze(0).unflatten(2, trace.network.output_shape)
        return trace, len(trace.network.nodes) - 1, objective_start(View(trace, None), objective)

    def _whole(self, unsafe: int) -> Part:
        none = torch.zeros(0, 4, dtype=torch.float64)
        rows = self.goal.ranges[unsafe][1] - self.goal.ranges[unsafe][0]
        return Part(-math.inf, unsafe, none, torch.zeros(rows, 0), {}, torch.zeros(0, 3, dtype=torch.float64))

    def _height(self, part: Part) -> int:
        start, stop = self.goal.ranges[part.unsafe]
        return stop - start

    def _groups(self, parts: list[Part]) -> list[list[Part]]:
        """The parts in batches of at most `most_rows` rows."""
        groups: list[list[Part]] = []
        rows = 0
        for part in parts:
            if not groups or rows + self._height(part) > self.most_rows:
                groups.append([])
                rows = 0
            groups[-1].append(part)
            rows += self._height(part)
        return groups

    def _batch(self, parts: Sequence[Part], dtype: torch.dtype = torch.float32) -> Batch:
        """The parts as rows: their objectives, intervals, slopes and multipliers."""
        heights = torch.tensor([self._height(p) for p in parts])
        owner = torch.arange(len(parts)).repeat_interleave(heights)
        sets = torch.tensor([p.unsafe for p in parts])[owner]
        index = torch.cat([self.rows_of[p.unsafe] for p in parts]).to(self.device)
        splits = torch.cat([p.splits if len(p.betas) == 1 else p.splits.repeat(len(p.betas), 1) for p in parts])
        row = torch.arange(len(owner)).repeat_interleave(torch.tensor([len(p.splits) for p in parts])[owner])
        beta = torch.cat([p.betas.flatten() for p in parts])
        intervals: dict[int, Interval] = {}
        chosen: dict[int, Split] = {}
        slots: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for activation in self.activations:
            used = (splits[:, 0] == activation).nonzero().flatten()
            if used.numel() or self.query.implied:
                intervals[activation] = self._cut(activation, sets, row[used], splits[used], dtype)
            if not used.numel():
                continue
            (source,) = self.query.network.nodes[activation].inputs
            at = row[used]
            place_ = torch.arange(len(at)) - torch.searchsorted(at, at)
            slots[source] = (used, at, place_)
            chosen[source] = self._multipliers(activation, len(owner), (at, place_), (splits[used], beta[used]), dtype)
        problem = RowProblem(*self._start(dtype, self.C[index]), intervals=intervals, splits=chosen, columns=self.columns)
        betas = {source: split.beta for source, split in chosen.items()}
        return Batch(problem, self._alphas(problem, parts), betas, owner.to(self.device), self.d[index], slots)

    def _cut(self, activation: int, sets: Tensor, row: Tensor, splits: Tensor, dtype: torch.dtype) -> Interval:
        """The intervals of the unstable columns for every row, (1, rows, k): its unsafe set's, cut at its splits. sets: (rows,)."""
        root = self.root_intervals[activation].to(dtype)
        place_, side, point = splits[:, 1].long(), splits[:, 2], splits[:, 3]
        ends = []
        for end, wanted, how in ((root.lower, 1.0, "amax"), (root.upper, -1.0, "amin")):
            values = end[sets.to(self.device)].flatten()
            mask = side == wanted
            flat = (row[mask] * end.shape[-1] + place_[mask]).to(self.device)
            values.scatter_reduce_(0, flat, point[mask].to(values), how)
            ends.append(values.view(1, len(sets), -1))
        return Interval(*ends)

    def _multipliers(
        self, activation: int, count: int, slot: tuple[Tensor, Tensor], facts: tuple[Tensor, Tensor], dtype: torch.dtype
    ) -> Split:
        """The splits of one node as padded rows."""
        splits, beta = facts
        width = int(slot[1].max()) + 1

        def padded(values: Tensor, kind: torch.dtype) -> Tensor:
            table = torch.zeros(count, width, dtype=kind)
            table[slot] = values.to(kind)
            return table.unsqueeze(0).to(self.device)

        elements_ = self.columns[activation].cpu()[splits[:, 1].long()]
        return Split(padded(elements_, torch.long), padded(splits[:, 2], dtype), padded(splits[:, 3], torch.float64), padded(beta, dtype))

    def _alphas(self, problem: RowProblem, parts: Sequence[Part]) -> Alphas:
        """The parts' slopes stacked; CROWN's as long as there are none."""
        if not all(part.alphas for part in parts):
            return problem.initial()
        chosen: Alphas = {}
        for activation in problem.free:
            sides = zip(*(part.alphas[activation] for part in parts), strict=True)
            chosen[activation] = tuple(torch.cat(side).to(self.device, problem.trace.dtype).unsqueeze(0) for side in sides)
        return chosen

    def _unpacked(self, parts: Sequence[Part], batch: Batch, bounds: Tensor, candidates: list[Tensor]) -> list[Part]:
        """The parts with the batch's slopes and multipliers."""
        heights = [self._height(p) for p in parts]
        sizes = [h * len(p.splits) for h, p in zip(heights, parts, strict=True)]
        flat = torch.zeros(sum(sizes))
        for source, (used, row, place_) in batch.slots.items():
            flat[used] = batch.betas[source][0].cpu().float()[row, place_]
        betas = [b.view(h, len(p.splits)) for b, h, p in zip(flat.split(sizes), heights, parts, strict=True)]
        pieces = {k: [a[0].cpu().half().split(heights) for a in alphas] for k, alphas in batch.alphas.items()}
        made = []
        for n, (part, bound) in enumerate(zip(parts, bounds.tolist(), strict=True)):
            alphas = {k: tuple(side[n] for side in sides) for k, sides in pieces.items()}
            stalled = part.stalled + 1 if bound <= part.bound + _RISE * abs(part.bound) else 0
            made.append(Part(max(part.bound, bound), part.unsafe, part.splits, betas[n], alphas, candidates[n], stalled))
        return made


def per_part(batch: Batch, bound: Tensor) -> Tensor:
    """The bound of each part's margin: the best of its rows."""
    rows = (bound[0].detach().to(torch.float64) - batch.thresholds).cpu()
    best = torch.full((int(batch.owner[-1]) + 1,), -math.inf, dtype=torch.float64)
    return best.scatter_reduce(0, batch.owner.cpu(), rows, "amax")
