"""Smaller forms of a network have its values: everywhere where maps are folded, on the region where inactive elements are cut out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bounds.crown import Crown
from bounds.errors import ShapeError, UnsupportedOpError
from bounds.inactive import drop_inactive
from bounds.network import Network
from bounds.ops.affine import AddBranches, Linear, Scale, Shift
from bounds.ops.convolution import Conv
from bounds.ops.piecewise import LeakyRelu, PRelu, Relu
from bounds.ops.shape import Reshape
from bounds.ops.smooth import Sigmoid
from bounds.region import LpBall
from bounds.shrink import collapse, shrink, size
from bounds.substitutes import Kind, activations, lines, rewrite
from tests.bounds.networks import (
    Draw,
    average_pool,
    batch_norm,
    branches,
    build,
    chain,
    conv_transpose,
    convolutional,
    difference,
    fully_connected,
    max_pool,
    residual,
)

NETWORKS = [convolutional, residual, average_pool, batch_norm, branches, conv_transpose, difference]


def wide() -> Network:
    return fully_connected(Relu(), seed=3, widths=(12, 40, 40, 40, 3))


def pruned(network: Network, kind: Kind, share: float, seed: int = 1) -> Network:
    """A substitute with a random part of every activation replaced."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(network.input_shape, generator=generator, dtype=torch.float64)
    x1 = x0 + 0.3 * torch.randn(network.input_shape, generator=generator, dtype=torch.float64)
    masks = {i: torch.rand(network.nodes[i].shape, generator=generator) < share for i in activations(network)}
    return rewrite(network, masks, lines(network, kind, x0, x1))


