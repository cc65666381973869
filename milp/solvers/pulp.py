"""Every solver that PuLP knows, through one door, and export to LP files.

PuLP hands programs to other processes as text with twelve digits, reports no dual bounds and may return numbers without a solution: a
point is read only where PuLP says that there is one, and checked by `conclude`. Memory limits are not passed on.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pulp
import scipy.sparse as sparse

from bounds.errors import OutputError, SolverError, SolverMissingError
from milp.program import Answer, Array, Limits, Program, Solution, Status, StopRule, Tolerances, below_cutoff, conclude, read_cutoff

TOLERANCES = Tolerances(feasibility=1e-6, integrality=1e-5, dual=1e-6)
_TEXT_RESOLUTION = 1e-9
_CBC = ("PULP_CBC_CMD", "COIN_CMD")
"""CBC's preprocessing calls feasible networks with fixed inputs infeasible (2.10.3): it is switched off."""
_SHORT_NAMES = {
    "CBC": _CBC,
    "GLPK": ("GLPK_CMD",),
    "SCIP": ("SCIP_PY", "SCIP_CMD"),
    "HIGHS": ("HiGHS", "HiGHS_CMD"),
    "GUROBI": ("GUROBI", "GUROBI_CMD"),
    "CPLEX": ("CPLEX_PY", "CPLEX_CMD"),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PuLP 3.3 announces its next version's interface with a warning at every call; this file serves PuLP 2.8 to 3.x."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class Pulp:
    """One of PuLP's solvers as a `milp.program.Solver`. name: PuLP's own name or its short form (CBC, GLPK, ...)."""

    def __init__(self, name: str = "CBC") -> None:
        self.name = f"pulp:{name.upper()}"
        known = {solver.lower(): solver for solver in pulp.listSolvers()}
        wanted = _SHORT_NAMES.get(name.upper(), (name,))
        natives = [known[candidate.lower()] for candidate in wanted if candidate.lower() in known]
        if not natives:
            raise SolverError(f"PuLP has no solver {name!r}; it knows {', '.join(known.values())}")
        with _quiet():
            found = [native for native in natives if pulp.getSolver(native, msg=False).available()]
        if not found:
            raise SolverMissingError(
                f"PuLP cannot find the solver {natives[0]}: install it so that it is on the PATH, or use pulp:CBC (pip install pulp)"
            )
        self._native = found[0]

    def solve(self, program: Program, limits: Limits = Limits(), stop: StopRule | None = None) -> Solution:  # noqa: B008
        """Minimise the program. With a stop rule points with objective > threshold + margin are cut off."""
        start = time.perf_counter()
        question = program if stop is None else below_cutoff(program, stop)
        with _quiet():
            problem, variables = _problem(question)
            try:
                problem.solve(self._solver(limits, time.perf_counter() - start))
            except pulp.PulpSolverError as error:
                raise SolverError(f"{self.name} failed: {error}; try another solver (scip, highs)") from error
            answer = _answer(problem, variables, question, limits)
        if stop is not None:
            answer = read_cutoff(answer, stop)
        seconds = time.perf_counter() - start
        return conclude(program, answer, solver=self.name, tolerances=TOLERANCES, seconds=seconds, stop=stop)

    def _solver(self, limits: Limits, spent: float) -> pulp.LpSolver:
        options: dict[str, object] = {"msg": False}
        accepted = inspect.signature(type(pulp.getSolver(self._native, msg=False)).__init__).parameters
        if limits.seconds is not None:
            options["timeLimit"] = max(limits.seconds - spent, 0.01)
        options |= {key: value for key, value in {"threads": 1, "gapRel": 0.0}.items() if key in accepted}
        if self._native in _CBC:
            options["options"] = ["preprocess off"]
        return pulp.getSolver(self._native, **options)


def to_pulp(program: Program) -> pulp.LpProblem:
    """The program as a PuLP problem, its variables named x0, x1, ...; a row with two different finite sides becomes two constraints."""
    with _quiet():
        return _problem(program)[0]


def to_lp_file(program: Program, path: str | Path) -> None:
    """Write the program in LP format (twelve digits), for reading by people and other solvers.

    PuLP leaves the objective's constant out: it becomes the cost of one more variable, fixed to 1.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with _quiet():
            _problem(_constant_as_variable(program))[0].writeLP(str(path))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def _constant_as_variable(program: Program) -> Program:
    if not program.constant:
        return program
    return Program(
        np.append(program.objective, program.constant),
        np.append(program.lower, 1.0),
        np.append(program.upper, 1.0),
        np.append(program.integer, False),
        sparse.csr_matrix(
            (program.rows.data, program.rows.indices, program.rows.indptr), shape=(program.rows.shape[0], program.columns + 1)
        ),
        program.row_lower,
        program.row_upper,
    )


def _problem(program: Program) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    problem = pulp.LpProblem("program", pulp.LpMinimize)
    create = getattr(problem, "add_variable", pulp.LpVariable)
    data = zip(program.lower.tolist(), program.upper.tolist(), program.integer.tolist(), strict=True)
    variables = [
        create(f"x{j}", _side(lower), _side(upper), pulp.LpInteger if integer else pulp.LpContinuous)
        for j, (lower, upper, integer) in enumerate(data)
    ]
    terms = [(variables[j], c) for j, c in enumerate(program.objective.tolist()) if c]
    problem.setObjective(pulp.LpAffineExpression(terms, constant=program.constant))
    start, index, value = program.rows.indptr.tolist(), program.rows.indices.tolist(), program.rows.data.tolist()
    for row, (lower, upper) in enumerate(zip(program.row_lower.tolist(), program.row_upper.tolist(), strict=True)):
        expression = pulp.LpAffineExpression([(variables[index[k]], value[k]) for k in range(start[row], start[row + 1])])
        for suffix, sense, side in _sides(lower, upper):
            problem.addConstraint(pulp.LpConstraint(expression, sense, f"r{row}{suffix}", side))
    return problem, variables


def _side(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sides(lower: float, upper: float) -> list[tuple[str, int, float]]:
    """Constraints that say lower <= row <= upper: name suffix, sense, right-hand side.

    Sides closer than the text's twelve digits become one equation: written as two they may cross, and CBC then calls the program infeasible.
    """
    if math.isfinite(upper - lower) and upper - lower <= _TEXT_RESOLUTION * max(1.0, abs(lower)):
        return [("", pulp.LpConstraintEQ, lower + (upper - lower) / 2)]
    sides = [("l", pulp.LpConstraintGE, lower), ("u", pulp.LpConstraintLE, upper)]
    return [side for side in sides if math.isfinite(side[2])]


def _answer(problem: pulp.LpProblem, variables: list[pulp.LpVariable], program: Program, limits: Limits) -> Answer:
    """Read PuLP's two status fields; the point only where the second says that there is one."""
    detail = f"PuLP status {pulp.LpStatus.get(problem.status)}, solution status {pulp.LpSolution.get(problem.sol_status)}"
    if problem.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        values = [variable.value() for variable in variables]
        # A variable that occurs in no row and not in the objective never reaches the solver: any value in its bounds will do.
        fallback = np.clip(0.0, program.lower, program.upper)
        x = np.array([f if v is None else v for v, f in zip(values, fallback, strict=True)], dtype=np.float64)
        if problem.sol_status == pulp.LpSolutionOptimal:
            return Answer(Status.OPTIMAL, x, program.value(x), _duals(problem, program), detail)
        return Answer(Status.TIME_LIMIT, x, None, None, detail)
    if problem.status == pulp.LpStatusInfeasible:
        return Answer(Status.INFEASIBLE, detail=detail)
    if problem.status == pulp.LpStatusUnbounded:
        return Answer(Status.UNBOUNDED, detail=detail)
    stopped = problem.status == pulp.LpStatusNotSolved and limits.seconds is not None
    return Answer(Status.TIME_LIMIT if stopped else Status.UNKNOWN, detail=detail)


def _duals(problem: pulp.LpProblem, program: Program) -> Array | None:
    """Row duals of a linear program, the two constraints of a two-sided row added up; None where the solver gives none."""
    if not program.is_linear:
        return None
    duals = np.zeros(program.rows.shape[0])
    for name, constraint in problem.constraints.items():
        if constraint.pi is None:
            return None
        duals[int(name.strip("rlu"))] += constraint.pi
    return duals
