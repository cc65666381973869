"""Which neurons of a network a substitute replaces, anchor by anchor: bounds choose them, a share at a time.

An attack gives the radius d_adv that matters for an anchor. Bounds on the ball of that radius tell how much every neuron varies there; those
that vary least are replaced, a share at a time with bounds computed again, until the share `ratio` is gone.

Reference: Robustness evaluation using local substitute networks, section 3.3, Algorithm 1 and Lemma 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from bounds.crown import Crown, FastLin
from bounds.disturbed import disturbance
from bounds.engine import DEFAULT_MEMORY_MB
from bounds.errors import SpecError, TimeLimitError
from bounds.ibp import Ibp
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.base import Activation, product
from bounds.region import LpBall, Region
from bounds.shrink import Size, shrink, size
from bounds.substitutes import Kind, Lines, elementwise, lines, rewrite
from verify.spec import Domain

Engine = Literal["fastlin-ibp", "crown", "ibp"]
Order = Literal["width", "effect"]


@dataclass(frozen=True)
class Pruning:
    """Which neurons are replaced by what.

    kind: see `bounds.substitutes`. ratio: share of the neurons that goes, gamma of Algorithm 1. step: share of the remaining ones that goes
    before bounds are computed again, gamma_0. first_layer: whether the activations nearest to the input take part. Algorithm 1 as printed leaves them out;
    they hold most of the binaries of a convolutional network, so here they take part unless told not to. stable_first: neurons that are stable on the
    ball go before all others, which Algorithm 1 does not do: their substitutes are exact there (not for "constant"). engine: of the bounds.
    order: which neurons go first, those with the smallest "width" u - l of their pre-activations as in Algorithm 1, or with the smallest "effect"

        max {|act(z) - line(z)| : l <= z <= u} |d margin / d act|,

    the derivative of the label's margin over the adversary's class, the mean of its size at the anchor and at the adversary.

    Raises:
        SpecError: a share outside (0, 1), a step not below the ratio, an unknown type, engine or order.
    """

    kind: Kind = "linear"
    ratio: float = 0.99
    step: float = 0.1
    first_layer: bool = True
    stable_first: bool = False
    engine: Engine = "fastlin-ibp"
    order: Order = "width"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SpecError(f"unknown type of substitute {self.kind!r}; use one of {', '.join(get_args(Kind))}")
        if self.engine not in get_args(Engine):
            raise SpecError(f"unknown bounds {self.engine!r}; use one of {', '.join(get_args(Engine))}")
        if self.order not in get_args(Order):
            raise SpecError(f"unknown order {self.order!r}; use one of {', '.join(get_args(Order))}")
        if not 0 < self.ratio < 1:
            raise SpecError(f"the share of neurons to prune must lie strictly between 0 and 1, got {self.ratio}")
        if not 0 < self.step < self.ratio:
            raise SpecError(f"the share to prune at a time must lie strictly between 0 and the whole share {self.ratio}, got {self.step}")

    @property
    def shares(self) -> list[float]:
        """The share that is gone after each round: 1 - (1 - step)^k, and the ratio at the end."""
        rounds = math.ceil(math.log1p(-self.ratio) / math.log1p(-self.step))
        return [min(self.ratio, 1 - (1 - self.step) ** k) for k in range(1, rounds)] + [self.ratio]


def read_pruning(
    kind: str, ratio: float, step: float, engine: str, *, first_layer: bool = True, stable_first: bool = False, order: str = "width"
) -> Pruning:
    """The settings as typed.

    Raises:
        SpecError: see `Pruning`.
    """
    return Pruning(kind, ratio, step, first_layer, stable_first, engine, order)  # type: ignore[arg-type]


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
    taking = taking_part(network, pruning)
    sizes = [product(network.nodes[i].shape) for i in taking]
    gone = torch.zeros(len(anchors), sum(sizes), dtype=torch.bool)
    worth = _worth(network, anchors, adversaries, taking) if pruning.order == "effect" else dict.fromkeys(taking)
    for share in pruning.shares:
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeLimitError("the time limit passed while neurons were being pruned")
        current = rewrite(network, _masks(network, taking, sizes, gone), {i: made[i] for i in taking}) if bool(gone.any()) else network
        intervals = _bounds(current, regions, pruning.engine, limits)
        measure = _measures(network, intervals, made, worth, pruning)
        measure[gone] = -math.inf
        count = math.floor(share * gone.shape[1])
        order = measure.argsort(dim=1, stable=True)
        gone = torch.zeros_like(gone).scatter(1, order[:, :count], True)
    masks = _masks(network, taking, sizes, gone)
    found = []
    for b in range(len(anchors)):
        own = {i: Lines(made[i].slope[b], made[i].intercept[b]) for i in taking}
        one = rewrite(network, {i: masks[i][b] for i in taking}, own)
        small = shrink(one)
        found.append(Substitute(one, small, {i: masks[i][b] for i in taking}, own, float(torch.as_tensor(regions.eps)[b].max()), 0.0))
    seconds = (time.monotonic() - begin) / max(1, len(found))
    return [replace(one, seconds=seconds) for one in found]


def balls(anchors: Tensor, radii: Tensor, norm: float, domain: Domain | None) -> LpBall:
    """{x in the domain : ||x - anchor|| <= radius}, one ball an anchor."""
    sides = None if domain is None else (torch.as_tensor(domain[0]), torch.as_tensor(domain[1]))
    return LpBall(anchors, radii.reshape(-1, *[1] * (anchors.dim() - 1)), norm, sides)  # one number a set, never one a feature


def taking_part(network: Network, pruning: Pruning) -> list[int]:
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
    """Enclosures of what the activations read. Nothing is asked about the outputs."""
    device, memory_mb = limits.device, limits.memory_mb
    nothing = torch.zeros(1, network.outputs)
    simple = Ibp(device=device, memory_mb=memory_mb)(network, regions)
    if engine == "ibp":
        return dict(enumerate(simple.intervals))
    if engine == "crown":
        return dict(enumerate(Crown(device=device, memory_mb=memory_mb, intersect=False)(network, regions, nothing).intervals))
    read = {i: simple.intervals[i] for i in network.preactivations}
    return dict(enumerate(FastLin(device=device, memory_mb=memory_mb)(network, regions, nothing, known=read).intervals))


def _measures(
    network: Network, intervals: dict[int, Interval], made: dict[int, Lines], worth: Mapping[int, Tensor | None], pruning: Pruning
) -> Tensor:
    """What neurons are ordered by, the activations side by side, (B, neurons)."""
    found = []
    for i, factor in worth.items():
        op, x = network.nodes[i].op, intervals[network.nodes[i].inputs[0]].to(torch.float64)
        measure = x.width
        if factor is not None and isinstance(op, Activation):
            by = disturbance(op, Interval(x.lower.cpu(), x.upper.cpu()), made[i])
            measure = torch.maximum(-by.lower, by.upper).clamp(min=0) * factor
        elif pruning.stable_first and pruning.kind != "constant" and isinstance(op, Activation):
            measure = torch.where(op.unstable(x), measure, measure - measure.amax() - 1)
        found.append(measure.flatten(1).cpu())
    return torch.cat(found, 1)


def _worth(network: Network, anchors: Tensor, adversaries: Tensor, taking: Sequence[int]) -> dict[int, Tensor]:
    """|d margin / d act| by activation, (B, *shape), where the margin is the anchor's class against the adversary's."""
    exact = network.to(torch.float64, "cpu")
    points = torch.cat([anchors, adversaries]).to("cpu", torch.float64)
    values = [points.requires_grad_()]
    for node in exact.nodes[1:]:
        values.append(node.op.forward(*[values[i] for i in node.inputs]))
    scores = values[-1].flatten(1)
    own, other = scores.detach().chunk(2)
    own = own.argmax(1, keepdim=True)
    other = other.scatter(1, own, -math.inf).argmax(1, keepdim=True)
    margins = scores.gather(1, own.repeat(2, 1)) - scores.gather(1, other.repeat(2, 1))
    slopes = torch.autograd.grad(margins.sum(), [values[i] for i in taking])
    return {i: torch.stack(slope.abs().chunk(2)).mean(0) for i, slope in zip(taking, slopes, strict=True)}


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
