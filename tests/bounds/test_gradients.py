"""Bounds are differentiable in the ends of the region and in the weights: checked against finite differences in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bounds.crown import Crown, CrownIbp, FastLin
from bounds.engine import BoundEngine
from bounds.envelope import distances
from bounds.ibp import Ibp
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.region import Box, LpBall, Region
from tests.bounds.networks import REGIONS, ZOO, chain, regions

ENGINES: tuple[BoundEngine, ...] = tuple(kind(dtype=torch.float64) for kind in (Crown, FastLin, CrownIbp, Ibp))
NAMES = ("relu", "clip and abs", "convolutional", "residual", "max pool", "branches", "channels last", "sigmoid", "tanh")


def around(network: Network, kind: str) -> tuple[Tensor, Callable[[Tensor], Region]]:
    """Uneven radii of two sets, and the regions as a function of the radii."""
    found = regions(network, kind).select(slice(0, 2))
    box = found.box()
    eps = (box.upper.double() - box.lower.double()) / 2 if isinstance(found, Box) else torch.as_tensor(found.eps)  # type: ignore[attr-defined]
    eps = eps * torch.linspace(0.9, 1.1, eps.numel(), dtype=torch.float64).reshape(eps.shape) + 0.003
    if isinstance(found, LpBall):
        return eps, lambda e: LpBall(found.center, e, found.p, found.domain)
    return eps, lambda e: Box(found.origin - e, found.origin + e)


def slope(f: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor, step: float) -> float:
    """The central difference quotient."""
    with torch.no_grad():
        return ((f(at + step * direction) - f(at - step * direction)) / (2 * step)).item()


def agrees(f: Callable[[Tensor], Tensor], at: Tensor, gradient: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether <gradient, u> is the slope along random directions u, for the better of two steps (a kink may lie within one)."""
    generator, scale = torch.Generator().manual_seed(0), gradient.norm().item() + 1e-6
    for _ in range(2):
        u = torch.randn(at.shape, generator=generator, dtype=torch.float64)
        found = (gradient * u).sum().item()
        if all(abs(slope(f, at, u, step) - found) > tolerance * scale for step in (1e-6, 1e-5)):
            return False
    return True


def total(engine: BoundEngine, network: Network, region: Region) -> Tensor:
    """A weighted sum of all lower and upper bounds of the outputs."""
    found = engine(network, region, torch.eye(network.outputs)).objective
    weights = torch.arange(1.0, network.outputs + 1, dtype=torch.float64)
    return (found.lower * weights - found.upper * weights.flip(0)).sum()


@pytest.mark.parametrize("kind", [kind for kind in REGIONS if kind != "l2 domain"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_in_the_radii(name: str, kind: str) -> None:
    network = ZOO[name]
    eps, make = around(network, kind)
    for engine in ENGINES:
        variable = eps.clone().requires_grad_()
        value = total(engine, network, make(variable))
        (gradient,) = torch.autograd.grad(value, variable)
        assert gradient.abs().sum() > 0
        assert agrees(lambda e, engine=engine: total(engine, network, make(e)), eps, gradient), (name, kind, engine)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["relu", "affine", "tanh"])
def test_gradient_in_the_radii_of_a_clipped_euclidean_ball(name: str) -> None:
    """Its multiplier is found in float32, which leaves noise in difference quotients: hence wider steps."""
    network = ZOO[name]
    eps, make = around(network, "l2 domain")
    for engine in ENGINES:
        variable = eps.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(total(engine, network, make(variable)), variable)
        u = torch.linspace(-1.0, 1.0, eps.numel(), dtype=torch.float64).reshape(eps.shape)
        wanted = slope(lambda e, engine=engine: total(engine, network, make(e)), eps, u, 2e-4)  # type: ignore[misc]
        assert (gradient * u).sum().item() == pytest.approx(wanted, rel=5e-3, abs=2e-3 * gradient.norm().item())


@pytest.mark.parametrize("name, kind", list(itertools.product(("relu", "convolutional", "tanh"), ("linf domain", "l2", "l1 domain"))))
def test_values_are_the_same_with_and_without_gradients(name: str, kind: str) -> None:
    network = ZOO[name]
    eps, make = around(network, kind)
    for engine in (Crown(), FastLin(), Ibp(), CrownIbp()):
        plain = engine(network, make(eps))
        recorded = engine(network, make(eps.clone().requires_grad_()))
        assert torch.equal(plain.objective.lower, recorded.objective.lower.detach())
        assert torch.equal(plain.objective.upper, recorded.objective.upper.detach())
        assert recorded.objective.lower.requires_grad
        assert not plain.objective.lower.requires_grad


def test_a_radius_of_zero_has_a_finite_gradient() -> None:
    """Intervals of no width divide zero by zero in branches that are not used."""
    for name in ("relu", "clip and abs", "max pool", "sigmoid"):
        network = ZOO[name]
        center = torch.zeros(1, *network.input_shape, dtype=torch.float64)
        for p in (1.0, 2.0, torch.inf):
            eps = torch.zeros_like(center).requires_grad_()
            for engine in ENGINES:
                (gradient,) = torch.autograd.grad(total(engine, network, LpBall(center, eps, p, (-1.0, 1.0))), eps)
                assert bool(torch.isfinite(gradient).all()), (name, p, engine)


def with_weight(network: Network, index: int, weight: Tensor) -> Network:
    """The network with another weight in its node `index`."""
    nodes = list(network.nodes)
    nodes[index] = replace(nodes[index], op=replace(nodes[index].op, weight=weight))  # type: ignore[call-arg]
    return Network(tuple(nodes))


@pytest.mark.parametrize("name", ["relu", "convolutional", "tanh"])
def test_gradient_of_bounds_and_distances_in_the_weights(name: str) -> None:
    network = ZOO[name].to(torch.float64)
    index = next(i for i, node in enumerate(network.nodes) if hasattr(node.op, "weight"))
    stored = network.nodes[index].op.weight.double()  # type: ignore[attr-defined]
    _, make = around(network, "l2")
    ball = make(torch.full((2, *network.input_shape), 0.2, dtype=torch.float64))
    assert isinstance(ball, LpBall)

    def envelope(weight: Tensor, engine: BoundEngine) -> Tensor:
        planes = engine(with_weight(network, index, weight), ball, torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).linear
        assert planes is not None
        return distances(planes, ball).sum() + total(engine, with_weight(network, index, weight), ball)

    for engine in ENGINES[:3]:
        variable = stored.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(envelope(variable, engine), variable)
        assert agrees(lambda w, engine=engine: envelope(w, engine), stored, gradient), engine  # type: ignore[misc]


def test_weights_that_learn_are_not_kept() -> None:
    """After a backward pass and a step in place, bounds are those of the new weights, and can be differentiated again."""
    leaf = Linear(torch.ones(1, 3, requires_grad=True))
    network, box = chain((3,), leaf), Box(torch.zeros(1, 3), torch.ones(1, 3))
    first = total(Crown(), network, box)
    first.backward()
    with torch.no_grad():
        leaf.weight.mul_(3.0)
    second = total(Crown(), network, box)
    second.backward()
    assert second.item() == pytest.approx(3 * first.item(), rel=1e-5)
