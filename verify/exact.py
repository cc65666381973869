"""Exact questions: boxes and half-spaces with rational data, decided without tolerance. Pure Python and NumPy.

Proofs use float64 copies of these sets that were rounded outward (the set can only grow). A counterexample is checked against the exact set.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from bounds.errors import SpecError

Floats = np.ndarray
_SCALE = 1 << 256
_EXACT_INTEGERS = 1 << 53


def neighbours(value: Fraction) -> tuple[float, float]:
    """The largest float64 <= value and the smallest float64 >= value; equal when the value is a float64.

    Raises:
        SpecError: the magnitude exceeds the float64 range.
    """
    try:
        near = value.numerator / value.denominator
    except OverflowError as error:
        raise SpecError("a number is too large for float64; numbers must stay below 1.8e308 in magnitude") from error
    numerator, denominator = near.as_integer_ratio()
    excess = numerator * value.denominator - value.numerator * denominator
    if excess > 0:
        return math.nextafter(near, -math.inf), near
    if excess < 0:
        return near, math.nextafter(near, math.inf)
    return near, near


@dataclass(frozen=True)
class ExactBox:
    """{x : lower <= x <= upper} over flattened inputs, with strict inequality at the indices in `open_lower` and `open_upper`."""

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]
    open_lower: frozenset[int] = field(default_factory=frozenset)
    open_upper: frozenset[int] = field(default_factory=frozenset)

    @staticmethod
    def from_floats(lower: Floats, upper: Floats) -> ExactBox:
        """The closed box with the exact values of the given floating-point bounds."""
        return ExactBox(tuple(map(Fraction, lower.ravel().tolist())), tuple(map(Fraction, upper.ravel().tolist())))

    def __len__(self) -> int:
        return len(self.lower)

    def empty_at(self) -> int | None:
        """The first index whose interval holds no number, or None."""
        for index, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)):
            if low > high or (low == high and (index in self.open_lower or index in self.open_upper)):
                return index
        return None

    @functools.cached_property
    def outer(self) -> tuple[Floats, Floats]:
        """float64 bounds of the smallest closed float64 box that contains this one."""
        lower, _, _, upper = self._rounded
        return lower, upper

    @functools.cached_property
    def _rounded(self) -> tuple[Floats, Floats, Floats, Floats]:
        lower = np.array([neighbours(v) for v in self.lower]).reshape(-1, 2)
        upper = np.array([neighbours(v) for v in self.upper]).reshape(-1, 2)
        return lower[:, 0], lower[:, 1], upper[:, 0], upper[:, 1]

    @functools.cached_property
    def _inner64(self) -> tuple[Floats, Floats]:
        below_lower, lower, upper, above_upper = (side.copy() for side in self._rounded)
        for index in self.open_lower:
            if below_lower[index] == lower[index]:
                lower[index] = np.nextafter(lower[index], np.inf)
        for index in self.open_upper:
            if above_upper[index] == upper[index]:
                upper[index] = np.nextafter(upper[index], -np.inf)
        return lower, upper

    def inner(self, dtype: np.dtype | type = np.float64) -> tuple[Floats, Floats]:
        """The smallest and the largest number of `dtype` inside each interval; they cross where the interval holds none.

        A point of `dtype` lies in the exact box if and only if it lies between these two, so comparisons with them are exact.
        """
        lower, upper = self._inner64
        low, high = lower.astype(dtype), upper.astype(dtype)
        infinity = np.asarray(np.inf, dtype=low.dtype)
        low = np.where(low.astype(np.float64) < lower, np.nextafter(low, infinity), low)
        high = np.where(high.astype(np.float64) > upper, np.nextafter(high, -infinity), high)
        return low, high

    def contains(self, x: Floats) -> bool:
        """Whether the flattened point lies in the box, with zero tolerance. Exact for every floating-point type up to float64."""
        lower, upper = self._inner64
        point = x.ravel().astype(np.float64)
        return bool(np.all((point >= lower) & (point <= upper)))


@dataclass(frozen=True)
class ExactRow:
    """sum of coefficient * y[index] <= bound, or < when `strict`; coefficients are not zero and sorted by index."""

    coefficients: tuple[tuple[int, Fraction], ...]
    bound: Fraction
    strict: bool = False

    def holds(self, y: Sequence[float]) -> bool:
        """Whether the inequality holds exactly. A value that is not finite makes it false."""
        if not all(math.isfinite(y[index]) for index, _ in self.coefficients):
            return False
        total = sum((c * Fraction(y[index]) for index, c in self.coefficients), Fraction(0))
        return total < self.bound if self.strict else total <= self.bound

    def outward(self) -> tuple[dict[int, float], float]:
        """Coefficients and bound in float64 of a closed half-space that contains this one; the coefficients are exact multiples.

        Raises:
            SpecError: no integer multiple of the coefficients is exact in float64.
        """
        scale = Fraction(1)
        if any(neighbours(c)[0] != neighbours(c)[1] for _, c in self.coefficients):
            scale = Fraction(math.lcm(*(c.denominator for _, c in self.coefficients)))
            for index, c in self.coefficients:
                if abs(c * scale) > _EXACT_INTEGERS:
                    raise SpecError(
                        f"the coefficient {float(c)!r} of Y_{index} has too many digits to be exact in float64, even after scaling the "
                        "constraint; write coefficients with at most 15 digits"
                    )
        return {index: float(c * scale) for index, c in self.coefficients}, neighbours(self.bound * scale)[1]


@dataclass(frozen=True)
class ExactHalfspaces:
    """The outputs that satisfy every row; no rows means all outputs."""

    rows: tuple[ExactRow, ...]

    def contains(self, y: Floats) -> bool:
        """Whether the flattened output lies in the set, with zero tolerance; an output with NaN or infinity lies in none."""
        if not np.all(np.isfinite(y)):
            return False
        values = y.ravel().astype(np.float64).tolist()
        return all(row.holds(values) for row in self.rows)

    def outward(self, outputs: int) -> tuple[Floats, Floats]:
        """C (rows, outputs) and d (rows,) in float64 with {y : C y <= d} containing this set."""
        C, d = np.zeros((max(1, len(self.rows)), outputs)), np.zeros(max(1, len(self.rows)))
        for number, row in enumerate(self.rows):
            coefficients, d[number] = row.outward()
            for index, value in coefficients.items():
                C[number, index] = value
        return C, d

    @staticmethod
    def from_floats(C: Floats, d: Floats) -> ExactHalfspaces:
        """The set {y : C y <= d} with the exact values of the given floating-point data."""
        rows = []
        for coefficients, bound in zip(C, d.tolist(), strict=True):
            terms = tuple((int(i), Fraction(float(coefficients[i]))) for i in np.flatnonzero(coefficients))
            rows.append(ExactRow(terms, Fraction(bound)))
        return ExactHalfspaces(tuple(rows))


@dataclass(frozen=True)
class ExactSpec:
    """Violated iff some x of `box` has f(x) in some set of `unsafe`."""

    box: ExactBox
    unsafe: tuple[ExactHalfspaces, ...]


def ball_box(center: Floats, eps: Floats, domain: tuple[Floats, Floats] | None) -> ExactBox:
    """The exact box {x : |x - center| <= eps} intersected with the domain; arrays broadcast to the centre's shape."""
    lower, upper = [], []
    for c, e in zip(center.ravel().tolist(), np.broadcast_to(eps, center.shape).ravel().tolist(), strict=True):
        lower.append(Fraction(c) - Fraction(e))
        upper.append(Fraction(c) + Fraction(e))
    if domain is not None:
        low, high = (np.broadcast_to(side, center.shape).ravel().tolist() for side in domain)
        lower = [max(a, Fraction(b)) for a, b in zip(lower, low, strict=True)]
        upper = [min(a, Fraction(b)) for a, b in zip(upper, high, strict=True)]
    return ExactBox(tuple(lower), tuple(upper))


def in_ball(x: Floats, center: Floats, eps: Floats, p: float) -> bool:
    """Whether sum_i |(x_i - c_i) / eps_i|^p <= 1 (p = 1 or 2); a feature with eps 0 must equal its centre.

    Property: exact when all positive eps are equal; otherwise never true outside the ball (each group of equal eps is rounded up by at most
    2^-256).
    """
    groups: dict[float, Fraction] = {}
    for v, c, e in zip(x.ravel().tolist(), center.ravel().tolist(), np.broadcast_to(eps, center.shape).ravel().tolist(), strict=True):
        if not math.isfinite(v):
            return False
        if v == c:
            continue
        if e == 0:
            return False
        distance = abs(Fraction(v) - Fraction(c))
        groups[e] = groups.get(e, Fraction(0)) + (distance if p == 1 else distance * distance)
    total = sum(math.ceil(size / Fraction(e) ** int(p) * _SCALE) for e, size in groups.items())
    return total <= _SCALE
