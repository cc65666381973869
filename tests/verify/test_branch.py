"""Branch and bound over activations: known answers, the exact minimum as judge, limits, and planted bugs."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from bounds.alpha import Ascent, RowProblem
from bounds.crown import Crown
from bounds.ibp import Ibp
from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.ops.piecewise import Relu
from bounds.ops.smooth import Tanh
from bounds.region import Box, LpBall, Region
from tests.bounds.networks import chain
from verify import branch
from verify.branch import SplitNeurons
from verify.run import verify
from verify.spec import Specification
from verify.stages import Bound, Options, Query
from verify.verdict import Falsified, Unknown, Verified

IBP = Bound("ibp", lambda dtype, options: Ibp(dtype))
CROWN = Bound("crown", lambda dtype, options: Crown(dtype))


def tent() -> Network:
    """|x| + |y| - 0.25: its minimum is where no relaxation of the whole box sees it."""
    first = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    return chain((2,), Linear(first, torch.zeros(4)), Relu(), Linear(torch.ones(1, 4), torch.tensor([-0.25])))


def random_network(seed: int, activation: type = Relu) -> Network:
    rng = torch.Generator().manual_seed(seed)
    layers: list[object] = []
    widths = (3, 8, 8, 3)
    for k, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers.append(Linear(torch.randn(outputs, inputs, generator=rng), torch.randn(outputs, generator=rng) / 2))
        layers += [activation()] if k < len(widths) - 2 else []
    return chain((3,), *layers)


def asked(network: Network, region: Region, rows: list[list[float]], d: list[float], *, together: bool = False) -> Specification:
    """Unsafe where C y <= d: each row a set of its own, or all `together` one set."""
    C, limits = torch.tensor(rows, dtype=torch.float64), torch.tensor(d, dtype=torch.float64)
    sets = [Halfspaces(C, limits)] if together else [Halfspaces(C[k : k + 1], limits[k : k + 1]) for k in range(len(rows))]
    return Specification(region, tuple(sets))


def minimum(network: Network, region: Region, row: list[float]) -> float:
    """The least value met by a dense sample and local descent: an upper bound of the minimum that is exact enough here."""
    net = network.to(torch.float64)
    x = region.to(torch.float64).sample(4000, torch.Generator().manual_seed(0))[0].requires_grad_()
    weights = torch.tensor(row, dtype=torch.float64)
    best = float("inf")
    for step in range(300):
        value = net(x) @ weights
        best = min(best, float(value.detach().min()))
        (gradient,) = torch.autograd.grad(value.sum(), x)
        with torch.no_grad():
            moved = x - 0.05 * 0.98**step * gradient.sign()
            x = region.to(torch.float64).project(moved.unsqueeze(0))[0].requires_grad_()
    return best


UNIT = Box(-torch.ones(1, 3), torch.ones(1, 3))
STAGES = (IBP, CROWN, SplitNeurons(rows=32, steps=5, root_steps=10))


@pytest.mark.parametrize(("threshold", "kind"), [(-0.251, Verified), (-1.0, Verified), (-0.249, Falsified), (0.0, Falsified)])
def test_the_answer_changes_at_the_minimum(threshold: float, kind: type) -> None:
    box = Box(torch.tensor([[-1.0, -0.7]]), torch.tensor([[0.9, 1.1]]))
    verdict = verify(tent(), asked(tent(), box, [[1.0]], [threshold]), stages=STAGES).verdict
    assert type(verdict) is kind
    if isinstance(verdict, Verified):
        assert verdict.bound is not None
        assert 0 < verdict.bound <= -0.25 - threshold + 1e-9


@pytest.mark.parametrize(
    ("seed", "region"),
    [(0, UNIT), (1, UNIT), (2, UNIT), (3, LpBall(torch.zeros(1, 3), 1.2, 2.0)), (0, LpBall(torch.zeros(1, 3), 1.2, 2.0))],
)
def test_random_networks_are_decided_on_both_sides_of_the_minimum(seed: int, region: Region) -> None:
    network = random_network(seed)
    rows = [[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]
    least = [minimum(network, region, row) for row in rows]
    relaxed = Crown()(network, region, torch.tensor(rows)).objective.lower[0].tolist()
    between = [v - 0.4 * (v - low) for v, low in zip(least, relaxed, strict=True)]
    safe = verify(network, asked(network, region, rows, between), timeout=60, stages=STAGES).verdict
    assert isinstance(safe, Verified), safe
    assert safe.decided_by == "branch"
    assert safe.bound is not None
    assert safe.bound <= max(v - d for v, d in zip(least, between, strict=True)) + 1e-9
    unsafe = verify(network, asked(network, region, rows, [least[0] - 0.5, least[1] + 0.02]), timeout=60, stages=STAGES).verdict
    assert isinstance(unsafe, Falsified), unsafe


def test_smooth_activations_are_split_too() -> None:
    network, row = random_network(3, Tanh), [1.0, -1.0, 0.0]
    least = minimum(network, UNIT, row)
    bounds = Crown()(network, UNIT, torch.tensor([row])).objective.lower
    threshold = least - 0.5 * (least - float(bounds))
    assert threshold < least - 0.05
    verdict = verify(network, asked(network, UNIT, [row], [threshold]), timeout=60, stages=STAGES).verdict
    assert isinstance(verdict, Verified), verdict
    assert verdict.proof == "rigorous"


def test_a_set_of_several_rows_is_excluded_by_any_of_them() -> None:
    network = random_network(1)
    rows = [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]
    # y0 <= -c and -y0 <= -c cannot both hold for c > 0; no single row is positive everywhere, so the region must be divided.
    verdict = verify(network, asked(network, UNIT, rows, [-4.0, -4.0], together=True), timeout=60, stages=STAGES).verdict
    assert isinstance(verdict, Verified), verdict


@pytest.mark.parametrize("bound", [True, False])
def test_the_bound_covers_the_sets_that_were_excluded_before(bound: bool) -> None:
    """f + 0.26 >= 0.01 is known from intervals; that 1.85 - f >= 0.1 is not, and says nothing about the other."""
    question = asked(tent(), Box(-torch.ones(1, 2), torch.ones(1, 2)), [[1.0], [-1.0]], [-0.26, -1.85])
    query = IBP(Query.of(tent(), question, Options()))
    assert isinstance(query, Query)
    assert query.closed.tolist() == [True, False]
    if not bound:
        query = replace(query, lower=torch.tensor([-torch.inf, float(query.lower[1])], dtype=torch.float64))
    found = SplitNeurons()(query)
    assert isinstance(found, Verified)
    if bound:
        assert found.bound == pytest.approx(0.01, abs=1e-5)
    else:
        assert found.bound is None


def test_the_same_again() -> None:
    network = random_network(2)
    least = minimum(network, UNIT, [1.0, -1.0, 0.0])
    question = asked(network, UNIT, [[1.0, -1.0, 0.0]], [least - 3.0])
    first, second = (verify(network, question, stages=STAGES).verdict for _ in range(2))
    assert isinstance(first, Verified)
    assert first == second


def test_limits() -> None:
    network = random_network(0)
    question = asked(network, UNIT, [[1.0, -1.0, 0.0]], [minimum(network, UNIT, [1.0, -1.0, 0.0]) - 1e-4])
    begin = time.monotonic()
    late = verify(network, question, timeout=0.0, stages=STAGES).verdict
    assert isinstance(late, Unknown)
    assert time.monotonic() - begin < 30
    query = CROWN(IBP(Query.of(network, question, Options(deadline=time.monotonic() - 1))))
    assert isinstance(query, Query)
    after = SplitNeurons()(query)
    assert isinstance(after, Query)
    assert any("time limit" in note for note in after.notes)
    untouched = Query.of(network, question, Options())
    assert SplitNeurons()(untouched) is untouched


@pytest.mark.parametrize("threshold, kind", [(-2.001, Verified), (-1.999, Falsified)])
def test_a_network_with_nothing_to_split(threshold: float, kind: type) -> None:
    """Every activation is stable, two rows must be excluded together: x + 3 and y + 3 are both low in different corners only."""
    network = chain(
        (2,), Linear(torch.eye(2), torch.full((2,), 3.0)), Relu(), Linear(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.zeros(2))
    )
    question = asked(network, Box(-torch.ones(1, 2), torch.ones(1, 2)), [[1.0, 0.0]], [threshold])
    assert isinstance(verify(network, question, stages=(IBP, SplitNeurons())).verdict, kind)
    both = asked(network, Box(-torch.ones(1, 2), torch.ones(1, 2)), [[1.0, 0.0], [0.0, 1.0]], [threshold + 1.9] * 2, together=True)
    assert isinstance(verify(network, both, stages=(IBP, SplitNeurons())).verdict, Verified)


def test_a_leaf_is_decided_by_its_linear_program() -> None:
    """Without a step of the ascent multipliers stay zero, and a part's half-spaces count for nothing before its linear program."""
    box = Box(torch.tensor([[-1.0, -0.7]]), torch.tensor([[0.9, 1.1]]))
    stages = (IBP, CROWN, SplitNeurons(rows=8, steps=0, root_steps=0))
    verdict = verify(tent(), asked(tent(), box, [[1.0]], [-0.2501]), stages=stages).verdict
    assert isinstance(verdict, Verified), verdict
    assert verdict.proof == "rigorous"
    assert isinstance(verify(tent(), asked(tent(), box, [[1.0]], [-0.2499]), stages=stages).verdict, Falsified)


