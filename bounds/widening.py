"""How the non-uniform search moves: scaling a region to the edge of what is certified, convex steps, and the augmented Lagrangian.

A convex step. At knobs z an engine gives the margins m_r, which are positive at the centre (value_r) and fall as the region grows. One call
and one backward pass tell how: let p_r >= 0 be what the plane of row r loses for each knob (for fixed planes, exact for every row) and g the
gradient of a weighted sum of the margins. What the planes explain of -g is taken away; the rest, the price of looser planes, is shared
out among the rows in proportion to what each lost at the centre. With c_r the resulting slopes, the model

    value_r - m_r(u) = (value_r - m_r) (<c_r, u^q> / <c_r, z^q>)^(s / q)

agrees with the call in value, in slope along the ray through z (by the choice of s) and, summed with the weights, in the gradient. The
margins stay positive where <c_r, u^q> stays below a number, which is a linear constraint in u^q, and the largest log-volume under such
constraints is a small convex problem (`bounds.logvolume`); its multipliers are the next weights. CROWN's bounds jump where a slope flips, so
the slopes c are averaged over the steps, every step is limited in log eps, and the limit shrinks when a step certified nothing better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds import rounding
from bounds.adam import Adam
from bounds.engine import BoundEngine
from bounds.errors import GradientError, TimeLimitError
from bounds.knobs import Knobs
from bounds.logvolume import largest_log_volume
from bounds.network import Network
from bounds.region import LpBall

if TYPE_CHECKING:
    from bounds.nonuniform import Search

_EXACT = torch.float64
_TINY, _SMALLEST = 1e-300, 1e-30
"""What stands for zero in divisors, and for the smallest eps."""
_SCALINGS = 24
"""Most calls that one scaling takes."""
_SHARPEST = 8.0
"""Stands for infinity, the dual of p = 1: a maximum has one slope, this norm close to it has them all."""
_MEMORY = 0.8
"""Weight of the past in the slopes of the model."""
_FIRST, _SHRINK, _LAST = 0.4, 0.83, 0.012
"""The limit of a step in log eps at first, its factor after a step without success, and where the search ends."""
_STILL = 2e-4
"""The search of an image also ends when the model expects the mean of log eps to stay within this of the best."""
_RATE, _DELTA, _UPDATE, _GROWTH = 0.01, 1e-4, 5, 5.0
"""Of Algorithm 3.3, as the authors run it: learning rate, margin, steps from one update of the multipliers to the next, growth of the penalty
(four times in the course of a search)."""


@dataclass(frozen=True, eq=False)
class Look:
    """One call of the engine. margins: (B, R) float64, maybe with a graph; A: (B, R, *shape) coefficients of the planes, or None."""

    margins: Tensor
    A: Tensor | None


@dataclass(frozen=True, eq=False)
class Problem:
    """Images of a search. objective: (B, R, outputs); ball: norm, and ends of the domain (B, *shape) or None.

    calls counts the engine's calls for every image of the whole search; images: which of them these are, (B,).
    """

    network: Network
    engine: BoundEngine
    objective: Tensor
    centers: Tensor
    ball: tuple[float, tuple[Tensor, ...] | None]
    knobs: Knobs
    calls: Tensor
    images: Tensor

    @property
    def batch(self) -> int:
        """Number of images."""
        return len(self.centers)

    @property
    def value(self) -> Tensor:
        """The rows at the centres, (B, R) float64, rounded to nearest."""
        output = self.network.to(_EXACT)(self.centers).flatten(1).detach()
        return rounding.matvec(self.objective, output)

    def select(self, images: Tensor | slice) -> Problem:
        """The problem of some images."""
        norm, domain = self.ball
        sides = None if domain is None else tuple(side[images] for side in domain)
        parts = {name: getattr(self, name)[images] for name in ("objective", "centers", "images")}
        return replace(self, ball=(norm, sides), knobs=self.knobs.select(images), **parts)

    def limited(self, most: Tensor) -> Problem:
        """With this limit of eps, (B,), where there is none."""
        return replace(self, knobs=self.knobs.limited(most))

    def region(self, z: Tensor) -> LpBall:
        """The regions of knobs (B, k)."""
        return LpBall(self.centers, self.knobs.expand(z), *self.ball)  # type: ignore[arg-type]

    def look(self, z: Tensor) -> Look:
        """Bound the rows on the regions of z (B, k)."""
        self.calls[self.images] += 1
        found = self.engine(self.network, self.region(z), self.objective)
        here, planes = self.centers.device, found.linear
        return Look(found.objective.lower.to(here), None if planes is None else planes.lower_A.detach().to(here))

    def falls(self, z: Tensor, look: Look) -> Falls:
        """What the planes lose on the regions of z, and per knob."""
        if look.A is None:
            nothing = torch.zeros_like(look.margins)
            return Falls(nothing, *(torch.zeros(*nothing.shape, z.shape[1], dtype=_EXACT),) * 2)
        rows, norm = look.A.shape[1], self.ball[0]
        spread = self.select(torch.arange(self.batch).repeat_interleave(rows))
        with torch.enable_grad():
            variable = z.detach().repeat_interleave(rows, 0).requires_grad_()
            region = spread.region(variable)
            fall = region.decrease(look.A.flatten(0, 1).unsqueeze(1)).squeeze(1)
            (slope,) = torch.autograd.grad(fall.sum(), variable, retain_graph=norm == 1)
            smooth = slope
            if norm == 1:
                moves = look.A.flatten(0, 1).abs().to(_EXACT) * torch.as_tensor(region.eps)
                (smooth,) = torch.autograd.grad(torch.linalg.vector_norm(moves.flatten(1), _SHARPEST, dim=1).sum(), variable)
        return Falls(*(t.detach().unflatten(0, (self.batch, rows)) for t in (fall, slope, smooth)))


@dataclass(frozen=True, eq=False)
class Falls:
    """How far the planes fall, (B, R), its slopes in the knobs, (B, R, k), and slopes to plan with (others only for p = 1)."""

    fall: Tensor
    slope: Tensor
    planned: Tensor


def reach(look: Look, falls: Tensor, value: Tensor) -> Tensor:
    """By which factor a region may be scaled before a row turns negative, as far as the call can tell, (B,): an estimate.

    falls: (B, R), what the planes lose on the region. Without planes the fall of the margin is taken to be linear.
    """
    margins = look.margins.detach()
    lost = falls if look.A is not None else (value - margins)
    return torch.where(lost > 0, (margins + lost) / lost.clamp_min(_TINY), math.inf).amin(1).clamp_min(0)


def largest_scale(problem: Problem, z: Tensor, first: Tensor | None, search: Search) -> tuple[Tensor, Tensor]:
    """The largest t such that the engine verifies the regions of t z, within a relative `search.tol`, (B,); 0 where none was verified.

    first: where to begin, (B,). Also whether the tolerance was reached, (B,). A t is returned only if a call at t itself verified it, and
    counts as the largest only if a call at most a factor 1 + tol above it failed, or t is at its limit.
    """
    value, top = problem.value, (problem.knobs.high() / z).amax(1)
    bracket = _Bracket(torch.minimum(torch.full_like(top, 0.05) if first is None else first, top), top, search.tol)
    for _ in range(_SCALINGS):
        index = bracket.open().nonzero().flatten()
        if search.late or index.numel() == 0:
            break
        part, here = problem.select(index), bracket.t[index].unsqueeze(1) * z[index]
        try:
            margins = part.look(here).margins.detach()
        except TimeLimitError:
            break
        bracket.update(index, (margins > 0).all(1), ((value[index] - margins) / value[index]).amax(1))
    return bracket.low, ~bracket.open()


class _Bracket:
    """Scales t, (B,), each between one that was verified (0 at first) and one that failed (infinity at first).

    `seen` holds log t of the last call of each image and the logarithm of the largest share of its value at the centre that a row lost. That
    share grows about like a power of t, and is 1 at the edge: the next t is where the line through the last two calls crosses zero.
    `calls` counts since the `width` of the bracket was last halved.
    """

    def __init__(self, t: Tensor, top: Tensor, tol: float) -> None:
        self.t, self.top, self.tol = t, top, tol
        self.low, self.high = torch.zeros_like(t), torch.full_like(t, math.inf)
        self.seen = torch.full((2, len(t)), math.nan, dtype=_EXACT)
        self.width = torch.full_like(t, math.inf)
        self.calls = torch.zeros_like(t)

    def open(self) -> Tensor:
        """Where another call is needed."""
        return (self.high > self.low * (1 + self.tol)) & (self.low < self.top) & (self.t > 0)

    def update(self, index: Tensor, held: Tensor, lost: Tensor) -> None:
        """Whether the calls at t verified, and the largest share lost, (len(index),) each; chooses the next t."""
        now = self.t[index]
        self.low[index] = torch.where(held, torch.maximum(self.low[index], now), self.low[index])
        self.high[index] = torch.where(held, self.high[index], torch.minimum(self.high[index], now))
        here, before = torch.stack([now.log(), lost.clamp_min(1e-3).log()]), self.seen[:, index]
        slope = torch.nan_to_num((here[1] - before[1]) / (here[0] - before[0]), 1.5, 1.5, 1.5).clamp(0.1, 30.0)
        self.seen[:, index] = here
        # Aim a little beyond the crossing, seen from here: then both ends close in.
        crossing = here[0] - here[1] / slope + torch.where(held, 0.5, -0.5) * self.tol
        self.t[index] = torch.minimum(self._next(index, crossing), self.top[index])

    def _next(self, index: Tensor, guess: Tensor) -> Tensor:
        """Near log t = `guess`, but inside the bracket, and in its middle if two calls did not halve it."""
        low, high = self.low[index].log(), self.high[index].log()
        width = high - low
        known = torch.isfinite(width)
        self.calls[index] = torch.where(~known | (width > 0.5 * self.width[index]), self.calls[index] + 1, 0)
        stuck = known & (self.calls[index] >= 2)
        self.width[index] = torch.where(self.calls[index] == 0, width, self.width[index])
        self.calls[index] = torch.where(stuck, 0, self.calls[index])
        # while one end is open, steps grow; a step outward from a verified end is at most the tolerance, so that a failure there ends the search
        edge = torch.where(
            known, torch.minimum(0.1 * width, torch.full_like(width, 0.9 * self.tol)), 0.3 * self.tol * 3 ** self.calls[index]
        )
        least = torch.where(torch.isinf(low), high - 3.0, low + edge)
        most = torch.where(torch.isinf(high), low + 2.0, high - edge)
        return torch.where(stuck, low + width / 2, torch.minimum(torch.maximum(guess, least), most)).exp()


class Best:
    """The best regions met so far: knobs z (B, k) of which a call certifies the scale `scale` <= 1 as far as its planes tell, with the mean
    log volume `volume` there; and the best knobs `sure` that a call verified as they are, with `sure_volume`. Both are a verified start at
    first."""

    def __init__(self, z: Tensor, volume: Tensor) -> None:
        self.z, self.volume, self.scale = z.clone(), volume.clone(), torch.ones_like(volume)
        self.sure, self.sure_volume = z.clone(), volume.clone()

    def update(self, index: Tensor, z: Tensor, volume: Tensor, look: Look, scale: Tensor) -> Tensor:
        """Record regions of the images `index`, of which `scale` holds. Returns where they are better than before, (len(index),)."""
        scale = scale.clamp(_TINY, 1.0)
        held = volume + scale.log()
        better = held > self.volume[index]
        where = index[better]
        self.z[where], self.scale[where], self.volume[where] = z[better], scale[better], held[better]
        self.keep(index, z, volume, (look.margins.detach() > 0).all(1))
        return better

    def keep(self, index: Tensor, z: Tensor, volume: Tensor, verified: Tensor) -> None:
        """Record regions of the images `index` that were `verified` by a call."""
        surer = verified & (volume > self.sure_volume[index])
        self.sure[index[surer]], self.sure_volume[index[surer]] = z[surer], volume[surer]


def convex_search(problem: Problem, best: Best, first: Tensor, steps: int, search: Search) -> None:
    """Convex steps from `first` (B, k); what they meet goes into `best`."""
    state = _Steps(problem, first)
    for _ in range(steps):
        index = state.moving.nonzero().flatten()
        if search.late or index.numel() == 0:
            return
        try:
            state.advance(index, best)
        except TimeLimitError:
            return


class _Steps:
    """Where each image of the convex search stands. z: knobs of the next call, (B, k); rows: weights of the rows, (B, R) or None at first;
    slopes: the averaged c for the exponent `power`; limit: of a step in log eps, (B, 1)."""

    def __init__(self, problem: Problem, first: Tensor) -> None:
        self.problem, self.value = problem, problem.value
        self.low, self.high = problem.knobs.low(), problem.knobs.high()
        self.z = torch.minimum(torch.maximum(first, self.low), self.high)
        self.rows = torch.zeros_like(self.value)
        self.slopes = torch.zeros(*self.value.shape, first.shape[1], dtype=_EXACT)
        self.power, self.limit = torch.ones(len(first), 1, dtype=_EXACT), torch.full((len(first), 1), _FIRST, dtype=_EXACT)
        self.moving = torch.ones(len(first), dtype=torch.bool)

    def advance(self, index: Tensor, best: Best) -> None:
        """One call, one backward pass and one step for the images `index`."""
        part, z, value = self.problem.select(index), self.z[index], self.value[index]
        variable = z.clone().requires_grad_()
        look = part.look(variable)
        falls, margins, new = part.falls(z, look), look.margins.detach(), bool((self.rows[index] == 0).all())
        rows = _softest(margins) if new else self.rows[index]
        slopes = _slopes(look.margins, variable, falls, rows, value)
        exponent = ((slopes * z.unsqueeze(1)).sum(-1) * rows).sum(1) / ((value - margins) * rows).sum(1).clamp_min(_TINY)
        better = best.update(index, z, part.knobs.log_volume(z), look, reach(look, falls.fall, value))
        model = _Model(value, margins, z, exponent.clamp(1.0, 12.0).unsqueeze(1), part.ball[0])
        c, center = model.coefficients(slopes), torch.minimum(z * model.crossing().unsqueeze(1), self.high[index])
        if not new:
            past = self.slopes[index] * center.unsqueeze(1).pow((self.power[index] - model.power).unsqueeze(1))
            c = _MEMORY * past + (1 - _MEMORY) * c
        self.slopes[index], self.power[index] = c, model.power
        self.limit[index] = torch.where(better.unsqueeze(1), self.limit[index], self.limit[index] * _SHRINK)
        bounds = (
            torch.maximum(center / self.limit[index].exp(), self.low[index]).clamp_min(_SMALLEST),
            torch.minimum(center * self.limit[index].exp(), self.high[index]),
        )
        power, pull = model.power, part.knobs.pull(center)
        u, rows = largest_log_volume(c, model.budget(c), pull, bounds[0].pow(power), bounds[1].pow(power), rounds=20)
        self.z[index] = u.pow(1 / power)
        self.rows[index] = rows / rows.sum(1, keepdim=True) + 1e-4
        promised = part.knobs.log_volume(self.z[index]) - best.volume[index]
        self.moving[index] = (self.limit[index].squeeze(1) > _LAST) & (promised.abs() > _STILL)


def _softest(margins: Tensor) -> Tensor:
    """First weights of the rows: most on those with the smallest margins."""
    spread = (margins.amax(1, keepdim=True) - margins.amin(1, keepdim=True)).clamp_min(_TINY)
    return torch.softmax(-10 * margins / spread, dim=1) + 1e-4


def _slopes(margins: Tensor, variable: Tensor, falls: Falls, rows: Tensor, value: Tensor) -> Tensor:
    """How every row falls with each knob, (B, R, k) >= 0, from one backward pass of the margins weighted by `rows`.

    Raises:
        GradientError: the margins do not depend on the knobs as far as autograd knows.
    """
    if not margins.requires_grad:
        raise GradientError("this engine gives no gradients of its bounds in eps; use Crown, FastLin, CrownIbp or Ibp")
    (gradient,) = torch.autograd.grad((margins * rows).sum(), variable)
    looser = (-gradient - (rows.unsqueeze(-1) * falls.slope).sum(1)).clamp_min(0)
    lost = torch.maximum(value - margins.detach() - falls.fall, 1e-6 * value)  # where planes are exact, only roundings are lost
    share = lost / (rows * lost).sum(1, keepdim=True)
    return falls.planned + share.unsqueeze(-1) * looser.unsqueeze(1)


@dataclass(frozen=True, eq=False)
class _Model:
    """The model of the module's docstring at z: value and margins (B, R), s = `exponent` (B, 1), p = `norm`."""

    value: Tensor
    margins: Tensor
    z: Tensor
    exponent: Tensor
    norm: float

    @property
    def power(self) -> Tensor:
        """q, (B, 1): the exponent of fixed planes, the dual norm's; for boxes, whose loss is linear only in fixed planes, up to 2."""
        if self.norm == math.inf:
            return self.exponent.clamp(max=2.0)
        return torch.full_like(self.exponent, 2.0 if self.norm == 2 else _SHARPEST)

    def _factors(self) -> Tensor:
        """value / (value - margin): what the loss of each row may be multiplied by, (B, R)."""
        return (self.value / (self.value - self.margins).clamp_min(_TINY)).clamp(1e-2, 1e2)

    def coefficients(self, slopes: Tensor) -> Tensor:
        """c, (B, R, k), with <c, u^q> of the slopes at z."""
        return slopes * self.z.unsqueeze(1).pow(1 - self.power.unsqueeze(1)) / self.power.unsqueeze(1)

    def budget(self, c: Tensor) -> Tensor:
        """What <c, u^q> may be before the row turns negative, (B, R)."""
        spent = (c * self.z.unsqueeze(1).pow(self.power.unsqueeze(1))).sum(-1)
        return (spent * self._factors().pow(self.power / self.exponent)).clamp_min(_TINY)

    def crossing(self) -> Tensor:
        """The scale of z at which the first row turns negative, (B,)."""
        return self._factors().pow(1 / self.exponent).amin(1)


