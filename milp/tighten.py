"""Better pre-activation intervals from linear and mixed-integer programs: cheapest first, one live model a layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bounds.engine import BoundEngine
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.base import Activation
from bounds.ops.piecewise import Piecewise
from bounds.region import Region
from milp.activations import Curve
from milp.builder import Expression
from milp.encode import DEFAULT_MEMORY_MB, Encoding, Intervals, encode_node
from milp.inputs import Cut, ball_cut, cut_rows
from milp.program import Array, Limits, LpSession, Solver, StopRule
from milp.solvers import lp_session

_BALL_ROUNDS = 5
_ALLOWANCE = 1e-5
"""What a solver's dual bound on a pre-activation is lowered by, relative above 1: ten times the loosest feasibility tolerance."""


@dataclass(frozen=True)
class Effort:
    """How far to go.

    mixed_integer: a solver for the neurons that linear programs leave unstable, each side for at most `seconds_per_solve`; None for linear
    programs only. settle_only: stop such a solve once it is clear whether it can make the neuron stable; otherwise its interval is made as
    small as time allows. refresh: an engine that carries a layer's gain to the layers after it.
    """

    mixed_integer: Solver | None = None
    seconds_per_solve: float = 5.0
    settle_only: bool = True
    refresh: BoundEngine | None = None


@dataclass(frozen=True, eq=False)
class Tightened:
    """Intervals by node index, float64, never wider than what came in.

    proof: "rigorous" if every bound was recomputed from LP duals, "solver" if some rest on a MILP solver's tolerances. solves: programs
    solved; settled: neurons that were unstable and no longer are; finished: whether the limits allowed all of it.
    """

    intervals: dict[int, Interval]
    proof: Literal["rigorous", "solver"]
    solves: int
    settled: int
    seconds: float
    finished: bool


def tighten(
    network: Network,
    region: Region,
    intervals: Intervals,
    limits: Limits = Limits(),  # noqa: B008
    effort: Effort = Effort(),
    rows: Mapping[int, Tensor] | None = None,
    decided: Callable[[Mapping[int, Interval]], bool] | None = None,
) -> Tightened:
    """Tighten the intervals of unstable pre-activations, layer by layer: all layers by linear programs, then by mixed-integer ones.

    Within a layer the neuron whose nearer end is closest to a knot comes first, and its nearer side before the other; a side is skipped once
    the neuron is stable. Layers that are affine in the input are left to the engines, which are exact there.

    Args:
        intervals: sound enclosures by node index, (1, *node shape).
        rows: masks of the neurons to consider, by node index; None for all.
        decided: asked after each layer with the intervals so far; True ends the work.

    Property: sound; rigorous unless `effort.mixed_integer` contributed. Numerics: see `Tightened.proof`.
    Raises: see `milp.encode.encode_node`; SolverMissingError without highspy.
    """
    items = intervals.items() if isinstance(intervals, Mapping) else enumerate(intervals)
    work = _Work(network.to(torch.float64, "cpu"), region, {k: v.to(torch.float64, torch.device("cpu")) for k, v in items}, limits, effort)
    layers = [index for index in network.preactivations if index in work.known and not network.affine_in_input[index]]
    for method in (work.linear, work.mixed_integer) if effort.mixed_integer is not None else (work.linear,):
        for index in layers:
            mask = np.ones(work.known[index].lower.numel(), dtype=bool) if rows is None else _mask(rows.get(index), work.known[index])
            work.layer(index, mask, method)
            if work.out_of_time() or (decided is not None and decided(work.known)):
                return work.result()
    return work.result()


def _mask(mask: Tensor | None, like: Interval) -> Array:
    return np.zeros(like.lower.numel(), dtype=bool) if mask is None else mask.reshape(-1).cpu().numpy().astype(bool)


