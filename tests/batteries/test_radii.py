"""Radii: every norm, with and without a domain, by every method, against the exact distance of small networks.

The exact distance is a minimum over all activation patterns of all hidden neurons, one convex program each: nothing of ours is in it.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, nnls

from bounds.network import Network, Node
from bounds.ops.affine import Linear
from bounds.ops.base import Input
from bounds.ops.piecewise import Relu
from bounds.region import LpBall
from verify.minimal import MinimalNorm
from verify.radius import Limits, RadiusMethod, certified_radius
from verify.spec import robustness
from verify.verdict import replay

INPUTS, HIDDEN, CLASSES, IMAGES = 3, (3, 3), 3, 3
NORMS = (1.0, 2.0, math.inf)
DOMAINS = (None, (0.0, 1.0))
SEEDS = (7,)
TOL = 1e-4
LIMITS = Limits(attack=MinimalNorm(steps=30))
METHODS: tuple[RadiusMethod, ...] = ("fastlin", "pec", "crown", "alpha", "exact")


@functools.cache
def network(seed: int) -> Network:
    generator = torch.Generator().manual_seed(seed)
    sizes = (INPUTS, *HIDDEN, CLASSES)
    nodes = [Node(Input(), (), (INPUTS,), "x")]
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        weight = 2 * torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5
        bias = 0.3 * torch.randn(fan_out, generator=generator)
        nodes.append(Node(Linear(weight, bias), (len(nodes) - 1,), (fan_out,), f"affine {number}"))
        if number < len(HIDDEN):
            nodes.append(Node(Relu(), (len(nodes) - 1,), (fan_out,), f"relu {number}"))
    return Network(tuple(nodes))


@functools.cache
def images(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(IMAGES, INPUTS, generator=torch.Generator().manual_seed(100 + seed)).double()
    return x, network(seed).to(torch.float64)(x).argmax(1)


def pieces(seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """For every activation pattern (G, h, A, b): where G x <= h the network is A x + b."""
    layers = [node.op for node in network(seed).nodes if isinstance(node.op, Linear)]
    weights = [layer.weight.double().numpy() for layer in layers]
    biases = [layer.offset.double().numpy() for layer in layers if layer.offset is not None]
    found = []
    for pattern in itertools.product((0.0, 1.0), repeat=sum(HIDDEN)):
        A, b, G, h, start = np.eye(INPUTS), np.zeros(INPUTS), [], [], 0
        for weight, bias, size in zip(weights, biases, HIDDEN, strict=False):
            on = np.array(pattern[start : start + size])
            start += size
            A, b = weight @ A, weight @ b + bias
            G.append((1 - 2 * on)[:, None] * A)
            h.append((2 * on - 1) * b)
            A, b = on[:, None] * A, on * b
        found.append((np.concatenate(G), np.concatenate(h), weights[-1] @ A, weights[-1] @ b + biases[-1]))
    return found


FAR = 50.0
"""Without a domain distances are looked for this far, which keeps programs well scaled."""


def nearest(G: np.ndarray, h: np.ndarray, center: np.ndarray, norm: float, domain: tuple[float, float]) -> float:
    """min ||x - center||_p over the x of the domain with G x <= h; inf if there is none."""
    if norm == 2.0:
        # Least distance programming (Lawson, Hanson 1974, chapter 23): the nearest point from one non-negative least squares problem.
        E = -np.vstack([G, np.eye(INPUTS), -np.eye(INPUTS)])
        f = E @ -center - np.r_[h, np.full(INPUTS, domain[1]), np.full(INPUTS, -domain[0])]
        stacked, target = np.vstack([E.T, f]), np.eye(INPUTS + 1)[-1]
        residual = stacked @ nnls(stacked, target)[0] - target
        return float(np.linalg.norm(residual[:-1] / residual[-1])) if np.linalg.norm(residual) > 1e-9 else math.inf
    # x and the lengths of its steps: one for all features, or one each
    count = 1 if norm == math.inf else INPUTS
    spread = np.ones((INPUTS, 1)) if norm == math.inf else np.eye(INPUTS)
    eye, none = np.eye(INPUTS), np.zeros((len(G), count))
    A = np.block([[G, none], [eye, -spread], [-eye, -spread]])
    bounds = [domain] * INPUTS + [(0.0, None)] * count
    answer = linprog(np.r_[np.zeros(INPUTS), np.ones(count)], A, np.r_[h, center, -center], bounds=bounds)
    return float(answer.fun) if answer.status == 0 else math.inf


@functools.cache
def distance(seed: int, norm: float, domain: tuple[float, float] | None) -> tuple[float, ...]:
    """The exact distance of every image."""
    points, labels = images(seed)
    best = [math.inf] * IMAGES
    for G, h, A, b in pieces(seed):
        for index, (point, label) in enumerate(zip(points.numpy(), labels.tolist(), strict=True)):
            for rival in set(range(CLASSES)) - {label}:
                rows, limits = np.vstack([G, A[label] - A[rival]]), np.append(h, b[rival] - b[label])
                best[index] = min(best[index], nearest(rows, limits, point, norm, domain or (-FAR, FAR)))
    return tuple(best)


@functools.cache
def found(seed: int, norm: float, domain: tuple[float, float] | None, method: RadiusMethod) -> tuple:
    return tuple(certified_radius(network(seed), *images(seed), norm=norm, domain=domain, method=method, tol=TOL, limits=LIMITS))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", METHODS)
def test_the_exact_distance_lies_between_the_ends(seed: int, norm: float, domain: tuple[float, float] | None, method: RadiusMethod) -> None:
    for radius, exact in zip(found(seed, norm, domain, method), distance(seed, norm, domain), strict=True):
        assert radius.lower <= radius.upper
        assert radius.lower <= exact * (1 + 1e-6)
        assert radius.upper >= exact * (1 - 1e-6)
        if radius.exact is not None:
            assert radius.lower <= radius.exact <= radius.upper
            assert radius.exact == pytest.approx(exact, abs=2 * TOL)
        assert method != "exact" or radius.exact is not None
        assert (radius.certificate is not None) == (0 < radius.lower < math.inf)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("seed", SEEDS)
def test_stronger_methods_prove_more(seed: int, norm: float, domain: tuple[float, float] | None) -> None:
    lower = {method: [radius.lower for radius in found(seed, norm, domain, method)] for method in METHODS}
    for weak, strong in (("fastlin", "crown"), ("crown", "alpha"), ("crown", "exact")):
        assert all(w <= s for w, s in zip(lower[weak], lower[strong], strict=True)), (weak, strong)  # type: ignore[index]
    assert np.allclose(lower["pec"], lower["fastlin"], atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("seed", SEEDS)
def test_upper_ends_are_adversaries(seed: int, norm: float, domain: tuple[float, float] | None) -> None:
    points, labels = images(seed)
    for radius, x, label in zip(found(seed, norm, domain, "fastlin"), points, labels.tolist(), strict=True):
        if radius.adversary is None:
            continue
        question = robustness(x, label, radius.upper, norm=norm, outputs=CLASSES, domain=domain)
        assert replay(network(seed), question, radius.adversary, "test") is not None
        if domain is not None:
            assert radius.adversary.min() >= domain[0]
            assert radius.adversary.max() <= domain[1]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_attack_comes_close_to_the_exact_distance(seed: int, norm: float, domain: tuple[float, float] | None) -> None:
    upper = MinimalNorm(steps=60, restarts=3)(network(seed), *images(seed), norm=norm, domain=domain).distance
    exact = np.array(distance(seed, norm, domain))
    assert np.array_equal(np.isinf(upper), np.isinf(exact))
    assert np.all(upper[np.isfinite(exact)] <= 1.2 * exact[np.isfinite(exact)])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_sample_within_the_lower_end_has_another_class(seed: int, norm: float, domain: tuple[float, float] | None) -> None:
    points, labels = images(seed)
    lower = torch.tensor([min(radius.lower, 2.0) for radius in found(seed, norm, domain, "alpha")], dtype=torch.float64)
    samples = LpBall(points, lower.unsqueeze(1), norm, domain).sample(400, torch.Generator().manual_seed(seed))
    assert (network(seed).to(torch.float64)(samples).argmax(-1) == labels.unsqueeze(1)).all()
