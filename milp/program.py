"""Mixed-integer linear programs and their answers: plain NumPy and SciPy sparse arrays, no solver in sight.

    minimise  c x + constant   subject to   row_lower <= A x <= row_upper,   lower <= x <= upper,   x_j integer where integer_j

A solver is trusted as little as possible: `conclude` checks every point it returns against the program, recomputes the objective, and
turns whatever does not fit together into `Status.UNKNOWN`.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import scipy.sparse as sparse

from bounds.errors import NumericsError, ShapeError

Array = np.ndarray


class Status(enum.Enum):
    """How a solve ended; the value is the message for people."""

    OPTIMAL = "the optimum was found"
    SIGN_DECIDED = "stopped as soon as the sign was decided"
    INFEASIBLE = "the program has no feasible point"
    UNBOUNDED = "the objective is unbounded"
    TIME_LIMIT = "the time limit was reached"
    MEMORY_LIMIT = "the memory limit was reached"
    INTERRUPTED = "the solve was interrupted"
    UNKNOWN = "the solver's answer was not understood or did not hold up"


@dataclass(frozen=True)
class Tolerances:
    """Within what a solver calls a point feasible, a value integer and a bound proven (absolute, relative for values above 1)."""

    feasibility: float = 1e-6
    integrality: float = 1e-6
    dual: float = 1e-7

    def __str__(self) -> str:
        return f"feasibility {self.feasibility:g}, integrality {self.integrality:g}, dual {self.dual:g}"


@dataclass(frozen=True)
class Limits:
    """Wall-clock seconds and megabytes one solve may take; None for no limit."""

    seconds: float | None = None
    memory_mb: float | None = None


@dataclass(frozen=True)
class StopRule:
    """The caller needs only the sign of (optimum - threshold).

    A solver may stop as soon as its dual bound exceeds threshold + margin or it holds a point with objective <= threshold - margin.
    """

    threshold: float = 0.0
    margin: float = 0.0

    def above(self, dual_bound: float | None) -> bool:
        """Whether a dual bound settles that the optimum lies above the threshold."""
        return dual_bound is not None and dual_bound > self.threshold + self.margin

    def below(self, objective: float | None) -> bool:
        """Whether a feasible objective settles that the optimum does not lie above the threshold."""
        return objective is not None and objective <= self.threshold - self.margin


@dataclass(frozen=True, eq=False)
class Program:
    """minimise objective @ x + constant. Shapes: n variables, m rows; `rows` is a csr matrix (m, n); infinite bounds are +-inf.

    priority: (n,) whole numbers, a hint: among integer variables those with the highest are to be branched on first; None for no preference.

    Raises:
        ShapeError: arrays that do not fit together.
        NumericsError: NaN anywhere, an infinite coefficient, or an infinite bound on an integer variable.
    """

    objective: Array
    lower: Array
    upper: Array
    integer: Array
    rows: sparse.csr_matrix
    row_lower: Array
    row_upper: Array
    constant: float = 0.0
    priority: Array | None = None

    def __post_init__(self) -> None:
        n, m = self.objective.shape[0], self.rows.shape[0]
        found = (self.lower.shape, self.upper.shape, self.integer.shape, self.rows.shape, self.row_lower.shape, self.row_upper.shape)
        if found != ((n,), (n,), (n,), (m, n), (m,), (m,)):
            raise ShapeError(f"a program with {n} variables and {m} rows cannot have arrays of shapes {found}")
        if self.priority is not None and self.priority.shape != (n,):
            raise ShapeError(f"a program with {n} variables needs as many priorities, got {self.priority.shape}")
        if not (np.isfinite(self.objective).all() and np.isfinite(self.rows.data).all() and math.isfinite(self.constant)):
            raise NumericsError("a coefficient of the program is NaN or infinite; check the network's weights and the bounds")
        sides = (self.lower, self.upper, self.row_lower, self.row_upper)
        if (
            any(np.isnan(side).any() for side in sides)
            or not np.isfinite(np.r_[self.lower, self.upper][np.r_[self.integer, self.integer]]).all()
        ):
            raise NumericsError("a bound of the program is NaN, or infinite for an integer variable")

    @property
    def columns(self) -> int:
        """Number of variables."""
        return int(self.objective.shape[0])

    @property
    def is_linear(self) -> bool:
        """Whether no variable has to be integer."""
        return not self.integer.any()

    def value(self, x: Array) -> float:
        """The objective at x, constant included."""
        return math.fsum(self.objective * x) + self.constant

    def violation(self, x: Array, tolerances: Tolerances) -> float:
        """By how many times its tolerance x violates a row, a bound or integrality at worst (<= 1: feasible). NaN counts as infinite."""
        if x.shape != (self.columns,) or not np.isfinite(x).all():
            return math.inf
        activity = self.rows @ x
        excess = [
            _excess(activity, self.row_lower, self.row_upper, tolerances.feasibility),
            _excess(x, self.lower, self.upper, tolerances.feasibility),
            np.abs(x - np.round(x))[self.integer] / tolerances.integrality,
        ]
        return float(np.concatenate(excess).max(initial=0.0))

    def relaxed(self) -> Program:
        """The linear relaxation: the same program without integrality."""
        return replace(self, integer=np.zeros_like(self.integer))

    def with_objective(self, objective: Array, constant: float = 0.0) -> Program:
        """The same feasible set under another objective."""
        return replace(self, objective=objective, constant=constant)

    def with_rows(self, rows: sparse.csr_matrix, row_lower: Array, row_upper: Array) -> Program:
        """The program with rows appended."""
        return replace(
            self,
            rows=sparse.vstack([self.rows, rows], format="csr"),
            row_lower=np.concatenate([self.row_lower, row_lower]),
            row_upper=np.concatenate([self.row_upper, row_upper]),
        )


def _excess(value: Array, lower: Array, upper: Array, tolerance: float) -> Array:
    """Violation of lower <= value <= upper in units of the tolerance, relative for sides beyond 1."""
    scale_lower = tolerance * np.maximum(1.0, np.where(np.isfinite(lower), np.abs(lower), 1.0))
    scale_upper = tolerance * np.maximum(1.0, np.where(np.isfinite(upper), np.abs(upper), 1.0))
    return np.maximum(np.maximum((lower - value) / scale_lower, (value - upper) / scale_upper), 0.0)


def below_cutoff(program: Program, stop: StopRule) -> Program:
    """The program with the row objective <= threshold + margin: a search for the sign alone, which such a row makes much shorter."""
    limit = np.array([math.nextafter(stop.threshold + stop.margin - program.constant, math.inf)])
    return program.with_rows(sparse.csr_matrix(program.objective), np.array([-np.inf]), limit)


def read_cutoff(answer: Answer, stop: StopRule) -> Answer:
    """A solver's answer about the points below the cutoff as one about the program: where there are none, the cutoff is a dual bound."""
    cutoff = math.nextafter(stop.threshold + stop.margin, math.inf)
    if answer.status is Status.INFEASIBLE:
        return Answer(Status.SIGN_DECIDED, dual_bound=cutoff, detail=answer.detail)
    bound = answer.dual_bound
    return replace(answer, dual_bound=None if bound is None else min(bound, cutoff), row_duals=None)


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found. `x`, `objective` and `row_duals` are None where it holds no point; `dual_bound` is None where nothing is proven.

    dual_bound: a lower bound on the optimum, as good as the solver's `tolerances` (rigorous only where it was recomputed by
    `milp.certify`). `detail` says what was wrong with an answer that became UNKNOWN.
    """

    status: Status
    x: Array | None
    objective: float | None
    dual_bound: float | None
    row_duals: Array | None
    seconds: float
    solver: str
    tolerances: Tolerances
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Answer:
    """A solver's own words, translated but not yet believed."""

    status: Status
    x: Array | None = None
    dual_bound: float | None = None
    row_duals: Array | None = None
    detail: str = ""


