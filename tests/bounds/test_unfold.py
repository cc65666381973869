"""Maxima written as ReLUs, products as squares: the same values on the region, and no ReLU for taps that cannot be the largest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bounds.crown import Crown
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.affine import Linear, Scale
from bounds.ops.base import Op, Shape, product
from bounds.ops.bilinear import Bilinear, MatrixProduct, Multiply
from bounds.ops.functions import Power
from bounds.ops.piecewise import MaxReduce, Relu
from bounds.ops.shape import Reshape, Slice
from bounds.region import Box
from bounds.unfold import MOST, Unfolded, unfold
from tests.bounds.networks import ZOO, build, chain, regions


def largest(taps: int, windows: int = 1) -> Network:
    """The maxima of consecutive inputs, added up."""
    return chain((windows * taps,), Reshape((windows, taps)), MaxReduce(), Linear(torch.ones(1, windows)))


def box(lower: list[float], upper: list[float]) -> Box:
    return Box(torch.tensor([lower]), torch.tensor([upper]))


def unfolded(network: Network, region: Box) -> Unfolded:
    return unfold(network, dict(enumerate(Crown(torch.float64)(network, region).intervals)))


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
    taps = MOST + 1
    region = box([-1.0] * taps, [1.0] * taps)
    found = unfolded(largest(taps), region)
    assert relus(found) == []
    assert len(found.network.nodes) == len(largest(taps).nodes)


def test_a_product_is_two_squares() -> None:
    """8 times as wide: the second factor is scaled by 8, a power of two, and so is everything else."""
    network = build((3,), (Slice(((0, 1, 1),)), (0,)), (Slice(((1, 2, 1),)), (0,)), (Multiply(), (1, 2)))
    region = box([-3.0, 1.0, 0.0], [5.0, 2.0, 0.0])
    found = unfolded(network, region)
    assert same(network, found, region)
    assert [float(node.op.factor) for node in found.network.nodes if isinstance(node.op, Scale)] == [8.0, 1 / 32]
    assert sum(isinstance(node.op, Power) for node in found.network.nodes) == 2
    assert not any(isinstance(node.op, Multiply) for node in found.network.nodes)


def test_factors_that_are_fixed() -> None:
    network = build((2,), (Slice(((0, 1, 1),)), (0,)), (Slice(((1, 2, 1),)), (0,)), (Multiply(), (1, 2)))
    for region in (box([-1.0, 3.0], [1.0, 3.0]), box([2.0, 3.0], [2.0, 3.0])):
        found = unfolded(network, region)
        assert same(network, found, region)
        assert Crown(torch.float64)(found.network, region).objective.is_finite()


def test_a_matrix_product_and_broadcasting() -> None:
    def halves(op: Op, first: Shape, second: Shape) -> Network:
        size = product(first)
        parts = (Slice(((0, size, 1),)), (0,)), (Slice(((size, size + product(second), 1),)), (0,))
        return build((size + product(second),), *parts, (Reshape(first), (1,)), (Reshape(second), (2,)), (op, (3, 4)))

    rng = torch.Generator().manual_seed(1)
    for op, first, second in ((MatrixProduct(), (2, 3), (3, 4)), (MatrixProduct(), (2, 1, 3), (1, 3, 2)), (Multiply(), (2, 3), (1, 3))):
        network = halves(op, first, second)
        center = torch.randn(1, *network.input_shape, generator=rng)
        region = Box(center - 0.3, center + 0.3)
        assert same(network, unfolded(network, region), region)


def test_too_many_products_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build((2,), (Slice(((0, 1, 1),)), (0,)), (Slice(((1, 2, 1),)), (0,)), (Multiply(), (1, 2)))
    monkeypatch.setattr("bounds.unfold.MOST_TERMS", 0)
    assert len(unfolded(network, box([-1.0, -1.0], [1.0, 1.0])).network.nodes) == len(network.nodes)


def folded(network: Network) -> bool:
    return any(isinstance(node.op, MaxReduce | Bilinear) for node in network.nodes)


@pytest.mark.parametrize("name", [name for name, network in ZOO.items() if folded(network)])
def test_networks_of_the_zoo(name: str) -> None:
    network = ZOO[name]
    region = regions(network, "box")
    assert isinstance(region, Box)
    one = Box(region.lower[:1], region.upper[:1])
    found = unfolded(network, one)
    assert len(found.network.nodes) > len(network.nodes)
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
