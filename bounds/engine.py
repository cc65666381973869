"""What a bound engine takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bounds.errors import DeviceError, NumericsError, ShapeError
from bounds.interval import Interval
from bounds.linear import LinearBounds
from bounds.network import Network
from bounds.ops.base import product
from bounds.region import Region

DEFAULT_MEMORY_MB = 2048.0
"""Memory an engine may use for coefficient tensors unless told otherwise."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """Proven bounds of a network on a batch of regions; every rounding error is already inside them.

    intervals: one per node of the network, (B, *node shape), in the working type, each enclosing the node's values on the region.
    objective: enclosure of C f(x), (B, rows), float64. linear: the planes behind it (None for interval propagation).

    Raises:
        NumericsError: the objective's bound is NaN or infinite.
    """

    intervals: tuple[Interval, ...]
    objective: Interval
    linear: LinearBounds | None

    def __post_init__(self) -> None:
        if not self.objective.is_finite():
            raise NumericsError("the objective's bound is NaN or infinite; scale the objective, shrink the region or use float64")


class BoundEngine(Protocol):
    """A sound bound method; its dataclass fields are its whole configuration."""

    def __call__(
        self, network: Network, region: Region, objective: Tensor | None = None, known: dict[int, Interval] | None = None
    ) -> Bounds:
        """Bounds of every node and of C f(x).

        Args:
            network: any dtype; it is converted to the engine's.
            region: B regions of inputs.
            objective: C, (rows, outputs) or (B, rows, outputs); None for the outputs themselves. Its entries must be exact in the
                working type (small integers are).
            known: enclosures of nodes proven elsewhere, by node index; the engine intersects with them.

        Raises:
            NumericsError: NaN or infinity met. MemoryLimitError: a single row does not fit.
        """


def place(device: str) -> torch.device:
    """The torch device of that name.

    Raises:
        DeviceError: an unknown device, or a GPU that is not there.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"device {device!r} is not known; use 'cpu' or 'cuda'") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device 'cuda' was asked for, but torch sees no GPU; use --device cpu or install a CUDA build of torch")
    return found


def as_objective(objective: Tensor | None, network: Network, region: Region, dtype: torch.dtype, device: torch.device) -> Tensor:
    """C as (B, rows, *output_shape) in the working type.

    Raises:
        ShapeError: the shape does not fit, or an entry is not exact in the working type.
    """
    count = product(network.output_shape)
    wide = torch.eye(count) if objective is None else objective
    if wide.dim() == 2:
        wide = wide.unsqueeze(0).expand(region.batch, *wide.shape)
    if wide.dim() != 3 or wide.shape[0] != region.batch or wide.shape[2] != count:
        raise ShapeError(
            f"an objective for {region.batch} regions and {count} outputs has shape (B, rows, {count}), got {tuple(wide.shape)}"
        )
    narrow = wide.to(device=device, dtype=dtype)
    if bool((narrow.to(wide) != wide).any()):
        raise ShapeError(f"the objective has entries that {dtype} cannot represent exactly; scale it or use float64")
    return narrow.unflatten(2, network.output_shape)


def elements(memory_mb: float, dtype: torch.dtype) -> int:
    """How many elements the coefficient tensors at one node may hold so that a walk stays within the memory limit.

    A walk holds about eight tensors of that size at a time (both directions, clamped copies, the kernel's workspace).
    """
    return max(1, int(memory_mb * 2**20 / (torch.finfo(dtype).bits // 8) / 8))
