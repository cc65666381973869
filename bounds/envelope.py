"""Polyhedral envelope: how far an input is from the planes that bound the margins.

An engine's linear lower bounds A x + b <= margin(x), valid on a ball of radius eps, exclude adversaries up to the distance of the nearest
plane: an input closer than that has every A x + b positive, so every margin positive, as long as it stays in the ball and in the domain.

Reference: thesis section 3.3.1, Lemma 3.1 and problem (3.14); section 3.3.2, Algorithm 3.4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import NumericsError, RegionError
from bounds.linear import LinearBounds
from bounds.region import LpBall

_EXACT = torch.float64
_SHRINK = (1 - 1e-12, 1 - 1e-10, 1 - 1e-8, 1 - 1e-6, 1 - 1e-4, 0.99)
"""Factors tried until the rounded check of a radius succeeds."""


def distances(planes: LinearBounds, ball: LpBall, p: float | None = None) -> Tensor:
    """min ||D||_p such that A (x + D) + b <= 0 and x + D lies in the domain, for every row; x is the centre of `ball`.

    p: any norm from 1 to inf (default: the ball's own); the ball's eps plays no part. 0 where the plane does not separate x in the first
    place, inf where no point of the domain reaches it. (B, rows) float64, differentiable in the planes.

    Property: exact up to rounding (an estimate: `certified_radius` rounds downward). Reference: thesis (3.14).

    Raises:
        RegionError: p is below 1. NumericsError: a plane is NaN or infinite.
    """
    value, A = _values(planes, ball)
    return torch.where(value > 0, _reach_plane(A, value, _limits(ball, A), ball.p if p is None else p), 0.0)


def signed_distances(planes: LinearBounds, ball: LpBall, p: float | None = None) -> Tensor:
    """As `distances` where the plane separates x; elsewhere minus the distance to the half-space beyond it (thesis section 3.3.3)."""
    value, A = _values(planes, ball)
    norm = ball.p if p is None else p
    outside = _reach_plane(-A, -value, _limits(ball, -A), norm)
    return torch.where(value > 0, _reach_plane(A, value, _limits(ball, A), norm), -outside)


def certified_radius(planes: LinearBounds, ball: LpBall) -> Tensor:
    """min(eps, nearest plane) for each set of `ball`, the region that `planes` were computed on; (B,) float64.

    Every point of the domain within that distance of the centre has A x + b > 0 in every row. The ball needs one eps a set. Property: sound.
    Numerics: rounded downward; the radius that is returned has been checked with outward rounding.

    Raises:
        RegionError: eps differs between the features of a set.
    """
    flat = torch.as_tensor(ball.eps).flatten(1)
    eps = flat[:, 0]
    if bool((flat != eps.unsqueeze(1)).any()):
        raise RegionError("a certified radius needs the same eps for every feature of a set; use the region itself otherwise")
    value, A = _values(planes, ball)
    floor = value - rounding.gamma(A.shape[-1] + 4, _EXACT) * (A.abs() * ball.center.flatten(1).abs().unsqueeze(1)).sum(-1)
    floor = rounding.below(floor - rounding.gamma(4, _EXACT) * planes.lower_b.abs())
    wanted = torch.minimum(eps, distances(planes, ball).amin(-1))
    radius = torch.zeros_like(eps)
    for factor in (1.0, *_SHRINK):
        candidate = torch.where(radius > 0, radius, wanted * factor)
        holds = (floor - _around(ball, candidate).decrease(planes.lower_A) > 0).all(-1)
        radius = torch.where((radius == 0) & holds, candidate, radius)
        if bool(((radius > 0) | (wanted == 0)).all()):
            break
    return radius


def _around(ball: LpBall, radius: Tensor) -> LpBall:
    """The same centres and domain with another radius for each set."""
    return LpBall(ball.center, radius.reshape(-1, *([1] * len(ball.shape))), ball.p, ball.domain)


def _values(planes: LinearBounds, ball: LpBall) -> tuple[Tensor, Tensor]:
    """A x + b at the centres, (B, rows), and A flattened, (B, rows, n), in float64."""
    A = planes.lower_A.to(_EXACT).flatten(2)
    value = torch.bmm(A, ball.center.flatten(1).unsqueeze(-1)).squeeze(-1) + planes.lower_b
    if not bool(torch.isfinite(value).all()):
        raise NumericsError("a plane of the envelope is NaN or infinite; the bounds it came from are not usable")
    return value, A


def _limits(ball: LpBall, A: Tensor) -> Tensor | None:
    """How far each feature may move against the sign of A before it leaves the domain: (B, rows, n), None without a domain."""
    if ball.domain is None:
        return None
    low, high = (torch.as_tensor(side).flatten(1).unsqueeze(1) for side in ball.domain)
    center = ball.center.flatten(1).unsqueeze(1)
    return torch.where(A > 0, center - low, high - center)


def _reach_plane(A: Tensor, value: Tensor, limits: Tensor | None, p: float) -> Tensor:
    """min ||t||_p with <|A|, t> >= value and 0 <= t <= limits, for value > 0; inf if no such t."""
    if not p >= 1:
        raise RegionError(f"norm {p} is not a norm: use a number from 1 to inf")
    if limits is None:
        dual = math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)
        norm = torch.linalg.vector_norm(A, ord=dual, dim=-1)
        return torch.where(norm > 0, value / torch.where(norm > 0, norm, 1.0), math.inf)
    q = A.abs()
    gain = q * limits
    return _greedy(q, gain, limits, value) if p == 1 else _shared(q, gain, limits, value, p)


def _greedy(q: Tensor, gain: Tensor, limits: Tensor, value: Tensor) -> Tensor:
    """p = 1: features are spent one after the other, the steepest first."""
    steep, order = q.sort(dim=-1, descending=True)
    spent = torch.where(steep > 0, limits.gather(-1, order), 0.0)
    total = gain.gather(-1, order).cumsum(-1)
    enough = total >= value.unsqueeze(-1)
    first = enough.to(torch.uint8).argmax(-1, keepdim=True)
    zero = torch.zeros_like(total[..., :1])
    before = torch.cat([zero, total[..., :-1]], -1).gather(-1, first)
    used = torch.cat([zero, spent.cumsum(-1)[..., :-1]], -1).gather(-1, first)
    needed = (value.unsqueeze(-1) - before) / steep.gather(-1, first).clamp_min(1e-300)
    return torch.where(enough.any(-1), (used + needed).squeeze(-1), math.inf)


def _shared(q: Tensor, gain: Tensor, limits: Tensor, value: Tensor, p: float) -> Tensor:
    """1 < p <= inf: t = min(limits, s w) with w = q^(1 / (p - 1)) for one s, found in closed form between two features' limits."""
    w = (q > 0).to(q) if p == math.inf else q.pow(1 / (p - 1))
    rate = q * w
    at_limit = torch.where(rate > 0, limits / torch.where(w > 0, w, 1.0), math.inf)
    at_limit, order = at_limit.sort(dim=-1)
    gain, rate, limits, w = (v.gather(-1, order) for v in (gain, rate, limits, w))
    zero = torch.zeros_like(gain[..., :1])
    fixed = torch.cat([zero, gain.cumsum(-1)[..., :-1]], -1)
    moving = rate.flip(-1).cumsum(-1).flip(-1)
    most = torch.where(moving > 0, fixed + at_limit * moving, fixed)
    enough = (most >= value.unsqueeze(-1)) & (moving > 0)
    first = enough.to(torch.uint8).argmax(-1, keepdim=True)
    scale = (value.unsqueeze(-1) - fixed.gather(-1, first)) / moving.gather(-1, first).clamp_min(1e-300)
    if p == math.inf:
        norm = scale.squeeze(-1)
    else:
        position = torch.arange(q.shape[-1], device=q.device).expand_as(q)
        step = torch.where(position < first, torch.where(rate > 0, limits, 0.0), scale * w)
        norm = torch.where(torch.isfinite(step), step, 0.0).pow(p).sum(-1).pow(1 / p)
    return torch.where(enough.any(-1), norm, math.inf)
