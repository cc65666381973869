"""Minimal-norm attacks against closed forms, convex programs and brute force in the plane."""

from __future__ import annotations

import math
import time

import cvxpy
import numpy as np
import pytest
import torch

from bounds.errors import DeviceError, SpecError
from bounds.network import Network, Node
from bounds.ops.affine import Linear
from bounds.ops.base import Input
from bounds.ops.piecewise import Relu
from verify.minimal import MinimalNorm, to_plane
from verify.spec import robustness
from verify.verdict import replay

NORMS = (1.0, 2.0, math.inf)


def linear() -> Network:
    """Scores 3 x + 4 y + 1 and 0: the boundary lies at distance (3 x + 4 y + 1) / ||(3, 4)||_q."""
    weight, bias = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0])
    return Network((Node(Input(), (), (2,), "x"), Node(Linear(weight, bias), (0,), (2,), "y")))


def random(inputs: int, seed: int, outputs: int = 3, width: int = 16) -> Network:
    generator = torch.Generator().manual_seed(seed)

    def layer(fan_in: int, fan_out: int) -> Linear:
        return Linear(torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5, 0.3 * torch.randn(fan_out, generator=generator))

    nodes = (
        Node(Input(), (), (inputs,), "x"),
        Node(layer(inputs, width), (0,), (width,), "a"),
        Node(Relu(), (1,), (width,), "b"),
        Node(layer(width, width), (2,), (width,), "c"),
        Node(Relu(), (3,), (width,), "d"),
        Node(layer(width, outputs), (4,), (outputs,), "e"),
    )
    return Network(nodes)


def points(count: int, inputs: int, seed: int) -> torch.Tensor:
    """Numbers that float32 holds: an image is given to the model as it is."""
    return torch.rand(count, inputs, generator=torch.Generator().manual_seed(seed)).double()


def classes(network: Network, x: torch.Tensor) -> torch.Tensor:
    return network.to(torch.float64)(x).argmax(-1)


def brute_force(network: Network, x: torch.Tensor, label: int, norm: float, domain: tuple[float, float] | None) -> float:
    """The distance of the nearest point of another class on 360 rays in the plane, as far as 2, to 0.005; inf if there is none."""
    angle = torch.linspace(0, 2 * math.pi, 361, dtype=torch.float64)[:-1]
    ray = torch.stack([angle.cos(), angle.sin()], dim=1)
    ray = ray / torch.linalg.vector_norm(ray, ord=norm, dim=1, keepdim=True)
    steps = torch.linspace(0, 2, 401, dtype=torch.float64)
    where = x + steps.reshape(-1, 1, 1) * ray
    inside = torch.ones_like(where[..., 0], dtype=torch.bool)
    if domain is not None:
        inside = ((where >= domain[0]) & (where <= domain[1])).all(-1)
    fooled = inside & (classes(network, where) != label)
    return float(steps[fooled.any(1)].min()) if bool(fooled.any()) else math.inf


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_steps_to_a_plane_are_the_shortest(norm: float, sign: float) -> None:
    generator = torch.Generator().manual_seed(4)
    gradient, low, high = (torch.rand(12, 7, generator=generator, dtype=torch.float64) for _ in range(3))
    gradient = gradient - 0.5
    gradient[0, :5] = 0.0
    low[1] = 0.0
    reach = torch.where(sign * gradient > 0, low, high).mul(gradient.abs()).sum(1)
    value = sign * reach * torch.linspace(0.05, 1.3, 12, dtype=torch.float64)
    step = to_plane(gradient, value, low, high, norm)
    assert ((step >= -low) & (step <= high)).all()
    for row in range(12):
        t = cvxpy.Variable(7)
        limits = [t >= -low[row].numpy(), t <= high[row].numpy()]
        if value[row].abs() > reach[row]:  # out of reach: as near as possible
            assert (gradient[row] @ step[row]).abs().item() == pytest.approx(reach[row].item(), abs=1e-12)
            continue
        assert (value[row] + gradient[row] @ step[row]).abs() <= 1e-12
        plane = [gradient[row].numpy() @ t == -value[row].item()]
        best = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(t, "inf" if norm == math.inf else int(norm))), limits + plane).solve(
            solver=cvxpy.CLARABEL
        )
        assert torch.linalg.vector_norm(step[row], ord=norm).item() == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(("norm", "expected"), [(1.0, 0.25), (2.0, 0.2), (math.inf, 1 / 7)])
def test_a_linear_network_has_the_textbook_distance(norm: float, expected: float) -> None:
    found = MinimalNorm()(linear(), torch.zeros(1, 2), torch.tensor([0]), norm=norm, domain=None)
    assert expected <= found.distance[0] <= expected * (1 + 1e-5)
    assert found.target.tolist() == [1]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("domain", [None, (0.0, 1.0)])
