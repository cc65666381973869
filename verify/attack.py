"""Gradient attacks: FGSM and PGD on a question's own margin, batched over regions and restarts.

An attack minimises min over the unsafe sets of max over rows (C f(x) - d) on the region, in float32 by default. What it returns is a
candidate, an estimate: only `verify.verdict.replay` turns it into a counterexample.

References: I. Goodfellow, J. Shlens, C. Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015 (FGSM); A. Madry et al.,
"Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018 (PGD); F. Tramer, D. Boneh, "Adversarial Training and
Robustness for Multiple Perturbations", NeurIPS 2019 (sparse steps for l1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding
from bounds.network import Network
from bounds.region import LpBall, Region
from verify.spec import Margins, Specification, class_margins, margins
from verify.verdict import Falsified, confirm

Accept = Callable[[int, Tensor], bool]
"""Called with the index of a region and a point (*shape) of negative or zero margin; True ends the search for that region."""

_POINTS = 256
"""Points evaluated at once (regions x restarts) where the caller does not fix the batch."""
_L1_FRACTION = 0.02
"""Share of the features that one l1 step moves."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The best point found for each region: x (batch, *shape), margin (batch,), and whether the search ended there successfully."""

    x: Tensor
    margin: Tensor
    found: Tensor


@dataclass(frozen=True)
class Pgd:
    """Projected gradient descent with restarts.

    The first restart starts at the centre and descends on the worst margin; the others start at random points and each pursues one unsafe
    set, the most promising first. Step t is `first_step` * (`last_step` / `first_step`)^(t / (steps - 1)) in units of the region's radius,
    and longer where so few steps would not cross the region: sign steps for boxes and l-inf balls, normalised gradients for l2, the steepest
    features for l1.

    Property: estimate (a hint for replay). Numerics: plain float32.
    """

    steps: int = 50
    restarts: int = 10
    first_step: float = 0.3
    last_step: float = 0.01
    seed: int = 0

    def __call__(
        self,
        network: Network,
        region: Region,
        margins: Margins,
        *,
        starts: Tensor | None = None,
        accept: Accept | None = None,
        deadline: float | None = None,
    ) -> Candidates:
        """Attack every region of the batch.

        margins: shared C (rows, outputs), or one C for each region. starts: points (batch, count, *shape) that somebody thinks promising,
        tried together with the centre. accept: decides whether a point of margin <= 0 ends the search (default: always). deadline: a value
        of time.monotonic() at which the best so far is returned.
        """
        ratio = (self.last_step / self.first_step) ** (1 / max(1, self.steps - 1))
        sizes = [self.first_step * ratio**t for t in range(self.steps)]
        stretch = max(1.0, 2.0 / sum(sizes))
        sizes = [stretch * size for size in sizes]
        return _Search(network, region, margins, accept, deadline, self.seed).run(sizes, self.restarts, starts)


@dataclass(frozen=True)
class Fgsm:
    """One step of the full radius from the centre, along the sign (l2: the direction) of the gradient.

    Property: estimate. Numerics: plain float32.
    """

    seed: int = 0

    def __call__(
        self,
        network: Network,
        region: Region,
        margins: Margins,
        *,
        starts: Tensor | None = None,
        accept: Accept | None = None,
        deadline: float | None = None,
    ) -> Candidates:
        """As `Pgd.__call__`."""
        return _Search(network, region, margins, accept, deadline, self.seed).run([1.0], 1, starts)


Attack = Pgd | Fgsm


