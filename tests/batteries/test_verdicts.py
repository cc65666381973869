"""Questions with answers known by hand, compared with ==; planted bugs must show, or be stopped by our own guards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import milp.activations
import milp.prove
import milp.walk
from bounds.crown import Crown
from bounds.errors import MemoryLimitError, NumericsError, ProofError, SolverError, SpecError, TimeLimitError
from bounds.ibp import Ibp
from bounds.linear import Halfspaces, Relaxation
from bounds.network import Network, Node
from bounds.ops.affine import Linear
from bounds.ops.base import Input
from bounds.ops.convolution import Conv
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, MaxReduce, Relu
from bounds.ops.shape import Reshape
from bounds.ops.smooth import Sigmoid
from bounds.region import Box, LpBall, Region
from milp.program import Answer, Limits, Program, Solution, Status, StopRule, Tolerances, conclude
from milp.solvers import SOLVERS, get_solver
from tests.verify.nets import bump, chain, linear
from verify import cli
from verify.attack import Pgd
from verify.run import default_stages, verify
from verify.spec import Specification, output_bounds, robustness
from verify.stages import Bound, Exact, Falsify, Options, Query, Stage, Tighten
from verify.verdict import Falsified, Unknown, Verified

VERIFIED, FALSIFIED, UNKNOWN = "Verified", "Falsified", "Unknown"


def box(low: float, high: float, size: int) -> Box:
    return Box(torch.full((1, size), low, dtype=torch.float64), torch.full((1, size), high, dtype=torch.float64))


def tent(times: int) -> Network:
    """y0 = t(t(... x)), t(x) = 2 relu(x) - 4 relu(x - 1/2), which maps [0, 1] onto [0, 1]; y1 = x."""
    layers = [(Linear(torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([0.0, -0.5, 0.0])), 3), (Relu(), 3)]
    middle = Linear(torch.tensor([[2.0, -4.0, 0.0], [2.0, -4.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([0.0, -0.5, 0.0]))
    for _ in range(times - 1):
        layers += [(middle, 3), (Relu(), 3)]
    return chain(1, *layers, (Linear(torch.tensor([[2.0, -4.0, 0.0], [0.0, 0.0, 1.0]]), None), 2))


def spread() -> Network:
    """y = max(x0, x1) - min(x0, x1) = |x0 - x1|."""
    both = Linear(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), None)
    return Network(
        (
            Node(Input(), (), (2,), "x"),
            Node(both, (0,), (4,), "both"),
            Node(Reshape((2, 2)), (1,), (2, 2), "pairs"),
            Node(MaxReduce(), (2,), (2,), "max"),
            Node(Linear(torch.ones(1, 2), None), (3,), (1,), "y"),
        )
    )


def falls() -> Network:
    """y = relu(x0 - x1) + relu(x1 - x2) by a convolution: at most 1 on [0, 1]^3."""
    kernel = Conv(torch.tensor([[[1.0, -1.0]]]), None, (1,), ((0, 0),), (1,))
    return Network(
        (
            Node(Input(), (), (3,), "x"),
            Node(Reshape((1, 1, 3)), (0,), (1, 1, 3), "row"),
            Node(kernel, (1,), (1, 1, 2), "differences"),
            Node(Relu(), (2,), (1, 1, 2), "relu"),
            Node(Reshape((2,)), (3,), (2,), "flat"),
            Node(Linear(torch.ones(1, 2), None), (4,), (1,), "y"),
        )
    )


def one(op: Abs | Clip | LeakyRelu | Sigmoid) -> Network:
    """y = op(x0) - op(x1)."""
    return chain(2, (Linear(torch.eye(2), None), 2), (op, 2), (Linear(torch.tensor([[1.0, -1.0]]), None), 1))


def above(network: Network, region: Region, limit: float) -> Specification:
    """Is y0 < limit everywhere?"""
    return output_bounds(region, [None] * network.outputs, [limit] + [None] * (network.outputs - 1))


def sets(region: Region, *unsafe: tuple[list[list[float]], list[float]]) -> Specification:
    return Specification(
        region, tuple(Halfspaces(torch.tensor(C, dtype=torch.float64), torch.tensor(d, dtype=torch.float64)) for C, d in unsafe)
    )


@dataclass(frozen=True)
class Case:
    """A question and its only right answer."""

    name: str
    network: Network
    question: Specification
    answer: str


def both_sides(name: str, network: Network, region: Region, maximum: float, gap: float = 0.01) -> list[Case]:
    """The largest y0 on the region is `maximum`: limits above it hold, limits below it do not."""
    return [
        Case(f"{name} below {maximum + gap:g}", network, above(network, region, maximum + gap), VERIFIED),
        Case(f"{name} below {maximum - gap:g}", network, above(network, region, maximum - gap), FALSIFIED),
    ]


HIGH = ([[-1.0, 0.0]], [-0.9])
"""y0 >= 0.9: exactly where x is within 0.025 of 1/4 or 3/4 for tent(2), within 0.0125 of 1/8, 3/8, 5/8 or 7/8 for tent(3)."""
UNIT = box(0.0, 1.0, 1)
CASES = [
    *both_sides("affine", linear([[1.0, -1.0]]), box(0.0, 1.0, 2), 1.0),
    *both_sides("bump", bump(), box(0.0, 1.0, 2), 0.5),
    *both_sides("bump on an l-inf ball", bump(), LpBall(torch.full((1, 2), 0.5), 0.5, math.inf), 0.5),
    *both_sides("bump on an l2 ball", bump(), LpBall(torch.full((1, 2), 0.5), 0.5, 2.0), math.sqrt(0.5) - 0.5),
    *both_sides("bump on an l1 ball", bump(), LpBall(torch.full((1, 2), 0.5), 0.75, 1.0), 0.25),
    *both_sides("bump on a clipped l2 ball", bump(), LpBall(torch.full((1, 2), 0.5), 5.0, 2.0, (0.0, 1.0)), 0.5),
    *both_sides("tent", tent(1), UNIT, 1.0),
    *both_sides("tent of tent", tent(2), UNIT, 1.0),
    *both_sides("three tents", tent(3), UNIT, 1.0),
    *both_sides("three tents left of the first peak", tent(3), box(0.0, 0.0625, 1), 0.5),
    *both_sides("spread", spread(), box(0.0, 1.0, 2), 1.0),
    *both_sides("falls", falls(), box(0.0, 1.0, 3), 1.0),
    *both_sides("abs", one(Abs()), box(-1.0, 2.0, 2), 2.0),
    *both_sides("clip", one(Clip(-0.5, 0.25)), box(-1.0, 2.0, 2), 0.75),
    *both_sides("leaky relu", one(LeakyRelu(0.25)), box(-1.0, 2.0, 2), 2.25),
    Case("conjunction excluded", tent(2), sets(UNIT, ([*HIGH[0], [0.0, 1.0]], [*HIGH[1], 0.2])), VERIFIED),
    Case("conjunction met", tent(2), sets(UNIT, ([*HIGH[0], [0.0, 1.0]], [*HIGH[1], 0.24])), FALSIFIED),
    Case("valley excluded", tent(2), sets(UNIT, ([*HIGH[0], [0.0, 1.0], [0.0, -1.0]], [*HIGH[1], 0.7, -0.3])), VERIFIED),
    Case("both sets excluded", tent(2), sets(UNIT, ([[-1.0, 0.0]], [-1.01]), ([*HIGH[0], [0.0, 1.0]], [*HIGH[1], 0.2])), VERIFIED),
    Case("second set met", tent(2), sets(UNIT, ([[-1.0, 0.0]], [-1.01]), ([*HIGH[0], [0.0, 1.0]], [*HIGH[1], 0.24])), FALSIFIED),
    Case("second set met, first far away", tent(2), sets(UNIT, ([[-1.0, 0.0]], [-99.0]), HIGH), FALSIFIED),
    Case("tooth met", tent(3), sets(UNIT, ([*HIGH[0], [0.0, 1.0], [0.0, -1.0]], [*HIGH[1], 0.37, -0.3])), FALSIFIED),
    Case("tooth excluded", tent(3), sets(UNIT, ([*HIGH[0], [0.0, 1.0], [0.0, -1.0]], [*HIGH[1], 0.36, -0.27])), VERIFIED),
    Case("label kept", bump(), robustness(np.array([0.2, 0.2]), 1, 0.5, norm=math.inf, outputs=2), VERIFIED),
    Case("label lost", bump(), robustness(np.array([0.5, 0.5]), 1, 0.45, norm=math.inf, outputs=2), FALSIFIED),
]
EXACT_ONLY = [case for case in CASES if "l2" not in case.name]
"""Cases that every solver decides without attacks (an l2 ball is approached by cuts; a point on its sphere need not replay)."""


def ibp(dtype: torch.dtype, options: Options) -> Ibp:
    return Ibp(dtype, options.device, options.semantics)


def crown(dtype: torch.dtype, options: Options) -> Crown:
    return Crown(dtype, options.device, options.semantics)


BOUNDS: tuple[Stage, ...] = (Bound("ibp", ibp), Bound("crown", crown))


def exactly(solver: str | None = "scip") -> tuple[Stage, ...]:
    return (*BOUNDS, Exact(solver))


def kind(case: Case, stages: Sequence[Stage] | None, **options: object) -> str:
    """The verdict's kind, or the error's."""
    try:
        return type(verify(case.network, case.question, stages=stages, timeout=30.0, **options).verdict).__name__  # type: ignore[arg-type]
    except (ProofError, NumericsError, SolverError) as error:
        return type(error).__name__


def wrong(cases: Sequence[Case], stages: Sequence[Stage] | None, **options: object) -> list[str]:
    """What the battery finds: the cases whose verdict is not the right answer."""
    found = {case.name: kind(case, stages, **options) for case in cases}
    return [f"{case.name}: {found[case.name]} != {case.answer}" for case in cases if found[case.name] != case.answer]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_default_stages(case: Case) -> None:
    result = verify(case.network, case.question, timeout=30.0)
    assert type(result.verdict).__name__ == case.answer
    if isinstance(result.verdict, Verified) and result.verdict.bound is not None:
        assert 0 < result.verdict.bound <= float(sampled(case)[1].min()) + 1e-9
    if isinstance(result.verdict, Falsified):
        assert case.question.contains(result.verdict.x)
        assert case.question.violated_by(result.verdict.y)


def sampled(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the region and their worst margins."""
    points = case.question.region.to(torch.float64, torch.device("cpu")).sample(20000, torch.Generator().manual_seed(0))[0].double()
    y = case.network.to(torch.float64, "cpu")(points).flatten(1)
    return points, torch.stack([unsafe.margin(y) for unsafe in case.question.unsafe]).amin(0)


