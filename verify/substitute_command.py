"""What `ringfence substitute` does: distances of images estimated on local substitutes, with ends that are certified, as text, JSON and files."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bounds.engine import DEFAULT_MEMORY_MB, place
from bounds.errors import OutputError, RingfenceError, SpecError, TimeLimitError
from bounds.network import Network
from verify import exits
from verify.datasets import load_dataset
from verify.document import SCHEMA, to_json
from verify.minimal import MinimalNorm
from verify.pictures import check_picture
from verify.progress import progress
from verify.pruning import Limits, Pruning
from verify.questions import Images, read_images
from verify.spec import Domain
from verify.substitute import NO_ADVERSARY, Estimate, Estimator
from verify.substitute_pictures import BoundaryPicture, check_inputs, draw_boundaries

_NORMS = {1.0: "1", 2.0: "2"}
_FEW_INPUTS, _RESTARTS = 16, 3
"""Boundaries of few inputs bend often: attacks from the anchor alone miss the nearest part. There they cost little."""


@dataclass(frozen=True)
class Question:
    """Images of a data set, or one point as typed ("0.3,0.7"), whose label is then what the network says."""

    dataset: str | None
    folder: Path | None
    index: str
    point: str | None
    norm: float
    clip: bool = True

    @property
    def domain(self) -> Domain | None:
        """Where inputs may go."""
        return (0.0, 1.0) if self.clip else None

    def images(self, network: Network) -> Images:
        """What is asked about.

        Raises:
            SpecError: neither a data set nor a point, or both; a point that does not fit. DataError: the data set.
        """
        if (self.point is None) == (self.dataset is None or self.folder is None):
            raise SpecError("give images with --dataset and --data-dir, or one point with --at, and not both")
        if self.point is None:
            return read_images(load_dataset(str(self.dataset), Path(str(self.folder))), self.index, network)
        x = _read_point(self.point, network)
        with torch.no_grad():
            label = network.to(torch.float64)(x[None]).flatten(1).argmax(1)
        return Images([0], x[None], label)


@dataclass(frozen=True)
class Settings:
    """certify: seconds for each image's certified end beyond what bounds prove. timeout: seconds for each image, for everything. save, plot:
    files; NAME-INDEX.EXT for several images."""

    pruning: Pruning
    exact: bool = False
    certify: float = 5.0
    timeout: float | None = 60.0
    save: Path | None = None
    plot: Path | None = None
    device: str = "cpu"
    memory_mb: float = DEFAULT_MEMORY_MB
    seed: int = 0
    threads: int = 1

    def check(self) -> None:
        """Whether the work can be done and its results written.

        Raises:
            OutputError, DeviceError: it cannot.
        """
        place(self.device)
        if self.save is not None and self.save.suffix != ".onnx":
            raise OutputError(f"{self.save}: substitutes are written as .onnx files; name one such as substitute.onnx")
        if self.save is not None and not self.save.parent.is_dir():
            raise OutputError(f"{self.save}: no such folder {self.save.parent}; create it first")
        if self.plot is not None:
            check_picture(self.plot)


@dataclass(frozen=True, eq=False)
class Found:
    """One image: its estimate, or why there is none."""

    index: int
    label: int
    estimate: Estimate | None
    reason: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the estimate, and the exact distance where it was asked for, were found."""
        return self.estimate is not None and self.reason in (None, NO_ADVERSARY)

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        head: dict[str, Any] = {"index": self.index, "label": self.label}
        one = self.estimate
        if one is None:
            names = ("d_adv", "upper", "estimate", "certified_lower", "exact", "relative_difference")
            return head | dict.fromkeys(names) | {"reason": self.reason}
        sizes = {"relus": (one.before.activations, one.after.activations), "parameters": (one.before.parameters, one.after.parameters)}
        return (
            head
            | {"d_adv": one.d_adv, "upper": one.upper, "estimate": one.estimate, "estimate_range": list(one.estimate_range)}
            | {"estimate_clamped": one.clamped}
            | {"certified_lower": one.certified_lower, "certified_proof": one.proof, "delta": one.delta}
            | {"exact": one.exact, "relative_difference": one.relative_difference}
            | {f"{name}_{when}": value for name, pair in sizes.items() for when, value in zip(("before", "after"), pair, strict=True)}
            | {"binaries_before": one.binaries[1], "binaries_after": one.binaries[0], "seconds": one.seconds, "reason": self.reason}
        )

    def say(self) -> str:
        """As a line of text."""
        name, one = f"image {self.index} (label {self.label}): ", self.estimate
        if one is None:
            return f"{name}{self.reason}"
        if one.estimate is None:
            low, high = one.estimate_range
            told = f"estimate between {low:.6g} and {high:.6g}"
        else:
            told = "estimate: no adversary in the domain" if math.isinf(one.estimate) else f"estimate {one.estimate:.6g}"
            told += "" if one.clamped == one.estimate else f", {one.clamped:.6g} between the ends"
        difference = "" if one.relative_difference is None else f" (off by {100 * one.relative_difference:.2f} %)"
        exact = "" if one.exact is None else f"exactly {one.exact:.6g}, "
        spent = sum(one.seconds[part] for part in ("attack", "pruning", "milp", "certificate", "exact"))
        ends = f"certified at least {one.certified_lower:.6g}, an adversary at {one.upper:.6g}"
        sizes = f"ReLUs {one.before.activations} -> {one.after.activations}, parameters {one.before.parameters} -> {one.after.parameters}, "
        sizes += "binaries " + ("" if one.binaries[1] is None else f"{one.binaries[1]} -> ") + str(one.binaries[0])
        reason = "" if self.reason in (None, NO_ADVERSARY) else f"; {self.reason}"
        return f"{name}{told}{difference}; {exact}{ends}; {sizes}{reason}  [{spent:.2f} s]"


