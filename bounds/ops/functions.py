"""The curves that networks are made of: exp, log, powers, erf, softplus, ELU, softsign, arctangent, sine and cosine."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import UnsupportedOpError
from bounds.interval import Interval
from bounds.ops.curves import Curve, Piece, split_at
from bounds.ops.smooth import FLOAT32_ULPS

_EXACT = torch.float64
_TINY = 2.0**-1000
"""Where slopes of roots are taken instead of at 0."""


@dataclass(frozen=True, eq=False)
class Exp(Curve):
    """exp(x)."""

    convex = True
    least = 0.0

    def value(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        return (Piece(lower, upper, 1),)

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        return torch.log(slope.clamp(min=0.0))

    def float_error(self, x: Interval) -> Tensor:
        """That of the kernel, and what a softmax loses that subtracts its largest entry first: u |x_i - max x| <= 2 u max |x| of the argument."""
        largest = x.magnitude.to(_EXACT).flatten(1).amax(1).reshape(-1, *[1] * (x.lower.dim() - 1))
        relative = (FLOAT32_ULPS + 2 * largest) * torch.finfo(torch.float32).eps
        return rounding.round_up(relative * self.interval(x).upper.to(_EXACT), x.lower.dtype)


@dataclass(frozen=True, eq=False)
class Log(Curve):
    """log(x) for x > 0."""

    concave = True
    partial = True

    def value(self, x: Tensor) -> Tensor:
        return torch.log(x)

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / x

    def undefined(self, lower: Tensor, upper: Tensor) -> Tensor:
        return lower <= 0

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        return (Piece(lower, upper, -1),)

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        return 1 / slope.clamp(min=0.0)


@dataclass(frozen=True, eq=False)
class Power(Curve):
    """x^exponent. Where x^exponent has no real value for x < 0 the input has to be >= 0; for negative exponents it must not contain 0."""

    exponent: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.exponent) or self.exponent in (0.0, 1.0):
            raise UnsupportedOpError(
                f"a power's exponent is a number other than 0 and 1, got {self.exponent}; use a constant or the identity"
            )

    @property
    def convex(self) -> bool:  # type: ignore[override]
        """Whether it is convex on every interval on which it is defined."""
        return self._even or (not self._whole and not 0 < self.exponent < 1)

    @property
    def concave(self) -> bool:  # type: ignore[override]
        """Whether it is concave on every interval on which it is defined."""
        return 0 < self.exponent < 1

    @property
    def partial(self) -> bool:  # type: ignore[override]
        """Whether it is not defined for some numbers."""
        return self.exponent < 0 or not self._whole

    @property
    def least(self) -> float:  # type: ignore[override]
        """The smallest value it can take."""
        return 0.0 if self._even or not self._whole else -math.inf

    @property
    def _whole(self) -> bool:
        return float(self.exponent).is_integer()

    @property
    def _even(self) -> bool:
        return self._whole and self.exponent % 2 == 0

    def __str__(self) -> str:
        return {-1.0: "Reciprocal", 0.5: "Sqrt"}.get(self.exponent, f"Power({self.exponent:g})")

    def value(self, x: Tensor) -> Tensor:
        return torch.pow(x, self.exponent)

    def derivative(self, x: Tensor) -> Tensor:
        x = x.clamp(min=_TINY) if 0 < self.exponent < 1 else x
        return self.exponent * torch.pow(x, self.exponent - 1)

    def undefined(self, lower: Tensor, upper: Tensor) -> Tensor:
        if self.exponent > 0:
            return torch.zeros_like(lower, dtype=torch.bool) if self._whole else lower < 0
        return (lower <= 0) & (upper >= 0) if self._whole else lower <= 0

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        if self.convex or self.concave:
            return (Piece(lower, upper, 1 if self.convex else -1),)
        if self.exponent > 0:
            return split_at(lower, upper, (0.0,), (-1, 1))
        return (Piece(lower, upper, torch.where(lower > 0, 1, -1)),)

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        """|x|^(exponent - 1) = |slope / exponent| on the piece's side of 0; beyond the side's end where the derivative is never the slope."""
        ratio = slope / self.exponent
        size = ratio.abs() ** (1 / (self.exponent - 1))
        if self._even and self.exponent > 0:
            return torch.where(ratio < 0, -size, size)
        side = torch.where(piece.left + piece.right < 0, -1.0, 1.0)
        wanted = ratio * side if self._even else ratio
        return side * torch.where(wanted > 0, size, torch.inf if self.exponent < 1 else 0.0)

    def widest(self, x: Tensor) -> Tensor | float:
        return _TINY if 0 < self.exponent < 1 else 0.0

    def _steepness(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """A root is not met at 0 itself: no slope steeper than at a thousandth of the interval is worth trying."""
        return super()._steepness(torch.maximum(lower, upper * 1e-3) if 0 < self.exponent < 1 else lower, upper)


class Odd(Curve):
    """An odd curve, convex below 0 and concave above it."""

    @abstractmethod
    def steep(self, slope: Tensor) -> Tensor:
        """About the point x >= 0 where the derivative is `slope`; infinity for slope <= 0."""

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        return split_at(lower, upper, (0.0,), (1, -1))

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        """On the convex side the mirrored point."""
        return self.steep(slope) * (-torch.as_tensor(piece.bend))


@dataclass(frozen=True, eq=False)
class Erf(Odd):
    """The error function 2 / sqrt(pi) * (integral of exp(-t^2) from 0 to x)."""

    least, most = -1.0, 1.0

    def value(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def derivative(self, x: Tensor) -> Tensor:
        return (2 / math.sqrt(math.pi)) * torch.exp(-x * x)

    def derivative_error(self, x: Tensor, derivative: Tensor) -> Tensor:
        """The rounding of x^2 counts x^2 times."""
        return super().derivative_error(x, derivative * (2 + x * x))

    def steep(self, slope: Tensor) -> Tensor:
        return torch.sqrt(-torch.log((slope * (math.sqrt(math.pi) / 2)).clamp(min=0.0, max=1.0)))


@dataclass(frozen=True, eq=False)
class Atan(Odd):
    """The arctangent."""

    least, most = -1.5708, 1.5708  # half of pi is 1.570796...

    def value(self, x: Tensor) -> Tensor:
        return torch.atan(x)

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / (1 + x * x)

    def steep(self, slope: Tensor) -> Tensor:
        return torch.sqrt(1 / slope.clamp(min=0.0, max=1.0) - 1)

    def float_error(self, x: Interval) -> Tensor:
        """Runtimes use rational approximations with absolute accuracy."""
        return torch.full_like(x.lower, FLOAT32_ULPS * torch.finfo(torch.float32).eps)


@dataclass(frozen=True, eq=False)
class Softsign(Odd):
    """x / (1 + |x|)."""

    least, most = -1.0, 1.0

    def value(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs())

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / (1 + x.abs()) ** 2

    def steep(self, slope: Tensor) -> Tensor:
        return 1 / torch.sqrt(slope.clamp(min=0.0, max=1.0)) - 1


@dataclass(frozen=True, eq=False)
class Softplus(Curve):
    """log(1 + exp(x))."""

    stray: float = 0.0

    convex = True
    least = 0.0

    def value(self, x: Tensor) -> Tensor:
        return x.clamp(min=0.0) + torch.log1p(torch.exp(-x.abs()))

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        return (Piece(lower, upper, 1),)

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        return torch.logit(slope.clamp(min=0.0, max=1.0))

    def float_error(self, x: Interval) -> Tensor:
        """Runtimes may add to 1 and take the logarithm, which rounds small values away."""
        return rounding.round_up(FLOAT32_ULPS * torch.finfo(torch.float32).eps * (1 + x.magnitude.to(_EXACT)), x.lower.dtype)


@dataclass(frozen=True, eq=False)
class Elu(Curve):
    """x for x > 0, alpha (exp(x) - 1) for x <= 0, alpha > 0. Convex unless alpha > 1, where it has a concave kink at 0."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise UnsupportedOpError(f"an ELU's alpha is a positive number, got {self.alpha}")

    @property
    def convex(self) -> bool:  # type: ignore[override]
        """Whether it is convex on every interval."""
        return self.alpha <= 1

    @property
    def least(self) -> float:  # type: ignore[override]
        """The smallest value it can take."""
        return -self.alpha

    def value(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.alpha * torch.expm1(x.clamp(max=0.0)))

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 1.0, self.alpha * torch.exp(x.clamp(max=0.0)))

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        return split_at(lower, upper, (0.0,), (1, 1))

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        """Of the left arc; the right one is a line, of which any point will do."""
        return torch.log(slope.clamp(min=0.0) / self.alpha)

    def widest(self, x: Tensor) -> float:
        """0 itself has the left arc's derivative."""
        return _TINY

    def float_error(self, x: Interval) -> Tensor:
        """Runtimes may subtract 1 from the exponential, which cancels."""
        size = FLOAT32_ULPS * torch.finfo(torch.float32).eps * (max(self.alpha, 1.0) + x.magnitude.to(_EXACT))
        return rounding.round_up(size, x.lower.dtype)


