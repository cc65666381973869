"""Exact minimal adversarial distances: how far is the nearest input of another class.

For every class j other than the label one mixed-integer program has the distance as its objective (`milp.metric`):

    d_j = min ||x - image||_p   over the x of the domain with f(x)[label] <= f(x)[j];        the answer is min over j of d_j.

Bounds come first. On balls of several radii the engine's planes give every class a distance of its own below which it is impossible,
rounded outward; classes that this places beyond the best adversary so far need no program. The others follow, the nearest first, on the ball
whose radius is the best distance so far: everything farther is cut off, and fewer neurons are unstable than on any larger ball. When a solve
brings the adversary nearer, the next one gets bounds on the smaller ball.

Reference: Tjeng, Xiao, Tedrake, Evaluating robustness of neural networks with mixed integer programming, ICLR 2019, section 3.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bounds.crown import Crown
from bounds.engine import BoundEngine
from bounds.envelope import certified_radius
from bounds.errors import MemoryLimitError, ProofError, SpecError, TimeLimitError
from bounds.interval import Interval
from bounds.linear import Halfspaces, LinearBounds
from bounds.network import Network
from bounds.region import LpBall
from milp.check import reproduces
from milp.encode import DEFAULT_MEMORY_MB, Encoding, Pruned, encode
from milp.incumbent import Accept, Incumbent
from milp.metric import Metric, Tangent, Window, nearest, tangent, tangent_rows
from milp.program import Array, Limits, Solution, Solver, Status
from milp.refine import Strongest
from milp.solvers import lp_session

Closeness = Literal["optimal", "no adversary", "misclassified", "time limit", "memory limit", "undecided"]
_RADII = 6
"""Radii on which the engine looks for planes at once."""
_GROWTH = 3.0
"""A ball is at most so many times as large as what is proven: programs on larger balls are much harder."""
_FIRST_SHARE = 1 / 32
"""The first ball where nothing is proven, as a share of the largest one."""
_AGAIN = 0.98
"""Bounds are computed again once the ball has shrunk to this share."""
_OFFSETS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
"""Margins asked for where no point beyond a nearest one replays, relative to the image's own."""
_ROUNDS = 500
"""How often an l2 ball is refined by tangents for one class."""
_NOISE = 100.0
"""An l2 point that is farther away than its objective by less than so many feasibility tolerances is left to the precise solver."""
_CONTRADICTION = 1e-5
"""How far a lower end may exceed the distance of an adversary, relative above 1, before the proof is called wrong."""


@dataclass(frozen=True, eq=False)
class Start:
    """What is known beforehand. lower: a certified radius; adversary: a point to replay; most: the largest radius of interest."""

    lower: float = 0.0
    adversary: Array | None = None
    most: float = math.inf


@dataclass(frozen=True, eq=False)
class Effort:
    """How exactly and how long.

    solver: for every program; precise: asked again where the first one's tolerances keep the ends apart. tol, slack: the ends are wanted within
    tol * max(1, distance) + slack; slack is what the type of the model's inputs costs. A quarter of that is kept below whatever a solver claims.
    engine: for the bounds (default CROWN in float64). relaxed: neurons whose binaries are dropped, or how many are kept: every lower end holds,
    with fewer binaries it is found sooner, and the ends may stay apart.
    """

    solver: Solver
    precise: Solver | None = None
    limits: Limits = field(default_factory=Limits)
    tol: float = 1e-6
    slack: float = 0.0
    engine: BoundEngine | None = None
    relaxed: Pruned | Strongest = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Distance:
    """lower <= min ||x - image||_p over the points x of the domain whose largest output is not the label's alone <= upper.

    lower: the best lower end; it rests on a solver's tolerances where `proof` is "solver". rigorous: the best lower end that was rounded
    outward all the way (<= lower). upper: the distance of `point`, rounded upward; inf without one. point: an adversary that the caller's
    `accept` replayed, in the network's input shape; None if none is known. target: the class that `point` is taken for.

    status: "optimal" (the ends agree within the tolerance), "no adversary" (none within the domain and the radius looked at: lower is that
    radius, inf where the whole domain was looked at), "misclassified" (the image itself is not of its class: 0), "time limit",
    "memory limit", or "undecided" with a reason.

    solves: mixed-integer programs solved; binaries: the most that one of them had; seconds: wall-clock time.
    """

    lower: float
    upper: float
    status: Closeness
    point: Array | None
    target: int | None
    rigorous: float
    proof: Literal["rigorous", "solver"]
    solves: int
    binaries: int
    seconds: float
    reason: str = ""


