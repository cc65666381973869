"""Distances as objectives: the program of a network whose optimum is how far the nearest unsafe input is.

With d = x - center over the inputs that vary, the objective is

    l-inf    t                      with  -t <= d_i <= t
    l1       s_1 + ... + s_n        with  -s_i <= d_i <= s_i
    l2       t                      with  <n, d> <= t  for some unit vectors n (`tangent`): an outer approximation, refined where it is met

and the network's margin (the objective of `milp.encode`) becomes the row margin <= -offset.

Reference: Tjeng, Xiao, Tedrake, Evaluating robustness of neural networks with mixed integer programming, ICLR 2019, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor

from bounds import rounding
from bounds.region import Box, LpBall
from milp.builder import widen
from milp.encode import Encoding
from milp.inputs import Inputs
from milp.program import Array, Program

_DTYPE = torch.float64
Domain = tuple[Tensor | Array | float, Tensor | Array | float]


@dataclass(frozen=True, eq=False)
class Metric:
    """||x - center||_p over the points x of a domain.

    center: (*shape) float64; p: 1, 2 or inf; domain: (low, high) or None, holding the centre.
    """

    center: Tensor
    p: float = math.inf
    domain: Domain | None = None

    def ball(self, radius: float | Tensor) -> LpBall:
        """The points of the domain within a radius; one ball for each entry of a tensor of radii (B,)."""
        radii = torch.as_tensor(radius, dtype=_DTYPE).reshape(-1, *([1] * self.center.dim()))
        sides = None
        if self.domain is not None:
            sides = tuple(
                torch.as_tensor(side, dtype=_DTYPE).expand_as(self.center)[None].expand(len(radii), *self.center.shape)
                for side in self.domain
            )
        return LpBall(self.center.to(_DTYPE)[None].expand(len(radii), *self.center.shape), radii, self.p, sides)  # type: ignore[arg-type]

    def box(self, radius: float) -> Box:
        """The smallest box around the ball, the region that programs are made on."""
        box = self.ball(radius).box()
        return Box(box.lower, box.upper)

    @property
    def reach(self) -> float:
        """A radius that takes in the whole domain; inf without one."""
        if self.domain is None:
            return math.inf
        low, high = (torch.as_tensor(side, dtype=_DTYPE).expand_as(self.center) for side in self.domain)
        farthest = torch.maximum(self.center - low, high - self.center)
        return self.length(farthest.numpy()) * (1 + 2 * rounding.gamma(farthest.numel() + 8, _DTYPE))

    def length(self, step: Array) -> float:
        """||step||_p, an estimate."""
        return float(np.linalg.norm(np.asarray(step, dtype=np.float64).reshape(-1), ord=self.p))

    def clip(self, points: Array) -> Array:
        """Points moved into the domain; (..., *shape)."""
        if self.domain is None:
            return points
        low, high = (torch.as_tensor(side, dtype=_DTYPE).numpy() for side in self.domain)
        return np.clip(points, low, high)


@dataclass(frozen=True, eq=False)
class Tangent:
    """A vector n, at most a unit one, with <n, x - center> <= t for every x of distance t: (size of the input,)."""

    direction: Array


def tangent(step: Array) -> Tangent | None:
    """The tangent of the l2 ball at a step from its centre; None at the centre. Property: its length is at most 1, rounding included."""
    flat = np.asarray(step, dtype=np.float64).reshape(-1)
    norm = float(np.linalg.norm(flat))
    if not norm > 0.0:
        return None
    return Tangent(flat / norm * (1 - 2 * rounding.gamma(flat.size + 8, _DTYPE)))


@dataclass(frozen=True)
class Window:
    """Which distances are looked at, and by how much the margin must fall below 0."""

    low: float
    high: float
    offset: float = 0.0


def nearest(encoding: Encoding, metric: Metric, window: Window, tangents: Sequence[Tangent] = ()) -> Program:
    """The encoding's program under the distance as objective, restricted to window.low <= distance <= window.high.

    The encoding's own objective, one margin, becomes a row. For l2 the optimum is a lower bound of the distance; a point of the program may
    be farther away than the objective says, and then `tangent` at it is the row that is missing.
    """
    program, inputs = encoding.program, encoding.inputs
    center = metric.center.to(_DTYPE).numpy().reshape(-1)[inputs.features]
    size, count = program.columns, inputs.columns.size
    extra = count if metric.p == 1.0 else 1
    width = size + extra
    row = np.arange(count)
    distance = size + row if metric.p == 1.0 else np.full(count, size)
    margin = sparse.csr_matrix(np.concatenate([program.objective, np.zeros(extra)])[None])
    blocks: list[tuple[sparse.csr_matrix, Array, Array]] = [
        (widen(program.rows, width), program.row_lower, program.row_upper),
        (margin, np.array([-np.inf]), np.array([-program.constant - window.offset])),
    ]
    for sign in (1.0, -1.0):
        places = (np.concatenate([row, row]), np.concatenate([distance, inputs.columns]))
        matrix = sparse.csr_matrix((np.concatenate([np.ones(count), np.full(count, -sign)]), places), shape=(count, width))
        blocks.append((matrix, -sign * center, np.full(count, np.inf)))
    reach = np.nextafter(np.maximum(inputs.upper[inputs.features] - center, center - inputs.lower[inputs.features]), np.inf)
    if metric.p == 1.0:
        total = sparse.csr_matrix((np.ones(count), (np.zeros(count, dtype=int), distance)), shape=(1, width))
        blocks.append((total, np.array([window.low]), np.array([window.high])))
        low, high = np.zeros(count), reach
    else:
        low, high = np.array([window.low]), np.array([window.high])
    if tangents:
        blocks.append(tangent_rows(tangents, inputs, metric, width))
    objective = np.concatenate([np.zeros(size), np.ones(extra)])
    return Program(
        objective,
        np.concatenate([program.lower, low]),
        np.concatenate([program.upper, high]),
        np.concatenate([program.integer, np.zeros(extra, dtype=bool)]),
        sparse.vstack([block for block, _, _ in blocks], format="csr"),
        np.concatenate([side for _, side, _ in blocks]),
        np.concatenate([side for _, _, side in blocks]),
        priority=None if program.priority is None else np.concatenate([program.priority, np.zeros(extra, dtype=program.priority.dtype)]),
    )


def tangent_rows(tangents: Sequence[Tangent], inputs: Inputs, metric: Metric, columns: int) -> tuple[sparse.csr_matrix, Array, Array]:
    """<n, x> - t <= <n, center>, the side rounded upward, as rows of a program whose last column is t."""
    center = metric.center.to(_DTYPE).numpy().reshape(-1)[inputs.features]
    directions = np.stack([t.direction[inputs.features] for t in tangents])
    count, width = directions.shape
    values = np.hstack([directions, np.full((count, 1), -1.0)])
    places = np.tile(np.append(inputs.columns, columns - 1), count)
    matrix = sparse.csr_matrix((values.reshape(-1), (np.repeat(np.arange(count), width + 1), places)), shape=(count, columns))
    size = np.abs(directions) @ np.abs(center)
    side = directions @ center + 2 * rounding.gamma(center.size + 4, _DTYPE) * size
    return matrix, np.full(count, -np.inf), np.nextafter(side, np.inf)
