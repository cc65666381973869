"""Non-uniform certificates: the largest box or ellipsoid around an input on which every margin is proven positive.

For each input x the vector eps is sought that maximises the weighted log-volume sum_i w_i log eps_i of

    {x' in the domain : ||(x' - x) / eps||_p <= 1}

subject to all rows of C f(x') being proven positive there by an engine. Features that the network hardly reads get large eps at little cost,
so the volume grows far beyond that of the best uniform ball. The search starts from that ball and never returns less; what it returns has
been verified by a call of the engine on exactly that region.

With a domain, eps_i is limited to n^(1/p) times the distance from x_i to the farther end of the domain (n features): a box with such eps, or
an ellipsoid with all of them, covers the domain, and more does not count. The volume is measured by the geometric mean of eps over the
features that may move (thesis section 3.2.2); for p = 1 and 2 these are the semi-axes of the ellipsoid before the domain cuts it.

References: thesis section 3.2.1, Algorithm 3.3 (method "lagrangian"); the convex steps (method "convex") are ours, see `bounds.widening`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bounds.engine import BoundEngine
from bounds.errors import RegionError
from bounds.knobs import Knobs
from bounds.network import Network
from bounds.region import LpBall
from bounds.widening import Best, Problem, convex_search, lagrangian_search, largest_scale

Method = Literal["convex", "lagrangian"]
Domain = tuple[Tensor | float, Tensor | float]
_EXACT = torch.float64
_STEPS = {"convex": 25, "lagrangian": 400}
_UNLIMITED = 100.0
"""Without a domain or a limit, eps stops at this multiple of the uniform optimum: a feature that is not read at all has no largest eps."""


@dataclass(frozen=True, eq=False)
class Goal:
    """What is maximised: sum_i weight_i log eps_i over the features that may move. All tensors broadcast to (N, *input_shape).

    free: which features may move (the others have eps = least, which is 0 by default). groups: features with the same integer move
    together, one eps a group (cut to each feature's own limits). weight: not negative; a feature of weight 0 stays as one that is not free.
    least: every eps is at least this: the largest region that contains a given one. most: every eps is at most this.
    """

    free: Tensor | None = None
    groups: Tensor | None = None
    weight: Tensor | None = None
    least: Tensor | float = 0.0
    most: Tensor | float | None = None

    def knobs(self, centers: Tensor, norm: float, domain: Domain | None) -> Knobs:
        """The variables of the search for inputs (N, *input_shape).

        Raises:
            RegionError: nothing may move, least above most, a negative weight, a shape that does not fit.
        """
        shape = tuple(centers.shape[1:])
        weight = _fit("weight", 1.0 if self.weight is None else self.weight, shape)
        if bool((weight < 0).any()) or not bool(torch.isfinite(weight).all()):
            raise RegionError("the weights of features must be finite and not negative")
        if self.free is not None:
            weight = torch.where(_fit("free", self.free, shape) != 0, weight, 0.0)
        least, most = _fit("least", self.least, centers.shape), self._most(centers, norm, domain)
        moves = weight > 0
        if not bool((moves & (most > least)).flatten(1).any(1).all()):
            raise RegionError("no feature may move: the mask, the weights, the domain or equal limits fix all of them; free at least one")
        if bool((moves & (least > most)).any()) or bool((least < 0).any()):
            raise RegionError("the range of eps is reversed or negative: `least` must lie between 0 and `most` (and the domain) everywhere")
        groups = None if self.groups is None else _fit("groups", self.groups, shape).long().flatten()
        return Knobs.build(groups, weight.flatten(), least.flatten(1), most.flatten(1), shape)

    def _most(self, centers: Tensor, norm: float, domain: Domain | None) -> Tensor:
        """The largest eps that counts, infinite where nothing limits it."""
        most = _fit("most", math.inf if self.most is None else self.most, centers.shape)
        if bool(torch.isnan(most).any()):
            raise RegionError("`most` holds NaN")
        if domain is None:
            return most
        low, high = (torch.as_tensor(side, dtype=_EXACT).expand_as(centers) for side in domain)
        farthest = torch.maximum(centers - low, high - centers)
        return torch.minimum(most, farthest * math.prod(centers.shape[1:]) ** (1 / norm))


@dataclass(frozen=True, eq=False)
class Search:
    """How the region is searched.

    method: "convex" (default) or "lagrangian". steps: gradients taken (default 25 and 400); an image leaves earlier once it stands still.
    tol: relative precision of the final scale, and of the uniform optimum. batch: images bounded at once. direction: eps (*input_shape) in
    whose direction to start, such as `mean_direction` of other images (thesis section 3.2.2); default: the uniform optimum. learn: after the
    first batch start in the mean direction of the images so far. deadline: a value of time.monotonic(); then the best so far.
    """

    method: Method = "convex"
    steps: int | None = None
    tol: float = 1e-3
    batch: int = 16
    direction: Tensor | None = None
    learn: bool = False
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise RegionError(f"unknown search {self.method!r}; use one of {', '.join(get_args(Method))}")
        if not 1e-7 <= self.tol < 1:
            raise RegionError(f"a relative tolerance of {self.tol} is outside what the search can tell apart; use 1e-7 to 1")
        if self.batch < 1 or (self.steps is not None and self.steps < 0):
            raise RegionError(f"batch must be at least 1 and steps not negative, got {self.batch} and {self.steps}")

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def most_of_it(self) -> Search:
        """This search with a fifth of its time kept back, so that the best region met can still be verified."""
        if self.deadline is None:
            return self
        now = time.monotonic()
        return replace(self, deadline=now + 0.8 * (self.deadline - now))


@dataclass(frozen=True, eq=False)
class NonUniform:
    """The regions found, one an image; float64.

    eps: (N, *input_shape), zero where nothing was certified. geometric_mean: of eps over the features that may move, by weight. uniform: the
    same of the best uniform ball that the engine certifies, found by bisection (its radius, where no limit cuts it). verified: whether the
    engine verified the region; False for a misclassified image, and where not even the smallest ball was certified. calls: calls of the
    engine that each image took part in. finished: False where the deadline came first. seconds: of the whole search.
    """

    regions: LpBall
    geometric_mean: Tensor
    uniform: Tensor
    verified: Tensor
    calls: Tensor
    finished: Tensor
    seconds: float

    @property
    def eps(self) -> Tensor:
        """The semi-axes of the regions."""
        return torch.as_tensor(self.regions.eps)

    @property
    def ratio(self) -> Tensor:
        """geometric_mean / uniform, at least 1; NaN where nothing was certified."""
        return self.geometric_mean / torch.where(self.uniform > 0, self.uniform, math.nan)


def largest_region(
    network: Network,
    centers: Tensor,
    objective: Tensor,
    ball: tuple[float, Domain | None] = (math.inf, (0.0, 1.0)),
    engine: BoundEngine | None = None,
    goal: Goal | None = None,
    search: Search | None = None,
) -> NonUniform:
    """The region of largest volume around each input on which `engine` (default CROWN) proves every row of C f(x) positive.

    Args:
        centers: inputs, (N, *input_shape). objective: C, (N, rows, outputs), such as the margins of a class.
        ball: the norm (1, 2 or inf) and the domain (low, high), or None for no domain.

    Property: sound: every returned region was verified by `engine` as it is; not the global optimum. The geometric mean is at least that of
    the best uniform ball. Numerics: as rigorous as the engine.

    Raises:
        RegionError: an unsupported norm, a domain that an input leaves, a goal that cannot be met (see `Goal`).
        GradientError: the engine gives no gradients.
    """
    from bounds.crown import Crown

    begin, search, goal = time.monotonic(), search or Search(), goal or Goal()
    centers = centers.detach().to(_EXACT)
    norm, domain = ball
    LpBall(centers, 0.0, norm, domain)  # checks both
    sides = None if domain is None else tuple(torch.as_tensor(side, dtype=_EXACT).expand_as(centers) for side in domain)
    calls, images, knobs = torch.zeros(len(centers), dtype=torch.long), torch.arange(len(centers)), goal.knobs(centers, norm, domain)
    whole = Problem(
        network, _limited(engine or Crown(both=False), search), objective.to(_EXACT), centers, (norm, sides), knobs, calls, images
    )
    given = None if search.direction is None else _fit("direction", search.direction, tuple(centers.shape[1:])).flatten()
    parts: list[_Found] = []
    for start in range(0, len(centers), search.batch):
        direction = given
        if search.learn and parts:
            direction = mean_direction(torch.cat([part.eps for part in parts]))
        parts.append(_Batch(whole.select(slice(start, start + search.batch)), search).run(direction))
    joined = _Found(*(torch.cat([getattr(part, name) for part in parts]) for name in _Found.__annotations__))
    regions = LpBall(centers, joined.eps.view_as(centers), norm, domain)
    mean, uniform = (whole.knobs.geometric_mean(e) for e in (joined.eps, joined.uniform))
    return NonUniform(regions, mean, uniform, mean > 0, calls, joined.finished, time.monotonic() - begin)


def mean_direction(eps: Tensor) -> Tensor | None:
    """The mean of eps_n / ||eps_n||_2 over the images with a certified region (thesis section 3.2.2); None if there are none. (N, n) -> (n,)."""
    norm = eps.flatten(1).norm(dim=1)
    if not bool((norm > 0).any()):
        return None
    return (eps.flatten(1)[norm > 0] / norm[norm > 0].unsqueeze(1)).mean(0)


@dataclass(frozen=True, eq=False)
class _Found:
    """What a batch ends with: eps and the eps of the uniform ball (B, n), finished (B,)."""

    eps: Tensor
    uniform: Tensor
    finished: Tensor


class _Batch:
    """The search on one batch."""

    def __init__(self, problem: Problem, search: Search) -> None:
        self.problem, self.search = problem, search

    def run(self, direction: Tensor | None) -> _Found:
        """The uniform optimum, the search from there, and the largest verified scale of the best region met."""
        problem, search = self.problem, self.search
        eps = torch.zeros_like(problem.knobs.least)
        found = _Found(eps, eps.clone(), torch.ones(len(eps), dtype=torch.bool))
        chosen = (problem.value > 0).all(1).nonzero().flatten()
        if chosen.numel() == 0:
            return found
        problem = problem.select(chosen)
        ones = torch.ones(len(chosen), problem.knobs.count, dtype=_EXACT)
        radius, found.finished[chosen] = largest_scale(problem, ones, None, search)
        certified = (radius > 0).nonzero().flatten()
        if certified.numel():
            chosen, radius = chosen[certified], radius[certified]
            problem = problem.select(certified).limited(_UNLIMITED * radius)
            start = radius.unsqueeze(1) * ones[certified]
            found.uniform[chosen] = problem.knobs.expand(start).flatten(1)
            found.eps[chosen], finished = self._improve(problem, start, direction)
            found.finished[chosen] &= finished
        return found

    def _improve(self, problem: Problem, start: Tensor, direction: Tensor | None) -> tuple[Tensor, Tensor]:
        """From verified knobs to the best verified eps (B, n), and whether nothing was cut short."""
        search, knobs, best = self.search, problem.knobs, Best(start, problem.knobs.log_volume(start))
        steps, begun = _STEPS[search.method] if search.steps is None else search.steps, search.most_of_it()
        method = convex_search if search.method == "convex" else lagrangian_search
        method(problem, best, start if direction is None else knobs.along(direction, start), steps, begun)
        finished = torch.full((len(start),), not begun.late)
        moved = (best.volume > best.sure_volume).nonzero().flatten()
        if moved.numel():
            part, z = problem.select(moved), best.z[moved]
            scale, done = largest_scale(part, z, best.scale[moved] * (1 - search.tol / 3), search)
            wider = scale.unsqueeze(1) * z
            best.keep(moved, wider, part.knobs.log_volume(wider), scale > 0)
            finished[moved] &= done
        return knobs.expand(best.sure).flatten(1), finished


def _limited(engine: BoundEngine, search: Search) -> BoundEngine:
    """The engine, made to stop at the deadline where it knows how to."""
    fields: dict[str, Any] = getattr(engine, "__dataclass_fields__", {})
    if search.deadline is None or "deadline" not in fields:
        return engine
    return replace(engine, deadline=search.deadline)  # type: ignore[type-var]


def _fit(name: str, value: Tensor | float, shape: tuple[int, ...]) -> Tensor:
    """The value in float64, broadcast to the shape."""
    tensor = torch.as_tensor(value, dtype=_EXACT)
    try:
        return tensor.expand(shape)
    except RuntimeError as error:
        raise RegionError(f"`{name}` has shape {tuple(tensor.shape)}, which does not fit {tuple(shape)}") from error