def exact_distance(network: Network, label: int, metric: Metric, accept: Accept, start: Start, effort: Effort) -> Distance:
    """The distance of the nearest point of the domain that some other class claims: f(x)[label] <= f(x)[j] for some j != label.

    metric: the image, the norm and the domain. accept: replays candidates; what it returns is believed, and so is start.lower.

    Property: `upper` is an adversary's; `lower` is sound up to the solver's tolerances, `rigorous` is rounded outward. Complete up to the
    limits, the tolerance and the replay of the nearest point.

    Raises:
        SpecError: neither a domain nor an adversary nor start.most bounds the search. ProofError: a lower end contradicts an adversary.
        UnsupportedOpError: a network without an exact form. KeyboardInterrupt is passed on.
    """
    return _Search(network, label, metric, accept, start, effort).run()


class _Search:
    """One call: what is known about every class."""

    def __init__(self, network: Network, label: int, metric: Metric, accept: Accept, start: Start, effort: Effort) -> None:
        self.begin = time.monotonic()
        self.network, self.metric, self.start, self.effort = network.to(torch.float64, "cpu"), metric, start, effort
        self.targets = [j for j in range(network.outputs) if j != label]
        identity = torch.eye(network.outputs, dtype=torch.float64)
        self.rows = identity[label] - identity[self.targets]
        self.incumbent = Incumbent(self.network, self.rows, metric, accept)
        self.rigorous = np.full(len(self.targets), max(start.lower, 0.0))
        self.lower = self.rigorous.copy()
        self.reasons: dict[int, str] = {}
        self.limit = min(metric.reach, start.most)
        self.bounded_on = math.inf
        self.intervals: dict[int, Interval] = {}
        self.tangents: list[Tangent] = []
        self.solves = self.binaries = 0
        self.halted: Closeness | None = None

    @property
    def tolerance(self) -> float:
        """How close the ends are wanted."""
        upper = self.incumbent.distance
        return self.effort.tol * max(1.0, upper if math.isfinite(upper) else 0.0) + self.effort.slack

    @property
    def cutoff(self) -> float:
        """Points at this distance or farther are of no interest."""
        return min(self.limit, self.incumbent.distance - self.tolerance / 2)

    def open(self) -> list[int]:
        """Numbers of the classes that may still come nearer, the nearest first."""
        enough = min(self.limit - self.tolerance / 4, self.incumbent.distance - self.tolerance)
        found = [k for k in range(len(self.targets)) if self.lower[k] < enough and k not in self.reasons]
        return sorted(found, key=lambda k: (self.lower[k], k))

    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def left(self) -> float | None:
        """Seconds until the limit."""
        limit = self.effort.limits.seconds
        return None if limit is None else max(limit - self.seconds(), 0.0)

    def run(self) -> Distance:
        center = self.metric.center.numpy()
        if self.incumbent.offer(center) and self.incumbent.best is not None:
            home = self.incumbent.best
            return Distance(0.0, home.distance, "misclassified", home.point, home.target, 0.0, "rigorous", 0, 0, self.seconds())
        if self.start.adversary is not None:
            self.incumbent.push(np.asarray(self.start.adversary, dtype=np.float64).reshape(center.shape))
        if not math.isfinite(self.cutoff):
            raise SpecError("nothing bounds the search: give a domain, an adversary, or the largest radius of interest")
        try:
            self.advance()
        except TimeLimitError:
            self.halted = "time limit"
        except MemoryLimitError as error:
            self.halted = "memory limit"
            self.reasons[-1] = str(error)
        return self.result()

    def advance(self) -> None:
        """Balls of growing radius until the best adversary, or the largest radius, is reached."""
        while self.halted is None and self.open():
            proven = float(self.lower[self.open()[0]])
            radius = min(self.cutoff, max(_GROWTH * proven, _FIRST_SHARE * self.cutoff))
            self.bound(radius)
            classes = [k for k in self.open() if self.lower[k] < radius]
            for position, k in enumerate(classes):
                radius = min(radius, self.cutoff)
                if radius < _AGAIN * self.bounded_on:
                    self.bound(radius)
                if self.lower[k] < radius and k in self.open():
                    left = self.left()
                    self.solve(k, radius, None if left is None else left / (len(classes) - position))

    def bound(self, radius: float) -> None:
        """Rigorous lower ends from the engine's planes on balls up to the radius, and intervals on the largest."""
        left = self.left()
        if left == 0.0:
            raise TimeLimitError("no time is left for bounds")
        engine = self.effort.engine or Crown(torch.float64, deadline=None if left is None else time.monotonic() + left, both=False)
        proven = min(float(self.lower.min()), radius / 2)
        balls = self.metric.ball(torch.linspace(proven, radius, _RADII + 1, dtype=torch.float64)[1:])
        found = engine(self.network, balls, self.rows)
        if found.linear is not None:
            self.rigorous = np.maximum(self.rigorous, _per_row(found.linear, balls).amax(0).numpy())
            self.lower = np.maximum(self.lower, self.rigorous)
        self.bounded_on = radius
        self.intervals = {i: Interval(b.lower[-1:], b.upper[-1:]) for i, b in enumerate(found.intervals)}

    def solve(self, k: int, radius: float, seconds: float | None) -> None:
        """One class on one ball: its lower end rises to the radius, or its nearest point is found, or time runs out."""
        memory = self.effort.limits.memory_mb
        unsafe = Halfspaces(self.rows[k : k + 1], torch.zeros(1, dtype=torch.float64))
        region = self.metric.box(self.bounded_on)
        encoding = encode(self.network, region, unsafe, self.intervals, memory_mb=DEFAULT_MEMORY_MB if memory is None else memory)
        relaxed = self.effort.relaxed
        encoding = relaxed.of(encoding) if isinstance(relaxed, Strongest) else encoding.loosened(relaxed)
        self.binaries = max(self.binaries, encoding.binaries)
        turn = _Turn(self, k, unsafe, encoding, None if seconds is None else time.monotonic() + seconds)
        turn.run(radius)

    def result(self) -> Distance:
        best, upper = self.incumbent.best, self.incumbent.distance
        if best is not None and best.target in self.targets:
            claimed = float(self.lower[self.targets.index(best.target)])
            if claimed > upper + _CONTRADICTION * max(1.0, upper) + self.effort.slack:
                raise ProofError(
                    f"class {best.target} was proven to be farther away than {claimed:.9g}, but an adversary of that class is {upper:.9g} "
                    "away: a defect of this project, of a solver or of the certified radius that was given; please report the question"
                )
        lower, rigorous = (min(float(ends.min()), upper) for ends in (self.lower, self.rigorous))
        status, reason = self.status(lower)
        if status == "no adversary" and self.limit >= self.metric.reach:
            rigorous = math.inf if rigorous >= self.limit else rigorous
            lower = upper
        proof: Literal["rigorous", "solver"] = "rigorous" if rigorous >= lower else "solver"
        point, target = (None, None) if best is None else (best.point, best.target)
        return Distance(lower, upper, status, point, target, rigorous, proof, self.solves, self.binaries, self.seconds(), reason)

    def status(self, lower: float) -> tuple[Closeness, str]:
        """How the search ended, and why where that is not as wished."""
        upper = self.incumbent.distance
        if upper - lower <= self.tolerance:
            return "optimal", ""
        if lower >= self.limit - self.tolerance / 4:
            return "no adversary", ""
        reasons = dict.fromkeys(self.reasons.values())
        short = any(text.startswith(Status.MEMORY_LIMIT.value) for text in reasons)
        return self.halted or ("memory limit" if short else "undecided"), "; ".join(reasons)


