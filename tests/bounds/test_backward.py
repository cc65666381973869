"""The backward walk: what it returns by hand, how it cuts its work into chunks, and which rows it walks."""

from __future__ import annotations

import math

import pytest
import torch

from bounds import backward
from bounds.backward import bound_node, bound_objective, bound_tail
from bounds.crown import Crown
from bounds.engine import elements
from bounds.errors import MemoryLimitError, TimeLimitError, UnsupportedOpError
from bounds.network import Network
from bounds.ops.affine import AddBranches, Linear
from bounds.ops.piecewise import Relu
from bounds.region import Box, LpBall
from bounds.trace import Trace
from tests.bounds.networks import ZOO, build, chain, regions
from tests.bounds.test_trace import swept

PLENTY = elements(2048, torch.float64)


def diamond() -> Network:
    """y = relu(x) + x: two paths that meet again."""
    return build((1,), (Linear(torch.eye(1)), (0,)), (Relu(), (1,)), (AddBranches(), (2, 1)))


# ------------------------------------------------------------------------------------------------------------------------- by hand


def test_two_paths_are_added_up() -> None:
    """y = relu(x) + x on [-1, 3]: x + x below (adaptive), 3/4 (x + 1) + x above."""
    trace = swept(diamond(), Box(torch.tensor([[-1.0]]), torch.tensor([[3.0]])))
    linear, found = bound_objective(trace, torch.ones(1, 1, 1, dtype=torch.float64), PLENTY)
    assert (linear.lower_A.item(), linear.upper_A.item()) == pytest.approx((2.0, 1.75))
    assert (linear.lower_b.item(), linear.upper_b.item()) == pytest.approx((0.0, 0.75), abs=1e-12)
    assert (found.lower.item(), found.upper.item()) == pytest.approx((-2.0, 6.0))


def test_a_row_and_its_negative() -> None:
    """Rows (1) and (-1) of one objective have mirrored planes."""
    trace = swept(ZOO["leaky"], regions(ZOO["leaky"], "l2 domain"))
    row = torch.tensor([[[2.0, -1.0]]], dtype=torch.float64).expand(3, 1, 2)
    there, back = (bound_objective(trace, C, PLENTY)[0] for C in (row, -row))
    assert torch.allclose(there.lower_A, -back.upper_A)
    assert torch.allclose(there.upper_A, -back.lower_A)
    assert torch.allclose(there.lower_b, -back.upper_b, atol=1e-12)


def test_parallel_planes_share_their_coefficients() -> None:
    trace = swept(ZOO["leaky"], regions(ZOO["leaky"], "box"), "parallel")
    linear, _ = bound_objective(trace, torch.eye(2, dtype=torch.float64).expand(3, 2, 2), PLENTY)
    assert torch.equal(linear.lower_A, linear.upper_A)
    assert bool((linear.upper_b[:2] > linear.lower_b[:2]).all())


def test_rows_that_do_not_depend_on_the_input() -> None:
    network = chain((2,), Linear(torch.zeros(1, 2), torch.tensor([0.75])), Relu())
    linear, found = bound_objective(swept(network, Box(-torch.ones(1, 2), torch.ones(1, 2))), torch.ones(1, 1, 1).double(), PLENTY)
    assert linear.lower_A.tolist() == [[[0.0, 0.0]]]
    assert (found.lower.item(), found.upper.item()) == pytest.approx((0.75, 0.75), abs=1e-12)


def test_an_objective_without_rows() -> None:
    linear, found = bound_objective(swept(diamond(), Box(torch.zeros(1, 1), torch.ones(1, 1))), torch.zeros(1, 0, 1).double(), PLENTY)
    assert found.lower.shape == (1, 0)
    assert linear.lower_A.shape == (1, 0, 1)


def test_tail_stops_at_activations() -> None:
    """y = 2 relu(x) - 1 with relu(x) in [0, 3]: by interval [-1, 5], whatever planes relu has."""
    network = chain((1,), Relu(), Linear(torch.tensor([[2.0]]), torch.tensor([-1.0])))
    trace = Trace(network.to(torch.float64), Box(torch.tensor([[-1.0]]), torch.tensor([[3.0]])).to(torch.float64))
    for index in range(2):
        trace.anchor(index, trace.propagate(index))
    trace.visit(2, trace.propagate(2), "adaptive")
    found = bound_tail(trace, torch.ones(1, 1, 1, dtype=torch.float64))
    assert (found.lower.item(), found.upper.item()) == pytest.approx((-1.0, 5.0), abs=1e-12)


# --------------------------------------------------------------------------------------------------------------------- hidden nodes


@pytest.mark.parametrize("kind", ["box", "l1", "l2 domain"])
@pytest.mark.parametrize("slopes", ["adaptive", "parallel"])
def test_hidden_intervals_are_those_of_the_node_as_an_output(slopes: str, kind: str) -> None:
    """Walking rows of a hidden node gives what the objective of the network cut off there gives."""
    for name in ("relu", "residual", "max pool", "branches", "sigmoid"):
        network = ZOO[name]
        trace = swept(network, regions(network, kind), slopes)  # type: ignore[arg-type]
        index = network.preactivations[-1]
        everything = torch.ones_like(trace.interval(index).lower, dtype=torch.bool)
        found = bound_node(trace, index, everything, PLENTY)
        cut = Network(network.nodes[: index + 1])
        whole = swept(cut, regions(network, kind), slopes)  # type: ignore[arg-type]
        C = torch.eye(cut.outputs, dtype=torch.float64).expand(3, -1, -1).unflatten(2, cut.output_shape)
        _, wanted = bound_objective(whole, C, PLENTY)
        assert torch.allclose(found.lower.flatten(1), wanted.lower, rtol=1e-11, atol=1e-11), name
        assert torch.allclose(found.upper.flatten(1), wanted.upper, rtol=1e-11, atol=1e-11), name