@pytest.mark.parametrize("solver", ["scip", "highs", "pulp:CBC"])
@pytest.mark.parametrize("case", EXACT_ONLY, ids=lambda case: case.name)
def test_exact_stage_alone(case: Case, solver: str) -> None:
    assert kind(case, exactly(solver)) == case.answer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bounds_and_programs_without_an_exact_stage_never_contradict(case: Case) -> None:
    assert kind(case, (*BOUNDS, Tighten())) in (UNKNOWN, VERIFIED if case.answer == VERIFIED else UNKNOWN)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32_any_order(case: Case) -> None:
    result = verify(case.network, case.question, semantics="float32-any-order", timeout=5.0)
    if isinstance(result.verdict, Verified):
        assert (case.answer, result.verdict.semantics, result.verdict.proof) == (VERIFIED, "float32-any-order", "rigorous")
        assert result.verdict.decided_by in ("ibp", "crown", "alpha", "split", "branch")
    else:
        assert type(result.verdict).__name__ in (UNKNOWN, case.answer)


@pytest.mark.parametrize("case", [case for case in EXACT_ONLY if case.answer == VERIFIED], ids=lambda case: case.name)
def test_linear_programs_do_not_prove_float32_any_order(case: Case) -> None:
    """What bounds alone do not prove stays unknown, although the programs would prove it in real arithmetic."""
    by_bounds = kind(case, BOUNDS, semantics="float32-any-order")
    verdict = verify(case.network, case.question, semantics="float32-any-order", stages=(*BOUNDS, Tighten(), Exact())).verdict
    assert type(verdict).__name__ == by_bounds
    if isinstance(verdict, Unknown):
        assert "float32-any-order" in verdict.reason


