"""Both ends of certified radii: known answers, limits, interrupts, contradictions, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bounds.crown import FastLin
from bounds.errors import DeviceError, ProofError, SpecError
from bounds.network import Network, Node
from bounds.ops.affine import Linear
from bounds.ops.base import Input
from bounds.ops.piecewise import Relu
from bounds.region import LpBall
from verify.minimal import MinimalNorm
from verify.radius import Limits, RadiusMethod, certified_radius
from verify.radius_search import Task
from verify.spec import class_margins

QUICK = MinimalNorm(steps=20)
METHODS: tuple[RadiusMethod, ...] = ("fastlin", "pec", "crown", "alpha")


def linear() -> Network:
    """Scores 3 x + 4 y + 1 and 0: the boundary lies at distance (3 x + 4 y + 1) / ||(3, 4)||_q."""
    weight, bias = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0])
    return Network((Node(Input(), (), (2,), "x"), Node(Linear(weight, bias), (0,), (2,), "y")))


def random(seed: int = 0, inputs: int = 6) -> Network:
    generator = torch.Generator().manual_seed(seed)

    def layer(fan_in: int, fan_out: int) -> Linear:
        return Linear(torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5, 0.1 * torch.randn(fan_out, generator=generator))

    nodes = (
        Node(Input(), (), (inputs,), "x"),
        Node(layer(inputs, 12), (0,), (12,), "a"),
        Node(Relu(), (1,), (12,), "b"),
        Node(layer(12, 3), (2,), (3,), "c"),
    )
    return Network(nodes)


def images(network: Network, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(count, *network.input_shape, generator=torch.Generator().manual_seed(1)).double()
    return x, network.to(torch.float64)(x).argmax(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("norm", "expected"), [(1.0, 0.25), (2.0, 0.2), (math.inf, 1 / 7)])
def test_a_linear_network_has_the_textbook_radius(method: RadiusMethod, norm: float, expected: float) -> None:
    (found,) = certified_radius(linear(), torch.zeros(1, 2), torch.tensor([0]), norm=norm, domain=None, method=method, tol=1e-5)
    assert expected - 1.1e-5 <= found.lower <= expected
    assert expected <= found.upper <= expected * (1 + 1e-5)
    assert found.adversary is not None
    assert found.certificate is not None
    assert found.certificate.proof == "rigorous"
    assert found.note == ""


def test_the_certificate_proves_the_radius_again() -> None:
    network = random(2)
    x, labels = images(network)
    for index, found in enumerate(certified_radius(network, x, labels, norm=2.0, method="fastlin", limits=Limits(attack=QUICK))):
        assert found.certificate is not None
        assert found.certificate.engine == "fastlin"
        assert found.certificate.eps is not None
        at, label = x[index : index + 1], labels[index : index + 1]
        planes = FastLin()(network, LpBall(at, found.certificate.eps, 2.0, (0.0, 1.0)), class_margins(label, 3).C).linear
        assert planes is not None
        inner = LpBall(at, found.lower * (1 - 1e-6), 2.0, (0.0, 1.0))
        assert (planes.lower_b + inner.minimise(planes.lower_A) > 0).all()


@pytest.mark.parametrize("method", ["crown", "exact"])
def test_without_an_attack_the_certified_ends_are_the_same(method: RadiusMethod) -> None:
    network = random()
    x, labels = images(network, 3)
    labels[1] = (labels[1] + 1) % 3
    attacked = certified_radius(network, x, labels, method=method, limits=Limits(attack=QUICK))
    for index, found in enumerate(certified_radius(network, x, labels, method=method, limits=Limits(attack=None))):
        assert found.lower == pytest.approx(attacked[index].lower, abs=1e-4)
        assert found.note == attacked[index].note == ("misclassified" if index == 1 else "")
        assert math.isinf(found.upper) == (method == "crown" and index != 1)


def test_a_misclassified_image_has_radius_zero_and_says_so() -> None:
    network = random()
    x, labels = images(network)
    labels[1] = (labels[1] + 1) % 3
    found = certified_radius(network, x, labels, limits=Limits(attack=QUICK))
    wrong = found[1]
    assert (wrong.lower, wrong.upper, wrong.exact, wrong.note, wrong.bound_calls) == (0.0, 0.0, 0.0, "misclassified", 0)
    assert all(other.note == "" and other.lower > 0 for i, other in enumerate(found) if i != 1)


def test_no_adversary_in_the_whole_domain() -> None:
    weight, bias = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0])
    network = Network((Node(Input(), (), (2,), "x"), Node(Linear(weight, bias), (0,), (2,), "y")))
    (found,) = certified_radius(network, torch.full((1, 2), 0.5), torch.tensor([0]), limits=Limits(attack=QUICK))
    assert (found.lower, found.upper, found.exact) == (math.inf, math.inf, math.inf)
    assert "no adversary" in found.note


def test_the_largest_radius_of_interest_is_respected() -> None:
    network = random()
    x, labels = images(network)
    for found in certified_radius(network, x, labels, limits=Limits(most=1e-3, attack=QUICK)):
        assert found.lower == 1e-3
        assert found.upper > 1e-3
        assert "largest radius" in found.note


@pytest.mark.parametrize("method", ["fastlin", "pec", "crown", "alpha", "exact"])
@pytest.mark.parametrize("domain", [None, (0.0, 1.0)])
def test_without_any_time_nothing_is_claimed(method: RadiusMethod, domain: tuple[float, float] | None) -> None:
    network = random()
    x, labels = images(network)
    for found in certified_radius(network, x, labels, method=method, domain=domain, limits=Limits(seconds=0.0)):
        assert (found.lower, found.exact, found.certificate, found.note) == (0.0, None, None, "time limit")
        assert found.upper > 0


def test_an_interrupt_keeps_what_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    network = random()
    x, labels = images(network)
    advance, calls = Task.advance, iter(range(100))

    def interrupted(*arguments: Any) -> None:
        if next(calls) == 4:
            raise KeyboardInterrupt
        advance(*arguments)

    monkeypatch.setattr(Task, "advance", interrupted)
    found = certified_radius(network, x, labels, limits=Limits(attack=QUICK))
    assert all(r.lower <= r.upper < math.inf for r in found)
    assert any(r.lower > 0 and r.certificate is not None for r in found)
    assert all(r.note == "interrupted" for r in found)


def test_an_interrupt_during_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MinimalNorm, "__call__", interrupted)
    found = certified_radius(random(), *images(random()))
    assert [(r.lower, r.upper, r.note) for r in found] == [(0.0, math.inf, "interrupted")] * 6


def test_a_proof_that_an_adversary_contradicts_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    network = random()
    advance = Task.advance

    def unsound(self: Task, index: torch.Tensor, brackets: Any, eps: list[float]) -> None:
        advance(self, index, brackets, eps)
        for bracket in brackets:
            bracket.lower = bracket.upper = 1.5 * bracket.lower

    x, labels = images(network)
    monkeypatch.setattr(Task, "advance", unsound)
    with pytest.raises(ProofError, match=r"image \d: the radius .* but there is an adversary at"):
        certified_radius(network, x, labels, limits=Limits(attack=QUICK))


def test_rounding_of_the_model_is_no_contradiction() -> None:
    """In float32 the outputs 1 + 3e-7 x and 1 are tied at x = 0.19; as real numbers they are not before x = 0."""
    weight, bias = torch.tensor([[3e-7], [0.0]]), torch.tensor([1.0, 1.0])
    network = Network((Node(Input(), (), (1,), "x"), Node(Linear(weight, bias), (0,), (2,), "y")))
    (found,) = certified_radius(network, torch.ones(1, 1), torch.tensor([0]), limits=Limits(attack=QUICK))
    assert 0.5 < found.upper < 0.9
    assert found.lower <= found.upper


def test_progress_is_told() -> None:
    network, told = random(), list[str]()
    certified_radius(network, *images(network), method="crown", limits=Limits(attack=QUICK), observe=told.append)
    assert told[0].startswith("attack")
    assert any(text == "fastlin: 6 of 6 images" for text in told)
    assert any(text == "crown: 6 of 6 images" for text in told)


def test_arrays_do_as_well_as_tensors() -> None:
    network = random()
    x, labels = images(network)
    tensors = certified_radius(network, x, labels, limits=Limits(attack=QUICK))
    arrays = certified_radius(network, x.numpy(), labels.numpy(), limits=Limits(attack=QUICK))
    assert [r.lower for r in tensors] == [r.lower for r in arrays]
    assert certified_radius(network, x[:0], labels[:0]) == []


def test_errors_name_the_argument() -> None:
    network = random()
    x, labels = images(network)
    with pytest.raises(SpecError, match="unknown method 'newton'"):
        certified_radius(network, x, labels, method="newton")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="norm 3"):
        certified_radius(network, x, labels, norm=3.0)
    with pytest.raises(SpecError, match="label 5 is out of range"):
        certified_radius(network, x, torch.full_like(labels, 5))
    with pytest.raises(SpecError, match="tolerance"):
        certified_radius(network, x, labels, tol=1e-15)
    with pytest.raises(SpecError, match="tolerance"):
        certified_radius(network, x, labels, tol=math.nan)
    with pytest.raises(SpecError, match="largest radius"):
        certified_radius(network, x, labels, limits=Limits(most=-0.1))
    with pytest.raises(SpecError, match="time limit"):
        Limits(seconds=-1.0)
    with pytest.raises(SpecError, match="outside the domain"):
        certified_radius(network, x + 1, labels)
    with pytest.raises(SpecError, match="reads inputs of shape"):
        certified_radius(network, x[:, :4], labels)
    with pytest.raises(SpecError, match="NaN"):
        certified_radius(network, x * math.nan, labels)
    with pytest.raises(DeviceError):
        certified_radius(network, x, labels, limits=Limits(device="abacus"))


def test_without_a_domain_something_must_limit_the_radius() -> None:
    weight, bias = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0])
    constant = Network((Node(Input(), (), (2,), "x"), Node(Linear(weight, bias), (0,), (2,), "y")))
    x, labels = torch.zeros(1, 2), torch.tensor([0])
    with pytest.raises(SpecError, match="no domain and no adversary"):
        certified_radius(constant, x, labels, domain=None, limits=Limits(attack=QUICK))
    (found,) = certified_radius(constant, x, labels, domain=None, limits=Limits(most=3.0, attack=QUICK))
    assert found.lower == 3.0
    assert np.isinf(found.upper)
