"""Branch and bound over the input: a low-dimensional box is bisected until every part is proven or a counterexample appears.

One sub-problem's life: it is taken from the heap with the others of smallest bound; bisected along the input that moves its planes most;
its halves are bounded in one batch, hidden neurons starting from what was proven for the whole; where few neurons are left unstable a few
gradient steps improve the slopes of the most promising row; a half with every unsafe set excluded is done, the others are clipped to where
their planes leave room, go back to the heap, and the points where their planes are smallest are tried as counterexamples.
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

from bounds import rounding
from bounds.alpha import Ascent, Proven, RowProblem
from bounds.backward import objective_start
from bounds.crown import Crown
from bounds.engine import Bounds, elements, place
from bounds.errors import MemoryLimitError, NumericsError, TimeLimitError
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.base import Activation, product
from bounds.region import Box, LpBall, Region
from bounds.trace import Trace
from bounds.view import View
from verify.attack import Pgd, falsify
from verify.clipping import clip
from verify.divided import Divided, OpenBox
from verify.spec import Margins
from verify.stages import Query
from verify.verdict import Falsified, Verdict, confirm

_NARROW = 2.0**-12
"""Boxes below this share of the original width are bounded in float64, where float32's rounding would decide."""
_TOO_NARROW = 2.0**-40
"""Boxes below this share are not bisected further: their halves would not differ in float64 arithmetic for much longer."""
_FEW = 40
"""Unstable neurons up to which better slopes close a part often enough to pay for themselves (on ACAS Xu a third of them, above it 3 %)."""
_ASCENT = Ascent(steps=5, lr=0.4)
_BEYOND = 1e-5
"""By how much an estimate must exceed what is to be proven before the ascent rests."""
_COPIES = 14
"""Tensors of the size of a row's coefficients that one step of the ascent holds."""
_NUMBERS = 2**22
"""Numbers of all nodes and parts bounded at once: on large networks batches are smaller, so that limits are kept."""
_STARTS = 32
_DESCENT = Pgd(steps=30, restarts=1)
_DESCEND = frozenset(4**k for k in range(1, 12))
"""After which batches an attack starts from the `_STARTS` lowest points."""
_BARREN = 0.4
"""Share of a first look after which it ends if no box was closed: on ACAS Xu every question that it decides had one by then."""
_SMALL = 2**11
"""Numbers of all nodes up to which a first look is as long as it may be."""


@dataclass(frozen=True)
class SplitInput:
    """Decide questions about few inputs by bisecting the input box, best first, in batches.

    most_inputs: how many inputs may vary; questions about more are handed on. batch: parts bisected at once. share: of the time that is
    left. most_bounded: boxes after which the question is handed on, for a first look; fewer on networks of more than `_SMALL` numbers.

    Property: sound and rigorous; complete up to the limits and to margins of zero. Deterministic.
    """

    most_inputs: int = 10
    batch: int = 512
    share: float = 0.7
    most_boxes: int = 1_000_000
    most_bounded: int | None = None
    name: str = "split"
    kind: str = "bounds"

    def skips(self, query: Query) -> str | None:
        """See `verify.stages.Selective`."""
        box = _as_box(query.specification.region)
        if box is None:
            return "the region is no box"
        varying = int((box.lower < box.upper).sum())
        if varying == 0:
            return "no input varies"
        return None if varying <= self.most_inputs else f"{varying} inputs vary, more than {self.most_inputs}"

    def __call__(self, query: Query) -> Verdict | Query:
        box = _as_box(query.specification.region)
        if box is None or self.skips(query) is not None:
            return query
        return _Search(query, box, self, query.options.until(self.share)).run()


def _as_box(region: Region) -> Box | None:
    if isinstance(region, Box):
        return region.to(torch.float64)
    if isinstance(region, LpBall) and region.p == math.inf:
        box = region.box()
        return Box(box.lower, box.upper)
    return None


