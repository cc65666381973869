"""Refinement: first a program in which most neurons are relaxed, then neurons come back as binaries until the answer is clear.

A neuron that is relaxed stays between the hull of its activation on its interval: what it may differ by from any line through the hull is a
bounded disturbance, so the program holds the network, its optimum is a lower bound of the network's, and a proof about it is one about the
network. Where its optimum is not good enough, the neurons come back whose disturbances the optimum lives on: with the binaries in use fixed as the
solver left them, the linear program's multipliers mu >= 0 say what a disturbance is worth there,

    score = mu (p + n) min(b / p, (1 - b) / n),

which for ReLU on [-n, p] is the multiplier of the triangle's upper side times how far the neuron lies above max(z, 0), relative to the triangle's
height. After at most log2 rounds every binary is back and the program is exact.

Reference: Robustness evaluation using local substitute networks, section 3.3 and appendix A.2, for pruned neurons and their binaries; for scores
from a relaxation's solution Bunel et al., Branch and bound for piecewise linear neural network verification, JMLR 21 (2020), section 5.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.region import Region
from milp.encode import DEFAULT_MEMORY_MB, Encoding, Intervals, encode_all
from milp.inputs import Cut
from milp.program import Array, Limits, LpSession, Program, Solution, Solver
from milp.prove import Outcome, Question
from milp.solvers import lp_session


@dataclass(frozen=True)
class Plan:
    """few: a program with no more binaries is solved as it is; first: binaries of the first program otherwise; growth: by which factor their
    number grows; share: of the time left that a round of one set may take, unless every binary is back."""

    few: int = 48
    first: int = 12
    growth: float = 2.0
    share: float = 0.5


class Refinement:
    """One unsafe set, decided in rounds. `point`: the input at which the last round's program had its best point, None without one."""

    def __init__(self, question: Question, session: LpSession, cuts: list[Cut], plan: Plan) -> None:
        self._question, self._session, self._cuts, self._plan = question, session, cuts, plan
        self._gates = question.encoding.gates.columns
        self._chosen = np.zeros(self._gates.size, dtype=bool)
        self._scores = np.zeros(self._gates.size)
        self._bound: float | None = None
        self.rounds = 0
        self.point: Array | None = None

    @property
    def binaries(self) -> int:
        """How many binaries the last round's program had."""
        return int(self._chosen.sum())

    @property
    def total(self) -> int:
        """How many binaries there are."""
        return int(self._gates.size)

    @property
    def exhausted(self) -> bool:
        """Whether the last round's program was the exact one."""
        return self.rounds > 0 and bool(self._chosen.all())

    def step(self, confirm: Solver | None = None) -> Outcome:
        """The next round: the linear relaxation, then programs with more and more binaries. After `exhausted` there is none.

        Property: a "proved" of any round is sound up to the solver's tolerances, as `milp.prove` says. KeyboardInterrupt is passed on.
        """
        outcome = self._relaxation() if self.rounds == 0 else self._round(confirm)
        self.rounds += 1
        self._bound = outcome.bound if outcome.bound is not None else self._bound
        return outcome

    def _relaxation(self) -> Outcome:
        outcome = self._question.relaxation(self._cuts, self._session)
        if outcome.status == "undecided":
            self._look(None)
        return outcome

    def _round(self, confirm: Solver | None) -> Outcome:
        self._bring_back()
        question, program = self._timed(), self._program()
        outcome, x = question.exact(self._cuts, self._bound, program)
        if outcome.status == "proved" and confirm is not None:
            return question.confirmed(outcome, confirm, self._cuts, program)
        if outcome.status == "undecided" and x is not None and not self._chosen.all():
            self._look(x)
        return outcome

    def _bring_back(self) -> None:
        """Mark the neurons of the highest scores: the first ones, or as many more as the plan says."""
        plan = self._plan
        count = max(plan.first, int(self.binaries * (plan.growth - 1.0))) if self._gates.size > plan.few else self._gates.size
        order = np.argsort(np.where(self._chosen, -1.0, self._scores), kind="stable")[::-1]
        self._chosen[order[:count]] = True
        left = np.flatnonzero(~self._chosen)
        if left.size <= count // 2:  # a last round for so few is not worth it
            self._chosen[left] = True

    def _program(self) -> Program:
        program = self._question.encoding.program
        integer = np.zeros(program.columns, dtype=bool)
        integer[self._gates[self._chosen]] = True
        return replace(program, integer=integer)

    def _timed(self) -> Question:
        """The question with the limits of one round."""
        limits = self._question.limits
        if limits.seconds is None or self._chosen.all():
            return self._question
        spent = time.perf_counter() - self._question.start
        until = spent + self._plan.share * max(limits.seconds - spent, 0.0)
        return replace(self._question, limits=Limits(until, limits.memory_mb))

    def _look(self, x: Array | None) -> None:
        """Scores at the relaxation's optimum (None), or at the optimum with the binaries in use as they are at x."""
        encoding, used = self._question.encoding, self._gates[self._chosen]
        if x is not None:
            values = np.round(x[used])
            self._session.set_bounds(used, values, values)
        solution = self._session.minimise(encoding.program.objective, encoding.program.constant, self._left())
        if x is not None:
            self._session.set_bounds(used, np.zeros(used.size), np.ones(used.size))
        if solution.x is not None:
            self.point = encoding.point(solution.x)
            if solution.row_duals is not None:
                self._scores = scores(encoding, solution)
        elif x is not None:
            self.point = encoding.point(x)

    def _left(self) -> float | None:
        limit = self._question.limits.seconds
        return None if limit is None else max(limit - (time.perf_counter() - self._question.start), 0.0)


