"""The stage that brings neurons back as binaries until the question is decided (see milp/refine.py), and distances from below in a given time.

All open unsafe sets go through the rounds together: the linear relaxation of each, then a program with a few binaries of each, and so on. What is
proven closes a set; the points where the programs are lowest are tried as counterexamples, as they are and as starts of an attack.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bounds.engine import DEFAULT_MEMORY_MB
from bounds.errors import MemoryLimitError, SolverError, UnsupportedOpError
from bounds.network import Network
from verify.attack import Pgd, falsify
from verify.exact_radius import Replayer, exact_radius
from verify.spec import Domain
from verify.stages import Query, closing, raised
from verify.verdict import Falsified, Proof, Verdict, confirm

if TYPE_CHECKING:
    from milp.distance import Distance
    from milp.encode import Pruned
    from milp.program import Solver
    from milp.prove import Outcome
    from milp.refine import Refinement

_BRANCHING = 0.75
"""Of the time for both ends, for branching."""
_DESCENT = Pgd(steps=30, restarts=1)


@dataclass(frozen=True)
class Refine:
    """Decide the open unsafe sets by programs with as few binaries as it takes.

    solver: its name, None for the default. seconds: for all sets together; None for all that is left. most_unstable: with more unstable neurons
    the stage hands the query on untouched. few, first: see `milp.refine.Plan`.

    Property: as the exact stage: a proof is sound up to the solver's tolerances, a counterexample is replayed; complete up to the limits for
    piecewise-linear networks, because at worst every binary comes back.
    """

    solver: str | None = None
    seconds: float | None = None
    most_unstable: float = math.inf
    few: int = 48
    first: int = 12
    name: str = "refine"
    kind: str = "milp"

    def skips(self, query: Query) -> str | None:
        """See `verify.stages.Selective`."""
        if query.options.semantics != "real":
            return "mixed-integer programs prove real arithmetic only, not float32-any-order"
        if not query.intervals:
            return "no engine has bounded the neurons"
        unstable = query.unstable
        return f"{unstable} neurons are unstable, more than {self.most_unstable:.0f}" if unstable > self.most_unstable else None

    def __call__(self, query: Query) -> Verdict | Query:
        if self.skips(query) is not None:
            return query
        from milp.solvers import default_solver, get_solver

        try:
            solver = default_solver() if self.solver is None else get_solver(self.solver)
            second = get_solver(query.options.confirm) if query.options.confirm else None
        except SolverError as error:
            return query.noting(str(error))
        if second is not None and second.name == solver.name:
            return query.noting(f"a proof by {solver.name} cannot be confirmed by {second.name} itself; name another solver")
        try:
            return _Rounds(self, query, solver, second).run()
        except (UnsupportedOpError, SolverError) as error:
            return query.noting(f"{self.name}: {error}")
        except MemoryLimitError as error:
            return query.noting(f"{self.name}: memory limit ({error})")


class _Rounds:
    """One call of the stage."""

    def __init__(self, stage: Refine, query: Query, solver: Solver, second: Solver | None) -> None:
        from milp.program import Limits
        from milp.prove import most_promising_first
        from milp.refine import Plan, refinements

        self.stage, self.query, self.second = stage, query, second
        budget = query.options.budget(stage.seconds)
        self.end = None if budget is None else time.monotonic() + budget
        goal, specification = query.goal, query.specification
        bounds = goal.per_set(query.lower - goal.d.to(query.lower)).tolist()
        numbers = [k for k in most_promising_first(bounds) if not bool(query.closed[k])]
        sets = [specification.unsafe[k] for k in numbers]
        plan = Plan(few=stage.few, first=stage.first)
        limits = Limits(budget, query.options.memory_mb)
        made = refinements(query.network, specification.region, sets, query.intervals, solver, limits, plan)
        self.active: dict[int, Refinement] = dict(zip(numbers, made, strict=True))
        self.used = 0

    def run(self) -> Verdict | Query:
        while self.active:
            for number in list(self.active):
                if self.end is not None and time.monotonic() >= self.end:
                    return self.query.noting("time limit")
                found = self.step(number)
                if found is not None:
                    return found
            hit = self.attack()
            if hit is not None:
                return hit
        query = self.query
        if not bool(query.closed.all()):
            return query
        used = [f"at most {self.used} of {query.unstable} unstable neurons as binaries"] if self.used else []
        return query.verified(self.stage.name, "; ".join([*query.details, *used]))

    def step(self, number: int) -> Falsified | None:
        """One round of one unsafe set."""
        refinement = self.active[number]
        outcome = refinement.step(self.second)
        self.used = max(self.used, refinement.binaries)
        if outcome.status == "proved":
            self.query = closing(self.query, number, outcome)
            del self.active[number]
            return None
        witness = self.replayed(outcome)
        if witness is not None:
            return witness
        if outcome.proof == "rigorous" and outcome.bound is not None:
            self.query = replace(self.query, lower=raised(self.query, number, outcome.bound))
        if outcome.status == "point":
            self.give_up(number, "the solver's point violates the property only within its tolerances")
        elif refinement.exhausted:
            self.give_up(number, outcome.reason)
        return None

    def give_up(self, number: int, reason: str) -> None:
        """Leave a set to later stages."""
        del self.active[number]
        self.query = self.query.noting(f"{self.stage.name}: {reason}")

    def replayed(self, outcome: Outcome) -> Falsified | None:
        """A round's candidate on the original model."""
        if outcome.point is None:
            return None
        witness = confirm(self.query.network, self.query.specification, [outcome.point], self.stage.name, rounded=True)
        if witness is None:
            self.query = self.query.meeting(torch.from_numpy(outcome.point))
        return witness

    def attack(self) -> Falsified | None:
        """The points at which the programs of this round are lowest, as starts."""
        points = [refinement.point for refinement in self.active.values() if refinement.point is not None]
        if not points:
            return None
        starts = torch.from_numpy(np.stack(points))[None]
        found, best = falsify(self.query.network, self.query.specification, _DESCENT, starts=starts, deadline=self.end, rounded=True)
        if found is None:
            self.query = self.query.meeting(best.x[0])
            return None
        return found


