"""Branch and bound over the states of activations, in batches of sub-problems.

One sub-problem's life: it is taken from the heap with the others of smallest bound (`_Search.run`); the neurons whose relaxation costs it most
are looked ahead, one walk for all, and the best of them is split (`_split`); both halves inherit its slopes and multipliers, which a few
gradient steps improve (`_improve`); what that proves, with every rounding charged, closes the half or goes back to the heap with it
(`_settle`), and the points where open halves are lowest are tried as counterexamples.

References: Wang et al. 2021, Beta-CROWN; Bunel et al. 2020, Branch and bound for piecewise linear neural network verification; De Palma et
al. 2021, Improved branch and bound for neural network verification via Lagrangian decomposition (filtered look-ahead).
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.alpha import Alphas, Ascent, Betas, RowProblem
from bounds.backward import Start, View, objective_start
from bounds.engine import elements, place
from bounds.errors import MemoryLimitError, SolverError, TimeLimitError, UnsupportedOpError
from bounds.interval import Interval
from bounds.ops.base import product
from bounds.rowwise import Split
from bounds.trace import Trace
from verify.attack import Pgd, falsify, starts_from_bounds
from verify.spec import Margins
from verify.stages import Query
from verify.verdict import Falsified, Verdict, confirm

_COPIES = 14
"""Tensors of the size of a row that a gradient step holds."""
_STARTS = 32
"""Lowest points that an attack starts from, in batches 1, 2, 4, 8, ..."""
_DESCENT = Pgd(steps=30, restarts=1)
_LEAF_STEPS = 100
"""Gradient steps for a part that cannot be split."""
_BEYOND = 1e-5
"""By how much an estimate must exceed what is to be proven before the ascent rests."""


@dataclass(frozen=True)
class SplitNeurons:
    """Decide a question by splitting activations, best first, in batches.

    rows: bounded at once, as far as memory allows. steps, root_steps: of the ascent, for halves and for the whole. tries: neurons looked
    ahead for each sub-problem. share: of the time that is left, where programs may still decide afterwards: networks that have an exact
    program, with at most `few_unstable` unstable neurons; for the others the stage takes all but a tenth.

    Property: sound and rigorous; complete for piecewise-linear networks and boxes, up to the limits and to margins of zero. Deterministic.
    """

    rows: int = 512
    steps: int = 8
    root_steps: int = 40
    tries: int = 1
    share: float = 1.0
    few_unstable: int = 400
    name: str = "branch"
    kind: str = "bounds"

    def __call__(self, query: Query) -> Verdict | Query:
        if not query.intervals or not query.in_float32:
            return query
        left = query.options.remaining()
        deadline = None if left is None else time.monotonic() + self._share(query) * left
        try:
            return _Search(query, self, deadline).run()
        except TimeLimitError:
            return query.noting("branch: time limit")
        except MemoryLimitError as error:
            return query.noting(f"branch: memory limit ({error})")

    def _share(self, query: Query) -> float:
        from milp.walk import without_exact_form

        hopeless = query.unstable > self.few_unstable or without_exact_form(query.network) is not None
        return max(self.share, 0.9) if hopeless else self.share


@dataclass(frozen=True, eq=False)
class _Part:
    """A sub-problem: one unsafe set on the part of the region where split neurons keep to their sides.

    bound: proven lower bound of the set's margin. splits: (s, 4) float64, each the activation, the position among its unstable columns, the
    side (+1: z >= point) and the point. betas: (rows, s). alphas: by activation, (rows, k) each, in half precision. candidates: (t, 3), what to
    split next: activation, position, point.
    """

    bound: float
    unsafe: int
    splits: Tensor
    betas: Tensor
    alphas: dict[int, tuple[Tensor, ...]]
    candidates: Tensor

    def half(self, candidate: Tensor, side: float) -> _Part:
        """The part of this sub-problem on one side of a candidate; a split of the same neuron and side that it implies is dropped."""
        implied = (self.splits[:, :2] == candidate[:2]).all(1) & (self.splits[:, 2] == side)
        new = torch.tensor([[float(candidate[0]), float(candidate[1]), side, float(candidate[2])]], dtype=torch.float64)
        splits = torch.cat([self.splits[~implied], new])
        betas = torch.cat([self.betas[:, ~implied], self.betas.new_zeros(len(self.betas), 1)], dim=1)
        return replace(self, splits=splits, betas=betas)


@dataclass(frozen=True, eq=False)
class _Batch:
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


class _Search:
    """The heap of open sub-problems."""

    def __init__(self, query: Query, stage: SplitNeurons, deadline: float | None) -> None:
        self.query, self.stage, self.deadline = query, stage, deadline
        self.goal: Margins = query.goal
        self.device = place(query.options.device)
        self.C, self.d = self.goal.C.to(self.device), self.goal.d.to(self.device, torch.float64)
        self.traces: dict[torch.dtype, Trace] = {}
        self.order = itertools.count()
        self.heap: list[tuple[float, int, _Part]] = []
        self.stuck: list[_Part] = []
        self.proven = math.inf
        self.bounded = self.rounds = 0
        root = RowProblem(*self._start(torch.float32, self.C[:1]))
        self.activations = sorted(root.free)
        self.columns = {index: root.free[index].columns for index in self.activations}
        self.root_intervals = {index: root.free[index].interval for index in self.activations}
        places = [(index, place_) for index in self.activations for place_ in range(len(self.columns[index]))]
        self.where = torch.tensor(places, dtype=torch.float64).reshape(-1, 2)
        numbers = sum(product(node.shape) for node in query.network.nodes)
        self.most_rows = max(2, min(stage.rows, 8 * elements(query.options.memory_mb, torch.float32) // (_COPIES * numbers)))

    # -------------------------------------------------------------------------------------------------------------- the straight line

    def run(self) -> Verdict | Query:
        """Split until nothing is open, a counterexample is found or a limit is reached."""
        open_sets = [k for k in range(len(self.goal.ranges)) if not bool(self.query.closed[k])]
        found = self._settle(*self._improve([self._whole(k) for k in open_sets], self.stage.root_steps))
        if found is not None:
            return found
        while self.heap:
            if self.deadline is not None and time.monotonic() >= self.deadline:
                return self._undecided("branch: time limit")
            taken = self._take()
            if not taken:
                left_over = self._finish()
                if left_over is None:
                    continue
                return left_over
            found = self._settle(*self._improve(self._split(taken), self.stage.steps))
            if found is not None:
                return found
        if self.stuck:
            return self._undecided("branch: parts on which every activation is fixed stay open, their margins may be zero,")
        return replace(self.query, closed=torch.ones_like(self.query.closed), floor=self.proven).verified(
            self.stage.name, f"{self.bounded} sub-problems"
        )

    def _take(self) -> list[_Part]:
        """The open sub-problems of smallest bound whose halves fit into one batch; those that cannot be split stay."""
        taken, rows = [], 0
        kept = []
        while self.heap and rows < self.most_rows // 2:
            entry = heapq.heappop(self.heap)
            if len(entry[2].candidates):
                taken.append(entry[2])
                rows += self._height(entry[2])
            else:
                kept.append(entry)
        for entry in kept:
            heapq.heappush(self.heap, entry)
        return taken

    def _split(self, parts: list[_Part]) -> list[_Part]:
        """Both halves of every part, along the candidate whose worse half is bounded best."""
        trials = [(k, t) for k, part in enumerate(parts) for t in range(len(part.candidates))]
        halves = [parts[k].half(parts[k].candidates[t], side) for k, t in trials for side in (1.0, -1.0)]
        chosen: list[_Part] = []
        if self.stage.tries > 1:
            values: list[float] = []
            for group in self._groups(halves):
                batch = self._batch(group)
                with torch.no_grad():
                    estimate = batch.problem.estimate(batch.alphas, batch.betas)
                values += _per_part(batch, estimate).tolist()
        else:
            values = [0.0] * len(halves)
        best: dict[int, tuple[float, int]] = {}
        for number, (k, _) in enumerate(trials):
            low, high = sorted(min(v, 0.0) for v in values[2 * number : 2 * number + 2])
            score = _score(low, high, parts[k].bound)
            if k not in best or score > best[k][0]:
                best[k] = (score, number)
        for _, number in best.values():
            chosen += halves[2 * number : 2 * number + 2]
        return chosen

    def _improve(self, parts: list[_Part], steps: int) -> tuple[list[_Part], Tensor]:
        """The parts with better slopes and multipliers, their proven bounds and what to split next; and the lowest points of their planes."""
        better: list[_Part] = []
        points = []
        for group in self._groups(parts):
            batch = self._batch(group, torch.float32)
            enough = batch.thresholds + _BEYOND * (1 + batch.thresholds.abs())
            alphas, betas, estimate = batch.problem.maximise(batch.alphas, batch.betas, Ascent(steps), enough.unsqueeze(0))
            batch = replace(batch, alphas=alphas, betas=betas)
            proven = batch.problem.prove(alphas, betas)
            improved = self._unpacked(group, batch, _per_part(batch, proven.bound), self._candidates(batch, proven.bound))
            better += self._reconsidered(improved, _per_part(batch, estimate))
            points.append(starts_from_bounds(self.query.specification.region, proven.A.to("cpu", torch.float64))[0])
        return better, torch.cat(points)

    def _reconsidered(self, parts: list[_Part], estimates: Tensor) -> list[_Part]:
        """Parts that only float32's rounding keeps open, proven again in float64."""
        doubtful = [k for k, part in enumerate(parts) if part.bound <= 0 < float(estimates[k])]
        if not doubtful:
            return parts
        batch = self._batch([parts[k] for k in doubtful], torch.float64)
        bounds = _per_part(batch, batch.problem.prove(batch.alphas, batch.betas).bound)
        for k, bound in zip(doubtful, bounds.tolist(), strict=True):
            parts[k] = replace(parts[k], bound=max(parts[k].bound, bound))
        return parts

    def _candidates(self, batch: _Batch, bound: Tensor) -> list[Tensor]:
        """For every part the neurons whose relaxation costs its best row most, (t, 3) each."""
        if not self.activations:
            return [torch.zeros(0, 3, dtype=torch.float64)] * (int(batch.owner[-1]) + 1)
        seen = batch.problem.coefficients(batch.alphas, batch.betas)
        losses, points = [], []
        for activation in self.activations:
            freedom = batch.problem.free[activation]
            loss, point = freedom.loss(batch.alphas[activation], seen.get(activation))
            losses.append(loss.expand(1, len(batch.owner), -1)[0])
            points.append(point.expand(1, len(batch.owner), -1)[0])
        loss, point = torch.cat(losses, dim=-1).cpu(), torch.cat(points, dim=-1).cpu().to(torch.float64)
        margin = (bound[0] - batch.thresholds).cpu()
        owner = batch.owner.cpu()
        best = _per_part(batch, bound)
        rows = torch.zeros(len(best), dtype=torch.long)
        leading = (margin == best[owner]).nonzero().flatten()
        rows[owner[leading]] = leading
        values, places = loss[rows].topk(min(self.stage.tries, loss.shape[1]), dim=1)
        found = torch.stack([self.where[places, 0], self.where[places, 1], point[rows].gather(1, places)], dim=-1)
        return [found[k][values[k] > 0] for k in range(len(best))]

    def _settle(self, parts: list[_Part], points: Tensor) -> Falsified | None:
        """Close what is proven, keep the rest, and try the points as counterexamples."""
        self.bounded += len(parts)
        for part in parts:
            if part.bound > 0:
                self.proven = min(self.proven, part.bound)
            else:
                heapq.heappush(self.heap, (part.bound, next(self.order), part))
        network = self.query.network.to(torch.float32)
        margin = self.goal.of(network(points.to(torch.float32)).flatten(1)).amin(-1)
        best = margin.argsort()[:4].tolist()
        candidates = [points[i].numpy() for i in best if float(margin[i]) <= 0]
        if candidates:
            return confirm(self.query.network, self.query.specification, candidates, self.stage.name, rounded=True)
        self.rounds += 1
        if self.rounds & (self.rounds - 1):
            return None
        starts = points[margin.argsort()[:_STARTS]].unsqueeze(0)
        found, _ = falsify(self.query.network, self.query.specification, _DESCENT, starts=starts, deadline=self.deadline, rounded=True)
        return found

    def _finish(self) -> Falsified | Query | None:
        """Decide the worst part, whose activations are all fixed: by a longer ascent, then by its linear program. None if that closes it."""
        from milp.leaf import Assumption, decide_leaf
        from milp.program import Limits

        _, _, part = heapq.heappop(self.heap)
        (part,), points = self._improve([part], _LEAF_STEPS)
        if part.bound > 0:
            return self._settle([part], points)
        query = self.query
        intervals, assumed = dict(query.intervals), {}
        for activation in self.activations:
            chosen = part.splits[part.splits[:, 0] == activation]
            if len(chosen):
                (source,) = query.network.nodes[activation].inputs
                intervals[source] = self._narrowed(intervals[source], activation, chosen)
                assumed[source] = Assumption(self.columns[activation].cpu()[chosen[:, 1].long()].numpy(), *chosen[:, 2:].numpy().T)
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        region, unsafe = query.specification.region, query.specification.unsafe[part.unsafe]
        try:
            leaf = decide_leaf(query.network, region, unsafe, intervals, assumed, Limits(left, query.options.memory_mb))
        except (UnsupportedOpError, SolverError) as error:
            self.stuck.append(part)
            return self._undecided(f"branch: {error}")
        if leaf.point is not None:
            witness = confirm(query.network, query.specification, [leaf.point], self.stage.name, rounded=True)
            if witness is not None:
                return witness
        if leaf.bound is None or leaf.bound <= 0 or query.options.semantics != "real":
            self.stuck.append(part)
        else:
            self.proven = min(self.proven, leaf.bound)
        return None

    def _narrowed(self, interval: Interval, activation: int, splits: Tensor) -> Interval:
        """A node's interval where a part's splits hold."""
        lower, upper = interval.lower.flatten(1).clone(), interval.upper.flatten(1).clone()
        columns = self.columns[activation].cpu()[splits[:, 1].long()]
        for column, side, point in zip(columns.tolist(), splits[:, 2].tolist(), splits[:, 3].tolist(), strict=True):
            if side > 0:
                lower[0, column] = max(float(lower[0, column]), point)
            else:
                upper[0, column] = min(float(upper[0, column]), point)
        return Interval(lower.view_as(interval.lower), upper.view_as(interval.upper))

    def _undecided(self, reason: str) -> Query:
        least = min([self.proven, *(entry[0] for entry in self.heap), *(part.bound for part in self.stuck)])
        better = replace(self.query, floor=max(self.query.floor, least)) if least > -math.inf else self.query
        return better.noting(f"{reason} after {self.bounded} sub-problems, {len(self.heap) + len(self.stuck)} open")

    # ---------------------------------------------------------------------------------------------------------------- rows and parts

    def _trace(self, dtype: torch.dtype) -> Trace:
        """What is proven of every node on the whole region, made once for each working type."""
        if dtype not in self.traces:
            network, region = self.query.network.to(dtype, self.device), self.query.specification.region.to(dtype, self.device)
            trace = Trace(network, region, self.query.options.semantics, self.deadline)
            for index in range(len(network.nodes)):
                known = self.query.intervals.get(index)
                interval = trace.propagate(index)
                trace.visit(index, interval if known is None else interval.intersect(known.to(dtype, self.device)), "adaptive")
            self.traces[dtype] = trace
        return self.traces[dtype]

    def _start(self, dtype: torch.dtype, C: Tensor) -> tuple[Trace, int, Start]:
        trace = self._trace(dtype)
        objective = C.to(dtype).unsqueeze(0).unflatten(2, trace.network.output_shape)
        return trace, len(trace.network.nodes) - 1, objective_start(View(trace, None), objective)

    def _whole(self, unsafe: int) -> _Part:
        none = torch.zeros(0, 4, dtype=torch.float64)
        rows = self.goal.ranges[unsafe][1] - self.goal.ranges[unsafe][0]
        return _Part(-math.inf, unsafe, none, torch.zeros(rows, 0), {}, torch.zeros(0, 3, dtype=torch.float64))

    def _height(self, part: _Part) -> int:
        start, stop = self.goal.ranges[part.unsafe]
        return stop - start

    def _groups(self, parts: list[_Part]) -> list[list[_Part]]:
        """The parts in batches of at most `most_rows` rows."""
        groups: list[list[_Part]] = []
        rows = 0
        for part in parts:
            if not groups or rows + self._height(part) > self.most_rows:
                groups.append([])
                rows = 0
            groups[-1].append(part)
            rows += self._height(part)
        return groups

    def _batch(self, parts: Sequence[_Part], dtype: torch.dtype = torch.float32) -> _Batch:
        """The parts as rows: their objectives, intervals, slopes and multipliers."""
        heights = torch.tensor([self._height(p) for p in parts])
        owner = torch.arange(len(parts)).repeat_interleave(heights)
        index = torch.cat([torch.arange(*self.goal.ranges[p.unsafe]) for p in parts]).to(self.device)
        splits = torch.cat([p.splits.repeat(self._height(p), 1) for p in parts])
        row = torch.arange(len(owner)).repeat_interleave(torch.tensor([len(parts[int(k)].splits) for k in owner]))
        beta = torch.cat([p.betas.flatten() for p in parts])
        intervals: dict[int, Interval] = {}
        chosen: dict[int, Split] = {}
        slots: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for activation in self.activations:
            used = (splits[:, 0] == activation).nonzero().flatten()
            if not used.numel():
                continue
            intervals[activation] = self._cut(activation, len(owner), row[used], splits[used], dtype)
            (source,) = self.query.network.nodes[activation].inputs
            at = row[used]
            place_ = torch.arange(len(at)) - torch.searchsorted(at, at)
            slots[source] = (used, at, place_)
            chosen[source] = self._multipliers(activation, len(owner), (at, place_), (splits[used], beta[used]), dtype)
        problem = RowProblem(*self._start(dtype, self.C[index]), intervals=intervals, splits=chosen, columns=self.columns)
        betas = {source: split.beta for source, split in chosen.items()}
        return _Batch(problem, self._alphas(problem, parts), betas, owner.to(self.device), self.d[index], slots)

    def _cut(self, activation: int, count: int, row: Tensor, splits: Tensor, dtype: torch.dtype) -> Interval:
        """The intervals of the unstable columns for every row, (1, rows, k), cut at the splits."""
        root = self.root_intervals[activation].to(dtype)
        place_, side, point = splits[:, 1].long(), splits[:, 2], splits[:, 3]
        ends = []
        for end, wanted, how in ((root.lower, 1.0, "amax"), (root.upper, -1.0, "amin")):
            values = end.expand(1, count, -1).flatten().clone()
            mask = side == wanted
            flat = (row[mask] * end.shape[-1] + place_[mask]).to(self.device)
            values.scatter_reduce_(0, flat, point[mask].to(values), how)
            ends.append(values.view(1, count, -1))
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

    def _alphas(self, problem: RowProblem, parts: Sequence[_Part]) -> Alphas:
        """The parts' slopes stacked; CROWN's as long as there are none."""
        initial = problem.initial()
        if not all(part.alphas for part in parts):
            return initial
        return {
            activation: tuple(
                torch.cat([part.alphas[activation][k] for part in parts]).to(alpha).unsqueeze(0) for k, alpha in enumerate(alphas)
            )
            for activation, alphas in initial.items()
        }

    def _unpacked(self, parts: Sequence[_Part], batch: _Batch, bounds: Tensor, candidates: list[Tensor]) -> list[_Part]:
        """The parts with the batch's slopes and multipliers."""
        heights = [self._height(p) for p in parts]
        sizes = [h * len(p.splits) for h, p in zip(heights, parts, strict=True)]
        flat = torch.zeros(sum(sizes))
        for source, (used, row, place_) in batch.slots.items():
            flat[used] = batch.betas[source][0].cpu().float()[row, place_]
        betas = [b.view(h, len(p.splits)) for b, h, p in zip(flat.split(sizes), heights, parts, strict=True)]
        pieces = {k: [a[0].cpu().half().split(heights) for a in alphas] for k, alphas in batch.alphas.items()}
        return [
            replace(
                part,
                bound=max(part.bound, float(bounds[n])),
                betas=betas[n],
                alphas={k: tuple(side[n] for side in sides) for k, sides in pieces.items()},
                candidates=candidates[n],
            )
            for n, part in enumerate(parts)
        ]


def _score(low: float, high: float, before: float) -> float:
    """How good a split is whose halves are estimated at `low` and `high`, from `before`."""
    return low + high


def _per_part(batch: _Batch, bound: Tensor) -> Tensor:
    """The bound of each part's margin: the best of its rows."""
    rows = (bound[0].detach().to(torch.float64) - batch.thresholds).cpu()
    best = torch.full((int(batch.owner[-1]) + 1,), -math.inf, dtype=torch.float64)
    return best.scatter_reduce(0, batch.owner.cpu(), rows, "amax")
