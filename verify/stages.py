"""The stages of a verification run: each decides a question or hands on a better-informed one.

Falsify(attack)      searches counterexamples; every candidate is replayed on the original model
Bound(engine)        closes the unsafe sets whose margins are proven positive, tightens pre-activations
Reduce()             leaves inactive neurons out (see verify/reduce.py)
Refute()             excludes unsafe sets by contradiction (see verify/refute.py)
SplitInput()         bisects the region of a question about few inputs (see verify/bisection.py)
SplitNeurons()       splits activations, batches of sub-problems at once (see verify/branch.py)
Exact(solver)        decides the open sets by mixed-integer programming
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from bounds.crown import Crown
from bounds.engine import DEFAULT_MEMORY_MB, BoundEngine, Bounds
from bounds.errors import DomainError, MemoryLimitError, NumericsError, ProofError, SolverError, TimeLimitError, UnsupportedOpError
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.base import Activation
from verify.attack import Attack, falsify, starts_from_bounds
from verify.divided import Divided
from verify.spec import Margins, Specification, margins
from verify.verdict import Proof, Semantics, Unknown, Verdict, Verified, confirm

if TYPE_CHECKING:
    from milp.program import Solver
    from milp.prove import Outcome


@dataclass(frozen=True)
class Options:
    """What limits a run and what its verdicts cover."""

    deadline: float | None = None
    device: str = "cpu"
    memory_mb: float = DEFAULT_MEMORY_MB
    seed: int = 0
    semantics: Semantics = "real"
    confirm: str | None = None

    def remaining(self) -> float | None:
        """Seconds until the deadline (not below 0), or None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def budget(self, seconds: float | None, share: float = 0.5) -> float | None:
        """Seconds for one stage: what it asks for, but at most a share of what is left, so that later stages get their turn."""
        left = self.remaining()
        if seconds is None or left is None:
            return left if seconds is None else seconds
        return min(seconds, share * left)

    def until(self, share: float) -> float | None:
        """When a share of the time that is left is over, on time.monotonic(), or None without a deadline."""
        left = self.remaining()
        return None if left is None else time.monotonic() + share * left

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(frozen=True, eq=False)
class Query:
    """One specification and everything proven about it so far.

    lower: (rows,) float64, proven lower bounds of C y. closed: (sets,) mask of the unsafe sets excluded so far. intervals: proven enclosures
    of nodes on the region, by node index. proof: the weakest proof used. notes: reasons why stages could not decide. starts: points where
    the relaxation is smallest, (1, points, *input_shape), worth attacking from. details: how solvers proved what they proved. met: the
    smallest margin met at a point of the region, in float64; no proof may claim more. floor: a proven lower bound of the worst margin found
    by dividing the region, where no bound holds row by row. implied: by unsafe set, what nodes can be where that set is reached. divided: the
    parts of the region that a first look left open.
    """

    network: Network
    specification: Specification
    options: Options
    lower: Tensor
    closed: Tensor
    intervals: dict[int, Interval] = field(default_factory=dict)
    proof: Proof = "rigorous"
    notes: tuple[str, ...] = ()
    starts: Tensor | None = None
    details: tuple[str, ...] = ()
    met: float = math.inf
    floor: float = -math.inf
    implied: dict[int, dict[int, Interval]] = field(default_factory=dict)
    divided: Divided | None = None

    @staticmethod
    def of(network: Network, specification: Specification, options: Options) -> Query:
        """A question about which nothing is known yet."""
        goal = margins(specification)
        lower = torch.full((goal.C.shape[0],), -torch.inf, dtype=torch.float64)
        return Query(network, specification, options, lower, torch.zeros(len(goal.ranges), dtype=torch.bool))

    @property
    def goal(self) -> Margins:
        """The rows of all unsafe sets."""
        return margins(self.specification)

    @property
    def in_float32(self) -> bool:
        """Whether the rows are exact in float32, so that engines can work in it."""
        C = self.goal.C
        return bool((C.to(torch.float32).to(C) == C).all())

    @property
    def bound(self) -> float | None:
        """The best proven lower bound of the worst margin, or None."""
        worst = max(float(self.goal.worst(self.lower)), self.floor)
        return worst if worst > -torch.inf else None

    @property
    def excluded(self) -> float:
        """A lower bound of the margins of the closed sets, infinite where there are none; 0 for sets that were excluded without a bound."""
        return float(self.goal.at_least(self.lower).clamp_min(0.0)[self.closed].min()) if bool(self.closed.any()) else math.inf

    @property
    def unstable(self) -> int:
        """How many neurons the intervals leave unstable."""
        nodes, successors = self.network.nodes, self.network.successors
        users = [(k, nodes[user].op) for k in self.intervals for user in successors[k]]
        return sum(int(op.unstable(self.intervals[k]).sum()) for k, op in users if isinstance(op, Activation))

    @property
    def layers(self) -> int:
        """How many activations with unstable neurons follow each other at most."""
        depth: list[int] = []
        for node in self.network.nodes:
            op, met = node.op, [self.intervals[k] for k in node.inputs if k in self.intervals]
            here = isinstance(op, Activation) and any(bool(op.unstable(interval).any()) for interval in met)
            depth.append(max((depth[k] for k in node.inputs), default=0) + here)
        return depth[-1]

    def noting(self, reason: str) -> Query:
        """The same query with one more reason."""
        return self if reason in self.notes else replace(self, notes=(*self.notes, reason))

    def meeting(self, x: Tensor) -> Query:
        """The same query after a point x (*input_shape) was met; points outside the region teach nothing."""
        point = x.detach().to("cpu", torch.float64)
        if not bool(self.specification.region.to(torch.float64, torch.device("cpu")).contains(point[None, None])[0, 0]):
            return self
        with torch.no_grad():
            y = self.network.to(torch.float64, "cpu")(point[None]).flatten(1)
        margin = float(self.goal.of(y).amin())
        return replace(self, met=margin) if margin < self.met else self

    def verified(self, decided_by: str, detail: str = "") -> Verified:
        """The verdict once every set is closed.

        Raises:
            ProofError: a point of the region was met whose margin is smaller than what was proven.
        """
        bound = self.bound
        positive = bound if bound is not None and bound > 0 else None
        if self.met < (positive or 0.0) - _EVALUATION * (1 + abs(self.met)):
            raise ProofError(
                f"{decided_by} proves that the margin is above {positive or 0.0:.6g}, but it is {self.met:.6g} at a point of the region: "
                "a defect of this project or of a solver; please report the question"
            )
        return Verified(positive, self.proof, self.options.semantics, decided_by, detail)

    def unknown(self) -> Unknown:
        """The verdict when no stage is left."""
        reason = "; ".join(self.notes) or "the bounds are not tight enough and no exact stage was asked for"
        return Unknown(reason, self.bound)