def lagrangian_search(problem: Problem, best: Best, first: Tensor, steps: int, search: Search) -> None:
    """Algorithm 3.3 from `first` (B, k): Adam on zeta with eps = zeta^2, gradients rescaled to norm 1, multipliers, a growing penalty.

    What it meets goes into `best`; the algorithm's own result, the last eps shrunk until it holds, is one of that.
    """
    knobs, value = problem.knobs, problem.value
    everyone, high = torch.arange(problem.batch), problem.knobs.high()
    zeta = torch.minimum(first, high).sqrt().requires_grad_()
    adam = Adam([zeta], [_RATE])
    multipliers, penalty = torch.zeros_like(value), 1.0
    for step in range(steps):
        if search.late:
            break
        if step and step % max(1, steps // 5) == 0:
            penalty *= _GROWTH
        z = zeta.square()
        try:
            look = problem.look(z)
        except TimeLimitError:
            break
        if not look.margins.requires_grad:
            raise GradientError("this engine gives no gradients of its bounds in eps; use Crown, FastLin, CrownIbp or Ibp")
        falls = look.margins.detach() if look.A is None else problem.region(z.detach()).decrease(look.A)
        best.update(everyone, z.detach(), knobs.log_volume(z.detach()), look, reach(look, falls, value))
        excess = look.margins - _DELTA
        slack = (excess + multipliers / penalty).clamp_min(0).detach()
        gap = excess - slack
        loss = -knobs.log_volume(z) * knobs.weight.sum() + (multipliers * gap).sum(1) + penalty / 2 * gap.square().sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), zeta)
        adam.rise([-gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1.0)])
        with torch.no_grad():
            zeta.clamp_(min=_SMALLEST).copy_(torch.minimum(zeta, high.sqrt()))
        if step % _UPDATE == _UPDATE - 1:
            multipliers = multipliers + penalty * gap.detach()
