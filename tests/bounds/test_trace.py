"""What the forward sweep notes about nodes: centres, reaches, planes around centres, charges."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bounds.errors import NumericsError, ShapeError, TimeLimitError, UnsupportedOpError
from bounds.interval import Interval
from bounds.network import Network, Node
from bounds.ops.affine import Linear, Shift
from bounds.ops.base import Activation, Affine, Input, Op, Slopes
from bounds.ops.piecewise import Clip, Relu
from bounds.ops.shape import Reshape
from bounds.region import Box, Region
from bounds.trace import Trace
from tests.bounds.networks import ZOO, build, chain, regions


def swept(
    network: Network, region: Region, slopes: Slopes = "adaptive", dtype: torch.dtype = torch.float64, semantics: str = "real"
) -> Trace:
    """A trace after one sweep of interval propagation."""
    trace = Trace(network.to(dtype, "cpu"), region.to(dtype, "cpu"), semantics)  # type: ignore[arg-type]
    for index in range(len(network.nodes)):
        trace.visit(index, trace.propagate(index), slopes)
    return trace


def values_of(network: Network, region: Region, count: int = 40) -> list[Tensor]:
    x = region.sample(count, torch.Generator().manual_seed(0)).double()
    return [v.unflatten(0, (region.batch, count)) for v in network.to(torch.float64).values(x.flatten(0, 1))]


# ------------------------------------------------------------------------------------------------------------------------- by hand


def test_a_neuron_by_hand() -> None:
    """x in [-1, 3] and z = 2 x - 1 in [-3, 5], so the centre of x is 1 and that of z is 1.

    Adaptive planes of relu(z): z below, 5/8 (z + 3) above. At the centre these are 1 and 5/2: the node's centre is 1 and the gap 3/2.
    The values [0, 5] reach 4 from there.
    """
    network = chain((1,), Linear(torch.tensor([[2.0]]), torch.tensor([-1.0])), Relu())
    trace = swept(network, Box(torch.tensor([[-1.0]]), torch.tensor([[3.0]])))
    assert [float(trace.center[i]) for i in range(3)] == pytest.approx([1.0, 1.0, 1.0])
    assert [float(trace.reach[i]) for i in range(3)] == pytest.approx([2.0, 4.0, 4.0])
    planes = trace.planes[2]
    assert (float(planes.slope), float(planes.step), float(planes.gap)) == pytest.approx((1.0, -0.375, 1.5))
    assert planes.segments == ((0, 1),)
    assert not planes.parallel
    assert not trace.parallel


def test_parallel_planes_have_no_step() -> None:
    """Fast-Lin's planes of relu on [-1, 3]: 3/4 z and 3/4 z + 3/4; the centre is 3/4 and the gap 3/4."""
    trace = swept(chain((1,), Relu()), Box(torch.tensor([[-1.0]]), torch.tensor([[3.0]])), "parallel")
    planes = trace.planes[1]
    assert (float(planes.slope), float(planes.step), float(planes.gap)) == pytest.approx((0.75, 0.0, 0.75))
    assert planes.parallel
    assert trace.parallel


def test_stable_neurons_have_no_gap_and_cost_nothing() -> None:
    region = Box(torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0, -1.0]]))
    trace = swept(chain((2,), Relu()), region, dtype=torch.float32)
    assert trace.planes[1].gap.tolist() == [[0.0, 0.0]]
    assert trace.planes[1].slope.tolist() == [[1.0, 0.0]]
    assert trace.charge[1].tolist() == [[0.0, 0.0]]
    assert trace.center[1].tolist() == [[1.5, 0.0]]


def test_the_charge_of_a_layer_is_of_the_order_of_its_roundings() -> None:
    """z = W x with entries 1: gamma(outputs + 4) times the sum of the reaches, plus float64 roundings of the centres."""
    trace = swept(chain((3,), Linear(torch.ones(2, 3))), Box(torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 3.0]])), dtype=torch.float32)
    u = 2.0**-24
    for charge in trace.charge[1].flatten().tolist():
        assert 6 * u * 3 <= charge <= 1.2 * 6 * u * 3


