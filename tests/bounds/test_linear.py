"""Linear bounds and half-spaces."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bounds.linear import Halfspaces, LinearBounds
from bounds.region import Box, LpBall


def T(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_concrete_bounds_by_hand() -> None:
    """x0 - 2 x1 + 1 <= y <= 3 x0 + 2 on [0, 1] x [-1, 2]."""
    planes = LinearBounds(T([[1.0, -2.0]]), T([1.0]), T([[3.0, 0.0]]), T([2.0]))
    found = planes.concretize(Box(T([0.0, -1.0]), T([1.0, 2.0])))
    assert (found.lower.item(), found.upper.item()) == pytest.approx((-3.0, 5.0), abs=1e-12)
    ball = planes.concretize(LpBall(T([0.0, 0.0]), 1.0, 2.0))
    assert (ball.lower.item(), ball.upper.item()) == pytest.approx((1 - math.sqrt(5), 5.0), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_concrete_bounds_are_rounded_outward(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    A = torch.randn(1, 50, 4, generator=rng).to(dtype)
    b = torch.randn(1, 50, generator=rng, dtype=torch.float64) * 1e6
    box = Box(-torch.rand(1, 4, generator=rng) * 1e3, torch.rand(1, 4, generator=rng))
    found = LinearBounds(A, b, A, b).concretize(box)
    low, high = ([Fraction(v) for v in side[0].tolist()] for side in (box.lower, box.upper))
    for row, offset, least, most in zip(A[0].tolist(), b[0].tolist(), found.lower[0].tolist(), found.upper[0].tolist(), strict=True):
        terms = [sorted((Fraction(a) * lo, Fraction(a) * hi)) for a, lo, hi in zip(row, low, high, strict=True)]
        exact = [Fraction(offset) + sum(t[side] for t in terms) for side in (0, 1)]
        assert Fraction(least) <= exact[0]
        assert Fraction(most) >= exact[1]
        assert Fraction(least) >= exact[0] - Fraction(1, 100)


def test_half_spaces() -> None:
    """{y0 - y1 <= 0, y1 <= 2}."""
    unsafe = Halfspaces(T([1.0, -1.0], [0.0, 1.0]), T(0.0, 2.0))
    y = T([0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [2.0, 3.0])
    assert unsafe.margin(y).tolist() == [-1.0, 1.0, 0.0, 1.0]
    assert unsafe.contains(y).tolist() == [True, False, True, False]
    assert unsafe.margin(y.reshape(2, 2, 2)).shape == (2, 2)


def test_outputs_that_are_no_numbers_are_in_no_half_space() -> None:
    unsafe = Halfspaces(T([1.0, 0.0], [0.0, 1.0]), T(0.0, 0.0))
    assert unsafe.contains(T([math.nan, -1.0], [-1.0, math.nan])).tolist() == [False, False]


def test_margins_are_evaluated_in_the_type_of_the_outputs() -> None:
    unsafe = Halfspaces(T([1.0]), T(0.1))
    assert unsafe.margin(torch.tensor([[0.1]])).item() == 0.0  # float32(0.1) against float32(0.1)
    assert unsafe.margin(torch.tensor([[0.1]]).double()).item() > 0  # float32(0.1) is above 0.1
