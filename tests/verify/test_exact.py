from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bounds.errors import SpecError
from verify.exact import ExactBox, ExactHalfspaces, ExactRow, ball_box, in_ball, neighbours

F = Fraction


@given(st.fractions())
@settings(max_examples=200)
def test_neighbours_enclose_tightly(value: Fraction) -> None:
    low, high = neighbours(value)
    assert Fraction(low) <= value <= Fraction(high)
    assert high in (low, math.nextafter(low, math.inf))
    assert (low == high) == (Fraction(float(value)) == value)


def test_a_number_beyond_float64_is_refused() -> None:
    with pytest.raises(SpecError, match="too large for float64"):
        neighbours(F(10) ** 400)


def test_outer_contains_and_inner_is_contained() -> None:
    box = ExactBox((F(1, 10), F(-1, 3), F(1, 2)), (F(2, 10), F(1, 3), F(1, 2)))
    low, high = box.outer
    assert all(Fraction(v) <= b for v, b in zip(low.tolist(), box.lower, strict=True))
    assert all(Fraction(v) >= b for v, b in zip(high.tolist(), box.upper, strict=True))
    for dtype in (np.float16, np.float32, np.float64):
        low, high = box.inner(dtype)
        assert low.dtype == dtype
        assert all(Fraction(float(v)) >= b for v, b in zip(low, box.lower, strict=True))
        assert all(Fraction(float(np.nextafter(v, dtype(-9)))) < b for v, b in zip(low, box.lower, strict=True))
        assert all(Fraction(float(v)) <= b for v, b in zip(high, box.upper, strict=True))
        assert all(Fraction(float(np.nextafter(v, dtype(9)))) > b for v, b in zip(high, box.upper, strict=True))


def test_membership_has_no_tolerance() -> None:
    box = ExactBox((F(1, 10),), (F(1, 4),))
    assert box.contains(np.array([0.25]))
    assert not box.contains(np.array([math.nextafter(0.25, 1)]))
    # 0.1 in float64 lies above 1/10, 0.1 in float32 too; the float64 below 1/10 does not count.
    assert box.contains(np.array([0.1]))
    assert not box.contains(np.array([math.nextafter(0.1, 0)]))
    assert not box.contains(np.array([math.nan]))


def test_open_ends_exclude_the_end() -> None:
    box = ExactBox((F(0),), (F(1, 3),), frozenset({0}), frozenset({0}))
    assert not box.contains(np.array([0.0]))
    assert box.contains(np.array([5e-324]))
    assert box.contains(np.array([neighbours(F(1, 3))[0]]))
    assert ExactBox((F(1),), (F(1),), frozenset({0})).empty_at() == 0
    assert ExactBox((F(1),), (F(1),)).empty_at() is None


def test_an_interval_without_a_float32_crosses() -> None:
    low, high = ExactBox((F(1, 10),), (F(1, 10),)).inner(np.float32)
    assert low[0] > high[0]


def test_half_spaces_compare_exactly() -> None:
    row = ExactRow(((0, F(1)), (1, F(-1))), F(0))
    same = [0.1, 0.1]
    assert row.holds(same)
    assert not ExactRow(row.coefficients, F(0), strict=True).holds(same)
    assert not row.holds([math.nextafter(0.1, 1), 0.1])
    assert not row.holds([math.nan, 0.1])
    assert not row.holds([-math.inf, 0.1])
    # The float64 numbers called 0.1 and 0.2 sum to a little more than the one called 0.3, and their sum is no float64.
    assert not ExactRow(((0, F(1)), (1, F(1))), F(0.3)).holds([0.1, 0.2])
    assert ExactRow(((0, F(1)), (1, F(1))), F(0.1) + F(0.2)).holds([0.1, 0.2])


def test_outward_half_spaces_contain_the_exact_one() -> None:
    row = ExactRow(((0, F(1, 10)), (2, F(-3, 10))), F(1, 3))
    C, d = ExactHalfspaces((row,)).outward(3)
    assert C.tolist() == [[1.0, 0.0, -3.0]]
    assert Fraction(d[0]) >= F(10, 3) > Fraction(math.nextafter(d[0], 0))


def test_coefficients_that_no_scaling_makes_exact_are_refused() -> None:
    row = ExactRow(((4, F("0.1234567890123456789")),), F(0))
    with pytest.raises(SpecError, match="Y_4 has too many digits"):
        row.outward()


def test_no_rows_is_everything() -> None:
    everything = ExactHalfspaces(())
    assert everything.contains(np.array([1e30]))
    assert not everything.contains(np.array([math.nan]))
    C, d = everything.outward(2)
    assert C.tolist() == [[0.0, 0.0]]
    assert d.tolist() == [0.0]


def test_ball_box_is_exact_and_clipped() -> None:
    box = ball_box(np.array([0.05, 0.5]), np.array(0.1), (np.array(0.0), np.array(1.0)))
    assert box.lower == (F(0), F(0.5) - F(0.1))
    assert box.upper == (F(0.05) + F(0.1), F(0.5) + F(0.1))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_in_ball_decides_the_boundary(p: float) -> None:
    center = np.array([0.5, 0.5])
    eps = np.array(0.25)
    assert in_ball(np.array([0.75, 0.5]), center, eps, p)
    assert not in_ball(np.array([math.nextafter(0.75, 1), 0.5]), center, eps, p)
    assert not in_ball(np.array([0.75, math.nextafter(0.5, 1)]), center, eps, p)
    assert not in_ball(np.array([math.nan, 0.5]), center, eps, p)


def test_in_ball_with_one_eps_per_feature() -> None:
    center, eps = np.zeros(3), np.array([0.3, 0.7, 0.0])
    assert in_ball(np.array([0.3 * 0.6, 0.7 * 0.79, 0.0]), center, eps, 2.0)
    assert not in_ball(np.array([0.3 * 0.6, 0.7 * 0.81, 0.0]), center, eps, 2.0)
    assert not in_ball(np.array([0.0, 0.0, 5e-324]), center, eps, 2.0)
