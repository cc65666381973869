"""Solvers: a table of rows that are imported when asked for. `import milp` loads none of them.

A new solver is one file in this folder, with a class that follows `milp.program.Solver`, and one row in SOLVERS.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from bounds.errors import SolverError, SolverMissingError
from milp.program import LpSession, Program, Solver


@dataclass(frozen=True)
class Row:
    """Where a solver lives: our module, the class in it, the package it needs and how to get that."""

    module: str
    factory: str
    package: str
    pip: str

    def installed(self) -> bool:
        """Whether the package can be found; nothing is imported."""
        return importlib.util.find_spec(self.package) is not None


SOLVERS: dict[str, Row] = {
    "scip": Row("milp.solvers.scip", "Scip", "pyscipopt", "pip install pyscipopt"),
    "highs": Row("milp.solvers.highs", "Highs", "highspy", "pip install highspy"),
    "gurobi": Row("milp.solvers.gurobi", "Gurobi", "gurobipy", "pip install gurobipy"),
    "pulp": Row("milp.solvers.pulp", "Pulp", "pulp", "pip install pulp"),
}
DEFAULT_ORDER = ("scip", "highs", "pulp")


def get_solver(name: str, *, precise: bool = False) -> Solver:
    """The solver of that name: "scip", "highs", "gurobi", or any solver of PuLP as "pulp:NAME" ("pulp" alone is its bundled CBC).

    precise: with tolerances of 1e-9 instead of 1e-6, for optimal values that matter. PuLP's solvers have no such setting and ignore it.

    Raises:
        SolverError: no such solver.
        SolverMissingError: its package is not installed; the message says the pip line.
    """
    key, _, argument = name.lower().partition(":")
    row = SOLVERS.get(key)
    if row is None or (argument and key != "pulp"):
        known = ", ".join(SOLVERS)
        raise SolverError(f"there is no solver {name!r}; choose one of {known}, or pulp:NAME for a solver that PuLP knows")
    if not row.installed():
        raise SolverMissingError(f"solver {name!r} needs the package {row.package!r}, which is not installed: {row.pip}")
    factory = getattr(importlib.import_module(row.module), row.factory)
    options = {"precise": True} if precise and key != "pulp" else {}
    solver: Solver = factory(argument.upper()) if argument else factory(**options)
    return solver


def available() -> list[str]:
    """Names of the solvers whose packages are installed, the default first. Imports none of them."""
    return [name for name in (*DEFAULT_ORDER, *(key for key in SOLVERS if key not in DEFAULT_ORDER)) if SOLVERS[name].installed()]


def default_solver(*, precise: bool = False) -> Solver:
    """SCIP if installed, else HiGHS, else PuLP's CBC. precise: see `get_solver`.

    Raises:
        SolverMissingError: none of them is installed.
    """
    for name in DEFAULT_ORDER:
        if SOLVERS[name].installed():
            return get_solver(name, precise=precise)
    raise SolverMissingError(f"no solver is installed: {SOLVERS['scip'].pip} (or {SOLVERS['highs'].pip})")


def lp_session(program: Program) -> LpSession:
    """A live linear program (integrality is dropped) for warm re-solves.

    Raises:
        SolverMissingError: highspy is not installed.
    """
    row = SOLVERS["highs"]
    if not row.installed():
        raise SolverMissingError(f"linear programs are solved by HiGHS, which is not installed: {row.pip}")
    session: LpSession = importlib.import_module(row.module).HighsSession(program)
    return session