@pytest.mark.parametrize("mutant", ["inflated", "dropped half"])
def test_planted_bugs_are_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, row = random_network(0), [1.0, -1.0, 0.0]
    least = minimum(network, UNIT, row)
    if mutant == "inflated":
        prove = RowProblem.prove

        def wrong(self: RowProblem, *arguments: object) -> object:
            found = prove(self, *arguments)  # type: ignore[arg-type]
            return type(found)(found.A, found.b, found.bound + 1.0)

        monkeypatch.setattr(RowProblem, "prove", wrong)
    else:
        from verify.branch import _Search
        from verify.subproblems import Part

        split = _Search._split

        def half_of_it(self: _Search, parts: list[Part]) -> list[Part]:
            return split(self, parts)[::2]

        monkeypatch.setattr(_Search, "_split", half_of_it)
    monkeypatch.setattr("verify.branch.confirm", lambda *_, **__: None)  # no attack may save it
    monkeypatch.setattr("verify.branch.falsify", lambda *_, **__: (None, None))
    stages = (IBP, CROWN, SplitNeurons(rows=32, steps=5, root_steps=10))
    verdicts = [verify(network, asked(network, UNIT, [row], [least + gap]), timeout=60, stages=stages).verdict for gap in (0.1, 0.3)]
    assert any(isinstance(v, Verified) for v in verdicts)  # false: the unsafe set is reached


