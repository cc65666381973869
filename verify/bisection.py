"""Branch and bound over the input: a low-dimensional box is bisected until every part is proven or a counterexample appears.

One sub-problem's life: it is taken from the heap with the others of smallest bound; bisected along the input that moves its planes most;
its halves are bounded in one batch; a half with every unsafe set excluded is done, the others go back to the heap, and the points where
their planes are smallest are tried as counterexamples.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.crown import Crown
from bounds.engine import Bounds
from bounds.errors import MemoryLimitError, NumericsError, TimeLimitError
from bounds.interval import Interval
from bounds.network import Network
from bounds.region import Box, LpBall, Region
from verify.spec import Margins
from verify.stages import Query
from verify.verdict import Falsified, Verdict, confirm

_NARROW = 2.0**-12
"""Boxes below this share of the original width are bounded in float64, where float32's rounding would decide."""
_TOO_NARROW = 2.0**-40
"""Boxes below this share are not bisected further: their halves would not differ in float64 arithmetic for much longer."""


@dataclass(frozen=True)
class SplitInput:
    """Decide questions about few inputs by bisecting the input box, best first, in batches.

    most_inputs: how many inputs may vary; questions about more are handed on. batch: sub-problems bounded at once. share: of the time that is
    left. Property: sound and rigorous; complete up to the limits and to margins of zero. Deterministic.
    """

    most_inputs: int = 10
    batch: int = 256
    share: float = 0.7
    most_boxes: int = 1_000_000
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
        left = query.options.remaining()
        deadline = None if left is None else time.monotonic() + self.share * left
        return _Search(query, box, self, deadline).run()


def _as_box(region: Region) -> Box | None:
    if isinstance(region, Box):
        return region.to(torch.float64)
    if isinstance(region, LpBall) and region.p == math.inf:
        box = region.box()
        return Box(box.lower, box.upper)
    return None


