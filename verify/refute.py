"""The stage that assumes an unsafe output is reached, and narrows hidden neurons under that assumption until it contradicts itself.

One unsafe set's life: the row of it that is bounded best is assumed to hold; from the last layer to the first, the neurons' intervals are cut
to what they can be then (`bounds.implied`); the row is bounded again over the narrower intervals, by optimised slopes. An empty interval or a
positive bound excludes the set. As long as rounds gain, the next one follows, without the layers that gained nothing; what they leave goes on
to the stages that split the set.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds import rounding
from bounds.alpha import Ascent, RowProblem
from bounds.backward import objective_start
from bounds.engine import elements, place
from bounds.errors import MemoryLimitError, NumericsError, TimeLimitError
from bounds.implied import Assumed, implied
from bounds.interval import Interval
from bounds.trace import Trace, trace_through
from bounds.view import View
from verify.stages import Query
from verify.verdict import Verdict

_NO_GAIN = 0.995
"""Share of a layer's widths from which on the layers below are not looked at."""
_WORTH = 0.98
"""Share of a layer's widths left by its last visit up to which the next round visits it again,"""
_CHANGED = 0.6
"""or what the layers above must have shrunk to since then."""
_MORE = 3
"""Times as many steps in a set's last round."""
_LEAST_RISE = 0.03
"""By what share of itself the bound must rise for another round."""
_BEYOND = 1e-5
"""By how much an estimate must exceed what is to be proven before the ascent rests."""


@dataclass(frozen=True)
class Refute:
    """Exclude unsafe sets by contradiction, or hand on narrower intervals for each (`Query.implied`).

    rounds: at most, for a set. steps, root_steps: of the ascents for neurons and for the row. share: of the time that is left, divided among
    the open sets. most_shallow: with more unstable neurons, all in one layer, programs decide sooner. Property: sound and rigorous;
    deterministic.
    """

    rounds: int = 30
    steps: int = 8
    root_steps: int = 20
    share: float = 0.3
    most_shallow: int = 200
    name: str = "refute"
    kind: str = "bounds"

    def skips(self, query: Query) -> str | None:
        """See `verify.stages.Selective`."""
        if not query.intervals:
            return "no engine has bounded the neurons"
        if not query.unstable:
            return "no neuron is unstable"
        if query.unstable > self.most_shallow and query.layers == 1:
            return f"{query.unstable} neurons of one layer are unstable, more than {self.most_shallow}"
        return None if query.in_float32 else "the property's numbers are not exact in float32"

    def __call__(self, query: Query) -> Verdict | Query:
        if self.skips(query) is not None:
            return query
        end = query.options.until(self.share)
        margins = query.goal.per_set(query.lower - query.goal.d.to(query.lower))
        order = [k for k in margins.argsort(descending=True).tolist() if not bool(query.closed[k])]
        implied_of, closed = dict(query.implied), query.closed.clone()
        for number, k in enumerate(order):
            now = time.monotonic()
            attempt = _Attempt(query, k, self, None if end is None else now + (end - now) / (len(order) - number))
            closed[k] = attempt.succeeds()
            implied_of[k] = attempt.known
        query = replace(query, closed=closed, implied=implied_of)
        return query.verified(self.name) if bool(closed.all()) else query


@dataclass(eq=False)
class _Attempt:
    """One unsafe set under the assumption that it is reached. known: intervals of nodes then. found: multipliers by node. left:
    the share of each layer's widths that its last visit left; since: what the layers above it have shrunk to since then. thorough: whether
    this round visits every layer."""

    query: Query
    number: int
    stage: Refute
    deadline: float | None
    known: dict[int, Interval] = field(default_factory=dict)
    found: dict[int, Tensor] = field(default_factory=dict)
    left: dict[int, float] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)
    thorough: bool = False

    def succeeds(self) -> bool:
        """Whether the set is excluded; `known` is what is left if not."""
        query, goal = self.query, self.query.goal
        self.known = dict(query.intervals) | query.implied.get(self.number, {})
        start, stop = goal.ranges[self.number]
        self.rows = torch.arange(start, stop)
        gaps = (query.lower - goal.d.to(query.lower))[start:stop]
        self.best, bound = start + int(gaps.argmax()), float(gaps.max())
        device = place(query.options.device)
        try:
            with rounding.full_precision(device):
                for _ in range(self.stage.rounds):
                    before, bound = bound, self._round(device)
                    if bound > 0:
                        return True
                    if bound <= before + _LEAST_RISE * abs(before):
                        if self.thorough:
                            break
                        self.thorough, self.found = True, {}  # every layer once more, from the grid, before the set is given up
                    else:
                        self.thorough = False
        except (TimeLimitError, MemoryLimitError, NumericsError):
            pass  # what was found until then stays
        return False

    def _round(self, device: torch.device) -> float:
        """Every layer once, the last one first; a lower bound of the set's margin where it could be violated, infinite after a contradiction."""
        query = self.query
        memory = elements(query.options.memory_mb, torch.float32)
        assumed = Assumed(query.goal.C[self.best].to(device), float(query.goal.d[self.best]))
        ascent = Ascent(self.stage.steps * (_MORE if self.thorough else 1), beta_lr=0.2)
        layers = sorted(query.network.preactivations, reverse=True)
        for number, index in enumerate(layers):
            if not self.thorough and index in self.since and self.left[index] > _WORTH and self.since[index] > _CHANGED:
                break  # layers further down gain less still
            trace = self._trace(device)
            if trace is None:
                return math.inf
            before = trace.interval(index)
            found, self.found[index] = implied(trace, index, assumed, ascent, memory, self.found.get(index))
            if bool((found.lower > found.upper).any()):
                return math.inf
            self.known[index] = found.to(torch.float64, torch.device("cpu"))
            share = _width(found) / max(_width(before), 1e-30)
            self.left[index], self.since[index] = share, 1.0
            self.since.update({below: self.since[below] * share for below in layers[number + 1 :] if below in self.since})
            if share > _NO_GAIN and (number or not self.thorough):
                break
        trace = self._trace(device)
        return math.inf if trace is None else self._bound(trace)

    def _trace(self, device: torch.device) -> Trace | None:
        query, options = self.query, self.query.options
        network, region = query.network.to(torch.float32, device), query.specification.region.to(torch.float32, device)
        return trace_through(network, region, self.known, options.semantics, self.deadline)

    def _bound(self, trace: Trace) -> float:
        """The best row's lower bound over the intervals of a trace."""
        goal = self.query.goal
        C = goal.C[self.rows].to(trace.region.origin.device, torch.float32).unsqueeze(0).unflatten(2, trace.network.output_shape)
        problem = RowProblem(trace, len(trace.network.nodes) - 1, objective_start(View(trace, None), C))
        d = goal.d[self.rows].to(C.device, torch.float64)
        alphas, betas, _ = problem.maximise(
            problem.initial(), {}, Ascent(self.stage.root_steps), (d + _BEYOND * (1 + d.abs())).unsqueeze(0)
        )
        return float(rounding.below(problem.prove(alphas, betas).bound[0] - d).max())


def _width(interval: Interval) -> float:
    return float(interval.width.to(torch.float64).sum())
