"""Disturbances against exact rational arithmetic, dense samples and mixed-integer programs; planted errors are caught."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import bounds.disturbed
from bounds.crown import Crown
from bounds.disturbed import Disturbed, disturb, disturbance, narrowest
from bounds.errors import ShapeError, UnsupportedOpError
from bounds.ibp import Ibp
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.base import Activation
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, Relu
from bounds.ops.smooth import Sigmoid, Tanh
from bounds.region import Box, LpBall, Region
from bounds.substitutes import Lines, activations
from tests.bounds.networks import convolutional, fully_connected, max_pool

DTYPE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_case(count: int, seed: int = 0) -> tuple[Interval, Lines]:
    """Intervals of both signs and of many sizes, some of them points, with lines of any slope."""
    g = generator(seed)
    ends = torch.randn(2, count, dtype=DTYPE, generator=g) * 10.0 ** torch.randint(-6, 6, (count,), generator=g)
    lower, upper = ends.amin(0), ends.amax(0)
    upper = torch.where(torch.arange(count) % 7 == 0, lower, upper)
    slope, intercept = torch.randn(2, count, dtype=DTYPE, generator=g)
    return Interval(lower[None], upper[None]), Lines(slope, torch.where(torch.arange(count) % 5 == 0, 0.0, intercept))


def test_the_range_for_relu_encloses_the_exact_one_and_is_hardly_larger() -> None:
    x, line = random_case(400)
    found = disturbance(Relu(), x, line)
    for k in range(400):
        low, high, s, t = (Fraction(v[..., k].item()) for v in (x.lower, x.upper, line.slope, line.intercept))
        values = [max(z, Fraction(0)) - s * z - t for z in (low, high, Fraction(0)) if low <= z <= high]
        size = float(max(abs(s), 1) * max(abs(low), abs(high)) + abs(t))
        assert Fraction(found.lower[0, k].item()) <= min(values)
        assert Fraction(found.upper[0, k].item()) >= max(values)
        assert float(min(values)) - found.lower[0, k].item() <= 1e-14 * size
        assert found.upper[0, k].item() - float(max(values)) <= 1e-14 * size


@pytest.mark.parametrize("op", [Sigmoid(), Tanh(), Relu(), LeakyRelu(0.1), Abs(), Clip(-0.5, 1.0)], ids=lambda op: type(op).__name__)
def test_the_range_holds_dense_samples_and_is_attained(op: Activation) -> None:
    g = generator(1)
    ends = 4 * torch.randn(2, 60, dtype=DTYPE, generator=g)
    x = Interval(ends.amin(0)[None], ends.amax(0)[None])
    line = Lines(torch.randn(60, dtype=DTYPE, generator=g) / 2, torch.randn(60, dtype=DTYPE, generator=g))
    z = x.lower + (x.upper - x.lower) * torch.linspace(0, 1, 20001, dtype=DTYPE)[:, None]
    left = op.forward(z) - line.slope * z - line.intercept
    found = disturbance(op, x, line)
    assert bool((found.lower[0] <= left.amin(0) + 1e-15).all())
    assert bool((found.upper[0] >= left.amax(0) - 1e-15).all())
    assert torch.allclose(found.lower[0], left.amin(0), atol=1e-3)
    assert torch.allclose(found.upper[0], left.amax(0), atol=1e-3)


def test_the_narrowest_band_is_centred_and_no_wider_than_others_of_its_slope() -> None:
    x, _ = random_case(200, 3)
    line = narrowest(Relu(), x)
    found = disturbance(Relu(), x, line)
    other = disturbance(Relu(), x, Lines(line.slope, line.intercept + 1))
    assert torch.allclose(found.lower, -found.upper, atol=1e-9)
    assert bool((found.width <= other.width * (1 + 1e-12)).all())


def case(kind: str, seed: int = 0) -> tuple[Network, Region]:
    """A network and a region of its inputs."""
    if kind == "conv":
        network = convolutional()
    else:
        ops: dict[str, tuple[Activation, ...]] = {"relu": (Relu(),), "tanh": (Tanh(),), "mixed": (Sigmoid(), Abs())}
        network = fully_connected(*ops[kind], seed=seed)
    network = network.to(DTYPE)
    center = torch.rand(1, *network.input_shape, dtype=DTYPE, generator=generator(seed))
    return network, LpBall(center, torch.tensor(0.2), math.inf)


def half(network: Network, seed: int = 0) -> dict[int, Tensor]:
    g = generator(seed)
    return {i: torch.rand(network.nodes[i].shape, generator=g) < 0.5 for i in activations(network)}


def disturbed(network: Network, region: Region, seed: int = 0) -> Disturbed:
    return disturb(network, region, dict(enumerate(Crown(DTYPE)(network, region).intervals)), half(network, seed))


def deltas_of(network: Network, made: Disturbed, x: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """The disturbances with which g has f's values, node by node, and by how much they leave their ranges."""
    values, deltas, excess = network.values(x), {}, torch.zeros(())
    for index, reach in made.ranges.items():
        substituted = made.network.nodes[made.network.nodes[made.nodes[index]].inputs[0]].op
        deltas[index] = values[index] - substituted.forward(values[network.nodes[index].inputs[0]])
        excess = torch.maximum(excess, torch.maximum(reach.lower - deltas[index], deltas[index] - reach.upper).amax())
    return deltas, excess