_FLAT_SHARE = 0.8
"""Share of what is left that programs get where all unstable neurons are in one layer: nothing else is as good there."""
_EVALUATION = 1e-7
"""What evaluating a network in float64 may be off by, relative above 1."""


class Stage(Protocol):
    """One step of a run. `kind` is where its seconds are counted: "attack", "bounds" or "milp"."""

    @property
    def name(self) -> str:
        """Who decided, if it does."""

    @property
    def kind(self) -> str:
        """The column of its seconds."""

    def __call__(self, query: Query) -> Verdict | Query:
        """Decide the query, or return it better informed. Limits reached inside are noted, never raised."""


@runtime_checkable
class Selective(Protocol):
    """A stage that is not for every query. Asked first by the run, so that the reason is known; called all the same it returns the query."""

    def skips(self, query: Query) -> str | None:
        """Why the stage would hand the query on untouched, or None."""


@dataclass(frozen=True)
class Falsify:
    """Search for a counterexample with an attack and replay it. unless: a stage that tries points of its own; where that takes the query this
    one does not."""

    attack: Attack
    seconds: float | None = None
    name: str = "attack"
    kind: str = "attack"
    unless: Selective | None = None

    def skips(self, query: Query) -> str | None:
        """See `Selective`."""
        return None if self.unless is None or self.unless.skips(query) is not None else "bisection of the input tries points of its own"

    def __call__(self, query: Query) -> Verdict | Query:
        if self.skips(query) is not None:
            return query
        budget = query.options.budget(self.seconds)
        deadline = None if budget is None else time.monotonic() + budget
        found, best = falsify(query.network, query.specification, self.attack, starts=query.starts, deadline=deadline, rounded=True)
        return query.meeting(best.x[0]) if found is None else found


