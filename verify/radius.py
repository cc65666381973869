"""Certified radii: how far every input can move before the proof of its class ends.

Let d(eps) be the distance of the nearest plane of the envelope whose planes were computed on the ball of radius eps. Each bound call certifies
the radius min(eps, d(eps)), and as d falls with eps, the best radius is the crossing d(eps) = eps: it lies between eps and d(eps), whichever
is larger. The three searches differ in what they make of a call:

    bisection    verified at eps or not                                  (Fast-Lin, CROWN)
    pec          the partial certificate d(eps) as well                  (thesis Algorithm 3.5)
    secant       both ends of the bracket from every call, and the next eps from the line through the last two

All images advance in one bound call; finished ones leave the batch. A radius is only ever returned with the call that proved it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bounds.crown import Crown
from bounds.engine import BoundEngine
from bounds.envelope import certified_radius as nearest_plane
from bounds.envelope import distances
from bounds.errors import SpecError
from bounds.network import Network
from bounds.region import LpBall
from verify.spec import Domain, class_margins

Method = Literal["bisection", "pec", "secant"]
_MOST_CALLS = 100


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
    search, engine = search or Search(), engine or Crown()
    if bool((labels < 0).any()) or bool((labels >= network.outputs).any()):
        raise SpecError(f"labels run from 0 to {network.outputs - 1}, got {int(labels.min())} to {int(labels.max())}")
    parts = []
    for start in range(0, len(labels), search.batch):
        chunk = slice(start, start + search.batch)
        parts.append(_Brackets(network, images[chunk], labels[chunk], norm, domain, engine, search).run())
    return Radii(*(torch.cat([getattr(part, name) for part in parts]) for name in ("lower", "linearised_at", "calls", "finished")))


class _Brackets:
    """One batch of searches. The best radius of image i lies in [lower_i, upper_i]; `previous` holds the last call's (eps, d)."""

    def __init__(
        self, network: Network, images: Tensor, labels: Tensor, norm: float, domain: Domain | None, engine: BoundEngine, search: Search
    ) -> None:
        self.network, self.engine, self.search, self.norm = network, engine, search, norm
        self.images, self.labels = images.to(torch.float64), labels
        self.domain = (
            None if domain is None else tuple(torch.as_tensor(side, dtype=torch.float64).expand_as(self.images) for side in domain)
        )
        count = len(labels)
        self.lower, self.proven_at = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        self.upper = torch.full_like(self.lower, search.most)
        self.calls = torch.zeros(count, dtype=torch.int64)
        self.eps = torch.full((count, 2), math.nan, dtype=torch.float64)
        self.reached = torch.full((count, 2), math.nan, dtype=torch.float64)
        self.width = torch.full_like(self.lower, math.inf)
        scores = network.to(torch.float64)(self.images).flatten(1)
        best_other = scores.scatter(1, labels.unsqueeze(1), -math.inf).amax(1)
        self.upper[scores.gather(1, labels.unsqueeze(1)).squeeze(1) <= best_other] = 0.0

    def run(self) -> Radii:
        """Narrow every bracket to the tolerance."""
        while True:
            open_ = (self.upper - self.lower > self.search.tol) & (self.calls < _MOST_CALLS)
            late = self.search.deadline is not None and time.monotonic() >= self.search.deadline
            if late or not bool(open_.any()):
                break
            index = open_.nonzero().flatten()
            self.advance(index, self.next_eps(index))
        return Radii(self.lower, self.proven_at, self.calls, self.upper - self.lower <= self.search.tol)

    def advance(self, index: Tensor, eps: Tensor) -> None:
        """One bound call for some images at their own eps; brackets and certificates follow."""
        sides = None if self.domain is None else (self.domain[0][index], self.domain[1][index])
        ball = LpBall(self.images[index], eps.reshape(-1, *([1] * (self.images.dim() - 1))), self.norm, sides)
        planes = self.engine(self.network, ball, class_margins(self.labels[index], self.network.outputs).C).linear
        if planes is None:
            raise SpecError("this engine gives no planes; certified radii need one that does, such as Crown or FastLin")
        self.calls[index] += 1
        certified, reached = nearest_plane(planes, ball), distances(planes, ball).amin(-1)
        if self.search.method == "bisection":
            certified = torch.where(certified >= eps, certified, 0.0)
        better = certified > self.lower[index]
        self.proven_at[index] = torch.where(better, eps, self.proven_at[index])
        self.lower[index] = torch.maximum(self.lower[index], certified)
        ceiling = torch.where(certified >= eps, self.upper[index], eps)
        if self.search.method == "secant":
            ceiling = torch.minimum(ceiling, torch.maximum(reached, eps))
        self.upper[index] = torch.maximum(torch.minimum(self.upper[index], ceiling), self.lower[index])
        self.eps[index] = torch.stack([self.eps[index, 1], eps], dim=1)
        self.reached[index] = torch.stack([self.reached[index, 1], reached], dim=1)

    def next_eps(self, index: Tensor) -> Tensor:
        """Where the next call is made: the middle of the bracket, or the crossing that the last two calls point at."""
        lower, upper = self.lower[index], self.upper[index]
        middle = (lower + upper) / 2
        if self.search.method != "secant":
            return middle
        (e0, e1), (d0, d1) = self.eps[index].unbind(1), self.reached[index].unbind(1)
        slope = torch.where(e1 != e0, (d1 - d0) / (e1 - e0), -1.0).clamp(max=0.0)
        slope = torch.where(torch.isfinite(slope) & (d0 > 0), slope, -1.0)
        # Just inside the crossing: then the call itself verifies its eps, and d(eps) bounds the crossing from above.
        guess = (d1 - slope * e1) / (1 - slope) - 0.3 * self.search.tol
        width = upper - lower
        inside = torch.minimum(torch.maximum(guess, lower + 0.1 * width), upper - 0.1 * width)
        # A call that did not halve the bracket met a kink or a jump of d: bisect once.
        slow = width > 0.5 * self.width[index]
        self.width[index] = torch.where(slow, math.inf, width)
        usable = torch.isfinite(guess) & (d1 > 0) & ~slow
        # Beyond the largest radius looked for: one call there settles it.
        inside = torch.where((upper == self.search.most) & (guess > upper - 0.1 * width), upper, inside)
        first = torch.isnan(e1)
        return torch.where(first, self.search.most / 4, torch.where(usable, inside, lower + 0.4 * width))