def certified_lower(
    network: Network,
    image: Tensor | np.ndarray,
    label: int,
    pruned: Pruned | int,
    *,
    rounds: int = 6,
    most: float = math.inf,
    **settings: Any,
) -> Distance:
    """How far adversaries are at least, from programs without the binaries of the pruned neurons.

    pruned: masks of the elements of activations by node index, as in `bounds.substitutes`; or how many binaries each program keeps, which are then
    those with the highest scores (`milp.refine.Strongest`). most, settings: as for `verify.exact_radius`.
    Programs on smaller balls have tighter intervals, so a ball on which the relaxed program still finds a point is halved `rounds` times towards
    the radius that is certified: no adversary is nearer than the largest ball on which it finds none.

    Returns: a `Distance` whose `lower` is no larger than the true one, whatever is pruned, and whose `upper` is a replayed adversary's.
    Property: sound up to the solver's tolerances. Raises: see `verify.exact_radius.exact_radius`.
    """
    from milp.refine import Strongest

    settings = settings | {"relaxed": Strongest(pruned) if isinstance(pruned, int) else pruned}
    limit = settings.pop("seconds", None)
    start = time.monotonic()
    best = exact_radius(network, image, label, most=most, seconds=limit, **settings)
    high = min(best.upper, most, _reach(image, settings))
    for _ in range(rounds):
        left = None if limit is None else limit - (time.monotonic() - start)
        if best.status != "undecided" or not math.isfinite(high) or (left is not None and left <= 0):
            break
        middle = (best.lower + high) / 2
        settings |= {"lower": best.rigorous, "adversary": settings.get("adversary") if best.point is None else best.point}
        found = exact_radius(network, image, label, most=middle, seconds=left, **settings)
        high = high if found.status == "no adversary" else middle
        best = _better(best, found)
    return replace(best, seconds=time.monotonic() - start)