def test_some_questions_need_the_exact_stage() -> None:
    """Else the battery would say nothing about it."""
    undecided = [case for case in EXACT_ONLY if kind(case, BOUNDS) == UNKNOWN]
    assert sum(case.answer == VERIFIED for case in undecided) >= 4
    assert sum(case.answer == FALSIFIED for case in undecided) >= 8


def test_a_margin_of_zero_is_not_verified() -> None:
    """tent(tent(1/4)) = 1 exactly: y0 < 1 does not hold, by nothing at all."""
    for stages in (None, exactly("scip"), exactly("highs")):
        assert kind(Case("tie", tent(2), above(tent(2), UNIT, 1.0), FALSIFIED), stages) != VERIFIED


def test_smooth_functions_are_bounded_but_not_solved() -> None:
    maximum = 2 / (1 + math.exp(-1.0)) - 1
    safe, broken = both_sides("sigmoid", one(Sigmoid()), box(-1.0, 1.0, 2), maximum)
    assert kind(safe, None) == VERIFIED
    assert kind(broken, None) == FALSIFIED
    constant = chain(1, (Linear(torch.tensor([[1.0], [-1.0]]), None), 2), (Sigmoid(), 2), (Linear(torch.ones(1, 2), None), 1))
    question = above(constant, box(-4.0, 4.0, 1), 1.01)
    verdict = verify(constant, question, stages=exactly()).verdict
    assert isinstance(verdict, Unknown)
    assert "no exact MILP form" in verdict.reason
    assert verdict.bound is not None
    by_crown = verify(constant, question, stages=BOUNDS).verdict
    assert isinstance(by_crown, Unknown)
    assert by_crown.bound is not None
    assert by_crown.bound <= verdict.bound <= 0.01


