"""Fast-Lin, CROWN and CROWN-IBP against the textbook, and the choices that set them apart."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds import crown
from bounds.crown import Crown, CrownIbp, FastLin, LinearEngine
from bounds.engine import Bounds
from bounds.errors import DeviceError
from bounds.ibp import Ibp
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.affine import Linear, Scale, Shift
from bounds.ops.base import Op
from bounds.ops.piecewise import LeakyRelu, Relu
from bounds.ops.shape import Expand, Gather, Reshape
from bounds.ops.smooth import Sigmoid, Tanh
from bounds.region import Box, LpBall
from tests.bounds import textbook
from tests.bounds.networks import ZOO, chain, regions
from tests.bounds.textbook import SIGMOID, TANH, Layers


@dataclass(frozen=True)
class Kind:
    """An activation as the package and as the textbook knows it."""

    op: Op
    value: Callable[[np.ndarray], np.ndarray]
    parallel: textbook.Relax
    adaptive: textbook.Relax


def _piecewise(op: Op, leak: float) -> Kind:
    planes = functools.partial(textbook.relu_planes, leak=leak)
    return Kind(op, lambda x: np.maximum(x, leak * x), functools.partial(planes, parallel=True), functools.partial(planes, parallel=False))


LEAK = 0.125
KINDS = {
    "relu": _piecewise(Relu(), 0.0),
    "leaky": _piecewise(LeakyRelu(LEAK), LEAK),
    "sigmoid": Kind(Sigmoid(), SIGMOID.value, SIGMOID.parallel, SIGMOID.adaptive),
    "tanh": Kind(Tanh(), TANH.value, TANH.parallel, TANH.adaptive),
}
WIDTHS = (4, 9, 7, 6, 3)
C = torch.tensor([[1.0, -1.0, 0.0], [0.0, 2.0, -3.0], [1.0, 0.0, 0.0]])


def network_of(kind: Kind, seed: int) -> tuple[Network, list[Linear]]:
    rng = torch.Generator().manual_seed(seed)
    layers = [
        Linear(torch.randn(m, n, generator=rng) / math.sqrt(n) * 1.3, torch.randn(m, generator=rng) / 2)
        for n, m in itertools.pairwise(WIDTHS)
    ]
    ops = [op for layer in layers for op in (layer, kind.op)][:-1]
    return chain(WIDTHS[:1], *ops), layers


def region_of(p: float, seed: int) -> LpBall:
    """Two balls whose data are float32 numbers (a box in float32 is then the same box), one feature fixed."""
    rng = torch.Generator().manual_seed(seed + 100)
    center = (torch.randn(2, 4, generator=rng) * 256).round() / 256
    eps = torch.tensor([[0.25, 0.5, 0.0, 0.375], [0.125, 0.0625, 0.25, 0.25]]) * {1.0: 2.0, 2.0: 1.5, math.inf: 1.0}[p]
    return LpBall(center, eps, p)


def layers_of(layers: list[Linear], region: LpBall, image: int, objective: Tensor | None = None) -> Layers:
    """The textbook's view; with an objective the last layer is C W, C b."""
    weights = [layer.weight.double().numpy() for layer in layers]
    biases = [layer.offset.double().numpy() for layer in layers]  # type: ignore[union-attr]
    if objective is not None:
        weights[-1], biases[-1] = objective.double().numpy() @ weights[-1], objective.double().numpy() @ biases[-1]
    return Layers(weights, biases, region.center[image].numpy(), torch.as_tensor(region.eps)[image].numpy(), region.p)


def expected(method: str, net: Layers, kind: Kind) -> list[textbook.Bounds]:
    if method == "fastlin":
        return textbook.linear_bounds(net, kind.parallel)
    if method == "crown":
        return textbook.linear_bounds(net, kind.adaptive)
    hidden = textbook.interval_propagation(net, kind.value)[:-1]
    return [*hidden, *textbook.linear_bounds(net, kind.adaptive, hidden)]


ENGINES: dict[str, Callable[..., crown.LinearEngine]] = {
    "fastlin": FastLin,
    "crown": functools.partial(Crown, intersect=False),
    "crown-ibp": functools.partial(CrownIbp, intersect=False),
}


