"""What `ringfence radius` does: certified radii of a data set's images between two ends, as text, JSON and pictures."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from bounds.engine import place
from bounds.errors import RegionError, SpecError, TimeLimitError
from bounds.network import Network
from verify import exits
from verify.datasets import load_dataset
from verify.document import SCHEMA, to_json
from verify.pictures import check_picture
from verify.progress import progress
from verify.questions import Images, read_images
from verify.radius import INTERRUPTED, MISCLASSIFIED, Curve, Limits, Radius, RadiusMethod, certified_radius, radius_curve
from verify.radius_pictures import CurvePicture, HistogramPicture, draw_curve, draw_histogram
from verify.spec import Domain

_NORMS = {1.0: "1", 2.0: "2"}
_VERDICTS = {"fastlin": "Fast-Lin", "pec": "Fast-Lin", "crown": "CROWN", "alpha": "alpha-CROWN", "exact": "CROWN"}
"""What the planes of a curve are called."""
_CURVE_POINTS = 160
_CURVE_REACH = 2.5
"""How far a curve goes, in radii, where no largest eps is given."""
_CURVE_MOST = 0.4
"""The same where there is no radius."""


@dataclass(frozen=True)
class Question:
    """Which images of which data set, which radius. tol: how exactly, in units of the input; most: the largest radius of interest."""

    dataset: str
    folder: Path
    index: str
    norm: float
    method: str = "crown"
    tol: float = 1e-4
    most: float | None = None
    clip: bool = True

    @property
    def domain(self) -> Domain | None:
        """Where pixels may go."""
        return (0.0, 1.0) if self.clip else None

    @property
    def norm_name(self) -> str:
        """The norm as it is typed."""
        return _NORMS.get(self.norm, "inf")

    def how(self) -> RadiusMethod:
        """The method.

        Raises:
            SpecError: an unknown one, or a tolerance that is not positive and below the largest radius.
        """
        known: tuple[RadiusMethod, ...] = get_args(RadiusMethod)
        found = next((method for method in known if method == self.method), None)
        if found is None:
            raise SpecError(f"unknown method {self.method!r}; use one of {', '.join(known)}")
        if self.most is not None and not self.tol < self.most:
            raise SpecError(f"the tolerance {self.tol:g} must be below the largest radius {self.most:g}; lower --tol or raise --eps-max")
        return found


@dataclass(frozen=True)
class Picture:
    """A picture of the run. curve: of the one image against eps, from `least` on; else the histogram. target: a radius marked in it."""

    path: Path | None = None
    curve: bool = False
    histogram: bool = False
    least: float = 0.0
    target: float | None = None

    def check(self, most: float | None) -> None:
        """Whether it can be drawn, before the work begins.

        Raises:
            SpecError: options that do not go together. RegionError: an empty range of eps. OutputError: it cannot be written.
        """
        if self.curve and self.histogram:
            raise SpecError("--curve and --histogram are two pictures; ask for one of them at a time")
        if self.path is not None and not (self.curve or self.histogram):
            raise SpecError("--plot needs to know what to draw; add --curve INDEX or --histogram")
        if self.histogram and self.path is None:
            raise SpecError("--histogram needs a file to draw to; add --plot hist.png")
        if not self.curve and self.least != 0:
            raise SpecError("--eps-min is where the curve starts; add --curve INDEX")
        if self.target is not None and not (self.histogram and 0 < self.target < math.inf):
            raise SpecError(f"--target marks a positive, finite radius in the histogram, got {self.target:g}; add --histogram")
        if most is not None and self.least >= most:
            raise RegionError(f"the range of eps is reversed: --eps-min {self.least:g} must be below --eps-max {most:g}")
        if self.path is not None:
            check_picture(self.path)


@dataclass(frozen=True)
class Found:
    """One image's radius."""

    index: int
    radius: Radius

    def describe(self) -> dict[str, Any]:
        """As JSON; adversaries further away than anything, and radii without limit, become null."""
        radius = self.radius
        proof = radius.certificate
        certificate = None if proof is None else {"engine": proof.engine, "eps": proof.eps, "proof": proof.proof}
        return {
            "index": self.index,
            "label": radius.label,
            "lower": radius.lower,
            "upper": radius.upper,
            "exact": radius.exact,
            "method": radius.method,
            "finished": radius.finished,
            "reason": radius.note or None,
            "certificate": certificate,
            "bound_calls": radius.bound_calls,
            "seconds": radius.seconds,
        }

    def say(self) -> str:
        """As a line of text."""
        radius, name = self.radius, f"image {self.index} (label {self.radius.label}): "
        if radius.note == MISCLASSIFIED:
            return f"{name}radius 0, misclassified"
        proof = radius.certificate
        by = "" if proof is None else f" by {proof.engine}, {proof.proof} proof"
        exact = "" if radius.exact is None or math.isinf(radius.exact) else f"exactly {radius.exact:.9g}, "
        ends = f"at least {radius.lower:.6g}{by}; " + (
            "no adversary known" if math.isinf(radius.upper) else f"an adversary at {radius.upper:.6g}"
        )
        note = f"; {radius.note}" if radius.note else ""
        return f"{name}radius {exact}{ends}; {radius.bound_calls} bound calls{note}  [{radius.seconds:.2f} s]"