class _Geometry:
    """A region in the search's type: centre, radius for each feature, inner bounds, and its own steps and projection."""

    def __init__(self, region: Region, dtype: torch.dtype) -> None:
        self.region = region
        self.p = region.p if isinstance(region, LpBall) else math.inf
        box = region.box()
        self.lower, self.upper = rounding.round_up(box.lower, dtype), rounding.round_down(box.upper, dtype)
        if isinstance(region, LpBall):
            self.center, self.radius = region.center.to(dtype), torch.as_tensor(region.eps).expand_as(region.center).to(dtype)
        else:
            self.center, self.radius = ((box.lower + box.upper) / 2).to(dtype), ((box.upper - box.lower) / 2).to(dtype)
        self.rank = len(region.shape)

    def project(self, x: Tensor) -> Tensor:
        """Into the region; x: (B, S, *shape)."""
        if self.p == math.inf:
            return torch.minimum(torch.maximum(x, self.lower.unsqueeze(1)), self.upper.unsqueeze(1))
        return self.region.project(x)

    def descend(self, x: Tensor, gradient: Tensor, size: float, noise: torch.Generator) -> Tensor:
        """The projected point one step of `size` radii down the gradient; where the gradient vanishes, a random point instead."""
        direction = gradient.flatten(2)
        radius = self.radius.unsqueeze(1)
        if self.p == math.inf:
            moved = x - size * radius * direction.sign().view_as(x)
        else:
            scaled = direction * radius.flatten(2)
            unit = scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp_min(1e-30)
            moved = x - size * radius * (unit if self.p == 2.0 else self._steepest(scaled, x)).view_as(x)
        flat = (direction == 0).all(-1)
        if bool(flat.any()):
            elsewhere = self.region.sample(x.shape[1], noise).to(x)
            moved = torch.where(flat.reshape(*flat.shape, *([1] * self.rank)), elsewhere, moved)
        return self.project(moved)

    def _steepest(self, scaled: Tensor, x: Tensor) -> Tensor:
        """Equal shares of a unit l1 step on the steepest features that can still move that way."""
        wanted = -scaled.sign()
        low, high = self.lower.unsqueeze(1).flatten(2), self.upper.unsqueeze(1).flatten(2)
        flat = x.flatten(2)
        movable = torch.where(wanted > 0, flat < high, flat > low)
        strength = torch.where(movable, scaled.abs(), 0.0)
        count = max(1, round(_L1_FRACTION * strength.shape[-1]))
        chosen = torch.zeros_like(strength).scatter(-1, strength.topk(count, dim=-1).indices, 1.0 / count)
        return chosen * scaled.sign() * (strength > 0)


