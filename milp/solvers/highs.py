"""HiGHS through highspy: linear programs, a second opinion on mixed-integer ones, and the fallback where SCIP is absent."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import highspy
import numpy as np
import scipy.sparse as sparse

from bounds.errors import SolverError
from milp.certify import safe_dual_bound
from milp.memory import resident_mb
from milp.program import Answer, Array, Limits, Program, Solution, Status, StopRule, Tolerances, below_cutoff, conclude, read_cutoff

TOLERANCES = Tolerances(feasibility=1e-7, integrality=1e-6, dual=1e-7)
PRECISE = Tolerances(feasibility=1e-9, integrality=1e-9, dual=1e-9)
_SUB_MIP_HEURISTICS = (
    "mip_heuristic_run_rens",
    "mip_heuristic_run_rins",
    "mip_heuristic_run_root_reduced_cost",
    "mip_heuristic_run_feasibility_jump",
)
_OPTIONS: dict[str, Any] = {
    "output_flag": False,
    "threads": 1,
    "random_seed": 0,
    "small_matrix_value": 1e-12,
    "mip_rel_gap": 0.0,
    "mip_abs_gap": 1e-9,
}
_SESSION_OPTIONS: dict[str, Any] = {"presolve": "off", "simplex_scale_strategy": 0}
"""Without scaling a re-solve on ReLU networks takes half the time (same optima); duals are checked by `certify` in any case."""
_STATUS = {
    highspy.HighsModelStatus.kOptimal: Status.OPTIMAL,
    highspy.HighsModelStatus.kInfeasible: Status.INFEASIBLE,
    highspy.HighsModelStatus.kUnbounded: Status.UNBOUNDED,
    highspy.HighsModelStatus.kTimeLimit: Status.TIME_LIMIT,
    highspy.HighsModelStatus.kMemoryLimit: Status.MEMORY_LIMIT,
    highspy.HighsModelStatus.kInterrupt: Status.INTERRUPTED,
    highspy.HighsModelStatus.kObjectiveTarget: Status.SIGN_DECIDED,
    highspy.HighsModelStatus.kObjectiveBound: Status.SIGN_DECIDED,
}


class Highs:
    """HiGHS as a `milp.program.Solver`. The memory limit is held against the resident size of this process.

    precise: solve to tighter tolerances (`PRECISE`), for optimal values that matter to more than six digits.
    """

    name = "highs"

    def __init__(self, *, precise: bool = False) -> None:
        self._tolerances = PRECISE if precise else TOLERANCES

    def solve(self, program: Program, limits: Limits = Limits(), stop: StopRule | None = None) -> Solution:  # noqa: B008
        """Minimise the program; linear programs come back with row duals and a dual bound recomputed from them."""
        start = time.perf_counter()
        sign_only = stop is not None and not program.is_linear
        highs = _model(below_cutoff(program, stop) if sign_only else program, self._tolerances)  # type: ignore[arg-type]
        if limits.seconds is not None:
            highs.setOptionValue("time_limit", max(limits.seconds, 0.0))
        if program.is_linear:
            _run(highs)
            answer = _linear_answer(highs, program)
        else:
            answer = _mixed_integer_answer(highs, limits, stop)
            if stop is not None:
                answer = read_cutoff(answer, stop)
        seconds = time.perf_counter() - start
        return conclude(program, answer, solver=self.name, tolerances=self._tolerances, seconds=seconds, stop=stop)


class HighsSession:
    """One live linear program: change the objective or bounds, solve again from the last basis. See `milp.program.LpSession`.

    Integrality of the program is dropped. Dual bounds are recomputed from the row duals and are rigorous.
    """

    def __init__(self, program: Program) -> None:
        self._program = program.relaxed()
        self._highs = _model(self._program, TOLERANCES)
        for option, value in _SESSION_OPTIONS.items():
            self._highs.setOptionValue(option, value)
        self._columns = np.arange(program.columns, dtype=np.int32)

    @property
    def program(self) -> Program:
        """The linear program as it stands."""
        return self._program

    def minimise(self, objective: Array, constant: float = 0.0, seconds: float | None = None) -> Solution:
        """The minimum of objective @ x + constant over the program's feasible set, within the given seconds."""
        start = time.perf_counter()
        highs = self._highs
        highs.changeColsCost(self._columns.size, self._columns, objective)
        highs.setOptionValue("time_limit", np.inf if seconds is None else highs.getRunTime() + max(seconds, 0.0))
        self._program = self._program.with_objective(objective, constant)
        _check(highs.run(), "run")
        answer = _linear_answer(highs, self._program)
        seconds = time.perf_counter() - start
        return conclude(self._program, answer, solver=Highs.name, tolerances=TOLERANCES, seconds=seconds)

    def set_bounds(self, columns: Array, lower: Array, upper: Array) -> None:
        """Replace the bounds of some variables."""
        _check(self._highs.changeColsBounds(len(columns), np.asarray(columns, dtype=np.int32), lower, upper), "changeColsBounds")
        new_lower, new_upper = self._program.lower.copy(), self._program.upper.copy()
        new_lower[columns], new_upper[columns] = lower, upper
        self._program = replace(self._program, lower=new_lower, upper=new_upper)

    def set_row_bounds(self, rows: Array, lower: Array, upper: Array) -> None:
        """Replace the sides of some rows."""
        _check(self._highs.changeRowsBounds(len(rows), np.asarray(rows, dtype=np.int32), lower, upper), "changeRowsBounds")
        new_lower, new_upper = self._program.row_lower.copy(), self._program.row_upper.copy()
        new_lower[rows], new_upper[rows] = lower, upper
        self._program = replace(self._program, row_lower=new_lower, row_upper=new_upper)

    def add_rows(self, rows: sparse.csr_matrix, row_lower: Array, row_upper: Array) -> None:
        """Append rows."""
        count, entries = rows.shape[0], rows.nnz
        status = self._highs.addRows(count, row_lower, row_upper, entries, rows.indptr[:-1], rows.indices, rows.data)
        _check(status, "addRows")
        self._program = self._program.with_rows(rows, row_lower, row_upper)


