"""Programs with some binaries against those with all, and the refinement against minima that are known on both sides."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from bounds.crown import Crown
from bounds.disturbed import disturb
from bounds.interval import Interval
from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.ops.base import Activation
from bounds.ops.piecewise import Clip, LeakyRelu, Relu
from bounds.region import LpBall, Region
from milp.encode import Encoding, encode, encode_all
from milp.program import Limits, Program, Solution, Status, StopRule
from milp.prove import Outcome, prove
from milp.refine import Plan, Refinement, refinements, scores
from milp.solvers import get_solver, lp_session
from tests.bounds.networks import fully_connected, max_pool

ONE_BY_ONE = Plan(few=0, first=1, growth=1.0)


@functools.cache
def question(kind: str, seed: int = 1) -> tuple[Network, Region, dict[int, Interval]]:
    """A network whose minima need binaries, a region and intervals."""
    if kind == "pool":
        network = max_pool().to(torch.float64)
    else:
        ops: dict[str, Activation] = {"relu": Relu(), "leaky": LeakyRelu(0.1), "clip": Clip(-0.4, 0.6)}
        network = fully_connected(ops[kind], seed=seed, widths=(3, 10, 8, 3)).to(torch.float64)
    center = torch.rand(1, *network.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    region = LpBall(center, torch.tensor(0.6 if kind != "pool" else 0.2), float("inf"))
    return network, region, dict(enumerate(Crown(torch.float64)(network, region).intervals))


def halfspaces(network: Network, offset: float = 0.0, rows: int = 1) -> Halfspaces:
    """y_0 - y_k <= offset, k = 1 ... rows."""
    C = torch.zeros(rows, network.outputs, dtype=torch.float64)
    C[:, 0] = 1.0
    C[torch.arange(rows), torch.arange(1, rows + 1) % network.outputs] -= 1.0
    return Halfspaces(C, torch.full((rows,), offset, dtype=torch.float64))


def optimum(program: Program) -> float:
    found = get_solver("highs").solve(program)
    assert found.objective is not None
    return found.objective


@functools.cache
def minimum(kind: str, seed: int = 1, rows: int = 1) -> float:
    network, region, intervals = question(kind, seed)
    return optimum(encode(network, region, halfspaces(network, rows=rows), intervals).program)


def random_masks(network: Network, share: float, seed: int = 0) -> dict[int, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    indices = [i for i, node in enumerate(network.nodes) if isinstance(node.op, Activation)]
    return {i: torch.rand(network.nodes[i].shape, generator=g) < share for i in indices}


@pytest.mark.parametrize("kind", ["relu", "leaky", "clip", "pool"])
def test_fewer_binaries_give_a_lower_optimum(kind: str) -> None:
    network, region, intervals = question(kind)
    whole = encode(network, region, halfspaces(network), intervals)
    values, binaries = [], []
    for share in (0.0, 0.3, 0.6, 1.01):
        part = whole.loosened(random_masks(network, share))
        values.append(optimum(part.program))
        binaries.append(part.binaries)
    assert binaries[0] == whole.binaries > binaries[1] > binaries[3] == 0
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(values))
    assert values[0] == pytest.approx(minimum(kind), abs=1e-6)
    assert kind == "pool" or values[-1] < values[0] - 1e-3
    restored = whole.loosened(random_masks(network, 0.6)).whole()
    assert (restored.program.integer == whole.program.integer).all()


def test_the_binaries_of_the_pruned_neurons_go_and_no_others() -> None:
    network, region, intervals = question("relu")
    whole = encode(network, region, halfspaces(network), intervals)
    index = int(whole.gates.nodes[0])
    mask = np.zeros(network.nodes[index].shape, dtype=bool)
    mask[int(whole.gates.elements[0])] = True
    gone = np.flatnonzero(whole.program.integer & ~whole.loosened({index: mask}).program.integer)
    assert gone.tolist() == [int(whole.gates.columns[0])]
    assert sorted(whole.gates.columns.tolist()) == np.flatnonzero(whole.program.integer).tolist()
    unstable = network.nodes[index].op.unstable(intervals[network.nodes[index].inputs[0]])  # type: ignore[attr-defined]
    assert set(whole.gates.elements[whole.gates.nodes == index].tolist()) <= set(unstable.flatten().nonzero().flatten().tolist())


def test_the_hull_is_tighter_than_the_band() -> None:
    """Both hold the network; the triangle lies in every band, and "disturbed" networks are encoded as they are."""
    network, region, intervals = question("relu")
    pruned = {i: torch.ones(network.nodes[i].shape, dtype=torch.bool) for i in random_masks(network, 1.0)}
    hull = optimum(encode(network, region, halfspaces(network), intervals).loosened(pruned).program)
    made = disturb(network, region, intervals, pruned)
    found = dict(enumerate(Crown(torch.float64)(made.network, made.region).intervals))
    band = encode(made.network, made.region, halfspaces(network), found)
    assert band.binaries == 0
    assert optimum(band.program) <= hull + 1e-7 <= minimum("relu") + 2e-7


def test_a_band_with_survivors_lies_between() -> None:
    network, region, intervals = question("relu")
    pruned = random_masks(network, 0.5)
    made = disturb(network, region, intervals, pruned)
    found = dict(enumerate(Crown(torch.float64)(made.network, made.region).intervals))
    band = encode(made.network, made.region, halfspaces(network), found)
    assert 0 < band.binaries < encode(network, region, halfspaces(network), intervals).binaries
    assert optimum(band.program) <= minimum("relu") + 1e-6


@pytest.mark.parametrize("rows", [1, 2])
def test_programs_that_share_their_rows_have_the_same_optima(rows: int) -> None:
    network, region, intervals = question("relu")
    sets = [halfspaces(network), halfspaces(network, 0.25, rows), halfspaces(network, -0.5)]
    for one, shared in zip(sets, encode_all(network, region, sets, intervals), strict=True):
        assert optimum(shared.program) == pytest.approx(optimum(encode(network, region, one, intervals).program), abs=1e-6)


def refine(
    kind: str, offset: float, seed: int = 1, plan: Plan = ONE_BY_ONE, rows: int = 1, **settings: object
) -> tuple[Outcome, Refinement]:
    """All rounds of one refinement about min (y_0 - y_k) > offset."""
    network, region, intervals = question(kind, seed)
    solver = get_solver(str(settings.pop("solver", "scip")))
    (one,) = refinements(network, region, [halfspaces(network, offset, rows)], intervals, solver, Limits(), plan)
    outcome = one.step()
    while outcome.status == "undecided" and not one.exhausted:
        outcome = one.step(**settings)  # type: ignore[arg-type]
    return outcome, one


@pytest.mark.parametrize("kind", ["relu", "leaky", "clip", "pool"])
@pytest.mark.parametrize("plan", [ONE_BY_ONE, Plan(few=0, first=3), Plan()], ids=["one by one", "doubling", "default"])
def test_the_same_verdicts_as_the_exact_program_on_both_sides(kind: str, plan: Plan) -> None:
    """Minima are known: the question is asked a little below and a little above them, where nothing but every needed binary decides."""
    for seed in (1,) if kind == "pool" else (1, 2):
        exact = minimum(kind, seed)
        below, used = refine(kind, exact - 1e-3, seed, plan)
        above, _ = refine(kind, exact + 1e-3, seed, plan)
        assert (below.status, above.status) == ("proved", "point")
        assert above.point is not None
        network, region, _ = question(kind, seed)
        point = torch.from_numpy(above.point)[None]
        assert float(halfspaces(network, exact + 1e-3).margin(network(point).flatten(1))[0]) <= 0
        box = region.box()
        assert bool(((point >= box.lower) & (point <= box.upper)).all())
        assert (0 if kind == "pool" else 1) <= used.binaries <= used.total


def test_a_set_of_several_rows() -> None:
    exact = minimum("relu", 1, 2)
    assert refine("relu", exact - 1e-3, rows=2)[0].status == "proved"
    assert refine("relu", exact + 1e-3, rows=2)[0].status == "point"


def test_easier_questions_need_fewer_binaries() -> None:
    """Between the optimum of the relaxation and the minimum, binaries come back one by one."""
    network, region, intervals = question("relu")
    whole = encode(network, region, halfspaces(network), intervals)
    low, high = optimum(whole.program.relaxed()), minimum("relu")
    used = [refine("relu", low + share * (high - low))[1].binaries for share in (-0.01, 0.3, 0.6, 0.999)]
    assert used[0] == 0
    assert used == sorted(used)
    assert 0 < used[1] < whole.binaries


def test_the_number_of_binaries_grows_as_planned() -> None:
    network, region, intervals = question("relu")
    limits = Limits()
    solver = get_solver("scip")
    exact = minimum("relu")
    (one,) = refinements(network, region, [halfspaces(network, exact - 1e-6)], intervals, solver, limits, Plan(few=0, first=2))
    total = encode(network, region, halfspaces(network), intervals).binaries
    counts = []
    while not one.exhausted and one.step().status == "undecided":
        counts.append(one.binaries)
    assert counts[:3] == [0, 2, 4][: len(counts)]
    assert counts == sorted(set(counts))
    assert max(counts, default=0) <= total


def test_a_second_solver_confirms() -> None:
    exact = minimum("relu")
    found, _ = refine("relu", exact - 1e-2, confirm=get_solver("highs"))
    assert found.status == "proved"
    assert "highs" in found.confirmed_by


def test_scores_are_what_the_triangles_cost() -> None:
    """One hidden layer, so that multipliers and gaps can be had another way: from the relaxation with a neuron's upper side moved down."""
    network = fully_connected(Relu(), seed=4, widths=(3, 6, 2)).to(torch.float64)
    region = LpBall(torch.full((1, 3), 0.5, dtype=torch.float64), torch.tensor(0.5), float("inf"))
    intervals = dict(enumerate(Crown(torch.float64)(network, region).intervals))
    encoding = encode(network, region, halfspaces(network), intervals)
    solution = lp_session(encoding.program).minimise(encoding.program.objective, encoding.program.constant)
    found = scores(encoding, solution)
    assert (found >= 0).all()
    assert found.max() > 1e-3
    least = optimum(encoding.program.relaxed())
    for score, column in zip(found, encoding.gates.columns, strict=True):
        integer = np.zeros(encoding.program.columns, dtype=bool)
        integer[column] = True
        gain = optimum(replace(encoding.program, integer=integer)) - least
        assert gain <= 1e-7 or score > 1e-9  # a neuron that is worth something has a score


