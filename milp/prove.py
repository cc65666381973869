"""One unsafe set, one exact answer: proved, a candidate point, or undecided."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bounds.errors import SolverMissingError, UnsupportedOpError
from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.region import Region
from milp.check import reproduces
from milp.encode import DEFAULT_MEMORY_MB, Encoding, Intervals, encode
from milp.inputs import Cut, ball_cut, cut_rows, needs_cuts
from milp.program import Array, Limits, LpSession, Program, Solution, Solver, Status, StopRule, Tolerances
from milp.solvers import lp_session

PROOF_MARGIN = 1e-5
"""How far above 0 a solver's dual bound must lie to count as a proof: ten times the loosest feasibility tolerance in use."""
_ROUNDS = 40
"""How often a ball may be refined by tangent cuts in the linear relaxation, and again in the exact program."""
_RULE = StopRule(0.0, PROOF_MARGIN)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is known about min over x in the region of max_i (C_i f(x) - d_i).

    status: "proved" (the minimum is positive), "point" (a candidate with a margin <= 0 in float64; the caller replays it) or "undecided".
    bound: a lower bound of the minimum, None if there is none. proof: "rigorous" where the bound was recomputed from LP duals, "solver" where
    it rests on `tolerances` of `solver` (and of `confirmed_by`). reason: why it is undecided.
    """

    status: Literal["proved", "point", "undecided"]
    bound: float | None
    point: Array | None
    proof: Literal["rigorous", "solver"]
    solver: str
    tolerances: Tolerances
    reason: str
    seconds: float
    binaries: int
    confirmed_by: str = ""

    def __str__(self) -> str:
        if self.status != "proved":
            return self.reason
        if self.proof == "rigorous":
            return "linear relaxation, bound recomputed from its duals"
        confirmation = f", confirmed by {self.confirmed_by}" if self.confirmed_by else ""
        return f"MILP by {self.solver} with tolerances {self.tolerances}{confirmation}"


def most_promising_first(lower_bounds: Sequence[float]) -> list[int]:
    """Numbers of the unsafe sets in the order to try them: the smallest engine bound is the likeliest to hold a counterexample."""
    return sorted(range(len(lower_bounds)), key=lambda k: (math.isnan(lower_bounds[k]), lower_bounds[k]))


def prove(
    network: Network,
    region: Region,
    unsafe: Halfspaces,
    intervals: Intervals,
    solver: Solver,
    limits: Limits = Limits(),  # noqa: B008
    confirm: Solver | None = None,
) -> Outcome:
    """Whether some x of the region has f(x) in the unsafe set, decided as cheaply as possible.

    First the linear relaxation, whose safe dual bound is a rigorous proof if positive and whose optimum may already be a counterexample;
    then the exact program, stopped at the sign (a network with smooth activations has none and is left at its relaxation). An l2 ball is
    approached from outside by tangent cuts. `confirm`, a second solver, must agree with a proof that rests on the first one's tolerances.

    Property: sound up to the stated tolerances; complete up to them and the limits. Semantics: real arithmetic.
    Raises: see `milp.encode.encode`; KeyboardInterrupt is passed on.
    """
    start = time.perf_counter()
    memory = DEFAULT_MEMORY_MB if limits.memory_mb is None else limits.memory_mb
    try:
        encoding = encode(network, region, unsafe, intervals, memory_mb=memory)
    except UnsupportedOpError as error:
        encoding = encode(network, region, unsafe, intervals, relaxed=True, memory_mb=memory)
        relaxed = Question(network, region, unsafe, encoding, solver, limits, start).relaxation([])
        return relaxed if relaxed.status != "undecided" else replace(relaxed, reason=str(error))
    return Question(network, region, unsafe, encoding, solver, limits, start).answer(confirm)


@dataclass(frozen=True, eq=False)
class Question:
    """One unsafe set and its program. start: when the seconds of `limits` began, on time.perf_counter's clock."""

    network: Network
    region: Region
    unsafe: Halfspaces
    encoding: Encoding
    solver: Solver
    limits: Limits
    start: float

    def answer(self, confirm: Solver | None) -> Outcome:
        cuts: list[Cut] = []
        relaxed = self.relaxation(cuts)
        if relaxed.status == "proved" or relaxed.status == "point":
            return relaxed
        if self._out_of_time():
            return replace(relaxed, reason=Status.TIME_LIMIT.value)
        exact, _ = self.exact(cuts, relaxed.bound, self.encoding.program)
        if exact.status != "proved" or confirm is None:
            return exact
        return self.confirmed(exact, confirm, cuts, self.encoding.program)

    def relaxation(self, cuts: list[Cut], session: LpSession | None = None) -> Outcome:
        """The linear relaxation, refined by cuts where the region is a ball. session: a live one of the same rows, cuts included."""
        best: float | None = None
        program = self.encoding.program
        try:
            session = session or lp_session(program)
        except SolverMissingError:
            return self._outcome("undecided", None, reason="no linear solver is installed")
        for _ in range(_ROUNDS):
            solution = session.minimise(program.objective, program.constant, self._left())
            best = _larger(best, solution.dual_bound)
            if best is not None and best > 0.0:
                return self._outcome("proved", best, proof="rigorous", solver=solution.solver, tolerances=solution.tolerances)
            point = None if solution.x is None else self._candidate(solution.x)
            if point is not None:
                return self._outcome("point", best, point)
            cut = None if solution.x is None else ball_cut(self.encoding.inputs, solution.x)
            if cut is None or self._out_of_time():
                break
            cuts.append(cut)
            session.add_rows(*cut_rows(self.encoding.inputs, [cut], program.columns))
        return self._outcome("undecided", best, proof="rigorous", reason="the linear relaxation does not decide")

    def exact(self, cuts: list[Cut], bound: float | None, program: Program) -> tuple[Outcome, Array | None]:
        """The program, solved again with one more cut as long as its answer is a point outside the ball; and the solver's last point.

        program: the encoding's own, or one that lacks integrality of some binaries: a proof about it is one about the network.
        """
        outcome, x = self._exact(cuts, bound, program)
        return replace(outcome, binaries=int(program.integer.sum())), x

    def _exact(self, cuts: list[Cut], bound: float | None, program: Program) -> tuple[Outcome, Array | None]:
        x = None
        for _ in range(_ROUNDS):
            solution = self._solve(self.solver, cuts, program)
            x = solution.x if solution.x is not None else x
            bound = _larger(bound, solution.dual_bound)
            if _settles(solution):
                center = self.region.origin[0].double().cpu().numpy()
                limits = Limits(self._left(), self.limits.memory_mb)
                if not reproduces(self.network, self.unsafe, self.encoding, center, self.solver, limits):
                    reason = (
                        "the program does not reproduce the network at the region's centre: the intervals are wrong or too wide to solve"
                    )
                    return self._outcome("undecided", None, tolerances=solution.tolerances, reason=reason), x
                return self._outcome("proved", bound, tolerances=solution.tolerances), x
            point = None if solution.x is None else self._candidate(solution.x)
            if point is not None:
                return self._outcome("point", bound, point, tolerances=solution.tolerances), x
            cut = None if solution.x is None else ball_cut(self.encoding.inputs, solution.x)
            if cut is None or self._out_of_time():
                return self._outcome("undecided", bound, tolerances=solution.tolerances, reason=_why(solution)), x
            cuts.append(cut)
        return self._outcome("undecided", bound, reason=f"{_ROUNDS} tangent cuts did not separate the ball from the unsafe set"), x

    def confirmed(self, outcome: Outcome, confirm: Solver, cuts: list[Cut], program: Program) -> Outcome:
        """The outcome if the second solver's dual bound is positive too, else undecided."""
        if self._out_of_time():
            return replace(outcome, status="undecided", reason=f"no time was left for {confirm.name} to confirm {self.solver.name}'s proof")
        second = self._solve(confirm, cuts, program)
        if _settles(second):
            return replace(outcome, confirmed_by=f"{confirm.name} ({second.tolerances})", seconds=self._seconds())
        reason = f"{self.solver.name} found a proof that {confirm.name} did not confirm: {second.detail or second.status.value}"
        return replace(outcome, status="undecided", bound=None, reason=reason, seconds=self._seconds())

    def _solve(self, solver: Solver, cuts: list[Cut], program: Program) -> Solution:
        if cuts:
            program = program.with_rows(*cut_rows(self.encoding.inputs, cuts, program.columns))
        limits = Limits(self._left(), self.limits.memory_mb)
        return solver.solve(program, limits, _RULE)

    def _margin(self, x: Tensor) -> float:
        """max_i (C_i f(x) - d_i) in float64; x: (1, *input_shape)."""
        return float(self.unsafe.margin(self.network.to(torch.float64, "cpu")(x).flatten(1))[0])

    def _candidate(self, x: Array) -> Array | None:
        """The point of the region that x stands for, if the network, run in float64, has a margin <= 0 there."""
        point = torch.from_numpy(np.ascontiguousarray(self.encoding.point(x)))[None]
        if needs_cuts(self.region):
            point = self.region.project(point[None])[0].double()
        return point[0].numpy() if self._margin(point) <= 0 else None

    def _outcome(
        self,
        status: Literal["proved", "point", "undecided"],
        bound: float | None,
        point: Array | None = None,
        *,
        proof: Literal["rigorous", "solver"] = "solver",
        solver: str | None = None,
        tolerances: Tolerances | None = None,
        reason: str = "",
    ) -> Outcome:
        name = self.solver.name if solver is None else solver
        return Outcome(status, bound, point, proof, name, tolerances or Tolerances(), reason, self._seconds(), self.encoding.binaries)

    def _seconds(self) -> float:
        return time.perf_counter() - self.start

    def _left(self) -> float | None:
        return None if self.limits.seconds is None else max(self.limits.seconds - self._seconds(), 0.0)

    def _out_of_time(self) -> bool:
        return self.limits.seconds is not None and self._seconds() >= self.limits.seconds


def _settles(solution: Solution) -> bool:
    """Whether a dual bound proves the set impossible; an answer that was not understood, or that contradicts itself, proves nothing."""
    return solution.status not in (Status.UNKNOWN, Status.INFEASIBLE, Status.UNBOUNDED) and _RULE.above(solution.dual_bound)


def _larger(a: float | None, b: float | None) -> float | None:
    found = [value for value in (a, b) if value is not None]
    return max(found) if found else None


def _why(solution: Solution) -> str:
    """Why a solution decides nothing."""
    if solution.status is Status.INFEASIBLE:
        return f"{solution.solver} calls a program infeasible that holds the whole region: its answer is not used"
    if _RULE.below(solution.objective):
        return f"the unsafe point that {solution.solver} found does not reproduce on the network"
    if solution.status in (Status.OPTIMAL, Status.SIGN_DECIDED):
        return "the minimum is too close to 0 for the solver's tolerances"
    detail = f" ({solution.detail})" if solution.status is Status.UNKNOWN and solution.detail else ""
    return f"{solution.status.value}{detail}"
