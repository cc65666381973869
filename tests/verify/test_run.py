"""Runs: which stage gets what, and how several specifications become one verdict."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bounds.errors import DeviceError, NumericsError, SpecError
from bounds.interval import Interval
from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.ops.piecewise import Relu
from bounds.region import Box
from tests.verify.nets import bump, chain, linear
from verify.attack import Pgd
from verify.output import Answer, describe
from verify.refute import Refute
from verify.run import default_stages, verify
from verify.spec import Specification, output_bounds, robustness
from verify.stages import Bound, Exact, Falsify, Options, Query, Tighten
from verify.verdict import Falsified, Unknown, Verdict, Verified
from verify.vnnlib import parse_vnnlib

SUM = linear([[1.0, 1.0]])


def box(low: float = 0.0, high: float = 1.0, size: int = 2) -> Box:
    return Box(torch.full((1, size), low, dtype=torch.float64), torch.full((1, size), high, dtype=torch.float64))


def below(limit: float, region: Box | None = None) -> Specification:
    return output_bounds(region or box(), [None], [limit])


@dataclass
class Recorder:
    """A stage that notes what it is asked and answers what it is told."""

    answer: Callable[[Query], Verdict | Query] = lambda query: query
    name: str = "recorder"
    kind: str = "bounds"
    asked: list[Query] = field(default_factory=list)

    def __call__(self, query: Query) -> Verdict | Query:
        self.asked.append(query)
        return self.answer(query)


def proven(bound: float | None, proof: str = "rigorous", by: str = "test") -> Verified:
    return Verified(bound, proof, "real", by, f"{by} says so")  # type: ignore[arg-type]


def answers(*verdicts: Verdict | None) -> Recorder:
    """One verdict (or None to hand on) for every question in turn."""
    turn = itertools.cycle(verdicts)
    return Recorder(lambda query: next(turn) or query)


def test_cheap_stages_see_every_specification_first() -> None:
    order: list[str] = []

    def stage(name: str) -> Recorder:
        return Recorder(lambda query: order.append(name + query.specification.description[-3:]) or query, name)

    questions = tuple(replace(below(3.0), description=f"case {number}") for number in ("one", "two"))
    verify(SUM, questions, stages=(stage("a"), stage("b")))
    assert order == ["aone", "atwo", "bone", "btwo"]


def test_decided_specifications_are_not_asked_again() -> None:
    last = Recorder()
    verify(SUM, (below(3.0), below(4.0)), stages=(answers(proven(1.0), None), last))
    assert len(last.asked) == 1


def test_one_counterexample_decides_all() -> None:
    result = verify(SUM, (below(3.0), below(1.5), below(1.0)), stages=(Falsify(Pgd(steps=5, restarts=1)),))
    assert isinstance(result.verdict, Falsified)
    assert result.verdict.y[0] >= 1.5


def test_all_must_be_proven_and_the_weakest_counts() -> None:
    questions = (below(3.0), below(4.0), below(5.0))
    both = verify(SUM, questions, stages=(answers(proven(2.0), proven(0.5, "solver", "milp"), proven(1.0, by="crown")),)).verdict
    assert both == Verified(0.5, "solver", "real", "milp", "milp says so")
    assert verify(SUM, questions, stages=(answers(proven(2.0), proven(None), proven(1.0)),)).verdict == proven(None, by="test")
    open_one = verify(SUM, questions, stages=(answers(proven(2.0), None, proven(1.0)),)).verdict
    assert isinstance(open_one, Unknown)


def test_unknown_tells_the_reason_and_the_worst_bound() -> None:
    def bounded(low: float, reason: str) -> Callable[[Query], Query]:
        return lambda query: replace(query.noting(reason), lower=torch.tensor([low], dtype=torch.float64))

    turn = iter([bounded(-4.0, "first"), bounded(-7.0, "second")])
    verdict = verify(SUM, (below(3.0), below(4.0)), stages=(Recorder(lambda query: next(turn)(query)),)).verdict
    assert isinstance(verdict, Unknown)
    assert verdict.reason == "first"
    assert verdict.bound == pytest.approx(-3.0)
    nothing = verify(SUM, below(3.0), stages=(Recorder(),)).verdict
    assert nothing == Unknown("the bounds are not tight enough and no exact stage was asked for", None)


def test_seconds_go_to_their_kinds() -> None:
    slow = Recorder(lambda query: time.sleep(0.05) or query, kind="milp")
    seconds = verify(SUM, (below(3.0), below(3.0)), stages=(slow,)).seconds
    assert seconds["milp"] >= 0.1
    assert seconds["attack"] == seconds["bounds"] == 0.0
    assert seconds["total"] >= seconds["milp"]


def test_after_the_deadline_no_stage_is_asked() -> None:
    late = Recorder()
    slow = Recorder(lambda query: time.sleep(0.1) or query)
    verdict = verify(SUM, below(3.0), timeout=0.05, stages=(slow, late)).verdict
    assert late.asked == []
    assert isinstance(verdict, Unknown)
    assert verdict.reason == "time limit"


def test_budgets() -> None:
    assert Options().budget(None) is None
    assert Options().budget(3.0) == 3.0
    soon = Options(deadline=time.monotonic() + 10)
    assert soon.budget(3.0) == 3.0
    assert soon.budget(30.0) == pytest.approx(5.0, abs=0.5)
    assert soon.budget(None) == pytest.approx(10.0, abs=0.5)
    past = Options(deadline=time.monotonic() - 1)
    assert past.late
    assert past.budget(3.0) == 0.0


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(SpecError, match="inputs of shape"):
        verify(SUM, below(3.0, box(size=3)))
    with pytest.raises(SpecError, match="outputs"):
        verify(SUM, output_bounds(box(), [None, None], [1.0, None]))
    with pytest.raises(SpecError, match="no specification"):
        verify(SUM, ())
    with pytest.raises(DeviceError):
        verify(SUM, below(3.0), device="abacus")


def test_what_a_stage_learns_reaches_the_next() -> None:
    last = Recorder()
    stages = (Bound("crown", default_stages()[2].engine), last)  # type: ignore[attr-defined]
    wider = output_bounds(box(), [None, None], [0.1, None])
    verify(bump(), wider, stages=stages)
    (query,) = last.asked
    assert set(query.intervals) == set(range(len(bump().nodes)))
    assert query.unstable == 1
    assert query.bound is not None
    assert query.bound < 0
    assert query.starts is not None


def test_intervals_never_get_wider() -> None:
    narrow = {1: Interval(torch.tensor([[-0.5]], dtype=torch.float64), torch.tensor([[0.25]], dtype=torch.float64))}
    first = Recorder(lambda query: replace(query, intervals=narrow))
    last = Recorder()
    verify(bump(), output_bounds(box(), [None, None], [0.1, None]), stages=(first, default_stages()[2], last))
    assert float(last.asked[0].intervals[1].lower[0, 0]) >= -0.5
    assert float(last.asked[0].intervals[1].upper[0, 0]) <= 0.25


def test_the_exact_stage_leaves_large_questions_alone() -> None:
    tight = output_bounds(box(), [None, None], [0.51, None])
    ibp, crown = default_stages()[1:3]
    never = verify(bump(), replace_set(tight, 0.4), stages=(ibp, crown, Exact(most_unstable=0))).verdict
    assert isinstance(never, Unknown)
    assert isinstance(verify(bump(), replace_set(tight, 0.4), stages=(ibp, crown, Exact(most_unstable=1))).verdict, Falsified)
    assert isinstance(verify(bump(), replace_set(tight, 0.4), timeout=0.0, stages=(Exact(),)).verdict, Unknown)


def replace_set(question: Specification, limit: float) -> Specification:
    unsafe = Halfspaces(question.unsafe[0].C, torch.tensor([-limit], dtype=torch.float64))
    return replace(question, unsafe=(unsafe,))


def test_the_exact_stage_needs_bounds() -> None:
    verdict = verify(bump(), output_bounds(box(), [None, None], [0.4, None]), stages=(Exact(), Tighten())).verdict
    assert isinstance(verdict, Unknown)
    assert "needs bounds" in verdict.reason


def test_float32_any_order_is_not_left_to_programs() -> None:
    ibp, crown = default_stages()[1:3]
    question = output_bounds(box(), [None, None], [0.4, None])
    verdict = verify(bump(), question, semantics="float32-any-order", stages=(ibp, crown, Tighten(), Exact())).verdict
    assert isinstance(verdict, Unknown)
    assert "float32-any-order" in verdict.reason


def test_rounded_inputs_are_listed_in_the_document() -> None:
    """0.1 is no float32 number: the model is given its rounding, and the document says which input that is."""
    text = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)"
    text += "(assert (= X_0 0.1))(assert (<= 0 X_1 1))(assert (>= Y_0 1.05))"
    result = verify(SUM, parse_vnnlib(text).specifications())
    assert isinstance(result.verdict, Falsified)
    assert result.verdict.rounded == (0,)
    assert describe(Answer(result.verdict, {"total": 0.0}, "real"))["counterexample"]["rounded"] == [0]


def test_default_stages_are_deterministic() -> None:
    found = [verify(bump(), output_bounds(box(), [None, None], [0.4, None]), seed=3).verdict for _ in range(2)]
    assert all(isinstance(verdict, Falsified) for verdict in found)
    assert found[0].x.tolist() == found[1].x.tolist()  # type: ignore[union-attr]


def test_nan_is_an_error_and_no_verdict() -> None:
    network: Network = linear([[math.nan, 1.0]])
    with pytest.raises(NumericsError, match="NaN"):
        verify(network, below(3.0))


def test_programs_are_asked_about_one_layer_whatever_its_size() -> None:
    tight = replace_set(output_bounds(box(), [None, None], [0.51, None]), 0.4)
    ibp, crown = default_stages()[1:3]
    small = Exact(most_unstable=0, shallow=5.0)
    recorder = Recorder()
    assert isinstance(verify(bump(), tight, stages=(ibp, crown, recorder, small)).verdict, Falsified)
    assert recorder.asked[0].layers == 1
    assert Refute(most_shallow=0).skips(recorder.asked[0]) is not None
    # most of what is left whatever the number of neurons, as nothing else is as good there
    assert (_seconds(recorder.asked[0], Exact(seconds=1.0, shallow=100.0)), _seconds(recorder.asked[0], Exact(seconds=1.0))) == (80.0, 1.0)
    # relu(relu(x0 + x1 - 1.5) - 0.1): both neurons are unstable
    again = chain(2, (bump().nodes[1].op, 1), (Relu(), 1), (Linear(torch.ones(1, 1), torch.tensor([-0.1])), 1), (Relu(), 1))
    deeper = Recorder()
    assert isinstance(verify(again, output_bounds(box(), [None], [0.2]), stages=(ibp, deeper, small)).verdict, Unknown)
    assert deeper.asked[0].layers == 2
    assert Refute(most_shallow=0).skips(deeper.asked[0]) is None
    assert _seconds(deeper.asked[0], Exact(seconds=1.0, shallow=100.0)) == 1.0


def _seconds(query: Query, stage: Exact) -> float:
    """What a stage gives its programs of a hundred seconds, rounded."""
    given: list[float] = []

    def recorded(query: Query, number: int, solver: object, second: object, left: float) -> Query:
        given.append(left)
        return query

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exact, "_one", lambda self, *asked: recorded(*asked))
        stage(replace(query, options=replace(query.options, deadline=time.monotonic() + 100.0)))
    return round(given[0], 0)


def test_a_memory_limit_leaves_the_bound_of_what_fits(root: Path) -> None:
    """One row of CROWN's coefficients does not fit, interval propagation does: unknown, with its bound and the limit named."""
    network = Network.from_onnx(root / "demo" / "network.onnx")
    image = torch.from_numpy(np.load(root / "demo" / "images.npz")["images"][0, None] / 255)
    question = robustness(image, 7, 0.12, norm=math.inf, outputs=10)
    verdict = verify(network, question, memory_mb=0.01, stages=default_stages()[1:3]).verdict
    assert isinstance(verdict, Unknown)
    assert "memory limit" in verdict.reason
    assert verdict.bound is not None
    assert -math.inf < verdict.bound < 0