def test_moves_carry_everything_along() -> None:
    network = chain((2, 3), Linear(torch.ones(3, 3)), Reshape((3, 2)))
    trace = swept(network, Box(torch.zeros(1, 2, 3), torch.rand(1, 2, 3)), dtype=torch.float32)
    for known in (trace.center, trace.reach, trace.charge):
        assert torch.equal(known[2], known[1].reshape(1, 3, 2))


# ----------------------------------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("slopes", ["adaptive", "parallel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reaches_and_planes_hold_for_all_values(dtype: torch.dtype, slopes: Slopes) -> None:
    for name, network in ZOO.items():
        region = regions(network, "box")
        trace = swept(network, region, slopes, dtype)
        values = values_of(network, region)
        for index, node in enumerate(network.nodes):
            deviation = values[index] - trace.center[index].unsqueeze(1)
            assert bool((deviation.abs() <= trace.reach[index].double().unsqueeze(1) + 1e-12).all()), (name, node.name)
            if not isinstance(node.op, Activation):
                continue
            planes, (source,) = trace.planes[index], node.inputs
            below = values[source] - trace.center[source].unsqueeze(1)

            def line(slope: Tensor, op: Activation = node.op, at: Tensor = below) -> Tensor:
                return op.gather((slope.double().unsqueeze(1) * at).flatten(0, 1)).unflatten(0, at.shape[:2])

            slack = 1e-12 if dtype == torch.float64 else 1e-6
            assert bool((deviation >= line(planes.slope) - slack).all()), (name, node.name)
            assert bool((deviation <= line(planes.slope + planes.step) + planes.gap.double().unsqueeze(1) + slack).all()), (name, node.name)
            assert bool((planes.gap >= 0).all())
            assert planes.parallel == (not bool(planes.step.any()))


def test_centres_of_affine_nodes_are_values_of_the_network() -> None:
    """Up to the first activation the reference run is the network itself at the region's origin."""
    for name in ("affine", "residual", "channels last", "conv transpose"):
        network = ZOO[name]
        region = regions(network, "l2")
        trace = swept(network, region)
        values = network.to(torch.float64).values(region.origin)
        for index, is_affine in enumerate(network.affine_in_input):
            if is_affine:
                assert torch.allclose(trace.center[index], values[index], rtol=1e-13, atol=1e-13)


def test_charges_are_float32_sized_in_float32_and_larger_for_any_order() -> None:
    for name in ("residual", "batch norm", "sigmoid"):
        network = ZOO[name]
        region = regions(network, "box")
        narrow, wide, any_order = (
            swept(network, region, dtype=dtype, semantics=semantics)
            for dtype, semantics in ((torch.float32, "real"), (torch.float64, "real"), (torch.float32, "float32-any-order"))
        )
        for index in range(1, len(network.nodes)):
            if isinstance(network.nodes[index].op, Reshape):
                continue
            assert float(wide.charge[index].max()) < 1e-11
            assert float(narrow.charge[index].max()) < 1e-3
            assert float(any_order.charge[index].max()) >= float(narrow.charge[index].max())
        assert float(any_order.charge[1].min()) > float(narrow.charge[1].min())


def test_narrow_and_anchor() -> None:
    network = chain((2,), Linear(torch.eye(2)), Relu())
    trace = swept(network, Box(-torch.ones(1, 2), torch.ones(1, 2)), dtype=torch.float32)
    charge = trace.charge[1]
    trace.narrow(1, Interval(torch.tensor([[-0.25, 0.0]]), torch.tensor([[0.5, 0.75]])))
    assert trace.reach[1].tolist() == [[pytest.approx(0.5), pytest.approx(0.75)]]
    assert torch.equal(trace.charge[1], charge)
    assert trace.interval(1).upper.tolist() == [[0.5, 0.75]]
    trace.anchor(2, Interval(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 4.0]])))
    assert trace.center[2].tolist() == [[0.5, 2.5]]
    assert trace.reach[2].tolist() == [[pytest.approx(0.5), pytest.approx(1.5)]]
    assert trace.charge[2].tolist() == [[0.0, 0.0]]