class Solver(Protocol):
    """A mixed-integer solver. Solving is deterministic and uses one thread."""

    name: str

    def solve(self, program: Program, limits: Limits = ..., stop: StopRule | None = None) -> Solution:
        """Minimise the program within the limits; KeyboardInterrupt is passed on."""


class LpSession(Protocol):
    """One live linear program whose objective and bounds change between warm-started solves."""

    def minimise(self, objective: Array, constant: float = 0.0, seconds: float | None = None) -> Solution:
        """The minimum of objective @ x + constant, with row duals and a dual bound recomputed from them."""

    def set_bounds(self, columns: Array, lower: Array, upper: Array) -> None:
        """Replace the bounds of some variables."""

    def set_row_bounds(self, rows: Array, lower: Array, upper: Array) -> None:
        """Replace the sides of some rows."""

    def add_rows(self, rows: sparse.csr_matrix, row_lower: Array, row_upper: Array) -> None:
        """Append rows."""


CHECK_FACTOR = 10.0
"""A point may miss its tolerances by this factor (solvers measure after scaling and presolve) before it is rejected."""
_FINEST_CHECK = 1e-7
"""Points are not held to finer tolerances: a solver asked for more digits may miss them in a few rows, and its bound is still good."""


def conclude(
    program: Program, answer: Answer, *, solver: str, tolerances: Tolerances, seconds: float, stop: StopRule | None = None
) -> Solution:
    """A solver's answer after our own checks.

    The point must satisfy rows, bounds and integrality (up to CHECK_FACTOR tolerances), the objective is recomputed from it, and a dual
    bound above a feasible objective discredits the whole answer. OPTIMAL and SIGN_DECIDED survive only with the evidence they need.
    """
    status, x, detail = answer.status, answer.x, answer.detail
    dual_bound = answer.dual_bound if answer.dual_bound is not None and math.isfinite(answer.dual_bound) else None
    checked = replace(
        tolerances, feasibility=max(tolerances.feasibility, _FINEST_CHECK), integrality=max(tolerances.integrality, _FINEST_CHECK)
    )
    violation = 0.0 if x is None else program.violation(x, checked)
    if violation > CHECK_FACTOR:
        x, status, detail = None, Status.UNKNOWN, f"{solver} returned a point that violates the program by {violation:.3g} tolerances"
        dual_bound = None
    objective = None if x is None else program.value(x)
    slack = CHECK_FACTOR**2 * checked.feasibility * max(1.0, abs(objective or 0.0))
    if objective is not None and dual_bound is not None and dual_bound > objective + slack:
        status, detail = Status.UNKNOWN, f"{solver} claims a dual bound {dual_bound!r} above the objective {objective!r} of its own point"
        dual_bound = None
    decided = stop is not None and (stop.above(dual_bound) or stop.below(objective))
    if status is Status.OPTIMAL and objective is None:
        status, detail = Status.UNKNOWN, f"{solver} says optimal but returned no point"
    if status is Status.SIGN_DECIDED and not decided:
        status, detail = Status.UNKNOWN, detail or f"{solver} stopped at the sign, but neither its bound nor its point decides it"
    if decided and status in (Status.TIME_LIMIT, Status.MEMORY_LIMIT, Status.INTERRUPTED):
        status = Status.SIGN_DECIDED
    duals = answer.row_duals if x is not None or answer.row_duals is not None else None
    return Solution(status, x, objective, dual_bound, duals, seconds, solver, tolerances, detail)
