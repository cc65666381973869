"""Where tensors live, without a GPU: engines, stages, searches and attacks on a device that only pretends to be one (see pretend_cuda.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from bounds.alpha import AlphaCrown
from bounds.crown import Crown, CrownIbp, FastLin
from bounds.engine import BoundEngine
from bounds.envelope import certified_radius as envelope_radius
from bounds.ibp import Ibp
from bounds.ibp_planes import IbpPlanes
from bounds.linear import Halfspaces, LinearBounds
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.ops.piecewise import Relu
from bounds.region import Box, LpBall
from tests.bounds.networks import ZOO, chain, fully_connected, regions
from tests.pretend_cuda import Pretend, pretend_cuda
from verify.bisection import SplitInput
from verify.branch import SplitNeurons
from verify.evaluate import Limits as EvaluationLimits
from verify.evaluate import Settings, evaluate_chunk
from verify.minimal import MinimalNorm
from verify.radius import Limits, certified_radius
from verify.run import verify
from verify.spec import Specification
from verify.stages import Bound, Stage
from verify.verdict import Falsified, Verified

ENGINES: tuple[Callable[..., BoundEngine], ...] = (Ibp, Crown, FastLin, CrownIbp, partial(AlphaCrown, steps=2), IbpPlanes)
NETS = ("relu", "tanh", "convolutional", "residual", "max pool", "attention")


def test_the_pretence_is_as_strict_as_a_gpu() -> None:
    with pretend_cuda():
        x = torch.ones(3, device="cuda")
        assert isinstance(x * 2, Pretend)
        assert (x * 2).device.type == "cuda"
        assert not isinstance(x.cpu(), Pretend)
        assert x.cpu().numpy().tolist() == [1.0, 1.0, 1.0]
        assert x[torch.tensor([0])].tolist() == [1.0]
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3)[x.long()]
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()


def test_the_envelope_reads_planes_that_stay_on_the_device() -> None:
    network, x = ZOO["relu"], torch.full((2, *ZOO["relu"].input_shape), 0.5)
    ball = LpBall(x, 2.0, math.inf, (0.0, 1.0))
    found = Crown()(network, ball)
    lower, expected = found.objective.lower, envelope_radius(found.linear, ball, found.objective.lower)  # type: ignore[arg-type]
    with pretend_cuda():
        there = LinearBounds(*(getattr(found.linear, name).to("cuda") for name in ("lower_A", "lower_b", "upper_A", "upper_b")))
        assert torch.equal(envelope_radius(there, ball, lower), expected)


@pytest.mark.parametrize("kind", ["box", "l2 domain"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("engine", ENGINES, ids=["ibp", "crown", "fastlin", "crown-ibp", "alpha", "ibp-planes"])
def test_engines(engine: Callable[..., BoundEngine], name: str, kind: str) -> None:
    network = ZOO[name]
    region = regions(network, kind)
    here = engine()(network, region)
    with pretend_cuda():
        there = engine(device="cuda")(network, region)
        assert isinstance(there.objective.lower, Pretend)
        lower, upper = there.objective.lower.cpu(), there.objective.upper.cpu()
    assert torch.equal(lower, here.objective.lower)
    assert torch.equal(upper, here.objective.upper)


CROWN = Bound("crown", lambda dtype, options: Crown(dtype, options.device))


@pytest.mark.parametrize("stages", [None, (CROWN, SplitNeurons()), (CROWN, SplitInput())], ids=["default", "neurons", "inputs"])
@pytest.mark.parametrize("threshold, kind", [(-0.26, Verified), (-0.24, Falsified)])
def test_verdicts(stages: tuple[Stage, ...] | None, threshold: float, kind: type) -> None:
    """|x| + |y| - 0.25 is at least -0.25."""
    first = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    network = chain((2,), Linear(first, torch.zeros(4)), Relu(), Linear(torch.ones(1, 4), torch.tensor([-0.25])))
    unsafe = Halfspaces(torch.ones(1, 1, dtype=torch.float64), torch.tensor([threshold], dtype=torch.float64))
    question = Specification(Box(-torch.ones(1, 2), torch.ones(1, 2)), (unsafe,))
    with pretend_cuda():
        assert isinstance(verify(network, question, device="cuda", stages=stages).verdict, kind)


def classifier() -> tuple[Network, torch.Tensor, torch.Tensor]:
    """A small classifier, three images and what it says of them."""
    network = fully_connected(Relu(), Relu(), widths=(5, 8, 6, 3))
    x = torch.rand(3, 5, generator=torch.Generator().manual_seed(4))
    return network, x, network(x).argmax(1)


@pytest.mark.parametrize("method", ["pec", "alpha"])
def test_radii(method: str) -> None:
    network, x, labels = classifier()
    found = {}
    for device in ("cpu", "cuda"):
        with pretend_cuda():
            limits = Limits(device=device, attack=MinimalNorm(steps=3, restarts=1))
            radii = certified_radius(network, x[:1], labels[:1], norm=math.inf, method=method, tol=0.05, limits=limits)  # type: ignore[arg-type]
            found[device] = [(radius.lower, radius.upper) for radius in radii]
    assert found["cpu"] == found["cuda"]


def test_evaluation() -> None:
    network, x, labels = classifier()
    settings = Settings(0.02, math.inf, True, ("ibp", "fastlin", "crown", "pec", "pgd"))
    found = {}
    for device in ("cpu", "cuda"):
        with pretend_cuda():
            found[device] = evaluate_chunk(network, x.numpy(), labels.numpy(), settings, EvaluationLimits(device=device))
    assert str(replace(found["cpu"], seconds={})) == str(replace(found["cuda"], seconds={}))