class _Search:
    """The heap of open boxes, each with the bound of its worst margin; all boxes are flattened float64 rows of equal length."""

    def __init__(self, query: Query, box: Box, stage: SplitInput, deadline: float | None) -> None:
        self.query, self.stage, self.deadline = query, stage, deadline
        self.network: Network = query.network
        self.goal: Margins = query.goal
        self.shape = box.shape
        self.width = (box.upper - box.lower).flatten()
        self.order = itertools.count()
        self.heap: list[tuple[float, int, Tensor, Tensor, int]] = []
        self.proven = math.inf
        self.push(-math.inf, box.lower.flatten(), box.upper.flatten(), int(self.width.argmax()))

    def push(self, bound: float, lower: Tensor, upper: Tensor, axis: int) -> None:
        """Add an open box; `axis` is the input to bisect next."""
        heapq.heappush(self.heap, (bound, next(self.order), lower, upper, axis))

    def run(self) -> Verdict | Query:
        """Bisect until nothing is open, a counterexample is found or a limit is reached."""
        try:
            while self.heap:
                if self.deadline is not None and time.monotonic() >= self.deadline:
                    return self.undecided("split: time limit")
                if len(self.heap) > self.stage.most_boxes:
                    return self.undecided(f"split: {len(self.heap)} boxes are open, as many as are kept")
                taken = [heapq.heappop(self.heap) for _ in range(min(self.stage.batch, len(self.heap)))]
                if all(float((upper - lower).max()) <= _TOO_NARROW * float(self.width.max()) for _, _, lower, upper, _ in taken):
                    for entry in taken:
                        heapq.heappush(self.heap, entry)
                    return self.undecided("split: boxes at the limit of float64 stay open; the margin may be exactly zero there")
                lower, upper = _halves(taken)
                found = self.bound(lower, upper)
                if found is not None:
                    return found
        except TimeLimitError:
            for entry in taken:
                heapq.heappush(self.heap, entry)
            return self.undecided("split: time limit")
        except MemoryLimitError as error:
            return self.query.noting(f"split: memory limit ({error})")
        return replace(self.query, closed=torch.ones_like(self.query.closed), floor=self.proven).verified(self.stage.name)

    def bound(self, lower: Tensor, upper: Tensor) -> Falsified | None:
        """Bound a batch of boxes; keep the open ones and try their lowest points."""
        bounds = self.planes(lower, upper)
        rows = torch.maximum(bounds.objective.lower.cpu(), self.query.lower)
        worst = self.goal.worst(rows)
        closed = (self.goal.impossible(rows) | self.query.closed).all(-1)
        if bool(closed.any()):
            self.proven = min(self.proven, float(worst[closed].min()))
        if bool(closed.all()):
            return None
        still = (~closed).nonzero().flatten()
        A, above = (side[still].cpu().to(torch.float64).flatten(2) for side in (bounds.linear.lower_A, bounds.linear.upper_A))  # type: ignore[union-attr]
        low, high = lower[still], upper[still]
        # The input that moves both planes much and is still wide. On ACAS Xu either alone needs up to 80 times as many boxes on some
        # questions; trying two or three inputs and keeping the better never paid for itself.
        relative = (high - low) / torch.where(self.width > 0, self.width, 1.0)
        axes = ((A.abs() + above.abs()).amax(1) * (high - low) * relative.sqrt()).argmax(1)
        for k, index in enumerate(still.tolist()):
            self.push(float(worst[index]), low[k], high[k], int(axes[k]))
        return self.attack(A, low, high)

    def planes(self, lower: Tensor, upper: Tensor) -> Bounds:
        """CROWN on a batch of boxes, in float64 where float32 would not do."""
        narrow = not self.query.in_float32 or bool(((upper - lower).amax(1) < _NARROW * self.width.max()).any())
        if not narrow:
            try:
                return self.crown(torch.float32, lower, upper)
            except NumericsError:
                pass  # too large for float32: float64 says whether it is for good
        return self.crown(torch.float64, lower, upper)

    def crown(self, dtype: torch.dtype, lower: Tensor, upper: Tensor) -> Bounds:
        """CROWN for this question in one working type."""
        options = self.query.options
        engine = Crown(dtype, options.device, options.semantics, options.memory_mb, deadline=self.deadline)
        known = {i: _repeat(interval, len(lower)) for i, interval in self.query.intervals.items()}
        return engine(self.network, self.region(lower, upper), self.goal.C, known or None)

    def region(self, lower: Tensor, upper: Tensor) -> Box:
        """Flat rows as a batch of boxes of the network's input shape."""
        return Box(lower.reshape(-1, *self.shape), upper.reshape(-1, *self.shape))

    def attack(self, A: Tensor, lower: Tensor, upper: Tensor) -> Falsified | None:
        """Try the centres, and the corners where the planes are smallest. A: (boxes, rows, inputs)."""
        corners = torch.where(A > 0, lower.unsqueeze(1), upper.unsqueeze(1))
        points = torch.cat([((lower + upper) / 2).unsqueeze(1), corners], dim=1).flatten(0, 1)
        network = self.network.to(torch.float32)
        values = network(points.to(torch.float32).reshape(-1, *self.shape)).flatten(1)
        margin = self.goal.of(values).amin(-1)
        best = margin.argsort()[:4]
        candidates = [points[i].reshape(self.shape).numpy() for i in best.tolist() if float(margin[i]) <= 0]
        return confirm(self.network, self.query.specification, candidates, self.stage.name, rounded=True) if candidates else None

    def undecided(self, reason: str) -> Query:
        """The query with what the open boxes leave proven."""
        least = min([self.proven, *(entry[0] for entry in self.heap)])
        better = replace(self.query, floor=max(self.query.floor, least)) if least > -math.inf else self.query
        return better.noting(reason)


def _halves(taken: list[tuple[float, int, Tensor, Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Both halves of every taken box, along its axis: (2 * taken, inputs) lower and upper. Neighbours share the cut."""
    lower, upper = torch.stack([t[2] for t in taken]), torch.stack([t[3] for t in taken])
    axis = torch.tensor([t[4] for t in taken]).unsqueeze(1)
    middle = ((lower + upper) / 2).gather(1, axis)
    return torch.cat([lower, lower.scatter(1, axis, middle)]), torch.cat([upper.scatter(1, axis, middle), upper])


def _repeat(interval: Interval, count: int) -> Interval:
    return Interval(interval.lower.expand(count, *interval.lower.shape[1:]), interval.upper.expand(count, *interval.upper.shape[1:]))
