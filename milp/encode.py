"""(Network, region, intervals, unsafe set) -> Program, exactly.

One walk in topological order; every node's values are affine expressions of the program's variables. The walk knows op families:

- affine: the expressions are multiplied by the op's sparse Jacobian;
- piecewise linear with an interval inside one piece: still affine (a constant piece leaves the neuron out of the model);
- piecewise linear with m knots inside its interval: the incremental form below, m binaries;
- maximum: one binary for each tap that can be the largest.

Only what the objective can see is encoded. All constants ("big-M") come from the intervals, which must be sound; they are finite and
rounded outward, and rows leave the rounding of their coefficients as slack: the program encloses the network in real arithmetic.

Incremental form. For knots k_1 < ... < k_m inside [l, u] and k_{m+1} = u, with slopes a_0 ... a_m:

    z = k_1 - s + d_1 + ... + d_m        y = act(k_1) - a_0 s + a_1 d_1 + ... + a_m d_m
    0 <= s <= (k_1 - l) (1 - b_1)        (k_{i+1} - k_i) b_{i+1} <= d_i <= (k_{i+1} - k_i) b_i,    b binary

For ReLU this is y - s = z, 0 <= y <= u b, 0 <= s <= -l (1 - b), whose linear relaxation is the triangle.

Reference: Tjeng, Xiao, Tedrake, Evaluating robustness of neural networks with mixed integer programming, ICLR 2019; for the incremental
form Vielma, Mixed integer linear programming formulation techniques, SIAM Review 57 (2015), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor

from bounds.errors import NumericsError, ShapeError
from bounds.interval import Interval
from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.ops.base import product
from bounds.region import Region
from milp.builder import Expression, Gates, entries, widen
from milp.inputs import Inputs
from milp.program import Array, Program
from milp.walk import Walk

if TYPE_CHECKING:
    from milp.leaf import Assumption

Intervals = Mapping[int, Interval] | Sequence[Interval]
Pruned = Mapping[int, Tensor | Array]
"""Index of an activation's node -> mask of the elements that are relaxed, in the shape of the node."""
DEFAULT_MEMORY_MB = 2048.0
_PRICE = 1e3
"""Price of a unit by which an assumption is missed, relative to the largest coefficient of the objective."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """A program and what its variables mean.

    values: for each encoded node the expression of its flattened values (rows where `wanted` is False are not meaningful).
    inputs: how a point of the program becomes a point of the region. gates: which neuron each binary decides.
    """

    program: Program
    inputs: Inputs
    values: dict[int, Expression]
    wanted: dict[int, Array]
    gates: Gates

    @property
    def binaries(self) -> int:
        """Number of integer variables."""
        return int(self.program.integer.sum())

    def loosened(self, pruned: Pruned) -> Encoding:
        """The same encoding without the integrality of the pruned neurons' binaries: they are left in the convex hull of their rows, which for
        ReLU is the triangle. Its optimum is a lower bound of this one's."""
        if not pruned:
            return self
        masks = {index: np.asarray(mask, dtype=bool).reshape(-1) for index, mask in pruned.items()}
        loose = [n in masks and masks[n][e] for n, e in zip(self.gates.nodes.tolist(), self.gates.elements.tolist(), strict=True)]
        integer = self.program.integer.copy()
        integer[self.gates.columns[np.array(loose, dtype=bool)]] = False
        return replace(self, program=replace(self.program, integer=integer))

    def whole(self) -> Encoding:
        """The same encoding with all binaries back."""
        integer = self.program.integer.copy()
        integer[self.gates.columns] = True
        return replace(self, program=replace(self.program, integer=integer))

    def point(self, x: Array) -> Array:
        """The input (float64, the network's input shape) that a point of the program stands for, clipped into the region's box."""
        return self.inputs.point(x)