@dataclass(eq=False)
class _Work:
    """The state of one call: the intervals so far and what they cost."""

    network: Network
    region: Region
    known: dict[int, Interval]
    limits: Limits
    effort: Effort
    proof: Literal["rigorous", "solver"] = "rigorous"
    solves: int = 0
    settled: int = 0
    stopped: bool = False
    cuts: list[Cut] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def layer(self, index: int, mask: Array, method: Callable[[int, Array], None]) -> None:
        """The unstable neurons of one layer by one method, then the engine for the layers after."""
        before = self._unstable(index)
        if not (mask & before).any():
            return
        solves = self.solves
        method(index, mask & before)
        self.settled += int((before & ~self._unstable(index)).sum())
        if self.effort.refresh is not None and self.solves > solves and not self.out_of_time():
            fresh = self.effort.refresh(self.network, self.region, None, self.known).intervals
            for later in self.known:
                self.known[later] = self.known[later].intersect(fresh[later].to(torch.float64, torch.device("cpu")))

    def result(self) -> Tightened:
        """What has been found."""
        return Tightened(self.known, self.proof, self.solves, self.settled, self.seconds(), not self.stopped)

    def linear(self, index: int, wanted: Array) -> None:
        """Both sides of every wanted neuron by one warm linear program."""
        encoding = self._encode(index, wanted, relaxed=True)
        session = lp_session(encoding.program)
        if self.cuts:
            session.add_rows(*cut_rows(encoding.inputs, self.cuts, encoding.program.columns))
        for neuron in self._order(index, wanted):
            for sign in self._sides(index, neuron):
                if self.out_of_time():
                    return
                bound = self._linear_bound(encoding, session, encoding.values[index].take(np.array([neuron])), sign)
                self._improve(index, neuron, sign, bound)
                if not self._unstable(index)[neuron]:
                    break

    def _linear_bound(self, encoding: Encoding, session: LpSession, value: Expression, sign: float) -> float:
        """A rigorous lower bound of sign * value."""
        objective, constant = _objective(value, sign, encoding.program.columns)
        best = -np.inf
        for _ in range(_BALL_ROUNDS):
            solution = session.minimise(objective, constant, self._left())
            self.solves += 1
            best = best if solution.dual_bound is None else max(best, solution.dual_bound)
            cut = None if solution.x is None else ball_cut(encoding.inputs, solution.x)
            if cut is None or self.out_of_time():
                break
            self.cuts.append(cut)
            session.add_rows(*cut_rows(encoding.inputs, [cut], encoding.program.columns))
        return best

    def mixed_integer(self, index: int, wanted: Array) -> None:
        """The wanted neurons by mixed-integer programs."""
        solver = self.effort.mixed_integer
        if solver is None:
            return
        encoding = self._encode(index, wanted, relaxed=False)
        program = encoding.program
        if self.cuts:
            program = program.with_rows(*cut_rows(encoding.inputs, self.cuts, program.columns))
        for neuron in self._order(index, wanted):
            for sign in self._sides(index, neuron):
                if self.out_of_time():
                    return
                objective, constant = _objective(encoding.values[index].take(np.array([neuron])), sign, program.columns)
                left = self._left()
                seconds = self.effort.seconds_per_solve if left is None else min(left, self.effort.seconds_per_solve)
                rule = self._stop_rule(index, neuron, sign)
                solution = solver.solve(program.with_objective(objective, constant), Limits(seconds, self.limits.memory_mb), rule)
                self.solves += 1
                if solution.dual_bound is not None:
                    bound = solution.dual_bound - _ALLOWANCE * max(1.0, abs(solution.dual_bound))
                    if self._improve(index, neuron, sign, bound):
                        self.proof = "solver"
                if not self._unstable(index)[neuron]:
                    break

    def _encode(self, index: int, wanted: Array, *, relaxed: bool) -> Encoding:
        memory = DEFAULT_MEMORY_MB if self.limits.memory_mb is None else self.limits.memory_mb
        return encode_node(self.network, self.region, self.known, index, wanted, relaxed=relaxed, memory_mb=memory)

    def _unstable(self, index: int) -> Array:
        """Mask of the values that some activation reading the node finds unstable."""
        found = torch.zeros_like(self.known[index].lower, dtype=torch.bool)
        for user in self.network.successors[index]:
            op = self.network.nodes[user].op
            if isinstance(op, Activation):
                found |= op.unstable(self.known[index])
        return found.reshape(-1).numpy()

    def _order(self, index: int, wanted: Array) -> list[int]:
        """The wanted neurons, those with an end nearest to their single knot first."""
        lower, upper = _flat(self.known[index])
        knot = np.nan_to_num(self._single_knot(index))
        nearest = np.minimum(np.abs(lower - knot), np.abs(upper - knot))
        chosen = np.flatnonzero(wanted)
        return [int(neuron) for neuron in chosen[np.argsort(nearest[chosen], kind="stable")]]

    def _sides(self, index: int, neuron: int) -> tuple[float, float]:
        """1 for the lower and -1 for the upper bound, the one nearer to the knot first."""
        lower, upper = (side[neuron] for side in _flat(self.known[index]))
        knot = np.nan_to_num(self._single_knot(index)[neuron])
        return (1.0, -1.0) if knot - lower <= upper - knot else (-1.0, 1.0)

    def _single_knot(self, index: int) -> Array:
        """The knot inside each value's interval where there is exactly one, else NaN."""
        node, (lower, upper) = self.network.nodes[index], _flat(self.known[index])
        low, high = np.full(lower.shape, np.inf), np.full(lower.shape, -np.inf)
        for user in self.network.successors[index]:
            op = self.network.nodes[user].op
            if isinstance(op, Piecewise):
                curve = Curve.of(op, node.shape, lower, upper)
                for knot, inside in zip(curve.knots, curve.inside, strict=True):
                    low, high = np.where(inside, np.minimum(low, knot), low), np.where(inside, np.maximum(high, knot), high)
        return np.where(low == high, low, np.nan)

    def _stop_rule(self, index: int, neuron: int, sign: float) -> StopRule | None:
        """A bound beyond the only knot settles the neuron, a point before it ends hope."""
        knot = float(self._single_knot(index)[neuron])
        if not self.effort.settle_only or np.isnan(knot):
            return None
        return StopRule(sign * knot, 2 * _ALLOWANCE * max(1.0, abs(knot)))

    def _improve(self, index: int, neuron: int, sign: float, bound: float) -> bool:
        """Take a lower bound of sign * value if it is better; whether it was."""
        interval = self.known[index]
        lower, upper = interval.lower.clone(), interval.upper.clone()
        low, high = lower.view(-1), upper.view(-1)
        better = bound > (low[neuron] if sign > 0 else -high[neuron])
        if not better:
            return False
        if sign > 0:
            low[neuron] = min(bound, float(high[neuron]))
        else:
            high[neuron] = max(-bound, float(low[neuron]))
        self.known[index] = Interval(lower, upper)
        return True

    def seconds(self) -> float:
        """Wall-clock seconds since the start."""
        return time.perf_counter() - self.start

    def out_of_time(self) -> bool:
        """Whether the limit is reached; remembered."""
        left = self._left()
        self.stopped = self.stopped or (left is not None and left <= 0.0)
        return self.stopped

    def _left(self) -> float | None:
        return None if self.limits.seconds is None else self.limits.seconds - self.seconds()


def _flat(interval: Interval) -> tuple[Array, Array]:
    return interval.lower.reshape(-1).numpy(), interval.upper.reshape(-1).numpy()


def _objective(value: Expression, sign: float, columns: int) -> tuple[Array, float]:
    """sign * value as an objective that lies below it by the value's rounding error."""
    objective = np.zeros(columns)
    objective[value.matrix.indices] = sign * value.matrix.data
    return objective, float(np.nextafter(sign * value.constant[0] - value.error[0], -np.inf))