def sides(found: Bounds, network: Network, image: int) -> list[Interval]:
    """Bounds of the pre-activations and of the objective, of one image."""
    nodes = [found.intervals[index] for index in network.preactivations]
    return [Interval(i.lower[image].double(), i.upper[image].double()) for i in [*nodes, found.objective]]


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", ENGINES)
def test_bounds_are_the_textbook_s(method: str, name: str, p: float) -> None:
    """float64 within 1e-10; float32 within 1e-3 and never the tighter of the two."""
    kind, unstable = KINDS[name], 0
    for seed in range(2):
        network, layers = network_of(kind, seed)
        region = region_of(p, seed)
        wide, narrow = (ENGINES[method](dtype=dtype)(network, region, C) for dtype in (torch.float64, torch.float32))
        for image in range(region.batch):
            book = expected(method, layers_of(layers, region, image, C), kind)
            for (low, high), exact, rounded in zip(book, sides(wide, network, image), sides(narrow, network, image), strict=True):
                scale = 1 + max(abs(low).max(), abs(high).max())
                assert np.allclose(exact.lower, low, rtol=0, atol=1e-10 * scale)
                assert np.allclose(exact.upper, high, rtol=0, atol=1e-10 * scale)
                assert np.allclose(rounded.lower, low, rtol=0, atol=1e-3 * scale)
                assert np.allclose(rounded.upper, high, rtol=0, atol=1e-3 * scale)
                assert bool((rounded.lower.numpy() <= low + 1e-9).all())
                assert bool((rounded.upper.numpy() >= high - 1e-9).all())
                unstable += int(((low < 0) & (high > 0)).sum())
    assert unstable > 5


def test_two_neurons_by_hand() -> None:
    """y = relu(x0 + x1) - relu(x0 - x1) on [-1, 1] x [-2, 1]: z0 in [-3, 2], z1 in [-2, 3].

    Planes above: 2/5 (z0 + 3) and 3/5 (z1 + 2). CROWN's planes below: 0 and z1; Fast-Lin's: 2/5 z0 and 3/5 z1. At the centre (0, -1/2):
    CROWN   y >= 0 - 3/5 (x0 - x1 + 2) >= -3/5 * 5 = -3          y <= 2/5 (x0 + x1 + 3) - (x0 - x1) = -3/5 x0 + 7/5 x1 + 6/5 <= 3.2
    FastLin y >= 2/5 (x0 + x1) - 3/5 (x0 - x1 + 2) = -1/5 x0 + x1 - 6/5 >= -3.4   y <= -1/5 x0 + x1 + 6/5 <= 2.4
    """
    network = chain((2,), Linear(torch.tensor([[1.0, 1.0], [1.0, -1.0]])), Relu(), Linear(torch.tensor([[1.0, -1.0]])))
    region = Box(torch.tensor([[-1.0, -2.0]]), torch.tensor([[1.0, 1.0]]))
    for engine, low, high in ((Crown(dtype=torch.float64), -3.0, 3.2), (FastLin(dtype=torch.float64), -3.4, 2.4)):
        found = engine(network, region)
        assert found.objective.lower.item() == pytest.approx(low, abs=1e-12)
        assert found.objective.upper.item() == pytest.approx(high, abs=1e-12)
        assert found.linear is not None
    crowned = Crown(dtype=torch.float64)(network, region).linear
    assert crowned is not None
    assert crowned.lower_A.flatten().tolist() == pytest.approx([-0.6, 0.6])
    assert crowned.lower_b.item() == pytest.approx(-1.2)
    assert crowned.upper_A.flatten().tolist() == pytest.approx([-0.6, 1.4])
    assert crowned.upper_b.item() == pytest.approx(1.2)


@pytest.mark.parametrize("kind", ["box", "l2 domain"])
def test_intersection_only_tightens_hidden_intervals(kind: str) -> None:
    """Each pre-activation, once it is fixed that those before it are the same: the first hidden layer behind an activation."""
    for name in ("relu", "leaky", "convolutional", "batch norm", "sigmoid"):
        network = ZOO[name]
        region = regions(network, kind)
        second = network.preactivations[1]
        walked, both = (Crown(dtype=torch.float64, intersect=flag)(network, region).intervals for flag in (False, True))
        propagated = Ibp(dtype=torch.float64)(network, region).intervals[second]
        decided = (both[second].lower >= 0) | (both[second].upper <= 0)  # stable neurons keep a side of interval propagation
        for tight, loose, sign in ((both[second].lower, walked[second].lower, 1), (both[second].upper, walked[second].upper, -1)):
            assert bool(((sign * tight >= sign * loose - 1e-9) | decided).all())
        if kind == "box":  # on balls interval propagation has the exact interval of every neuron of the first layer, stable or not
            assert bool((both[second].lower >= propagated.lower - 1e-9).all())
            assert bool((both[second].upper <= propagated.upper + 1e-9).all())


