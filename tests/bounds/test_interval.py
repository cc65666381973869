"""Intervals."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.interval import Interval


def T(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([values], dtype=dtype)


def test_magnitude_and_width() -> None:
    interval = Interval(T(-3.0, 1.0, -5.0, 0.0), T(2.0, 4.0, -1.0, 0.0))
    assert interval.magnitude.tolist() == [[3.0, 4.0, 5.0, 0.0]]
    assert interval.width.tolist() == [[5.0, 3.0, 4.0, 0.0]]
    assert interval.shape == (1, 4)


def test_intersection() -> None:
    both = Interval(T(-1.0, 0.0), T(1.0, 2.0)).intersect(Interval(T(-2.0, 0.5), T(0.5, 3.0)))
    assert (both.lower.tolist(), both.upper.tolist()) == ([[-1.0, 0.5]], [[0.5, 2.0]])


def test_intersection_with_what_is_not_a_number_is_not_a_number() -> None:
    assert not Interval(T(0.0), T(1.0)).intersect(Interval(T(math.nan), T(1.0))).is_finite()
    assert not Interval(T(0.0), T(1.0)).intersect(Interval(T(0.0), T(math.nan))).is_finite()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_conversion_is_outward_and_no_wider_than_it_must(value: float) -> None:
    found = Interval(T(value), T(value)).to(torch.float32)
    low, high = found.lower.item(), found.upper.item()
    assert found.lower.dtype == found.upper.dtype == torch.float32
    assert low <= value <= high
    tight = [torch.nextafter(found.lower, torch.tensor(math.inf)).item(), torch.nextafter(found.upper, torch.tensor(-math.inf)).item()]
    if math.isfinite(low) and math.isfinite(high):
        exact = Fraction(float(torch.tensor(value, dtype=torch.float64).float())) == Fraction(value)
        assert (low == high) == exact
        assert exact or (tight[0] > value > tight[1]) or abs(value) < 1e-37


def test_conversion_to_a_wider_type_changes_nothing() -> None:
    narrow = Interval(T(0.1, dtype=torch.float32), T(0.2, dtype=torch.float32))
    wide = narrow.to(torch.float64)
    assert (wide.lower.item(), wide.upper.item()) == (narrow.lower.item(), narrow.upper.item())
    assert wide.lower.dtype == torch.float64
    assert Interval(T(1.0), T(2.0)).to(torch.float64).lower.item() == 1.0


def test_conversion_of_what_float32_cannot_hold() -> None:
    beyond = Interval(T(1e300), T(1e300)).to(torch.float32)
    assert math.isfinite(beyond.lower.item())
    assert beyond.upper.item() == math.inf
    assert Interval(T(-1e300), T(-1e300)).to(torch.float32).lower.item() == -math.inf
    small = Interval(T(-1e-300), T(1e-300)).to(torch.float32)
    assert small.lower.item() < 0 < small.upper.item()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite(bad: float) -> None:
    assert Interval(T(0.0), T(1.0)).is_finite()
    assert not Interval(T(bad), T(1.0)).is_finite()
    assert not Interval(T(0.0), T(bad)).is_finite()
