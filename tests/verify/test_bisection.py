"""Branch and bound over the input: answers that are known beforehand, limits, and a planted bug."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bounds.errors import NumericsError
from bounds.linear import Halfspaces
from bounds.network import Network, Node
from bounds.ops.affine import Linear
from bounds.ops.base import Input
from bounds.ops.bilinear import Multiply
from bounds.ops.piecewise import Relu
from bounds.ops.smooth import Tanh
from bounds.region import Box, LpBall
from verify import bisection
from verify.bisection import SplitInput
from verify.spec import Margins, Specification
from verify.stages import Options, Query
from verify.verdict import Falsified, Unknown, Verified


def _tent() -> Network:
    """f(x, y) = |x| + |y| - 0.25, whose minimum -0.25 at the origin no linear relaxation of the whole box sees."""
    first = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    nodes = (
        Node(Input(), (), (2,), "x"),
        Node(Linear(first), (0,), (4,), "split"),
        Node(Relu(), (1,), (4,), "relu"),
        Node(Linear(torch.ones(1, 4), torch.tensor([-0.25])), (2,), (1,), "sum"),
    )
    return Network(nodes)


def _query(lower: list[float], upper: list[float], threshold: float, options: Options | None = None) -> Query:
    """Is the tent above `threshold` on the box? Unsafe: f <= threshold."""
    box = Box(torch.tensor([lower], dtype=torch.float64), torch.tensor([upper], dtype=torch.float64))
    unsafe = Halfspaces(torch.ones(1, 1, dtype=torch.float64), torch.tensor([threshold], dtype=torch.float64))
    return Query.of(_tent(), Specification(box, (unsafe,)), options or Options())


@pytest.mark.parametrize(
    ("threshold", "kind"), [(-0.2501, Verified), (-0.26, Verified), (-1.0, Verified), (-0.2499, Falsified), (0.0, Falsified)]
)
def test_the_answer_changes_exactly_at_the_minimum(threshold: float, kind: type) -> None:
    # Corners off the grid of midpoints: the minimum is never a cut.
    outcome = SplitInput(batch=8)(_query([-1.0, -0.7], [0.9, 1.1], threshold))
    assert type(outcome) is kind
    if isinstance(outcome, Verified):
        assert outcome.proof == "rigorous"
        assert outcome.bound is not None
        assert 0 < outcome.bound <= -0.25 - threshold
    if isinstance(outcome, Falsified):
        assert abs(outcome.x).sum() - 0.25 <= threshold


def test_a_ball_in_the_largest_norm_is_a_box_and_others_are_handed_on() -> None:
    unsafe = (Halfspaces(torch.ones(1, 1, dtype=torch.float64), torch.tensor([-0.26], dtype=torch.float64)),)
    for p, kind in ((math.inf, Verified), (2.0, Query), (1.0, Query)):
        region = LpBall(torch.tensor([[0.1, 0.2]]), 0.5, p)
        assert type(SplitInput()(Query.of(_tent(), Specification(region, unsafe), Options()))) is kind


def test_questions_about_many_or_no_inputs_are_handed_on_untouched() -> None:
    query = _query([-1.0, -1.0], [1.0, 1.0], -0.26)
    assert SplitInput(most_inputs=1)(query) is query
    point = _query([0.5, 0.5], [0.5, 0.5], -0.26)
    assert SplitInput()(point) is point


def test_a_fixed_input_is_not_counted_and_not_bisected() -> None:
    assert isinstance(SplitInput(most_inputs=1)(_query([-1.0, 0.5], [1.0, 0.5], 0.2499)), Verified)


def test_limits_leave_the_best_bound_so_far() -> None:
    late = SplitInput()(_query([-1.0, -1.0], [1.0, 1.0], -0.26, Options(deadline=time.monotonic())))
    assert isinstance(late, Query)
    assert late.notes == ("split: time limit",)
    full = SplitInput(batch=1, most_boxes=1)(_query([-1.0, -0.7], [0.9, 1.1], -0.2501))
    assert isinstance(full, Query)
    assert "boxes are open" in full.notes[0]
    assert full.bound is not None
    assert -1.0 < full.bound <= 1e-6
    assert isinstance(full.unknown(), Unknown)


def test_a_margin_of_exactly_zero_ends_without_a_proof() -> None:
    query = _query([-1.0, -0.7], [0.9, 1.1], -0.25, Options(deadline=time.monotonic() + 3))
    outcome = SplitInput(most_boxes=2000)(query)
    assert not isinstance(outcome, Verified)


def test_two_runs_are_the_same() -> None:
    runs = [SplitInput(batch=4)(_query([-1.0, -0.7], [0.9, 1.1], -0.2501)) for _ in range(2)]
    assert isinstance(runs[0], Verified)
    assert runs[0] == runs[1]


def test_halves_cover_the_box_and_share_the_cut() -> None:
    lower, upper = torch.tensor([0.1, -0.3], dtype=torch.float64), torch.tensor([0.4, 0.7], dtype=torch.float64)
    low, high = bisection._halves([bisection.OpenBox(lower, upper, 1, None)])
    assert low[0].equal(lower)
    assert high[1].equal(upper)
    assert high[0, 1] == low[1, 1]
    assert lower[1] < high[0, 1] < upper[1]
    assert high[0, 0] == upper[0]
    assert low[1, 0] == lower[0]


def test_a_dropped_half_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Callable[..., tuple[Tensor, Tensor]] = bisection._halves

    def first_halves_only(taken: list) -> tuple[Tensor, Tensor]:
        low, high = whole(taken)
        return low[: len(taken)], high[: len(taken)]

    query = _query([-1.0, -0.7], [0.9, 1.1], -0.2499)
    assert isinstance(SplitInput()(query), Falsified)
    monkeypatch.setattr(bisection, "_halves", first_halves_only)
    monkeypatch.setattr(bisection._Search, "attack", lambda *_: None)
    assert isinstance(SplitInput()(query), Verified)  # wrong, and the comparison above would have said so


def test_what_overflows_in_float32_is_bounded_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_in_float32(self: bisection.Crown, *arguments: object, **options: object) -> object:
        if self.dtype == torch.float32:
            raise NumericsError("too large for float32")
        return whole(self, *arguments, **options)  # type: ignore[arg-type]

    whole = bisection.Crown.__call__
    monkeypatch.setattr(bisection.Crown, "__call__", fails_in_float32)
    assert isinstance(SplitInput()(_query([-1.0, -0.7], [0.9, 1.1], -0.2501)), Verified)


def _random_question(seed: int, threshold: float, sets: int) -> tuple[Query, Tensor]:
    """A random network on a box of three inputs, unsafe where both outputs (or, as two sets, either) are low; and its margin at many points."""
    random = torch.Generator().manual_seed(seed)
    sizes = (3, 8, 8, 2)
    weights = [torch.randn(n, m, generator=random) / math.sqrt(m) for m, n in itertools.pairwise(sizes)]
    nodes = [Node(Input(), (), (3,), "x")]
    for k, weight in enumerate(weights):
        nodes.append(
            Node(Linear(weight, 0.3 * torch.randn(len(weight), generator=random)), (len(nodes) - 1,), (len(weight),), f"linear{k}")
        )
        if k < 2:
            nodes.append(Node(Relu(), (len(nodes) - 1,), (8,), f"relu{k}"))
    network = Network(tuple(nodes))
    points = torch.cartesian_prod(*[torch.linspace(-1, 1, 33, dtype=torch.float64)] * 3)
    values = network.to(torch.float64)(points)
    margin = values.amin(-1) if sets == 2 else values.amax(-1)
    limit = float(margin.min()) + threshold
    rows = torch.eye(2, dtype=torch.float64)
    d = torch.full((2,), limit, dtype=torch.float64)
    unsafe = tuple(Halfspaces(rows[k : k + 1], d[k : k + 1]) for k in range(2)) if sets == 2 else (Halfspaces(rows, d),)
    box = Box(-torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
    return Query.of(network, Specification(box, unsafe), Options()), margin - limit


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_no_verdict_contradicts_points(seed: int, sets: int) -> None:
    """Slopes, clipping and inherited intervals all take part: several rows in a set, several sets, hidden layers."""
    below, margin = _random_question(seed, -0.1, sets)
    safe = SplitInput(batch=16)(below)
    assert isinstance(safe, Verified)
    assert safe.bound is not None
    assert 0 < safe.bound <= float(margin.min())
    unsafe = SplitInput(batch=16)(_random_question(seed, 0.01, sets)[0])
    assert isinstance(unsafe, Falsified)


def test_halves_start_from_what_is_proven_for_the_whole() -> None:
    query, _ = _random_question(0, -0.05, 1)
    search = bisection._Search(
        query, Box(-torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)), SplitInput(), None
    )
    rows = [torch.full((2, 16), float(k)) for k in range(2)]
    parts = [bisection.OpenBox(torch.zeros(3), torch.ones(3), k, row) for k, row in enumerate(rows)]
    known = search.known(parts, 4)
    for index in search.hidden:
        assert known[index].lower[:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert search.known([replace(parts[0], intervals=None), parts[1]], 4) == {}


def test_a_wrong_clip_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip that cuts too far loses the counterexample near the minimum, or the margin it proves contradicts the points."""
    whole = bisection.clip

    def too_far(A: Tensor, b: Tensor, goal: Margins, margin: float, box: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return whole(A, b + 0.2, goal, margin, box)

    def contradictions() -> int:
        found = 0
        for seed in range(3):
            outcome = SplitInput(batch=16, most_boxes=60)(_random_question(seed, 0.003, 1)[0])
            found += isinstance(outcome, Verified)
        return found

    monkeypatch.setattr(bisection._Search, "attack", lambda *_: None)
    assert contradictions() == 0
    monkeypatch.setattr(bisection, "clip", too_far)
    assert contradictions() > 0


def test_products_are_bisected() -> None:
    """f = x tanh(x) + 0.05 > 0, a product of computed tensors: all neurons are unstable at first, none in most small boxes."""
    nodes = (
        Node(Input(), (), (2,), "x"),
        Node(Tanh(), (0,), (2,), "tanh"),
        Node(Multiply(), (0, 1), (2,), "product"),
        Node(Linear(torch.ones(1, 2), torch.tensor([0.05])), (2,), (1,), "sum"),
    )
    box = Box(torch.tensor([[-2.0, -1.9]], dtype=torch.float64), torch.tensor([[1.7, 2.2]], dtype=torch.float64))
    unsafe = Halfspaces(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    outcome = SplitInput(batch=64)(Query.of(Network(nodes), Specification(box, (unsafe,)), Options()))
    assert isinstance(outcome, Verified)


def test_a_first_look_ends_after_its_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    query = _query([-1.0, -0.7], [0.9, 1.1], -0.2501)
    look = SplitInput(batch=4, most_bounded=10)(query)
    assert isinstance(look, Query)
    assert look.notes == ()
    assert look.bound is not None
    assert look.bound > float("-inf")
    monkeypatch.setattr(bisection, "_SMALL", 1)  # the network counts as a large one
    shorter = SplitInput(batch=4, most_bounded=10)(query)
    assert isinstance(shorter, Query)
    assert shorter.bound is not None
    assert shorter.bound < look.bound


def test_a_first_look_that_closes_nothing_ends_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    query, counts = _query([-1.0, -0.7], [0.9, 1.1], -0.2501), []
    for share in (1.0, 0.3):
        monkeypatch.setattr(bisection, "_BARREN", share)
        monkeypatch.setattr(bisection._Search, "settled", lambda self, batch, cut=None: batch)  # nothing counts as closed
        search = bisection._Search(query, query.specification.region, SplitInput(batch=1, most_bounded=20), None)
        assert isinstance(search.run(), Query)
        counts.append(search.bounded)
    assert counts == [20, 6]


def test_a_longer_look_goes_on_where_the_first_one_stopped() -> None:
    query = _query([-1.0, -0.7], [0.9, 1.1], -0.2501)
    look = SplitInput(batch=4, most_bounded=30)(query)
    assert isinstance(look, Query)
    assert look.divided is not None
    assert look.divided.proven > 0
    once, again = SplitInput(batch=4)(query), SplitInput(batch=4)(look)
    assert isinstance(once, Verified)
    assert isinstance(again, Verified)
    assert _boxes(again) < _boxes(once)
    assert again.bound is not None
    assert 0 < again.bound <= 1e-4 + 1e-9  # the minimum is 1e-4 above the threshold


def test_parts_of_a_first_look_hold_for_a_network_with_the_same_values() -> None:
    """What is known of neurons stays with the network they belong to."""
    look = SplitInput(batch=4, most_bounded=30)(_query([-1.0, -0.7], [0.9, 1.1], -0.2501))
    assert isinstance(look, Query)
    assert look.divided is not None
    other = Network(look.network.nodes)
    assert all(part.intervals is not None for _, part in look.divided.parts(look.network))
    assert all(part.intervals is None for _, part in look.divided.parts(other))
    assert isinstance(SplitInput(batch=4)(replace(look, network=other)), Verified)


def test_a_part_that_is_still_open_is_not_forgotten() -> None:
    look = SplitInput(batch=4, most_bounded=8)(_query([-1.0, -0.7], [0.9, 1.1], -0.2501))
    assert isinstance(look, Query)
    assert look.divided is not None
    low, high = torch.tensor([-1.0, -0.7]).double(), torch.tensor([0.9, 1.1]).double()
    points = low + (high - low) * torch.rand(20000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = torch.zeros(len(points), dtype=torch.bool)
    for _, part in look.divided.open:
        inside |= ((points >= part.lower) & (points <= part.upper)).all(1)
    margins = look.goal.of(look.network.to(torch.float64)(points.reshape(-1, *look.network.input_shape)).flatten(1)).amin(-1)
    assert bool((margins[~inside] >= look.divided.proven - 1e-12).all())
    assert bool(inside.any())
    assert not bool(inside.all())


def _boxes(verdict: Verified) -> int:
    return int(verdict.detail.removesuffix(" boxes"))
