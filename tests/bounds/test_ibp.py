"""Interval bound propagation against the textbook and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bounds.ibp import Ibp
from bounds.ops.affine import AddBranches, Linear
from bounds.ops.piecewise import Relu
from bounds.region import Box, LpBall
from tests.bounds import textbook
from tests.bounds.networks import ZOO, build, chain, regions
from tests.bounds.test_crown import KINDS, C, layers_of, network_of, region_of, sides


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("elide", [True, False])
def test_bounds_are_the_textbook_s(elide: bool, name: str, p: float) -> None:
    """(3.8); with elision the objective is folded into the last layer, without it applied to the outputs' intervals."""
    kind = KINDS[name]
    network, layers = network_of(kind, 5)
    region = region_of(p, 5)
    wide, narrow = (Ibp(dtype=dtype, elide=elide)(network, region, C) for dtype in (torch.float64, torch.float32))
    for image in range(region.batch):
        book = textbook.interval_propagation(layers_of(layers, region, image, C if elide else None), kind.value)
        if not elide:
            low, high = book[-1]
            positive, negative = np.maximum(C.numpy(), 0), np.minimum(C.numpy(), 0)
            book[-1] = positive @ low + negative @ high, negative @ low + positive @ high
        for (low, high), exact, rounded in zip(book, sides(wide, network, image), sides(narrow, network, image), strict=True):
            scale = 1 + max(abs(low).max(), abs(high).max())
            assert np.allclose(exact.lower, low, rtol=0, atol=1e-12 * scale)
            assert np.allclose(exact.upper, high, rtol=0, atol=1e-12 * scale)
            assert np.allclose(rounded.lower, low, rtol=0, atol=1e-4 * scale)
            assert np.allclose(rounded.upper, high, rtol=0, atol=1e-4 * scale)
            assert bool((rounded.lower.numpy() <= low + 1e-12).all())
            assert bool((rounded.upper.numpy() >= high - 1e-12).all())


def test_elision_by_hand() -> None:
    """y = (h, h + 1), h = relu(x), x in [-1, 1]: y1 - y0 is 1, but its parts are in [0, 1] and [1, 2]."""
    network = chain((1,), Linear(torch.ones(1, 1)), Relu(), Linear(torch.ones(2, 1), torch.tensor([0.0, 1.0])))
    region, difference = Box(torch.tensor([[-1.0]]), torch.tensor([[1.0]])), torch.tensor([[-1.0, 1.0]])
    folded = Ibp(dtype=torch.float64)(network, region, difference).objective
    apart = Ibp(dtype=torch.float64, elide=False)(network, region, difference).objective
    assert (folded.lower.item(), folded.upper.item()) == pytest.approx((1.0, 1.0), abs=1e-12)
    assert (apart.lower.item(), apart.upper.item()) == pytest.approx((0.0, 2.0), abs=1e-12)


def test_elision_goes_through_all_affine_nodes_and_stops_at_activations() -> None:
    """y = a + (a - 3 b) with a = relu(x0), b = relu(x1): on [-1, 1]^2 the row (1) gives 2 a - 3 b in [-3, 2], not a - (3 b - a) summed up."""
    network = build(
        (2,),
        (Relu(), (0,)),
        (Linear(torch.tensor([[1.0, 0.0]])), (1,)),
        (Linear(torch.tensor([[1.0, -3.0]])), (1,)),
        (AddBranches(), (2, 3)),
        (Linear(torch.eye(1)), (4,)),
    )
    found = Ibp(dtype=torch.float64)(network, Box(-torch.ones(1, 2), torch.ones(1, 2)), torch.ones(1, 1)).objective
    assert (found.lower.item(), found.upper.item()) == pytest.approx((-3.0, 2.0), abs=1e-12)
    cancelling = build((2,), (Relu(), (0,)), (Linear(torch.eye(2)), (1,)), (Linear(-torch.eye(2)), (1,)), (AddBranches(), (2, 3)))
    found = Ibp(dtype=torch.float64)(cancelling, Box(-torch.ones(1, 2), torch.ones(1, 2)), torch.eye(2)).objective
    assert found.lower.flatten().tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("p, radius", [(1.0, 2.0), (2.0, math.sqrt(5.0)), (math.inf, 3.0)])
@pytest.mark.parametrize("elide", [True, False])
def test_affine_functions_of_the_input_get_the_dual_norm(p: float, radius: float, elide: bool) -> None:
    """2 x0 - x1 over the unit ball around (1, 1), written as two layers, as the output and in front of an activation."""
    layers = (Linear(torch.tensor([[1.0, -1.0], [1.0, 0.0]])), Linear(torch.tensor([[1.0, 1.0]])))
    ball = LpBall(torch.ones(1, 2), 1.0, p)
    engine = Ibp(dtype=torch.float64, elide=elide)
    affine, followed = chain((2,), *layers), chain((2,), *layers, Relu())
    intervals = [engine(affine, ball, torch.ones(1, 1)).objective] if elide or p != math.inf else []
    intervals += [engine(affine, ball).objective, engine(followed, ball).intervals[2]] if p != math.inf else []
    for found in intervals:
        assert (found.lower.item(), found.upper.item()) == pytest.approx((1 - radius, 1 + radius), abs=1e-12)
    assert len(intervals) == {(True, math.inf): 1, (False, math.inf): 0}.get((elide, p), 3)


def test_a_skip_from_the_input_stays_a_ball() -> None:
    """y = relu(x0 - 9) + 3 x0 + 4 x1 on the unit l2 ball, clipped to x0 <= 0: 3 x0 + 4 x1 is in [-5, 4], the other term is 0."""
    network = build(
        (2,),
        (Linear(torch.tensor([[1.0, 0.0]]), torch.tensor([-9.0])), (0,)),
        (Relu(), (1,)),
        (Linear(torch.tensor([[3.0, 4.0]])), (0,)),
        (AddBranches(), (2, 3)),
    )
    inf = math.inf
    ball = LpBall(torch.zeros(1, 2), 1.0, 2.0, (torch.tensor([[-inf, -inf]]), torch.tensor([[0.0, inf]])))
    found = Ibp(dtype=torch.float64)(network, ball, torch.ones(1, 1)).objective
    assert (found.lower.item(), found.upper.item()) == pytest.approx((-5.0, 4.0), abs=1e-9)


def test_intervals_of_all_nodes_without_an_objective() -> None:
    network = chain((2,), Linear(torch.tensor([[1.0, -2.0]]), torch.tensor([0.5])), Relu(), Linear(torch.tensor([[-3.0]])))
    found = Ibp(dtype=torch.float64)(network, Box(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]])))
    values = [(i.lower.flatten().tolist(), i.upper.flatten().tolist()) for i in found.intervals]
    assert values[0] == ([0.0, 0.0], [1.0, 2.0])
    for (low, high), wanted in zip(values[1:], [(-3.5, 1.5), (0.0, 1.5), (-4.5, 0.0)], strict=True):
        assert (low[0], high[0]) == pytest.approx(wanted, abs=1e-12)
    assert found.linear is None
    assert found.objective.lower.dtype == torch.float64


def test_elision_is_never_looser() -> None:
    for name, network in ZOO.items():
        for kind in ("box", "l2"):
            region, rows = regions(network, kind), torch.eye(network.outputs)[:1] - torch.eye(network.outputs)[1:2]
            folded, apart = (Ibp(dtype=torch.float64, elide=elide)(network, region, rows).objective for elide in (True, False))
            assert bool((folded.lower >= apart.lower - 1e-9).all()), name
            assert bool((folded.upper <= apart.upper + 1e-9).all()), name
