"""Certified radii: the exact answer where it is known, certificates that hold, and searches that agree."""

from __future__ import annotations

import math
import time

import pytest
import torch

from bounds.crown import Crown, FastLin
from bounds.errors import SpecError
from bounds.ibp import Ibp
from bounds.network import Network, Node
from bounds.ops.affine import Linear
from bounds.ops.base import Input
from bounds.ops.piecewise import Relu
from bounds.region import LpBall
from verify.radius_search import Method, Search, Task, certified_curve, certified_radii
from verify.spec import class_margins

METHODS: tuple[Method, ...] = ("bisection", "pec", "secant")


def _linear() -> Network:
    """Scores 3 x + 4 y + 1 and 0: the boundary lies at distance (3 x + 4 y + 1) / ||(3, 4)||_q."""
    weight, bias = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0])
    return Network((Node(Input(), (), (2,), "x"), Node(Linear(weight, bias), (0,), (2,), "y")))


def _random(seed: int = 0) -> Network:
    generator = torch.Generator().manual_seed(seed)

    def layer(inputs: int, outputs: int) -> Linear:
        return Linear(torch.randn(outputs, inputs, generator=generator) / inputs**0.5, 0.1 * torch.randn(outputs, generator=generator))

    nodes = (
        Node(Input(), (), (6,), "x"),
        Node(layer(6, 20), (0,), (20,), "a"),
        Node(Relu(), (1,), (20,), "b"),
        Node(layer(20, 20), (2,), (20,), "c"),
        Node(Relu(), (3,), (20,), "d"),
        Node(layer(20, 3), (4,), (3,), "e"),
    )
    return Network(nodes)


def _images(network: Network, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, network.to(torch.float64)(x).argmax(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("norm", "expected"), [(1.0, 0.25), (2.0, 0.2), (math.inf, 1 / 7)])
def test_a_linear_network_has_the_textbook_radius(method: Method, norm: float, expected: float) -> None:
    found = certified_radii(
        _linear(), torch.zeros(1, 2), torch.tensor([0]), norm=norm, domain=None, search=Search(method, tol=1e-5, most=0.5)
    )
    assert expected - 1.1e-5 <= found.lower.item() <= expected
    assert found.finished.all()


@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("domain", [None, (0.0, 1.0)])
def test_searches_agree_and_the_secant_needs_far_fewer_calls(norm: float, domain: tuple[float, float] | None) -> None:
    network = _random()
    x, labels = _images(network)
    # Parallel planes: with adaptive ones the nearest plane may jump away as eps grows, and searches may end at different crossings.
    runs = {m: certified_radii(network, x, labels, norm=norm, domain=domain, engine=FastLin(), search=Search(m)) for m in METHODS}
    for run in runs.values():
        assert (run.lower - runs["bisection"].lower).abs().max() <= 1e-4
    calls = {m: run.calls.double().mean().item() for m, run in runs.items()}
    assert calls["pec"] <= calls["bisection"]
    assert calls["secant"] <= 0.5 * calls["bisection"]


@pytest.mark.parametrize("engine", [Crown(), FastLin()])
@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
def test_the_certificate_proves_the_radius_again(engine: Crown | FastLin, norm: float) -> None:
    network = _random(3)
    x, labels = _images(network)
    found = certified_radii(network, x, labels, norm=norm, engine=engine, search=Search(most=1.0))
    assert (found.lower > 0).any()
    assert (found.lower <= found.linearised_at).all()
    ball = LpBall(x, found.linearised_at.unsqueeze(1), norm, (0.0, 1.0))
    planes = engine(network, ball, class_margins(labels, 3).C).linear
    assert planes is not None
    # Other companions in a batch may round the planes elsewhere.
    inner = LpBall(x, (1 - 1e-6) * found.lower.unsqueeze(1), norm, (0.0, 1.0))
    certified = (planes.lower_b + inner.minimise(planes.lower_A) > 0).all(-1)
    assert (certified | (found.lower == 0)).all()


def test_no_point_within_the_radius_has_another_class() -> None:
    network = _random(5)
    x, labels = _images(network)
    found = certified_radii(network, x, labels, norm=2.0, search=Search(most=1.0))
    points = LpBall(x, found.lower.unsqueeze(1), 2.0, (0.0, 1.0)).sample(500, torch.Generator().manual_seed(2))
    classes = network.to(torch.float64)(points).argmax(-1)
    assert (classes == labels.unsqueeze(1)).all()


def test_a_misclassified_image_has_radius_zero_and_costs_nothing() -> None:
    network = _random()
    x, labels = _images(network)
    found = certified_radii(network, x, (labels + 1) % 3)
    assert (found.lower == 0).all()
    assert (found.calls == 0).all()


def test_time_runs_out_with_what_is_proven() -> None:
    network = _random()
    x, labels = _images(network)
    found = certified_radii(network, x, labels, search=Search(deadline=time.monotonic()))
    assert not found.finished.any()
    assert (found.lower == 0).all()


def test_errors_name_the_argument() -> None:
    with pytest.raises(SpecError, match="unknown search 'newton'"):
        Search("newton")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="tolerance"):
        Search(tol=1e-12)
    with pytest.raises(SpecError, match="tolerance must be finite"):
        Search(tol=math.inf)
    with pytest.raises(SpecError, match="largest radius"):
        Search(most=-1.0)
    with pytest.raises(SpecError, match="labels run from 0 to 2"):
        certified_radii(_random(), torch.zeros(1, 6), torch.tensor([3]))
    with pytest.raises(SpecError, match="no planes"):
        certified_radii(_random(), *_images(_random()), engine=Ibp())


