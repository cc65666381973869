"""How robust a classifier is on many images: the error without perturbation, under attack, and proven by each bound method.

The columns are those of thesis Tables 3.6 to 3.8. An image counts as certified by a method when it is correctly classified and the method's
lower bound of every margin y[label] - y[j] on the image's region is positive after rounding; one call at the full radius, no search. "pec",
the polyhedral envelope, goes on where such a call fails: the distance of the nearest of its planes is still certified (thesis Lemma 3.1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from bounds.engine import DEFAULT_MEMORY_MB, place
from bounds.errors import MemoryLimitError, SpecError, TimeLimitError
from bounds.network import Network
from bounds.region import LpBall
from bounds.trace import Semantics
from verify.attack import Pgd
from verify.provers import ENGINES, LINEAR, Prover
from verify.spec import class_margins

ENVELOPE = "pec"
PROVERS = (*ENGINES, ENVELOPE)
"""Bound methods, cheapest first."""
ATTACK = "pgd"
METHODS = (*PROVERS, ATTACK)
"""Everything that can be asked for, in the order in which it runs."""


@dataclass(frozen=True)
class Settings:
    """What decides the figures.

    eps: radius in units of pixels in [0, 1]; norm: 1, 2 or inf; clip: whether perturbed pixels stay in [0, 1]; methods: of `METHODS`; batch:
    images worked on, and recorded, at once; steps, restarts: of the attack; seed: of the attack. "pec" takes the best of the planes of all
    linear methods asked for, and Fast-Lin's where there are none.

    Raises:
        SpecError: a value that makes no sense, or an unknown method.
    """

    eps: float
    norm: float = math.inf
    clip: bool = True
    methods: tuple[str, ...] = ("ibp", "crown", ATTACK)
    batch: int = 100
    steps: int = 50
    restarts: int = 10
    seed: int = 0
    semantics: Semantics = "real"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise SpecError(f"eps must be finite and not negative, got {self.eps}")
        if self.norm not in (1.0, 2.0, math.inf):
            raise SpecError(f"norm {self.norm} is not supported: use 1, 2 or inf")
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            raise SpecError(f"unknown method {unknown[0]!r}; use {', '.join(METHODS)}" if unknown else "give at least one method")
        if self.semantics not in get_args(Semantics):
            raise SpecError(f"unknown semantics {self.semantics!r}; use {' or '.join(get_args(Semantics))}")
        for name in ("batch", "steps", "restarts"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        object.__setattr__(self, "methods", tuple(name for name in METHODS if name in self.methods))

    @property
    def provers(self) -> tuple[str, ...]:
        """The bound methods asked for."""
        return tuple(name for name in self.methods if name != ATTACK)

    @property
    def envelope(self) -> tuple[str, ...]:
        """The linear methods whose planes make the envelope; none where it was not asked for."""
        if ENVELOPE not in self.methods:
            return ()
        return tuple(name for name in self.methods if name in LINEAR) or ("fastlin",)

    @property
    def engines(self) -> tuple[str, ...]:
        """The bound methods to run, cheapest first."""
        return tuple(name for name in ENGINES if name in self.methods or name in self.envelope)

    @property
    def attacks(self) -> bool:
        """Whether images are attacked."""
        return ATTACK in self.methods


@dataclass(frozen=True)
class Limits:
    """What a run may use. deadline: a value of time.monotonic(). memory_mb: for coefficient tensors."""

    device: str = "cpu"
    memory_mb: float = DEFAULT_MEMORY_MB
    deadline: float | None = None

    def check(self) -> None:
        """Raises TimeLimitError once the deadline has passed."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise TimeLimitError("time limit")


@dataclass(frozen=True)
class Chunk:
    """Results for images first, first + 1, ...

    correct: whether the unperturbed image is classified as its label. margins: for every bound method the proven lower bound of the worst
    margin, None for a misclassified image. broken: whether the image is misclassified somewhere in its region as far as the attack knows,
    None without an attack. seconds: for every method. radii: the radius that the envelope certifies, None for a misclassified image; None
    without the envelope.
    """

    first: int
    correct: tuple[bool, ...]
    margins: Mapping[str, tuple[float | None, ...]]
    broken: tuple[bool, ...] | None
    seconds: Mapping[str, float]
    radii: tuple[float | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.correct)

    def certified(self, method: str) -> tuple[bool, ...]:
        """Which images are correctly classified and proven robust by the method."""
        return tuple(margin is not None and margin > 0 for margin in self.margins[method])

    def cut(self, stop: int) -> Chunk:
        """The results for the images before image number `stop`."""
        size = max(0, min(len(self), stop - self.first))
        margins = {name: values[:size] for name, values in self.margins.items()}
        broken = None if self.broken is None else self.broken[:size]
        radii = None if self.radii is None else self.radii[:size]
        return Chunk(self.first, self.correct[:size], margins, broken, self.seconds, radii)


