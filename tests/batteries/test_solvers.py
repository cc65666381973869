"""Every installed solver answers the same programs alike, and never claims what does not hold."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from fractions import Fraction
from pathlib import Path

import highspy
import numpy as np
import pytest
import scipy.sparse as sparse
from scipy.optimize import linprog

from bounds.errors import OutputError, SolverError, SolverMissingError
from milp.certify import safe_dual_bound
from milp.program import Answer, Limits, Program, Status, StopRule, Tolerances, conclude
from milp.solvers import SOLVERS, available, default_solver, get_solver, lp_session

NAMES = ("scip", "highs", "gurobi", "pulp:CBC", "pulp:GLPK", "pulp:SCIP", "pulp:HiGHS")


@pytest.fixture(params=NAMES)
def solver(request: pytest.FixtureRequest):
    try:
        return get_solver(request.param)
    except SolverMissingError as error:
        pytest.skip(str(error))


def random_program(seed: int, binaries: int = 4, continuous: int = 5, rows: int = 6) -> Program:
    rng = np.random.default_rng(seed)
    n = binaries + continuous
    matrix = np.where(rng.random((rows, n)) < 0.6, rng.normal(size=(rows, n)), 0.0)
    lower, upper = np.r_[np.zeros(binaries), rng.uniform(-2, 0, continuous)], np.r_[np.ones(binaries), rng.uniform(0, 2, continuous)]
    inside = np.r_[rng.integers(0, 2, binaries), rng.uniform(lower[binaries:], upper[binaries:])]
    activity = matrix @ inside
    row_lower = np.where(rng.random(rows) < 0.5, activity - rng.uniform(0, 1, rows), -np.inf)
    row_upper = np.where(rng.random(rows) < 0.5, activity + rng.uniform(0, 1, rows), np.inf)
    row_lower[0] = row_upper[0] = activity[0]
    integer = np.arange(n) < binaries
    return Program(rng.normal(size=n), lower, upper, integer, sparse.csr_matrix(matrix), row_lower, row_upper, constant=rng.normal())


def linear_optimum(program: Program, lower: np.ndarray, upper: np.ndarray) -> float:
    matrix = program.rows.toarray()
    has_upper, has_lower = np.isfinite(program.row_upper), np.isfinite(program.row_lower)
    stacked = np.vstack([matrix[has_upper], -matrix[has_lower]])
    sides = np.r_[program.row_upper[has_upper], -program.row_lower[has_lower]]
    result = linprog(program.objective, A_ub=stacked, b_ub=sides, bounds=np.c_[lower, upper], method="highs-ipm")
    return result.fun + program.constant if result.status == 0 else np.inf


def enumerated_optimum(program: Program) -> float:
    """The oracle: a linear program for every assignment of the binaries."""
    which = np.flatnonzero(program.integer)
    best = np.inf
    for values in itertools.product([0.0, 1.0], repeat=len(which)):
        lower, upper = program.lower.copy(), program.upper.copy()
        lower[which] = upper[which] = values
        best = min(best, linear_optimum(program, lower, upper))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_same_optimum_as_enumeration(solver, seed: int) -> None:
    program = random_program(seed)
    expected = enumerated_optimum(program)
    solution = solver.solve(program)
    assert solution.status is Status.OPTIMAL
    assert solution.objective == pytest.approx(expected, abs=1e-5)
    assert solution.dual_bound == pytest.approx(expected, abs=1e-5)
    assert program.violation(solution.x, solution.tolerances) <= 10
    again = solver.solve(program)
    assert np.array_equal(again.x, solution.x), "solving is deterministic"


@pytest.mark.parametrize("seed", range(3))
def test_linear_programs(solver, seed: int) -> None:
    program = random_program(seed).relaxed()
    expected = linear_optimum(program, program.lower, program.upper)
    solution = solver.solve(program)
    assert solution.status is Status.OPTIMAL
    assert solution.objective == pytest.approx(expected, abs=1e-6)
    if solution.row_duals is not None:
        bound = safe_dual_bound(program, solution.row_duals)
        assert expected - 1e-6 <= bound <= expected + 1e-9


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("offset", [-0.7, -0.1, 0.1, 0.7])
def test_stops_at_the_right_sign(solver, seed: int, offset: float) -> None:
    program = random_program(seed)
    stop = StopRule(enumerated_optimum(program) + offset, margin=1e-4)
    solution = solver.solve(program, stop=stop)
    assert solution.status in (Status.OPTIMAL, Status.SIGN_DECIDED)
    assert stop.above(solution.dual_bound) == (offset < 0)
    assert stop.below(solution.objective) == (offset > 0)


def test_infeasible(solver) -> None:
    n = 3
    rows = sparse.csr_matrix(np.array([[1.0, 1.0, 1.0]]))
    program = Program(np.ones(n), np.zeros(n), np.ones(n), np.ones(n, dtype=bool), rows, np.array([1.4]), np.array([1.6]))
    solution = solver.solve(program)
    assert solution.status is Status.INFEASIBLE
    assert solution.x is None
    assert solution.objective is None
    assert solution.dual_bound is None


def test_rows_as_narrow_as_rounding_are_feasible(solver) -> None:
    """Rows of encoded networks are equations up to rounding slack."""
    rng = np.random.default_rng(0)
    n, m = 12, 6
    matrix, inside = rng.normal(size=(m, n)) / 3, rng.uniform(0.2, 0.8, n)
    inside[:3] = 1.0
    activity = matrix @ inside
    program = Program(
        rng.normal(size=n), np.zeros(n), np.ones(n), np.arange(n) < 3, sparse.csr_matrix(matrix), activity - 3e-15, activity + 3e-15
    )
    solution = solver.solve(program)
    assert solution.status is Status.OPTIMAL
    assert solution.objective == pytest.approx(enumerated_optimum(program), abs=1e-5)


def hard_program() -> Program:
    """A market-split problem: no solver finishes it in a moment."""
    rng = np.random.default_rng(0)
    rows, n = 4, 34
    matrix = rng.integers(0, 100, (rows, n)).astype(float)
    sides = np.floor(matrix.sum(axis=1) / 2)
    slack = np.hstack([matrix, np.eye(rows), -np.eye(rows)])
    size = n + 2 * rows
    upper = np.r_[np.ones(n), np.full(2 * rows, 1e4)]
    cost = np.r_[np.zeros(n), np.ones(2 * rows)]
    return Program(cost, np.zeros(size), upper, np.arange(size) < n, sparse.csr_matrix(slack), sides, sides)


def test_time_limit(solver) -> None:
    program = hard_program()
    solution = solver.solve(program, Limits(seconds=0.5))
    assert solution.status is Status.TIME_LIMIT
    assert solution.seconds < 5.0
    if solution.x is not None:
        assert program.violation(solution.x, solution.tolerances) <= 10
        assert solution.objective >= 0.0
    assert solution.dual_bound is None or solution.dual_bound <= 1.0 + 1e-6


@pytest.mark.parametrize("name", ["scip", "highs"])
def test_memory_limit(name: str) -> None:
    solution = get_solver(name).solve(hard_program(), Limits(seconds=20.0, memory_mb=1.0))
    assert solution.status is Status.MEMORY_LIMIT


@pytest.mark.parametrize("flaw", ["row", "bound", "integrality", "nan"])
def test_a_wrong_optimal_is_rejected(flaw: str) -> None:
    rows = sparse.csr_matrix(np.array([[1.0, 1.0]]))
    program = Program(np.array([1.0, 1.0]), np.zeros(2), np.array([1.0, 5.0]), np.array([True, False]), rows, np.ones(1), np.full(1, 2.0))
    x = {"row": [0.0, 0.5], "bound": [-1.0, 2.0], "integrality": [0.5, 0.5], "nan": [np.nan, 1.0]}[flaw]
    claim = Answer(Status.OPTIMAL, np.array(x), dual_bound=0.5)
    solution = conclude(program, claim, solver="liar", tolerances=Tolerances(), seconds=0.0, stop=StopRule(0.0))
    assert solution.status is Status.UNKNOWN
    assert solution.x is None
    assert solution.dual_bound is None
    assert "liar" in solution.detail


def test_contradictions_are_rejected() -> None:
    program = random_program(0)
    honest = get_solver("highs").solve(program)
    too_high = Answer(Status.OPTIMAL, honest.x, dual_bound=honest.objective + 1.0)
    solution = conclude(program, too_high, solver="liar", tolerances=Tolerances(), seconds=0.0)
    assert (solution.status, solution.dual_bound) == (Status.UNKNOWN, None)
    no_point = conclude(program, Answer(Status.OPTIMAL), solver="liar", tolerances=Tolerances(), seconds=0.0)
    assert no_point.status is Status.UNKNOWN
    undecided = Answer(Status.SIGN_DECIDED, honest.x, dual_bound=honest.objective - 1.0)
    stop = StopRule(honest.objective - 0.5)
    assert conclude(program, undecided, solver="liar", tolerances=Tolerances(), seconds=0.0, stop=stop).status is Status.UNKNOWN


def exact_dual_bound(program: Program, y: np.ndarray) -> Fraction:
    """The formula of `milp.certify` in rational arithmetic."""
    matrix = program.rows.toarray()
    total = Fraction(program.constant)
    for i, dual in enumerate(y):
        if dual:
            total += Fraction(dual) * Fraction(program.row_lower[i] if dual > 0 else program.row_upper[i])
    for j in range(program.columns):
        cost = Fraction(program.objective[j]) - sum(Fraction(a) * Fraction(d) for a, d in zip(matrix[:, j], y, strict=True))
        total += min(cost * Fraction(program.lower[j]), cost * Fraction(program.upper[j]))
    return total


@pytest.mark.parametrize("seed", range(6))
def test_safe_dual_bound_against_rationals(seed: int) -> None:
    program = random_program(seed)
    rng = np.random.default_rng(seed)
    found = get_solver("highs").solve(program.relaxed()).row_duals
    for y in (found, found + rng.normal(size=found.shape), rng.normal(size=found.shape) * 1e8, np.zeros_like(found)):
        usable = np.where((y > 0) & np.isneginf(program.row_lower) | (y < 0) & np.isposinf(program.row_upper), 0.0, y)
        exact = exact_dual_bound(program, usable)
        bound = safe_dual_bound(program, y)
        assert Fraction(bound) <= exact
        assert float(exact) - bound <= 1e-12 * (1.0 + np.abs(y).max() * 100)
        assert bound <= enumerated_optimum(program) + 1e-7


def test_safe_dual_bound_with_infinite_sides() -> None:
    rows = sparse.csr_matrix(np.array([[1.0, 1.0]]))
    program = Program(
        np.ones(2), np.array([0.0, -np.inf]), np.full(2, np.inf), np.zeros(2, dtype=bool), rows, np.ones(1), np.full(1, np.inf)
    )
    assert safe_dual_bound(program, np.array([0.5])) == -np.inf
    assert safe_dual_bound(program, np.array([-3.0])) == -np.inf
    assert safe_dual_bound(program, np.array([np.nan])) == -np.inf


def test_session_is_warm_and_right() -> None:
    program = random_program(7, binaries=0, continuous=12, rows=8)
    session = lp_session(program)
    rng = np.random.default_rng(0)
    for _ in range(5):
        objective = rng.normal(size=program.columns)
        expected = linear_optimum(program.with_objective(objective), program.lower, program.upper)
        solution = session.minimise(objective)
        assert solution.objective == pytest.approx(expected, abs=1e-6)
        assert expected - 1e-6 <= solution.dual_bound <= expected + 1e-9
    columns = np.array([0, 3])
    inside = session.minimise(program.objective).x[columns]
    session.set_bounds(columns, inside, inside)
    fixed = session.minimise(-program.objective)
    assert np.allclose(fixed.x[columns], inside, atol=1e-6)
    session.set_row_bounds(np.array([1]), np.array([-1e3]), np.array([1e3]))
    assert session.program.row_upper[1] == 1e3
    assert session.minimise(program.objective, seconds=0.0).status in (Status.TIME_LIMIT, Status.OPTIMAL)


def test_names() -> None:
    with pytest.raises(SolverError, match="scip"):
        get_solver("cplex-42")
    with pytest.raises(SolverError, match="knows"):
        get_solver("pulp:nonsense")
    assert set(available()) <= set(SOLVERS)
    assert default_solver().name == available()[0]


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SolverMissingError, match="pip install gurobipy"):
        get_solver("gurobi")
    with pytest.raises(SolverMissingError, match="pip install"):
        default_solver()
    with pytest.raises(SolverMissingError, match="pip install highspy"):
        lp_session(random_program(0))


def test_lp_file(tmp_path: Path) -> None:
    from milp.solvers.pulp import to_lp_file

    program = random_program(0)
    to_lp_file(program, tmp_path / "program.lp")
    model = highspy.Highs()
    model.silent()
    model.readModel(str(tmp_path / "program.lp"))
    model.run()
    assert model.getObjectiveValue() == pytest.approx(enumerated_optimum(program), abs=1e-6)
    with pytest.raises(OutputError, match="nowhere"):
        to_lp_file(program, tmp_path / "nowhere" / "program.lp")


@pytest.mark.parametrize("name", ["scip", "highs"])
def test_interrupt_is_passed_on(name: str) -> None:
    def press() -> None:
        time.sleep(0.4)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    start = time.perf_counter()
    solver, program = get_solver(name), hard_program()
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        solver.solve(program, Limits(seconds=20.0))
    thread.join()
    assert time.perf_counter() - start < 6.0
