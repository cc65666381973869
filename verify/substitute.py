"""Local substitutes: distances of adversaries estimated on a network most of whose activations are replaced by lines.

An attack gives the radius d_adv that matters for an anchor. Bounds on the ball of that radius tell how much every neuron varies there; those
that vary least are replaced, a share at a time with bounds computed again, until the share `ratio` is gone. The distance to the decision
boundary of what is left is found exactly, with a fraction of the binaries.

What is said about the network itself:

    estimate          the distance on the substitute: near the truth as experience goes, on either side of it, and never a certificate
    certified_lower   no adversary of the network is nearer: proven by bounds on the network, or, for the type "activation", by Lemma 1 with a
                      certified delta: on the ball of radius delta no pruned neuron leaves its piece, so network and substitute agree there
    upper             the nearest adversary that was found; replayed on the original model

Reference: Robustness evaluation using local substitute networks, Algorithm 1 and Lemma 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bounds.crown import Crown, FastLin
from bounds.engine import DEFAULT_MEMORY_MB
from bounds.errors import ProofError, SpecError, TimeLimitError
from bounds.ibp import Ibp
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.base import Activation, product
from bounds.region import LpBall, Region
from bounds.shrink import Size, shrink, size
from bounds.substitutes import Kind, Lines, elementwise, lines, rewrite
from verify.exact_radius import Replayer, exact_radius
from verify.minimal import Adversaries, MinimalNorm
from verify.radius_search import Search, certified_radii
from verify.spec import Domain, robustness

if TYPE_CHECKING:
    from milp.distance import Distance

Engine = Literal["fastlin-ibp", "crown", "ibp"]
_CONTRADICTION = 1e-5
"""How far a lower end may pass an adversary, relative above 1, before the proof is called wrong."""
_SLACK = 1.001
"""How far past an adversary certificates are looked for: a sound bound gives none there."""


@dataclass(frozen=True)
class Pruning:
    """Which neurons are replaced by what.

    kind: see `bounds.substitutes`. ratio: share of the neurons that goes, gamma of Algorithm 1. step: share of the remaining ones that goes
    before bounds are computed again, gamma_0. first_layer: whether the activations nearest to the input take part. Algorithm 1 as printed leaves them out;
    they hold most of the binaries of a convolutional network, so here they take part unless told not to. stable_first: neurons that are stable on the
    ball go before all others, which Algorithm 1 does not do: their substitutes are exact there (not for "constant"). engine: of the bounds.

    Raises:
        SpecError: a share outside (0, 1), a step not below the ratio, an unknown type or engine.
    """

    kind: Kind = "linear"
    ratio: float = 0.99
    step: float = 0.1
    first_layer: bool = True
    stable_first: bool = False
    engine: Engine = "fastlin-ibp"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SpecError(f"unknown type of substitute {self.kind!r}; use one of {', '.join(get_args(Kind))}")
        if self.engine not in get_args(Engine):
            raise SpecError(f"unknown bounds {self.engine!r}; use one of {', '.join(get_args(Engine))}")
        if not 0 < self.ratio < 1:
            raise SpecError(f"the share of neurons to prune must lie strictly between 0 and 1, got {self.ratio}")
        if not 0 < self.step < self.ratio:
            raise SpecError(f"the share to prune at a time must lie strictly between 0 and the whole share {self.ratio}, got {self.step}")

    @property
    def shares(self) -> list[float]:
        """The share that is gone after each round: 1 - (1 - step)^k, and the ratio at the end."""
        rounds = math.ceil(math.log1p(-self.ratio) / math.log1p(-self.step))
        return [min(self.ratio, 1 - (1 - self.step) ** k) for k in range(1, rounds)] + [self.ratio]


def read_pruning(kind: str, ratio: float, step: float, engine: str, *, first_layer: bool = True, stable_first: bool = False) -> Pruning:
    """The settings as typed.

    Raises:
        SpecError: see `Pruning`.
    """
    return Pruning(kind, ratio, step, first_layer, stable_first, engine)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Limits:
    """What the work on one image may use. seconds: for each exact distance, on the substitute and on the network; None for all it takes.
    solver: None for the default."""

    seconds: float | None = 60.0
    solver: str | None = None
    device: str = "cpu"
    memory_mb: float = DEFAULT_MEMORY_MB
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Substitute:
    """The substitute of one anchor. network: node for node the original; small: its smallest form (see `bounds.shrink`); pruned: masks by the
    activation's node; lines: what stands in the place of its elements; radius: of the ball that the bounds were computed on; seconds: its share."""

    network: Network
    small: Network
    pruned: dict[int, Tensor]
    lines: dict[int, Lines]
    radius: float
    seconds: float

    @property
    def size(self) -> Size:
        """How large the small form is."""
        return size(self.small)


