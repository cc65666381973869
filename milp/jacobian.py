"""Sparse Jacobians of affine ops, found by applying `op.linear` to probes: no op is known by name and no dense Jacobian is ever held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor

from bounds.errors import MemoryLimitError
from bounds.ops.base import Affine, MovesData, Shape, product

_CHUNK_ELEMENTS = 4_000_000
"""Elements of one dense chunk of columns: 32 MB."""
_BYTES_PER_ENTRY = 12
Probe = Callable[[Tensor], Tensor]


def jacobians(op: Affine, shapes: tuple[Shape, ...], memory_mb: float = math.inf) -> tuple[sparse.csr_matrix, ...]:
    """d op / d input for every input, (outputs, inputs) each, in float64 and C order. The op's parameters must be float64; cached on it.

    Every entry is one coefficient of the op as `op.linear` computes it (a product of it with 1 and sums with 0 are exact).

    Raises:
        MemoryLimitError: the entries do not fit into `memory_mb`.
    """
    cache = op.__dict__.setdefault("_jacobians", {})
    if shapes not in cache:
        if isinstance(op, MovesData):
            cache[shapes] = _by_labels(op, shapes)
        else:
            cache[shapes] = tuple(_by_input(op, shapes, which, memory_mb) for which in range(len(shapes)))
    found: tuple[sparse.csr_matrix, ...] = cache[shapes]
    return found


def _by_labels(op: Affine, shapes: tuple[Shape, ...]) -> tuple[sparse.csr_matrix, ...]:
    """Outputs that are single inputs or zero: send labels 1, 2, ... through and read where they arrive."""
    sizes = [product(shape) for shape in shapes]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    labels = [
        torch.arange(start + 1, start + size + 1, dtype=torch.float64).reshape(1, *shape)
        for start, size, shape in zip(starts, sizes, shapes, strict=False)
    ]
    arrived = op.linear(*labels).reshape(-1).numpy().astype(np.int64) - 1
    found = []
    for start, size in zip(starts, sizes, strict=False):
        rows = np.flatnonzero((arrived >= start) & (arrived < start + size))
        found.append(_matrix(rows, arrived[rows] - start, np.ones(rows.size), (arrived.size, size)))
    return tuple(found)


def _by_input(op: Affine, shapes: tuple[Shape, ...], which: int, memory_mb: float) -> sparse.csr_matrix:
    zeros = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]

    def apply(probe: Tensor) -> Tensor:
        others = [zero.expand(probe.shape[0], *zero.shape[1:]) for zero in zeros]
        others[which] = probe
        return op.linear(*others).flatten(1)

    single = _single_dependence(apply, shapes[which])
    if single is not None:
        return single
    if sum(size > 1 for size in shapes[which]) > 1:
        return _by_colors(apply, shapes[which], memory_mb)
    return _by_columns(apply, shapes[which], memory_mb)


def _single_dependence(apply: Probe, shape: Shape) -> sparse.csr_matrix | None:
    """The Jacobian if every output depends on at most one input, else None.

    NaN spreads to exactly the outputs that read it. For each bit of the input's number one probe has NaN where the bit is 1, one where
    it is 0: an output that is NaN in both probes of a bit reads two inputs; otherwise the bits spell the one it reads.
    """
    size = product(shape)
    number = torch.arange(size)
    bits = max(1, (size - 1).bit_length())
    masks = torch.stack([((number >> bit) & 1) == value for bit in range(bits) for value in (1, 0)])
    probe = torch.where(masks, math.nan, 0.0).to(torch.float64).reshape(-1, *shape)
    tainted = torch.isnan(apply(probe)).reshape(bits, 2, -1)
    if bool((tainted[:, 0] & tainted[:, 1]).any()):
        return None
    weights = 2 ** torch.arange(bits).unsqueeze(1)
    column = (tainted[:, 0] * weights).sum(0).numpy()
    value = apply(torch.ones(1, *shape, dtype=torch.float64))[0].numpy()
    rows = np.flatnonzero((tainted[0, 0] | tainted[0, 1]).numpy() & (value != 0))
    return _matrix(rows, column[rows], value[rows], (value.size, size))


def _by_colors(apply: Probe, shape: Shape, memory_mb: float) -> sparse.csr_matrix:
    """Many columns in one probe, where no output can read two of them (convolutions and pools: those far enough apart).

    NaN in the slab {x : index along one axis is i} taints every output that reads any of it. An input is read only by outputs that all of
    its slabs taint; so when the indices of an axis are coloured such that slabs of one colour taint disjoint outputs, inputs whose colours
    agree along every axis share no output, and one probe gives all of their columns.
    """
    size = product(shape)
    axes = [axis for axis, length in enumerate(shape) if length > 1]
    owners = [_owners(apply, shape, axis) for axis in axes]
    outputs = owners[0].shape[1]
    strides = [product(shape[axis + 1 :]) for axis in axes]
    combinations = np.array(list(itertools.product(*(range(len(owner)) for owner in owners))))
    chunk = max(1, _CHUNK_ELEMENTS // max(outputs, size, 1))
    rows, columns, values = [], [], []
    budget = _Budget(size, outputs, memory_mb)
    for start in range(0, len(combinations), chunk):
        colors = combinations[start : start + chunk]
        reads = [owner[colors[:, k]] for k, owner in enumerate(owners)]
        column = sum(read * stride for read, stride in zip(reads, strides, strict=True))
        owned = np.logical_and.reduce([read >= 0 for read in reads])
        probe = np.zeros((len(colors), size))
        number, output = np.nonzero(owned)
        probe[number, column[number, output]] = 1.0
        dense = apply(torch.from_numpy(probe).reshape(-1, *shape)).numpy()
        value = dense[number, output]
        kept = value != 0
        budget.spend(int(kept.sum()))
        rows.append(output[kept])
        columns.append(column[number, output][kept])
        values.append(value[kept])
    return _matrix(np.concatenate(rows), np.concatenate(columns), np.concatenate(values), (outputs, size))


def _owners(apply: Probe, shape: Shape, axis: int) -> np.ndarray:
    """(colours, outputs): for each colour of the indices of an axis the one index of it whose slab each output reads, or -1."""
    length = shape[axis]
    probe = torch.zeros(length, *shape, dtype=torch.float64)
    index = torch.arange(length)
    probe.movedim(axis + 1, 1)[index, index] = math.nan
    tainted = torch.isnan(apply(probe)).numpy()
    weights = tainted.astype(np.float32)
    conflict = weights @ weights.T > 0
    color = np.full(length, -1)
    for i in range(length):
        taken = set(color[:i][conflict[i, :i]].tolist())
        color[i] = next(c for c in range(length) if c not in taken)
    owners = np.full((int(color.max()) + 1, tainted.shape[1]), -1)
    for i in range(length):
        owners[color[i], tainted[i]] = i
    return owners


class _Budget:
    """Counts entries against a memory limit."""

    def __init__(self, inputs: int, outputs: int, memory_mb: float) -> None:
        self._what = f"an affine op with {inputs} inputs and {outputs} outputs has too many coefficients for {memory_mb:g} MB"
        self._left = memory_mb * 2**20 / _BYTES_PER_ENTRY

    def spend(self, entries: int) -> None:
        self._left -= entries
        if self._left < 0:
            raise MemoryLimitError(f"{self._what}; raise --memory-limit")


def _by_columns(apply: Probe, shape: Shape, memory_mb: float) -> sparse.csr_matrix:
    """Columns in chunks of the identity, each chunk made sparse before the next."""
    size = product(shape)
    outputs = apply(torch.zeros(1, *shape, dtype=torch.float64)).shape[1]
    chunk = max(1, min(size, _CHUNK_ELEMENTS // max(outputs, size, 1)))
    rows, columns, values = [], [], []
    budget = _Budget(size, outputs, memory_mb)
    for start in range(0, size, chunk):
        count = min(chunk, size - start)
        probe = torch.zeros(count, size, dtype=torch.float64)
        probe[torch.arange(count), start + torch.arange(count)] = 1.0
        dense = apply(probe.reshape(count, *shape)).numpy()
        column, row = np.nonzero(dense)
        rows.append(row.astype(np.int32))
        columns.append((column + start).astype(np.int32))
        values.append(dense[column, row])
        budget.spend(row.size)
    return _matrix(np.concatenate(rows), np.concatenate(columns), np.concatenate(values), (outputs, size))


def _matrix(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    return sparse.csr_matrix((values, (rows, columns)), shape=shape)