@pytest.mark.parametrize("kind", ["relu", "tanh", "mixed", "conv"])
def test_every_point_has_disturbances_in_their_ranges(kind: str) -> None:
    network, region = case(kind)
    made = disturbed(network, region)
    x = region.sample(200, generator())[0]
    deltas, excess = deltas_of(network, made, x)
    assert float(excess) <= 1e-12
    assert torch.allclose(made.network(made.point(x, deltas)), network(x), atol=1e-10)
    assert any(bool((reach.width > 0).any()) for reach in made.ranges.values())


@pytest.mark.parametrize("kind", ["relu", "tanh", "mixed", "conv"])
@pytest.mark.parametrize("engine", [Ibp(DTYPE), Crown(DTYPE), Crown(torch.float32)], ids=["ibp", "crown", "crown32"])
def test_bounds_of_g_are_bounds_of_f(kind: str, engine: Ibp | Crown) -> None:
    network, region = case(kind, 1)
    made = disturbed(network, region, 1)
    y = network(region.sample(500, generator())[0]).flatten(1)
    found = engine(made.network, made.region, torch.eye(network.outputs, dtype=DTYPE)).objective
    assert bool((found.lower[0] <= y.amin(0) + 1e-12).all())
    assert bool((found.upper[0] >= y.amax(0) - 1e-12).all())


def too_small(op: Activation, x: Interval, line: Lines) -> Interval:
    found = disturbance(op, x, line)
    return Interval(found.lower, found.upper - 0.1 * found.width)


def wrong_sign(op: Activation, x: Interval, line: Lines) -> Interval:
    found = disturbance(op, x, line)
    return Interval(-found.upper, -found.lower)


def wrong_line(op: Activation, x: Interval, line: Lines) -> Interval:
    return disturbance(op, x, Lines(line.slope, line.intercept + 0.05))


def wrong_slope(op: Activation, x: Interval, line: Lines) -> Interval:
    return disturbance(op, x, Lines(torch.zeros_like(line.slope), line.intercept))


@pytest.mark.parametrize("error", [too_small, wrong_sign, wrong_line, wrong_slope], ids=lambda error: error.__name__)
@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_planted_errors_are_caught(kind: str, error: Callable[..., Interval], monkeypatch: pytest.MonkeyPatch) -> None:
    network, region = case(kind)
    lines = {i: Lines(torch.full(network.nodes[i].shape, 0.5), torch.full(network.nodes[i].shape, 0.1)) for i in activations(network)}
    intervals = dict(enumerate(Crown(DTYPE)(network, region).intervals))
    x = region.sample(2000, generator())[0]

    def excess() -> float:
        return float(deltas_of(network, disturb(network, region, intervals, half(network), lines), x)[1])

    assert excess() <= 1e-12
    monkeypatch.setattr(bounds.disturbed, "disturbance", error)
    assert excess() > 1e-4


def test_what_cannot_be_disturbed() -> None:
    network, region = case("relu")
    intervals = dict(enumerate(Ibp(DTYPE)(network, region).intervals))
    with pytest.raises(ShapeError, match="no interval"):
        disturb(network, region, {}, half(network))
    with pytest.raises(ShapeError, match="one region of shape"):
        disturb(network, Box(torch.zeros(2, 3), torch.ones(2, 3)), intervals, half(network))
    pooled = max_pool()
    index = next(i for i, node in enumerate(pooled.nodes) if isinstance(node.op, Activation) and not node.op.free)
    ball = LpBall(torch.zeros(1, *pooled.input_shape), torch.tensor(0.1), math.inf)
    with pytest.raises(UnsupportedOpError, match="element-wise"):
        disturb(pooled, ball, {}, {index: torch.ones(pooled.nodes[index].shape, dtype=torch.bool)})