@dataclass(frozen=True)
class Bound:
    """Close the unsafe sets whose margin an engine proves positive.

    `engine` builds the engine for a working type, so that the float64 rerun happens only where float32's error terms could decide the sign.
    """

    name: str
    engine: Callable[[torch.dtype, Options], BoundEngine]
    kind: str = "bounds"

    def __call__(self, query: Query) -> Verdict | Query:
        for dtype in (torch.float32, torch.float64) if query.in_float32 else (torch.float64,):
            try:
                query, near = self._improve(query, dtype)
            except DomainError as error:
                return query.noting(f"{self.name}: {error}")
            except NumericsError:
                if dtype is torch.float64:
                    raise
                continue
            except MemoryLimitError as error:
                return query.noting(f"{self.name}: memory limit ({error})")
            except TimeLimitError:
                return query.noting("time limit")
            if bool(query.closed.all()):
                return query.verified(self.name)
            if not near:
                break
        return query

    def _improve(self, query: Query, dtype: torch.dtype) -> tuple[Query, bool]:
        """The query with the engine's bounds, and whether rounding may have decided an open set."""
        goal = query.goal
        engine = self.engine(dtype, query.options)
        rows = _open_rows(query)
        bounds = engine(query.network, query.specification.region, goal.C[rows], query.intervals or None)
        improved = informed(query, bounds, rows)
        found, width = torch.full_like(query.lower, math.inf), torch.zeros_like(query.lower)
        found[rows], width[rows] = bounds.objective.lower[0].cpu(), bounds.objective.width[0].cpu()
        gap, scale = goal.per_set(found - goal.d.to(found)), goal.per_set(width)
        near = bool(((gap <= 0) & (gap > -1e-3 * scale) & ~improved.closed).any())
        return improved, near


def _open_rows(query: Query) -> Tensor:
    """Positions of the rows of the unsafe sets that are open."""
    ranges = [range(*query.goal.ranges[k]) for k in (~query.closed).nonzero().flatten().tolist()]
    return torch.tensor([row for rows in ranges for row in rows], dtype=torch.long)


def informed(query: Query, bounds: Bounds, rows: Tensor | None = None) -> Query:
    """The query with everything that an engine's bounds add to it. rows: those of C that were bounded, by default all."""
    lower = query.lower.clone()
    rows = torch.arange(len(lower)) if rows is None else rows
    lower[rows] = torch.maximum(lower[rows], bounds.objective.lower[0].cpu())
    closed = query.closed | query.goal.impossible(lower)
    intervals = {i: b.to(torch.float64, torch.device("cpu")) for i, b in enumerate(bounds.intervals)}
    merged = {i: b if i not in query.intervals else b.intersect(query.intervals[i]) for i, b in intervals.items()}
    starts = query.starts
    if bounds.linear is not None:
        starts = starts_from_bounds(query.specification.region, bounds.linear.lower_A.cpu())
    return replace(query, lower=lower, closed=closed, intervals=merged, starts=starts)


def crown(dtype: torch.dtype, options: Options) -> Crown:
    """CROWN as stages ask it: margins from below alone."""
    return Crown(dtype, options.device, options.semantics, options.memory_mb, deadline=options.deadline, both=False)


@dataclass(frozen=True)
class Tighten:
    """Narrow unstable pre-activations by linear programs with certified duals, while CROWN asks for the margins again after each layer."""

    seconds: float | None = None
    name: str = "lp"
    kind: str = "milp"

    def skips(self, query: Query) -> str | None:
        """See `Selective`."""
        if query.options.semantics != "real":
            return "linear programs prove real arithmetic only, not float32-any-order"
        return None if query.intervals else "no engine has bounded the neurons"

    def __call__(self, query: Query) -> Verdict | Query:
        from milp.program import Limits
        from milp.tighten import Effort, tighten

        if self.skips(query) is not None:
            return query
        options = query.options
        engine = Crown(torch.float64, semantics=options.semantics, memory_mb=options.memory_mb, deadline=options.deadline, both=False)
        goal, region = query.goal, query.specification.region
        best = query

        def decided(known: Mapping[int, Interval]) -> bool:
            nonlocal best
            best = informed(replace(best, intervals=dict(known)), engine(query.network, region, goal.C, dict(known)))
            return bool(best.closed.all())

        limits = Limits(options.budget(self.seconds), options.memory_mb)
        try:
            found = tighten(query.network, region, query.intervals, limits, Effort(refresh=engine), decided=decided)
        except (UnsupportedOpError, SolverError) as error:
            return best.noting(f"{self.name}: {error}")
        except TimeLimitError:
            return best.noting("time limit")
        except MemoryLimitError as error:
            return best.noting(f"{self.name}: memory limit ({error})")
        best = replace(best, intervals=dict(found.intervals), proof=_weaker(best.proof, found.proof))
        if bool(best.closed.all()):
            return best.verified(self.name, f"{found.solves} linear programs with certified duals")
        return best