@dataclass(frozen=True)
class Command:
    """A run of `ringfence radius`; `tell` prints the report."""

    model: Path
    question: Question
    limits: Limits
    tell: Callable[[str], None]
    as_json: bool = False
    picture: Picture = field(default_factory=Picture)
    threads: int = 1

    def run(self) -> int:
        """Search, report and draw; returns the exit code: 0 where every search came to its end, 3 where a limit stopped one, 130 on an interrupt.

        Raises:
            RingfenceError: a file, the data set, the device or an option cannot be used; see `bounds.errors`.
        """
        begin = time.monotonic()
        torch.set_num_threads(self.threads)
        method = self.question.how()
        self.picture.check(self.question.most)
        if self.picture.curve and self.picture.path is None and not self.as_json:
            raise SpecError("--curve needs a file to draw to, or --json; add --plot curve.png")
        place(self.limits.device)
        data = load_dataset(self.question.dataset, self.question.folder)
        network = Network.from_onnx(self.model)
        images = read_images(data, self.question.index, network)
        if self.picture.curve and len(images.index) != 1:
            raise SpecError(f"--curve draws one image, {self.question.index!r} names {len(images.index)}")
        found = self._search(network, images, method)
        interrupted = any(one.radius.note == INTERRUPTED for one in found)
        curve: Curve | None = None
        if self.picture.curve and not interrupted:
            try:
                curve = self._curve(network, images, found[0].radius, begin)
            except KeyboardInterrupt:
                interrupted = True
            except TimeLimitError as error:
                sys.stderr.write(f"ringfence: no curve: {error}\n")
        self._tell(found, curve, time.monotonic() - begin, interrupted)
        if interrupted:
            sys.stderr.write("ringfence: interrupted; the best ends so far are told\n")
            return exits.INTERRUPTED
        self._draw(found, curve)
        finished = all(one.radius.finished for one in found) and (curve is not None or not self.picture.curve)
        return exits.VERIFIED if finished else exits.UNKNOWN

    def _search(self, network: Network, images: Images, method: RadiusMethod) -> list[Found]:
        question = self.question
        with progress("") as observe:
            radii = certified_radius(
                network,
                images.pixels,
                images.labels,
                norm=question.norm,
                method=method,
                domain=question.domain,
                tol=question.tol,
                limits=self.limits,
                observe=observe,
            )
        return [Found(index, radius) for index, radius in zip(images.index, radii, strict=True)]

    def _curve(self, network: Network, images: Images, radius: Radius, begin: float) -> Curve:
        """From the smallest to the largest eps asked for, or a little beyond the radius; within the time that is left since `begin`.

        Raises:
            TimeLimitError: there is not enough.
        """
        question, least, seconds = self.question, self.picture.least, self.limits.seconds
        left = None if seconds is None else max(0.0, seconds - (time.monotonic() - begin))
        reach = radius.lower if math.isfinite(radius.lower) else 0.0
        most = question.most or max(_CURVE_REACH * reach or _CURVE_MOST, 2 * least)
        # The peak itself, and the fall just beyond it.
        peak = torch.tensor([reach, reach + question.tol], dtype=torch.float64)
        eps = torch.cat([torch.linspace(least, most, _CURVE_POINTS + 1, dtype=torch.float64), peak[(peak > least) & (peak < most)]])
        with progress("") as observe:
            if observe is not None:
                observe("curve")
            return radius_curve(
                network,
                images.pixels[0],
                radius.label,
                eps[eps > 0].unique(),
                norm=question.norm,
                method=question.how(),
                domain=question.domain,
                limits=replace(self.limits, seconds=left),
            )

    def _tell(self, found: list[Found], curve: Curve | None, seconds: float, interrupted: bool) -> None:
        if self.as_json:
            self.tell(to_json(self._document(found, curve, seconds, interrupted)))
            return
        for one in found:
            self.tell(one.say())
        if len(found) > 1:
            certified = [one.radius.lower for one in found]
            self.tell(f"mean of {len(found)} certified radii {sum(certified) / len(found):.6g}; {seconds:.1f} s in all")

    def _document(self, found: list[Found], curve: Curve | None, seconds: float, interrupted: bool) -> dict[str, Any]:
        """One image: its figures; several, or an interrupt: a list of results."""
        question = self.question
        head: dict[str, Any] = {"schema": SCHEMA, "network": str(self.model), "dataset": question.dataset}
        head |= {"norm": question.norm_name, "clip": question.clip, "tol": question.tol, "eps_max": question.most}
        drawn = {} if curve is None else {"curve": {name: getattr(curve, name).tolist() for name in ("eps", "verdict", "envelope")}}
        if len(found) == 1 and not interrupted:
            return head | found[0].describe() | drawn
        body: dict[str, Any] = {"results": [one.describe() for one in found], "seconds": seconds}
        return head | body | ({"interrupted": True} if interrupted else {})

    def _draw(self, found: list[Found], curve: Curve | None) -> None:
        picture, question = self.picture, self.question
        if picture.path is None or (picture.curve and curve is None):
            return
        if curve is not None:
            title = f"{self.model.name}, image {found[0].index} (label {found[0].radius.label})"
            eps, verdict, envelope = curve.eps.numpy(), curve.verdict.numpy(), curve.envelope.numpy()
            draw_curve(CurvePicture(eps, verdict, envelope, title, _VERDICTS[question.method], question.norm_name), picture.path)
        else:
            radii = np.array([one.radius.lower for one in found])
            title = f"{self.model.name}, {len(found)} images of {question.dataset}: certified radii by {question.method}"
            draw_histogram(HistogramPicture(radii, title, question.norm_name, picture.target), picture.path)
