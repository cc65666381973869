"""Minimal-norm attacks: the nearest adversary that a search finds, in l1, l2 or l-inf, replayed on the original model.

Each track of the search pursues one other class. At its point x the margin is replaced by its tangent plane, and x moves to a mixture of the
nearest points of that plane, inside the domain, from x and from the image itself, a little beyond. A point of another class is recorded and
the track goes on from a point closer to the image. The best points are then pushed inward: along the line to the image, and by descents on
the margin inside ever smaller balls. Images without any adversary so far are attacked in ever larger balls.

References: F. Croce, M. Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020; S. Moosavi-Dezfooli,
A. Fawzi, P. Frossard, "DeepFool", CVPR 2016; A. Madry et al., ICLR 2018 (descents in a ball).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bounds import rounding
from bounds.engine import place
from bounds.errors import SpecError
from bounds.network import Network
from bounds.region import LpBall
from verify.attack import Pgd, seeded
from verify.exact_radius import Replayer
from verify.spec import Domain, class_margins
from verify.verdict import original_of

_BEYOND = 1.05
"""How far past the tangent plane a track aims, in distances to it."""
_TOWARDS_IMAGE = 0.1
"""Largest share of the image's own projection in a step."""
_BACK = 0.9
"""A track that met an adversary goes on from this share of the way to it."""
_SHRINK = (0.9, 0.95, 0.98, 0.99)
"""Radii of the descents that push an adversary inward, in units of its distance; a success tries the same share again."""
_HALVINGS = 24
"""Steps of the search along the line to the image."""
_FURTHER = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""How much further out the original model is asked, where it does not agree with the search."""
_WIDENINGS = 12
"""Radii tried, each four times the last, before an image counts as one without adversaries."""
_RIVALS = 9
"""Classes whose tangent planes at the image are looked at."""
_DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


@dataclass(frozen=True, eq=False)
class Adversaries:
    """The nearest adversaries found. points: (N, *shape) in the model's input type, NaN where none was found; distance: (N,) float64, rounded
    upward, inf where none was found and 0 for an image that is misclassified itself; target: (N,) the class that the point is taken for, or
    -1. Every point was replayed on the original model with zero tolerance."""

    points: np.ndarray
    distance: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class MinimalNorm:
    """The search described in the module.

    steps: of each track. targets: classes pursued for each image, the nearest first. restarts: rounds of tracks, the first one from the image
    itself, the others from random points. device: cpu or cuda.

    Property: estimate from above; deterministic for a seed on one device. Numerics: searches in float32, replays exactly.
    """

    steps: int = 100
    targets: int = 9
    restarts: int = 1
    seed: int = 0
    device: str = "cpu"
    batch: int = 32

    def __post_init__(self) -> None:
        for name in ("steps", "targets", "restarts", "batch"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __call__(
        self,
        network: Network,
        images: Tensor,
        labels: Tensor,
        *,
        norm: float = math.inf,
        domain: Domain | None = (0.0, 1.0),
        deadline: float | None = None,
    ) -> Adversaries:
        """For each image a point of the domain, as near to it as could be found, whose largest output is not the label alone.

        images: (N, *input_shape); labels: (N,); norm: 1, 2 or inf; deadline: a value of time.monotonic(), after which the best so far is
        replayed and returned.

        Raises:
            SpecError: labels out of range, an image outside the domain, an unsupported norm. DeviceError: the device is not there.
        """
        place(self.device)
        images = images.detach().to("cpu", torch.float64)
        replayers = [Replayer(network, x, int(label), norm, domain) for x, label in zip(images, labels.tolist(), strict=True)]
        points = np.full(tuple(images.shape), np.nan, dtype=original_of(network).input_dtype)
        distance, target = np.full(len(images), math.inf), np.full(len(images), -1)
        for start in range(0, len(images), self.batch):
            chunk = slice(start, min(start + self.batch, len(images)))
            search = _Search(network, images[chunk], labels[chunk], norm, domain, self, deadline)
            for index, candidates in enumerate(_settled(network, replayers[chunk], search.run()), start=start):
                found = next(filter(None, map(replayers[index], candidates)), None)
                if found is not None:
                    points[index], distance[index], target[index] = found.point, found.distance, found.target
        return Adversaries(points, distance, target)


def _settled(network: Network, replayers: list[Replayer], points: Tensor) -> list[list[np.ndarray]]:
    """For each image points to replay, on the line from it to its adversary: first as far in as the original model allows.

    points: (N, *shape), NaN where nothing was found. The image itself where it is misclassified.
    """
    original = original_of(network)
    centers = np.stack([r.center.numpy() for r in replayers])
    step = np.nan_to_num(points.double().numpy() - centers)
    labels = np.array([r.label for r in replayers])

    def fools(share: np.ndarray) -> np.ndarray:
        moved = centers + share.reshape(-1, *([1] * (step.ndim - 1))) * step
        y = np.asarray(original(np.stack([r.cast(x) for r, x in zip(replayers, moved, strict=True)]))).reshape(len(labels), -1)
        own = np.take_along_axis(y, labels[:, None], axis=1)
        return np.isfinite(y).all(axis=1) & ((y >= own).sum(axis=1) > 1)

    outer = np.full(len(labels), math.nan)
    for further in _FURTHER:
        outer = np.where(np.isnan(outer) & fools(np.full(len(labels), 1 + further)), 1 + further, outer)
    outer = np.where(fools(np.zeros(len(labels))), 0.0, outer)
    inner, found = np.zeros(len(labels)), ~np.isnan(outer)
    outer = np.nan_to_num(outer)
    for _ in range(_HALVINGS):
        middle = (inner + outer) / 2
        fooled = fools(middle)
        inner, outer = np.where(fooled, inner, middle), np.where(fooled, middle, outer)
    # Alone in a batch a point may be evaluated a little differently, so there are some further out.
    rows = zip(centers, outer, step, found, strict=True)
    return [[c + t * (1 + further) * d for further in _FURTHER] if ok else [] for c, t, d, ok in rows]


class _Search:
    """The tracks of some images, all flattened; the best adversaries so far in the search's own arithmetic."""

    def __init__(
        self, network: Network, images: Tensor, labels: Tensor, norm: float, domain: Domain | None, how: MinimalNorm, deadline: float | None
    ) -> None:
        self.how, self.norm, self.deadline, self.shape = how, norm, deadline, tuple(images.shape[1:])
        self.network = network.to(torch.float32, how.device)
        self.center = images.to(how.device)
        self.labels = labels.to(how.device)
        self.domain = domain
        anchor = self.center.to(torch.float32).flatten(1)
        self.anchor = anchor
        low, high = (-math.inf, math.inf) if domain is None else domain
        sides = (torch.as_tensor(side, dtype=torch.float64, device=how.device).expand_as(self.center).flatten(1) for side in (low, high))
        self.low, self.high = rounding.round_up(next(sides), torch.float32), rounding.round_down(next(sides), torch.float32)
        self.best = torch.full_like(anchor, math.nan)
        self.distance = torch.full_like(anchor[:, 0], math.inf)
        self.generator = seeded(how.seed)

    def run(self) -> Tensor:
        """The best points found, (N, *shape), NaN where there is none."""
        targets, reach = self.targets()
        for restart in range(self.how.restarts):
            self.tracks(targets, self.starts(targets.shape[1], reach, restart))
        self.widen(reach)
        self.pull()
        self.shrink()
        return self.best.unflatten(1, self.shape).cpu()

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def length(self, step: Tensor) -> Tensor:
        """||step||_p over the last axis."""
        return torch.linalg.vector_norm(step, ord=self.norm, dim=-1)

    def gaps(self, x: Tensor, labels: Tensor) -> Tensor:
        """y[label] - y[j] for every j, inf for the label itself. x: (M, n) -> (M, outputs)."""
        y = self.network(x.unflatten(1, self.shape)).flatten(1)
        return (y.gather(1, labels.unsqueeze(1)) - y).scatter(1, labels.unsqueeze(1), math.inf)

    def targets(self) -> tuple[Tensor, Tensor]:
        """The classes whose tangent planes at the image are nearest, (N, T), and the distance of the nearest plane, (N,)."""
        x = self.anchor.clone().requires_grad_(True)
        with torch.enable_grad():
            gaps = self.gaps(x, self.labels)
            rivals = gaps.detach().topk(min(_RIVALS, gaps.shape[1] - 1), largest=False)
            far = []
            for column in rivals.indices.unbind(1):
                gap = gaps.gather(1, column.unsqueeze(1)).squeeze(1)
                (gradient,) = torch.autograd.grad(gap.sum(), x, retain_graph=True)
                far.append(gap.detach() / torch.linalg.vector_norm(gradient, ord=_DUAL[self.norm], dim=1).clamp_min(1e-30))
        order = torch.stack(far, dim=1).sort(dim=1)
        return rivals.indices.gather(1, order.indices[:, : self.how.targets]), order.values[:, 0].clamp(1e-6, self.reach())

    def reach(self) -> float:
        """No point of the domain is further away than this; a guess without a domain."""
        room = torch.maximum(self.high - self.anchor, self.anchor - self.low)
        return float(self.length(room).max()) if self.domain is not None else 1e3 * float(1 + self.length(self.anchor).max())

    def starts(self, count: int, reach: Tensor, restart: int) -> Tensor:
        """Where the tracks of a round start, (N, count, n): the images, or points around them half as far as the nearest adversary."""
        anchor = self.anchor.unsqueeze(1)
        if restart == 0:
            return anchor.expand(-1, count, -1)
        noise = torch.randn(len(anchor), count, anchor.shape[2], generator=self.generator).to(anchor)
        noise = noise.sign() * torch.rand(noise.shape, generator=self.generator).to(anchor) if self.norm == math.inf else noise
        radius = 0.5 * torch.where(self.distance.isfinite(), self.distance, reach).reshape(-1, 1, 1)
        x = anchor + radius * noise / self.length(noise).unsqueeze(2).clamp_min(1e-30)
        return torch.minimum(torch.maximum(x, self.low.unsqueeze(1)), self.high.unsqueeze(1))

    def tracks(self, targets: Tensor, x: Tensor) -> None:
        """One round. targets: (N, T), x: (N, T, n)."""
        count = targets.shape[1]
        owner = torch.arange(len(targets), device=x.device).repeat_interleave(count)
        x, goal, anchor, labels = x.reshape(-1, x.shape[2]), targets.reshape(-1, 1), self.anchor[owner], self.labels[owner]
        low, high = self.low[owner], self.high[owner]
        for _ in range(self.how.steps):
            if self.late():
                return
            x = x.detach().requires_grad_(True)
            with torch.enable_grad():
                gaps = self.gaps(x, labels)
                value = gaps.gather(1, goal).squeeze(1)
                (gradient,) = torch.autograd.grad(value.sum(), x)
            x, value = x.detach(), value.detach()
            fooled = gaps.detach().amin(1) <= 0
            self.record(x, owner, fooled)
            here = to_plane(gradient, value, x - low, high - x, self.norm)
            at_anchor = value + ((anchor - x) * gradient).sum(1)
            there = to_plane(gradient, at_anchor, anchor - low, high - anchor, self.norm)
            share = self.length(here) / (self.length(here) + self.length(there)).clamp_min(1e-30)
            share = share.clamp(max=_TOWARDS_IMAGE).unsqueeze(1)
            # From an adversary the way back in is part of the step.
            base = torch.where(fooled.unsqueeze(1), anchor + _BACK * (x - anchor), x)
            moved = (1 - share) * (base + _BEYOND * here) + share * (anchor + _BEYOND * there)
            x = torch.minimum(torch.maximum(moved.nan_to_num(nan=0.0), low), high)

    def record(self, x: Tensor, owner: Tensor, fooled: Tensor) -> None:
        """Keep what is nearer than the best adversary of its image. x: (M, n)."""
        far = torch.where(fooled, self.length(x - self.anchor[owner]), math.inf).reshape(len(self.anchor), -1)
        nearest, which = far.min(dim=1)
        better = nearest < self.distance
        chosen = x.reshape(len(self.anchor), -1, x.shape[1])[torch.arange(len(which), device=which.device), which]
        self.best[better], self.distance[better] = chosen[better], nearest[better]

    def widen(self, reach: Tensor) -> None:
        """Descents in larger and larger balls, for images that no track led out of."""
        most = self.reach()
        radius = (2 * reach).clamp(max=most / 16)
        for _ in range(_WIDENINGS):
            open_ = self.distance.isinf().nonzero().flatten()
            if not len(open_) or self.late():
                return
            last = bool((radius[open_] >= most).all())
            self.descend(open_, radius.clamp(max=most), steps=50 if last else 20, restarts=10 if last else 3)
            if last:
                return
            radius = 4 * radius

    def shrink(self) -> None:
        """Descents in balls a little smaller than the best adversary's distance."""
        for share in _SHRINK:
            open_ = self.distance.isfinite() & (self.distance > 0)
            while bool(open_.any()) and not self.late():
                before = self.distance.clone()
                self.descend(open_.nonzero().flatten(), share * self.distance, steps=20, restarts=1)
                self.pull()
                open_ &= self.distance < before

    def descend(self, index: Tensor, radius: Tensor, *, steps: int, restarts: int) -> None:
        """Attack some images within their radius."""
        sides, like = None, self.center[index]
        if self.domain is not None:
            sides = tuple(torch.as_tensor(side, dtype=torch.float64).to(like).expand_as(like) for side in self.domain)
        eps = radius[index].to(torch.float64).reshape(-1, *([1] * len(self.shape)))
        ball = LpBall(like, eps, self.norm, sides)  # type: ignore[arg-type]
        best = self.best[index].unflatten(1, self.shape).unsqueeze(1)
        goal = class_margins(self.labels[index], self.network.outputs)
        attack = Pgd(steps, restarts, seed=self.how.seed)
        found = attack(self.network, ball, goal, starts=None if bool(best.isnan().any()) else best, deadline=self.deadline)
        points = torch.where(torch.isnan(self.best), self.anchor, self.best)
        points[index] = found.x.flatten(1)
        fooled = torch.zeros_like(self.distance, dtype=torch.bool)
        fooled[index] = found.found
        self.record(points, torch.arange(len(points), device=points.device), fooled)

    def pull(self) -> None:
        """Move every adversary along the line to its image as far as it stays one."""
        found = self.distance.isfinite()
        if not bool(found.any()):
            return
        step = torch.where(found.unsqueeze(1), self.best - self.anchor, 0.0)
        inner, outer = torch.zeros_like(self.distance), torch.ones_like(self.distance)
        with torch.no_grad():
            for _ in range(_HALVINGS):
                middle = (inner + outer) / 2
                fooled = self.gaps(self.anchor + middle.unsqueeze(1) * step, self.labels).amin(1) <= 0
                inner, outer = torch.where(fooled, inner, middle), torch.where(fooled, middle, outer)
        moved = self.anchor + outer.unsqueeze(1) * step
        self.record(moved, torch.arange(len(moved), device=moved.device), found)