def prune(
    network: Network,
    anchors: Tensor,
    adversaries: Tensor,
    regions: LpBall,
    pruning: Pruning = Pruning(),
    limits: Limits = Limits(),
    deadline: float | None = None,
) -> list[Substitute]:
    """Algorithm 1 on a batch of anchors at once, each with a substitute of its own.

    anchors, adversaries: (B, *input_shape); regions: B balls around the anchors that reach as far as the adversaries.

    Property: exactly floor(ratio * n) of the n neurons that take part are replaced; g(anchor) = f(anchor) and, for "linear", g(adversary) =
    f(adversary), up to rounding.

    Raises:
        SpecError: no neuron is left to take part. UnsupportedOpError: an activation that the type cannot replace, or none at all.
        TimeLimitError: the deadline passed.
    """
    begin = time.monotonic()
    made = lines(network, pruning.kind, anchors, adversaries)
    taking = _taking_part(network, pruning)
    sizes = [product(network.nodes[i].shape) for i in taking]
    gone = torch.zeros(len(anchors), sum(sizes), dtype=torch.bool)
    for share in pruning.shares:
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeLimitError("the time limit passed while neurons were being pruned")
        current = rewrite(network, _masks(network, taking, sizes, gone), {i: made[i] for i in taking}) if bool(gone.any()) else network
        intervals = _bounds(current, regions, pruning.engine, limits)
        width = torch.cat([_variation(current, i, intervals, pruning).cpu() for i in taking], 1)
        width[gone] = -math.inf
        count = math.floor(share * gone.shape[1])
        order = width.argsort(dim=1, stable=True)
        gone = torch.zeros_like(gone).scatter(1, order[:, :count], True)
    masks = _masks(network, taking, sizes, gone)
    found = []
    for b in range(len(anchors)):
        own = {i: Lines(made[i].slope[b], made[i].intercept[b]) for i in taking}
        one = rewrite(network, {i: masks[i][b] for i in taking}, own)
        small = shrink(one)
        found.append(Substitute(one, small, {i: masks[i][b] for i in taking}, own, float(torch.as_tensor(regions.eps)[b].max()), 0.0))
    seconds = (time.monotonic() - begin) / max(1, len(found))
    return [Substitute(s.network, s.small, s.pruned, s.lines, s.radius, seconds) for s in found]


def balls(anchors: Tensor, radii: Tensor, norm: float, domain: Domain | None) -> LpBall:
    """{x in the domain : ||x - anchor|| <= radius}, one ball an anchor."""
    sides = None if domain is None else (torch.as_tensor(domain[0]), torch.as_tensor(domain[1]))
    return LpBall(anchors, radii.reshape(-1, *[1] * (anchors.dim() - 1)), norm, sides)  # one number a set, never one a feature


def _taking_part(network: Network, pruning: Pruning) -> list[int]:
    """Activations whose elements may go."""
    found = elementwise(network, pruning.kind)
    if not pruning.first_layer:
        found = tuple(i for i in found if not network.affine_in_input[network.nodes[i].inputs[0]])
    if not found:
        raise SpecError("every activation reads the input directly, and the first layer is left out; let it take part")
    return list(found)


def _masks(network: Network, taking: Sequence[int], sizes: Sequence[int], gone: Tensor) -> dict[int, Tensor]:
    parts = gone.split(list(sizes), dim=1)
    return {i: part.reshape(-1, *network.nodes[i].shape) for i, part in zip(taking, parts, strict=True)}


def _bounds(network: Network, regions: Region, engine: Engine, limits: Limits) -> dict[int, Interval]:
    """Enclosures of what the activations read."""
    device, memory_mb = limits.device, limits.memory_mb
    simple = Ibp(device=device, memory_mb=memory_mb)(network, regions)
    if engine == "ibp":
        return dict(enumerate(simple.intervals))
    if engine == "crown":
        return dict(enumerate(Crown(device=device, memory_mb=memory_mb, intersect=False)(network, regions).intervals))
    read = {i: simple.intervals[i] for i in network.preactivations}
    return dict(enumerate(FastLin(device=device, memory_mb=memory_mb)(network, regions, known=read).intervals))


def _variation(network: Network, index: int, intervals: dict[int, Interval], pruning: Pruning) -> Tensor:
    """How much the neurons vary: the width of their pre-activations, (B, elements)."""
    node = network.nodes[index]
    x = intervals[node.inputs[0]]
    width = x.width.double()
    if pruning.stable_first and pruning.kind != "constant" and isinstance(node.op, Activation):
        width = torch.where(node.op.unstable(x), width, width - width.amax() - 1)
    return width.flatten(1)