def test_nearly_the_nearest_in_the_plane(norm: float, domain: tuple[float, float] | None) -> None:
    for seed in range(2):
        network = random(2, seed)
        x = points(6, 2, seed)
        labels = classes(network, x)
        found = MinimalNorm(steps=40, restarts=2)(network, x, labels, norm=norm, domain=domain)
        for row in range(6):
            best = brute_force(network, x[row], int(labels[row]), norm, domain)
            if math.isinf(best) and domain is None:
                assert found.distance[row] > 1.9
                continue
            assert found.distance[row] <= best * 1.06 + 0.005
            assert found.distance[row] >= best * 0.97 - 0.01


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("domain", [None, (0.0, 1.0)])
def test_every_adversary_replays_within_its_distance(norm: float, domain: tuple[float, float] | None) -> None:
    network = random(8, 11)
    x = points(10, 8, 2)
    labels = classes(network, x)
    found = MinimalNorm(steps=20)(network, x, labels, norm=norm, domain=domain)
    assert np.isfinite(found.distance).any()
    for row in np.flatnonzero(np.isfinite(found.distance)):
        question = robustness(x[row], int(labels[row]), float(found.distance[row]), norm=norm, outputs=3, domain=domain)
        answer = replay(network, question, found.points[row], "test")
        assert answer is not None
        assert answer.y.argmax() == found.target[row]
        nearer = robustness(x[row], int(labels[row]), float(found.distance[row]) * (1 - 1e-9), norm=norm, outputs=3, domain=domain)
        assert replay(network, nearer, found.points[row], "test") is None  # the distance is the point's


def test_a_seed_decides_everything() -> None:
    network = random(5, 3)
    x = points(4, 5, 7)
    labels = classes(network, x)
    first, again = (MinimalNorm(steps=10, restarts=2, seed=5)(network, x, labels, norm=2.0) for _ in range(2))
    assert np.array_equal(first.points, again.points, equal_nan=True)
    assert np.array_equal(first.distance, again.distance)


def test_a_misclassified_image_is_its_own_adversary() -> None:
    network = random(4, 1)
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    labels = (classes(network, x) + 1) % 3
    found = MinimalNorm(steps=5)(network, x, labels)
    assert found.distance.tolist() == [0.0]
    assert found.points[0].tolist() == x[0].tolist()


def test_no_adversary_in_the_whole_domain() -> None:
    weight, bias = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0])
    network = Network((Node(Input(), (), (2,), "x"), Node(Linear(weight, bias), (0,), (2,), "y")))
    found = MinimalNorm(steps=10)(network, torch.full((1, 2), 0.5), torch.tensor([0]))
    assert found.distance.tolist() == [math.inf]
    assert found.target.tolist() == [-1]
    assert np.isnan(found.points).all()


def test_gradients_that_vanish_at_the_image() -> None:
    """A network that is constant around the image: only larger balls show the way."""
    weight, bias = torch.tensor([[1.0, 1.0]]), torch.tensor([-1.5])
    nodes = (
        Node(Input(), (), (2,), "x"),
        Node(Linear(weight, bias), (0,), (1,), "a"),
        Node(Relu(), (1,), (1,), "b"),
        Node(Linear(torch.tensor([[0.0], [10.0]]), torch.tensor([1.0, 0.0])), (2,), (2,), "y"),
    )
    found = MinimalNorm(steps=10)(Network(nodes), torch.full((1, 2), 0.2), torch.tensor([0]))
    assert found.distance[0] == pytest.approx(0.6, abs=1e-3)  # x + y = 1.6


def test_after_the_deadline_what_there_is() -> None:
    network = random(5, 3)
    x = points(2, 5, 7)
    labels = classes(network, x)
    found = MinimalNorm()(network, x, torch.stack([labels[0], (labels[1] + 1) % 3]), deadline=time.monotonic())
    assert found.distance.tolist() == [math.inf, 0.0]


def test_errors_name_the_argument() -> None:
    with pytest.raises(SpecError, match="steps must be at least 1"):
        MinimalNorm(steps=0)
    x = torch.zeros(1, 2)
    with pytest.raises(SpecError, match="label 7"):
        MinimalNorm()(linear(), x, torch.tensor([7]))
    with pytest.raises(SpecError, match="norm 3"):
        MinimalNorm()(linear(), x, torch.tensor([0]), norm=3.0)
    with pytest.raises(SpecError, match="outside the domain"):
        MinimalNorm()(linear(), x - 1, torch.tensor([0]))
    with pytest.raises(DeviceError):
        MinimalNorm(device="abacus")(linear(), x, torch.tensor([0]))
