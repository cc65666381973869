"""A sweep that leaves out inactive elements finds the bounds of one that does not, and tells the intervals of the whole network."""

from __future__ import annotations

import pytest
import torch

from bounds import sweep
from bounds.alpha import AlphaCrown
from bounds.crown import Crown, CrownIbp, FastLin
from bounds.engine import Bounds
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.piecewise import Relu
from bounds.region import Box, LpBall, Region
from bounds.trace import Trace
from tests.bounds.networks import convolutional, fully_connected, residual
from tests.bounds.test_shrink import dead_channels, forked, scaled, shifted

ENGINES = [Crown, FastLin, CrownIbp, AlphaCrown]


def layers() -> Network:
    return fully_connected(Relu(), seed=3, widths=(12, 40, 40, 40, 3))


NETWORKS = [layers, scaled, shifted, dead_channels, forked, convolutional, residual]


def ball(network: Network, radius: float, batch: int = 3) -> LpBall:
    center = torch.rand((batch, *network.input_shape), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return LpBall(center, torch.tensor(radius, dtype=torch.float64))


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every layer is cut that can be; how many elements each cut left."""
    found: list[int] = []
    leave_out = Trace.leave_out

    def counted(self: Trace, cut) -> None:  # type: ignore[no-untyped-def]
        found.append(cut.left.numel())
        leave_out(self, cut)

    monkeypatch.setattr(Trace, "leave_out", counted)
    return found


def limits(monkeypatch: pytest.MonkeyPatch, *, always: bool) -> None:
    monkeypatch.setattr(sweep, "_WORTH_A_CUT", 0 if always else 2**62)
    monkeypatch.setattr(sweep, "_LEAST", 0.0)


def assert_alike(first: Bounds, second: Bounds) -> None:
    for a, b in zip((*first.intervals, first.objective), (*second.intervals, second.objective), strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a.lower, b.lower, rtol=1e-9, atol=1e-9)
        assert torch.allclose(a.upper, b.upper, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("engine", ENGINES)
def test_bounds_are_those_without_cuts(make, engine, cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    network = make().to(torch.float64)
    region = ball(network, 0.02)
    limits(monkeypatch, always=False)
    whole = engine(torch.float64)(network, region)
    assert not cuts
    limits(monkeypatch, always=True)
    assert_alike(engine(torch.float64)(network, region), whole)
    assert bool(cuts) == (make not in (shifted, convolutional)), make.__name__


def test_values_lie_in_the_intervals_of_the_whole_network(cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, always=True)
    network = layers()
    region = ball(network, 0.05)
    bounds = Crown()(network, region)
    assert cuts
    x = region.sample(200, torch.Generator().manual_seed(5))
    for index, values in enumerate(network.to(torch.float64).values(x.flatten(0, 1))):
        interval = bounds.intervals[index].to(torch.float64)
        inside = values.unflatten(0, (3, 200))
        assert bool((inside >= interval.lower.unsqueeze(1)).all())
        assert bool((inside <= interval.upper.unsqueeze(1)).all())


def test_what_is_known_is_used_where_elements_have_left(cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, always=True)
    network = layers().to(torch.float64)
    region = ball(network, 0.3, batch=1)
    first = Crown(torch.float64)(network, region)
    tighter = {
        i: Interval(v.lower * 0.5 + v.upper * 0.5 - 0.3 * v.width, v.upper * 0.9 + v.lower * 0.1) for i, v in enumerate(first.intervals)
    }
    del tighter[0]
    cut, left = Crown(torch.float64)(network, region, known=tighter), len(cuts)
    limits(monkeypatch, always=False)
    assert_alike(cut, Crown(torch.float64)(network, region, known=tighter))
    assert left > 0


def test_regions_keep_what_is_alive_in_any_of_them(cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, always=True)
    network = layers().to(torch.float64)
    apart: Region = Box(*(torch.stack([torch.full((12,), -3.0 + s), torch.full((12,), 2.9 + s)]).to(torch.float64) for s in (0.0, 0.1)))
    together = Crown(torch.float64)(network, apart)
    one = Crown(torch.float64)(network, apart.select(torch.tensor([1])))
    assert torch.allclose(together.objective.lower[1], one.objective.lower[0], rtol=1e-9)
    assert cuts


def test_float32_executions_are_bounded_on_the_whole_network(cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, always=True)
    network = layers()
    Crown(semantics="float32-any-order")(network, ball(network, 0.02))
    assert not cuts


def test_small_gains_leave_the_network_as_it_is(cuts: list[int]) -> None:
    network = layers()
    Crown()(network, ball(network, 0.02))
    assert not cuts


def test_large_maps_are_not_copied(cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, always=True)
    monkeypatch.setattr(sweep, "_MOST_COPIED", 10)
    network = layers()
    Crown()(network, ball(network, 0.02))
    assert not cuts
