"""The two ends of an exact radius, drawn together by branching before a mixed-integer program is asked.

A probe asks whether a ball between the ends is safe. Bounds and branching over activations (`verify.branch`) either prove it, which raises
the lower end without any solver, or meet an adversary, which lowers the upper one. Once the ends are near each other the adversary is moved
to the nearest point of its activation pattern (`milp.pattern`), and if that is the nearest of all, one more probe just below it is the end.
A probe that runs out of time marks its radius as hard; the probes after it stay below.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from bounds.alpha import AlphaCrown
from bounds.crown import Crown
from bounds.engine import DEFAULT_MEMORY_MB as _MEMORY
from bounds.engine import BoundEngine
from bounds.errors import MemoryLimitError, SolverError, TimeLimitError, UnsupportedOpError
from bounds.network import Network
from bounds.ops.base import Activation
from milp.distance import Effort, Start
from milp.incumbent import Incumbent
from milp.metric import Metric
from milp.pattern import nearest_in_pattern
from milp.program import Limits
from verify.branch import SplitNeurons
from verify.exact_radius import Replayer
from verify.run import verify
from verify.spec import robustness
from verify.stages import Bound, Options
from verify.verdict import Falsified, Verified

MANY = 100
"""With fewer unstable neurons a mixed-integer program alone is quick."""
_PROBE = 30.0
"""Seconds of a probe where there is no limit for everything."""
_SHARE = 0.25
"""Of the time that is left, for one probe."""
_NEAR = 0.02
"""Relative distance of the ends from which on adversaries are moved within their pattern."""
_HARD = 2e-3
"""Relative distance of the lower end from a hard radius at which probing ends."""
_PULLS = 5
"""Linear programs in a row that move an adversary."""


def worthwhile(network: Network, metric: Metric, start: Start) -> bool:
    """Whether the ball of a known adversary leaves so many neurons unstable that branching comes before programs."""
    if start.adversary is None:
        return False
    radius = metric.length(start.adversary - metric.center.numpy())
    if not 0.0 < radius < math.inf:
        return False
    found = Crown(both=False)(network, metric.ball(radius))
    count = 0
    for node in network.nodes:
        if isinstance(node.op, Activation):
            count += sum(int(node.op.unstable(found.intervals[source]).sum()) for source in node.inputs)
    return count > MANY


def narrowed(network: Network, label: int, metric: Metric, replayer: Replayer, start: Start, effort: Effort) -> Start:
    """The same question with ends that are nearer each other: start.lower raised, start.adversary replaced by a nearer one.

    Property: the lower end was proven by outward rounding on exactly that ball; the adversary was replayed. Without an adversary, and where
    branching does not apply, the start comes back as it is.
    """
    return _Narrowing(network, label, metric, replayer, start, effort).run()


class _Narrowing:
    """The ends while they are being narrowed."""

    def __init__(self, network: Network, label: int, metric: Metric, replayer: Replayer, start: Start, effort: Effort) -> None:
        self.network, self.label, self.metric, self.start, self.effort = network, label, metric, start, effort
        self.replayer, self.lower = replayer, start.lower
        identity = torch.eye(network.outputs, dtype=torch.float64)
        self.rows = {j: (identity[label] - identity[j]).unsqueeze(0) for j in range(network.outputs) if j != label}
        exact = network.to(torch.float64, "cpu")
        self.incumbent = Incumbent(exact, torch.cat(list(self.rows.values())), metric, replayer)
        seconds = effort.limits.seconds
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.pulled = math.inf

    @property
    def tolerance(self) -> float:
        """How close the ends are wanted: as in `milp.distance`."""
        return self.effort.tol * max(1.0, self.incumbent.distance) + self.effort.slack

    def left(self) -> float | None:
        """Seconds until the limit."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)

    def run(self) -> Start:
        """Probes until the ends meet, or only hard radii are left between them."""
        given = self.start.adversary
        if given is None or not self.incumbent.push(given):
            return self.start
        hard = eager = math.inf
        while self.open(hard) and self.left() != 0.0:
            self.pull()
            top = self.incumbent.distance - self.tolerance / 2
            if not self.open(hard):
                break
            # Just below an adversary that was moved to the end of its pattern once; then in the middle until there is a nearer one.
            once = self.pulled == self.incumbent.distance < eager and hard > top
            eager = self.incumbent.distance if once else eager
            eps = top if once else (self.lower + min(top, hard)) / 2
            found = self.probe(eps)
            if found is None:
                hard = eps
        best = self.incumbent.best
        return replace(self.start, lower=max(self.start.lower, self.lower), adversary=None if best is None else best.point)

    def open(self, hard: float) -> bool:
        """Whether another probe may help."""
        upper = self.incumbent.distance
        return upper - self.lower > self.tolerance and min(hard, upper) - self.lower > (_HARD * hard if hard < upper else 0.0)

    def probe(self, eps: float) -> bool | None:
        """Is the ball safe? True raises the lower end, False brought a nearer adversary, None: it is hard."""
        metric, left = self.metric, self.left()
        question = robustness(metric.center, self.label, eps, norm=metric.p, outputs=self.network.outputs, domain=self.replayer.domain)
        stages = (Bound("crown", _crown), Bound("alpha", _alpha), SplitNeurons())
        seconds = _PROBE if left is None else _SHARE * left
        verdict = verify(self.network, question, timeout=seconds, memory_mb=self.effort.limits.memory_mb or _MEMORY, stages=stages).verdict
        if isinstance(verdict, Verified) and verdict.proof == "rigorous":
            self.lower = max(self.lower, eps)
            return True
        before = self.incumbent.distance
        if isinstance(verdict, Falsified):
            self.incumbent.offer(verdict.x.astype("float64"))
        return False if self.incumbent.distance < before else None

    def pull(self) -> None:
        """Move the adversary to the nearest point of its pattern, and on, while that helps, once the ends are near each other."""
        for _ in range(_PULLS):
            best = self.incumbent.best
            if best is None or best.distance >= self.pulled or best.distance - self.lower > _NEAR * best.distance:
                return
            left = self.left()
            try:
                point = nearest_in_pattern(
                    self.network, self.rows[best.target], self.metric, best, self.effort.solver, Limits(left, self.effort.limits.memory_mb)
                )
            except (UnsupportedOpError, SolverError, MemoryLimitError, TimeLimitError):
                point = None
            if point is None or not self.incumbent.push(point):
                self.pulled = self.incumbent.distance
                return
            if self.incumbent.distance > best.distance - self.tolerance / 4:
                self.pulled = self.incumbent.distance


def _crown(dtype: torch.dtype, options: Options) -> BoundEngine:
    return Crown(dtype, memory_mb=options.memory_mb, deadline=options.deadline, both=False)


def _alpha(dtype: torch.dtype, options: Options) -> BoundEngine:
    return AlphaCrown(dtype, memory_mb=options.memory_mb, deadline=options.deadline, both=False)
