"""Gurobi through gurobipy, for users who have it."""

from __future__ import annotations

import time
from typing import Any

import gurobipy
import numpy as np
from gurobipy import GRB

from bounds.errors import SolverError
from milp.program import Answer, Limits, Program, Solution, Status, StopRule, Tolerances, conclude

TOLERANCES = Tolerances(feasibility=1e-6, integrality=1e-6, dual=1e-6)
PRECISE = Tolerances(feasibility=1e-9, integrality=1e-9, dual=1e-9)
_STATUS = {
    GRB.OPTIMAL: Status.OPTIMAL,
    GRB.INFEASIBLE: Status.INFEASIBLE,
    GRB.UNBOUNDED: Status.UNBOUNDED,
    GRB.TIME_LIMIT: Status.TIME_LIMIT,
    GRB.MEM_LIMIT: Status.MEMORY_LIMIT,
    GRB.INTERRUPTED: Status.INTERRUPTED,
    GRB.USER_OBJ_LIMIT: Status.SIGN_DECIDED,
}


class Gurobi:
    """Gurobi as a `milp.program.Solver`: one thread, fixed seed, stopped at the sign by BestBdStop and BestObjStop.

    precise: solve to tighter tolerances (`PRECISE`), for optimal values that matter to more than six digits.
    """

    name = "gurobi"

    def __init__(self, *, precise: bool = False) -> None:
        self._tolerances = PRECISE if precise else TOLERANCES

    def solve(self, program: Program, limits: Limits = Limits(), stop: StopRule | None = None) -> Solution:  # noqa: B008
        """Minimise the program. Ctrl-C ends the solve and is passed on as KeyboardInterrupt."""
        start = time.perf_counter()
        try:
            with gurobipy.Env(params={"OutputFlag": 0}) as env, gurobipy.Model(env=env) as model:
                variables = _fill(model, program)
                _configure(model, self._tolerances, limits, stop, time.perf_counter() - start)
                model.optimize()
                answer = _answer(model, variables, program)
        except gurobipy.GurobiError as error:
            raise SolverError(f"Gurobi failed: {error}; check its licence, or use another solver (scip, highs)") from error
        if answer.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        seconds = time.perf_counter() - start
        return conclude(program, answer, solver=self.name, tolerances=self._tolerances, seconds=seconds, stop=stop)


def _fill(model: Any, program: Program) -> Any:
    kinds = np.where(program.integer, GRB.INTEGER, GRB.CONTINUOUS)
    variables = model.addMVar(program.columns, lb=program.lower, ub=program.upper, obj=program.objective, vtype=kinds)
    model.ObjCon = program.constant
    equal = program.row_lower == program.row_upper
    above = np.isfinite(program.row_lower) & ~equal
    below = np.isfinite(program.row_upper) & ~equal
    for mask, sense, side in ((equal, "=", program.row_lower), (above, ">", program.row_lower), (below, "<", program.row_upper)):
        if mask.any():
            model.addMConstr(program.rows[np.flatnonzero(mask)], variables, sense, side[mask])
    return variables


def _configure(model: Any, tolerances: Tolerances, limits: Limits, stop: StopRule | None, spent: float) -> None:
    parameters: dict[str, float] = {"Threads": 1, "Seed": 0, "MIPGap": 0.0, "MIPGapAbs": 1e-9}
    parameters |= {"FeasibilityTol": tolerances.feasibility, "IntFeasTol": tolerances.integrality, "OptimalityTol": tolerances.dual}
    if limits.seconds is not None:
        parameters["TimeLimit"] = max(limits.seconds - spent, 0.0)
    if limits.memory_mb is not None:
        parameters["MemLimit"] = limits.memory_mb / 1000.0
    if stop is not None:
        parameters["BestObjStop"] = stop.threshold - stop.margin
        parameters["BestBdStop"] = float(np.nextafter(stop.threshold + stop.margin, np.inf))
    for name, value in parameters.items():
        model.setParam(name, value)


def _answer(model: Any, variables: Any, program: Program) -> Answer:
    status = _STATUS.get(model.Status, Status.UNKNOWN)
    detail = f"Gurobi status {model.Status}"
    has_point = model.SolCount > 0 and status is not Status.UNKNOWN
    x = np.asarray(variables.X, dtype=np.float64) if has_point else None
    if status in (Status.INFEASIBLE, Status.UNBOUNDED, Status.UNKNOWN):
        return Answer(status, None, None, None, detail)
    if program.is_linear:
        return Answer(status, x, float(model.ObjVal) if status is Status.OPTIMAL else None, None, detail)
    bound = float(model.ObjBound)
    return Answer(status, x, bound if abs(bound) < GRB.INFINITY else None, None, detail)
