"""Activations of which some elements are replaced by affine functions: what a local substitute of a network is made of.

    y_i = slope_i z_i + intercept_i   where `pruned`        y_i = act(z_i)   elsewhere

A substituted piecewise-linear activation is piecewise linear, so every engine, attack and mixed-integer encoding works on it unchanged; a pruned
element is never unstable, has exact planes and costs no binary.

`pruned`, `slope` and `intercept` have the node's shape, or one more leading axis for a batch of regions that each have a substitute of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import UnsupportedOpError
from bounds.interval import Interval
from bounds.linear import Relaxation
from bounds.ops.base import Activation, Shape, Slopes
from bounds.ops.piecewise import Piecewise, Values, finite_ends


@dataclass(frozen=True, eq=False)
class Line(Piecewise):
    """slope x + intercept, a piecewise-linear function of one piece; both broadcast to the node's shape."""

    slope: Tensor
    intercept: Tensor

    def pieces(self) -> tuple[Values, Values, Values]:
        return [], [self.slope], [self.intercept]

    def forward(self, *xs: Tensor) -> Tensor:
        return (self.slope * xs[0] + self.intercept).to(xs[0].dtype)

    def interval(self, *xs: Interval) -> Interval:
        """The values at the ends; exact where nothing is multiplied or added, else three roundings are allowed for."""
        lower, upper = finite_ends(xs[0], self)
        slope, intercept, dtype = self.slope.double(), self.intercept.double(), xs[0].lower.dtype
        first, second = slope * lower + intercept, slope * upper + intercept
        size = slope.abs() * torch.maximum(lower.abs(), upper.abs()) + intercept.abs()
        exact = (slope == 0) | ((slope.abs() == 1) & (intercept == 0))
        error = torch.where(exact, 0.0, 2 * rounding.gamma(3, torch.float64) * size + rounding.underflow(3, torch.float64))
        low, high = torch.minimum(first, second) - error, torch.maximum(first, second) + error
        return Interval(rounding.round_down(low, dtype), rounding.round_up(high, dtype))

    def unstable(self, x: Interval) -> Tensor:
        return torch.zeros_like(x.lower, dtype=torch.bool)

    def usual_slopes(self, x: Interval, slopes: Slopes = "adaptive") -> tuple[Tensor, Tensor]:
        own = self.slope.expand_as(x.lower)
        return own, own

    def slope_range(self, x: Interval) -> tuple[Tensor, Tensor]:
        return self.usual_slopes(x)

    def relax(self, x: Interval, slopes: Slopes = "adaptive") -> Relaxation:
        """The line itself on both sides, exactly."""
        slope, intercept = self.slope.expand_as(x.lower), self.intercept.expand_as(x.lower)
        return Relaxation(slope, intercept, slope, intercept)


