"""SCIP through PySCIPOpt: the default for mixed-integer programs."""

from __future__ import annotations

import threading
import time

import numpy as np
import pyscipopt
from pyscipopt.scip import PY_SCIP_PARAMSETTING, Expr, ExprCons, Term

from bounds.errors import SolverError
from milp.program import Answer, Limits, Program, Solution, Status, StopRule, Tolerances, conclude, read_cutoff

TOLERANCES = Tolerances(feasibility=1e-6, integrality=1e-6, dual=1e-7)
PRECISE = Tolerances(feasibility=1e-9, integrality=1e-9, dual=1e-7)
_FAST = PY_SCIP_PARAMSETTING.FAST
_STATUS = {
    "optimal": Status.OPTIMAL,
    "infeasible": Status.INFEASIBLE,
    "unbounded": Status.UNBOUNDED,
    "timelimit": Status.TIME_LIMIT,
    "memlimit": Status.MEMORY_LIMIT,
    "primallimit": Status.SIGN_DECIDED,
    "duallimit": Status.SIGN_DECIDED,
    "userinterrupt": Status.INTERRUPTED,
    "terminate": Status.INTERRUPTED,
}
_NO_BOUND = (Status.INFEASIBLE, Status.UNBOUNDED, Status.UNKNOWN)


class Scip:
    """SCIP as a `milp.program.Solver`. Settings were chosen by measuring ReLU networks: everything fast, stop at the sign.

    precise: solve to tighter tolerances (`PRECISE`), for optimal values that matter to more than six digits.
    """

    name = "scip"

    def __init__(self, *, precise: bool = False) -> None:
        self._tolerances = PRECISE if precise else TOLERANCES

    def solve(self, program: Program, limits: Limits = Limits(), stop: StopRule | None = None) -> Solution:  # noqa: B008
        """Minimise the program. Ctrl-C ends the solve and is passed on as KeyboardInterrupt."""
        start = time.perf_counter()
        model, variables = _model(program)
        _configure(model, self._tolerances, limits, stop, time.perf_counter() - start)
        _optimize(model)
        native = model.getStatus()
        if native == "userinterrupt":
            raise KeyboardInterrupt
        status = _STATUS.get(native, Status.UNKNOWN)
        x = None
        if model.getNSols() > 0 and status not in (Status.INFEASIBLE, Status.UNKNOWN):
            best = model.getBestSol()
            x = np.array([model.getSolVal(best, variable) for variable in variables], dtype=np.float64)
        dual_bound = None if status in _NO_BOUND else _finite(model, model.getDualbound())
        answer = Answer(status, x, dual_bound, None, f"SCIP status {native}")
        if stop is not None:
            answer = read_cutoff(answer, stop)
        seconds = time.perf_counter() - start
        return conclude(program, answer, solver=self.name, tolerances=self._tolerances, seconds=seconds, stop=stop)


def _model(program: Program) -> tuple[pyscipopt.Model, list[pyscipopt.Variable]]:
    """The program as a SCIP model. Coefficients go in one by one: five times faster than through expressions."""
    model = pyscipopt.Model()
    model.hideOutput()
    columns = zip(program.lower.tolist(), program.upper.tolist(), program.objective.tolist(), program.integer.tolist(), strict=True)
    variables = [model.addVar(lb=lo, ub=up, obj=c, vtype=_kind(lo, up, integer)) for lo, up, c, integer in columns]
    if program.constant:
        model.addObjoffset(program.constant)
    if program.priority is not None:
        for number in np.flatnonzero(program.integer).tolist():
            model.chgVarBranchPriority(variables[number], int(program.priority[number]))
    start, index, value = program.rows.indptr.tolist(), program.rows.indices.tolist(), program.rows.data.tolist()
    sides = zip(program.row_lower.tolist(), program.row_upper.tolist(), strict=True)
    for row, (lower, upper) in enumerate(sides):
        first, last = start[row], start[row + 1]
        if first == last:
            if lower > 0.0 or upper < 0.0:
                first_variable = variables[0]
                model.addCons(ExprCons(Expr({Term(first_variable): 0.0}), lhs=lower, rhs=upper))
            continue
        constraint = model.addCons(ExprCons(Expr({Term(variables[index[first]]): value[first]}), lhs=lower, rhs=upper))
        for k in range(first + 1, last):
            model.addCoefLinear(constraint, variables[index[k]], value[k])
    return model, variables


def _kind(lower: float, upper: float, integer: bool) -> str:
    if not integer:
        return "C"
    return "B" if lower >= 0.0 and upper <= 1.0 else "I"


def _configure(model: pyscipopt.Model, tolerances: Tolerances, limits: Limits, stop: StopRule | None, spent: float) -> None:
    """Fast settings, one thread, fixed seed, wall-clock limits, and the limits that end the solve at the sign.

    No variable is replaced by a combination of others: with such aggregations SCIP 10 calls convolutional networks with fixed inputs
    infeasible, or returns points that violate rows by thousands of tolerances; without them trees are as small. The objective limit makes
    SCIP prune and propagate as if it held a point just above the threshold: two to four times faster proofs.
    """
    model.setHeuristics(_FAST)
    model.setSeparating(_FAST)
    model.setPresolve(_FAST)
    model.setParam("presolving/donotaggr", True)
    model.setParam("presolving/donotmultaggr", True)
    model.setParam("numerics/feastol", tolerances.feasibility)
    model.setParam("numerics/dualfeastol", tolerances.dual)
    model.setParam("randomization/randomseedshift", 0)
    model.setParam("lp/threads", 1)
    model.setParam("misc/catchctrlc", False)
    model.setParam("timing/clocktype", 2)
    if limits.seconds is not None:
        model.setParam("limits/time", max(limits.seconds - spent, 0.0))
    if limits.memory_mb is not None:
        model.setParam("limits/memory", limits.memory_mb)
    if stop is not None:
        model.setParam("limits/primal", stop.threshold - stop.margin)
        model.setObjlimit(stop.threshold + stop.margin)
        model.setParam("limits/dual", float(np.nextafter(stop.threshold + stop.margin, np.inf)))


def _optimize(model: pyscipopt.Model) -> None:
    """Solve in a thread of its own, so that Ctrl-C reaches us: SCIP's own handler would write to standard output."""
    failed: list[Exception] = []

    def run() -> None:
        try:
            model.optimizeNogil()
        except Exception as error:  # noqa: BLE001 - handed to the caller below
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        model.interruptSolve()
        thread.join(timeout=5.0)
        raise
    if failed:
        raise SolverError(f"SCIP failed: {failed[0]}; try another solver (highs, pulp:CBC)") from failed[0]


def _finite(model: pyscipopt.Model, value: float) -> float | None:
    return None if abs(value) >= model.infinity() else float(value)
