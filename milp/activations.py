"""Activations as variables and rows; `milp.encode` states the formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor

from bounds import rounding
from bounds.interval import Interval
from bounds.ops.base import Activation, Shape
from bounds.ops.piecewise import Piecewise
from milp.builder import Builder, Expression, entries, widen
from milp.program import Array

_DTYPE = torch.float64


@dataclass(frozen=True, eq=False)
class Curve:
    """A piecewise-linear activation on flattened intervals.

    lower, upper: (size,); knots: (m, size); slopes, intercepts: (m + 1, size); inside: (m, size), the knots strictly inside the interval at
    which the slope changes; first: (size,), the piece at the lower end.
    """

    lower: Array
    upper: Array
    knots: Array
    slopes: Array
    intercepts: Array
    inside: Array
    first: Array

    @staticmethod
    def of(op: Piecewise, shape: Shape, lower: Array, upper: Array) -> Curve:
        """The op's data spread over a node of the given shape."""
        knots, slopes, intercepts = (_spread(values, shape, lower.size) for values in op.pieces())
        changes = slopes[1:] != slopes[:-1]
        inside = (lower < knots) & (knots < upper) & changes
        first = (knots <= lower).sum(axis=0)
        return Curve(lower, upper, knots, slopes, intercepts, inside, first)

    @property
    def stable(self) -> Array:
        """Where the activation is affine on the interval."""
        return np.logical_not(self.inside.any(axis=0))

    @property
    def slope(self) -> Array:
        """Slope at the lower end."""
        return np.take_along_axis(self.slopes, self.first[None], axis=0)[0]

    @property
    def intercept(self) -> Array:
        """Intercept at the lower end."""
        return np.take_along_axis(self.intercepts, self.first[None], axis=0)[0]

    @property
    def constant(self) -> Array:
        """Where the activation does not depend on its argument."""
        return self.stable & (self.slope == 0)


def _spread(values: Sequence[float | Tensor], shape: Shape, size: int) -> Array:
    if not values:
        return np.zeros((0, size))
    spread = [torch.as_tensor(v, dtype=_DTYPE).cpu().expand(shape).reshape(-1).numpy() for v in values]
    return np.stack(spread)


def encode_piecewise(builder: Builder, z: Expression, curve: Curve, mask: Array) -> Expression:
    """act(z) for the masked elements."""
    stable = curve.stable & mask
    slope, intercept = np.where(stable, curve.slope, 0.0), np.where(stable, curve.intercept, 0.0)
    matrix = _scale_rows(z.matrix, slope)
    constant = slope * z.constant + intercept
    rounds = stable & ~(np.isin(slope, (0.0, 1.0, -1.0)) & ((intercept == 0) | (slope == 0)))
    size = np.abs(slope) * builder.magnitude(z) + np.abs(intercept)
    allowance = 2 * rounding.gamma(4, _DTYPE) * size + rounding.underflow(4, _DTYPE)
    error = np.abs(slope) * z.error * (1 + rounding.gamma(2, _DTYPE)) + np.where(rounds, allowance, 0.0)
    places, changes = [], []
    unstable = np.flatnonzero(mask & ~curve.stable)
    for which in _groups(curve.inside, unstable):
        part = _incremental(builder, z.take(which), curve, which)
        constant[which], error[which] = part.constant, part.error
        places.append(which)
        changes.append(part.matrix)
    return Expression(_put_rows(matrix, places, changes, builder.columns), constant, error)


def _groups(inside: Array, which: Array) -> list[Array]:
    """Elements whose inside knots are the same ones."""
    codes = (inside[:, which] * (2 ** np.arange(inside.shape[0]))[:, None]).sum(axis=0)
    return [which[codes == code] for code in np.unique(codes)]


def _incremental(builder: Builder, z: Expression, curve: Curve, which: Array) -> Expression:
    """The incremental form for elements that share the numbers of their inside knots; z is already restricted to them."""
    numbers = np.flatnonzero(curve.inside[:, which[0]])
    knots = curve.knots[np.ix_(numbers, which)]
    lower, ends = curve.lower[which], np.vstack([knots[1:], curve.upper[which]])
    slopes = curve.slopes[np.concatenate([numbers[:1], numbers + 1])][:, which]
    count, row = which.size, np.arange(which.size)
    below = _difference_up(knots[0], lower)
    lengths = _difference_up(ends, knots)
    s = builder.variables(np.zeros(count), below)
    d = np.stack([builder.variables(np.zeros(count), length) for length in lengths])
    b = np.stack([builder.binaries(which) for _ in numbers])
    steps = entries(count, builder.columns, (row, s, 1.0), *((row, column, -1.0) for column in d))
    builder.define(z, steps, knots[0])
    width = builder.columns
    builder.rows(entries(count, width, (row, s, 1.0), (row, b[0], below)), -np.inf, below)
    for i, length in enumerate(lengths):
        builder.rows(entries(count, width, (row, d[i], 1.0), (row, b[i], -length)), -np.inf, 0.0)
        if i > 0:
            reached = _difference_down(knots[i], knots[i - 1])
            builder.rows(entries(count, width, (row, d[i - 1], 1.0), (row, b[i], -reached)), 0.0, np.inf)
    value, error = _at_first_knot(curve, which, numbers)
    matrix = entries(count, width, (row, s, -slopes[0]), *((row, column, slope) for column, slope in zip(d, slopes[1:], strict=True)))
    matrix.eliminate_zeros()
    return Expression(matrix, value, error)


