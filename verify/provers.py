"""Bound methods by name, over batches of images: the margins they prove and the radii that their planes certify."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.crown import Crown, CrownIbp, FastLin
from bounds.engine import DEFAULT_MEMORY_MB, BoundEngine
from bounds.envelope import certified_radius
from bounds.errors import SpecError
from bounds.ibp import Ibp
from bounds.ibp_planes import IbpPlanes
from bounds.network import Network
from bounds.region import LpBall
from bounds.trace import Semantics
from verify.spec import Margins, class_margins

LINEAR = ("ibp-planes", "crown-ibp", "fastlin", "crown", "alpha")
"""Methods whose bounds are planes, cheapest first."""
ENGINES = ("ibp", *LINEAR)
_GROUP = 32
"""Images bounded in one call: enough to keep a matrix product busy, few enough for the caches."""
_DOUBT = 0.02
"""Margins proven to be above minus this share of their range are tried again in float64; float32 rounding costs less in most networks."""


@dataclass(frozen=True)
class Proofs:
    """What a method proved of N images.

    margins: lower bounds of the worst margins, (N,) float64. radii: min(eps, nearest plane), (N,) float64, None where they were not asked
    for. seconds: spent on bounds; radii_seconds: spent on radii on top of that.
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

    def __call__(self, network: Network, region: LpBall, labels: Tensor, radii: bool = False) -> Proofs:
        """Margins y[label] - y[j] of each image's region, and the distances of their planes where `radii` asks for them.

        Raises:
            TimeLimitError: the deadline passed. MemoryLimitError: a single row of bounds does not fit.
        """
        goal = class_margins(labels, network.outputs)
        work = _Work(network, region, goal, radii)
        for images in torch.arange(len(labels)).split(_GROUP):
            self._prove(work, images)
        return Proofs(work.margins, work.radii if radii else None, work.seconds, work.radii_seconds)

    def _prove(self, work: _Work, images: Tensor) -> None:
        first = "crown" if self.name == "alpha" else self.name
        work.bound(images, self._engine(first, torch.float32))
        if self.name == "alpha":
            work.bound(work.open(images), self._engine(self.name, torch.float32))
        work.bound(work.doubtful(images), self._engine(self.name, torch.float64))

    def _engine(self, name: str, dtype: torch.dtype) -> BoundEngine:
        """A bound method by name. The objective is folded into the last layer by all of them, interval propagation included."""
        if name == "ibp":
            return Ibp(dtype, self.device, self.semantics, memory_mb=self.memory_mb)
        if name == "alpha":
            from bounds.alpha import AlphaCrown

            return AlphaCrown(dtype, self.device, self.semantics, self.memory_mb, deadline=self.deadline, both=False)
        linear = {"ibp-planes": IbpPlanes, "fastlin": FastLin, "crown": Crown, "crown-ibp": CrownIbp}[name]
        return linear(dtype, self.device, self.semantics, self.memory_mb, deadline=self.deadline)


class _Work:
    """The best found so far for every image."""

    def __init__(self, network: Network, region: LpBall, goal: Margins, wants_radii: bool) -> None:
        self.network, self.region, self.goal, self.wants_radii = network, region, goal, wants_radii
        self.margins = torch.full((region.batch,), -torch.inf, dtype=torch.float64)
        self.widths = torch.zeros_like(self.margins)
        self.radii = torch.zeros_like(self.margins)
        self.seconds = self.radii_seconds = 0.0

    def open(self, images: Tensor) -> Tensor:
        """Those that are not proven yet."""
        return images[self.margins[images] <= 0]

    def doubtful(self, images: Tensor) -> Tensor:
        """Those that rounding alone may have left open."""
        left = self.open(images)
        return left[self.margins[left] > -_DOUBT * self.widths[left]]

    def bound(self, images: Tensor, engine: BoundEngine) -> None:
        """One call for some images; what it proves better than before is kept."""
        if len(images) == 0:
            return
        begin = time.monotonic()
        region, goal = self.region.select(images), self.goal.select(images)
        found = engine(self.network, region, goal.C)
        lower = found.objective.lower
        self.margins[images] = torch.maximum(self.margins[images], goal.worst(lower).cpu())
        self.widths[images] = found.objective.width.amax(-1).cpu()
        middle = time.monotonic()
        if self.wants_radii:
            if found.linear is None:
                raise SpecError(f"{type(engine).__name__} gives no planes; radii need a method that does, such as Crown or FastLin")
            self.radii[images] = torch.maximum(self.radii[images], certified_radius(found.linear, region, lower))
        self.seconds += middle - begin
        self.radii_seconds += time.monotonic() - middle
