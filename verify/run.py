"""One question, one answer: run(query, stages)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from bounds.alpha import AlphaCrown
from bounds.engine import DEFAULT_MEMORY_MB, BoundEngine, place
from bounds.errors import SpecError
from bounds.ibp import Ibp
from bounds.network import Network
from verify.account import StageRecord
from verify.attack import Pgd
from verify.bisection import SplitInput
from verify.branch import SplitNeurons
from verify.reduce import Reduce
from verify.refute import Refute
from verify.spec import Property, Specification
from verify.stages import Bound, Exact, Falsify, Options, Query, Selective, Stage, Tighten, crown
from verify.unfold import Unfold
from verify.verdict import Falsified, Semantics, Unknown, Verdict, Verified

Effort = Literal["quick", "normal", "thorough"]
"""quick: attack, IBP, CROWN and alpha-CROWN only, an answer that may stay open. thorough: longer ascents and attacks before and between the
stages of normal, for questions with minutes of time."""


@dataclass(frozen=True, eq=False)
class Result:
    """A verdict and how it came about. seconds: spent in the kinds of stages "attack", "bounds", "milp" and in total. stages: what each stage
    did with each specification, in the order of the run; stages after the decision are not listed."""

    verdict: Verdict
    seconds: dict[str, float] = field(default_factory=dict)
    stages: tuple[StageRecord, ...] = ()


_HIDDEN_SHARE = 0.15
"""Of the time that is left, for slopes of hidden neurons' bounds: networks of many small layers take longest for them."""


def _ibp(dtype: torch.dtype, options: Options) -> BoundEngine:
    return Ibp(dtype, options.device, options.semantics, memory_mb=options.memory_mb)


def _alpha(steps: int) -> Callable[[torch.dtype, Options], BoundEngine]:
    def build(dtype: torch.dtype, options: Options) -> BoundEngine:
        until = options.until(_HIDDEN_SHARE)
        return AlphaCrown(
            dtype,
            options.device,
            options.semantics,
            options.memory_mb,
            deadline=options.deadline,
            steps=steps,
            both=False,
            hidden_until=until,
        )

    return build


def default_stages(seed: int = 0, effort: Effort = "normal") -> tuple[Stage, ...]:
    """Cheap stages first. Each kind comes back with more effort when the question turns out to be hard.

    On small networks thousands of restarts cost less than a second; on large ones the attack ends when its seconds are over.
    """
    thorough = effort == "thorough"
    longer = 5 if thorough else 1
    first = (Falsify(Pgd(steps=20, restarts=2, seed=seed), seconds=1.0), Bound("ibp", _ibp), Bound("crown", crown))
    alpha = Bound("alpha", _alpha(100 if thorough else 20))
    if effort == "quick":
        return (*first, alpha)
    return (
        *first,
        SplitInput(most_bounded=600),
        alpha,
        Falsify(Pgd(steps=60, restarts=250 * longer, seed=seed + 1), seconds=2.0 * longer, unless=SplitInput()),
        Unfold(),
        Reduce(),
        SplitInput(),
        SplitNeurons(seconds=1.0),
        Refute(),
        Exact(seconds=3.0 * longer, most_unstable=200, shallow=30.0 * longer),
        SplitNeurons(root_steps=200, share=0.6) if thorough else SplitNeurons(share=0.6),
        Falsify(Pgd(steps=100, restarts=4000 * longer, seed=seed + 2), seconds=3.0 * longer),
        Tighten(seconds=20.0 * longer),
        Exact(),
    )


