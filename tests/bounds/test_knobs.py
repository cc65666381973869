"""The variables of the non-uniform search."""

from __future__ import annotations

import math

import pytest
import torch

from bounds.knobs import Knobs

EXACT = torch.float64
LEAST = torch.tensor([[0.0, 0.2, 0.0, 0.5]], dtype=EXACT)
MOST = torch.tensor([[1.0, 0.4, 2.0, math.inf]], dtype=EXACT)


def knobs(groups: list[int] | None, weight: list[float]) -> Knobs:
    labels = None if groups is None else torch.tensor(groups)
    return Knobs.build(labels, torch.tensor(weight, dtype=EXACT), LEAST, MOST, (2, 2))


def test_every_feature_its_own() -> None:
    found = knobs(None, [1.0, 1.0, 1.0, 1.0])
    assert found.count == 4
    assert found.expand(torch.tensor([[0.7, 0.7, 0.7, 0.7]], dtype=EXACT)).tolist() == [[[0.7, 0.4], [0.7, 0.7]]]
    assert found.low().tolist() == LEAST.tolist()
    assert found.high().tolist() == MOST.tolist()


def test_groups_and_fixed_features() -> None:
    """Labels need not be consecutive; the third feature does not move, whatever its group."""
    found = knobs([7, -2, 7, -2], [1.0, 1.0, 0.0, 3.0])
    assert found.count == 2
    z = torch.tensor([[0.3, 0.9]], dtype=EXACT)  # knobs in the order of the labels: -2, then 7
    assert found.expand(z).flatten().tolist() == [0.9, 0.3, 0.0, 0.5]
    assert found.low().tolist() == [[0.2, 0.0]]
    assert found.high().tolist() == [[math.inf, 1.0]]
    assert found.pull(z).tolist() == [[1.0, 1.0]]  # the fourth feature is at its lower limit and does not follow
    assert found.pull(torch.tensor([[0.6, 2.0]], dtype=EXACT)).tolist() == [[3.0, 0.0]]


def test_geometric_mean_is_weighted_and_counts_what_can_move() -> None:
    found = knobs(None, [1.0, 0.0, 3.0, 0.0])
    eps = torch.tensor([[0.5, 9.0, 0.25, 9.0]], dtype=EXACT)
    assert found.geometric_mean(eps).item() == pytest.approx((0.5 * 0.25**3) ** 0.25)
    assert found.geometric_mean(torch.zeros(1, 4, dtype=EXACT)).item() == 0.0
    z = torch.tensor([[0.5, 0.25]], dtype=EXACT)
    assert found.log_volume(z).exp().item() == pytest.approx((0.5 * 0.25**3) ** 0.25)


def test_gradients_stop_at_limits() -> None:
    found = knobs(None, [1.0, 1.0, 1.0, 1.0])
    z = torch.tensor([[0.5, 0.9, 2.0, 0.1]], dtype=EXACT).requires_grad_()
    (gradient,) = torch.autograd.grad(found.expand(z).sum(), z)
    assert gradient.tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_limits_where_there_are_none() -> None:
    found = knobs(None, [1.0, 1.0, 1.0, 1.0]).limited(torch.tensor([0.3], dtype=EXACT))
    assert found.most.tolist() == [[1.0, 0.4, 2.0, 0.5]]  # never below `least`


def test_a_direction_is_scaled_to_the_volume_of_the_start() -> None:
    found = knobs([0, 0, 1, 1], [1.0, 1.0, 1.0, 1.0])
    z = found.along(torch.tensor([1.0, 2.0, 8.0, 0.0], dtype=EXACT), torch.tensor([[0.3, 0.3]], dtype=EXACT))
    assert (z[0, 1] / z[0, 0]).item() == pytest.approx(4.0)
    assert z.log().mean().exp().item() == pytest.approx(0.3)
