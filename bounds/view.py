"""What a backward walk reads of a trace: all of it, or the part of some regions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bounds.errors import UnsupportedOpError
from bounds.region import Region
from bounds.trace import Planes, ProductPlanes, Trace


@dataclass(frozen=True, eq=False)
class View:
    """The planes and charges of a trace, restricted to some of its regions."""

    trace: Trace
    images: Tensor | None

    def part(self, whole: Tensor) -> Tensor:
        """What a tensor (regions, ...) of the trace holds of these regions."""
        return whole if self.images is None else whole.index_select(0, self.images)

    def pick(self, whole: Tensor, elements: Tensor) -> Tensor:
        """What it holds at some elements of each, positions in the flattened node (images, rows)."""
        flat = whole.flatten(1)
        return flat.gather(1, elements) if self.images is None else flat[self.images.unsqueeze(1), elements]

    def planes(self, index: int) -> Planes:
        """The planes of activation `index`."""
        planes = self.trace.planes.get(index)
        if planes is None:
            raise UnsupportedOpError(f"node {self.trace.network.nodes[index].name!r} was walked through before it was relaxed")
        if self.images is None:
            return planes
        slope, step, gap = self.part(planes.slope), self.part(planes.step), self.part(planes.gap)
        return Planes(slope, step, gap, planes.segments, planes.parallel)

    def products(self, index: int) -> ProductPlanes:
        """The planes of bilinear node `index`."""
        planes = self.trace.products.get(index)
        if planes is None:
            raise UnsupportedOpError(f"node {self.trace.network.nodes[index].name!r} was walked through before it was relaxed")
        if self.images is None:
            return planes
        lower, upper = ((self.part(first), self.part(second)) for first, second in (planes.lower, planes.upper))
        return ProductPlanes(lower, upper, self.part(planes.gap), planes.segments, planes.parallel)

    def region(self) -> Region:
        """The regions."""
        return self.trace.region if self.images is None else self.trace.region.select(self.images)

    def underflow(self) -> Tensor:
        """The trace's allowance for underflow, (images,)."""
        return self.part(self.trace.underflow)

    def charge(self, index: int) -> Tensor:
        """The charge of node `index`, (images, *shape)."""
        return self.part(self.trace.charge[index])