def refinements(
    network: Network,
    region: Region,
    unsafe: Sequence[Halfspaces],
    intervals: Intervals,
    solver: Solver,
    limits: Limits = Limits(),  # noqa: B008
    plan: Plan = Plan(),
) -> list[Refinement]:
    """A refinement for each unsafe set. They share one encoding, one live linear program, the cuts and the limits, which begin now.

    Raises: see `milp.encode.encode`; SolverMissingError without a linear solver.
    """
    start = time.perf_counter()
    memory = DEFAULT_MEMORY_MB if limits.memory_mb is None else limits.memory_mb
    encodings = encode_all(network, region, unsafe, intervals, memory_mb=memory)
    session = lp_session(encodings[0].program)
    cuts: list[Cut] = []
    return [
        Refinement(Question(network, region, one, encoding, solver, limits, start), session, cuts, plan)
        for one, encoding in zip(unsafe, encodings, strict=True)
    ]


@dataclass(frozen=True)
class Strongest:
    """Keep at most so many binaries of every program: those of the neurons with the highest scores at the linear relaxation's optimum, and of the
    widest neurons where scores are equal."""

    binaries: int

    def of(self, encoding: Encoding) -> Encoding:
        """The encoding with its strongest binaries."""
        if encoding.binaries <= self.binaries:
            return encoding
        program = encoding.program
        found = scores(encoding, lp_session(program).minimise(program.objective, program.constant))
        columns = program.rows.tocsc()[:, encoding.gates.columns]
        width = columns.max(axis=0).toarray().ravel() - columns.min(axis=0).toarray().ravel()
        order = np.lexsort((width, found))[::-1]
        integer = np.zeros(program.columns, dtype=bool)
        integer[encoding.gates.columns[order[: self.binaries]]] = True
        return replace(encoding, program=replace(program, integer=integer))


def scores(encoding: Encoding, solution: Solution) -> Array:
    """What every binary's neuron is worth at a solution of the linear relaxation with row duals: (number of binaries,), >= 0.

    p and n are the largest positive and negative coefficients of the binary in the program's rows, mu half the sum of |dual coefficient| there.
    """
    if solution.x is None or solution.row_duals is None:
        return np.zeros(encoding.gates.columns.size)
    columns = encoding.program.rows.tocsc()[:, encoding.gates.columns]
    duals = solution.row_duals[: columns.shape[0]]  # rows that were added later hold no binary
    worth = abs(columns).T @ np.abs(duals) / 2
    above = np.maximum(columns.max(axis=0).toarray().ravel(), 0.0)
    below = np.maximum(-columns.min(axis=0).toarray().ravel(), 0.0)
    value = np.clip(solution.x[encoding.gates.columns], 0.0, 1.0)
    nearest = np.minimum(value / np.maximum(above, 1e-12), (1.0 - value) / np.maximum(below, 1e-12))
    return np.asarray(worth * (above + below) * nearest)
