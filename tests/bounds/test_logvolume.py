"""The convex step against cvxpy, and by hand."""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch

from bounds.logvolume import largest_log_volume

EXACT = torch.float64


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows, knobs", [(1, 4), (3, 6), (9, 30)])
def test_against_cvxpy(rows: int, knobs: int, seed: int) -> None:
    """With and without limits that bind, unequal weights, all problems of a batch at once."""
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw, dtype=EXACT)

    c, h, weight = rand(2, rows, knobs) ** 3, rand(2, rows) * knobs / 4 + 0.1, rand(2, knobs) + 0.1
    low = 0.05 * rand(2, knobs) + 1e-3
    high = low * (1 + (20 if seed % 2 else 1e4) * rand(2, knobs))
    h = torch.maximum(h, 1.5 * torch.bmm(c, low.unsqueeze(-1)).squeeze(-1))
    found, multipliers = largest_log_volume(c, h, weight, low, high)
    assert bool((multipliers >= 0).all())
    for b in range(2):
        u = cp.Variable(knobs)
        limits = [c[b].numpy() @ u <= h[b].numpy(), u >= low[b].numpy(), u <= high[b].numpy()]
        problem = cp.Problem(cp.Maximize(weight[b].numpy() @ cp.log(u)), limits)
        best = problem.solve(solver=cp.CLARABEL)
        assert bool((found[b] >= low[b]).all())
        assert bool((found[b] <= high[b]).all())
        assert ((c[b] @ found[b]) / h[b]).max() < 1 + 1e-4
        assert (weight[b] * found[b].log()).sum().item() == pytest.approx(best, abs=2e-4 * weight[b].sum().item())


def test_one_row_by_hand() -> None:
    """sum c u <= h: every term gets its share, u_k = h weight_k / (c_k sum weight)."""
    c, weight = torch.tensor([[[1.0, 4.0, 0.5]]], dtype=EXACT), torch.tensor([[1.0, 2.0, 5.0]], dtype=EXACT)
    wide = torch.full((1, 3), 1e6, dtype=EXACT)
    found, _ = largest_log_volume(c, torch.full((1, 1), 2.0, dtype=EXACT), weight, 1 / wide, wide)
    assert found[0].tolist() == pytest.approx([0.25, 0.125, 2.5], rel=1e-5)


def test_a_knob_that_costs_nothing_goes_to_its_limit() -> None:
    c = torch.tensor([[[1.0, 0.0]]], dtype=EXACT)
    ones = torch.ones(1, 2, dtype=EXACT)
    found, _ = largest_log_volume(c, ones[:, :1], ones, 1e-3 * ones, 7 * ones)
    assert found[0].tolist() == pytest.approx([1.0, 7.0], rel=1e-5)


def test_rows_that_even_the_lower_limits_break() -> None:
    c = torch.tensor([[[1.0, 3.0]]], dtype=EXACT)
    ones = torch.ones(1, 2, dtype=EXACT)
    found, _ = largest_log_volume(c, 0.1 * ones[:, :1], ones, ones, 10 * ones, rounds=40)
    assert found[0].tolist() == pytest.approx([1.0, 1.0], rel=1e-3)