@dataclass(frozen=True)
class Evaluation:
    """The figures over the first `images` images; errors in percent, average certified bounds in units of eps's, None without images.

    certified_error: images that are not both correctly classified and proven. average_certified_bound: mean over the images of eps where
    certified, else 0; for "pec" of the certified radius. pgd_error: images misclassified somewhere the attack looked, a lower bound of the
    robust error. seconds: for every method. reason: why the run stopped before `requested` images, None if it did not.
    """

    images: int
    requested: int
    clean_error: float | None
    pgd_error: float | None
    certified_error: Mapping[str, float | None]
    average_certified_bound: Mapping[str, float | None]
    seconds: Mapping[str, float]
    reason: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every image asked for is in the figures."""
        return self.images == self.requested

    def to_dict(self) -> dict[str, Any]:
        """As the JSON object that `ringfence evaluate --json` prints."""
        names = ("images", "requested", "complete", "reason", "clean_error", "pgd_error", "certified_error", "average_certified_bound")
        return {name: getattr(self, name) for name in names} | {"seconds": dict(self.seconds)}


def evaluate(
    network: Network,
    images: np.ndarray,
    labels: np.ndarray,
    settings: Settings,
    limits: Limits = Limits(),
    finished: Sequence[Chunk] = (),
    record: Callable[[Chunk], None] | None = None,
) -> Evaluation:
    """Evaluate a classifier on images (count, *input_shape) in [0, 1] with labels (count,).

    finished: chunks of an earlier run from image 0 on, which are not worked on again. record: called with every chunk as it is finished.
    The time or memory limit, or Ctrl-C, ends the run early: the figures are then those of the finished chunks, and `reason` says so.

    Raises:
        SpecError: images or labels that do not fit the network. DeviceError: the device is not there.

    Property: certified errors are sound (upper bounds of the robust error); the attack's error is a lower bound of it.
    """
    _check(network, images, labels)
    place(limits.device)
    chunks = list(finished)
    start = chunks[-1].first + len(chunks[-1]) if chunks else 0
    reason = None
    try:
        while start < len(images):
            limits.check()
            part = slice(start, min(start + settings.batch, len(images)))
            chunk = evaluate_chunk(network, images[part], labels[part], settings, limits, start)
            chunks.append(chunk)
            if record is not None:
                record(chunk)
            start += len(chunk)
    except (TimeLimitError, MemoryLimitError) as error:
        reason = "time limit" if isinstance(error, TimeLimitError) else str(error)
    except KeyboardInterrupt:
        reason = INTERRUPTED
    return summarise(chunks, settings, len(images), reason)


INTERRUPTED = "interrupted"
"""The reason of an evaluation that was stopped by Ctrl-C."""


def summarise(chunks: Sequence[Chunk], settings: Settings, requested: int, reason: str | None = None) -> Evaluation:
    """The figures over chunks, as far as they concern the first `requested` images."""
    kept = [chunk.cut(requested) for chunk in chunks]
    images = sum(len(chunk) for chunk in kept)

    def percent(count: int) -> float | None:
        return 100.0 * count / images if images else None

    certified = {name: sum(sum(chunk.certified(name)) for chunk in kept) for name in settings.provers}
    reached = {name: settings.eps * count for name, count in certified.items()}
    if ENVELOPE in reached:
        reached[ENVELOPE] = math.fsum(radius or 0.0 for chunk in kept for radius in chunk.radii or ())
    broken = sum(sum(chunk.broken or ()) for chunk in kept)
    return Evaluation(
        images=images,
        requested=requested,
        clean_error=percent(images - sum(sum(chunk.correct) for chunk in kept)),
        pgd_error=percent(broken) if settings.attacks else None,
        certified_error={name: percent(images - count) for name, count in certified.items()},
        average_certified_bound={name: total / images if images else None for name, total in reached.items()},
        seconds={name: sum(chunk.seconds.get(name, 0.0) for chunk in kept) for name in settings.methods},
        reason=reason if images < requested else None,
    )


def evaluate_chunk(
    network: Network, images: np.ndarray, labels: np.ndarray, settings: Settings, limits: Limits = Limits(), first: int = 0
) -> Chunk:
    """Every method on a few images at once: bounds for the correctly classified, the attack for those of them that no method certified.

    Raises:
        TimeLimitError: the deadline passed. MemoryLimitError: a single row of bounds does not fit.
    """
    correct = _wins(_outputs(network, images), labels)
    proofs = _prove(network, images[correct], labels[correct], settings, limits)
    proven = np.zeros(len(images), dtype=bool)
    for worst in proofs.margins.values():
        proven[correct] |= worst > 0
    margins = {name: _among(worst, correct) for name, worst in proofs.margins.items()}
    seconds = dict(proofs.seconds)
    broken = None
    if settings.attacks:
        begin = time.monotonic()
        fallen, left = ~correct, correct & ~proven
        if left.any():
            fallen[left] = _attack(network, _region(images[left], settings), labels[left], settings, limits)
        broken = tuple(fallen.tolist())
        seconds[ATTACK] = time.monotonic() - begin
        limits.check()
    radii = None if proofs.radii is None else _among(proofs.radii, correct)
    return Chunk(first, tuple(correct.tolist()), margins, broken, seconds, radii)


def _among(values: np.ndarray, chosen: np.ndarray) -> tuple[float | None, ...]:
    """The values at the chosen places in turn, None elsewhere."""
    supply = iter(values.tolist())
    return tuple(next(supply) if here else None for here in chosen)


@dataclass(frozen=True)
class _Proofs:
    """What every bound method proved of some images: worst margins and, for the envelope, radii; seconds of each method."""

    margins: dict[str, np.ndarray]
    radii: np.ndarray | None
    seconds: dict[str, float]


def _prove(network: Network, images: np.ndarray, labels: np.ndarray, settings: Settings, limits: Limits) -> _Proofs:
    """Every bound method in turn; the envelope is measured on the planes of the linear ones as they come."""
    margins = {name: np.full(len(images), -math.inf) for name in settings.provers}
    radii = np.zeros(len(images))
    seconds = dict.fromkeys(settings.provers, 0.0)
    for name in settings.engines if len(images) else ():
        prover = Prover(name, limits.device, settings.semantics, limits.memory_mb, limits.deadline)
        found = prover(network, _region(images, settings), torch.from_numpy(labels.astype(np.int64)), name in settings.envelope)
        extra = found.radii_seconds
        if name in margins:
            margins[name], seconds[name] = found.margins.numpy(), found.seconds
        else:
            extra += found.seconds
        if found.radii is not None:
            radii = np.maximum(radii, found.radii.numpy())
            margins[ENVELOPE] = np.maximum(margins[ENVELOPE], found.margins.numpy())
            seconds[ENVELOPE] += extra
        limits.check()
    return _Proofs(margins, radii if settings.envelope else None, seconds)


def _region(images: np.ndarray, settings: Settings) -> LpBall:
    """The perturbed images of each image."""
    return LpBall(torch.from_numpy(images), settings.eps, settings.norm, (0.0, 1.0) if settings.clip else None)


def _outputs(network: Network, images: np.ndarray) -> np.ndarray:
    """Outputs (count, outputs), by the original runtime where there is one."""
    if network.original is not None:
        return network.original(images).reshape(len(images), -1)
    with torch.no_grad():
        return network(torch.from_numpy(images).to(network.dtype)).flatten(1).cpu().numpy()


def _wins(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the label's output is strictly the largest; never where an output is NaN."""
    own = np.take_along_axis(outputs, labels[:, None].astype(np.int64), axis=1)
    return (own > outputs).sum(axis=1) == outputs.shape[1] - 1


