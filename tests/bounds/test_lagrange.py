from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bounds.lagrange import largest_gain
from bounds.patch import Patch
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

    def uniform() -> Tensor:
        return torch.rand(40, features, generator=generator, dtype=torch.float64)

    a = (uniform() - 0.5) * torch.logspace(-6, 6, 40, dtype=torch.float64).unsqueeze(1)
    a[uniform() < 0.2] = 0.0
    down, up = (torch.where(uniform() < 0.3, 0.0, (2 * uniform() ** 3).clamp_max(2)) for _ in range(2))
    down[10:20] = 2.0
    value, size = largest_gain(a, (down, up), p)
    reach = torch.where(a > 0, down, up)
    for row in range(40):
        exact = best(a[row].abs(), reach[row], p)
        assert exact * (1 - 1e-12) <= float(value[row]) <= exact * (1 + 1e-8) + 1e-140
    assert bool((size >= value).all())


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_without_limits_it_is_the_dual_norm(p: float) -> None:
    a = torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dual = torch.linalg.vector_norm(a, ord=2.0 if p == 2.0 else math.inf, dim=-1)
    far = torch.full_like(a, 2.0)
    assert torch.allclose(largest_gain(a, None, p)[0], dual, rtol=1e-12)
    assert torch.allclose(largest_gain(a, (far, far), p)[0], dual, rtol=1e-12)
    assert float(largest_gain(torch.zeros(1, 3, dtype=torch.float64), None, p)[0]) <= 1e-140


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("domain", [None, (0.0, 1.0)])
def test_rows_in_groups_and_in_windows_are_bound_alike(p: float, domain: tuple[float, float] | None) -> None:
    generator = torch.Generator().manual_seed(1)
    center, eps = torch.rand(2, 2, 5, 7, generator=generator), torch.rand(2, 5, 7, generator=generator)
    center[:, :, 0] = 0.0
    eps[0, 3] = 0.0
    region = LpBall(center, eps, p, domain)
    windows = torch.randn(6, 2, 3, 3, generator=generator)
    image, top, left = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 4, 2, 1, 3, 0])
    A = torch.zeros(2, 3, 2, 5, 7)
    for row in range(6):
        A[image[row], row // 2, :, top[row] : top[row] + 3, left[row] : left[row] + 3] = windows[row]
    alone = torch.stack([region.select(slice(b, b + 1)).decrease(A[b : b + 1, r : r + 1])[0, 0] for b in range(2) for r in range(3)])
    many = region.decrease(A.repeat(1, 500, 1, 1, 1))
    assert torch.allclose(many, alone.view(2, 3).repeat(1, 500), rtol=1e-8, atol=1e-140)
    patches = region.decrease_patch(Patch(windows, image, top, left))
    assert torch.allclose(patches, alone.view(2, 3).T.flatten(), rtol=1e-8, atol=1e-140)


def test_never_below_the_exact_maximum() -> None:
    """3-4-5 triangle scaled to float32 numbers: the l2 decrease is eps ||a||, checked in rational arithmetic."""
    for scale in (2.0**-70, 1.0, 3.0, 2.0**60):
        a = torch.tensor([[[3 * scale, 4 * scale]]])
        exact = Fraction(5) * Fraction(scale) * Fraction(0.1)
        for domain in (None, (-9.0, 9.0)):
            found = Fraction(float(LpBall(torch.zeros(1, 2), 0.1, 2.0, domain).decrease(a)))
            assert exact <= found <= exact * (1 + Fraction(1, 10**12))