def _at_first_knot(curve: Curve, which: Array, numbers: Array) -> tuple[Array, Array]:
    """act(k_1) from the piece on its left, and how far it and the later pieces may be off: intercepts are rounded numbers too."""
    value = error = np.zeros(which.size)
    for position, number in enumerate(numbers):
        knot = curve.knots[number, which]
        sides = [(curve.slopes[number + side, which], curve.intercepts[number + side, which]) for side in (0, 1)]
        at = [slope * knot + intercept for slope, intercept in sides]
        inexact = [np.where(slope * knot == 0, 0.0, np.abs(slope * knot) + np.abs(intercept)) for slope, intercept in sides]
        size = inexact[0] + inexact[1]
        error = (
            error + np.abs(at[1] - at[0]) + np.where(size > 0, 2 * rounding.gamma(8, _DTYPE) * size + rounding.underflow(8, _DTYPE), 0.0)
        )
        if position == 0:
            value = at[0]
    return value, error


def reachable_taps(bounds: tuple[Array, Array], taps: int) -> Array:
    """(windows, taps): the taps that can be the maximum; at least one a window."""
    lower, upper = (side.reshape(-1, taps) for side in bounds)
    floor = lower.max(axis=1, keepdims=True)
    reachable = upper > floor
    leader = np.argmax(np.where(lower == floor, upper, -np.inf), axis=1)
    reachable[np.arange(lower.shape[0]), leader] = True
    return reachable


def encode_max(builder: Builder, x: Expression, bounds: tuple[Array, Array], taps: int, mask: Array) -> Expression:
    """max over each run of `taps` values: y = x_i + p_i, 0 <= p_i <= M_i (1 - c_i), sum c_i = 1 over the taps that can be the largest."""
    reachable = reachable_taps(bounds, taps) & mask[:, None]
    counts = reachable.sum(axis=1)
    lower, upper = (side.reshape(-1, taps) for side in bounds)
    single, several = np.flatnonzero(counts == 1), np.flatnonzero(counts > 1)
    windows = mask.size
    copied = single * taps + np.argmax(reachable[single], axis=1)
    constant, error = np.zeros(windows), np.zeros(windows)
    constant[single], error[single] = x.constant[copied], x.error[copied]
    empty = sparse.csr_matrix((windows, builder.columns))
    if not several.size:
        return Expression(_put_rows(empty, [single], [x.matrix[copied]], builder.columns), constant, error)
    y = builder.variables(lower[several].max(axis=1), upper[several].max(axis=1))
    window, tap = np.nonzero(reachable[several])
    count, row = window.size, np.arange(window.size)
    others = np.where(reachable[several], upper[several], -np.inf)[window]
    others[row, tap] = -np.inf
    gap = np.maximum(_difference_up(others.max(axis=1), lower[several][window, tap]), 0.0)
    p = builder.variables(np.zeros(count), gap)
    c = builder.binaries(several[window])
    builder.define(x.take(several[window] * taps + tap), entries(count, builder.columns, (row, p, 1.0), (row, y[window], -1.0)))
    builder.rows(entries(count, builder.columns, (row, p, 1.0), (row, c, gap)), -np.inf, gap)
    builder.rows(entries(several.size, builder.columns, (window, c, 1.0)), 1.0, 1.0)
    maxima = entries(several.size, builder.columns, (np.arange(several.size), y, 1.0))
    return Expression(_put_rows(empty, [single, several], [x.matrix[copied], maxima], builder.columns), constant, error)


def encode_planes(builder: Builder, z: Expression, op: Activation, shape: Shape, bounds: tuple[Array, Array], mask: Array) -> Expression:
    """An element-wise activation between its planes (a relaxation, not exact)."""
    which = np.flatnonzero(mask)
    interval = Interval(*(torch.from_numpy(side).reshape(1, *shape) for side in bounds))
    planes, reach = op.relax(interval), op.interval(interval)
    low_slope, low, high_slope, high, bottom, top = (
        side.reshape(-1).numpy()[which]
        for side in (
            planes.lower_slope,
            planes.lower_intercept,
            planes.upper_slope,
            planes.upper_intercept,
            reach.lower,
            reach.upper,
        )
    )
    count, row = which.size, np.arange(which.size)
    argument = builder.variables(bounds[0][which], bounds[1][which])
    y = builder.variables(bottom, top)
    builder.define(z.take(which), entries(count, builder.columns, (row, argument, -1.0)))
    builder.rows(entries(count, builder.columns, (row, y, 1.0), (row, argument, -low_slope)), low, np.inf)
    builder.rows(entries(count, builder.columns, (row, y, 1.0), (row, argument, -high_slope)), -np.inf, high)
    matrix = entries(mask.size, builder.columns, (which, y, 1.0))
    return Expression(matrix, np.zeros(mask.size), np.zeros(mask.size))


def _difference_up(a: Array, b: Array) -> Array:
    """A number >= a - b; exactly a - b where one of them is 0."""
    exact = (a == 0) | (b == 0)
    return np.where(exact, a - b, np.nextafter(a - b, np.inf))


def _difference_down(a: Array, b: Array) -> Array:
    """A number <= a - b; exactly a - b where one of them is 0."""
    return -_difference_up(b, a)


def _scale_rows(matrix: sparse.csr_matrix, factors: Array) -> sparse.csr_matrix:
    """diag(factors) @ matrix, rows with factor 0 emptied."""
    scaled = sparse.diags(factors, format="csr") @ matrix
    scaled.eliminate_zeros()
    return scaled


def _put_rows(matrix: sparse.csr_matrix, places: list[Array], rows: list[sparse.csr_matrix], columns: int) -> sparse.csr_matrix:
    """The matrix, whose rows at `places` are empty, with the given rows there."""
    total = widen(matrix.tocsr(), columns)
    for place, part in zip(places, rows, strict=True):
        lift = sparse.csr_matrix((np.ones(place.size), (place, np.arange(place.size))), shape=(matrix.shape[0], place.size))
        total = total + lift @ widen(part, columns)
    return total
