"""Polyhedral envelope: how far an input is from the planes that bound the margins.

An engine's linear lower bounds A x + b <= margin(x), valid on a ball of radius eps, exclude adversaries up to the distance of the nearest
plane: an input closer than that has every A x + b positive, so every margin positive, as long as it stays in the ball and in the domain.

Reference: thesis section 3.3.1, Lemma 3.1 and problem (3.14); section 3.3.2, Algorithm 3.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import NumericsError, RegionError
from bounds.lagrange import largest_gain
from bounds.linear import LinearBounds
from bounds.region import LpBall

_EXACT = torch.float64
_SHRINK = (1 - 2e-12, 1 - 1e-10, 1 - 1e-8, 1 - 1e-6, 1 - 1e-4, 0.99)
"""Factors tried until the rounded check of a radius succeeds."""
_NOT_FINITE = "a plane of the envelope is NaN or infinite; the bounds it came from are not usable"


def distances(planes: LinearBounds, ball: LpBall, p: float | None = None) -> Tensor:
    """min ||D||_p such that A (x + D) + b <= 0 and x + D lies in the domain, for every row; x is the centre of `ball`.

    p: any norm from 1 to inf (default: the ball's own); the ball's eps plays no part. 0 where the plane does not separate x in the first
    place, inf where no point of the domain reaches it. (B, rows) float64, differentiable in the planes.

    Property: exact up to rounding (an estimate: `certified_radius` rounds downward). Reference: thesis (3.14).

    Raises:
        RegionError: p is below 1. NumericsError: a plane is NaN or infinite.
    """
    value, A = _values(planes, ball)
    return _outside(value, A, ball, ball.p if p is None else p)


def signed_distances(planes: LinearBounds, ball: LpBall, p: float | None = None) -> Tensor:
    """As `distances` where the plane separates x; elsewhere minus the distance to the half-space beyond it (thesis section 3.3.3)."""
    value, A = _values(planes, ball)
    norm = ball.p if p is None else p
    return torch.where(value > 0, _outside(value, A, ball, norm), -_outside(-value, -A, ball, norm))


@torch.no_grad()
def certified_radius(planes: LinearBounds, ball: LpBall, lower: Tensor | None = None) -> Tensor:
    """min(eps, nearest plane) for each set of `ball`, the region that `planes` were computed on; (B,) float64.

    Every point of the domain within that distance of the centre has a positive margin in every row. The ball needs one eps a set. lower: what
    the engine proved of the rows on the whole ball, (B, rows), if it is at hand; rows that it leaves positive are no nearer than eps.

    Property: sound. Numerics: rounded downward; the radius that is returned has been checked with outward rounding.

    Raises:
        RegionError: eps differs between the features of a set. NumericsError: a plane is NaN or infinite.
    """
    radius = uniform_eps(ball)
    lower = planes.concretize(ball).lower if lower is None else lower.to(radius.device)
    crossed = ~(lower > 0)
    image = crossed.any(-1).nonzero().flatten()
    row = lower[image].argmin(-1)
    radius[image] = _Seen.rows(planes, ball, image, row).within(radius[image])
    # Other rows that reach into the ball rarely come nearer than the lowest: those clear of the radius found need no distance.
    crossed[image, row] = False
    image, row = (crossed & (radius > 0).unsqueeze(-1)).nonzero(as_tuple=True)
    if len(image) > 0:
        near = ~_Seen.rows(planes, ball, image, row, planes.lower_A.dtype).clear(radius[image])
        image, row = image[near], row[near]
    if len(image) == 0:
        return radius
    found = _Seen.rows(planes, ball, image, row).within(radius[image])
    return radius.scatter_reduce(0, image, found, "amin")


def uniform_eps(ball: LpBall) -> Tensor:
    """The eps of every set, (B,).

    Raises:
        RegionError: eps differs between the features of a set.
    """
    eps = first = torch.as_tensor(ball.eps)
    while first.dim() > 1:
        first = first.select(1, 0)
    if any(eps.stride()[1:]) and bool((eps.flatten(1) != first.unsqueeze(1)).any()):
        raise RegionError("a certified radius needs the same eps for every feature of a set; use the region itself otherwise")
    return first.clone()


@dataclass(frozen=True, eq=False)
class _Seen:
    """Planes as seen from the centres of their balls, one a set: >= floor there, and at most <steep, t> less where features move by t.

    steep: (T, n) and limits: (T, n) or None, how far features may move in the direction that lowers the plane, in one type; floor: (T,)
    float64; p: the norm.
    """

    steep: Tensor
    floor: Tensor
    limits: Tensor | None
    p: float

    @classmethod
    def rows(cls, planes: LinearBounds, ball: LpBall, image: Tensor, row: Tensor, dtype: torch.dtype = _EXACT) -> _Seen:
        """Row `row` of the planes of set `image`, for several of them."""
        place = (image * planes.lower_A.shape[1] + row).to(planes.lower_A.device)
        A = planes.lower_A.flatten(0, 1).index_select(0, place).to(ball.center.device, dtype).flatten(1)
        b = planes.lower_b[image, row].to(ball.center)
        center, steep = ball.center.index_select(0, image).flatten(1), A.abs()
        size = steep.sum(-1).to(_EXACT) * center.abs().amax(-1) + b.abs()
        error = rounding.gamma(A.shape[-1] + 6, dtype) * size + rounding.underflow(A.shape[-1] + 6, dtype)
        floor = rounding.below(_dot(A, center.to(dtype)).to(_EXACT) + b, error)
        if not bool(torch.isfinite(floor).all()):
            raise NumericsError(_NOT_FINITE)
        if ball.domain is None or not bool((floor > 0).any()):  # planes that do not separate the centre need no limits
            return cls(steep, floor, None, ball.p)
        low, high = (torch.as_tensor(side).index_select(0, image).flatten(1) for side in ball.domain)
        return cls(steep, floor, torch.where(A > 0, center - low, high - center).to(dtype), ball.p)

    def select(self, index: Tensor) -> _Seen:
        """Some of them."""
        limits = None if self.limits is None else self.limits.index_select(0, index)
        return _Seen(self.steep.index_select(0, index), self.floor[index], limits, self.p)

    def within(self, most: Tensor) -> Tensor:
        """min(most, distance), rounded downward; (T,)."""
        separating = (self.floor > 0).nonzero().flatten()
        if len(separating) < len(most):
            radius = torch.zeros_like(most)
            if len(separating) > 0:
                radius[separating] = self.select(separating).within(most[separating])
            return radius
        limits = None if self.limits is None else self.limits.unsqueeze(1)
        distance = _reach_plane(self.steep.unsqueeze(1), self.floor.unsqueeze(1), limits, self.p).squeeze(1)
        wanted, radius = torch.minimum(most, distance), torch.zeros_like(most)
        for factor in _SHRINK:
            radius = torch.where((radius == 0) & self.clear(wanted * factor), wanted * factor, radius)
            if bool((radius > 0).all()):
                break
        return radius

    def clear(self, radius: Tensor) -> Tensor:
        """Whether the plane is certainly positive on the ball of that radius, > 0; (T,) bool."""
        terms, dtype = self.steep.shape[-1] + 12, self.steep.dtype
        if self.p == math.inf:
            step = radius.to(dtype).unsqueeze(-1)
            moved = step.expand_as(self.steep) if self.limits is None else torch.minimum(self.limits, step)
            fall = size = _dot(self.steep, moved).to(_EXACT)
        else:
            scale, dtype = radius.unsqueeze(-1), _EXACT
            limits = None if self.limits is None else (self.limits.to(_EXACT) / scale).clamp(max=2.0)
            fall, size = largest_gain(self.steep.to(_EXACT) * scale, None if limits is None else (limits, limits), self.p)
        error = 2 * rounding.gamma(terms, dtype) * size + rounding.underflow(terms, dtype)
        return self.floor > rounding.above(fall, error)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """sum over the last axis of a b, (T, n) -> (T,)."""
    return (a * b).sum(-1)


def _sides(ball: LpBall) -> tuple[Tensor, Tensor]:
    """How far each feature may fall and rise in the domain."""
    low, high = (torch.as_tensor(side) for side in ball.domain)  # type: ignore[union-attr]
    return ball.center - low, high - ball.center


def _outside(value: Tensor, A: Tensor, ball: LpBall, p: float) -> Tensor:
    """The distance of the plane A d + value = 0 where value > 0, else 0; (B, rows)."""
    return torch.where(value > 0, _reach_plane(A.abs(), value, _limits(ball, A), p), 0.0)


def _values(planes: LinearBounds, ball: LpBall) -> tuple[Tensor, Tensor]:
    """A x + b at the centres, (B, rows), and A flattened, (B, rows, n), in float64."""
    A = planes.lower_A.to(_EXACT).flatten(2)
    value = rounding.matvec(A, ball.center.flatten(1)) + planes.lower_b
    if not bool(torch.isfinite(value).all()):
        raise NumericsError(_NOT_FINITE)
    return value, A


def _limits(ball: LpBall, A: Tensor) -> Tensor | None:
    """How far each feature may move against the sign of A before it leaves the domain: (B, rows, n), None without a domain."""
    if ball.domain is None:
        return None
    down, up = (side.flatten(1).unsqueeze(1) for side in _sides(ball))
    return torch.where(A > 0, down, up)


def _reach_plane(q: Tensor, value: Tensor, limits: Tensor | None, p: float) -> Tensor:
    """min ||t||_p with <q, t> >= value and 0 <= t <= limits, for q >= 0 and value > 0; inf if no such t. q: (B, rows, n)."""
    if not p >= 1:
        raise RegionError(f"norm {p} is not a norm: use a number from 1 to inf")
    if limits is None:
        dual = math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)
        norm = _norm(q, dual)
        return torch.where(norm > 0, value / torch.where(norm > 0, norm, 1.0), math.inf)
    return _greedy(q, limits, value) if p == 1 else _shared(q, limits, value, p)


def _norm(v: Tensor, p: float) -> Tensor:
    """||v||_p over the last axis, for v >= 0 and any p: powers of the entries' ratios neither overflow nor all vanish."""
    top = v.detach().amax(-1, keepdim=True)
    scale = torch.where(top > 0, top, 1.0)
    return scale.squeeze(-1) * torch.linalg.vector_norm(v / scale, ord=p, dim=-1)


def _greedy(q: Tensor, limits: Tensor, value: Tensor) -> Tensor:
    """p = 1: features are spent one after the other, the steepest first."""
    steep, order = q.sort(dim=-1, descending=True)
    spent = torch.where(steep > 0, limits.gather(-1, order), 0.0)
    total = (steep * spent).cumsum(-1)
    enough = total >= value.unsqueeze(-1)
    first = enough.to(torch.uint8).argmax(-1, keepdim=True)
    zero = torch.zeros_like(total[..., :1])
    before = torch.cat([zero, total[..., :-1]], -1).gather(-1, first)
    used = torch.cat([zero, spent.cumsum(-1)[..., :-1]], -1).gather(-1, first)
    needed = (value.unsqueeze(-1) - before) / steep.gather(-1, first).clamp_min(1e-300)
    return torch.where(enough.any(-1), (used + needed).squeeze(-1), math.inf)


def _shared(q: Tensor, limits: Tensor, value: Tensor, p: float) -> Tensor:
    """1 < p <= inf: t = min(limits, s w) with w = q^(1 / (p - 1)) for the s at which <q, t> = value."""
    gain = q * limits
    stuck = _stuck(q, gain, limits, value, p)
    w, slope, scale = _share(q, gain, value, p, stuck)
    step = torch.where(stuck, limits, scale.unsqueeze(-1) * w)
    norm = scale if p == math.inf else _norm(step, p)
    return torch.where(slope > 0, norm, math.inf)


@torch.no_grad()
def _stuck(q: Tensor, gain: Tensor, limits: Tensor, value: Tensor, p: float) -> Tensor:
    """The features that are at their limits in `_shared`.

    <q, min(limits, s w)> is concave in s, so Newton's steps from 0 never pass the solution: features reach their limits for good, and the
    step after which no more of them do is exact. Reference: thesis Algorithm 3.4.
    """
    stuck = limits <= 0
    while True:
        w, _, scale = _share(q, gain, value, p, stuck)
        more = (limits < scale.unsqueeze(-1) * w).logical_or_(stuck)
        if torch.equal(more, stuck):
            return stuck
        stuck = more


def _share(q: Tensor, gain: Tensor, value: Tensor, p: float, stuck: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """w of the features that are not stuck (up to a factor), <q, w> over them, and the s at which they make up what the stuck ones leave."""
    free, w = q.masked_fill(stuck, 0.0), torch.ones((), dtype=q.dtype, device=q.device)
    missing = (value - gain.masked_fill(~stuck, 0.0).sum(-1)).clamp_min(0)
    slope = free.sum(-1)
    if p != math.inf:
        top = free.amax(-1, keepdim=True)
        ratio = torch.where(free > 0, free / torch.where(top > 0, top, 1.0), 1.0)
        w = torch.where(free > 0, ratio.pow(1 / (p - 1)), 0.0)
        slope = (free * w).sum(-1)
    return w, slope, missing / torch.where(slope > 0, slope, 1.0)