def _model(program: Program, tolerances: Tolerances) -> Any:
    """A HiGHS instance that holds the program; arrays are passed as they are."""
    factory: Any = highspy.Highs
    highs = factory()
    highs.disableCallbacks()
    for option, value in _OPTIONS.items():
        highs.setOptionValue(option, value)
    highs.setOptionValue("primal_feasibility_tolerance", tolerances.feasibility)
    highs.setOptionValue("dual_feasibility_tolerance", tolerances.dual)
    highs.setOptionValue("mip_feasibility_tolerance", tolerances.integrality)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = program.columns, program.rows.shape[0]
    lp.col_cost_, lp.offset_ = program.objective, program.constant
    lp.col_lower_, lp.col_upper_ = program.lower, program.upper
    lp.row_lower_, lp.row_upper_ = program.row_lower, program.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = program.rows.indptr, program.rows.indices, program.rows.data
    if not program.is_linear:
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[flag] for flag in program.integer.astype(int).tolist()]
    _check(highs.passModel(lp), "passModel")
    return highs


def _check(status: highspy.HighsStatus, action: str) -> None:
    """A warning is common and harmless (answers are checked); an error is not."""
    if status == highspy.HighsStatus.kError:
        raise SolverError(f"HiGHS failed in {action}; try another solver (scip, pulp:CBC)")


def _run(highs: Any) -> None:
    """Solve in a thread of its own, so that Ctrl-C reaches us at once: the solve is cancelled and KeyboardInterrupt goes on."""
    found: list[highspy.HighsStatus] = []
    thread = threading.Thread(target=lambda: found.append(highs.run()), daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        highs.cancelSolve()
        thread.join(timeout=5.0)
        raise
    _check(found[0] if found else highspy.HighsStatus.kError, "run")


def _linear_answer(highs: Any, program: Program) -> Answer:
    """Point, duals and the bound they prove."""
    status = _STATUS.get(highs.getModelStatus(), Status.UNKNOWN)
    solution = highs.getSolution()
    duals = np.array(solution.row_dual, dtype=np.float64) if solution.dual_valid else None
    bound = None if duals is None else safe_dual_bound(program, duals)
    has_point = status is Status.OPTIMAL and solution.value_valid
    x = np.array(solution.col_value, dtype=np.float64) if has_point else None
    return Answer(status, x, bound, duals, f"HiGHS status {highs.modelStatusToString(highs.getModelStatus())}")


def _mixed_integer_answer(highs: Any, limits: Limits, stop: StopRule | None) -> Answer:
    """Branch and bound, left from a callback when the dual bound settles the sign or memory runs out."""
    reason: list[Status] = []

    def interrupt(event: Any) -> None:
        if stop is not None and (stop.above(event.data_out.mip_dual_bound) or stop.below(event.data_out.mip_primal_bound)):
            reason.append(Status.SIGN_DECIDED)
        elif limits.memory_mb is not None and resident_mb() > limits.memory_mb:
            reason.append(Status.MEMORY_LIMIT)
        if reason:
            event.data_in.user_interrupt = True

    for option in _SUB_MIP_HEURISTICS:
        highs.setOptionValue(option, False)
    if stop is not None:
        highs.setOptionValue("objective_target", stop.threshold - stop.margin)
    if stop is not None or limits.memory_mb is not None:
        highs.enableCallbacks()
        highs.cbMipInterrupt += interrupt
    _run(highs)
    status = _STATUS.get(highs.getModelStatus(), Status.UNKNOWN)
    if status is Status.INTERRUPTED and reason:
        status = reason[0]
    info = highs.getInfo()
    has_point = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    x = np.array(highs.getSolution().col_value, dtype=np.float64) if has_point else None
    bound = info.mip_dual_bound if status not in (Status.INFEASIBLE, Status.UNBOUNDED, Status.UNKNOWN) else None
    return Answer(status, x, bound, None, f"HiGHS status {highs.modelStatusToString(highs.getModelStatus())}")
