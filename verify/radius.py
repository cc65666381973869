"""Certified radii between two ends: how far an image can certainly move before its class changes, and how far it certainly cannot.

    lower    no point of the domain within this distance has another class: proven by bounds, outward rounded (by a solver where it says so)
    upper    the distance of a point of another class: found by `verify.minimal`, replayed on the original model

Methods, each at least as strong as those before it, because a stronger one goes on from what the weaker ones have proven:

    fastlin  Fast-Lin's planes, the bracketed secant                 pec   the same planes, thesis Algorithm 3.5
    crown    then CROWN's planes
    alpha    then alpha-CROWN's
    exact    CROWN's, then a mixed-integer program whose optimum is the distance itself
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bounds import rounding
from bounds.alpha import AlphaCrown
from bounds.crown import Crown, FastLin, LinearEngine
from bounds.engine import DEFAULT_MEMORY_MB, place
from bounds.errors import ProofError, SpecError, TimeLimitError
from bounds.network import Network
from verify.brackets import Bracket
from verify.exact_radius import exact_radius
from verify.minimal import MinimalNorm
from verify.radius_search import Curve, Method, Radii, Search, Task, certified_curve, certified_radii
from verify.spec import Domain, robustness

__all__ = [
    "Certificate",
    "Curve",
    "Limits",
    "Method",
    "Radii",
    "Radius",
    "RadiusMethod",
    "Search",
    "certified_curve",
    "certified_radii",
    "certified_radius",
    "radius_curve",
]

RadiusMethod = Literal["fastlin", "pec", "crown", "alpha", "exact"]
_ENGINES: dict[str, tuple[str, ...]] = {
    "fastlin": ("fastlin",),
    "pec": ("fastlin",),
    "crown": ("fastlin", "crown"),
    "alpha": ("fastlin", "crown", "alpha"),
    "exact": ("fastlin", "crown"),
}
_ATTACKED = 32
"""Images attacked at once."""
_ATTACK_SHARE = 0.3
"""Of the time limit, for the attack."""
_BOUND_SHARE = 0.6
"""Of the time limit, until when bounds are computed where exact answers are wanted after them."""
_BEYOND = 1.001
"""How far past an adversary certificates are looked for: a sound bound gives none there."""
_EXACT_TOL = 1e-6
"""How close the ends of an exact answer are wanted, relative above 1."""
_EVALUATION = 1e-7
"""What evaluating a network in float64 may be off by, relative above 1."""
INTERRUPTED, LATE, MISCLASSIFIED = "interrupted", "time limit", "misclassified"
_OPEN, _NOBODY = "open", "no adversary"
_FINAL = ("", MISCLASSIFIED)
_NOTES = {"optimal": "", "no adversary": f"{_NOBODY} within the radius looked at"}


@dataclass(frozen=True)
class Certificate:
    """What proves a lower end: planes of `engine` on the ball of radius `eps`, or, for the engine "milp", a program (`eps` is then None).

    proof: "rigorous" (outward rounded all the way) or "solver" (rests on a MILP solver's tolerances).
    """

    engine: str
    eps: float | None
    proof: Literal["rigorous", "solver"] = "rigorous"


@dataclass(frozen=True, eq=False)
class Radius:
    """One image: lower <= the distance of the nearest point of the domain whose class is not `label` <= upper.

    lower: 0 without a certificate. upper: inf without an adversary. exact: the distance where it is known, up to the tolerance (inf: the domain
    holds no adversary). adversary: the point at `upper`, in the model's input type. bound_calls: bound calls that covered the image. seconds:
    its share of the time. note: what there is to say: "misclassified", "time limit", "interrupted", "no adversary", ...; empty otherwise.
    """

    label: int
    method: RadiusMethod
    lower: float
    upper: float
    exact: float | None
    certificate: Certificate | None
    adversary: np.ndarray | None
    bound_calls: int
    seconds: float
    note: str = ""

    @property
    def finished(self) -> bool:
        """Whether the method came to its end: no limit, interrupt or solver stopped it."""
        return self.note in _FINAL or self.note.startswith(_NOBODY)


@dataclass(frozen=True)
class Limits:
    """What a call may use.

    most: the largest radius of interest; without it, the adversary's distance or the whole domain. seconds: for everything; then the best ends
    so far. attack: how upper ends are searched, on this device and with this seed; None: not at all. batch: images bounded at once. solver: of
    the method "exact"; None for the default.
    """

    most: float | None = None
    seconds: float | None = None
    device: str = "cpu"
    memory_mb: float = DEFAULT_MEMORY_MB
    seed: int = 0
    attack: MinimalNorm | None = field(default_factory=MinimalNorm)
    batch: int = 64
    solver: str | None = None

    def __post_init__(self) -> None:
        if self.most is not None and not (0 < self.most < math.inf):
            raise SpecError(f"the largest radius must be positive and finite, got {self.most}")
        if self.seconds is not None and not self.seconds >= 0:
            raise SpecError(f"the time limit must not be negative, got {self.seconds}")


def certified_radius(  # noqa: PLR0913 - keyword-only settings of one call
    network: Network,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    norm: float = math.inf,
    method: RadiusMethod = "crown",
    domain: Domain | None = (0.0, 1.0),
    tol: float = 1e-4,
    limits: Limits = Limits(),
    observe: Callable[[str], None] | None = None,
) -> list[Radius]:
    """How far each image can move in the domain, in the norm 1, 2 or inf, before its class may change: both ends for every image.

    images: (N, *input_shape) in the domain; labels: (N,). tol: how exactly each engine's best radius is searched, in units of the input.
    observe: told what is going on. After the time limit, or Ctrl-C, the best ends so far are returned and `note` says so.

    Property: `lower` is sound up to what its certificate says, `upper` is a replayed adversary's; lower <= upper; a stronger method (see the
    module) gives no smaller `lower` with the same tolerance and no time limit.

    Raises:
        SpecError: an unknown method or norm, labels out of range, images that do not fit, leave the domain or are not finite, a tolerance that
            rounding would hide, no domain and nothing else that limits the radius.
        ProofError: a certificate and a replayed adversary contradict each other. DeviceError, SolverMissingError, UnsupportedOpError.
    """
    if method not in get_args(RadiusMethod):
        raise SpecError(f"unknown method {method!r}; use one of {', '.join(get_args(RadiusMethod))}")
    place(limits.device)
    x, y = torch.as_tensor(images).detach().to("cpu", torch.float64), torch.as_tensor(labels).to("cpu", torch.int64)
    if x.shape[1:] != network.input_shape or y.shape != x.shape[:1]:
        raise SpecError(f"the network reads inputs of shape {network.input_shape}; got images {tuple(x.shape)} and labels {tuple(y.shape)}")
    for image, label in zip(x, y.tolist(), strict=True):
        robustness(image, label, 0.0, norm=norm, outputs=network.outputs, domain=domain)
    ends = _Ends(network, x, y, norm, domain, limits, observe or (lambda _: None))
    try:
        ends.run(method, tol)
    except KeyboardInterrupt:
        ends.open_note = INTERRUPTED
    return ends.result(method)


def radius_curve(  # noqa: PLR0913 - keyword-only settings of one call
    network: Network,
    image: Tensor | np.ndarray,
    label: int,
    eps: Tensor,
    *,
    norm: float = math.inf,
    method: RadiusMethod = "fastlin",
    domain: Domain | None = (0.0, 1.0),
    limits: Limits = Limits(),
) -> Curve:
    """What the planes of a method certify for one image, by the eps (K,) that they are computed for: thesis Figure 3.6.

    method: as in `certified_radius`; its last bound engine counts.

    Property: sound. Raises: see `certified_curve`; TimeLimitError where `limits.seconds` are not enough.
    """
    x = torch.as_tensor(image).detach().to("cpu", torch.float64).unsqueeze(0)
    deadline = None if limits.seconds is None else time.monotonic() + limits.seconds
    if limits.seconds == 0:
        raise TimeLimitError("the time limit was reached; give more with --timeout, or none")
    engine = _engine(_ENGINES[method][-1], limits, deadline)
    return certified_curve(Task(network, x, torch.tensor([label]), norm, domain, engine, Search(batch=limits.batch)), eps)


def _engine(name: str, limits: Limits, deadline: float | None) -> LinearEngine:
    """A bound engine by name."""
    if name == "alpha":
        return AlphaCrown(device=limits.device, memory_mb=limits.memory_mb, deadline=deadline, both=False)
    return {"fastlin": FastLin, "crown": Crown}[name](device=limits.device, memory_mb=limits.memory_mb, deadline=deadline, both=False)


class _Ends:
    """The two ends of every image's radius while they are being narrowed."""

    def __init__(
        self,
        network: Network,
        images: Tensor,
        labels: Tensor,
        norm: float,
        domain: Domain | None,
        limits: Limits,
        observe: Callable[[str], None],
    ) -> None:
        self.network, self.images, self.labels, self.norm, self.domain = network, images, labels, norm, domain
        self.limits, self.observe, self.start = limits, observe, time.monotonic()
        self.found = [Radius(label, "fastlin", 0.0, math.inf, None, None, None, 0, 0.0, _OPEN) for label in labels.tolist()]
        self.open_note = LATE

    def run(self, method: RadiusMethod, tol: float) -> None:
        """All stages; what is found is kept after each image or batch."""
        Search(tol=tol, most=self.limits.most or 1.0)
        self.attack(self.deadline(_ATTACK_SHARE))
        deadline = self.deadline(_BOUND_SHARE if method == "exact" else 1.0)
        search: Method = "pec" if method == "pec" else "secant"
        most = [self.most(index) for index in range(len(self.found))]
        settings = Search(search, tol, max([*most, tol]), self.limits.batch, deadline)
        brackets: list[Bracket] = []
        for name in _ENGINES[method]:
            task = Task(self.network, self.images, self.labels, self.norm, self.domain, _engine(name, self.limits, deadline), settings)
            brackets = [b.again(b.lower) for b in brackets] or self.brackets(task, most)
            try:
                task.run(brackets, lambda done, name=name: self.observe(f"{name}: {done} of {len(self.found)} images"))  # type: ignore[misc]
            finally:
                for index, bracket in enumerate(brackets):
                    self.take(index, bracket, name)
        done = [bracket.done for bracket in brackets]
        for index, found in enumerate(self.found):
            if method == "exact" and found.exact is None and not self.late():
                self.solve(index, min(tol, _EXACT_TOL))
            elif found.note == _OPEN and (done[index] or not self.late()):
                self.change(index, note="" if done[index] else "the search did not settle")

    def result(self, method: RadiusMethod) -> list[Radius]:
        """What is known, checked for contradictions."""
        for index, found in enumerate(self.found):
            note = self.open_note if found.note == _OPEN else found.note
            self.found[index] = replace(found, method=method, lower=self.consistent(index, found), note=note)
        return self.found

    def deadline(self, share: float) -> float | None:
        """When this share of the time is over, on time.monotonic()."""
        return None if self.limits.seconds is None else self.start + share * self.limits.seconds

    def late(self) -> bool:
        """Whether the time is over."""
        end = self.deadline(1.0)
        return end is not None and time.monotonic() >= end

    def attack(self, deadline: float | None) -> None:
        """Upper ends, a few images at a time."""
        if self.limits.attack is None:
            return
        search = replace(self.limits.attack, seed=self.limits.seed, device=self.limits.device)
        for start in range(0, len(self.found), _ATTACKED):
            self.observe(f"attack: {start} of {len(self.found)} images")
            part, begin = slice(start, start + _ATTACKED), time.monotonic()
            hits = search(self.network, self.images[part], self.labels[part], norm=self.norm, domain=self.domain, deadline=deadline)
            seconds = (time.monotonic() - begin) / len(hits.distance)
            for index, (point, distance) in enumerate(zip(hits.points, hits.distance.tolist(), strict=True), start=start):
                hit = math.isfinite(distance)
                self.change(index, upper=distance, adversary=point if hit else None, seconds=seconds)
                if distance == 0:
                    self.change(index, exact=0.0, note=MISCLASSIFIED)

    def change(self, index: int, **values: Any) -> None:
        """Replace what is known about an image."""
        self.found[index] = replace(self.found[index], **values)

    def reach(self, index: int) -> float:
        """No point of the domain is further from the image than this; inf without a domain."""
        if self.domain is None:
            return math.inf
        image = self.images[index]
        low, high = (torch.as_tensor(side, dtype=torch.float64).expand_as(image) for side in self.domain)
        far = torch.linalg.vector_norm(torch.maximum(image - low, high - image).flatten(), ord=self.norm).item()
        return far * (1 + 2 * rounding.gamma(image.numel() + 8, torch.float64))

    def most(self, index: int) -> float:
        """The largest radius worth looking at.

        Raises:
            SpecError: nothing limits it.
        """
        found = min(self.limits.most or math.inf, _BEYOND * self.found[index].upper, self.reach(index))
        if math.isinf(found) and self.late():
            return 1.0  # nothing will be looked at
        if math.isinf(found):
            raise SpecError(f"image {index}: no domain and no adversary limits the radius; give the largest radius of interest")
        return found

    def brackets(self, task: Task, most: list[float]) -> list[Bracket]:
        """Where the first engine starts; images that float64 does not see as their label are misclassified too."""
        made = task.brackets()
        for index, (bracket, limit) in enumerate(zip(made, most, strict=True)):
            if bracket.most == 0:
                self.change(index, upper=0.0, exact=0.0, note=MISCLASSIFIED, adversary=None)
            bracket.most = bracket.upper = min(bracket.most, limit)
        return made

    def take(self, index: int, bracket: Bracket, engine: str) -> None:
        """What a search for one image has proven."""
        found = self.found[index]
        self.change(index, bound_calls=found.bound_calls + bracket.calls, seconds=found.seconds + bracket.seconds)
        if bracket.lower > found.lower:
            self.change(index, lower=bracket.lower, certificate=Certificate(engine, bracket.proven_at))
        if bracket.lower >= self.reach(index):
            self.change(index, lower=math.inf, exact=math.inf, note=f"{_NOBODY} in the domain")
        elif bracket.lower > 0 and bracket.lower >= (self.limits.most or math.inf):
            self.change(index, note=f"{_NOBODY} within the largest radius of interest")

    def solve(self, index: int, tol: float) -> None:
        """The exact distance of one image, within its share of the time that is left."""
        found, total = self.found[index], self.deadline(1.0)
        self.observe(f"exact: image {index + 1} of {len(self.found)}")
        seconds = None if total is None else max(0.0, total - time.monotonic()) / (len(self.found) - index)
        limits = self.limits
        answer = exact_radius(
            self.network,
            self.images[index],
            found.label,
            norm=self.norm,
            domain=self.domain,
            lower=found.lower,
            adversary=found.adversary,
            most=limits.most or math.inf,
            solver=limits.solver,
            seconds=seconds,
            tol=tol,
            memory_mb=limits.memory_mb,
        )
        self.change(index, seconds=found.seconds + answer.seconds, note=_NOTES.get(answer.status, answer.reason or answer.status))
        if answer.lower > found.lower:
            self.change(index, lower=answer.lower, certificate=Certificate("milp", None, answer.proof))
        if answer.upper < found.upper:
            self.change(index, upper=answer.upper, adversary=answer.point)
        if answer.status == "optimal" or math.isinf(answer.lower):
            self.change(index, exact=self.found[index].upper)

    def consistent(self, index: int, found: Radius) -> float:
        """The lower end, which no adversary may contradict.

        Raises:
            ProofError: it does, by more than what the model's own arithmetic explains.
        """
        if found.lower < found.upper or found.lower == 0 or found.adversary is None:
            return min(found.lower, found.upper)
        center = self.images[index]
        step = torch.from_numpy(found.adversary.astype(np.float64)) - center
        # The adversary lies on the boundary; within the certified radius the line through it goes on.
        points = torch.stack([center + step, center + found.lower / found.upper * step])
        if self.domain is not None:
            low, high = (torch.as_tensor(side, dtype=torch.float64) for side in self.domain)
            points = points.clamp(low, high)
        with torch.no_grad():
            scores = self.network.to(torch.float64)(points).flatten(1)
        own = scores[:, found.label].clone()
        scores[:, found.label] = -math.inf
        if bool((scores.amax(1) - own > _EVALUATION * (1 + own.abs())).any()):
            raise ProofError(
                f"image {index}: the radius {found.lower:.9g} is proven by {found.certificate}, but there is an adversary at {found.upper:.9g}:"
                " a defect of this project; please report the network and the image"
            )
        return found.upper