def tight_relaxation(patch: pytest.MonkeyPatch) -> None:
    """Upper planes of ReLU at half their height."""
    relax = Relu.relax

    def planted(self: Relu, x: object, slopes: object = "adaptive") -> Relaxation:
        planes = relax(self, x, slopes)  # type: ignore[arg-type]
        return Relaxation(planes.lower_slope, planes.lower_intercept, planes.upper_slope, planes.upper_intercept / 2)

    patch.setattr(Relu, "relax", planted)


def dropped_neuron(patch: pytest.MonkeyPatch) -> None:
    """The first unstable neuron of a layer is encoded as 0."""
    encode = milp.walk.encode_piecewise

    def planted(builder, z, curve, mask):  # type: ignore[no-untyped-def]
        unstable = np.flatnonzero(mask & ~curve.stable)
        kept = mask.copy()
        kept[unstable[:1]] = False
        found = encode(builder, z, curve, kept)
        keep = np.ones(mask.size)
        keep[unstable[:1]] = 0.0
        return replace(
            found, matrix=milp.activations._scale_rows(found.matrix, keep), constant=found.constant * keep, error=found.error * keep
        )

    patch.setattr(milp.walk, "encode_piecewise", planted)


def small_big_m(patch: pytest.MonkeyPatch) -> None:
    """Every big-M at half its size."""
    difference = milp.activations._difference_up
    patch.setattr(milp.activations, "_difference_up", lambda a, b: difference(a, b) / 2)