@pytest.mark.parametrize(
    "copy", [(Gather(0, torch.tensor([0, 0])),), (Reshape((1, 1)), Expand((1, 2))), (Scale(torch.ones(2)),), (Shift(torch.zeros(2)),)]
)
def test_copies_of_an_input_are_the_same_number(copy: tuple[Op, ...]) -> None:
    """x - x is zero: where an input reaches a sum twice interval propagation is not exact, and the first layer must be walked too."""
    network = chain((1,), *copy, Linear(torch.tensor([[1.0, -1.0], [1.0, 1.0]])), Relu())
    found = Crown(dtype=torch.float64)(network, Box(-torch.ones(1, 1), torch.ones(1, 1))).intervals[-2]
    assert found.lower.flatten().tolist() == pytest.approx([0.0, -2.0], abs=1e-12)
    assert found.upper.flatten().tolist() == pytest.approx([0.0, 2.0], abs=1e-12)


def test_crown_ibp_walks_once() -> None:
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        walk = crown.bound_node
        patch.setattr(crown, "bound_node", lambda *args, **fields: calls.append(args[1]) or walk(*args, **fields))
        CrownIbp()(ZOO["residual"], regions(ZOO["residual"], "box"))
        assert calls == []
        CrownIbp()(ZOO["residual"], regions(ZOO["residual"], "l2"))
        assert calls == [1]  # the first layer is exact on a ball
        Crown()(ZOO["residual"], regions(ZOO["residual"], "box"))
        assert len(calls) > 3


def test_only_what_is_unstable_is_walked() -> None:
    network = chain(
        (1,), Linear(torch.ones(1, 1)), Relu(), Linear(torch.tensor([[1.0], [1.0], [-1.0]]), torch.tensor([-0.5, 5.0, -1.0])), Relu()
    )
    wanted: list[list[bool]] = []
    with pytest.MonkeyPatch.context() as patch:
        walk = crown.bound_node
        patch.setattr(crown, "bound_node", lambda *args, **fields: wanted.append(args[2][0].tolist()) or walk(*args, **fields))
        Crown()(network, Box(torch.tensor([[-1.0]]), torch.tensor([[1.0]])))
    assert wanted == [[True, False, False]]


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="device 'abacus' is not known; use 'cpu' or 'cuda'"):
        Crown(device="abacus")(ZOO["relu"], regions(ZOO["relu"], "box"))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="torch sees no GPU"):
            Crown(device="cuda")(ZOO["relu"], regions(ZOO["relu"], "box"))


@pytest.mark.gpu
def test_cuda_agrees_with_the_processor() -> None:
    for name, network in ZOO.items():
        region = regions(network, "l2 domain")
        for dtype, tolerance in ((torch.float32, 1e-3), (torch.float64, 1e-9)):
            here, there = (Crown(dtype=dtype, device=device)(network, region).objective for device in ("cpu", "cuda"))
            assert torch.allclose(here.lower, there.lower.cpu(), rtol=tolerance, atol=tolerance), name
            assert torch.allclose(here.upper, there.upper.cpu(), rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("engine", [Crown, FastLin, CrownIbp])
def test_bounds_from_below_alone(engine: type[LinearEngine]) -> None:
    """The lower side is the same; the upper one is what the output's interval implies, with planes that say no more."""
    for name in ("relu", "residual", "max pool", "sigmoid"):
        network = ZOO[name]
        region = regions(network, "l2 domain")
        C = torch.randint(-2, 3, (3, 4, network.outputs), generator=torch.Generator().manual_seed(0)).double()
        two, one = (engine(torch.float64, both=both)(network, region, C) for both in (True, False))
        assert torch.allclose(one.objective.lower, two.objective.lower, rtol=1e-11, atol=1e-11)
        assert one.linear is not None
        assert two.linear is not None
        assert torch.allclose(one.linear.lower_A, two.linear.lower_A, rtol=1e-9, atol=1e-9)
        assert torch.allclose(one.linear.lower_b, two.linear.lower_b, rtol=1e-9, atol=1e-9)
        low, high = (side.flatten(1).unsqueeze(-1) for side in (one.intervals[-1].lower, one.intervals[-1].upper))
        implied = (C.clamp(min=0) @ high + C.clamp(max=0) @ low).squeeze(-1)
        assert bool((one.objective.upper >= implied).all())
        assert torch.allclose(one.objective.upper, implied, rtol=1e-11, atol=1e-11)
        planes = one.linear.concretize(region)
        assert torch.allclose(planes.upper, implied, rtol=1e-11, atol=1e-11)
        x = region.sample(50, torch.Generator().manual_seed(1))
        values = torch.einsum("brc,bsc->bsr", C, network.to(torch.float64)(x.flatten(0, 1)).reshape(3, 50, -1))
        assert bool((values <= one.objective.upper.unsqueeze(1)).all())
        assert bool((values >= one.objective.lower.unsqueeze(1)).all())