def _task(network: Network, norm: float, engine: Crown | FastLin | Ibp, domain: tuple[float, float] | None = (0.0, 1.0)) -> Task:
    x, labels = _images(network, 3)
    return Task(network, x, labels, norm, domain, engine, Search(batch=16))


@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
def test_the_curve_has_two_phases_and_peaks_at_the_radius(norm: float) -> None:
    """Thesis Figure 3.6: all of eps up to the radius, then nothing by verdicts and the ever nearer plane by the envelope."""
    task = _task(_random(), norm, FastLin())
    (radius,) = certified_radii(_random(), task.images[1:2], task.labels[1:2], norm=norm, engine=FastLin(), search=Search(most=2.0)).lower
    eps = torch.linspace(0.0, 3.0, 41, dtype=torch.float64)[1:] * radius
    curve = certified_curve(task, eps, 1)
    proven = eps <= radius
    assert (curve.eps == eps).all()
    assert (curve.verdict[proven] == eps[proven]).all()
    assert (curve.verdict[eps > radius + 1e-4] == 0).all()
    assert (curve.envelope >= curve.verdict).all()
    beyond = curve.envelope[eps > radius + 1e-4]
    assert ((beyond > 0) & (beyond <= radius + 1e-4)).any()
    assert beyond[0] >= beyond[-1]


def test_the_curve_of_a_linear_network() -> None:
    task = Task(_linear(), torch.zeros(1, 2).double(), torch.tensor([0]), 2.0, None, Crown(), Search())
    curve = certified_curve(task, torch.tensor([0.1, 0.3]))
    assert curve.verdict.tolist() == [pytest.approx(0.1), 0.0]
    assert curve.envelope.tolist() == pytest.approx([0.1, 0.2], rel=1e-6)
    assert curve.envelope[1] <= 0.2


def test_the_curve_of_a_misclassified_image_is_flat() -> None:
    task = _task(_random(), math.inf, Crown())
    task.labels[0] = (task.labels[0] + 1) % 3
    assert (certified_curve(task, torch.linspace(0.01, 0.4, 5)).envelope == 0).all()


def test_curves_say_what_they_need() -> None:
    with pytest.raises(SpecError, match="positive and finite"):
        certified_curve(_task(_random(), math.inf, Crown()), torch.tensor([0.0, 0.1]))
    with pytest.raises(SpecError, match="no planes"):
        certified_curve(_task(_random(), math.inf, Ibp()), torch.tensor([0.1]))
