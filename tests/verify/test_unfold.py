"""Maxima as ReLUs and products as squares: questions that their own bounds leave open are decided, and verdicts stay what programs say they are."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from bounds.crown import Crown
from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.ops.bilinear import Multiply
from bounds.ops.piecewise import MaxReduce, Relu
from bounds.ops.shape import Reshape
from bounds.region import Box
from tests.bounds.networks import build, chain, fully_connected
from verify.branch import SplitNeurons
from verify.run import default_stages, verify
from verify.spec import Specification, robustness
from verify.stages import Bound, Exact, Options, Query
from verify.unfold import Unfold
from verify.verdict import Falsified, Unknown, Verified, original_of

CROWN = Bound("crown", lambda dtype, options: Crown(dtype, deadline=options.deadline))


def pooled(seed: int) -> Network:
    """Maxima of four between two linear maps and a layer of ReLUs."""
    rng = torch.Generator().manual_seed(seed)
    first, second, third = (torch.randn(m, n, generator=rng) / n**0.5 for m, n in ((24, 4), (10, 6), (3, 10)))
    return chain(
        (4,), Linear(first, torch.randn(24, generator=rng) / 2), Reshape((6, 4)), MaxReduce(), Linear(second), Relu(), Linear(third)
    )


def question(network: Network, seed: int, eps: float) -> Specification:
    x = torch.rand(network.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    label = int(network.to(torch.float64)(x[None]).argmax())
    return robustness(x, label, eps, norm=float("inf"), outputs=network.outputs, domain=None)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eps", [0.1, 0.25, 0.5])
def test_branching_agrees_with_programs(seed: int, eps: float) -> None:
    network = pooled(seed)
    asked = question(network, seed, eps)
    programs = verify(network, asked, stages=(CROWN, Exact("highs"))).verdict
    branching = verify(network, asked, stages=(CROWN, Unfold(), SplitNeurons()), timeout=60).verdict
    assert isinstance(programs, Verified | Falsified)
    assert type(branching) is type(programs)
    if isinstance(branching, Verified) and branching.bound is not None and isinstance(programs, Verified) and programs.bound is not None:
        x = asked.region.to(torch.float64).sample(4000, torch.Generator().manual_seed(0))[0]
        assert branching.bound <= float(Query.of(network, asked, Options()).goal.of(network.to(torch.float64)(x)).amin())


def test_a_question_that_takes_splitting_maxima() -> None:
    """Maxima of maxima: without it there is nothing that branching could split."""
    rng = torch.Generator().manual_seed(0)
    first, second, third = (torch.randn(m, n, generator=rng) / n**0.5 for m, n in ((48, 4), (36, 12), (3, 9)))
    offset = torch.randn(48, generator=rng) / 2
    maxima = (Reshape((12, 4)), MaxReduce(), Linear(second), Reshape((9, 4)), MaxReduce())
    network = chain((4,), Linear(first, offset), *maxima, Linear(third))
    asked = question(network, 0, 0.3)
    assert isinstance(verify(network, asked, stages=(CROWN, SplitNeurons()), timeout=20).verdict, Unknown)
    assert isinstance(verify(network, asked, stages=(CROWN, Unfold(), SplitNeurons()), timeout=60).verdict, Verified)


def test_a_product_that_no_plane_sees() -> None:
    """x x as a product of two nodes is at least 0, and McCormick's planes see -1."""
    twice = torch.ones(1, 1)
    network = build((1,), (Linear(twice), (0,)), (Linear(twice), (0,)), (Multiply(), (1, 2)))
    region = Box(-torch.ones(1, 1), torch.ones(1, 1))
    asked = Specification(region, (Halfspaces(torch.ones(1, 1, dtype=torch.float64), torch.tensor([-0.1], dtype=torch.float64)),))
    assert not isinstance(verify(network, asked, stages=(CROWN, SplitNeurons()), timeout=20).verdict, Verified)
    assert isinstance(verify(network, asked, stages=(CROWN, Unfold(), SplitNeurons()), timeout=20).verdict, Verified)


def test_it_comes_before_branching() -> None:
    names = [stage.name for stage in default_stages()]
    assert names.index("alpha") < names.index("unfold") < names.index("branch")


def bounded(network: Network, eps: float, options: Options | None = None) -> Query:
    query = CROWN(Query.of(network, question(network, 0, eps), options or Options()))
    assert isinstance(query, Query)
    return query


def test_the_original_is_kept_and_everything_is_known() -> None:
    network = replace(pooled(0), original=original_of(pooled(0)))
    query = bounded(network, 0.5)
    after = Unfold()(query)
    assert isinstance(after, Query)
    assert after.network.original is network.original
    assert set(after.intervals) == set(range(len(after.network.nodes)))
    assert after.options is query.options
    assert bool((after.lower >= query.lower).all())


def test_a_network_without_maxima_and_float32_are_skipped() -> None:
    plain = bounded(fully_connected(Relu(), seed=0, widths=(4, 8, 3)), 0.5)
    assert Unfold().skips(plain) == "there are no maxima and no products"
    assert Unfold()(plain) is plain
    rounded = bounded(pooled(0), 0.5, Options(semantics="float32-any-order"))
    assert "float32" in str(Unfold().skips(rounded))
    assert Unfold()(rounded) is rounded


def test_no_time_leaves_the_network_as_it_is() -> None:
    query = bounded(pooled(0), 0.5, Options(deadline=time.monotonic() + 60))
    assert Unfold(share=-1.0)(query) is query


def test_squares_that_overflow_leave_the_network_as_it_is() -> None:
    """1e200 times a number below 1 is a number, its square is none."""
    network = build((1,), (Linear(torch.ones(1, 1)), (0,)), (Linear(torch.ones(1, 1)), (0,)), (Multiply(), (1, 2))).to(torch.float64)
    large = network.nodes[1].op
    assert isinstance(large, Linear)
    large.weight.fill_(1e200)
    region = Box(-torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    asked = Specification(region, (Halfspaces(torch.ones(1, 1, dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)),))
    double = Bound("crown", lambda dtype, options: Crown(torch.float64))
    query = double(Query.of(network, asked, Options()))
    assert isinstance(query, Query)
    assert Unfold()(query) is query
