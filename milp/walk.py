"""The walk through a network that `milp.encode` describes: nodes in topological order, by family."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
import torch

from bounds import rounding
from bounds.errors import UnsupportedOpError
from bounds.network import Network, Node
from bounds.ops.base import Activation, Affine, Input
from bounds.ops.piecewise import MaxReduce, Piecewise
from bounds.region import Region
from milp.activations import Curve, encode_max, encode_piecewise, encode_planes, reachable_taps
from milp.builder import Builder, Expression, entries, keep_rows, widen
from milp.inputs import Inputs, add_inputs
from milp.jacobian import jacobians
from milp.program import Array

_DTYPE = torch.float64
Bounds = tuple[Array, Array]


def without_exact_form(network: Network, last: int | None = None, *, relaxed: bool = False) -> str | None:
    """Why the network, up to node `last`, is no mixed-integer program (no linear program, if `relaxed`): the first such node; or None."""
    for node in network.nodes[: None if last is None else last + 1]:
        op = node.op
        if isinstance(op, Affine | Input | Piecewise | MaxReduce) or (relaxed and isinstance(op, Activation) and op.free):
            continue
        return f"node {node.name!r} ({type(op).__name__}) is not piecewise linear and has no exact MILP form"
    return None


class Walk:
    """State of one encoding. network: float64; known: flattened lower and upper bounds by node."""

    inputs: Inputs

    def __init__(self, network: Network, known: dict[int, Bounds], *, relaxed: bool, memory_mb: float) -> None:
        self.network = network
        self.known = known
        self.relaxed = relaxed
        self.memory_mb = memory_mb
        self.builder = Builder(memory_mb)
        self.values: dict[int, Expression] = {}
        self.wanted: dict[int, Array] = {}

    def run(self, region: Region, targets: dict[int, Array]) -> None:
        """Encode what the wanted values of the target nodes depend on."""
        self._require_encodable(max(targets))
        self._want(targets)
        self.inputs, self.values[0] = add_inputs(self.builder, region)
        for index in sorted(self.wanted):
            node = self.network.nodes[index]
            if isinstance(node.op, Input):
                continue
            self.builder.level = index
            encode = self._affine if isinstance(node.op, Affine) else self._activation
            self.values[index] = encode(index, node)

    def _require_encodable(self, last: int) -> None:
        reason = without_exact_form(self.network, last, relaxed=self.relaxed)
        if reason is not None:
            raise UnsupportedOpError(f"{reason}; use bounds (CROWN, alpha-CROWN) with branch and bound for this network")

    def _want(self, targets: dict[int, Array]) -> None:
        """Backwards: the values of each node that the targets can depend on."""
        for index in range(max(targets), -1, -1):
            mask = self.wanted.get(index, targets.get(index))
            if mask is None:
                continue
            self.wanted[index] = mask = mask | targets.get(index, False)
            for source, needed in zip(self.network.nodes[index].inputs, self._reads(index, mask), strict=True):
                self.wanted[source] = needed | self.wanted.get(source, False)
        self.wanted = {index: mask for index, mask in self.wanted.items() if mask.any() or index in targets or index == 0}

    def _reads(self, index: int, mask: Array) -> list[Array]:
        node = self.network.nodes[index]
        if isinstance(node.op, Input):
            return []
        if isinstance(node.op, Affine):
            parts = jacobians(node.op, self.network.input_shapes(index), self.memory_mb)
            return [_columns_used(part, mask) for part in parts]
        bounds = self.known.get(node.inputs[0])
        if isinstance(node.op, MaxReduce):
            taps = self.network.nodes[node.inputs[0]].shape[-1]
            reachable = np.ones((mask.size, taps), dtype=bool) if bounds is None else reachable_taps(bounds, taps)
            return [(reachable & mask[:, None]).reshape(-1)]
        if isinstance(node.op, Piecewise) and bounds is not None:
            return [mask & ~Curve.of(node.op, node.shape, *bounds).constant]
        return [mask]

    def _affine(self, index: int, node: Node) -> Expression:
        """W v + b for the wanted rows; the other rows are left empty."""
        op = node.op
        if not isinstance(op, Affine):
            raise TypeError(f"node {node.name!r} is not affine")
        shapes = self.network.input_shapes(index)
        size = self.wanted[index].size
        parts = [keep_rows(part, self.wanted[index]) for part in jacobians(op, shapes, self.memory_mb)]
        bias, spread = op.bias(), op.bias_magnitude()
        offset, offset_size = (
            np.zeros(size) if b is None else b.detach().expand(1, *node.shape).double().numpy().reshape(-1) for b in (bias, spread)
        )
        sources = [self.values.get(source) or self._nothing(source) for source in node.inputs]
        return self.multiply(parts, sources, offset, offset_size, op.fan_in(*shapes), node.inputs)

    def _nothing(self, source: int) -> Expression:
        """Values that no wanted row reads."""
        size = int(np.prod(self.network.nodes[source].shape))
        return Expression(sparse.csr_matrix((size, self.builder.columns)), np.zeros(size), np.zeros(size))

    def multiply(
        self,
        parts: list[sparse.csr_matrix],
        sources: list[Expression],
        offset: Array,
        offset_size: Array | None = None,
        terms: int = 1,
        nodes: tuple[int, ...] = (),
    ) -> Expression:
        """sum_j parts_j sources_j + offset, with what rounding may have done to it as error.

        A source is first given variables of its own where that leaves fewer coefficients. terms: roundings in the parts themselves;
        offset_size: magnitude that the offset was computed from; nodes: where the sources come from, to keep what was defined.
        """
        sources = [
            self._settle(part, source, nodes[k] if nodes else None) for k, (part, source) in enumerate(zip(parts, sources, strict=True))
        ]
        columns = self.builder.columns
        matrix = sparse.csr_matrix((offset.size, columns))
        constant, error = offset.astype(np.float64), np.zeros(offset.size)
        size = np.abs(offset) if offset_size is None else offset_size
        for part, source in zip(parts, sources, strict=True):
            matrix = matrix + part @ widen(source.matrix, columns)
            constant = constant + part @ source.constant
            error = error + abs(part) @ source.error
            size = size + abs(part) @ self.builder.magnitude(source)
        most = sum(int(np.diff(part.indptr).max(initial=0)) for part in parts)
        copies = terms == 0 and most <= 1 and not offset.any()
        if not copies:
            count = most + terms + 4
            error = (1 + rounding.gamma(4, _DTYPE)) * error + 2 * rounding.gamma(count, _DTYPE) * size + rounding.underflow(count, _DTYPE)
        return Expression(matrix.tocsr(), constant, error)

    def _settle(self, part: sparse.csr_matrix, source: Expression, node: int | None) -> Expression:
        """The source itself, or variables that equal it where products of dense rows would cost more."""
        used = _columns_used(part, None)
        counts = np.diff(source.matrix.indptr)
        dense = used & (counts > 1)
        if not dense.any() or part.shape[0] == 1 or np.diff(part.indptr).max(initial=0) <= 1:
            return source
        columns_seen = np.unique(source.matrix[np.flatnonzero(used)].indices).size
        products = part.astype(bool).astype(np.float64) @ counts
        composed = int(np.minimum(products, columns_seen).sum())
        self.builder.reserve(min(composed, part.nnz + int(counts[used].sum())))
        if composed <= part.nnz + int(counts[dense].sum()):
            return source
        settled = self._define(source, dense, None if node is None else self.known.get(node))
        if node is not None:
            self.values[node] = settled
        return settled

    def _define(self, source: Expression, mask: Array, known: Bounds | None) -> Expression:
        """Variables equal to the masked values."""
        which = np.flatnonzero(mask)
        chosen = source.take(which)
        lower, upper = self.builder.interval(chosen)
        if known is not None:
            lower, upper = np.maximum(lower, known[0][which]), np.minimum(upper, known[1][which])
        columns = self.builder.variables(lower, np.maximum(lower, upper))
        row = np.arange(which.size)
        self.builder.define(chosen, entries(which.size, self.builder.columns, (row, columns, -1.0)))
        matrix = widen(keep_rows(source.matrix, ~mask), self.builder.columns) + entries(
            mask.size, self.builder.columns, (which, columns, 1.0)
        )
        return Expression(matrix, np.where(mask, 0.0, source.constant), np.where(mask, 0.0, source.error))

    def _activation(self, index: int, node: Node) -> Expression:
        source = node.inputs[0]
        mask = self.wanted[index]
        argument = self.values.get(source) or self._nothing(source)
        bounds = self.known.get(source) or self.builder.interval(argument)
        if isinstance(node.op, Piecewise):
            return encode_piecewise(self.builder, argument, Curve.of(node.op, node.shape, *bounds), mask)
        if isinstance(node.op, MaxReduce):
            return encode_max(self.builder, argument, bounds, self.network.nodes[source].shape[-1], mask)
        if isinstance(node.op, Activation):
            return encode_planes(self.builder, argument, node.op, node.shape, bounds, mask)
        raise UnsupportedOpError(f"node {node.name!r} ({type(node.op).__name__}) belongs to no family that can be encoded")


def _columns_used(part: sparse.csr_matrix, rows: Array | None) -> Array:
    """Mask of the columns in which some (masked) row has an entry."""
    chosen = part if rows is None or rows.all() else part[np.flatnonzero(rows)]
    used = np.zeros(part.shape[1], dtype=bool)
    used[chosen.indices] = True
    return used