@dataclass(frozen=True, eq=False)
class _Batch:
    """Boxes that are open after a bound: lower, upper (n, inputs); what bounds C y from below, rows (n, rows) with its planes A (n, rows, inputs)
    and b (n, rows); rise, the slopes above; closed (n, sets); intervals by node. Float64, but for the intervals."""

    lower: Tensor
    upper: Tensor
    rows: Tensor
    A: Tensor
    b: Tensor
    rise: Tensor
    closed: Tensor
    intervals: dict[int, Interval]

    def select(self, indices: Tensor) -> _Batch:
        """Some of the boxes."""
        lower, upper, rows, A, b, rise, closed = (
            part.index_select(0, indices) for part in (self.lower, self.upper, self.rows, self.A, self.b, self.rise, self.closed)
        )
        picked = {i: Interval(v.lower.index_select(0, indices), v.upper.index_select(0, indices)) for i, v in self.intervals.items()}
        return _Batch(lower, upper, rows, A, b, rise, closed, picked)

    def __len__(self) -> int:
        return len(self.lower)


class _Search:
    """The heap of open boxes, each with the bound of its worst margin."""

    def __init__(self, query: Query, box: Box, stage: SplitInput, deadline: float | None) -> None:
        self.query, self.stage, self.deadline = query, stage, deadline
        self.network: Network = query.network
        self.goal: Margins = query.goal
        self.shape = box.shape
        self.width = (box.upper - box.lower).flatten()
        self.order = itertools.count()
        self.heap: list[tuple[float, int, OpenBox]] = []
        self.proven = math.inf
        self.bounded = self.rounds = 0
        sizes = [product(node.shape) for node in self.network.nodes]
        self.numbers = sum(sizes)
        self.most_taken = max(1, min(stage.batch, _NUMBERS // self.numbers))
        self.enough = math.inf if stage.most_bounded is None else stage.most_bounded * min(1.0, _SMALL / self.numbers)
        self.hidden = tuple(sorted(self.network.preactivations))
        neurons = sum(sizes[i] for i in self.hidden)
        self.most_kept = query.options.memory_mb / 4 * 2**20 / (8 * max(1, neurons))
        if query.divided is None:
            self.push(-math.inf, OpenBox(box.lower.flatten(), box.upper.flatten(), int(self.width.argmax()), None))
        else:
            self.proven = query.divided.proven
            for bound, part in query.divided.parts(query.network):
                self.push(bound, part)

    def push(self, bound: float, part: OpenBox) -> None:
        """Add an open box."""
        heapq.heappush(self.heap, (bound, next(self.order), part))

    def run(self) -> Verdict | Query:
        """Bisect until nothing is open, a counterexample is found or a limit is reached."""
        taken: list[tuple[float, int, OpenBox]] = []
        try:
            while self.heap:
                if self.deadline is not None and time.monotonic() >= self.deadline:
                    return self.undecided("split: time limit")
                if self.bounded >= (self.enough if self.proven < math.inf else _BARREN * self.enough):
                    return self.handed_on()
                if len(self.heap) > self.stage.most_boxes:
                    return self.undecided(f"split: {len(self.heap)} boxes are open, as many as are kept")
                taken = [heapq.heappop(self.heap) for _ in range(min(self.most_taken, len(self.heap)))]
                parts = [entry[2] for entry in taken]
                if all(float((p.upper - p.lower).max()) <= _TOO_NARROW * float(self.width.max()) for p in parts):
                    return self.undecided("split: boxes at the limit of float64 stay open; the margin may be exactly zero there", taken)
                lower, upper = _halves(parts)
                found = self.bound(lower, upper, self.known(parts, len(lower)))
                if found is not None:
                    return found
        except TimeLimitError:
            return self.undecided("split: time limit", taken)
        except MemoryLimitError as error:
            return self.query.noting(f"split: memory limit ({error})")
        closed = torch.ones_like(self.query.closed)
        return replace(self.query, closed=closed, floor=self.proven).verified(self.stage.name, f"{self.bounded} boxes")

    def known(self, parts: Sequence[OpenBox], count: int) -> dict[int, Interval]:
        """What is proven of nodes on `count` boxes, the halves of all parts one side after the other."""
        known = {i: _repeat(interval, count) for i, interval in self.query.intervals.items()}
        kept = [part.intervals for part in parts if part.intervals is not None]
        if len(kept) < len(parts):
            return known
        ends = torch.stack(kept).repeat(count // len(parts), 1, 1)
        sizes = [product(self.network.nodes[i].shape) for i in self.hidden]
        for i, piece in zip(self.hidden, ends.split(sizes, dim=2), strict=True):
            shape = (count, *self.network.nodes[i].shape)
            known[i] = Interval(piece[:, 0].reshape(shape), piece[:, 1].reshape(shape))
        return known

    def bound(self, lower: Tensor, upper: Tensor, known: dict[int, Interval]) -> Falsified | None:
        """Bound a batch of boxes; clip and keep the open ones and try their lowest points."""
        self.bounded += len(lower)
        bounds = self.planes(lower, upper, known)
        batch = self.settled(self.batch(lower, upper, bounds))
        batch = self.settled(self.refined(batch, bounds.linear.lower_A.dtype))  # type: ignore[union-attr]
        batch = self.clipped(batch)
        if not len(batch):
            return None
        width = batch.upper - batch.lower
        relative = width / torch.where(self.width > 0, self.width, 1.0)
        # The input that moves both planes much and, as long as many neurons are unstable, is still wide: on ACAS Xu planes alone need up to 80
        # times as many boxes on some questions; where few are unstable they halve the boxes. Looking ahead never paid for itself.
        weight = torch.where((self.unstable(batch) <= _FEW).unsqueeze(1), 1.0, relative.sqrt())
        axes = ((batch.A.abs() + batch.rise.abs()).amax(1) * width * weight).argmax(1).tolist()
        worst = self.goal.worst(batch.rows).tolist()
        kept = self.kept(batch)
        for k, (bound, axis) in enumerate(zip(worst, axes, strict=True)):
            self.push(bound, OpenBox(batch.lower[k], batch.upper[k], axis, None if kept is None else kept[k].clone()))
        return self.attack(batch.A, batch.lower, batch.upper)

    def batch(self, lower: Tensor, upper: Tensor, bounds: Bounds) -> _Batch:
        """The boxes with what CROWN proves of them."""
        cpu, planes = torch.device("cpu"), bounds.linear
        rows = torch.maximum(bounds.objective.lower.to(cpu, torch.float64), self.query.lower)
        A, rise = (side.to(cpu, torch.float64).flatten(2) for side in (planes.lower_A, planes.upper_A))  # type: ignore[union-attr]
        intervals = {i: bounds.intervals[i].to(bounds.intervals[i].lower.dtype, cpu) for i in range(len(bounds.intervals))}
        closed = self.goal.impossible(rows) | self.query.closed
        return _Batch(lower, upper, rows, A, planes.lower_b.to(cpu, torch.float64), rise, closed, intervals)  # type: ignore[union-attr]

    def settled(self, batch: _Batch, cut: Tensor | None = None) -> _Batch:
        """The boxes that stay open. cut: (n, sets), sets whose margin is at least `proven` wherever they were cut off, which is everywhere."""
        closed = batch.closed if cut is None else batch.closed | cut
        done = closed.all(-1)
        if bool(done.any()):
            margin = self.goal.at_least(batch.rows)
            margin = margin if cut is None else torch.where(cut, margin.clamp_min(self.proven), margin)
            self.proven = min(self.proven, float(margin[done].min()))
        return batch.select((~done).nonzero().flatten())

    def refined(self, batch: _Batch, dtype: torch.dtype) -> _Batch:
        """The batch with better slopes for the best row of every set, where few neurons are unstable."""
        unstable = self.unstable(batch)
        chosen = ((unstable > 0) & (unstable <= _FEW)).nonzero().flatten()
        height = max(1, 8 * elements(self.query.options.memory_mb, dtype) // (_COPIES * self.numbers * len(self.goal.ranges)))
        for few in chosen.split(height) if len(chosen) else ():
            part = batch.select(few)
            gap = part.rows - self.goal.d.to(part.rows)
            best = torch.stack([gap[:, start:stop].argmax(1) + start for start, stop in self.goal.ranges], dim=1)
            try:
                found = self.ascended(part, best, dtype)
            except NumericsError:
                continue  # what CROWN proves stays
            better = found.bound > part.rows.gather(1, best)
            wide = best.unsqueeze(-1).expand(-1, -1, batch.A.shape[2])
            A = torch.where(better.unsqueeze(-1), found.A, part.A.gather(1, wide))
            batch.rows[few] = part.rows.scatter(1, best, torch.maximum(found.bound, part.rows.gather(1, best)))
            batch.A[few] = part.A.scatter(1, wide, A)
            batch.b[few] = part.b.scatter(1, best, torch.where(better, found.b, part.b.gather(1, best)))
        return replace(batch, closed=batch.closed | self.goal.impossible(batch.rows))

    def ascended(self, part: _Batch, best: Tensor, dtype: torch.dtype) -> Proven:
        """What a few gradient steps prove of one row of each set, best: (n, sets). Flattened, float64, on the host."""
        options = self.query.options
        device = place(options.device)
        with rounding.full_precision(device):
            network, region = self.network.to(dtype, device), self.region(part.lower, part.upper).to(dtype, device)
            trace = Trace(network, region, options.semantics, self.deadline)
            for index in range(len(network.nodes)):
                trace.visit(index, trace.propagate(index).intersect(part.intervals[index].to(dtype, device)), "adaptive")
            C = self.goal.C[best].to(device, dtype).unflatten(2, network.output_shape)
            problem = RowProblem(trace, len(network.nodes) - 1, objective_start(View(trace, None), C))
            threshold = self.goal.d.to(torch.float64)[best]
            enough = (threshold + _BEYOND * (1 + threshold.abs())).to(device)
            alphas, betas, _ = problem.maximise(problem.initial(), {}, _ASCENT, enough)
            proven = problem.prove(alphas, betas)
        cpu = torch.device("cpu")
        return Proven(*(t.to(cpu, torch.float64) for t in (proven.A.flatten(2), proven.b, proven.bound)))

    def clipped(self, batch: _Batch) -> _Batch:
        """The boxes cut down to where the margin of some open set may be below what is proven elsewhere, so that this stays proven."""
        if not 0 < self.proven < math.inf or not len(batch):
            return batch
        low, high = clip(batch.A, batch.b, self.goal, self.proven, (batch.lower, batch.upper))
        cut = (low > high).any(-1)
        batch = replace(batch, closed=batch.closed | cut)
        left = self.settled(batch, cut)
        still = (~batch.closed.all(-1)).nonzero().flatten()
        gone = left.closed.unsqueeze(-1)
        return replace(
            left,
            lower=torch.where(gone, math.inf, low[still]).amin(1),
            upper=torch.where(gone, -math.inf, high[still]).amax(1),
        )

    def unstable(self, batch: _Batch) -> Tensor:
        """How many neurons each box leaves unstable, (n,)."""
        count = torch.zeros(len(batch), dtype=torch.long)
        for node in self.network.nodes:
            if isinstance(node.op, Activation):
                count += node.op.unstable(batch.intervals[node.inputs[0]]).flatten(1).sum(1)
        return count

    def kept(self, batch: _Batch) -> Tensor | None:
        """The boxes' pre-activations, (n, 2, neurons), if there is memory for them."""
        if not self.hidden or len(self.heap) + len(batch) > self.most_kept:
            return None
        ends = [torch.stack([batch.intervals[i].lower.flatten(1), batch.intervals[i].upper.flatten(1)], dim=1) for i in self.hidden]
        return torch.cat(ends, dim=2)

    def planes(self, lower: Tensor, upper: Tensor, known: dict[int, Interval]) -> Bounds:
        """CROWN on a batch of boxes, in float64 where float32 would not do."""
        narrow = not self.query.in_float32 or bool(((upper - lower).amax(1) < _NARROW * self.width.max()).any())
        if not narrow:
            try:
                return self.crown(torch.float32, lower, upper, known)
            except NumericsError:
                pass  # too large for float32: float64 says whether it is for good
        return self.crown(torch.float64, lower, upper, known)

    def crown(self, dtype: torch.dtype, lower: Tensor, upper: Tensor, known: dict[int, Interval]) -> Bounds:
        """CROWN for this question in one working type."""
        options = self.query.options
        engine = Crown(dtype, options.device, options.semantics, options.memory_mb, deadline=self.deadline)
        return engine(self.network, self.region(lower, upper), self.goal.C, known or None)

    def region(self, lower: Tensor, upper: Tensor) -> Box:
        """Flat rows as a batch of boxes of the network's input shape."""
        return Box(lower.reshape(-1, *self.shape), upper.reshape(-1, *self.shape))

    def attack(self, A: Tensor, lower: Tensor, upper: Tensor) -> Falsified | None:
        """Try the centres, the corners where the planes are smallest and, now and then, descents from the lowest of them. A: (boxes, rows, inputs)."""
        corners = torch.where(A > 0, lower.unsqueeze(1), upper.unsqueeze(1))
        points = torch.cat([((lower + upper) / 2).unsqueeze(1), corners], dim=1).flatten(0, 1)
        network = self.network.to(torch.float32)
        values = network(points.to(torch.float32).reshape(-1, *self.shape)).flatten(1)
        margin = self.goal.of(values).amin(-1)
        order = margin.argsort()
        candidates = [points[i].reshape(self.shape).numpy() for i in order[:4].tolist() if float(margin[i]) <= 0]
        if candidates:
            return confirm(self.network, self.query.specification, candidates, self.stage.name, rounded=True)
        self.rounds += 1
        if self.rounds not in _DESCEND:
            return None
        starts = points[order[:_STARTS]].reshape(1, -1, *self.shape)
        found, _ = falsify(self.network, self.query.specification, _DESCENT, starts=starts, deadline=self.deadline, rounded=True)
        return found

    def handed_on(self) -> Query:
        """The query with the open boxes, for a longer look. Where no box was closed the cuts told nothing: better bounds choose others."""
        left = self.undecided(None)
        if self.proven == math.inf:
            return left
        return replace(left, divided=Divided(self.network, tuple((bound, part) for bound, _, part in self.heap), self.proven))

    def undecided(self, reason: str | None, taken: Sequence[tuple[float, int, OpenBox]] = ()) -> Query:
        """The query with what the open boxes leave proven. taken: of the heap, and not bounded again."""
        least = min([self.proven, *(entry[0] for entry in (*self.heap, *taken))])
        better = replace(self.query, floor=max(self.query.floor, least)) if least > -math.inf else self.query
        return better if reason is None else better.noting(reason)


def _halves(parts: Sequence[OpenBox]) -> tuple[Tensor, Tensor]:
    """Both halves of every part, along its axis: (2 * parts, inputs) lower and upper. Neighbours share the cut."""
    lower, upper = torch.stack([p.lower for p in parts]), torch.stack([p.upper for p in parts])
    axis = torch.tensor([p.axis for p in parts]).unsqueeze(1)
    middle = ((lower + upper) / 2).gather(1, axis)
    return torch.cat([lower, lower.scatter(1, axis, middle)]), torch.cat([upper.scatter(1, axis, middle), upper])


def _repeat(interval: Interval, count: int) -> Interval:
    return Interval(interval.lower.expand(count, *interval.lower.shape[1:]), interval.upper.expand(count, *interval.upper.shape[1:]))