@dataclass(frozen=True, eq=False)
class Substituted(Activation):
    """An element-wise activation with lines in place of the elements in `pruned`. Use `substituted` to build one.

    Raises:
        UnsupportedOpError: `act` is not element-wise.
    """

    act: Activation
    pruned: Tensor
    slope: Tensor
    intercept: Tensor

    def __post_init__(self) -> None:
        if not self.act.free:
            raise UnsupportedOpError(
                f"{type(self.act).__name__} is not an element-wise activation that lines can replace; leave it as it is"
            )

    @cached_property
    def line(self) -> Line:
        """What stands in place of the pruned elements."""
        return Line(self.slope, self.intercept)

    @property
    def exact_in_milp(self) -> bool:  # type: ignore[override]
        """As the activation."""
        return self.act.exact_in_milp

    @property
    def free(self) -> bool:  # type: ignore[override]
        """As the activation."""
        return self.act.free

    @property
    def piecewise(self) -> bool:  # type: ignore[override]
        """As the activation."""
        return self.act.piecewise

    @property
    def convex(self) -> bool:  # type: ignore[override]
        """As the activation; a line is convex."""
        return self.act.convex

    @property
    def concave(self) -> bool:  # type: ignore[override]
        """As the activation; a line is concave."""
        return self.act.concave

    @property
    def partial(self) -> bool:  # type: ignore[override]
        """As the activation, also where every element outside its domain is pruned."""
        return self.act.partial

    def parameters(self) -> list[Tensor]:
        return [self.slope, self.intercept, *self.act.parameters()]

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Self:
        return replace(
            self,
            act=self.act.to(dtype, device),
            pruned=self.pruned.to(device=device),
            slope=self.slope.to(device=device, dtype=dtype),
            intercept=self.intercept.to(device=device, dtype=dtype),
        )

    def at(self, columns: Tensor, shape: Shape) -> Self:
        lines = (t.expand(shape).flatten()[columns] for t in (self.pruned, self.slope, self.intercept))
        pruned, slope, intercept = lines
        return replace(self, act=self.act.at(columns, shape), pruned=pruned, slope=slope, intercept=intercept)

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.where(self.pruned, self.line.forward(*xs), self.act.forward(*xs))

    def interval(self, *xs: Interval) -> Interval:
        line, act = self.line.interval(*xs), self.act.interval(*xs)
        return Interval(self._mix(line.lower, act.lower), self._mix(line.upper, act.upper))

    def unstable(self, x: Interval) -> Tensor:
        return self.act.unstable(x) & ~self.pruned

    def relax(self, x: Interval, slopes: Slopes = "adaptive") -> Relaxation:
        return self._planes(self.line.relax(x, slopes), self.act.relax(x, slopes))

    def fit(self, x: Interval, lower_slope: Tensor, upper_slope: Tensor) -> Relaxation:
        return self._planes(self.line.fit(x, lower_slope, upper_slope), self.act.fit(x, lower_slope, upper_slope))

    def usual_slopes(self, x: Interval, slopes: Slopes = "adaptive") -> tuple[Tensor, Tensor]:
        line, act = self.line.usual_slopes(x, slopes), self.act.usual_slopes(x, slopes)
        return self._mix(line[0], act[0]), self._mix(line[1], act[1])

    def slope_range(self, x: Interval) -> tuple[Tensor, Tensor]:
        line, act = self.line.slope_range(x), self.act.slope_range(x)
        return self._mix(line[0], act[0]), self._mix(line[1], act[1])

    def touching(self, x: Interval, slope: Tensor, *, below: bool) -> tuple[Tensor, ...]:
        """The activation's own points, and for pruned elements the ends."""
        points = (self._mix(x.lower, point) for point in self.act.touching(x, slope, below=below))
        return (*points, x.lower, x.upper)

    def split_point(self, x: Interval) -> Tensor:
        return self._mix((x.lower + x.upper) / 2, self.act.split_point(x))

    def float_error(self, x: Interval) -> Tensor:
        return self._mix(self.line.float_error(x), self.act.float_error(x))

    def _mix(self, line: Tensor, act: Tensor) -> Tensor:
        return torch.where(self.pruned, line, act)

    def _planes(self, line: Relaxation, act: Relaxation) -> Relaxation:
        sides = ("lower_slope", "lower_intercept", "upper_slope", "upper_intercept")
        return Relaxation(*(self._mix(getattr(line, side), getattr(act, side)) for side in sides))


@dataclass(frozen=True, eq=False)
class SubstitutedPiecewise(Substituted, Piecewise):  # type: ignore[override]
    """`Substituted` for a piecewise-linear activation: piecewise linear itself, with an exact mixed-integer form."""

    act: Piecewise

    def pieces(self) -> tuple[Values, Values, Values]:
        """The activation's data; a pruned element has the line on every piece."""
        knots, slopes, intercepts = self.act.pieces()
        return knots, [self._everywhere(self.slope, s) for s in slopes], [self._everywhere(self.intercept, c) for c in intercepts]

    def _everywhere(self, line: Tensor, own: float | Tensor) -> Tensor:
        return torch.where(self.pruned, line.double(), torch.as_tensor(own, dtype=torch.float64, device=line.device))


def substituted(act: Activation, pruned: Tensor, slope: Tensor, intercept: Tensor) -> Substituted:
    """The activation with `slope z + intercept` in place of its elements in `pruned` (bool), which stay pruned where they already are.

    Raises:
        UnsupportedOpError: the activation is not element-wise.
    """
    if isinstance(act, Substituted):
        slope, intercept = torch.where(act.pruned, act.slope, slope), torch.where(act.pruned, act.intercept, intercept)
        return substituted(act.act, pruned | act.pruned, slope, intercept)
    kind = SubstitutedPiecewise if isinstance(act, Piecewise) else Substituted
    return kind(act, pruned, slope, intercept)  # type: ignore[arg-type]