def encode(
    network: Network,
    region: Region,
    unsafe: Halfspaces,
    intervals: Intervals,
    *,
    relaxed: bool = False,
    memory_mb: float = DEFAULT_MEMORY_MB,
) -> Encoding:
    """The program whose optimum is min over x in the region of max_i (C_i f(x) - d_i): positive iff no output is unsafe.

    Args:
        region: one region (batch size 1). An l2 ball enters as its bounding box; add `milp.inputs.ball_cut` rows to approach it.
        unsafe: the half-spaces {y : C y <= d}; a single one needs no further variable.
        intervals: sound enclosures by node index, (1, *node shape) each; needed for the nodes that activations read. Nodes left out are
            bounded by interval arithmetic on the variables.
        relaxed: drop integrality. Smooth activations are then allowed, enclosed by their planes.

    Raises:
        UnsupportedOpError: an activation without an exact form. MemoryLimitError: the program does not fit. ShapeError: a wrong shape.
        NumericsError: an interval is NaN, infinite or reversed.
    """
    return encode_all(network, region, [unsafe], intervals, relaxed=relaxed, memory_mb=memory_mb)[0]


def encode_all(
    network: Network,
    region: Region,
    unsafe: Sequence[Halfspaces],
    intervals: Intervals,
    *,
    relaxed: bool = False,
    memory_mb: float = DEFAULT_MEMORY_MB,
) -> list[Encoding]:
    """As `encode` for each of several unsafe sets; the programs share their variables and rows and differ in the objective only."""
    normals, offsets = (
        np.concatenate([side.double().cpu().numpy() for side in sides]) for sides in ([u.C for u in unsafe], [u.d for u in unsafe])
    )
    if normals.shape[1:] != (network.outputs,) or offsets.shape != normals.shape[:1]:
        raise ShapeError(f"half-spaces of shapes {normals.shape} and {offsets.shape} do not fit a network with {network.outputs} outputs")
    last = len(network.nodes) - 1
    walk = _walk(network, region, intervals, relaxed, memory_mb, {last: (normals != 0).any(axis=0)})
    margins = walk.multiply([sparse.csr_matrix(normals)], [walk.values[last]], -offsets)
    stops = np.cumsum([u.C.shape[0] for u in unsafe])
    objectives = [_objective(walk, margins.take(rows)) for rows in np.split(np.arange(margins.size), stops[:-1])]
    first = _finish(walk, *objectives[0], relaxed)
    return [replace(first, program=first.program.with_objective(_pad(c, first.program.columns), constant)) for c, constant in objectives]


def encode_node(
    network: Network,
    region: Region,
    intervals: Intervals,
    index: int,
    rows: Array,
    *,
    relaxed: bool = False,
    memory_mb: float = DEFAULT_MEMORY_MB,
) -> Encoding:
    """The program of the network up to node `index`, with no objective; `rows` masks the values of that node that are wanted."""
    walk = _walk(network, region, intervals, relaxed, memory_mb, {index: np.asarray(rows, dtype=bool)})
    return _finish(walk, np.zeros(walk.builder.columns), 0.0, relaxed)


def encode_part(network: Network, region: Region, unsafe: Halfspaces, intervals: Intervals, assumed: Mapping[int, Assumption]) -> Encoding:
    """As `encode`, relaxed, on the part of the region where elements of nodes keep to their sides of points.

    A point may leave its side at a price that is far above what the margin gains: the program is feasible even where the part is empty, and its
    optimum is a lower bound on the part whatever the price.
    """
    normals, offsets = unsafe.C.double().cpu().numpy(), unsafe.d.double().cpu().numpy()
    targets = {len(network.nodes) - 1: (normals != 0).any(axis=0)}
    for index, assumption in assumed.items():
        targets[index] = np.zeros(product(network.nodes[index].shape), dtype=bool)
        targets[index][assumption.elements] = True
    walk = _walk(network, region, intervals, True, DEFAULT_MEMORY_MB, targets)
    violations = [_keep_side(walk, walk.values[index].take(assumption.elements), assumption) for index, assumption in assumed.items()]
    margins = walk.multiply([sparse.csr_matrix(normals)], [walk.values[len(network.nodes) - 1]], -offsets)
    objective, constant = _objective(walk, margins)
    price = _PRICE * max(1.0, float(np.abs(objective).max(initial=0.0)))
    objective[np.concatenate([np.zeros(0, dtype=int), *violations])] = price
    return _finish(walk, objective, constant, True)