@dataclass(frozen=True)
class Optimist:
    """A planted error: a solver that proves every question about a sign that it is asked."""

    name: str = "optimist"

    def solve(self, program: Program, limits: Limits = Limits(), stop: StopRule | None = None) -> Solution:  # noqa: B008
        honest = get_solver("highs").solve(program, limits)
        return honest if stop is None else replace(honest, status=Status.SIGN_DECIDED, x=None, objective=None, dual_bound=1.0)


def test_a_second_solver_is_asked_about_the_same_program() -> None:
    """With one binary the claim is false though the set is empty: a second solver that is given all binaries would confirm it."""
    network, region, intervals = question("relu")
    unsafe = [halfspaces(network, minimum("relu") - 1e-3)]
    for second in (None, get_solver("scip")):
        (one,) = refinements(network, region, unsafe, intervals, Optimist(), Limits(), ONE_BY_ONE)
        statuses = [one.step(second).status for _ in range(2)]
        assert statuses == ["undecided", "proved" if second is None else "undecided"]


@pytest.mark.parametrize("faithful", [True, False])
def test_a_program_that_is_not_the_network_proves_nothing(faithful: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fixes the inputs in the program with all binaries, whichever were needed: the relaxed one is no network."""
    seen: list[int] = []

    def check(network: Network, unsafe: Halfspaces, encoding: Encoding, *rest: object) -> bool:
        seen.append(encoding.binaries)
        return faithful

    monkeypatch.setattr("milp.prove.reproduces", check)
    low = optimum(encode(*question("relu")[:2], halfspaces(question("relu")[0]), question("relu")[2]).program.relaxed())
    outcome, used = refine("relu", (low + minimum("relu")) / 2)
    assert outcome.status == ("proved" if faithful else "undecided")
    assert faithful or "does not reproduce" in outcome.reason
    assert set(seen) == {used.total}
    assert faithful == (used.binaries < used.total)


@pytest.mark.parametrize("seconds", [0.0, 1e-4])
def test_no_time(seconds: float) -> None:
    network, region, intervals = question("relu")
    unsafe = [halfspaces(network, minimum("relu") - 1e-6)]
    (one,) = refinements(network, region, unsafe, intervals, get_solver("scip"), Limits(seconds), ONE_BY_ONE)
    for _ in range(3):
        if not one.exhausted:
            assert one.step().status in ("undecided", "proved")


def test_prove_and_refinement_agree_on_an_l2_ball() -> None:
    network, box, _ = question("relu")
    ball = LpBall(box.origin, torch.tensor(0.5), 2.0)
    intervals = dict(enumerate(Crown(torch.float64)(network, ball).intervals))
    solver = get_solver("scip")
    for offset in (-1.5, -0.5, 0.0, 0.5):
        unsafe = halfspaces(network, offset)
        plain = prove(network, ball, unsafe, intervals, solver)
        (one,) = refinements(network, ball, [unsafe], intervals, solver, Limits(), Plan(few=0, first=2))
        outcome = one.step()
        while outcome.status == "undecided" and not one.exhausted:
            outcome = one.step()
        assert outcome.status == plain.status


def test_what_a_proof_rests_on_is_reported() -> None:
    exact = minimum("relu")
    found, used = refine("relu", exact - 1e-3)
    assert (found.proof, found.solver, found.binaries) == ("solver", "scip", used.binaries)
    assert found.bound is not None
    assert 0 < found.bound <= 1e-3 + 1e-6
    relaxed, used = refine("relu", exact - 3.0)
    assert (relaxed.status, relaxed.proof, used.binaries) == ("proved", "rigorous", 0)
