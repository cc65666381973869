"""Bound methods by name, over batches of images: the margins they prove and the radii that their planes certify."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding
from bounds.crown import Crown, CrownIbp, FastLin
from bounds.engine import DEFAULT_MEMORY_MB, BoundEngine, Bounds
from bounds.envelope import certified_radius, uniform_eps
from bounds.errors import SpecError
from bounds.ibp import Ibp
from bounds.ibp_planes import IbpPlanes
from bounds.linear import LinearBounds
from bounds.network import Network
from bounds.region import LpBall
from bounds.trace import Semantics
from verify.spec import Margins, class_margins

LINEAR = ("ibp-planes", "crown-ibp", "fastlin", "crown", "alpha")
"""Methods whose bounds are planes, cheapest first."""
ENGINES = ("ibp", *LINEAR)
_GROUP = 32
"""Images bounded in one call: enough to keep a matrix product busy, few enough for the caches."""
_HELD = 2**20
"""Coefficients of open images that wait for those of other groups, so that a call for their radii is worth its overhead."""
_DOUBT = 0.02
"""Margins proven to be above minus this share of their range are tried again in float64; float32 rounding costs less in most networks."""


@dataclass(frozen=True)
class Proofs:
    """What a method proved of N images.

    margins: lower bounds of the worst margins, (N,) float64. radii: min(eps, nearest plane), (N,) float64, None where they were not asked
    for. seconds: spent on bounds; radii_seconds: spent on radii on top of that; both by the prover's clock.
    """

    margins: Tensor
    radii: Tensor | None
    seconds: float
    radii_seconds: float


@dataclass(frozen=True)
class Prover:
    """One of `ENGINES` over any number of images.

    Images whose proof float32 rounding may have cost are tried again in float64. "alpha" works only on images that CROWN leaves open.
    """

    name: str
    device: str = "cpu"
    semantics: Semantics = "real"
    memory_mb: float = DEFAULT_MEMORY_MB
    deadline: float | None = None
    clock: Callable[[], float] = time.monotonic

    def __call__(self, network: Network, region: LpBall, labels: Tensor, radii: bool = False) -> Proofs:
        """Margins y[label] - y[j] of each image's region, and the distances of their planes where `radii` asks for them.

        Raises:
            TimeLimitError: the deadline passed. MemoryLimitError: a single row of bounds does not fit. RegionError: radii asked for where
            eps differs between the features of a set.
        """
        goal = class_margins(labels, network.outputs)
        work = _Work(network, region, goal, radii, self.clock)
        for images in torch.arange(len(labels)).split(_GROUP):
            self._prove(work, images)
        work.finish()
        return Proofs(work.margins, work.radii if radii else None, work.seconds, work.radii_seconds)

    def _prove(self, work: _Work, images: Tensor) -> None:
        first = "crown" if self.name == "alpha" else self.name
        work.bound(images, self._engine(first, torch.float32))
        if self.name == "alpha":
            work.bound(work.open(images), self._engine(self.name, torch.float32))
        work.bound(work.doubtful(images), self._engine(self.name, torch.float64), again=True)

    def _engine(self, name: str, dtype: torch.dtype) -> BoundEngine:
        """A bound method by name. The objective is folded into the last layer by all of them, interval propagation included."""
        if name == "ibp":
            return Ibp(dtype, self.device, self.semantics, memory_mb=self.memory_mb)
        if name == "alpha":
            from bounds.alpha import AlphaCrown

            return AlphaCrown(dtype, self.device, self.semantics, self.memory_mb, deadline=self.deadline, both=False)
        linear = {"ibp-planes": IbpPlanes, "fastlin": FastLin, "crown": Crown, "crown-ibp": CrownIbp}[name]
        return linear(dtype, self.device, self.semantics, self.memory_mb, deadline=self.deadline, both=False)


@dataclass(frozen=True)
class _Open:
    """Images that a call left open, its lower planes A x + b of their margins, and what it proved of them."""

    images: Tensor
    A: Tensor
    b: Tensor
    lower: Tensor


def _spans(found: Bounds, region: LpBall) -> Tensor:
    """How far the margins may range, the most over the rows, for scale; (B,)."""
    if found.linear is None:
        return found.objective.width.amax(-1).cpu()
    A, b = found.linear.lower_A.flatten(2), found.linear.lower_b
    center = rounding.matvec(A, region.center.to(A).flatten(1)) + b
    return 2 * (center - found.objective.lower).amax(-1).cpu()


class _Work:
    """The best found so far for every image."""

    def __init__(self, network: Network, region: LpBall, goal: Margins, wants_radii: bool, clock: Callable[[], float]) -> None:
        self.network, self.region, self.goal, self.wants_radii, self.clock = network, region, goal, wants_radii, clock
        self.margins = torch.full((region.batch,), -torch.inf, dtype=torch.float64)
        self.widths = torch.zeros_like(self.margins)
        self.radii = torch.zeros_like(self.margins)
        self.eps = uniform_eps(region) if wants_radii else self.radii
        self.waiting: list[_Open] = []
        self.seconds = self.radii_seconds = 0.0

    def open(self, images: Tensor) -> Tensor:
        """Those that are not proven yet."""
        return images[self.margins[images] <= 0]

    def doubtful(self, images: Tensor) -> Tensor:
        """Those that rounding alone may have left open."""
        left = self.open(images)
        return left[self.margins[left] > -_DOUBT * self.widths[left]]

    def bound(self, images: Tensor, engine: BoundEngine, again: bool = False) -> None:
        """One call for some images; what it proves better than before is kept. again: the planes are those of an earlier call, but for rounding."""
        if len(images) == 0:
            return
        begin = self.clock()
        region, goal = self.region.select(images), self.goal.select(images)
        found = engine(self.network, region, goal.C)
        self.margins[images] = torch.maximum(self.margins[images], goal.worst(found.objective.lower).cpu())
        self.widths[images] = _spans(found, region)
        middle = self.clock()
        if self.wants_radii:
            if found.linear is None:
                raise SpecError(f"{type(engine).__name__} gives no planes; radii need a method that does, such as Crown or FastLin")
            self._keep(images, found.objective.lower.cpu(), None if again else found.linear)
        self.seconds += middle - begin
        self.radii_seconds += self.clock() - middle

    def _keep(self, images: Tensor, lower: Tensor, planes: LinearBounds | None) -> None:
        """Radii of proven images are known. The planes of others wait until there are enough of them."""
        left = (lower <= 0).any(-1)
        self.radii[images] = torch.where(left, self.radii[images], self.eps[images])
        part = left.nonzero().flatten()
        if planes is None or len(part) == 0:
            return
        if len(part) == len(images):
            found = _Open(images, planes.lower_A.cpu(), planes.lower_b.cpu(), lower)
        else:
            # Rows are picked by index_select, several times as fast as a mask.
            there = part.to(planes.lower_A.device)
            A, b = (side.index_select(0, there).cpu() for side in (planes.lower_A, planes.lower_b))
            found = _Open(images.index_select(0, part), A, b, lower.index_select(0, part))
        self.waiting.append(found)
        if sum(w.A.numel() for w in self.waiting) > _HELD:
            self._measure()

    def finish(self) -> None:
        """The radii of all images that still wait."""
        begin = self.clock()
        self._measure()
        self.radii_seconds += self.clock() - begin

    def _measure(self) -> None:
        if self.waiting:
            images, A, b, lower = (torch.cat([getattr(w, name) for w in self.waiting]) for name in ("images", "A", "b", "lower"))
            found = certified_radius(LinearBounds(A, b, A, b), self.region.select(images), lower)
            self.radii.scatter_reduce_(0, images, found, "amax")
            self.waiting = []
