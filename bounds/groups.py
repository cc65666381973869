"""Which rows of a node are walked down together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bounds.errors import MemoryLimitError
from bounds.local import coefficients, is_local
from bounds.trace import Trace
from bounds.view import View

_CACHED = 2**21
"""Elements of one coefficient tensor on a CPU: larger chunks leave the caches and cost up to half as much again."""


def row_size(trace: Trace, index: int) -> int:
    """How many coefficients a row of node `index` holds at the most."""
    return max(math.prod(node.shape) for node in trace.network.nodes[: index + 1])


def rows_per_group(trace: Trace, index: int, memory: int, wanted: int = 0) -> int:
    """How many rows of node `index` are walked at once. wanted: how many there are, if it is known."""
    size = row_size(trace, index)
    if size > memory:
        raise MemoryLimitError(f"one row of coefficients needs {size} elements, the limit allows {memory}; raise the memory limit")
    most = min(memory, _CACHED) if trace.region.origin.device.type == "cpu" else memory
    rows = max(1, most // (2 * size))
    if wanted > rows and is_local(trace.network, index):
        # Rows that stay patches are small; a step also holds windows of the planes that they meet.
        rows = max(rows, most // (4 * coefficients(View(trace, torch.zeros(1, dtype=torch.long)), index)))
    return rows


def row_groups(trace: Trace, index: int, wanted: Tensor, memory: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Groups (images, elements, valid) that cover the mask (B, n), each small enough to be walked at once.

    Few rows are one group in which each names its image: copies of the planes cost less there than padding and further groups.
    """
    total = int(wanted.sum())
    if trace.batch > 1 and 2 * total * row_size(trace, index) <= min(memory, _CACHED) and not is_local(trace.network, index):
        images, elements = wanted.nonzero(as_tuple=True)
        return [(images, elements.unsqueeze(1), torch.ones_like(elements, dtype=torch.bool).unsqueeze(1))] if total else []
    return _alike_groups(wanted, rows_per_group(trace, index, memory, total))


def _alike_groups(wanted: Tensor, rows: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Groups (images, elements, valid) that cover the mask (B, n) with at most about `rows` rows each.

    Images with similar counts share a group and are padded to the longest (by repeating element 0, valid False).
    """
    counts = wanted.sum(1)
    order = torch.argsort(counts, descending=True).tolist()
    sizes = counts.tolist()
    groups: list[tuple[Tensor, Tensor, Tensor]] = []
    position = 0
    while position < len(order) and sizes[order[position]] > 0:
        longest = sizes[order[position]]
        fit = max(1, rows // longest)
        members = [i for i in order[position : position + fit] if sizes[i] > 0.7 * longest or longest <= 8]
        members = [i for i in members if sizes[i] > 0]
        position += len(members)
        images = torch.tensor(members, device=wanted.device)
        elements, valid = _padded(wanted[images], longest)
        for start in range(0, longest, rows):
            groups.append((images, elements[:, start : start + rows], valid[:, start : start + rows]))
    return groups


def _padded(mask: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The positions of the True entries of each row of `mask` (B, n), padded to (B, longest), and which of them are real."""
    row, column = mask.nonzero(as_tuple=True)
    if mask.shape[0] == 1:
        return column.unsqueeze(0), torch.ones_like(column, dtype=torch.bool).unsqueeze(0)
    rank = torch.arange(row.numel(), device=mask.device) - torch.searchsorted(row, row)
    elements = torch.zeros(mask.shape[0], longest, dtype=torch.long, device=mask.device)
    valid = torch.zeros_like(elements, dtype=torch.bool)
    elements[row, rank] = column
    valid[row, rank] = True
    return elements, valid
