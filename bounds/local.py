"""The start of a backward walk in a convolutional network, on patches instead of whole maps.

Rows stay patches while their windows are small and the ops they meet are local; from there the walk of `bounds.backward` goes on with whole
maps. Numerics: the same charges pay as there, since every sum over a window is part of a sum over the map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds import rounding
from bounds.ops.base import Activation, Affine, Input
from bounds.patch import Patch, as_map

if TYPE_CHECKING:
    from bounds.network import Network
    from bounds.view import View

_EXACT = torch.float64
_LARGEST_SHARE = 0.6
"""Windows that cover more than this share of the map are not worth their gathers."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows to be walked down from node `start`: +-1 at one element each. All tensors (images, rows).

    sign: None for two-sided walks, which bound the rows and their negatives (all planes must be parallel).
    """

    start: int
    elements: Tensor
    sign: Tensor | None


class LocalWalk:
    """Walks rows down as patches; `lower` (and for two-sided walks `upper`, of the negated rows) are the constants so far, (T,)."""

    def __init__(self, view: View, rows: Rows, fee: Tensor) -> None:
        self.view, self.network, self.rows = view, view.trace.network, rows
        channels, height, width = as_map(self.network.nodes[rows.start].shape)  # type: ignore[misc]
        flat = rows.elements.flatten()
        everyone = torch.arange(flat.numel(), device=flat.device)
        A = torch.zeros(flat.numel(), channels, 1, 1, dtype=view.trace.dtype, device=flat.device)
        A[everyone, flat // (height * width), 0, 0] = 1.0 if rows.sign is None else rows.sign.flatten()
        image = everyone // rows.elements.shape[1]
        self.pending = {rows.start: Patch(A, image, flat // width % height, flat % width)}
        self.largest = channels
        self.lower, self.upper = -fee.flatten(), -fee.flatten()

    def run(self) -> int:
        """Walk down while it pays; returns the highest node that whole maps must go through (0: only the input is left)."""
        for index in range(self.rows.start, 0, -1):
            if index in self.pending and not (self._pays() and self._step(index)):
                return index
        return 0

    def _pays(self) -> bool:
        for index, patch in self.pending.items():
            _, height, width = as_map(self.network.nodes[index].shape)  # type: ignore[misc]
            if patch.size[0] * patch.size[1] > _LARGEST_SHARE * height * width:
                return False
        return True

    def _step(self, index: int) -> bool:
        """Go through node `index` if its op is local; False leaves everything as it is."""
        node, shapes = self.network.nodes[index], self.network.input_shapes(index)
        here = as_map(node.shape)
        if here is None or any(as_map(shape) is None for shape in shapes):
            return False
        patch, constants = self.pending[index], (self.lower, self.upper)
        if isinstance(node.op, Activation):
            results: tuple[Patch, ...] | None = (self._through_activation(index, patch),) if node.shape == shapes[0] else None
        elif isinstance(node.op, Affine):
            results = node.op.local_adjoint(patch.inside(*here[1:]), *shapes)
        else:
            results = None
        if results is None:
            return False
        arrived: dict[int, Patch] = {}
        for source, result in zip(node.inputs, results, strict=True):
            held = arrived.get(source, self.pending.get(source))
            total = result if held is None else held.merge(result)
            if total is None:
                self.lower, self.upper = constants
                return False
            arrived[source] = total
            self.largest = max(self.largest, total.A[0].numel())
        del self.pending[index]
        self.pending.update(arrived)
        return True

    def _through_activation(self, index: int, patch: Patch) -> Patch:
        planes, shape = self.view.planes(index), as_map(self.network.nodes[index].shape)
        maps = [planes.slope, planes.gap, self.view.charge(index)] + ([] if planes.parallel else [planes.step])
        stacked = patch.windows(torch.cat([m.reshape(-1, *shape) for m in maps], dim=1))  # type: ignore[misc]
        parts = stacked.split(shape[0], dim=1)  # type: ignore[index]
        slope, gap, charge = parts[:3]
        negative = patch.A.clamp(max=0)
        paid = _payment(patch.A.detach(), charge.detach())
        slack = 1 + patch.sums_error()
        self.lower = self.lower - paid + slack * Patch.sums(negative * gap)
        self.upper = self.upper - paid
        if self.rows.sign is None:
            self.upper = self.upper - slack * Patch.sums((patch.A - negative) * gap)
        A = patch.A * slope
        return replace(patch, A=A if planes.parallel else A.addcmul_(negative, parts[3]))

    def decrease(self) -> tuple[Tensor, Tensor] | None:
        """If only the input is left: how far the rows, and their negatives, can fall below their value at the origin; (T,) each."""
        patch = self.pending.get(0)
        if patch is None or len(self.pending) != 1:
            return None
        region = self.view.region()
        fall = region.decrease_patch(patch)
        both = self.rows.sign is None and not region.symmetric
        return fall, region.decrease_patch(replace(patch, A=-patch.A)) if both else fall

    def dense(self) -> dict[int, Tensor]:
        """The pending coefficients as whole tensors (images, rows, *shape)."""
        whole = {}
        for index, patch in self.pending.items():
            shape = self.network.nodes[index].shape
            maps = patch.dense(*as_map(shape))  # type: ignore[misc]
            whole[index] = maps.reshape(*self.rows.elements.shape, *shape)
        return whole


def coefficients(view: View, start: int) -> int:
    """How many coefficients a row of node `start` holds at the most, by a walk from the middle of the map; a whole map's, at the widest
    node below, if rows do not stay patches down to the input."""
    network = view.trace.network
    _, height, width = as_map(network.nodes[start].shape)  # type: ignore[misc]
    element = torch.tensor([[height // 2 * width + width // 2]], device=view.trace.region.origin.device)
    sign = None if view.trace.parallel else torch.ones_like(element, dtype=view.trace.dtype)
    walk = LocalWalk(view, Rows(start, element, sign), torch.zeros_like(element, dtype=_EXACT))
    if walk.run() == 0 and set(walk.pending) == {0}:
        return walk.largest
    return max(math.prod(node.shape) for node in network.nodes[: start + 1])


def is_local(network: Network, index: int) -> bool:
    """Whether rows of node `index` are worth starting as patches: its shape is a map of more than one position."""
    shape = as_map(network.nodes[index].shape)
    return shape is not None and shape[1] * shape[2] > 1 and not isinstance(network.nodes[index].op, Input)


def _payment(A: Tensor, charge: Tensor) -> Tensor:
    """<|A|, charge> of every row, inflated."""
    return torch.mul(A, charge).abs_().sum((1, 2, 3)).to(_EXACT) * rounding.SAFETY