@dataclass(frozen=True)
class Command:
    """A run of `ringfence substitute`; `tell` prints the report."""

    model: Path
    question: Question
    settings: Settings
    tell: Callable[[str], None]
    as_json: bool = False

    def run(self) -> int:
        """Estimate, write and report; returns the exit code: 0 where everything asked for was found, else 3, or 130 on an interrupt.

        Raises:
            RingfenceError: a file, the data set, an option or the only image cannot be used; see `bounds.errors`.
        """
        torch.set_num_threads(self.settings.threads)
        self.settings.check()
        network = Network.from_onnx(self.model)
        images = self.question.images(network)
        if self.settings.plot is not None:
            check_inputs(network)
        found: list[Found] = []
        interrupted, begin = False, time.monotonic()
        try:
            for number in range(len(images.index)):
                found.append(self._one(network, images, number))
                if not self.as_json:
                    self.tell(found[-1].say())
        except KeyboardInterrupt:
            interrupted = True
        if self.as_json:
            self.tell(to_json(self._document(found, len(images.index), time.monotonic() - begin, interrupted)))
        elif found:
            self.tell("An estimate is the exact distance on a smaller network: a good guess, and no certificate.")
        if interrupted:
            sys.stderr.write("ringfence: interrupted; the images so far are told\n")
            return exits.INTERRUPTED
        return exits.VERIFIED if all(one.finished for one in found) else exits.UNKNOWN

    def _one(self, network: Network, images: Images, number: int) -> Found:
        """One image; of several, one that cannot be used is told and passed over."""
        index, label, settings = images.index[number], int(images.labels[number]), self.settings
        limits = Limits(None, device=settings.device, memory_mb=settings.memory_mb, seed=settings.seed)
        restarts = _RESTARTS if math.prod(network.input_shape) <= _FEW_INPUTS else 1
        attack = MinimalNorm(restarts=restarts, seed=settings.seed, device=settings.device)
        question = self.question
        estimator = Estimator(network, settings.pruning, question.norm, question.domain, limits, settings.exact, settings.certify, attack)
        image, deadline = images.pixels[number], None if settings.timeout is None else time.monotonic() + settings.timeout
        try:
            with progress(f"image {index}: ") as observe:
                estimator = replace(estimator, observe=observe)
                (estimate,) = estimator(image[None], images.labels[number : number + 1], deadline)
        except TimeLimitError:
            return Found(index, label, None, "time limit")
        except SpecError as error:
            if len(images.index) == 1:
                raise
            return Found(index, label, None, _without_number(error))
        several = len(images.index) > 1
        self._save(estimate, index, several)
        self._draw(network, estimate, image, index, several)
        return Found(index, label, estimate, estimate.note or None)

    def _save(self, estimate: Estimate, index: int, several: bool) -> None:
        path, made = self.settings.save, estimate.substitute
        if path is None or made is None:
            return
        from bounds.onnx_export import export_onnx

        place = path.with_name(f"{path.stem}-{index}{path.suffix}") if several else path
        try:
            place.write_bytes(export_onnx(made.small))
        except OSError as error:
            raise OutputError(f"{place}: cannot be written ({error.strerror}); choose another place with --save") from error

    def _draw(self, network: Network, estimate: Estimate, image: Tensor, index: int, several: bool) -> None:
        path, made = self.settings.plot, estimate.substitute
        if path is None or made is None:
            return
        place = path.with_name(f"{path.stem}-{index}{path.suffix}") if several else path
        anchor, reach = image.flatten().numpy(), 4 * estimate.d_adv
        window = (0.0, 1.0) if self.question.clip else (float(anchor.min()) - reach, float(anchor.max()) + reach)
        points = (estimate.adversary, estimate.substitute_adversary)
        nearest = tuple(None if point is None else np.asarray(point, dtype=np.float64).reshape(2) for point in points)
        told = "none in the domain" if estimate.estimate is None or math.isinf(estimate.estimate) else f"{estimate.estimate:.4g}"
        title = f"{self.model.name}: {estimate.before.activations} -> {estimate.after.activations} activations, "
        title += f"distance {estimate.upper:.4g} and {told}"
        draw_boundaries(
            BoundaryPicture(network, made.network, anchor, estimate.d_adv, (nearest[0], nearest[1]), self.question.norm, window, title),
            place,
        )

    def _document(self, found: list[Found], wanted: int, seconds: float, interrupted: bool) -> dict[str, Any]:
        """One image: its figures; several, or an interrupt: a list of results."""
        question, pruning = self.question, self.settings.pruning
        head: dict[str, Any] = {"schema": SCHEMA, "network": str(self.model), "dataset": question.dataset}
        head |= {"norm": _NORMS.get(question.norm, "inf"), "clip": question.clip, "type": pruning.kind, "ratio": pruning.ratio}
        head |= {"step": pruning.step, "first_layer": pruning.first_layer, "stable_first": pruning.stable_first}
        head |= {"order": pruning.order, "bounds": pruning.engine}
        if wanted == 1 and not interrupted:
            return head | found[0].describe()
        body: dict[str, Any] = {"results": [one.describe() for one in found], "seconds": seconds}
        return head | body | ({"interrupted": True} if interrupted else {})


def _without_number(error: RingfenceError) -> str:
    """The reason alone: in a list of several images, each line names its own."""
    return str(error).replace(" image 0 of the batch", " it").replace("image 0 of the batch is ", "")


def _read_point(text: str, network: Network) -> Tensor:
    """Numbers separated by commas as one input.

    Raises:
        SpecError: not numbers, or not as many as the network reads.
    """
    try:
        values = torch.tensor([float(part) for part in text.split(",")], dtype=torch.float64)
    except ValueError as error:
        raise SpecError(f"cannot read the point {text!r}; give numbers separated by commas, such as 0.3,0.7") from error
    if values.numel() != math.prod(network.input_shape) or not bool(torch.isfinite(values).all()):
        raise SpecError(f"--at gives {values.numel()} numbers, the network reads {math.prod(network.input_shape)} finite ones")
    return values.reshape(network.input_shape)