@dataclass(frozen=True, eq=False)
class _Turn:
    """One class on one ball: one program, solved once, or for l2 as often as tangents are missing."""

    search: _Search
    k: int
    unsafe: Halfspaces
    encoding: Encoding
    deadline: float | None

    def run(self, radius: float) -> None:
        """Raise the class's lower end to the radius, or find its nearest point."""
        search, effort = self.search, self.search.effort
        solvers = [effort.solver] if effort.precise is None else [effort.solver, effort.precise]
        high, replayed = radius, False
        for _ in range(_ROUNDS):
            high = min(radius, search.cutoff)
            if search.lower[self.k] >= high:
                return
            solution = self.minimise(solvers[0], Window(float(search.rigorous[self.k]), high))
            if not self.believe(solution, high) or solution.x is None:
                return
            point = self.encoding.point(solution.x)
            replayed = search.incumbent.push(point)
            if solution.status is not Status.OPTIMAL or self.k not in search.open():
                return
            if not self.refine(point, solution):
                solvers = solvers[1:]
            if not solvers:
                break
        if not replayed and not effort.relaxed:
            self.insist(high)
        if self.k in search.open():
            apart = "the nearest point that the solver found does not replay near enough to it"
            search.reasons[self.k] = "relaxed neurons keep the ends apart" if effort.relaxed else apart

    def minimise(self, solver: Solver, window: Window) -> Solution:
        search = self.search
        search.solves += 1
        program = nearest(self.encoding, search.metric, window, search.tangents)
        return solver.solve(program, Limits(self.left(), search.effort.limits.memory_mb))

    def believe(self, solution: Solution, high: float) -> bool:
        """Raise the class's lower end as far as the answer is evidence for it; False where the class's turn is over."""
        search, k = self.search, self.k
        claim = high if solution.status is Status.INFEASIBLE else -math.inf
        if solution.dual_bound is not None and solution.status not in (Status.UNKNOWN, Status.UNBOUNDED):
            claim = min(high, solution.dual_bound)
        claim -= search.tolerance / 4
        if claim > search.lower[k]:
            if not self.faithful:
                search.reasons[k] = f"the program does not reproduce the network: the answer of {solution.solver} is not used"
                return False
            search.lower[k] = claim
        late = solution.status is Status.TIME_LIMIT and self.deadline is not None
        optimal = solution.status is Status.OPTIMAL and solution.x is not None
        if not late and not optimal and solution.status is not Status.INFEASIBLE:
            search.reasons[k] = f"{solution.status.value}{f' ({solution.detail})' if solution.detail else ''}"
        return late or optimal

    @functools.cached_property
    def faithful(self) -> bool:
        """Whether the program has the network's margin at the image and at the best adversary."""
        search = self.search
        points = [search.metric.center.numpy()]
        if search.incumbent.best is not None:
            points.append(self._inside(search.incumbent.best.point))
        limits = Limits(None, search.effort.limits.memory_mb)
        return all(reproduces(search.network, self.unsafe, self.encoding.whole(), x, search.effort.solver, limits) for x in points)

    def _inside(self, point: Array) -> Array:
        """A point, moved towards the image into the ball that the intervals are about: only there must the program agree with the network."""
        center = self.search.metric.center.numpy()
        step = np.asarray(point, dtype=np.float64).reshape(center.shape) - center
        length = self.search.metric.length(step)
        return center + min(1.0, self.search.bounded_on * (1 - 1e-9) / max(length, 1e-300)) * step

    def refine(self, point: Array, solution: Solution) -> bool:
        """For l2: add the tangents missing at the point and at the nearest point of its activation pattern; whether that can change much."""
        search = self.search
        step = point - search.metric.center.numpy()
        missing = tangent(step)
        if search.metric.p != 2.0 or missing is None or solution.x is None:
            return False
        length = search.metric.length(step)
        search.tangents.append(missing)
        self.polish(solution.x)
        noise = max(search.tolerance / 8, _NOISE * solution.tolerances.feasibility * max(1.0, length))
        return length - (solution.objective or 0.0) > noise

    def polish(self, x: Array) -> None:
        """The nearest point with the binaries of x, by linear programs that gather tangents."""
        search, metric = self.search, self.search.metric
        program = nearest(self.encoding, metric, Window(float(search.rigorous[self.k]), search.limit), search.tangents)
        which = np.flatnonzero(program.integer)
        lower, upper = program.lower.copy(), program.upper.copy()
        lower[which] = upper[which] = np.round(x[which])
        session = lp_session(replace(program, lower=lower, upper=upper))
        for _ in range(_ROUNDS):
            solution = session.minimise(program.objective, program.constant, self.left())
            if solution.x is None:
                return
            point = self.encoding.point(solution.x)
            length = metric.length(point - metric.center.numpy())
            missing = tangent(point - metric.center.numpy())
            noise = max(search.tolerance / 8, 4 * solution.tolerances.feasibility * max(1.0, length))
            if missing is None or length - (solution.objective or 0.0) <= noise:
                search.incumbent.push(point)
                return
            search.tangents.append(missing)
            session.add_rows(*tangent_rows([missing], self.encoding.inputs, metric, program.columns))

    def insist(self, high: float) -> None:
        """Ask for points a little beyond the boundary, farther and farther, until one replays."""
        search = self.search
        scale = float(search.incumbent.margins(search.metric.center.numpy()[None])[0])
        for offset in _OFFSETS:
            window = Window(float(search.rigorous[self.k]), high, offset * max(scale, 1e-3))
            solution = self.minimise(search.effort.precise or search.effort.solver, window)
            if solution.x is None or search.incumbent.push(self.encoding.point(solution.x)):
                return

    def left(self) -> float | None:
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)


def _per_row(planes: LinearBounds, balls: LpBall) -> Tensor:
    """The radius that every single row certifies on every ball, rounded downward; (balls, rows)."""
    count, rows = planes.lower_b.shape
    single = LinearBounds(*(side.flatten(0, 1).unsqueeze(1) for side in (planes.lower_A, planes.lower_b, planes.upper_A, planes.upper_b)))
    every = torch.arange(count).repeat_interleave(rows)
    return certified_radius(single, balls.select(every)).reshape(count, rows)
