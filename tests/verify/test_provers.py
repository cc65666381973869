"""Bound methods over images: margins and radii are those of the engines, and radii are certificates."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.crown import Crown, FastLin
from bounds.engine import Bounds
from bounds.envelope import distances
from bounds.errors import SpecError
from bounds.network import Network
from bounds.region import LpBall
from verify import provers as module
from verify.attack import Pgd
from verify.provers import ENGINES, LINEAR, Prover
from verify.spec import class_margins

CASES = [
    *(("ibp-planes", 2.0, 0.1), ("fastlin", 1.0, 0.2), ("fastlin", 2.0, 0.25), ("crown", 1.0, 0.3), ("crown", 2.0, 0.15)),
    *((name, math.inf, 0.05) for name in LINEAR),
]
"""A method, a norm, and a radius at which some of the demo's images are certified in part."""


@pytest.fixture(scope="module")
def demo(root: Path) -> tuple[Network, Tensor, Tensor]:
    stored = np.load(root / "demo" / "images.npz")
    network = Network.from_onnx(root / "demo" / "network.onnx")
    images = torch.from_numpy(stored["images"].astype(np.float32) / np.float32(255)).reshape(-1, *network.input_shape)
    labels = torch.from_numpy(stored["labels"].astype(np.int64))
    right = network(images).flatten(1).argmax(1) == labels
    return network, images[right], labels[right]


def ball(images: Tensor, norm: float = math.inf, eps: float = 0.05) -> LpBall:
    return LpBall(images, eps, norm, (0.0, 1.0))


@pytest.mark.parametrize(("name", "norm", "eps"), CASES)
def test_radii_are_certificates(demo: tuple[Network, Tensor, Tensor], name: str, norm: float, eps: float) -> None:
    """Images are proven on their ball exactly where the radius is eps, and no attack finds anything within a radius."""
    network, images, labels = demo
    found = Prover(name)(network, ball(images, norm, eps), labels, radii=True)
    assert found.radii is not None
    assert torch.equal(found.radii == eps, found.margins > 0)
    assert ((found.radii > 0) & (found.radii < eps)).any()
    inside = (found.radii > 0).nonzero().flatten()
    closed = LpBall(images[inside], found.radii[inside], norm, (0.0, 1.0))
    goal = class_margins(labels[inside], network.outputs)
    assert not Pgd(20, 2)(network, closed, goal).found.any()


@pytest.mark.parametrize(("norm", "eps"), [(2.0, 0.25), (math.inf, 0.05)])
def test_radii_are_the_distances_of_the_engine_s_planes(demo: tuple[Network, Tensor, Tensor], norm: float, eps: float) -> None:
    network, images, labels = demo
    region = ball(images, norm, eps)
    planes = FastLin()(network, region, class_margins(labels, network.outputs).C).linear
    assert planes is not None
    nearest = distances(planes, region).amin(-1)
    found = Prover("fastlin")(network, region, labels, radii=True)
    assert found.radii is not None
    open_ = found.margins <= 0
    assert open_.any()
    assert torch.allclose(found.radii[open_], nearest[open_].clamp(max=eps), rtol=5e-3, atol=1e-6)
    assert (found.radii[open_] >= nearest[open_].clamp(max=eps) * (1 - 1e-9) - 1e-12).all()


def test_alpha_works_on_open_images_only_and_never_proves_less(
    demo: tuple[Network, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bounds.alpha import AlphaCrown

    network, images, labels = demo
    seen: list[int] = []
    call = AlphaCrown.__call__

    def counting(self: AlphaCrown, network: Network, region: LpBall, *rest: Tensor) -> Bounds:
        seen.append(region.batch)
        return call(self, network, region, *rest)

    monkeypatch.setattr(AlphaCrown, "__call__", counting)
    region = ball(images)
    plain, better = (Prover(name)(network, region, labels, radii=True) for name in ("crown", "alpha"))
    assert seen[0] == int((plain.margins <= 0).sum()) < len(labels)
    assert (better.margins >= plain.margins).all()
    assert plain.radii is not None
    assert better.radii is not None
    assert (better.radii >= plain.radii).all()
    assert (better.radii > plain.radii).any()


def test_a_method_without_planes_has_no_radii(demo: tuple[Network, Tensor, Tensor]) -> None:
    network, images, labels = demo
    with pytest.raises(SpecError, match="Ibp gives no planes; radii need a method that does"):
        Prover("ibp")(network, ball(images), labels, radii=True)
    assert Prover("ibp")(network, ball(images), labels).radii is None


def test_images_are_worked_on_in_groups(demo: tuple[Network, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    network, images, labels = demo
    whole = Prover("crown")(network, ball(images), labels, radii=True)
    monkeypatch.setattr(module, "_GROUP", 3)
    parts = Prover("crown")(network, ball(images), labels, radii=True)
    assert whole.radii is not None
    assert parts.radii is not None
    assert torch.allclose(whole.margins, parts.margins, atol=1e-4)
    assert torch.allclose(whole.radii, parts.radii, atol=1e-6)


def test_every_method_has_an_engine() -> None:
    for name in ENGINES:
        engine = Prover(name, deadline=None)._engine(name, torch.float64)
        assert callable(engine)
    assert isinstance(Prover("crown")._engine("crown", torch.float32), Crown)
