"""Maxima written as ReLUs: the same values on the region, and no ReLU for taps that cannot be the largest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bounds import unfold
from bounds.crown import Crown
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.ops.piecewise import MaxReduce, Relu
from bounds.ops.shape import Reshape
from bounds.region import Box
from bounds.unfold import Unfolded, unfold_maxima
from tests.bounds.networks import ZOO, chain, regions


def largest(taps: int, windows: int = 1) -> Network:
    """The maxima of consecutive inputs, added up."""
    return chain((windows * taps,), Reshape((windows, taps)), MaxReduce(), Linear(torch.ones(1, windows)))


def box(lower: list[float], upper: list[float]) -> Box:
    return Box(torch.tensor([lower]), torch.tensor([upper]))


def unfolded(network: Network, region: Box) -> Unfolded:
    return unfold_maxima(network, dict(enumerate(Crown(torch.float64)(network, region).intervals)))


def relus(found: Unfolded) -> list[int]:
    """Sizes of the ReLUs."""
    return [node.shape[0] for node in found.network.nodes if isinstance(node.op, Relu)]


def points(region: Box, count: int = 2000) -> Tensor:
    return region.to(torch.float64).sample(count, torch.Generator().manual_seed(0))[0]


def same(network: Network, found: Unfolded, region: Box) -> bool:
    x = points(region)
    return bool(torch.allclose(network.to(torch.float64)(x), found.network.to(torch.float64)(x), rtol=0, atol=1e-12))


def test_two_numbers() -> None:
    region = box([-1.0, -1.0], [1.0, 1.0])
    found = unfolded(largest(2), region)
    assert relus(found) == [1]
    assert same(largest(2), found, region)
    assert not any(isinstance(node.op, MaxReduce) for node in found.network.nodes)


def test_only_contenders_take_part() -> None:
    """In the first window one number is larger than all others, in the second two compete, in the third all three."""
    region = box([5.0, 0.0, 0.0, 0.0, -1.0, -9.0, 0.0, 0.0, 0.0], [6.0, 1.0, 4.0, 1.0, 0.5, -1.0, 1.0, 2.0, 3.0])
    found = unfolded(largest(3, 3), region)
    assert relus(found) == [2, 1]
    assert same(largest(3, 3), found, region)


def test_a_tie_is_a_contest() -> None:
    """A tap whose largest value is another's smallest may be left out or not; the value is the same."""
    region = box([0.0, -1.0], [1.0, 0.0])
    assert same(largest(2), unfolded(largest(2), region), region)


def test_no_contest_no_relu() -> None:
    region = box([0.0, 2.0, 0.0], [1.0, 3.0, 1.0])
    found = unfolded(largest(3), region)
    assert relus(found) == []
    assert same(largest(3), found, region)


def test_too_many_contenders_stay_a_maximum() -> None:
    taps = unfold.MOST + 1
    region = box([-1.0] * taps, [1.0] * taps)
    found = unfolded(largest(taps), region)
    assert relus(found) == []
    assert len(found.network.nodes) == len(largest(taps).nodes)


@pytest.mark.parametrize("name", [name for name, network in ZOO.items() if any(isinstance(node.op, MaxReduce) for node in network.nodes)])
def test_networks_of_the_zoo(name: str) -> None:
    network = ZOO[name]
    region = regions(network, "box")
    assert isinstance(region, Box)
    one = Box(region.lower[:1], region.upper[:1])
    found = unfolded(network, one)
    assert relus(found)
    assert same(network, found, one)
    before = Crown(torch.float64)(network, one)
    moved = found.moved(dict(enumerate(before.intervals)))
    for index, place in found.places.items():
        assert found.network.nodes[place].shape == network.nodes[index].shape
    after = Crown(torch.float64)(found.network, one, None, moved)
    values = found.network.to(torch.float64).values(points(one))
    for value, interval in zip(values, after.intervals, strict=True):
        assert bool(((value >= interval.lower - 1e-9) & (value <= interval.upper + 1e-9)).all())


def test_nothing_is_known_of_new_nodes() -> None:
    region = box([-1.0, -1.0], [1.0, 1.0])
    found = unfolded(largest(2), region)
    moved = found.moved({0: Interval(region.lower, region.upper)})
    assert set(moved) == {found.places[0]}
