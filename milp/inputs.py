"""Inputs of a network as variables of a program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
import torch

from bounds import rounding
from bounds.region import LpBall, Region
from milp.builder import Builder, Expression, entries
from milp.program import Array

CUT_TOLERANCE = 1e-6
"""A point counts as inside an l2 ball up to this relative excess; candidates are projected before use."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """Which variable stands for which input. Features that the region fixes have none.

    shape: the network's input shape; lower, upper: the region's box, flattened; features: the flattened positions of the inputs that
    vary; columns: their variables.
    """

    region: Region
    shape: tuple[int, ...]
    lower: Array
    upper: Array
    features: Array
    columns: Array

    def point(self, x: Array) -> Array:
        """A point of the program as an input, clipped into the region's box."""
        values = self.lower.copy()
        values[self.features] = x[self.columns]
        return np.clip(values, self.lower, self.upper).reshape(self.shape)


def add_inputs(builder: Builder, region: Region) -> tuple[Inputs, Expression]:
    """Variables for a region's inputs, and the rows of an l1 ball. An l2 ball is represented by its box until `ball_cut` adds to it."""
    box = region.box()
    lower, upper = (side.detach().double().cpu().numpy().reshape(-1) for side in (box.lower, box.upper))
    features = np.flatnonzero(lower < upper)
    columns = builder.variables(lower[features], upper[features])
    inputs = Inputs(region, region.shape, lower, upper, features, columns)
    fixed = lower.copy()
    fixed[features] = 0.0
    if isinstance(region, LpBall) and region.p == 1.0:
        _add_l1_rows(builder, inputs, region)
    matrix = entries(lower.size, builder.columns, (features, columns, 1.0))
    return inputs, Expression(matrix, fixed, np.zeros(lower.size))


def _center_and_eps(region: LpBall, features: Array) -> tuple[Array, Array]:
    center = region.center.detach().cpu().numpy().reshape(-1)[features]
    return center, torch.as_tensor(region.eps).detach().cpu().numpy().reshape(-1)[features]


def _add_l1_rows(builder: Builder, inputs: Inputs, region: LpBall) -> None:
    """sum_j |x_j - c_j| / eps_j <= 1 through variables t_j >= |x_j - c_j|."""
    center, eps = _center_and_eps(region, inputs.features)
    if not center.size:
        return
    lower, upper = inputs.lower[inputs.features], inputs.upper[inputs.features]
    reach = np.nextafter(np.maximum(upper - center, center - lower), np.inf)
    distance = builder.variables(np.zeros(center.size), reach)
    row = np.arange(center.size)
    for sign in (1.0, -1.0):
        matrix = entries(center.size, builder.columns, (row, distance, 1.0), (row, inputs.columns, -sign))
        builder.rows(matrix, -sign * center, np.inf)
    zero = np.zeros(center.size, dtype=int)
    if (eps == eps[0]).all():
        builder.rows(entries(1, builder.columns, (zero, distance, 1.0)), -np.inf, eps[0])
    else:
        builder.rows(entries(1, builder.columns, (zero, distance, np.nextafter(1.0 / eps, 0.0))), -np.inf, 1.0)


def needs_cuts(region: Region) -> bool:
    """Whether the program holds only an outer approximation of the region, to be refined by `ball_cut`."""
    return isinstance(region, LpBall) and region.p == 2.0


@dataclass(frozen=True, eq=False)
class Cut:
    """The half-space <coefficients, x> <= side of the varying inputs (`Inputs.features`)."""

    coefficients: Array
    side: float


def ball_cut(inputs: Inputs, x: Array) -> Cut | None:
    """The half-space that touches an l2 ball nearest to a point of the program outside it; None for a point inside (or another region).

    With v = (x - c) / eps and any vector n, every point of the ball has <n, v> <= ||n||. Here n = v / ||v||, and the side is rounded
    outward. A cut holds in every program of the same region.
    """
    region = inputs.region
    if not isinstance(region, LpBall) or region.p != 2.0:
        return None
    center, eps = _center_and_eps(region, inputs.features)
    steps = (x[inputs.columns] - center) / eps
    norm = float(np.linalg.norm(steps))
    if norm <= 1.0 + CUT_TOLERANCE:
        return None
    coefficients = steps / norm / eps
    relative = rounding.gamma(center.size + 6, torch.float64)
    radius = float(np.linalg.norm(coefficients * eps)) * (1 + relative)
    offset = math.fsum(coefficients * center) + relative * math.fsum(np.abs(coefficients * center))
    return Cut(coefficients, math.nextafter(radius + offset, math.inf))


def cut_rows(inputs: Inputs, cuts: Sequence[Cut], columns: int) -> tuple[sparse.csr_matrix, Array, Array]:
    """Cuts as rows of a program with that many columns: matrix, lower and upper sides."""
    count, width = len(cuts), inputs.columns.size
    values = np.concatenate([cut.coefficients for cut in cuts]) if cuts else np.zeros(0)
    places = (np.repeat(np.arange(count), width), np.tile(inputs.columns, count))
    matrix = sparse.csr_matrix((values, places), shape=(count, columns))
    return matrix, np.full(count, -np.inf), np.array([cut.side for cut in cuts])
