from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bounds.lagrange import largest_gain
from bounds.region import LpBall


def best(q: Tensor, reach: Tensor, p: float) -> float:
    """The maximum itself, met by a feasible t found by bisecting the multiplier in float64."""
    if p == 1.0:
        left, total = 1.0, 0.0
        for i in q.argsort(descending=True).tolist():
            step = min(left, float(reach[i]))
            left, total = left - step, total + step * float(q[i])
        return total
    low, high = 0.0, float(torch.linalg.vector_norm(q)) + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        spent = torch.minimum(q / (2 * middle), reach).square().sum()
        low, high = (middle, high) if spent > 1 else (low, middle)
    return float((q * torch.minimum(q / (2 * high), reach)).sum())


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("features", [1, 5, 300])
def test_maximum_is_met(p: float, features: int) -> None:
    generator = torch.Generator().manual_seed(features)
    q = torch.rand(40, features, generator=generator, dtype=torch.float64) * torch.logspace(-6, 6, 40, dtype=torch.float64).unsqueeze(1)
    reach = 2 * torch.rand(40, features, generator=generator, dtype=torch.float64) ** 3
    reach[torch.rand(reach.shape, generator=generator) < 0.3] = 0.0
    reach[10:20] = torch.where(torch.rand(10, features, generator=generator) < 0.5, math.inf, reach[10:20])
    q[torch.rand(q.shape, generator=generator) < 0.2] = 0.0
    value, size = largest_gain(q, reach, p)
    for row in range(40):
        exact = best(q[row], reach[row], p)
        assert exact * (1 - 1e-12) <= float(value[row]) <= exact * (1 + 1e-9) + 1e-140
    assert bool((size >= value).all())


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_without_limits_it_is_the_dual_norm(p: float) -> None:
    q = torch.rand(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dual = torch.linalg.vector_norm(q, ord=2.0 if p == 2.0 else math.inf, dim=-1)
    assert torch.allclose(largest_gain(q, None, p)[0], dual, rtol=1e-12)
    assert torch.allclose(largest_gain(q, torch.full_like(q, math.inf), p)[0], dual, rtol=1e-12)
    assert float(largest_gain(torch.zeros(1, 3, dtype=torch.float64), None, p)[0]) <= 1e-140


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("domain", [None, (0.0, 1.0)])
def test_sparse_rows_bound_as_dense_ones(p: float, domain: tuple[float, float] | None) -> None:
    """Rows with few non-zeros are compressed; a dense row beside them prevents it."""
    generator = torch.Generator().manual_seed(1)
    center = torch.rand(2, 4, 5, generator=generator)
    center[:, 0] = 0.0
    eps = torch.rand(4, 5, generator=generator)
    A = torch.randn(2, 3, 4, 5, generator=generator) * (torch.rand(2, 3, 4, 5, generator=generator) < 0.15)
    A[0, 1] = 0.0
    dense = torch.cat([A, torch.ones(2, 1, 4, 5)], dim=1)
    region = LpBall(center, eps, p, domain)
    assert torch.allclose(region.decrease(A), region.decrease(dense)[:, :3], rtol=1e-9, atol=1e-140)


def test_never_below_the_exact_maximum() -> None:
    """3-4-5 triangle scaled to float32 numbers: the l2 decrease is eps ||a||, checked in rational arithmetic."""
    for scale in (2.0**-70, 1.0, 3.0, 2.0**60):
        a = torch.tensor([[[3 * scale, 4 * scale]]])
        exact = Fraction(5) * Fraction(scale) * Fraction(0.1)
        for domain in (None, (-9.0, 9.0)):
            found = Fraction(float(LpBall(torch.zeros(1, 2), 0.1, 2.0, domain).decrease(a)))
            assert exact <= found <= exact * (1 + Fraction(1, 10**12))