def samples(network: Network, count: int = 30) -> torch.Tensor:
    return torch.randn(count, *network.input_shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def assert_same(first: Network, second: Network, x: torch.Tensor, tolerance: float = 1e-11) -> None:
    y = first(x)
    assert float((second(x) - y).abs().max()) <= tolerance * (1 + float(y.abs().max()))


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("kind", ["constant", "linear"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.1])
def test_collapsed_networks_have_the_same_values(build: object, kind: Kind, share: float) -> None:
    network = pruned(build().to(torch.float64), kind, share)  # type: ignore[operator]
    small = collapse(network)
    assert small.output_shape == network.output_shape
    assert_same(network, small, samples(network))
    assert size(small).activations <= size(network).activations
    assert share < 1 or size(small).activations == 0


def test_collapsing_behind_any_gate_keeps_the_values() -> None:
    network = pruned(wide().to(torch.float64), "linear", 0.8)
    for keep in (0, *activations(network)):
        assert_same(network, collapse(network, keep), samples(network))


def test_shrinking_pays_where_few_elements_survive() -> None:
    network = wide()
    small = shrink(pruned(network, "linear", 0.95))
    assert size(small).parameters < size(network).parameters / 5
    assert small.dtype == torch.float32
    assert_same(pruned(network, "linear", 0.95), small, samples(network).float(), 1e-4)


def test_shrinking_never_makes_a_network_larger() -> None:
    network = pruned(convolutional(), "linear", 0.1)
    small = shrink(network)
    assert size(small).parameters <= size(network).parameters
    assert shrink(max_pool()).nodes[-1].shape == (2,)


def test_constants_leave_and_inputs_that_nothing_reads_too() -> None:
    draw = Draw(4)
    network = chain((1, 1, 6, 6), draw.conv(3, 1, (3, 3), 3), Relu(), Reshape((12,)), draw.dense(5, 12), Relu(), draw.dense(2, 5)).to(
        torch.float64
    )
    x0 = torch.rand(network.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first = torch.ones(1, 3, 2, 2, dtype=torch.bool)
    first[0, 0, 0, 0] = False  # one neuron survives: it reads a corner of the image
    substitute = rewrite(network, {2: first, 5: torch.zeros(5, dtype=torch.bool)}, lines(network, "constant", x0))
    small = collapse(substitute)
    assert_same(substitute, small, samples(network))
    assert small.nodes[2].shape == (9,)
    assert size(small).activations <= 6


def test_elements_that_nothing_reads_leave() -> None:
    draw = Draw(5)
    last = Linear(torch.tensor([[1.0, 0.0, 2.0, 0.0]]), torch.zeros(1))
    network = chain((3,), draw.dense(4, 3), Relu(), last).to(torch.float64)
    assert size(collapse(network)).activations == 2


def test_a_network_that_ends_with_an_activation() -> None:
    network = pruned(chain((3,), Draw(6).dense(4, 3), Relu(), Draw(7).dense(3, 4), Sigmoid()).to(torch.float64), "linear", 0.5)
    assert_same(network, collapse(network), samples(network))


def test_what_cannot_be_collapsed() -> None:
    with pytest.raises(UnsupportedOpError, match="only element-wise activations"):
        collapse(max_pool())
    with pytest.raises(ShapeError, match="everything later goes through"):
        collapse(residual(), 2)


def test_planted_error_in_a_line_changes_the_values() -> None:
    network = pruned(wide().to(torch.float64), "linear", 0.5)
    index = activations(network)[0]
    op = network.nodes[index].op
    wrong = replace(op, intercept=op.intercept + 1e-3)  # type: ignore[attr-defined, type-var]
    nodes = tuple(replace(node, op=wrong) if i == index else node for i, node in enumerate(network.nodes))
    with pytest.raises(AssertionError):
        assert_same(network, collapse(Network(nodes)), samples(network))


def scaled() -> Network:
    draw = Draw(12)
    return chain(
        (4,), Linear(draw.normal(9, 4)), Shift(draw.normal(9) - 1), Scale(draw.normal(9)), PRelu(torch.zeros(9)), Scale(draw.normal(9)),
        Reshape((1, 9)), draw.dense(6, 9), Shift(draw.normal(6)), Relu(), draw.dense(3, 6),
    )  # fmt: skip


def shifted() -> Network:
    draw = Draw(13)
    return chain((4,), Linear(draw.normal(9, 4), draw.normal(9) - 1), Relu(), Shift(draw.normal(9)), draw.dense(3, 9), Relu())


def dead_channels() -> Network:
    draw = Draw(14)
    first, second = draw.conv(4, 1, (3, 3), 1, 1), draw.conv(5, 4, (2, 2), 2)
    first = replace(first, offset=torch.tensor([-9.0, 2.0, -9.0, 2.0]).reshape(4, 1, 1))
    second = replace(second, offset=torch.tensor([9.0, -40.0, 9.0, 9.0, -40.0]).reshape(5, 1, 1))
    return chain((1, 1, 4, 4), first, Relu(), second, LeakyRelu(0.0), Reshape((20,)), draw.dense(6, 20), Relu(), draw.dense(2, 6))


def forked() -> Network:
    """Two maps read the first activation; the sum that the second one reads is not cut."""
    draw = Draw(15)
    return build(
        (4,),
        (Linear(draw.normal(9, 4), draw.normal(9) - 1), (0,)),
        (Relu(), (1,)),
        (draw.dense(5, 9), (2,)),
        (draw.dense(5, 9), (2,)),
        (AddBranches(), (3, 4)),
        (Relu(), (5,)),
        (draw.dense(2, 5), (6,)),
    )


@pytest.mark.parametrize("make", [wide, scaled, shifted, dead_channels, forked, *NETWORKS])
@pytest.mark.parametrize("radius", [0.02, 0.3])
def test_cutting_out_inactive_elements_keeps_the_values_on_the_region(make: object, radius: float) -> None:
    network = make().to(torch.float64)  # type: ignore[operator]
    center = torch.rand(network.input_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ball = LpBall(center[None], torch.tensor([radius], dtype=torch.float64))
    bounds = Crown(torch.float64)(network, ball)
    reduced = drop_inactive(network, dict(enumerate(bounds.intervals)))
    x = ball.sample(100, torch.Generator().manual_seed(3))[0]
    assert_same(network, reduced.network, x, 1e-13)
    assert len(reduced.network.nodes) == len(network.nodes)
    assert size(reduced.network).parameters <= size(network).parameters
    intervals, values = reduced.narrowed(dict(enumerate(bounds.intervals))), reduced.network.values(x)
    for index, interval in intervals.items():
        assert tuple(interval.shape[1:]) == reduced.network.nodes[index].shape
        assert bool((values[index] >= interval.lower - 1e-12).all())
        assert bool((values[index] <= interval.upper + 1e-12).all())


def test_what_is_cut() -> None:
    for make, count in ((wide, 3), (scaled, 1), (shifted, 0), (dead_channels, 2), (forked, 1)):
        network = make().to(torch.float64)
        center = torch.rand(network.input_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        bounds = Crown(torch.float64)(network, LpBall(center[None], torch.tensor([0.02], dtype=torch.float64)))
        reduced = drop_inactive(network, dict(enumerate(bounds.intervals)))
        cut = [i for i in activations(network) if i in reduced.kept]
        assert len(cut) >= count if count else not cut, make.__name__


def test_whole_channels_leave() -> None:
    network = dead_channels().to(torch.float64)
    bounds = Crown(torch.float64)(
        network, LpBall(torch.full((1, 1, 1, 4, 4), 0.5, dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64))
    )
    reduced = drop_inactive(network, dict(enumerate(bounds.intervals))).network
    first, second = reduced.nodes[1].op, reduced.nodes[3].op
    assert isinstance(first, Conv)
    assert isinstance(second, Conv)
    assert tuple(first.weight.shape[:2]) == (2, 1)
    assert tuple(second.weight.shape[:2]) == (3, 2)


def test_a_layer_that_is_inactive_altogether_keeps_one_element() -> None:
    network = chain((2,), Linear(torch.ones(3, 2), torch.full((3,), -9.0)), Relu(), Draw(1).dense(2, 3)).to(torch.float64)
    bounds = Crown(torch.float64)(network, LpBall(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)))
    reduced = drop_inactive(network, dict(enumerate(bounds.intervals))).network
    assert reduced.nodes[1].shape == (1,)
    assert_same(network, reduced, 0.1 * samples(network).clamp(-1, 1))