class _Search:
    """The state of one attack: the open regions, and the best point of every region."""

    def __init__(
        self, network: Network, region: Region, margins: Margins, accept: Accept | None, deadline: float | None, seed: int
    ) -> None:
        self.dtype = torch.float32
        self.device = region.box().lower.device
        self.network = network.to(self.dtype, self.device)
        self.region, self.margins, self.accept, self.deadline = region, margins, accept, deadline
        self.generator = seeded(seed)
        self.best = _Geometry(region, self.dtype).center.clone()
        self.margin = torch.full((region.batch,), math.inf, dtype=self.dtype, device=self.device)
        self.found = torch.zeros(region.batch, dtype=torch.bool, device=self.device)
        self.targets = torch.zeros(region.batch, len(margins.ranges), dtype=torch.long, device=self.device)

    def run(self, sizes: list[float], restarts: int, starts: Tensor | None = None) -> Candidates:
        group = max(1, _POINTS // self.region.batch)
        done = 0
        while done < restarts and not self.found.all() and not self.late():
            # The centre alone first: it settles the easy regions and ranks the unsafe sets.
            count = 1 if done == 0 else min(group, restarts - done)
            self.run_group(sizes, done, count, starts)
            done += count
        return Candidates(self.best, self.margin, self.found)

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def run_group(self, sizes: list[float], first: int, count: int, given: Tensor | None) -> None:
        """`count` restarts, numbered from `first`, on the regions that are still open."""
        open_regions = (~self.found).nonzero().flatten()
        geometry, goal = self.narrowed(open_regions)
        x = self.starts(geometry, count) if first else self.first_starts(geometry, given)
        for step, size in enumerate([*sizes, 0.0]):
            gradient = self.evaluate(x, goal, open_regions, first, step == 0)
            still = ~self.found[open_regions]
            if size == 0.0 or not still.any() or self.late():
                return
            if still.sum() <= 0.8 * len(still):
                x, gradient, open_regions = x[still], gradient[still], open_regions[still]
                geometry, goal = self.narrowed(open_regions)
            x = geometry.descend(x, gradient, size, self.generator)

    def narrowed(self, regions: Tensor) -> tuple[_Geometry, Margins]:
        if len(regions) == self.region.batch:
            return _Geometry(self.region, self.dtype), self.margins
        return _Geometry(self.region.select(regions), self.dtype), self.margins.select(regions)

    def first_starts(self, geometry: _Geometry, given: Tensor | None) -> Tensor:
        """The centres and the points given; nothing has been found yet, so all regions are open."""
        centers = geometry.center.unsqueeze(1)
        return geometry.project(centers if given is None else torch.cat([centers, given.to(centers)], dim=1))

    def starts(self, geometry: _Geometry, count: int) -> Tensor:
        return geometry.project(geometry.region.sample(count, self.generator).to(self.dtype))

    def evaluate(self, x: Tensor, goal: Margins, regions: Tensor, first: int, ranking: bool) -> Tensor:
        """Record the best points of x (B, S, *shape) and return the gradient of the margins being pursued."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            y = self.network(x).flatten(2)
            rows = goal.rows(y)
            per_set = goal.per_set(rows)
            pursued = per_set.amin(-1) if first == 0 else self.pursued(goal, rows, per_set, self.targets[regions], first)
            (gradient,) = torch.autograd.grad(pursued.sum(), x) if pursued.requires_grad else (torch.zeros_like(x),)
        per_set = per_set.detach()
        if first == 0 and ranking:
            self.targets[regions] = per_set[:, 0].argsort(dim=-1)
        self.record(x.detach(), per_set.amin(-1), regions)
        return gradient

    def pursued(self, goal: Margins, rows: Tensor, per_set: Tensor, sets: Tensor, first: int) -> Tensor:
        """What restarts numbered from `first` minimise: their set's margin or, every other round where sets have several rows, its excess."""
        number = torch.arange(first - 1, first - 1 + rows.shape[1], device=rows.device)
        turn = sets[:, number % sets.shape[1]].unsqueeze(-1)
        margin = per_set.gather(-1, turn).squeeze(-1)
        if all(stop - start == 1 for start, stop in goal.ranges):
            return margin
        excess = goal.excess(rows).gather(-1, turn).squeeze(-1)
        return torch.where((number // sets.shape[1]) % 2 == 0, excess, margin)

    def record(self, x: Tensor, worst: Tensor, regions: Tensor) -> None:
        value, which = worst.nan_to_num(nan=math.inf).min(dim=1)
        better = (value < self.margin[regions]) & ~self.found[regions]
        points = x[torch.arange(len(x), device=x.device), which]
        at = regions[better]
        self.margin[at], self.best[at] = value[better], points[better]
        for row in (better & (value <= 0)).nonzero().flatten().tolist() if self.accept else []:
            index = int(regions[row])
            self.found[index] = self.accept is not None and self.accept(index, points[row])
        if self.accept is None:
            self.found[at] = self.margin[at] <= 0


def seeded(seed: int) -> torch.Generator:
    """A generator of its own on the host. A copy, as making one anew takes a tenth of a second the first time, for the sake of tracing."""
    return torch.default_generator.clone_state().manual_seed(seed)


def starts_from_bounds(region: Region, A: Tensor) -> Tensor:
    """Points of the region where the linear functions <A_r, x> are smallest (l1 balls and clipped l2 balls: nearly), as starts of an attack.

    A: (batch, rows, *shape), such as the `lower_A` of an engine's linear bounds -> (batch, rows, *shape) float32. Relaxations see beyond
    inactive neurons, where gradients vanish: on hard questions these points beat many restarts.
    """
    geometry = _Geometry(region, torch.float32)
    centers = geometry.center.unsqueeze(1).expand(-1, A.shape[1], *region.shape)
    # A unit step lands on the sphere; boxes take a longer one, so that rounding cannot keep it from the corner.
    size = 2.0 if geometry.p == math.inf else 1.0
    return geometry.descend(centers, A.to(torch.float32), size, seeded(0))


def falsify(
    network: Network,
    spec: Specification,
    attack: Attack,
    *,
    starts: Tensor | None = None,
    deadline: float | None = None,
    rounded: bool = False,
) -> tuple[Falsified | None, Candidates]:
    """Search one specification for a counterexample that replays; also the best candidate where none does.

    starts: promising points (1, count, *shape), such as the corners at which linear bounds are smallest. deadline: a value of
    time.monotonic(). rounded: see `verify.verdict.replay`.
    """
    confirmed: list[Falsified] = []

    def accept(_: int, point: Tensor) -> bool:
        found = confirm(network, spec, [point.cpu().numpy()], type(attack).__name__.lower(), rounded=rounded)
        if found is not None:
            confirmed.append(found)
        return found is not None

    best = attack(network, spec.region, margins(spec), starts=starts, accept=accept, deadline=deadline)
    return (confirmed[0] if confirmed else None), best


def attack_images(
    network: Network,
    region: Region,
    labels: Tensor,
    attack: Attack,
    *,
    batch: int = _POINTS,
    deadline: float | None = None,
) -> Candidates:
    """Attack the classification of many images: `found` marks those that are misclassified at some point of their set that was met.

    region: one set for each image, such as LpBall(images, eps, norm, (0.0, 1.0)) with images (N, *input_shape); labels: (N,). `batch` images
    are attacked at once. An image that is misclassified to begin with counts as found; images already broken cost nothing further. After
    the deadline the rest is returned unattacked (margin infinite).

    Property: estimate; the fraction found is a lower bound of the robust error up to float32 evaluation.
    """
    parts = []
    for start in range(0, region.batch, batch):
        chunk = slice(start, min(start + batch, region.batch))
        parts.append(attack(network, region.select(chunk), class_margins(labels[chunk], network.outputs), deadline=deadline))
    return Candidates(torch.cat([p.x for p in parts]), torch.cat([p.margin for p in parts]), torch.cat([p.found for p in parts]))
