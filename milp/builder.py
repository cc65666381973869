"""Affine expressions of a program's variables, and the program while it grows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
import torch

from bounds import rounding
from bounds.errors import MemoryLimitError
from milp.program import Array, Program

_DTYPE = torch.float64
_BYTES_PER_ENTRY = 12


@dataclass(frozen=True, eq=False)
class Expression:
    """Values v with |v - (matrix x + constant)| <= error, element-wise, for every feasible x.

    matrix: (size, columns at the time it was made) csr; constant, error: (size,). The error is what rounding may have done to the
    coefficients; a row built from the expression leaves it as slack, so that programs enclose the network in real arithmetic.
    """

    matrix: sparse.csr_matrix
    constant: Array
    error: Array

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self.constant.shape[0])

    def take(self, rows: Array) -> Expression:
        """The expression of some of the values."""
        return Expression(self.matrix[rows], self.constant[rows], self.error[rows])

    def value(self, x: Array) -> Array:
        """matrix x + constant at a point of the program, without the error."""
        return self.matrix @ x[: self.matrix.shape[1]] + self.constant


@dataclass(frozen=True, eq=False)
class Gates:
    """Which neurons the binaries decide: for each binary the node of its activation, the element of it (flattened) and the column; (k,)."""

    nodes: Array
    elements: Array
    columns: Array


def widen(matrix: sparse.csr_matrix, columns: int) -> sparse.csr_matrix:
    """The same matrix with empty columns appended, sharing its data."""
    if matrix.shape[1] == columns:
        return matrix
    return sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], columns))


def keep_rows(matrix: sparse.csr_matrix, mask: Array) -> sparse.csr_matrix:
    """The matrix with the rows outside the mask emptied."""
    if mask.all():
        return matrix
    kept = sparse.diags(mask.astype(np.float64), format="csr") @ matrix
    kept.eliminate_zeros()
    return kept


def entries(size: int, columns: int, *parts: tuple[Array, Array, Array | float]) -> sparse.csr_matrix:
    """A csr matrix (size, columns) from (rows, columns, values) triples that name each place once."""
    rows = np.concatenate([np.asarray(part[0]) for part in parts])
    places = np.concatenate([np.asarray(part[1]) for part in parts])
    values = np.concatenate([np.broadcast_to(np.asarray(part[2], dtype=np.float64), np.shape(part[0])) for part in parts])
    return sparse.csr_matrix((values, (rows, places)), shape=(size, columns))


class Builder:
    """Collects variables and rows. Every variable has finite bounds."""

    def __init__(self, memory_mb: float) -> None:
        self._lower: list[Array] = []
        self._upper: list[Array] = []
        self._integer: list[Array] = []
        self._levels: list[Array] = []
        self._rows: list[tuple[sparse.csr_matrix, Array, Array]] = []
        self._gates: list[Gates] = []
        self._entries = 0
        self._limit = memory_mb * 2**20 / _BYTES_PER_ENTRY
        self.columns = 0
        self.level = 0
        """What new variables are marked with: the number of the node they stand for."""

    def variables(self, lower: Array, upper: Array, *, integer: bool = False) -> Array:
        """Add variables; returns their column numbers."""
        size = lower.shape[0]
        self._lower.append(np.asarray(lower, dtype=np.float64))
        self._upper.append(np.asarray(upper, dtype=np.float64))
        self._integer.append(np.full(size, integer))
        self._levels.append(np.full(size, self.level))
        self.columns += size
        return np.arange(self.columns - size, self.columns)

    def binaries(self, elements: Array) -> Array:
        """Add one variable in {0, 1} for each of these elements of the current node; returns their column numbers."""
        columns = self.variables(np.zeros(elements.size), np.ones(elements.size), integer=True)
        self._gates.append(Gates(np.full(elements.size, self.level), elements, columns))
        return columns

    def gates(self) -> Gates:
        """What every binary so far stands for."""
        return Gates(*(_join([getattr(part, side) for part in self._gates], int) for side in ("nodes", "elements", "columns")))

    def rows(self, matrix: sparse.csr_matrix, lower: Array | float, upper: Array | float) -> None:
        """Add rows lower <= matrix x <= upper.

        Raises:
            MemoryLimitError: the program outgrows its memory limit.
        """
        size = matrix.shape[0]
        self.reserve(matrix.nnz)
        self._entries += matrix.nnz
        self._rows.append((matrix, np.broadcast_to(lower, (size,)).astype(np.float64), np.broadcast_to(upper, (size,)).astype(np.float64)))

    def reserve(self, count: int) -> None:
        """Raises MemoryLimitError if `count` more entries do not fit."""
        if self._entries + count > self._limit:
            raise MemoryLimitError(
                f"the program would have more than {self._entries + count} coefficients; raise --memory-limit, or use tighter bounds first"
            )

    def bounds(self) -> tuple[Array, Array]:
        """Bounds of all variables so far."""
        self._lower, self._upper = [_join(self._lower)], [_join(self._upper)]
        return self._lower[0], self._upper[0]

    def magnitude(self, expression: Expression) -> Array:
        """An upper bound (up to rounding) of the sum of the absolute values of an expression's terms."""
        lower, upper = self.bounds()
        reach = np.maximum(np.abs(lower), np.abs(upper))[: expression.matrix.shape[1]]
        return abs(expression.matrix) @ reach + np.abs(expression.constant)

    def interval(self, expression: Expression) -> tuple[Array, Array]:
        """Bounds of an expression by interval arithmetic over the variables' bounds, rounded outward."""
        lower, upper = (side[: expression.matrix.shape[1]] for side in self.bounds())
        positive, negative = expression.matrix.maximum(0), expression.matrix.minimum(0)
        low = positive @ lower + negative @ upper + expression.constant
        high = positive @ upper + negative @ lower + expression.constant
        terms = int(np.diff(expression.matrix.indptr).max(initial=0)) + 4
        slack = expression.error + 2 * rounding.gamma(terms, _DTYPE) * self.magnitude(expression) + rounding.underflow(terms, _DTYPE)
        return np.nextafter(low - slack, -np.inf), np.nextafter(high + slack, np.inf)

    def define(self, expression: Expression, extra: sparse.csr_matrix, side: Array | float = 0.0) -> None:
        """Add rows that say expression + extra x = side, the expression's error left as slack."""
        matrix = widen(expression.matrix, self.columns) + widen(extra, self.columns)
        center = side - expression.constant
        slack = expression.error + np.where((expression.constant == 0) | (np.asarray(side) == 0), 0.0, np.spacing(np.abs(center)))
        exact = slack == 0
        low = np.where(exact, center, np.nextafter(center - slack, -np.inf))
        high = np.where(exact, center, np.nextafter(center + slack, np.inf))
        self.rows(matrix, low, high)

    def above(self, column: int, expression: Expression) -> None:
        """Add rows that say the variable is at least every value of the expression, less its error."""
        size = expression.size
        unit = entries(size, self.columns, (np.arange(size), np.full(size, column), 1.0))
        exact = expression.error == 0
        side = expression.constant - expression.error
        self.rows(unit - widen(expression.matrix, self.columns), np.where(exact, side, np.nextafter(side, -np.inf)), np.inf)

    def program(self, objective: Array, constant: float) -> Program:
        """Everything collected, under an objective over all columns. Binaries of later nodes are to be branched on first.

        Later layers are few, and everything that reaches the outputs passes them: on convolutional networks trees are ten times smaller.
        """
        lower, upper = self.bounds()
        blocks = [widen(matrix, self.columns) for matrix, _, _ in self._rows]
        matrix = sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix((0, self.columns))
        matrix.sort_indices()
        row_lower, row_upper = _join([low for _, low, _ in self._rows]), _join([high for _, _, high in self._rows])
        return Program(
            objective, lower, upper, _join(self._integer, bool), matrix, row_lower, row_upper, constant, _join(self._levels, int)
        )


def _join(parts: list[Array], dtype: type = float) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
