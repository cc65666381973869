"""The search for the largest certified radius of one image: a bracket around the zero of a decreasing function, and where to look next.

A bound call on the ball of radius eps gives the gap: how far beyond the ball the nearest plane of the envelope is, negative where a plane
cuts the ball. In units of the norm it stays smooth where margins themselves run off to large negative values, and it is positive exactly
where the call verifies its eps. The best radius is its zero.

Where to look next (`Bracket.next`): first where images that are already finished suggest (`Finished`), then inverse quadratic interpolation
where it is safe (Chandrupatla's criterion), else secants that expect a concave function, and the middle whenever two calls did not halve the
bracket. Calls are placed just outside the expected zero: one that fails there lowers the upper end, and its partial certificate, below eps by
the gap and a little more, raises the lower one.

Reference: T. Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function", 1997.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

_OUTSIDE = 0.4
"""A call outside the expected zero is placed so that its partial certificate would be this many tolerances below it."""
_INSIDE = 0.35
"""A call inside the expected zero is made this many tolerances below it."""
_NEAR = 0.7
"""An upper end is near the expected zero at this many tolerances."""
_RATIOS = (1.0, 4.0)
"""By how many gaps the partial certificate of a failed call may lie below its eps: more than one where a domain limits the features."""
_FURTHER = 0.01
"""A call beyond all verified ones is this share of the bracket away from them, at least."""
_EDGE = 0.02
"""Share of the bracket that no call comes closer to its ends than."""
_CONCAVE = 0.4
"""Where between the zeros of the chord and of the outer secants a concave function is expected to vanish."""
_ALIKE = 0.04
"""Radii of images that teach each other differ by about this, relatively."""
_ENOUGH = 0.3
"""Total weight of finished images below which they are not asked."""
_SHRINK = 0.1
"""How many images the assumption counts for that radii grow like the square root of the distance the gradient promises."""


class Point(NamedTuple):
    """A bound call at eps, and its gap."""

    eps: float
    gap: float


def _zero(p: Point, q: Point) -> float:
    """Where the line through two points vanishes, NaN if nowhere."""
    return p.eps + p.gap * (q.eps - p.eps) / (p.gap - q.gap) if p.gap != q.gap else math.nan


@dataclass
class Bracket:
    """The best radius of one image lies in [lower, upper], up to `tol` where it is `done`.

    reach: the gap at eps = 0, a hint from gradients. most: the largest radius looked for. proven_at: the eps of the call that proved
    `lower`. curve: the calls made, by eps. hint: what the radius is expected to grow with (default: reach). seconds: spent on calls.
    """

    reach: float
    most: float
    tol: float
    lower: float = 0.0
    upper: float = field(init=False)
    proven_at: float = 0.0
    hint: float = math.nan
    calls: int = 0
    seconds: float = 0.0
    curve: list[Point] = field(default_factory=list)
    _widths: list[float] = field(default_factory=list)
    _side: int = 0
    _run: int = 0
    """Calls in a row that fell on the same side of the zero."""
    _ratio: float = 2.0
    """How far the last partial certificate lay below its eps, in gaps."""

    def __post_init__(self) -> None:
        self.upper = self.most
        self.reach = min(self.reach, 1e3 * self.most)
        if math.isnan(self.hint):
            self.hint = self.reach

    def again(self, hint: float) -> Bracket:
        """A search for a better radius of the same image, by planes that are expected to reach a little beyond `hint`."""
        other = Bracket(self.reach, self.most, self.tol, lower=self.lower, proven_at=self.proven_at, hint=hint)
        other.upper = self.most if self.upper > 0 else 0.0
        return other

    @property
    def width(self) -> float:
        """How far the ends are apart."""
        return self.upper - self.lower

    @property
    def done(self) -> bool:
        """Whether the best radius is known within the tolerance."""
        return self.width <= self.tol

    def record(self, eps: float, certified: float, gap: float) -> None:
        """One bound call: the radius it certified, and its gap.

        Only a call that fails lowers the upper end. The distance of the nearest plane would, too, if planes came nearer whenever eps grows; those
        of networks trained with intervals now and then move away.
        """
        verified = certified >= eps
        if certified > self.lower:
            self.lower, self.proven_at = certified, eps
        if 0 < certified < eps and gap < 0:
            self._ratio = min(max((certified - eps) / gap, _RATIOS[0]), _RATIOS[1])
        self.upper = max(self.upper if verified else min(self.upper, eps), self.lower)
        gap = min(max(gap, -1e3 * self.most), 1e3 * self.most)
        # Rounding may give the gap another sign than the verdict, which decides.
        gap = max(gap, 1e-12 * self.most) if verified else min(gap, -1e-12 * self.most)
        self._run = self._run + 1 if verified == (self._side > 0) else 1
        self._side = 1 if verified else -1
        self.curve.append(Point(eps, gap))
        self.curve.sort()
        self.calls += 1

    def next(self, finished: Finished | None = None) -> float:
        """The eps of the next call."""
        inside = [p for p in self.curve if p.gap > 0]
        outside = [p for p in self.curve if p.gap < 0]
        if self.calls == 0:
            return min(max(self._first(finished), 2 * self.tol), self.most)
        if outside and self.width <= 2.2 * self.tol:
            return (self.lower + self.upper) / 2
        if self.calls == 1 and finished is not None:
            guess = finished.second(self.curve[0])
            if guess is not None:
                return self.most if not outside and guess >= (1 - _EDGE) * self.most else self._within(guess)
        start = [Point(0.0, self.reach)] if self.reach > 0 else []
        if not outside:
            return self._further([*start, *inside])
        if not inside and not start:
            return (self.lower + self.upper) / 2
        return self._beside(self._crossing([*start, *inside], outside))

    def _first(self, finished: Finished | None) -> float:
        guess = None if finished is None else finished.first(self.hint)
        if guess is None:
            guess = 1.05 * self.hint if self.lower > 0 else min(0.4 * self.most, 0.5 * self.reach)
        return max(guess, self.lower + 0.5 * self.tol)

    def _within(self, eps: float) -> float:
        edge = _EDGE * self.width
        return min(max(eps, self.lower + edge), self.upper - edge)

    def _further(self, inside: Sequence[Point]) -> float:
        """Everything was verified so far: outward along the last secant, by half at most, or the largest radius at once."""
        last = inside[-1]
        guess = _zero(inside[-2], last) if len(inside) > 1 and inside[-2].gap > last.gap else self.upper
        guess = min(guess, 1.5 * last.eps, self.upper)
        return self.upper if guess >= self.upper - self.tol else max(guess, self.lower + _FURTHER * self.width)

    def _beside(self, zero: float) -> float:
        """Just outside the expected zero, where a failed call's partial certificate closes the lower end as well; just inside it where the upper
        end is near already. The middle if two calls did not halve the bracket."""
        self._widths.append(self.width)
        if len(self._widths) > 2 and self.width > 0.5 * self._widths[-3]:
            return (self.lower + self.upper) / 2
        if self.upper - zero < _NEAR * self.tol <= zero - self.lower:
            return self._within(zero - _INSIDE * self.tol)
        return self._within(zero + _OUTSIDE * self.tol / max(1.0, self._ratio * self._slope()))

    def _slope(self) -> float:
        """How steeply the gap falls near its zero."""
        near = sorted(self.curve, key=lambda p: abs(p.gap))[:2]
        return abs((near[0].gap - near[1].gap) / (near[0].eps - near[1].eps)) if len(near) == 2 and near[0].eps != near[1].eps else 1.0

    def _crossing(self, inside: Sequence[Point], outside: Sequence[Point]) -> float:
        """Where the gap is expected to vanish, from points (by eps) on both sides."""
        a, b = inside[-1], outside[0]
        chord = _zero(a, b)
        if a.eps == 0.0:
            secant = _zero(b, outside[1]) if len(outside) > 1 else chord
            return chord + 0.8 * (secant - chord) if chord < secant < b.eps else chord
        if self._run >= 2:
            # The curve bends: the two last calls point at the zero better than anything across it.
            same = inside[-2:] if self._side > 0 else outside[:2]
            secant = _zero(*same) if len(same) == 2 else math.nan
            return secant if a.eps < secant < b.eps else (a.eps + b.eps) / 2
        third = min([*inside[-2:-1], *outside[1:2]], key=lambda p: abs(p.eps - chord), default=None)
        if third is not None and _safe(a, b, third):
            return _quadratic(a, b, third)
        beyond = b.eps
        if len(inside) > 1 and inside[-2].gap > a.gap:
            beyond = min(beyond, _zero(inside[-2], a))
        if len(outside) > 1 and outside[1].gap < b.gap:
            beyond = min(beyond, _zero(b, outside[1]))
        return chord + _CONCAVE * max(0.0, beyond - chord)


def _safe(a: Point, b: Point, third: Point) -> bool:
    """Chandrupatla's criterion: whether the inverse quadratic through the three points stays between a and b."""
    near, far = (a, b) if third.eps < a.eps else (b, a)
    if third.gap == far.gap:
        return False
    xi = (near.eps - far.eps) / (third.eps - far.eps)
    phi = (near.gap - far.gap) / (third.gap - far.gap)
    return phi * phi < xi and (1 - phi) ** 2 < 1 - xi