def agreement_radii(
    network: Network,
    anchors: Tensor,
    pruned: Sequence[dict[int, Tensor]],
    most: Tensor,
    *,
    norm: float = math.inf,
    domain: Domain | None = (0.0, 1.0),
    steps: int = 16,
) -> Tensor:
    """Lemma 1's delta: radii (B,) of balls on which no pruned neuron leaves the piece of its activation that the anchor lies on.

    On these balls network and substitute of the type "activation" agree. most: (B,), the largest radii of interest.

    Property: a lower bound of the largest such radius; every returned radius was checked by bounds with outward rounding.
    """
    masks = {i: torch.stack([one[i] for one in pruned]) for i in pruned[0]}
    low, high = torch.zeros(len(anchors), dtype=torch.float64), most.double()
    for step in range(steps):
        middle = high if step == 0 else (low + high) / 2
        intervals = _bounds(network, balls(anchors, middle, norm, domain), "crown", Limits())
        moving = torch.zeros(len(anchors), dtype=torch.bool)
        for i, mask in masks.items():
            op = network.nodes[i].op
            if isinstance(op, Activation):
                moving |= (op.unstable(intervals[network.nodes[i].inputs[0]]) & mask).flatten(1).any(1)
        low, high = torch.where(moving, low, middle), torch.where(moving, middle, high)
    return low


@dataclass(frozen=True, eq=False)
class Estimate:
    """What is known about one image.

    d_adv: distance of the attack's adversary, which the pruning is built around. upper: that of the nearest one known. estimate: the distance on
    the substitute where it was found in time, else None; estimate_range: its two ends in any case.

    certified_lower: see the module; proof: "rigorous" or "solver"; rigorous: the best lower end that needs no solver; delta: Lemma 1's radius
    (type "activation" only). exact: the network's own distance where it was asked for and found in time.

    binaries: of the largest program on the substitute and on the network (None unless exact was asked for). seconds: attack, pruning, milp, runs
    (programs solved on the substitute), exact, exact_runs. adversary: the point at `upper`; substitute_adversary: the substitute's nearest one.
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
    def relative_difference(self) -> float | None:
        """|estimate - exact| / exact, where both are known."""
        known = self.estimate is not None and self.exact is not None and 0 < self.exact < math.inf
        return abs(self.estimate - self.exact) / self.exact if known else None  # type: ignore[operator]


@dataclass(frozen=True, eq=False)
class Estimator:
    """Estimates for images of one network. norm: 1, 2 or inf; domain: (low, high) that every x must respect, or None; exact: whether the
    network's own distance is wanted too; observe: told what is going on."""

    network: Network
    pruning: Pruning = Pruning()
    norm: float = math.inf
    domain: Domain | None = (0.0, 1.0)
    limits: Limits = Limits()
    exact: bool = False
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
        _taking_part(self.network, self.pruning)
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
                seconds={"attack": attacked, "pruning": one.seconds, "milp": 0.0, "runs": 0, "exact": 0.0, "exact_runs": 0},
                substitute=one,
                adversary=hits.points[b],
            )
            for b, one in enumerate(made)
        ]

    def finish(self, found: Estimate, image: Tensor, deadline: float | None = None) -> Estimate:
        """The distance on the substitute, and on the network if that is wanted."""
        if found.substitute is None:
            return found
        self._tell("distance on the substitute")
        now = time.monotonic()
        half = deadline if deadline is None or not self.exact else now + max(0.0, deadline - now) / 2  # the other half is the network's
        if not all(node.op.exact_in_milp for node in found.substitute.small.nodes if isinstance(node.op, Activation)):
            return self._bracketed(found, image, half)
        on_substitute = self._distance(found.substitute.small, found, image, 0.0, half)
        found = self._estimated(found, image, on_substitute)
        if not self.exact:
            return found
        self._tell("distance on the network")
        return self._measured(found, self._distance(self.network, found, image, found.rigorous, deadline))

    def _tell(self, what: str) -> None:
        if self.observe is not None:
            self.observe(what)

    def _distance(self, network: Network, found: Estimate, image: Tensor, lower: float, deadline: float | None) -> Distance:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        seconds = left if self.limits.seconds is None else min(self.limits.seconds, math.inf if left is None else left)
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
            seconds=seconds,
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
        boundless = distance.status == "no adversary"
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
            note="" if optimal else f"substitute: {distance.reason or distance.status}",
        )

    def _measured(self, found: Estimate, distance: Distance) -> Estimate:
        optimal = distance.status == "optimal"
        note = found.note if optimal else "; ".join(filter(None, [found.note, f"network: {distance.reason or distance.status}"]))
        stronger, upper = distance.lower > found.certified_lower, min(found.upper, distance.upper)
        return replace(
            found,
            exact=distance.upper if optimal else None,
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
