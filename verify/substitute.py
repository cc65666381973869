"""Local substitutes: distances of adversaries estimated on a network most of whose activations are replaced by lines.

An attack says how far around an anchor matters, and the neurons that vary least there are replaced (see `verify.pruning`). The distance to the
decision boundary of what is left is found exactly, with a fraction of the binaries.

What is said about the network itself:

    estimate          the distance on the substitute: near the truth as experience goes, on either side of it, and never a certificate
    certified_lower   no adversary of the network is nearer: the best that is proven by bounds on the network, by branching over its neurons, by
                      programs on the network in which all but a few neurons are relaxed, and, for the type "activation", by Lemma 1 with a
                      certified delta: on the ball of radius delta no pruned neuron leaves its piece, so network and substitute agree there
    upper             the nearest adversary that was found; replayed on the original model

Reference: Robustness evaluation using local substitute networks, Algorithm 1 and Lemma 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from bounds.errors import ProofError, SpecError, TimeLimitError
from bounds.network import Network
from bounds.ops.base import Activation
from bounds.shrink import Size, size
from verify.exact_radius import Replayer, exact_radius
from verify.minimal import Adversaries, MinimalNorm
from verify.pruning import Limits, Pruning, Substitute, agreement_radii, balls, prune, taking_part
from verify.radius_search import Search, certified_radii
from verify.refine import proven_ends
from verify.spec import Domain, robustness

if TYPE_CHECKING:
    from milp.distance import Distance

NO_ADVERSARY = "the substitute has no adversary in the domain"
_CONTRADICTION = 1e-5
"""How far a lower end may pass an adversary, relative above 1, before the proof is called wrong."""
_FEWEST = 10
"""Binaries that programs behind a certified end keep even where fewer neurons survive."""
_SLACK = 1.001
"""How far past an adversary certificates are looked for: a sound bound gives none there."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """What is known about one image.

    d_adv: distance of the attack's adversary, which the pruning is built around. upper: that of the nearest one known. estimate: the distance on
    the substitute where it was found in time, else None; estimate_range: its two ends in any case.

    certified_lower: see the module; proof: "rigorous" or "solver"; rigorous: the best lower end that needs no solver; delta: Lemma 1's radius
    (type "activation" only). exact: the network's own distance where it was asked for and found in time.

    binaries: of the largest program on the substitute and on the network (None unless exact was asked for). seconds: attack, pruning, milp, runs
    (programs solved on the substitute), certificate, exact, exact_runs. adversary: the point at `upper`; substitute_adversary: the substitute's nearest one.
    note: what there is to say.
    """

    label: int
    d_adv: float
    upper: float
    estimate: float | None
    estimate_range: tuple[float, float]
    certified_lower: float
    proof: Literal["rigorous", "solver"]
    rigorous: float
    delta: float | None
    exact: float | None
    before: Size
    after: Size
    binaries: tuple[int, int | None]
    seconds: dict[str, float]
    substitute: Substitute | None = None
    adversary: np.ndarray | None = None
    substitute_adversary: np.ndarray | None = None
    note: str = ""

    @property
    def clamped(self) -> float | None:
        """The estimate moved between the certified end and the nearest adversary known: never farther from the distance than the estimate."""
        return None if self.estimate is None else min(max(self.estimate, self.certified_lower), self.upper)

    @property
    def relative_difference(self) -> float | None:
        """|estimate - exact| / exact, where both are known and finite."""
        known = self.estimate is not None and math.isfinite(self.estimate) and self.exact is not None and 0 < self.exact < math.inf
        return abs(self.estimate - self.exact) / self.exact if known else None  # type: ignore[operator]


@dataclass(frozen=True, eq=False)
class Estimator:
    """Estimates for images of one network. norm: 1, 2 or inf; domain: (low, high) that every x must respect, or None; exact: whether the
    network's own distance is wanted too; certify: seconds for raising the lower end beyond what bounds prove, 0 for none, None for all that are
    left; observe: told what is going on."""

    network: Network
    pruning: Pruning = field(default_factory=Pruning)
    norm: float = math.inf
    domain: Domain | None = (0.0, 1.0)
    limits: Limits = field(default_factory=Limits)
    exact: bool = False
    certify: float | None = 5.0
    attack: MinimalNorm = field(default_factory=MinimalNorm)
    observe: Callable[[str], None] | None = None

    def __call__(self, images: Tensor, labels: Tensor, deadline: float | None = None) -> list[Estimate]:
        """Both ends, the estimate and, if wanted, the exact distance of every image. images: (N, *input_shape), labels: (N,).

        Raises:
            SpecError: no adversary of an image within the domain, a misclassified image, an image outside the domain. UnsupportedOpError: see
                `prune`. TimeLimitError: the deadline passed before the substitutes were built. ProofError: two ends contradict each other.
        """
        found = self.start(images, labels, deadline)
        return [self.finish(one, image, deadline) for one, image in zip(found, images, strict=True)]

    def start(self, images: Tensor, labels: Tensor, deadline: float | None = None) -> list[Estimate]:
        """Attack, substitutes and what bounds certify, for a batch of images; `finish` adds the distances."""
        images = images.detach().to("cpu", torch.float64)
        for image, label in zip(images, labels.tolist(), strict=True):
            robustness(image, label, 0.0, norm=self.norm, outputs=self.network.outputs, domain=self.domain)
        taking_part(self.network, self.pruning)
        begin = time.monotonic()
        self._tell("attack")
        hits = self.attack(self.network, images, labels, norm=self.norm, domain=self.domain, deadline=deadline)
        attacked = (time.monotonic() - begin) / max(1, len(images))
        self._check(hits, labels, deadline)
        radii = torch.from_numpy(hits.distance)
        points = torch.from_numpy(hits.points.astype(np.float64))
        self._tell("pruning")
        regions = balls(images, radii, self.norm, self.domain)
        made = prune(self.network, images, points, regions, self.pruning, self.limits, deadline)
        self._tell("certified radius")
        search = Search(most=float(_SLACK * radii.max()), tol=1e-4 * float(radii.max()), deadline=deadline)
        lower = certified_radii(self.network, images, labels, norm=self.norm, domain=self.domain, search=search).lower
        delta = None
        if self.pruning.kind == "activation":
            delta = agreement_radii(self.network, images, [one.pruned for one in made], radii, norm=self.norm, domain=self.domain)
        return [
            Estimate(
                int(labels[b]),
                d_adv=float(radii[b]),
                upper=float(radii[b]),
                estimate=None,
                estimate_range=(0.0, math.inf),
                certified_lower=min(float(lower[b]), float(radii[b])),
                proof="rigorous",
                rigorous=min(float(lower[b]), float(radii[b])),
                delta=None if delta is None else float(delta[b]),
                exact=None,
                before=size(self.network),
                after=one.size,
                binaries=(0, None),
                seconds={
                    "attack": attacked,
                    "pruning": one.seconds,
                    "milp": 0.0,
                    "runs": 0,
                    "certificate": 0.0,
                    "exact": 0.0,
                    "exact_runs": 0,
                },
                substitute=one,
                adversary=hits.points[b],
            )
            for b, one in enumerate(made)
        ]

    def finish(self, found: Estimate, image: Tensor, deadline: float | None = None) -> Estimate:
        """The distance on the substitute, and on the network if that is wanted."""
        if found.substitute is None:
            return found
        whole = all(node.op.exact_in_milp for node in found.substitute.small.nodes if isinstance(node.op, Activation))
        certify = self.certify is None or self.certify > 0
        steps = 1 + certify + self.exact
        self._tell("distance on the substitute")
        if whole:
            found = self._estimated(found, image, self._distance(found.substitute.small, found, image, 0.0, _share(deadline, steps)))
        else:
            found = self._bracketed(found, image, _share(deadline, steps))
        if certify:
            self._tell("certified distance")
            found = self._certified(found, image, _share(deadline, steps - 1))
        if not self.exact or not whole:
            return found
        self._tell("distance on the network")
        return self._measured(found, self._distance(self.network, found, image, found.rigorous, deadline))

    def _tell(self, what: str) -> None:
        if self.observe is not None:
            self.observe(what)

    def _certified(self, found: Estimate, image: Tensor, deadline: float | None) -> Estimate:
        """A better lower end by branching, and by programs with about as few binaries as neurons survive (see `verify.refine.proven_ends`)."""
        if found.adversary is None:
            return found
        left = self._seconds(deadline)
        exact = all(node.op.exact_in_milp for node in self.network.nodes if isinstance(node.op, Activation))
        distance = proven_ends(
            self.network,
            image,
            found.label,
            max(_FEWEST, found.after.activations) if exact else None,
            adversary=found.adversary,
            lower=found.rigorous,
            most=math.inf if self.domain is not None else 10 * found.d_adv,
            norm=self.norm,
            domain=self.domain,
            solver=self.limits.solver,
            seconds=left if self.certify is None else min(self.certify, math.inf if left is None else left),
            memory_mb=self.limits.memory_mb,
        )
        upper, stronger = min(found.upper, distance.upper), distance.lower > found.certified_lower
        return replace(
            found,
            upper=upper,
            adversary=distance.point if distance.point is not None and distance.upper < found.upper else found.adversary,
            certified_lower=_consistent(max(found.certified_lower, distance.lower), upper),
            rigorous=min(max(found.rigorous, distance.rigorous), upper),
            proof=distance.proof if stronger else found.proof,
            seconds=found.seconds | {"certificate": distance.seconds},
        )

    def _seconds(self, deadline: float | None) -> float | None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return left if self.limits.seconds is None else min(self.limits.seconds, math.inf if left is None else left)

    def _distance(self, network: Network, found: Estimate, image: Tensor, lower: float, deadline: float | None) -> Distance:
        return exact_radius(
            network,
            image,
            found.label,
            norm=self.norm,
            domain=self.domain,
            lower=lower,
            adversary=found.adversary,
            most=math.inf if self.domain is not None else 10 * found.d_adv,
            solver=self.limits.solver,
            seconds=self._seconds(deadline),
            memory_mb=self.limits.memory_mb,
        )

    def _bracketed(self, found: Estimate, image: Tensor, deadline: float | None) -> Estimate:
        """Both ends of the distance on a substitute without an exact form: what bounds certify there, and an attack on it."""
        network, labels = found.substitute.small if found.substitute else self.network, torch.tensor([found.label])
        hits = self.attack(network, image[None], labels, norm=self.norm, domain=self.domain, deadline=deadline)
        upper = float(hits.distance[0])
        most = min(upper, 10 * found.d_adv)
        search = Search(most=_SLACK * most, tol=1e-4 * most, deadline=deadline)
        lower = float(certified_radii(network, image[None], labels, norm=self.norm, domain=self.domain, search=search).lower[0])
        note = "the substitute has no exact form: its distance is between two ends"
        point = hits.points[0] if math.isfinite(upper) else None
        return replace(found, estimate_range=(min(lower, upper), upper), substitute_adversary=point, note=note)

    def _estimated(self, found: Estimate, image: Tensor, distance: Distance) -> Estimate:
        """What the distance on the substitute says; its nearest point is tried on the network too."""
        adversary, upper = found.adversary, found.upper
        if distance.point is not None:
            replayer = Replayer(self.network, image.double(), found.label, self.norm, self.domain)
            hit = replayer(np.asarray(distance.point, dtype=np.float64))
            if hit is not None and hit.distance < upper:
                adversary, upper = hit.point, hit.distance
        lower, proof, rigorous = found.certified_lower, found.proof, found.rigorous
        if found.delta is not None:  # Lemma 1: the two networks agree within delta
            rigorous = max(rigorous, min(found.delta, distance.rigorous))
            agreed = min(found.delta, distance.lower)
            lower, proof = max(lower, agreed), "rigorous" if max(lower, agreed) <= rigorous else "solver"
        optimal = distance.status == "optimal"
        boundless = distance.status == "no adversary" and math.isinf(distance.lower)  # the whole domain was looked at
        seconds = found.seconds | {"milp": distance.seconds, "runs": distance.solves}
        return replace(
            found,
            estimate=distance.upper if optimal else math.inf if boundless else None,
            estimate_range=(distance.lower, distance.upper),
            certified_lower=_consistent(lower, upper),
            proof=proof,
            rigorous=min(rigorous, upper),
            upper=upper,
            adversary=adversary,
            substitute_adversary=distance.point,
            binaries=(distance.binaries, None),
            seconds=seconds,
            note="" if optimal else NO_ADVERSARY if boundless else f"substitute: {distance.reason or distance.status}",
        )

    def _measured(self, found: Estimate, distance: Distance) -> Estimate:
        optimal = distance.status == "optimal"
        note = found.note if optimal else "; ".join(filter(None, [found.note, f"network: {distance.reason or distance.status}"]))
        stronger, upper = distance.lower > found.certified_lower, min(found.upper, distance.upper)
        return replace(
            found,
            exact=upper if optimal else None,
            upper=upper,
            adversary=distance.point if distance.point is not None and distance.upper < found.upper else found.adversary,
            certified_lower=_consistent(max(found.certified_lower, distance.lower), upper),
            rigorous=min(max(found.rigorous, distance.rigorous), upper),
            proof=distance.proof if stronger else found.proof,
            binaries=(found.binaries[0], distance.binaries),
            seconds=found.seconds | {"exact": distance.seconds, "exact_runs": distance.solves},
            note=note,
        )

    def _check(self, hits: Adversaries, labels: Tensor, deadline: float | None) -> None:
        for number, (distance, label) in enumerate(zip(hits.distance.tolist(), labels.tolist(), strict=True)):
            if distance == 0:
                raise SpecError(
                    f"image {number} of the batch is misclassified (label {label}): there is no distance to estimate; leave it out"
                )
            if math.isinf(distance) and deadline is not None and time.monotonic() >= deadline:
                raise TimeLimitError("the time limit passed before the attack found an adversary")
            if math.isinf(distance):
                raise SpecError(
                    f"no adversary of image {number} of the batch was found within the domain: nothing says on which ball neurons vary; "
                    "leave it out, or search its certified radius instead"
                )


def _share(deadline: float | None, steps: int) -> float | None:
    """When the next of so many steps has to end."""
    now = time.monotonic()
    return None if deadline is None else now + max(0.0, deadline - now) / steps


def _consistent(lower: float, upper: float) -> float:
    """The lower end, which no adversary may contradict.

    Raises:
        ProofError: one does, by more than the tolerances of solvers.
    """
    if lower > upper + _CONTRADICTION * max(1.0, upper):
        raise ProofError(
            f"no adversary was proven to be nearer than {lower:.9g}, but there is one at {upper:.9g}: a defect of this project or of a solver; "
            "please report the network and the image"
        )
    return min(lower, upper)
