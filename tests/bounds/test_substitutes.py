"""Substitutes of networks keep what they promise: values at the anchor, at the adversary, and on the neighbourhood of equal states."""

from __future__ import annotations

import pytest
import torch

from bounds.crown import Crown
from bounds.errors import ShapeError, SpecError, UnsupportedOpError
from bounds.network import Network
from bounds.ops.base import Activation
from bounds.ops.gated import Gelu
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, MaxReduce, Relu
from bounds.ops.smooth import Sigmoid, Tanh
from bounds.region import LpBall
from bounds.substitutes import Kind, activations, elementwise, fixed, lines, rewrite, surviving
from tests.bounds.networks import Draw, average_pool, batch_norm, branches, chain, convolutional, fully_connected, max_pool, residual

PIECEWISE = [convolutional, residual, average_pool, batch_norm, branches, fully_connected]
SMOOTH = [lambda: fully_connected(Sigmoid(), Tanh(), seed=4), lambda: fully_connected(Gelu(), Relu(), seed=5)]


def network_of(build: object) -> Network:
    net = build(Relu(), Clip(-0.3, 0.4), Abs()) if build is fully_connected else build()  # type: ignore[operator]
    return net.to(torch.float64)


def points(network: Network, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """An anchor, and another point that plays the adversary."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(network.input_shape, generator=generator, dtype=torch.float64)
    return x0, x0 + 0.3 * torch.randn(network.input_shape, generator=generator, dtype=torch.float64)


def some(network: Network, share: float, seed: int = 1) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {i: torch.rand(network.nodes[i].shape, generator=generator) < share for i in activations(network)}


@pytest.mark.parametrize("build", [*PIECEWISE, *SMOOTH])
@pytest.mark.parametrize("share", [0.4, 1.1])
@pytest.mark.parametrize("kind", ["constant", "linear", "activation"])
def test_what_substitutes_keep(build: object, share: float, kind: Kind) -> None:
    network = network_of(build)
    if kind == "activation" and build in SMOOTH:
        with pytest.raises(UnsupportedOpError, match="not piecewise linear"):
            lines(network, kind, torch.zeros(network.input_shape))
        return
    x0, x1 = points(network)
    pruned = some(network, share)
    substitute = rewrite(network, pruned, lines(network, kind, x0, x1))
    scale = 1 + network(x0).abs().max()
    assert float((substitute(x0) - network(x0)).abs().max()) < 1e-12 * scale
    if kind == "linear":
        assert float((substitute(x1) - network(x1)).abs().max()) < 1e-11 * scale
    if kind == "activation":
        near = x0 + 1e-6 * torch.randn(20, *network.input_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        assert float((substitute(near) - network(near)).abs().max()) < 1e-11 * scale
    if kind == "constant" and share > 1:
        assert bool((substitute(x1) != network(x1)).any())
        assert torch.allclose(substitute(x1), substitute(x0), atol=1e-12) == (0 not in _skips(network))
    assert surviving(substitute) == surviving(network) - sum(int(mask.sum()) for mask in pruned.values())


def _skips(network: Network) -> list[int]:
    """[0] where some path from input to output meets no activation."""
    free = [True]
    for node in network.nodes[1:]:
        free.append(not isinstance(node.op, Activation) and any(free[source] for source in node.inputs))
    return [0] if free[-1] else []


def test_lines_go_through_both_points_and_are_constant_where_these_agree() -> None:
    network = chain((2,), Tanh()).to(torch.float64)
    x0, x1 = torch.tensor([0.5, 0.2], dtype=torch.float64), torch.tensor([-1.0, 0.2], dtype=torch.float64)
    line = lines(network, "linear", x0, x1)[1]
    assert line.slope[0] == pytest.approx((torch.tanh(x1[0]) - torch.tanh(x0[0])).item() / -1.5)
    assert line.slope[1] == 0
    assert line.intercept[1] == torch.tanh(x0[1])


def test_slopes_between_very_close_points_stay_in_range() -> None:
    network = chain((1,), Sigmoid()).to(torch.float64)
    x0 = torch.tensor([0.3], dtype=torch.float64)
    line = lines(network, "linear", x0, torch.nextafter(x0, x0 + 1))[1]
    assert 0.2 < float(line.slope) < 0.25


def test_anchors_in_a_batch_have_lines_of_their_own() -> None:
    network = network_of(convolutional)
    x0, x1 = (torch.stack(pair) for pair in zip(points(network, 0), points(network, 7), strict=True))
    batch = lines(network, "linear", x0, x1)
    pruned = {i: torch.stack([mask, ~mask]) for i, mask in some(network, 0.5).items()}
    substitute = rewrite(network, pruned, batch)
    for k in range(2):
        single = rewrite(network, {i: mask[k] for i, mask in pruned.items()}, lines(network, "linear", x0[k], x1[k]))
        assert torch.allclose(substitute(x1)[k], single(x1[k : k + 1])[0], atol=1e-12)
    balls = LpBall(x0, torch.tensor([0.1, 0.2], dtype=torch.float64))
    found = Crown(torch.float64)(substitute, balls)
    for k in range(2):
        single = rewrite(network, {i: mask[k] for i, mask in pruned.items()}, lines(network, "linear", x0[k], x1[k]))
        alone = Crown(torch.float64)(single, balls.select(torch.tensor([k])))
        assert torch.allclose(found.objective.lower[k], alone.objective.lower[0], atol=1e-12)


@pytest.mark.parametrize("build", PIECEWISE)
def test_fixed_elements_are_replaced_without_a_difference_on_the_region(build: object) -> None:
    network = network_of(build)
    x0, _ = points(network)
    ball = LpBall(x0[None], torch.tensor([0.05], dtype=torch.float64))
    bounds = Crown(torch.float64)(network, ball)
    pruned, found = fixed(network, dict(enumerate(bounds.intervals)))
    assert sum(int(mask.sum()) for mask in pruned.values()) > 0
    substitute, x = rewrite(network, pruned, found), ball.sample(200, torch.Generator().manual_seed(3))[0]
    assert float((substitute(x) - network(x)).abs().max()) <= 1e-12 * (1 + float(network(x).abs().max()))


def test_at_a_knot_the_piece_below_counts_if_the_interval_ends_there() -> None:
    from bounds.interval import Interval

    network = chain((2,), LeakyRelu(0.1)).to(torch.float64)
    ends = Interval(torch.tensor([[-1.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    pruned, found = fixed(network, {0: ends})
    assert pruned[1].tolist() == [True, True]
    assert found[1].slope.tolist() == [0.1, 1.0]


def test_bad_input() -> None:
    draw = Draw(1)
    affine = chain((2,), draw.dense(2, 2))
    with pytest.raises(UnsupportedOpError, match="no activations"):
        elementwise(affine)
    with pytest.raises(UnsupportedOpError, match=r"MaxReduce\) is not element-wise"):
        elementwise(max_pool())
    network = network_of(convolutional)
    x0, _ = points(network)
    with pytest.raises(SpecError, match="needs an adversary"):
        lines(network, "linear", x0)
    with pytest.raises(SpecError, match="unknown type of substitute 'cubic'"):
        lines(network, "cubic", x0)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="reads inputs of shape"):
        lines(network, "constant", x0[0])
    found = lines(network, "constant", x0)
    with pytest.raises(ShapeError, match="is no activation with a substitute"):
        rewrite(network, {1: torch.ones(2, dtype=torch.bool)}, found)
    with pytest.raises(ShapeError, match="the mask for node"):
        rewrite(network, {2: torch.ones(3, dtype=torch.bool)}, found)
    assert activations(chain((1, 2), MaxReduce())) == (1,)