def _keep_side(walk: Walk, values: Expression, assumption: Assumption) -> Array:
    """Rows side (z - point) + violation >= 0; returns the columns of the violations."""
    lower, upper = walk.builder.interval(values)
    most = np.maximum(np.where(assumption.side > 0, assumption.point - lower, upper - assumption.point), 0.0)
    columns = walk.builder.variables(np.zeros(values.size), most * (1 + 1e-9) + 1e-9)
    unit = entries(values.size, walk.builder.columns, (np.arange(values.size), columns, 1.0))
    reach = np.nextafter(assumption.side * (assumption.point - values.constant) - values.error, -np.inf)
    sided = sparse.csr_matrix(sparse.diags(assumption.side) @ values.matrix)
    walk.builder.rows(widen(sided, walk.builder.columns) + unit, reach, np.inf)
    return columns


def _walk(network: Network, region: Region, intervals: Intervals, relaxed: bool, memory_mb: float, targets: dict[int, Array]) -> Walk:
    if region.batch != 1 or region.shape != network.input_shape:
        raise ShapeError(f"expected one region of shape {network.input_shape}, got {region.batch} of shape {region.shape}")
    double = network.to(torch.float64, "cpu")
    known = _as_arrays(double, intervals)
    walk = Walk(double, known, relaxed=relaxed, memory_mb=memory_mb)
    walk.run(region, targets)
    return walk


def _objective(walk: Walk, margins: Expression) -> tuple[Array, float]:
    """A single margin is minimised itself; of several, a variable above all of them."""
    if margins.size == 1:
        objective = np.zeros(walk.builder.columns)
        objective[margins.matrix.indices] = margins.matrix.data
        constant = float(margins.constant[0] - margins.error[0])
        return objective, constant if margins.error[0] == 0 else float(np.nextafter(constant, -np.inf))
    lower, upper = walk.builder.interval(margins)
    worst = walk.builder.variables(lower.max(keepdims=True), upper.max(keepdims=True))
    walk.builder.above(worst[0], margins)
    objective = np.zeros(walk.builder.columns)
    objective[worst] = 1.0
    return objective, 0.0


def _pad(objective: Array, columns: int) -> Array:
    return np.concatenate([objective, np.zeros(columns - objective.size)])


def _finish(walk: Walk, objective: Array, constant: float, relaxed: bool) -> Encoding:
    program = walk.builder.program(_pad(objective, walk.builder.columns), constant)
    return Encoding(program.relaxed() if relaxed else program, walk.inputs, walk.values, walk.wanted, walk.builder.gates())


def _as_arrays(network: Network, intervals: Intervals) -> dict[int, tuple[Array, Array]]:
    """Lower and upper bounds by node, flattened, in float64 (which is exact from narrower types)."""
    items = intervals.items() if isinstance(intervals, Mapping) else enumerate(intervals)
    known = {}
    for index, interval in items:
        node = network.nodes[index]
        if tuple(interval.lower.shape) != (1, *node.shape):
            raise ShapeError(f"the interval of node {node.name!r} has shape {tuple(interval.lower.shape)}, expected {(1, *node.shape)}")
        lower, upper = _flat(interval.lower), _flat(interval.upper)
        if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
            raise NumericsError(f"the interval of node {node.name!r} is not finite; bound it with an engine first")
        known[index] = (np.minimum(lower, upper), np.maximum(lower, upper))
    return known


def _flat(values: Tensor) -> Array:
    return values.detach().double().cpu().numpy().reshape(-1)