class Wave(Curve):
    """A sine wave of amplitude and frequency 1. `phase`: where, in half periods, a concave arc begins."""

    least, most = -1.0, 1.0
    phase: ClassVar[float]
    _FURTHEST: ClassVar[float] = 2.0**16

    def pieces(self, lower: Tensor, upper: Tensor) -> Sequence[Piece]:
        """All arcs where they are few, else the first three and the last three: the peaks of act(x) - slope x rise or fall from one arc to the
        next of its kind, so that those between are never the highest."""
        first, last = (torch.floor(end.clamp(-self._FURTHEST, self._FURTHEST) / math.pi - self.phase) for end in (lower, upper))
        most = int((last - first).max()) if first.numel() else 0
        turns = [first, *(torch.minimum(first + k, last) for k in range(1, min(most, 2 if most > 5 else 5) + 1))]
        if most > 5:
            turns += [*(torch.maximum(last - k, first) for k in (2, 1)), last]

        def start(turn: Tensor) -> Tensor:
            return torch.minimum(torch.maximum((turn + self.phase) * math.pi, lower), upper)

        return tuple(Piece(start(turn), start(turn + 1), torch.where(turn % 2 == 0, -1, 1), turn) for turn in turns)

    def critical(self, slope: Tensor, piece: Piece) -> Tensor:
        """An arc's derivative falls (rises) like a cosine (its negative) from the arc's start."""
        if piece.turn is None or isinstance(piece.bend, int):
            raise TypeError("an arc of a wave knows how many half periods it is from the origin")
        return (piece.turn + self.phase) * math.pi + torch.arccos((-piece.bend * slope).clamp(-1.0, 1.0))

    def widest(self, x: Tensor) -> Tensor:
        """Multiples of pi are off by a few units in the last place."""
        return 4 * torch.finfo(x.dtype).eps * (x.abs() + 4)

    def slip(self, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor | float:
        """Far from the origin nothing but the amplitude is known, and act(x) - slope x <= 1 + |slope x|."""
        size = torch.maximum(-lower, upper).abs()
        far = 2 + 2 * slope.abs() * size
        return torch.where(size > self._FURTHEST, far, 3 * self.widest(size) * (slope.abs() + 1))

    def float_error(self, x: Interval) -> Tensor:
        return torch.full_like(x.lower, FLOAT32_ULPS * torch.finfo(torch.float32).eps)

    def _steepness(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        least, most = super()._steepness(lower, upper)
        wide = torch.maximum(-lower, upper).abs() > self._FURTHEST
        return torch.where(wide, -1.0, least), torch.where(wide, 1.0, most)


@dataclass(frozen=True, eq=False)
class Sin(Wave):
    """sin(x)."""

    phase = 0.0

    def value(self, x: Tensor) -> Tensor:
        return torch.sin(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.cos(x)


@dataclass(frozen=True, eq=False)
class Cos(Wave):
    """cos(x)."""

    phase = -0.5

    def value(self, x: Tensor) -> Tensor:
        return torch.cos(x)

    def derivative(self, x: Tensor) -> Tensor:
        return -torch.sin(x)