def _quadratic(*points: Point) -> float:
    """The inverse quadratic through three points of different gaps, at gap 0."""
    return sum(p.eps * math.prod(q.gap / (q.gap - p.gap) for q in points if q is not p) for p in points)


class Finished:
    """What finished searches teach the next ones: how radii follow from hints (gradients, or the radii of other planes), and how gaps fall
    on the way to the radius.

    A hint: it decides where calls are made, not what they prove.
    """

    def __init__(self) -> None:
        self._hints: list[float] = []
        self._radii: list[float] = []
        self._curves: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, bracket: Bracket) -> None:
        """Take a finished search in, if it met a zero."""
        radius = (bracket.lower + bracket.upper) / 2
        if not (bracket.done and 0 < radius < bracket.most - bracket.tol and bracket.hint > 0 and bracket.calls > 0):
            return
        self._hints.append(math.log(bracket.hint))
        self._radii.append(math.log(radius))
        points = sorted([*bracket.curve, Point(radius, 0.0)])
        slack = np.minimum.accumulate([p.gap / p.eps for p in points])
        self._curves.append((np.array([p.eps / radius for p in points]), slack))

    def first(self, hint: float) -> float | None:
        """The radius of an image with this hint, by a line through the logarithms; None if nothing is known."""
        if not self._radii or hint <= 0:
            return None
        x, y = np.array(self._hints), np.array(self._radii)
        shrink = _SHRINK / len(x)
        slope = (np.mean((x - x.mean()) * (y - y.mean())) + 0.5 * shrink) / (x.var() + shrink)
        return math.exp(y.mean() + slope * (math.log(hint) - x.mean()))

    def second(self, point: Point) -> float | None:
        """The radius of an image whose first call gave `point`; None if no finished image is like it.

        Each finished image, its eps in units of its radius, tells which radius would give the same gap / eps at the same place. Those whose
        own radius is near what they tell count most.
        """
        if not self._curves:
            return None
        told = np.array([point.eps / _place(eps, slack, point.gap / point.eps) for eps, slack in self._curves])
        weight = np.exp(-0.5 * ((np.log(told) - np.array(self._radii)) / _ALIKE) ** 2)
        if weight.sum() < _ENOUGH:
            return None
        order = told.argsort()
        total = weight[order].cumsum()
        return float(told[order][np.searchsorted(total, total[-1] / 2)])


def _place(eps: np.ndarray, slack: np.ndarray, value: float) -> float:
    """Where a decreasing curve takes a value: on it between its ends, before it as if the plane's distance were constant."""
    if value >= slack[0]:
        return float(eps[0] * (slack[0] + 1) / (value + 1))
    return float(np.interp(-value, -slack, eps))