def small_intervals(patch: pytest.MonkeyPatch) -> None:
    """Hidden intervals narrower than they are, as an unsound engine would leave them."""
    call = Crown.__call__

    def planted(self, network, region, objective=None, known=None):  # type: ignore[no-untyped-def]
        found = call(self, network, region, objective, known)
        middle = [(b.lower + b.upper) / 2 for b in found.intervals]
        narrow = [
            replace(b, lower=m + (b.lower - m) / 4, upper=m + (b.upper - m) / 4) for b, m in zip(found.intervals, middle, strict=True)
        ]
        return replace(found, intervals=tuple(narrow))

    patch.setattr(Crown, "__call__", planted)


def one_set_only(patch: pytest.MonkeyPatch) -> None:
    """Closing one unsafe set closes all of them."""
    impossible = type(Query.of(bump(), CASES[0].question, Options()).goal).impossible
    patch.setattr(
        "verify.spec.Margins.impossible", lambda self, lower: impossible(self, lower).any(-1, keepdim=True).expand(len(self.ranges))
    )


PLANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], tuple[Stage, ...]]] = [
    (tight_relaxation, BOUNDS),
    (dropped_neuron, exactly()),
    (small_big_m, exactly()),
    (small_intervals, exactly()),
    (one_set_only, exactly()),
]


