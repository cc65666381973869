"""Certified radii: how far every input can move before the proof of its class ends.

Let d(eps) be the distance of the nearest plane of the envelope whose planes were computed on the ball of radius eps. Each bound call certifies
the radius min(eps, d(eps)), and as d falls with eps, the best radius is the crossing d(eps) = eps. The three searches differ in what they make
of a call:

    bisection    verified at eps or not                                  (Fast-Lin, CROWN)
    pec          the partial certificate d(eps) as well                  (thesis Algorithm 3.5)
    secant       both, and the next eps from how far beyond the ball the planes of all calls so far are (`verify.brackets`)

All images of a batch advance in one bound call; finished ones leave it. Batches grow from four images to `Search.batch`, and tell the next
ones where to look first. A radius is only ever returned with the call that proved it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bounds.crown import Crown
from bounds.engine import BoundEngine
from bounds.envelope import certified_radius as nearest_plane
from bounds.errors import SpecError, TimeLimitError
from bounds.linear import LinearBounds
from bounds.network import Network
from bounds.region import LpBall
from verify.brackets import Bracket, Finished
from verify.spec import Domain, class_margins

Method = Literal["bisection", "pec", "secant"]
_MOST_CALLS = 100
_PILOT = 4
"""Images in the first batch of a secant search."""
_RIVALS = 9
"""Classes whose gradients are asked how far the boundary may be."""


@dataclass(frozen=True, eq=False)
class Radii:
    """Per image: `lower`, the certified radius (0: none, as for a misclassified image); `linearised_at`, the eps of the bound call that proved
    it; `calls`, the bound calls spent on it; `finished`, whether the search reached its tolerance. Tensors (N,), float64 and int64."""

    lower: Tensor
    linearised_at: Tensor
    calls: Tensor
    finished: Tensor


@dataclass(frozen=True)
class Search:
    """How radii are searched.

    method: see the module. tol: the search ends when the best radius is known within tol, in units of the input. most: the largest radius
    looked for. batch: images bounded at once. deadline: a value of time.monotonic().
    """

    method: Method = "secant"
    tol: float = 1e-4
    most: float = 0.4
    batch: int = 64
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise SpecError(f"unknown search {self.method!r}; use one of {', '.join(get_args(Method))}")
        if not (0 < self.most < math.inf):
            raise SpecError(f"the largest radius must be positive and finite, got {self.most}")
        if math.isinf(self.tol):
            raise SpecError("the tolerance must be finite; 1e-4 is the default")
        if not self.tol >= 1e-9 * self.most:
            raise SpecError(
                f"a tolerance of {self.tol} is below what rounding lets the search tell apart; use at least {1e-9 * self.most:g}"
            )


def certified_radii(
    network: Network,
    images: Tensor,
    labels: Tensor,
    *,
    norm: float = math.inf,
    domain: Domain | None = (0.0, 1.0),
    engine: BoundEngine | None = None,
    search: Search | None = None,
) -> Radii:
    """The largest radii within which the class of each image is proven constant by `engine` (default CROWN).

    For every image and every x' of the domain with ||x' - x||_p <= lower: f(x')[label] > f(x')[j] for all j != label. images: (N,
    *input_shape), labels: (N,), norm: 1, 2 or inf.

    Property: sound; the best radius of the engine within `search.tol` as long as its planes come closer when eps grows. Numerics: every
    returned radius was checked with outward rounding.

    Raises:
        SpecError: labels out of range or a domain that an image leaves. RegionError: an unsupported norm.
    """
    search = search or Search()
    task = Task(network, images.to(torch.float64), labels, norm, domain, engine or Crown(both=False), search)
    brackets = task.brackets()
    task.run(brackets)
    lower, upper, proven_at = (
        torch.tensor([getattr(b, name) for b in brackets], dtype=torch.float64) for name in ("lower", "upper", "proven_at")
    )
    calls = torch.tensor([b.calls for b in brackets], dtype=torch.int64)
    return Radii(lower, proven_at, calls, upper - lower <= search.tol)


class Task:
    """The images of one search, and bound calls on some of them.

    Raises:
        SpecError: labels out of range.
    """

    def __init__(
        self, network: Network, images: Tensor, labels: Tensor, norm: float, domain: Domain | None, engine: BoundEngine, search: Search
    ) -> None:
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < network.outputs:
            raise SpecError(f"labels run from 0 to {network.outputs - 1}, got {int(labels.min())} to {int(labels.max())}")
        self.network, self.engine, self.search, self.norm = network, engine, search, norm
        self.images, self.labels = images, labels
        self.domain = None if domain is None else tuple(torch.as_tensor(side, dtype=torch.float64).expand_as(images) for side in domain)
        self.dual = {1.0: math.inf, 2.0: 2.0}.get(norm, 1.0)

    def run(self, brackets: list[Bracket], observe: Callable[[int], None] | None = None) -> None:
        """Narrow the brackets of all images to the tolerance, as long as there is time. observe: told how many images are finished."""
        finished = Finished() if self.search.method == "secant" else None
        start = 0
        while start < len(brackets) and not self.late():
            size = self.search.batch if finished is None else min(self.search.batch, max(_PILOT, start))
            chunk = range(start, min(start + size, len(brackets)))
            self.narrow(brackets, chunk, finished)
            start = chunk.stop
            if observe is not None:
                observe(start)

    def narrow(self, brackets: list[Bracket], chunk: range, finished: Finished | None) -> None:
        """Advance some images together until they are done; what was learned is added to `finished`."""
        while not self.late():
            open_ = [i for i in chunk if not brackets[i].done and brackets[i].calls < _MOST_CALLS]
            if not open_:
                break
            chosen = [brackets[i] for i in open_]
            eps = [(b.lower + b.upper) / 2 if finished is None else b.next(finished) for b in chosen]
            begin = time.monotonic()
            try:
                self.advance(torch.tensor(open_), chosen, eps)
            except TimeLimitError:
                return
            for bracket in chosen:
                bracket.seconds += (time.monotonic() - begin) / len(chosen)
        for i in chunk if finished is not None else ():
            finished.add(brackets[i])  # type: ignore[union-attr]

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.search.deadline is not None and time.monotonic() >= self.search.deadline

    def brackets(self) -> list[Bracket]:
        """Brackets from 0 to the largest radius looked for, or nothing for misclassified images; their reach from gradients."""
        made: list[Bracket] = []
        for start in range(0, len(self.labels), self.search.batch):
            chunk = slice(start, start + self.search.batch)
            margin, reach = self.reach(self.images[chunk], self.labels[chunk])
            made += [
                Bracket(r, self.search.most if m > 0 else 0.0, self.search.tol)
                for m, r in zip(margin.tolist(), reach.tolist(), strict=True)
            ]
        return made

    def reach(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The margin of each image, and the distance of the nearest of its rivals' tangent planes (inf where no search wants to know)."""
        images, own = images.clone().requires_grad_(True), labels.unsqueeze(1)
        with torch.enable_grad():
            scores = self.network.to(torch.float64)(images).flatten(1)
            gaps = (scores.gather(1, own) - scores).scatter(1, own, math.inf)
            nearest = gaps.topk(min(_RIVALS, gaps.shape[1] - 1), largest=False).values
            reach = torch.full_like(nearest[:, 0].detach(), math.inf)
            for gap in nearest.unbind(1) if self.search.method == "secant" else ():
                (gradient,) = torch.autograd.grad(gap.sum(), images, retain_graph=True)
                reach = torch.minimum(reach, gap.detach() / torch.linalg.vector_norm(gradient.flatten(1), ord=self.dual, dim=1))
        return nearest[:, 0].detach(), reach.nan_to_num(nan=math.inf, posinf=math.inf)

    def bound(self, index: Tensor, radius: Tensor) -> tuple[LpBall, LinearBounds, Tensor]:
        """One bound call for some images, each on its ball: the balls, the planes of their margins, and what is proven of the margins.

        index: (K,) of images, which may occur more than once; radius: (K,) float64.

        Raises:
            SpecError: the engine gives no planes.
        """
        sides = None if self.domain is None else (self.domain[0][index], self.domain[1][index])
        ball = LpBall(self.images[index], radius.reshape(-1, *([1] * (self.images.dim() - 1))), self.norm, sides)
        found = self.engine(self.network, ball, class_margins(self.labels[index], self.network.outputs).C)
        if found.linear is None:
            raise SpecError("this engine gives no planes; certified radii need one that does, such as Crown or FastLin")
        return ball, found.linear, found.objective.lower

    def advance(self, index: Tensor, brackets: list[Bracket], eps: list[float]) -> None:
        """One bound call for some images, each at its own eps."""
        radius = torch.tensor(eps, dtype=torch.float64)
        ball, planes, lower = self.bound(index, radius)
        certified = nearest_plane(planes, ball, lower).to(radius)
        if self.search.method == "bisection":
            certified = torch.where(certified >= radius, certified, 0.0)
        steep = torch.linalg.vector_norm(planes.lower_A.to(torch.float64).flatten(2), ord=self.dual, dim=-1)
        gap = (lower.to(steep) / steep.clamp_min(1e-300)).amin(-1)
        for bracket, at, *row in zip(brackets, eps, certified.tolist(), gap.tolist(), strict=True):
            bracket.record(at, *row)


@dataclass(frozen=True, eq=False)
class Curve:
    """What the bound calls on one image certify, by the eps of the linearisation. (K,) float64 each.

    verdict: eps where the call proves the class on the whole ball, else 0, as Fast-Lin and CROWN. envelope: min(eps, the nearest plane).
    Reference: thesis Figure 3.6.
    """

    eps: Tensor
    verdict: Tensor
    envelope: Tensor


def certified_curve(task: Task, eps: Tensor, image: int = 0) -> Curve:
    """The radii that bound calls linearised at each eps (K,) certify for one image of the task; all 0 where it is misclassified.

    Property: sound. Numerics: rounded downward; every radius was checked with outward rounding.

    Raises:
        SpecError: an eps that is not positive and finite, an engine without planes.
    """
    radius = eps.to(torch.float64)
    if not bool((radius.isfinite() & (radius > 0)).all()):
        raise SpecError("every eps of a curve must be positive and finite")
    reached = []
    for part in radius.split(task.search.batch):
        ball, planes, lower = task.bound(torch.full(part.shape, image), part)
        reached.append(nearest_plane(planes, ball, lower).to(part))
    envelope = torch.cat(reached) if reached else radius
    return Curve(radius, torch.where(envelope >= radius, radius, 0.0), envelope)