def proven_ends(  # noqa: PLR0913 - keyword-only settings of one call
    network: Network,
    image: Tensor | np.ndarray,
    label: int,
    keep: int | None,
    *,
    adversary: np.ndarray,
    lower: float = 0.0,
    most: float = math.inf,
    norm: float = math.inf,
    domain: Domain | None = (0.0, 1.0),
    solver: str | None = None,
    seconds: float | None = None,
    memory_mb: float = DEFAULT_MEMORY_MB,
) -> Distance:
    """Both ends of the distance to the nearest adversary, drawn together as far as the time allows.

    Branching comes first (`verify.narrowing`): what it proves is rounded outward. What is left of the time goes to programs that keep `keep`
    binaries (`certified_lower`), unless `keep` is None or so many neurons are unstable that such programs prove next to nothing.

    Arguments, Property, Raises: as for `verify.exact_radius.exact_radius`; adversary: a point of another class.
    """
    from milp.distance import Distance, Effort, Start
    from milp.metric import Metric
    from milp.program import Limits
    from milp.solvers import default_solver, get_solver
    from verify.narrowing import narrowed, worthwhile

    begin = time.monotonic()
    center = torch.as_tensor(image).detach().to("cpu", torch.float64)
    sides = None if domain is None else (torch.as_tensor(domain[0]).double(), torch.as_tensor(domain[1]).double())
    metric, replayer = Metric(center, norm, sides), Replayer(network, center, label, norm, domain)
    start = Start(lower, np.asarray(adversary, dtype=np.float64), most)
    programs = keep is not None and not worthwhile(network, metric, start)
    share = None if seconds is None else (_BRANCHING if programs else 1.0) * seconds
    effort = Effort(default_solver() if solver is None else get_solver(solver), None, Limits(share, memory_mb), slack=replayer.slack)
    start = narrowed(network, label, metric, replayer, start, effort)
    best = None if start.adversary is None else replayer(start.adversary)
    upper, spent = math.inf if best is None else best.distance, time.monotonic() - begin
    met = upper - start.lower <= effort.tol * max(1.0, upper) + effort.slack
    if not met and programs and keep is not None and (seconds is None or spent < seconds):
        limits: dict[str, Any] = {"most": most, "norm": norm, "domain": domain, "solver": solver, "memory_mb": memory_mb}
        left = None if seconds is None else seconds - spent
        found = certified_lower(network, image, label, keep, lower=start.lower, adversary=start.adversary, seconds=left, **limits)
        return replace(found, seconds=time.monotonic() - begin)
    point, target = (None, None) if best is None else (best.point, best.target)
    end = min(start.lower, upper)
    return Distance(end, upper, "optimal" if met else "undecided", point, target, end, "rigorous", 0, 0, spent)


def _reach(image: Tensor | np.ndarray, settings: dict[str, Any]) -> float:
    """A radius that takes in the whole domain."""
    from milp.metric import Metric

    return Metric(torch.as_tensor(image).double().cpu(), settings.get("norm", math.inf), settings.get("domain", (0.0, 1.0))).reach


def _better(first: Distance, second: Distance) -> Distance:
    """What two searches know together; the second one looked at a smaller ball, so an adversary of its own is the nearer one."""
    lower, rigorous = max(first.lower, min(second.lower, first.upper)), max(first.rigorous, min(second.rigorous, first.upper))
    nearer = second if second.upper < first.upper else first
    proof: Proof = "rigorous" if rigorous >= lower else "solver"
    solves, binaries = first.solves + second.solves, max(first.binaries, second.binaries)
    return replace(
        first,
        lower=lower,
        rigorous=rigorous,
        proof=proof,
        upper=nearer.upper,
        point=nearer.point,
        target=nearer.target,
        solves=solves,
        binaries=binaries,
    )