def _search() -> branch._Search:
    """A search over a question that CROWN leaves open."""
    network = random_network(0)
    question = asked(network, UNIT, [[1.0, -1.0, 0.0]], [minimum(network, UNIT, [1.0, -1.0, 0.0]) - 1e-4])
    query = CROWN(IBP(Query.of(network, question, Options())))
    assert isinstance(query, Query)
    return branch._Search(query, STAGES[-1], None)  # type: ignore[arg-type]


def test_ascents_that_hardly_raise_a_bound_are_counted() -> None:
    search = _search()
    (part,), _ = search._improve([search._whole(0)], 0)
    assert part.stalled == 0
    (same,), _ = search._improve([part], 0)
    (still,), _ = search._improve([same], 0)
    assert (same.stalled, still.stalled) == (1, 2)
    (risen,), _ = search._improve([replace(still, bound=part.bound - abs(part.bound))], 0)
    assert risen.stalled == 0
    assert [half.stalled for half in still.halves(branch._both_sides(torch.tensor([[0.0, 0.0, 0.0]]).double())[0])] == [2, 2]


def test_stalled_parts_get_a_longer_ascent_before_they_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted stall: ascents of few steps do not move."""
    taken: list[int] = []
    maximise = RowProblem.maximise

    def lame(self: RowProblem, alphas: Any, betas: Any, ascent: Ascent, *rest: Any) -> Any:
        taken.append(ascent.steps)
        return maximise(self, alphas, betas, Ascent(ascent.steps if ascent.steps > 5 else 0), *rest)

    monkeypatch.setattr(RowProblem, "maximise", lame)
    assert isinstance(_search().run(), Verified)
    assert branch._LONGER * 5 in taken


def test_longer_ascents_that_do_not_help_become_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    search = _search()
    part = replace(search._improve([search._whole(0)], 0)[0][0], stalled=1)
    monkeypatch.setattr(search, "_improve", lambda parts, steps: ([replace(p, stalled=2) for p in parts], torch.zeros(0)))
    for expected in (2, 4, 8):
        (rested,), _ = search._improve_longer([part])
        assert (rested.stalled, search.patience) == (0, expected)
    monkeypatch.setattr(search, "_improve", lambda parts, steps: ([replace(p, stalled=0) for p in parts], torch.zeros(0)))
    search._improve_longer([part])
    assert search.patience == 4
