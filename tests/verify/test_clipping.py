"""Clipping boxes by planes: no point that may be unsafe is lost, judged by points and in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from verify.clipping import clip
from verify.spec import Margins


def planes(seed: int, boxes: int = 200, rows: int = 3, inputs: int = 3) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Planes (boxes, rows, inputs) that cut the boxes somewhere, some coefficients zero."""
    random = torch.Generator().manual_seed(seed)
    A = torch.randn(boxes, rows, inputs, generator=random, dtype=torch.float64)
    A[torch.rand(A.shape, generator=random) < 0.2] = 0.0
    lower = torch.randn(boxes, inputs, generator=random, dtype=torch.float64)
    upper = lower + torch.rand(boxes, inputs, generator=random, dtype=torch.float64)
    center = torch.einsum("nri,ni->nr", A, (lower + upper) / 2)
    b = 0.6 * torch.randn(boxes, rows, generator=random, dtype=torch.float64) - center
    return A, b, (lower, upper)


def goal(*ranges: tuple[int, int], d: float = 0.0) -> Margins:
    rows = ranges[-1][1]
    return Margins(torch.zeros(rows, 1, dtype=torch.float64), torch.full((rows,), d, dtype=torch.float64), ranges)


@pytest.mark.parametrize("margin", [0.0, 0.25])
@pytest.mark.parametrize("ranges", [((0, 3),), ((0, 1), (1, 3)), ((0, 1), (1, 2), (2, 3))])
def test_no_point_of_small_margin_is_cut_off(ranges: tuple[tuple[int, int], ...], margin: float) -> None:
    A, b, (lower, upper) = planes(1)
    sets = goal(*ranges, d=0.1)
    low, high = clip(A, b, sets, margin, (lower, upper))
    random = torch.Generator().manual_seed(2)
    points = lower.unsqueeze(1) + (upper - lower).unsqueeze(1) * torch.rand(200, 400, 3, generator=random, dtype=torch.float64)
    value = torch.einsum("nri,npi->npr", A, points) + b.unsqueeze(1) - 0.1
    for k, (start, stop) in enumerate(ranges):
        open_ = value[..., start:stop].amax(-1) <= margin
        inside = ((points >= low[:, k].unsqueeze(1)) & (points <= high[:, k].unsqueeze(1))).all(-1)
        assert bool(inside[open_].all())
        assert float((~inside).double().mean()) > 0.1  # and something is cut off
        crossed = (low[:, k] > high[:, k]).any(-1)
        assert bool(crossed.any())
        assert not bool(open_[crossed].any())


def test_the_ends_are_as_tight_as_one_row_allows() -> None:
    """x + 2 y <= 1 on [0, 1]^2: x stays in [0, 1], y in [0, 0.5]."""
    A, b = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64), torch.tensor([[-1.0]], dtype=torch.float64)
    box = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    low, high = clip(A, b, goal((0, 1)), 0.0, box)
    assert low.equal(torch.zeros(1, 1, 2, dtype=torch.float64))
    assert float(high[0, 0, 0]) == 1.0
    assert 0.5 <= float(high[0, 0, 1]) <= 0.5 + 1e-12
    assert math.isclose(float(clip(-A, -b, goal((0, 1)), 0.0, box)[0][0, 0, 0]), 0.0)


def test_ends_are_rounded_outward_where_a_row_decides_exactly() -> None:
    """With the other inputs where they contribute least, the last x that the row allows, in rational numbers, is never cut off."""
    A, b, (lower, upper) = planes(5, boxes=300, rows=1)
    A, b = A * 1e3, b * 1e3
    low, high = clip(A, b, goal((0, 1)), 0.0, (lower, upper))
    decided = 0
    for n in range(300):
        row, ends = (
            [Fraction(v) for v in A[n, 0].tolist()],
            [(Fraction(x), Fraction(y)) for x, y in zip(lower[n].tolist(), upper[n].tolist(), strict=True)],
        )
        least = sum((min(a * x, a * y) for a, (x, y) in zip(row, ends, strict=True)), Fraction(float(b[n, 0])))
        if least > 0:
            continue
        for j, a in enumerate(row):
            if a > 0:
                assert Fraction(float(high[n, 0, j])) >= min(ends[j][1], ends[j][0] - least / a)
            elif a < 0:
                assert Fraction(float(low[n, 0, j])) <= max(ends[j][0], ends[j][1] - least / a)
            decided += 1
    assert decided > 100


def test_a_row_that_depends_on_nothing_cuts_nothing_or_is_left_to_the_bounds() -> None:
    A, b = torch.zeros(1, 1, 2, dtype=torch.float64), torch.tensor([[0.0]], dtype=torch.float64)
    box = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    low, high = clip(A, b, goal((0, 1)), 0.0, box)
    assert low[0].equal(box[0])
    assert high[0].equal(box[1])