def verify(  # noqa: PLR0913 - keyword-only settings of one call
    network: Network,
    question: Specification | Property,
    *,
    timeout: float | None = None,
    device: str = "cpu",
    memory_mb: float = DEFAULT_MEMORY_MB,
    seed: int = 0,
    semantics: Semantics = "real",
    confirm: str | None = None,
    effort: Effort = "normal",
    stages: Sequence[Stage] | None = None,
    observe: Callable[[str], None] | None = None,
) -> Result:
    """Decide whether any input of the question's regions makes the network violate it.

    Args:
        network: the network; counterexamples are replayed on `network.original` where it has one.
        question: one specification, or several of which none may be violated.
        timeout: seconds for the whole question; then the verdict is unknown with the best bound so far.
        memory_mb: memory for coefficient tensors and solvers. seed: of everything random. confirm: a second MILP solver that must agree.
        effort: see `Effort`. stages: instead of `default_stages`. observe: told the name of every stage as it starts.

    Raises:
        SpecError: the question is empty, or about another number of inputs or outputs. DeviceError: the device is not there.
        ProofError: a proof contradicts a point that was met. NumericsError: NaN or infinity met.

    Property: `Verified` is sound (see its `proof`), `Falsified` is replayed; otherwise `Unknown` says why.
    """
    start = time.monotonic()
    specifications = (question,) if isinstance(question, Specification) else tuple(question)
    if not specifications:
        raise SpecError("the question holds no specification; with none there is nothing to verify")
    for specification in specifications:
        _check_fit(network, specification)
    place(device)
    options = Options(None if timeout is None else start + timeout, device, memory_mb, seed, semantics, confirm)
    chosen = tuple(stages or default_stages(seed, effort))
    verdict, records = _run([Query.of(network, s, options) for s in specifications], chosen, observe)
    seconds = {kind: sum(r.seconds for r in records if r.kind == kind) for kind in ("attack", "bounds", "milp")}
    return Result(verdict, seconds | {"total": time.monotonic() - start}, tuple(records))


def _check_fit(network: Network, specification: Specification) -> None:
    if tuple(specification.region.shape) != network.input_shape:
        raise SpecError(
            f"the network reads inputs of shape {network.input_shape}, the question is about {tuple(specification.region.shape)}"
        )
    if specification.outputs != network.outputs:
        raise SpecError(f"the network has {network.outputs} outputs, the question is about {specification.outputs}")


def _run(queries: Sequence[Query], stages: Sequence[Stage], observe: Callable[[str], None] | None) -> tuple[Verdict, list[StageRecord]]:
    """Every stage on every open specification before the next stage: the cheap ones first for all."""
    options, open_queries = queries[0].options, dict(enumerate(queries))
    records: list[StageRecord] = []
    proven: list[Verified] = []
    for stage in stages:
        if observe is not None and open_queries and not options.late:
            observe(stage.name)
        for index, query in list(open_queries.items()):
            begin = time.monotonic()
            skipped = _why_skipped(stage, query)
            outcome = stage(query) if skipped is None else query
            records.append(_record(stage, index, time.monotonic() - begin, skipped, (query, outcome)))
            if isinstance(outcome, Falsified):
                return outcome, records
            if isinstance(outcome, Verified):
                proven.append(outcome)
                del open_queries[index]
            elif isinstance(outcome, Query):
                open_queries[index] = outcome
    if open_queries:
        return _undecided(list(open_queries.values()), options), records
    return _weakest(proven), records


def _why_skipped(stage: Stage, query: Query) -> str | None:
    """Why a query is not given to a stage, or None if it is."""
    if query.options.late:
        return "time limit"
    return stage.skips(query) if isinstance(stage, Selective) else None


def _record(stage: Stage, index: int, seconds: float, skipped: str | None, change: tuple[Query, Verdict | Query]) -> StageRecord:
    """What a stage made of a query. change: the query before it, and what it answered."""
    before, outcome = change
    after = outcome if isinstance(outcome, Query) else before
    bound, left = after.bound, int((~after.closed).sum())
    if isinstance(outcome, Verified):
        bound, left, kind, reason = outcome.bound, 0, "verified", outcome.detail
    elif isinstance(outcome, Falsified):
        kind, reason = "falsified", "replayed on the original model"
    else:
        kind = "open" if skipped is None else "skipped"
        reason = skipped or "; ".join(note for note in after.notes if note not in before.notes)
    unstable = after.unstable if after.intervals else None
    return StageRecord(stage.name, stage.kind, index, seconds, kind, reason, left, len(after.closed), unstable, bound)


def _undecided(queries: list[Query], options: Options) -> Unknown:
    """The first reason, and the worst of the best bounds."""
    unknown = [(q.noting("time limit") if options.late else q).unknown() for q in queries]
    bounds = [u.bound for u in unknown]
    return Unknown(unknown[0].reason, None if any(b is None for b in bounds) else min(b for b in bounds if b is not None))


def _weakest(proven: list[Verified]) -> Verified:
    """One verdict for several proven specifications: the smallest bound, the weaker proof, the last stage needed."""
    solver = [v for v in proven if v.proof == "solver"]
    last = (solver or proven)[-1]
    bounds = [v.bound for v in proven]
    bound = None if any(b is None for b in bounds) else min(b for b in bounds if b is not None)
    return Verified(bound, last.proof, last.semantics, last.decided_by, last.detail)
