from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from bounds.linear import Halfspaces
from bounds.region import Box, LpBall, Region
from tests.verify.nets import bump, linear
from verify.attack import Attack, Fgsm, Pgd, attack_images, falsify, starts_from_bounds
from verify.spec import Specification, class_margins, margins, output_bounds, robustness

ATTACKS: list[Attack] = [Fgsm(), Pgd(steps=15, restarts=4)]


def regions() -> list[Region]:
    center = torch.tensor([[0.5, 0.25, 0.9], [0.1, 0.8, 0.0]]).double()
    eps = torch.tensor([0.2, 0.0, 0.3], dtype=torch.float64)
    balls = [LpBall(center, e, p, (0.0, 1.0)) for e in (0.2, eps) for p in (1.0, 2.0, math.inf)]
    return [Box(center - 0.1, center + 0.2), *balls, LpBall(center, 0.3, 2.0)]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("region", regions())
def test_points_never_leave_the_region_and_never_get_worse(attack: Attack, region: Region) -> None:
    network = linear([[1.0, -2.0, 0.5], [0.5, 1.0, -1.0]], [0.0, 3.0])
    goal = margins(output_bounds(region.select(slice(0, 1)), [-99.0, None], [None, None]))
    best = attack(network, region, goal)
    # Centres are float32 numbers, so fixed features have one.
    # Bounding box with zero tolerance; the ball up to the last digits, since `contains` decides against.
    box = region.box()
    assert bool(((best.x.double() >= box.lower) & (best.x.double() <= box.upper)).all())
    if isinstance(region, LpBall):
        scaled = torch.where(region.eps > 0, (best.x.double() - region.center) / region.eps, 0.0)
        assert float(torch.linalg.vector_norm(scaled, ord=region.p, dim=1).max()) <= 1 + 1e-6
        start = region.center
    else:
        start = (box.lower + box.upper) / 2
    assert bool((best.margin <= goal.of(network(start.float()))[:, 0] + 1e-6).all())
    assert torch.allclose(best.margin, goal.of(network(best.x))[:, 0], atol=1e-5)
    assert not best.found.any()


@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
def test_linear_networks_are_minimised(norm: float) -> None:
    weight = [[3.0, -4.0, 0.25]]
    center = torch.tensor([[0.5, 0.5, 0.5]], dtype=torch.float64)
    region = LpBall(center, 0.1, norm, (0.0, 1.0))
    goal = margins(output_bounds(region, [-99.0], [None]))
    best = Pgd(steps=40, restarts=2)(linear(weight), region, goal)
    exact = float(region.minimise(torch.tensor([weight], dtype=torch.float64))) + 99
    assert exact - 1e-5 <= float(best.margin) <= exact + 0.01


def test_a_corner_is_found_and_replays() -> None:
    spec = robustness(np.array([0.7, 0.7]), 1, 0.3, norm=math.inf, outputs=2)
    found, best = falsify(bump(), spec, Pgd(steps=20, restarts=5))
    assert found is not None
    assert bool(best.found.all())
    assert found.y[0] >= found.y[1]
    assert spec.contains(found.x)
    assert found.decided_by == "pgd"


def test_what_does_not_exist_is_not_found() -> None:
    spec = robustness(np.array([0.6, 0.6]), 1, 0.25, norm=math.inf, outputs=2)
    found, best = falsify(bump(), spec, Pgd(steps=20, restarts=5))
    assert found is None
    # The best possible margin is 0.25 - relu(1.7 - 1.5) = 0.05.
    assert float(best.margin) == pytest.approx(0.05, abs=1e-6)