def _attack(network: Network, region: LpBall, labels: np.ndarray, settings: Settings, limits: Limits) -> np.ndarray:
    """Which images the attack breaks; every hit lies in the region and was run on the original model."""
    device = place(limits.device)
    sides = (0.0, 1.0) if settings.clip else None
    moved = LpBall(region.center.to(device), torch.as_tensor(region.eps).to(device), region.p, sides)
    goal = class_margins(torch.from_numpy(labels.astype(np.int64)).to(device), network.outputs)
    search = Pgd(settings.steps, settings.restarts, seed=settings.seed)
    return search(network, moved, goal, accept=partial(_breaks, network, region, labels), deadline=limits.deadline).found.cpu().numpy()


def _breaks(network: Network, region: LpBall, labels: np.ndarray, index: int, point: Tensor) -> bool:
    """Whether a point of region `index` is certainly inside it and not classified as its label; NaN classifies nothing."""
    x = point.detach().cpu()
    if not bool(region.select(slice(index, index + 1)).contains(x[None, None])[0, 0]):
        return False
    y = _outputs(network, x[None].numpy())
    return bool(np.isfinite(y).all()) and not _wins(y, labels[index : index + 1])[0]


def _check(network: Network, images: np.ndarray, labels: np.ndarray) -> None:
    if network.outputs < 2:
        raise SpecError(f"evaluation compares the outputs of a classifier, but the network has {network.outputs}")
    if images.shape[1:] != network.input_shape or len(images) != len(labels):
        raise SpecError(
            f"the network reads inputs of shape {network.input_shape}; got {len(images)} images of shape {images.shape[1:]}"
            f" and {len(labels)} labels"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= network.outputs))
    if len(wrong):
        raise SpecError(f"label {labels[wrong[0]]} of image {wrong[0]} is out of range: the network has {network.outputs} outputs")
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise SpecError("images must have pixels in [0, 1]; scale them first")
