"""Leaving out inactive neurons changes no verdict, no program and no counterexample."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from bounds.crown import Crown
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.ops.piecewise import Relu
from bounds.shrink import size
from milp.encode import encode
from milp.program import Limits
from milp.solvers import get_solver
from tests.bounds.networks import Draw, chain, convolutional, fully_connected
from verify.reduce import Reduce
from verify.run import default_stages, verify
from verify.spec import Specification, robustness
from verify.stages import Bound, Exact, Options, Query
from verify.stages import informed as with_bounds
from verify.verdict import Falsified, Verified, original_of


def wide(seed: int) -> Network:
    """Half of the first layer is inactive wherever the questions below look."""
    net = fully_connected(Relu(), seed=seed, widths=(4, 24, 16, 3))
    first = net.nodes[1].op
    assert isinstance(first, Linear)
    assert first.offset is not None
    first.offset[::2] -= 9.0
    return net


def question(network: Network, seed: int, eps: float) -> Specification:
    x = torch.rand(network.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    label = int(network.to(torch.float64)(x[None]).argmax())
    return robustness(x, label, eps, norm=float("inf"), outputs=network.outputs)


def informed(network: Network, eps: float) -> Query:
    """A query that CROWN has bounded the neurons of, decided or not."""
    query = Query.of(network, question(network, 0, eps), Options())
    return with_bounds(query, Crown(torch.float64)(network, query.specification.region, query.goal.C))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eps", [0.1, 0.4])
def test_verdicts_are_the_same(seed: int, eps: float) -> None:
    network = wide(seed)
    asked = question(network, seed, eps)
    crown = Bound("crown", lambda dtype, _: Crown(dtype))
    plain = verify(network, asked, stages=(crown, Exact("highs"))).verdict
    reduced = verify(network, asked, stages=(crown, Reduce(0.0), Exact("highs"))).verdict
    assert type(plain) is type(reduced)
    assert isinstance(plain, Verified | Falsified)
    if isinstance(reduced, Falsified):
        y = original_of(network)(reduced.x[None])
        assert np.array_equal(y[0], reduced.y)


def test_the_network_gets_smaller_and_keeps_its_original() -> None:
    query = informed(wide(1), 0.4)
    small = Reduce()(query)
    assert isinstance(small, Query)
    assert size(small.network).activations <= size(query.network).activations - 12
    assert original_of(small.network) is not original_of(query.network) or query.network.original is not None
    x = np.full((1, 4), 5.0, dtype=np.float32)  # far outside: the smaller network differs there, its original does not
    assert np.array_equal(original_of(small.network)(x), original_of(query.network)(x))
    assert {i: tuple(b.lower.shape[1:]) for i, b in small.intervals.items()} == {i: small.network.nodes[i].shape for i in small.intervals}


def test_programs_have_the_same_binaries_and_optimum() -> None:
    """The encoder leaves inactive neurons out by itself: the stage takes nothing more away from programs, and nothing that matters."""
    query = informed(wide(1), 0.4)
    small = Reduce(0.0)(query)
    assert isinstance(small, Query)
    region, unsafe = query.specification.region, query.specification.unsafe[0]
    first, second = (encode(q.network, region, unsafe, q.intervals).program for q in (query, small))
    assert first.integer.sum() == second.integer.sum() > 0
    assert abs(first.columns - second.columns) <= 0.1 * first.columns
    optima = [get_solver("highs").solve(program, Limits()).objective for program in (first, second)]
    assert optima[0] == pytest.approx(optima[1], abs=1e-5)


def test_when_it_is_left_out() -> None:
    network = wide(1)
    query = informed(network, 0.4)
    assert Reduce(0.99)(query) is query
    late = Query.of(network, query.specification, Options(time.monotonic() + 9, semantics="float32-any-order"))
    assert "real arithmetic only" in str(Reduce().skips(late))
    assert Reduce()(late) is late
    assert Reduce().skips(Query.of(network, query.specification, Options())) == "no engine has bounded the neurons"
    conv = informed(convolutional(), 0.01)
    assert isinstance(Reduce(0.0)(conv), Query)


def test_it_is_always_on_before_programs() -> None:
    names = [stage.name for stage in default_stages()]
    assert names.index("reduce") < names.index("milp")
    assert names.index("reduce") > names.index("alpha")


def test_planted_error_a_neuron_called_inactive_that_is_not_changes_the_verdict() -> None:
    """With intervals that are wrong the smaller network is another one; the replay still keeps counterexamples honest."""
    network = chain((2,), Linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2)), Relu(), Draw(1).dense(2, 2))
    query = informed(network, 0.3)
    wrong = dict(query.intervals)
    wrong[1] = type(wrong[1])(wrong[1].lower - 9, wrong[1].upper - 9)
    small = Reduce(0.0)(Query(network, query.specification, query.options, query.lower, query.closed, wrong))
    assert isinstance(small, Query)
    x = torch.full((1, 2), 0.5)
    assert not torch.allclose(small.network(x), network(x))
    assert np.array_equal(original_of(small.network)(x.numpy()), original_of(network)(x.numpy()))
