"""Safe dual bounds: what the duals of a linear program prove, recomputed with outward rounding.

For min c x subject to L <= A x <= U, l <= x <= u, and for *any* y,

    c x  =  y (A x) + (c - A^T y) x  >=  sum_i (y_i > 0 ? y_i L_i : y_i U_i)  +  sum_j min_{l_j <= x_j <= u_j} (c - A^T y)_j x_j.

So a solver's duals are only a hint: whatever they are, the bound computed here is true (a bad hint gives a weak bound). Dropping
integrality keeps it true for mixed-integer programs.

Reference: A. Neumaier, O. Shcherbina, Safe bounds in linear and mixed-integer linear programming, Mathematical Programming 99 (2004).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from bounds import rounding
from milp.program import Array, Program

_DTYPE = torch.float64


def safe_dual_bound(program: Program, row_duals: Array, objective: Array | None = None, constant: float | None = None) -> float:
    """A number <= the program's optimum (its relaxation's too), from any row duals y of shape (m,).

    `objective` and `constant` replace the program's own. Entries of y that are NaN, infinite or meet an infinite side count as 0; -inf
    where a non-zero reduced cost meets an infinite bound. Property: sound. Numerics: outward rounded in float64.
    """
    c = program.objective if objective is None else objective
    offset = program.constant if constant is None else constant
    y = np.where(np.isfinite(row_duals), row_duals, 0.0)
    y = np.where((y > 0) & np.isneginf(program.row_lower) | (y < 0) & np.isposinf(program.row_upper), 0.0, y)
    sides = np.where(y > 0, program.row_lower, program.row_upper)
    rows = _products_below(y, np.where(y == 0, 0.0, sides))
    lower, upper = reduced_costs(program, y, c)
    columns = _minimum_over_box(lower, upper, program.lower, program.upper)
    return _sum_below(np.concatenate([rows, columns, [offset]]))


def reduced_costs(program: Program, y: Array, c: Array) -> tuple[Array, Array]:
    """Enclosures of c - A^T y, element-wise: lower and upper, each (n,). One sum per column of A."""
    matrix = program.rows
    value = c - matrix.T @ y
    magnitude = np.abs(c) + abs(matrix).T @ np.abs(y)
    terms = int(np.bincount(matrix.indices, minlength=1).max(initial=0)) + 2
    error = 2 * rounding.gamma(terms, _DTYPE) * magnitude + rounding.underflow(terms, _DTYPE)
    exact = magnitude == 0
    lower = np.where(exact, value, np.nextafter(value - error, -np.inf))
    return lower, np.where(exact, value, np.nextafter(value + error, np.inf))


def _minimum_over_box(slope_lower: Array, slope_upper: Array, lower: Array, upper: Array) -> Array:
    """Lower bounds of min r x over r in [slope_lower, slope_upper], x in [lower, upper]: the least of the four corners."""
    corners = [_products_below(r, x) for r in (slope_lower, slope_upper) for x in (lower, upper)]
    return np.minimum.reduce(corners)


def _products_below(a: Array, b: Array) -> Array:
    """Element-wise lower bounds of a b, with 0 * inf = 0 (a bound that is multiplied by nothing)."""
    with np.errstate(invalid="ignore", over="ignore"):
        product = a * b
    return np.where((a == 0) | (b == 0), 0.0, np.nextafter(product, -np.inf))


def _sum_below(terms: Array) -> float:
    """A lower bound of the exact sum; -inf where a term is -inf. `fsum` rounds once."""
    if np.isneginf(terms).any() or np.isnan(terms).any():
        return -math.inf
    return math.nextafter(math.fsum(terms), -math.inf)