def test_elements_that_are_not_wanted_keep_their_interval() -> None:
    network = ZOO["relu"]
    trace = swept(network, regions(network, "box"))
    index = network.preactivations[-1]
    before = trace.interval(index)
    wanted = torch.zeros_like(before.lower, dtype=torch.bool)
    wanted[0, 1] = wanted[1, 2] = True
    found = bound_node(trace, index, wanted, PLENTY)
    assert torch.equal(found.lower[~wanted], before.lower[~wanted])
    assert torch.equal(found.upper[~wanted], before.upper[~wanted])
    assert bool((found.lower[wanted] != before.lower[wanted]).all())
    nothing = bound_node(trace, index, torch.zeros_like(wanted), PLENTY)
    assert torch.equal(nothing.lower, before.lower)


@pytest.mark.parametrize("name", ["relu", "residual", "convolutional", "max pool", "branches", "sigmoid"])
def test_lower_bounds_of_elements_that_are_settled_from_above_are_not_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second walk changes no bound that an activation could notice, and nothing about the output."""
    network, engine = ZOO[name], Crown(dtype=torch.float64)
    region = regions(network, "box")
    monkeypatch.setattr(backward, "_WORTH_A_WALK", 10**9)
    once = engine(network, region)
    monkeypatch.setattr(backward, "_WORTH_A_WALK", 0)
    twice = engine(network, region)
    assert torch.allclose(once.objective.lower, twice.objective.lower, rtol=1e-9, atol=1e-9)
    assert torch.allclose(once.objective.upper, twice.objective.upper, rtol=1e-9, atol=1e-9)
    for one, two in zip(once.intervals, twice.intervals, strict=True):
        assert torch.allclose(one.upper, two.upper, rtol=1e-9, atol=1e-9)
        assert bool(((two.lower - one.lower).abs() <= 1e-9)[one.upper > 0].all())


def test_a_settled_element_keeps_its_propagated_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """h = relu(x), k = relu(x + 1) on [-1, 1]. h - k - 0.5 is at most -0.5, so that its lower bound -2.5 by intervals will do;
    k - h - 1 is at most 1 by its planes, and its lower bound is raised from -2 to -1."""
    rows = Linear(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.tensor([-0.5, -1.0]))
    network = chain((1,), Linear(torch.ones(2, 1), torch.tensor([0.0, 1.0])), Relu(), rows, Relu())
    monkeypatch.setattr(backward, "_WORTH_A_WALK", 0)
    hidden = Crown()(network, Box(torch.tensor([[-1.0]]), torch.tensor([[1.0]]))).intervals[3]
    assert hidden.upper[0].tolist() == pytest.approx([-0.5, 1.0], abs=1e-5)
    assert hidden.lower[0].tolist() == pytest.approx([-2.5, -1.0], abs=1e-5)


# --------------------------------------------------------------------------------------------------------------------------- limits


def test_memory_and_time_limits() -> None:
    network = ZOO["convolutional"]
    trace = swept(network, regions(network, "box"))
    index = network.preactivations[-1]
    everything = torch.ones_like(trace.interval(index).lower, dtype=torch.bool)
    widest = max(math.prod(node.shape) for node in network.nodes)
    assert bound_node(trace, index, everything, widest).is_finite()
    with pytest.raises(MemoryLimitError, match=f"one row of coefficients needs {widest} elements, the limit allows {widest - 1}"):
        bound_node(trace, index, everything, widest - 1)
    trace.deadline = 0.0
    with pytest.raises(TimeLimitError):
        bound_node(trace, index, everything, PLENTY)


def test_walking_through_a_node_that_was_not_relaxed() -> None:
    network = chain((1,), Linear(torch.eye(1)), Relu(), Linear(torch.eye(1)))
    trace = swept(network, Box(torch.zeros(1, 1), torch.ones(1, 1)))
    del trace.planes[2]
    with pytest.raises(UnsupportedOpError, match="node 'Relu_2' was walked through before it was relaxed"):
        bound_objective(trace, torch.ones(1, 1, 1, dtype=torch.float64), PLENTY)


def test_regions_of_a_batch_may_be_walked_in_groups() -> None:
    """The subset of images is threaded through planes, charges, regions and centres."""
    network = ZOO["residual"]
    ball = regions(network, "l1 domain")
    assert isinstance(ball, LpBall)
    trace = swept(network, ball)
    C = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    whole = bound_objective(trace, C, PLENTY)
    widest = max(math.prod(node.shape) for node in network.nodes)
    parts = bound_objective(trace, C, 2 * 2 * widest)  # two rows at a time: one image each
    for one, other in ((whole[1].lower, parts[1].lower), (whole[1].upper, parts[1].upper), (whole[0].lower_A, parts[0].lower_A)):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-11)
