"""Branch and bound over the states of activations, in batches of sub-problems.

One sub-problem's life: it is taken from the heap with the others of smallest bound (`_Search.run`); the neurons whose relaxation costs it most
are looked ahead, one walk for all, and the best of them is split (`_split`); both halves inherit its slopes and multipliers, which a few
gradient steps improve (`_improve`; many, where few led nowhere: `_improve_longer`); what that proves, with every rounding charged, closes the
half or goes back to the heap with it (`_settle`), and the points where open halves are lowest are tried as counterexamples. How parts become
rows of a walk: `verify/subproblems.py`.

References: Wang et al. 2021, Beta-CROWN; Bunel et al. 2020, Branch and bound for piecewise linear neural network verification; De Palma et
al. 2021, Improved branch and bound for neural network verification via Lagrangian decomposition (filtered look-ahead).
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.alpha import Ascent
from bounds.errors import MemoryLimitError, SolverError, TimeLimitError, UnsupportedOpError
from bounds.interval import Interval
from verify.attack import Pgd, falsify, starts_from_bounds
from verify.stages import Query
from verify.subproblems import Batch, Part, SubProblems, per_part
from verify.verdict import Falsified, Verdict, confirm

_STARTS = 32
"""Lowest points that an attack starts from, in batches 1, 2, 4, 8, ..."""
_DESCENT = Pgd(steps=30, restarts=1)
_LEAF_STEPS = 100
"""Gradient steps for a part that cannot be split."""
_LONGER = 8
"""How many times as many gradient steps a part gets whose ascents hardly raise its bound."""
_BEYOND = 1e-5
"""By how much an estimate must exceed what is to be proven before the ascent rests."""


@dataclass(frozen=True)
class SplitNeurons:
    """Decide a question by splitting activations, best first, in batches.

    rows: bounded at once, as far as memory allows. steps, root_steps: of the ascent, for halves and for the whole. tries: neurons looked
    ahead for each sub-problem. share: of the time that is left, where programs may still decide afterwards: networks that have an exact
    program, with at most `few_unstable` unstable neurons; for the others the stage takes all but a tenth. seconds: instead, for a first look,
    which leaves no note.

    Property: sound and rigorous; complete for piecewise-linear networks and boxes, up to the limits and to margins of zero. Deterministic.
    """

    rows: int = 512
    steps: int = 4
    root_steps: int = 40
    tries: int = 1
    share: float = 1.0
    few_unstable: int = 400
    seconds: float | None = None
    name: str = "branch"
    kind: str = "bounds"

    def __call__(self, query: Query) -> Verdict | Query:
        if not query.intervals or not query.in_float32:
            return query
        left = query.options.remaining()
        if self.seconds is not None:
            left = self.seconds if left is None else min(self.seconds, left / 2)
        deadline = None if left is None else time.monotonic() + (self._share(query) if self.seconds is None else 1.0) * left
        outcome = self._outcome(query, deadline)
        return replace(outcome, notes=query.notes) if self.seconds is not None and isinstance(outcome, Query) else outcome

    def _outcome(self, query: Query, deadline: float | None) -> Verdict | Query:
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


class _Search(SubProblems):
    """The heap of open sub-problems."""

    def __init__(self, query: Query, stage: SplitNeurons, deadline: float | None) -> None:
        super().__init__(query, stage.rows, deadline)
        self.stage = stage
        self.order = itertools.count()
        self.heap: list[tuple[float, int, Part]] = []
        self.stuck: list[Part] = []
        self.proven = math.inf
        self.bounded = self.rounds = 0
        self.patience = 1

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
            stalled = [part for part in taken if part.stalled >= self.patience]
            moving = [part for part in taken if part.stalled < self.patience]
            found = self._settle(*self._improve(self._split(moving), self.stage.steps)) if moving else None
            found = self._settle(*self._improve_longer(stalled)) if stalled and found is None else found
            if found is not None:
                return found
        if self.stuck:
            return self._undecided("branch: parts on which every activation is fixed stay open, their margins may be zero,")
        floor = min(self.proven, self.query.excluded)
        return replace(self.query, closed=torch.ones_like(self.query.closed), floor=floor).verified(
            self.stage.name, f"{self.bounded} sub-problems"
        )

    def _take(self) -> list[Part]:
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

    def _split(self, parts: list[Part]) -> list[Part]:
        """Both halves of every part, along the candidate whose worse half is bounded best."""
        trials = [k for k, part in enumerate(parts) for _ in range(len(part.candidates))]
        halves = [
            half
            for k, new in zip(trials, _both_sides(torch.cat([p.candidates for p in parts])), strict=True)
            for half in parts[k].halves(new)
        ]
        chosen: list[Part] = []
        if self.stage.tries > 1:
            values: list[float] = []
            for group in self._groups(halves):
                batch = self._batch(group)
                with torch.no_grad():
                    estimate = batch.problem.estimate(batch.alphas, batch.betas)
                values += per_part(batch, estimate).tolist()
        else:
            values = [0.0] * len(halves)
        best: dict[int, tuple[float, int]] = {}
        for number, k in enumerate(trials):
            low, high = sorted(min(v, 0.0) for v in values[2 * number : 2 * number + 2])
            score = _score(low, high, parts[k].bound)
            if k not in best or score > best[k][0]:
                best[k] = (score, number)
        for _, number in best.values():
            chosen += halves[2 * number : 2 * number + 2]
        return chosen

    def _improve(self, parts: list[Part], steps: int) -> tuple[list[Part], Tensor]:
        """The parts with better slopes and multipliers, their proven bounds and what to split next; and the lowest points of their planes."""
        better: list[Part] = []
        points = []
        for group in self._groups(parts):
            batch = self._batch(group, torch.float32)
            enough = batch.thresholds + _BEYOND * (1 + batch.thresholds.abs())
            alphas, betas, estimate = batch.problem.maximise(batch.alphas, batch.betas, Ascent(steps), enough.unsqueeze(0))
            batch = replace(batch, alphas=alphas, betas=betas)
            proven = batch.problem.prove(alphas, betas)
            improved = self._unpacked(group, batch, per_part(batch, proven.bound), self._candidates(batch, proven.bound))
            better += self._reconsidered(improved, per_part(batch, estimate))
            points.append(starts_from_bounds(self.query.specification.region, proven.A.to("cpu", torch.float64))[0])
        return better, torch.cat(points)

    def _improve_longer(self, parts: list[Part]) -> tuple[list[Part], Tensor]:
        """As `_improve`, with many more steps: splits of a part whose ascents end before they get anywhere are wasted.

        Where that hardly ever raises a bound, more ascents in a row have to fail before it is tried again.
        """
        better, points = self._improve(parts, _LONGER * self.stage.steps)
        rose = sum(part.stalled == 0 for part in better)
        self.patience = max(1, self.patience // 2) if 2 * rose >= len(better) else min(64, 2 * self.patience)
        return [replace(part, stalled=0) for part in better], points

    def _reconsidered(self, parts: list[Part], estimates: Tensor) -> list[Part]:
        """Parts that only float32's rounding keeps open, proven again in float64."""
        doubtful = [k for k, part in enumerate(parts) if part.bound <= 0 < float(estimates[k])]
        if not doubtful:
            return parts
        batch = self._batch([parts[k] for k in doubtful], torch.float64)
        bounds = per_part(batch, batch.problem.prove(batch.alphas, batch.betas).bound)
        for k, bound in zip(doubtful, bounds.tolist(), strict=True):
            parts[k] = replace(parts[k], bound=max(parts[k].bound, bound))
        return parts

    def _candidates(self, batch: Batch, bound: Tensor) -> list[Tensor]:
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
        best = per_part(batch, bound)
        rows = torch.zeros(len(best), dtype=torch.long)
        leading = (margin == best[owner]).nonzero().flatten()
        rows[owner[leading]] = leading
        values, places = loss[rows].topk(min(self.stage.tries, loss.shape[1]), dim=1)
        found = torch.stack([self.where[places, 0], self.where[places, 1], point[rows].gather(1, places)], dim=-1)
        counts = (values > 0).sum(1).tolist()  # the largest come first
        return [some[:count] for some, count in zip(found.unbind(0), counts, strict=True)]

    def _settle(self, parts: list[Part], points: Tensor) -> Falsified | None:
        """Close what is proven, keep the rest, and try the points as counterexamples."""
        self.bounded += len(parts)
        for part in parts:
            if part.bound > 0:
                self.proven = min(self.proven, 0.0 if self.conditional(part) else part.bound)
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
        intervals, assumed = dict(query.intervals) | query.implied.get(part.unsafe, {}), {}
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
            self.proven = min(self.proven, 0.0 if self.conditional(part) else leaf.bound)
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


def _both_sides(candidates: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Candidates (t, 3) as splits above and below, (1, 4) each."""
    side = torch.ones(len(candidates), 1, dtype=torch.float64)
    above, below = (torch.cat([candidates[:, :2], s, candidates[:, 2:]], dim=1).split(1) for s in (side, -side))
    return list(zip(above, below, strict=True))


def _score(low: float, high: float, before: float) -> float:
    """How good a split is whose halves are estimated at `low` and `high`, from `before`."""
    return low + high
