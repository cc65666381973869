"""The IBP-inspired linear bounds against the textbook, and what sets them apart from their neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bounds import crown
from bounds.crown import CrownIbp
from bounds.ibp_planes import IbpPlanes
from bounds.ops.affine import Linear
from bounds.ops.piecewise import Relu
from bounds.region import Box
from tests.bounds import textbook
from tests.bounds.networks import ZOO, chain, regions
from tests.bounds.test_crown import KINDS, C, layers_of, network_of, region_of, sides


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("name", KINDS)
def test_bounds_are_the_textbook_s(name: str, p: float) -> None:
    """Hidden intervals by thesis (3.8), the objective by its (3.7) with the planes of (3.4) and (3.5)."""
    kind = KINDS[name]
    for seed in range(2):
        network, layers = network_of(kind, seed)
        region = region_of(p, seed)
        wide, narrow = (IbpPlanes(dtype=dtype, intersect=False)(network, region, C) for dtype in (torch.float64, torch.float32))
        for image in range(region.batch):
            net = layers_of(layers, region, image, C)
            hidden = textbook.interval_propagation(net, kind.value)[:-1]
            book = [*hidden, *textbook.linear_bounds(net, kind.parallel, hidden)]
            for (low, high), exact, rounded in zip(book, sides(wide, network, image), sides(narrow, network, image), strict=True):
                scale = 1 + max(abs(low).max(), abs(high).max())
                assert np.allclose(exact.lower, low, rtol=0, atol=1e-10 * scale)
                assert np.allclose(exact.upper, high, rtol=0, atol=1e-10 * scale)
                assert np.allclose(rounded.lower, low, rtol=0, atol=1e-3 * scale)
                assert bool((rounded.lower.numpy() <= low + 1e-9).all())
                assert bool((rounded.upper.numpy() >= high - 1e-9).all())


def test_one_neuron_by_hand() -> None:
    """y = 1 - relu(x) on [-1, 3]: the plane above relu is 3/4 (x + 1), the parallel one below 3/4 x; CROWN-IBP's below is x."""
    network = chain((1,), Linear(torch.tensor([[1.0]])), Relu(), Linear(torch.tensor([[-1.0]]), torch.tensor([1.0])))
    region = Box(torch.tensor([[-1.0]]), torch.tensor([[3.0]]))
    ours, theirs = (engine(network, region).linear for engine in (IbpPlanes(dtype=torch.float64), CrownIbp(dtype=torch.float64)))
    assert ours is not None
    assert theirs is not None
    assert (ours.lower_A.item(), ours.upper_A.item()) == pytest.approx((-0.75, -0.75))
    assert ours.lower_b.item() == pytest.approx(0.25)
    assert ours.upper_b.item() == pytest.approx(1.0)
    assert (theirs.lower_A.item(), theirs.upper_A.item()) == pytest.approx((-0.75, -1.0))


def test_it_walks_once() -> None:
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        walk = crown.bound_node
        patch.setattr(crown, "bound_node", lambda *args, **fields: calls.append(args[1]) or walk(*args, **fields))
        IbpPlanes()(ZOO["residual"], regions(ZOO["residual"], "box"))
    assert calls == []