def test_known_intervals_away_from_the_centre_still_reach_it() -> None:
    """An interval that does not hold the centre: deviations are counted from the centre all the same."""
    network = chain((1,), Linear(torch.eye(1)))
    trace = Trace(network, Box(torch.tensor([[-1.0]]), torch.tensor([[1.0]])))
    trace.visit(0, trace.propagate(0), "adaptive")
    trace.visit(1, Interval(torch.tensor([[0.5]]), torch.tensor([[1.0]])), "adaptive")
    assert float(trace.reach[1]) == pytest.approx(1.0)
    trace.narrow(1, Interval(torch.tensor([[-1.0]]), torch.tensor([[-0.5]])))
    assert float(trace.reach[1]) == pytest.approx(1.0)


# --------------------------------------------------------------------------------------------------------------------------- errors


def test_a_region_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"reads inputs of shape \(2,\), the region has shape \(3,\)"):
        Trace(chain((2,), Relu()), Box(torch.zeros(1, 3), torch.ones(1, 3)))


def test_nodes_must_be_visited_in_order() -> None:
    trace = Trace(chain((2,), Relu(), Clip(0.0, 1.0)), Box(torch.zeros(1, 2), torch.ones(1, 2)))
    with pytest.raises(UnsupportedOpError, match="node 'input' was used before it was bounded"):
        trace.propagate(1)


@dataclass(frozen=True, eq=False)
class Mystery(Op):
    """Of no family."""

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0]

    def interval(self, *xs: Interval) -> Interval:
        return xs[0]


def test_an_op_of_no_family_is_named() -> None:
    network = Network((Node(Input(), (), (2,), "x"), Node(Mystery(), (0,), (2,), "puzzle")))
    with pytest.raises(UnsupportedOpError, match="node 'puzzle': no engine knows how to bound the family of Mystery"):
        swept(network, Box(torch.zeros(1, 2), torch.ones(1, 2)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bounds_that_are_no_numbers_name_the_node(bad: float) -> None:
    trace = Trace(chain((2,), Shift(torch.zeros(2))), Box(torch.zeros(1, 2), torch.ones(1, 2)))
    for interval in (
        Interval(torch.tensor([[0.0, bad]]), torch.ones(1, 2)),
        Interval(torch.zeros(1, 2), torch.tensor([[bad, 1.0]])),
        Interval(torch.tensor([[bad, 0.0]]), torch.tensor([[bad, 0.0]])),
    ):
        with pytest.raises(NumericsError, match="node 'Shift_1': a bound is NaN or infinite"):
            trace.visit(1, interval, "adaptive")


def test_wide_finite_bounds_are_no_error() -> None:
    """The difference of two finite bounds may overflow."""
    trace = Trace(chain((1,), Shift(torch.zeros(1))), Box(torch.zeros(1, 1), torch.ones(1, 1)))
    trace.record(1, Interval(torch.tensor([[-3e38]]), torch.tensor([[3e38]])))
    assert trace.interval(1).upper.item() == pytest.approx(3e38)


def test_deadline() -> None:
    network, region = chain((1,), Relu()), Box(torch.zeros(1, 1), torch.ones(1, 1))
    Trace(network, region).check_time()
    Trace(network, region, deadline=time.monotonic() + 60).check_time()
    with pytest.raises(TimeLimitError, match="while bounds were computed"):
        Trace(network, region, deadline=time.monotonic() - 1).check_time()


def test_affine_families_are_affine() -> None:
    """`affine_in_input` decides where a ball keeps its dual norm."""
    network = build((2,), (Linear(torch.eye(2)), (0,)), (Relu(), (1,)), (Linear(torch.eye(2)), (2,)), (Linear(torch.eye(2)), (1,)))
    assert network.affine_in_input == (True, True, False, False, True)
    assert all(isinstance(network.nodes[i].op, Affine) for i in (1, 3, 4))