@dataclass(frozen=True)
class Exact:
    """Decide the open unsafe sets one by one by mixed-integer programming, the most promising first.

    solver: its name, None for the default. A positive answer closes the set; a point is replayed on the original model. seconds: for all sets
    together; None for all that is left. most_unstable: with more unstable neurons the stage hands the query on untouched, unless they are all in
    one layer: such programs have tight relaxations whatever their size, and get the seconds of `shallow` whatever it is.
    """

    solver: str | None = None
    seconds: float | None = None
    most_unstable: float = math.inf
    shallow: float | None = None
    name: str = "milp"
    kind: str = "milp"

    def skips(self, query: Query) -> str | None:
        """See `Selective`."""
        unstable = query.unstable
        if unstable <= self.most_unstable or (self.shallow is not None and query.layers == 1):
            return None
        return f"{unstable} neurons are unstable, more than {self.most_unstable:.0f}"

    def __call__(self, query: Query) -> Verdict | Query:
        if query.options.semantics != "real":
            return query.noting("the exact stage proves real arithmetic only, not float32-any-order")
        if not query.intervals:
            return query.noting("the exact stage needs bounds of every node, and no engine finished")
        if self.skips(query) is not None:
            return query
        from milp.prove import most_promising_first
        from milp.solvers import default_solver, get_solver

        try:
            solver = default_solver() if self.solver is None else get_solver(self.solver)
            second = get_solver(query.options.confirm) if query.options.confirm else None
        except SolverError as error:
            return query.noting(str(error))
        if second is not None and second.name == solver.name:
            return query.noting(f"a proof by {solver.name} cannot be confirmed by {second.name} itself; name another solver")
        goal = query.goal
        bounds = goal.per_set(query.lower - goal.d.to(query.lower)).tolist()
        flat = self.shallow is not None and query.layers == 1
        budget = query.options.budget(self.shallow, _FLAT_SHARE) if flat else query.options.budget(self.seconds)
        end = None if budget is None else time.monotonic() + budget
        for number in most_promising_first(bounds):
            if bool(query.closed[number]):
                continue
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return query.noting("time limit")
            outcome = self._one(query, number, solver, second, left)
            if not isinstance(outcome, Query):
                return outcome
            query = outcome
        return query.verified(self.name, "; ".join(query.details)) if bool(query.closed.all()) else query

    def _one(self, query: Query, number: int, solver: Solver, second: Solver | None, seconds: float | None) -> Verdict | Query:
        """One unsafe set: closed, falsified, or left open with the reason."""
        from milp.program import Limits
        from milp.prove import prove

        specification, options = query.specification, query.options
        limits = Limits(seconds, options.memory_mb)
        try:
            found = prove(query.network, specification.region, specification.unsafe[number], query.intervals, solver, limits, second)
        except (UnsupportedOpError, SolverError) as error:
            return query.noting(f"{self.name}: {error}")
        except MemoryLimitError as error:
            return query.noting(f"{self.name}: memory limit ({error})")
        if found.status == "proved":
            return closing(query, number, found)
        if found.point is not None:
            witness = confirm(query.network, specification, [found.point], self.name, rounded=True)
            if witness is not None:
                return witness
            query = query.meeting(torch.from_numpy(found.point))
        if found.proof == "rigorous" and found.bound is not None:
            query = replace(query, lower=raised(query, number, found.bound))
        reason = found.reason if found.status != "point" else "the solver's point violates the property only within its tolerances"
        return query.noting(f"{self.name}: {reason}")


def closing(query: Query, number: int, found: Outcome) -> Query:
    """The query with one set proven impossible by an exact answer."""
    closed = query.closed.clone()
    closed[number] = True
    lower = query.lower if found.bound is None else raised(query, number, found.bound)
    proof = _weaker(query.proof, found.proof)
    details = query.details if str(found) in query.details else (*query.details, str(found))
    return replace(query, closed=closed, lower=lower, proof=proof, details=details)


def raised(query: Query, number: int, bound: float) -> Tensor:
    """The lower bounds after a bound of one set's margin; a set of several rows has no single row to raise."""
    lower, (start, stop) = query.lower.clone(), query.goal.ranges[number]
    if stop - start == 1:
        lower[start] = max(float(lower[start]), math.nextafter(float(query.goal.d[start]) + bound, -math.inf))
    return lower


def _weaker(first: Proof, second: Proof) -> Proof:
    return "solver" if "solver" in (first, second) else "rigorous"