def to_plane(gradient: Tensor, value: Tensor, low: Tensor, high: Tensor, p: float) -> Tensor:
    """The step t of least ||t||_p with -low <= t <= high and value + <gradient, t> = 0, or as near to it as the limits allow.

    gradient, low, high: (M, n), value: (M,) of any sign -> (M, n).
    """
    A = gradient * value.sign().unsqueeze(1)
    q, value = A.abs(), value.abs().unsqueeze(1)
    # Without a limit: further than any step, but a number.
    room = torch.where(A > 0, low, high).clamp(max=1e12)
    if p == 1.0:
        steep, order = q.sort(dim=1, descending=True)
        gain = steep * room.gather(1, order)
        needed = (value - (gain.cumsum(1) - gain)) / steep.clamp_min(1e-30)
        move = torch.zeros_like(q).scatter(1, order, torch.where(steep > 0, needed.clamp_min(0.0), 0.0))
        return -A.sign() * torch.minimum(move, room)
    w = (q > 0).to(q) if p == math.inf else q
    at_limit = torch.where(q > 0, room / w.clamp_min(1e-30), math.inf)
    at_limit, order = at_limit.sort(dim=1)
    gain, rate = (q * room).gather(1, order), (q * w).gather(1, order)
    fixed, moving = gain.cumsum(1) - gain, rate.flip(1).cumsum(1).flip(1)
    enough = (fixed + torch.where(moving > 0, at_limit, 0.0) * moving >= value) & (moving > 0)
    first = enough.to(torch.uint8).argmax(1, keepdim=True)
    scale = (value - fixed.gather(1, first)) / moving.gather(1, first).clamp_min(1e-30)
    scale = torch.where(enough.any(1, keepdim=True), scale.clamp_min(0.0), math.inf)
    return -A.sign() * torch.where(q > 0, torch.minimum(room, scale * w.clamp_min(1e-30)), 0.0)
