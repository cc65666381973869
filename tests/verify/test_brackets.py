"""Brackets: searches on functions whose zero is known, with good and misleading hints."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from verify.brackets import Bracket, Finished

Gap = Callable[[float], float]
TOL, MOST = 1e-4, 0.4

CURVES: dict[str, Gap] = {
    "line": lambda eps: 0.137 - eps,
    "steep": lambda eps: 50 * (0.0123 - eps),
    "concave": lambda eps: 0.3 - eps - 8 * eps**2,
    "kink": lambda eps: 0.6 - 0.5 * eps if eps < 0.16 else 0.52 - 120 * (eps - 0.16),
    "sigmoid": lambda eps: math.tanh(40 * (0.2 - eps)),
    "jump": lambda eps: 1.0 if eps < 0.1234567 else -1.0,
    "far": lambda eps: 0.39 - eps,
}


def search(gap: Gap, finished: Finished | None = None, reach: float | None = None, most: float = MOST) -> Bracket:
    """A search in which a call at eps certifies eps where the gap is positive, and what is left of it elsewhere."""
    bracket = Bracket(gap(0.0) if reach is None else reach, most, TOL)
    while not bracket.done and bracket.calls < 200:
        eps = bracket.next(finished)
        assert bracket.lower <= eps <= bracket.upper
        value = gap(eps)
        distance = max(0.0, eps + value)
        bracket.record(eps, min(eps, distance), value)
    return bracket


def zero(gap: Gap, most: float = MOST) -> float:
    low, high = 0.0, most
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) > 0 else (low, middle)
    return low


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("reach", [None, math.inf, 1e-9, 0.0])
def test_the_zero_is_found(name: str, reach: float | None) -> None:
    gap = CURVES[name]
    found = search(gap, reach=reach)
    assert found.done
    assert found.lower - 1e-12 <= zero(gap) <= found.upper + 1e-12
    assert found.calls <= 30


@pytest.mark.parametrize("name", ["line", "steep", "concave", "kink", "sigmoid"])
def test_smooth_curves_need_few_calls(name: str) -> None:
    assert search(CURVES[name]).calls <= 9  # bisection: 12


def test_nothing_to_find_within_the_largest_radius() -> None:
    found = search(lambda eps: 5.0 - eps)
    assert found.done
    assert found.lower == MOST


def test_no_radius_at_all() -> None:
    found = search(lambda eps: -0.1 - eps, reach=0.0)
    assert found.done
    assert found.lower == 0.0


def kinked(scale: float) -> Gap:
    return lambda eps: 2 * scale - 0.5 * eps if eps < 0.95 * scale else 2 * scale - 0.475 * scale - 60 * (eps - 0.95 * scale)


def test_finished_searches_save_calls() -> None:
    finished = Finished()
    scales = [0.10, 0.14, 0.11, 0.16, 0.12, 0.13, 0.15, 0.105]
    for scale in scales:
        finished.add(search(kinked(scale)))
    cold = [search(kinked(s)).calls for s in (0.115, 0.125, 0.145)]
    warm = [search(kinked(s), finished) for s in (0.115, 0.125, 0.145)]
    assert sum(b.calls for b in warm) < sum(cold)
    for bracket, scale in zip(warm, (0.115, 0.125, 0.145), strict=True):
        assert bracket.lower - 1e-12 <= zero(kinked(scale)) <= bracket.upper + 1e-12


def test_misleading_finished_searches_change_no_answer() -> None:
    finished = Finished()
    for scale in (0.30, 0.31, 0.32, 0.33):
        finished.add(search(kinked(scale)))
    for name, gap in CURVES.items():
        found = search(gap, finished)
        assert found.done, name
        assert found.lower - 1e-12 <= zero(gap) <= found.upper + 1e-12


def test_only_searches_that_met_a_zero_teach() -> None:
    finished = Finished()
    finished.add(search(lambda eps: 5.0 - eps))
    finished.add(search(lambda eps: -0.1 - eps, reach=0.0))
    finished.add(Bracket(0.2, MOST, TOL))
    assert finished.first(0.2) is None


def test_rounding_does_not_confuse_the_sides() -> None:
    bracket = Bracket(0.2, MOST, TOL)
    bracket.record(0.1, 0.1, -1e-18)
    bracket.record(0.2, 0.0999, 1e-18)
    assert [p.gap > 0 for p in bracket.curve] == [True, False]
    assert bracket.proven_at == 0.1


def test_planes_that_move_away_do_not_end_a_search_early() -> None:
    """Calls certify eps up to 0.1, but the nearest plane is at 0.08 + eps / 5 only: at eps = 0.05 it is at 0.09."""
    bracket = Bracket(0.08, MOST, TOL)
    while not bracket.done and bracket.calls < 30:
        eps = bracket.next()
        bracket.record(eps, min(eps, 0.08 + eps / 5), 0.08 - 0.8 * eps)
    assert bracket.done
    assert bracket.lower >= 0.1 - TOL  # more, where a plane beyond the crossing is further away still