@pytest.mark.parametrize("plant, stages", PLANTS, ids=[plant.__name__ for plant, _ in PLANTS])
def test_planted_bugs_show(plant: Callable[[pytest.MonkeyPatch], None], stages: tuple[Stage, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    cases = EXACT_ONLY if stages is not BOUNDS else [case for case in EXACT_ONLY if case.answer == FALSIFIED]
    unsound = [f"{case.name}: {VERIFIED} != {FALSIFIED}" for case in cases]
    assert not set(wrong(cases, stages)) & set(unsound)
    plant(monkeypatch)
    assert set(wrong(cases, stages)) & set(unsound)


@dataclass
class Liar:
    """A solver that claims a bound it has not proven; `solution` is what it hands back."""

    bound: float = 1.0
    name: str = "liar"
    x: Callable[[Program], np.ndarray] | None = None

    def solve(self, program: Program, limits: Limits = Limits(), stop: StopRule | None = None) -> Solution:  # noqa: B008
        x = None if self.x is None else self.x(program)
        return conclude(
            program, Answer(Status.SIGN_DECIDED, x, self.bound), solver=self.name, tolerances=Tolerances(), seconds=0.0, stop=stop
        )


def honest_point(program: Program) -> np.ndarray:
    solution = get_solver("highs").solve(program)
    assert solution.x is not None
    return solution.x


def hire(patch: pytest.MonkeyPatch, solver: object) -> None:
    """Make `solver` what "scip" names."""
    patch.setattr("milp.solvers.get_solver", lambda name: solver if name == "scip" else get_solver(name))


BROKEN = next(case for case in CASES if case.name == "tooth met")
HARD = next(case for case in CASES if case.name == "three tents below 1.01")


def test_a_lying_solver_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any guard the battery itself would tell."""
    hire(monkeypatch, Liar())
    monkeypatch.setattr(milp.prove, "reproduces", lambda *_: True)
    assert kind(BROKEN, exactly()) == VERIFIED != BROKEN.answer


def test_a_solver_that_does_not_know_the_network_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    hire(monkeypatch, Liar())
    assert kind(BROKEN, exactly()) == UNKNOWN


def test_a_second_solver_does_not_confirm_a_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    hire(monkeypatch, Liar())
    monkeypatch.setattr(milp.prove, "reproduces", lambda *_: True)
    verdict = verify(BROKEN.network, BROKEN.question, stages=exactly(), confirm="highs").verdict
    assert isinstance(verdict, Unknown)
    assert "did not confirm" in verdict.reason
    again = verify(HARD.network, HARD.question, stages=exactly("highs"), confirm="highs").verdict
    assert isinstance(again, Unknown)
    assert "itself" in again.reason


def test_a_second_solver_confirms_the_truth() -> None:
    verdict = verify(HARD.network, HARD.question, stages=exactly(), confirm="highs").verdict
    assert isinstance(verdict, Verified)
    assert "confirmed by highs" in verdict.detail


def test_a_bound_above_the_solvers_own_point_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hire(monkeypatch, Liar(x=honest_point))
    monkeypatch.setattr(milp.prove, "reproduces", lambda *_: True)
    assert kind(HARD, exactly()) == UNKNOWN


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("bound", [None, 0.0, -1.0, math.nan, math.inf, 1.0])
def test_no_status_without_a_settled_bound_verifies(status: Status, bound: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Talker:
        name = "talker"

        def solve(self, program: Program, limits: Limits = Limits(), stop: StopRule | None = None) -> Solution:  # noqa: B008
            return conclude(program, Answer(status, None, bound), solver="talker", tolerances=Tolerances(), seconds=0.0, stop=stop)

    hire(monkeypatch, Talker())
    monkeypatch.setattr(milp.prove, "reproduces", lambda *_: True)
    believed = bound == 1.0 and status in (Status.SIGN_DECIDED, Status.TIME_LIMIT, Status.MEMORY_LIMIT, Status.INTERRUPTED)
    assert kind(HARD, exactly()) == (VERIFIED if believed else UNKNOWN)


@dataclass(frozen=True)
class Meet:
    """A stage that meets a point without replaying it."""

    x: torch.Tensor
    name: str = "meet"
    kind: str = "attack"

    def __call__(self, query: Query) -> Query:
        return query.meeting(self.x)


def worst_point(case: Case) -> torch.Tensor:
    """The sample of the smallest margin."""
    points, margins = sampled(case)
    return points[margins.argmin()]


@pytest.mark.parametrize("plant, stages", PLANTS[1:4], ids=[plant.__name__ for plant, _ in PLANTS[1:4]])
def test_a_point_that_was_met_stops_a_false_proof(
    plant: Callable[[pytest.MonkeyPatch], None], stages: tuple[Stage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for case in EXACT_ONLY:
        if case.answer == FALSIFIED:
            assert kind(case, (Meet(worst_point(case)), *stages)) != VERIFIED


def test_a_false_proof_is_an_error_and_a_point_outside_teaches_nothing() -> None:
    peak = next(case for case in CASES if case.name == "tent of tent below 0.99")
    query = Query.of(peak.network, peak.question, Options())
    with pytest.raises(ProofError, match="defect"):
        query.meeting(torch.tensor([0.25])).verified("test")
    assert query.meeting(torch.tensor([2.25])).met == math.inf
    assert query.meeting(torch.tensor([0.0])).met == pytest.approx(0.99)
    claims = replace(query, lower=torch.tensor([0.5], dtype=torch.float64) + query.goal.d)
    assert claims.meeting(torch.tensor([0.0])).verified("test").bound == pytest.approx(0.5)
    with pytest.raises(ProofError, match=r"above 0\.5"):
        claims.meeting(torch.tensor([0.1875])).verified("test")


def test_nan_closes_nothing() -> None:
    query = Query.of(BROKEN.network, BROKEN.question, Options())
    assert not query.goal.impossible(torch.tensor([math.nan], dtype=torch.float64)).any()
    poisoned = chain(1, (Linear(torch.tensor([[math.nan]]), None), 1))
    for stages in (BOUNDS, None):
        with pytest.raises(NumericsError):
            verify(poisoned, above(poisoned, UNIT, 1.0), stages=stages)


def test_weights_too_large_for_float32_are_bounded_in_float64() -> None:
    network = chain(1, (Linear(torch.tensor([[1e30]]), None), 1), (Linear(torch.tensor([[1e30]]), None), 1))
    verdict = verify(network, above(network, UNIT, 2e60), stages=BOUNDS).verdict
    assert isinstance(verdict, Verified)


def test_coefficients_that_float32_does_not_hold() -> None:
    question = sets(UNIT, ([[-0.1, 0.0]], [-0.101]))
    assert kind(Case("tenth", tent(2), question, VERIFIED), None) == VERIFIED
    assert kind(Case("tenth", tent(2), sets(UNIT, ([[-0.1, 0.0]], [-0.099])), FALSIFIED), None) == FALSIFIED


def test_an_empty_question_is_an_error() -> None:
    with pytest.raises(SpecError, match="no specification"):
        verify(bump(), ())


@dataclass(frozen=True)
class Raises:
    """An engine that fails."""

    error: Exception

    def __call__(self, *_: object) -> object:
        raise self.error


@pytest.mark.parametrize("error", [MemoryLimitError("one row needs more"), TimeLimitError("late")], ids=["memory", "time"])
def test_a_limit_inside_an_engine_is_unknown_with_the_reason(error: Exception) -> None:
    failing = Bound("failing", lambda dtype, options: Raises(error))  # type: ignore[arg-type,return-value]
    verdict = verify(HARD.network, HARD.question, stages=(failing,)).verdict
    assert isinstance(verdict, Unknown)
    assert "limit" in verdict.reason
    assert kind(HARD, (failing, *exactly())) == VERIFIED


def test_the_memory_limit_is_honoured() -> None:
    torch.manual_seed(0)
    wide = chain(4, (Linear(torch.randn(3000, 4), None), 3000), (Relu(), 3000), (Linear(torch.randn(1, 3000), None), 1))
    values = wide.to(torch.float64)(torch.rand(500, 4, dtype=torch.float64)).flatten()
    question = above(wide, box(0.0, 1.0, 4), float(values.max()) + 5.0)
    verdict = verify(wide, question, memory_mb=0.001, stages=exactly(), timeout=20.0).verdict
    assert isinstance(verdict, Unknown)
    assert "memory" in verdict.reason


def test_no_time_is_unknown() -> None:
    result = verify(HARD.network, HARD.question, timeout=0.0)
    assert isinstance(result.verdict, Unknown)
    assert "time limit" in result.verdict.reason


def test_an_interrupt_inside_a_solver_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        name = "interrupted"

        def solve(self, *_: object) -> Solution:
            raise KeyboardInterrupt

    hire(monkeypatch, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        verify(HARD.network, HARD.question, stages=exactly())


@pytest.mark.parametrize("solver", [None, "scip", "highs"])
def test_a_missing_solver_is_unknown_with_the_way_out(solver: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import milp.solvers as table

    for name in SOLVERS:
        monkeypatch.setitem(table.SOLVERS, name, replace(table.SOLVERS[name], package="no_such_package"))
    verdict = verify(HARD.network, HARD.question, stages=exactly(solver)).verdict
    assert isinstance(verdict, Unknown)
    assert "pip install" in verdict.reason


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("planted"), MemoryError(), RuntimeError("out of memory")], ids=lambda e: type(e).__name__
)
def test_a_crash_never_exits_like_a_verdict(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def crash(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(cli.ringfence, "main", crash)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify"])
    assert stopped.value.code == 2
    assert type(error).__name__ in capsys.readouterr().err


def test_default_stages_start_with_an_attack_and_end_exactly() -> None:
    stages = default_stages()
    assert isinstance(stages[0], Falsify)
    assert isinstance(stages[0].attack, Pgd)
    assert isinstance(stages[-1], Exact)