def test_flat_regions_are_left_by_random_restarts() -> None:
    # At the centre relu is inactive and the gradient vanishes.
    region = Box(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    spec = Specification(region, (Halfspaces(torch.tensor([[-1.0, 1.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)),))
    found, _ = falsify(bump(), spec, Pgd(steps=20, restarts=20))
    assert found is not None


def test_given_starts_are_tried() -> None:
    region = Box(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    goal = margins(output_bounds(region, [None, None], [0.49, None]))
    corner = torch.tensor([[[1.0, 1.0]]])
    assert bool(Pgd(steps=1, restarts=1)(bump(), region, goal, starts=corner).found)
    assert not bool(Fgsm()(linear([[0.0, 0.0], [0.0, 0.0]]), region, goal, starts=corner).found)


@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_starts_from_bounds_minimise_the_planes(norm: float) -> None:
    generator = torch.Generator().manual_seed(0)
    region = LpBall(torch.rand(2, 3, 4, generator=generator, dtype=torch.float64), 0.1, norm)
    A = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    x = starts_from_bounds(region, A)
    assert x.shape == A.shape
    assert torch.allclose((A * x).flatten(2).sum(-1), region.minimise(A), atol=1e-5)


def test_sets_with_several_rows_need_all_of_them() -> None:
    # Unsafe: x0 >= 0.75 and x1 <= 0.25, one corner of the square.
    region = Box(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    C, d = torch.tensor([[-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([-0.75, 0.25], dtype=torch.float64)
    spec = Specification(region, (Halfspaces(C, d),))
    found, _ = falsify(linear([[1.0, 0.0], [0.0, 1.0]]), spec, Pgd(steps=30, restarts=3))
    assert found is not None
    assert found.x[0] >= 0.75
    assert found.x[1] <= 0.25


def test_restarts_pursue_every_set() -> None:
    # Three flat valleys; only the third set can be reached, although the first is nearest at the centre.
    network = linear([[0.0], [0.0], [1.0]], [0.1, 0.2, 0.0])
    region = Box(-torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    spec = output_bounds(region, [0.0, 0.0, -0.9], [None, None, None])
    found, _ = falsify(network, spec, Pgd(steps=20, restarts=6))
    assert found is not None
    assert found.y[2] <= -0.9


def test_images_are_attacked_each_with_its_label() -> None:
    network = linear([[1.0, 0.0], [0.0, 1.0]])
    images = torch.tensor([[0.5, 0.45], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    labels = torch.tensor([0, 0, 1, 1])
    region = LpBall(images.double(), 0.1, math.inf, (0.0, 1.0))
    best = attack_images(network, region, labels, Pgd(steps=10, restarts=2), batch=3)
    assert best.found.tolist() == [True, False, False, True]
    assert best.margin[1:3].tolist() == pytest.approx([0.6, 0.6], abs=1e-5)
    assert bool((best.x.double() - images.double()).abs().max() <= 0.1 + 1e-12)


def test_results_do_not_depend_on_the_run() -> None:
    region = LpBall(torch.rand(3, 2, generator=torch.Generator().manual_seed(1)).double(), 0.2, 2.0)
    goal = class_margins(torch.tensor([1, 1, 1]), 2)
    first, second = (Pgd(steps=5, restarts=7)(bump(), region, goal) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.margin, second.margin)


def test_the_deadline_is_kept() -> None:
    region = Box(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    goal = margins(output_bounds(region, [-9.0, -9.0], [None, None]))
    best = Pgd(steps=50, restarts=10**9)(bump(), region, goal, deadline=time.monotonic() + 0.2)
    assert math.isfinite(float(best.margin))
    late = Pgd()(bump(), region, goal, deadline=time.monotonic() - 1)
    assert float(late.margin) == math.inf
    assert not bool(late.found)


def test_a_candidate_that_is_not_accepted_does_not_end_the_search() -> None:
    region = Box(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    goal = margins(output_bounds(region, [None, None], [-1.0, None]))
    asked: list[float] = []

    def refuse(index: int, point: torch.Tensor) -> bool:
        asked.append(float(point.sum()))
        return False

    best = Pgd(steps=10, restarts=60)(bump(), region, goal, accept=refuse)
    assert not bool(best.found)
    assert len(asked) >= 2
