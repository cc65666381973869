"""What `ringfence region` does: the largest certified region around images of a data set, as figures, a file and a picture."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from bounds.crown import Crown, CrownIbp, FastLin
from bounds.engine import DEFAULT_MEMORY_MB, BoundEngine, place
from bounds.errors import DataError, OutputError, SpecError
from bounds.ibp import Ibp
from bounds.network import Network
from bounds.nonuniform import Domain, Goal, Method, NonUniform, Search, largest_region, mean_direction
from verify import exits
from verify.datasets import load_dataset
from verify.document import SCHEMA, to_json
from verify.pictures import BoundingMap, as_picture, check_picture, draw_bounding_map
from verify.progress import progress
from verify.questions import read_images
from verify.spec import class_margins

ENGINES: dict[str, type[Crown | FastLin | CrownIbp | Ibp]] = {"crown": Crown, "fastlin": FastLin, "crown-ibp": CrownIbp, "ibp": Ibp}
"""Engines by name: those with gradients in eps."""
_NORMS = {1.0: "1", 2.0: "2"}


@dataclass(frozen=True)
class Question:
    """Which images of which data set, and what kind of region. free: a .npy file, non-zero for features that may move."""

    dataset: str
    folder: Path
    index: str
    norm: float
    clip: bool = True
    free: Path | None = None
    least: float = 0.0
    most: float | None = None

    @property
    def domain(self) -> Domain | None:
        """Where pixels may go."""
        return (0.0, 1.0) if self.clip else None

    def goal(self) -> Goal:
        """What is maximised.

        Raises:
            DataError: the file of free features cannot be read. SpecError: least above most.
        """
        if self.most is not None and self.least >= self.most:
            raise SpecError(f"the range of eps is reversed: --least {self.least:g} must be below --most {self.most:g}")
        return Goal(None if self.free is None else _read_mask(self.free), least=self.least, most=self.most)


@dataclass(frozen=True)
class Settings:
    """How the search is run. timeout: seconds for each image, then the best so far. learn: start in the mean direction of earlier images."""

    engine: str = "crown"
    method: str = "convex"
    learn: bool = False
    timeout: float | None = None
    device: str = "cpu"
    memory_mb: float = DEFAULT_MEMORY_MB
    threads: int = 1

    def search(self) -> Method:
        """The method.

        Raises:
            SpecError: an unknown one.
        """
        known: tuple[Method, ...] = get_args(Method)
        found = next((method for method in known if method == self.method), None)
        if found is None:
            raise SpecError(f"unknown method {self.method!r}; use one of {', '.join(known)}")
        return found

    def build(self) -> BoundEngine:
        """The engine.

        Raises:
            SpecError: an unknown engine. DeviceError: a device that is not there.
        """
        if self.engine not in ENGINES:
            raise SpecError(f"unknown engine {self.engine!r}; use one of {', '.join(ENGINES)}")
        self.search()
        place(self.device)
        return ENGINES[self.engine](device=self.device, memory_mb=self.memory_mb)


@dataclass(frozen=True, eq=False)
class Found:
    """The region of one image, and the class that the network gives it."""

    index: int
    label: int
    predicted: int
    region: NonUniform
    seconds: float

    @property
    def verified(self) -> bool:
        """Whether a region was certified."""
        return bool(self.region.verified[0])

    @property
    def reason(self) -> str | None:
        """Why there is no region, or why it may not be the largest."""
        if self.predicted != self.label:
            return f"misclassified as {self.predicted}: no region around it keeps the label"
        if not bool(self.region.finished[0]):
            return "the time limit was reached"
        return None if self.verified else "not even the smallest ball that was tried is certified"

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        region = self.region
        figures = {"eps_uniform": region.uniform, "eps_geometric_mean": region.geometric_mean, "ratio": region.ratio}
        return (
            {"index": self.index, "label": self.label}
            | {name: float(value[0]) for name, value in figures.items()}
            | {"verified": self.verified, "finished": bool(region.finished[0]), "reason": self.reason}
            | {"bound_calls": int(region.calls[0]), "seconds": self.seconds}
        )

    def say(self) -> str:
        """As a line of text."""
        name, reason = f"image {self.index} (label {self.label}): ", "" if self.reason is None else f"; {self.reason}"
        if not self.verified:
            return f"{name}no region  {self.reason}  [{self.seconds:.2f} s]"
        figures = self.describe()
        mean, ratio, uniform = (figures[key] for key in ("eps_geometric_mean", "ratio", "eps_uniform"))
        text = f"verified   eps {mean:.6g} in the geometric mean, {ratio:.3f} times the best uniform {uniform:.6g}"
        return f"{name}{text}; {figures['bound_calls']} bound calls{reason}  [{self.seconds:.2f} s]"


@dataclass(frozen=True)
class Command:
    """A run of `ringfence region`. out: a .npz file for the regions; plot: a picture, NAME-INDEX.EXT for several images."""

    model: Path
    question: Question
    settings: Settings
    tell: Callable[[str], None]
    as_json: bool = False
    out: Path | None = None
    plot: Path | None = None

    def run(self) -> int:
        """Search, write and report; returns the exit code: 0 where every image got a region, else 3, or 130 on an interrupt."""
        torch.set_num_threads(self.settings.threads)
        self._check()
        found: list[Found] = []
        interrupted = False
        begin = time.monotonic()
        try:
            for one in self._search():
                found.append(one)
                if not self.as_json:
                    self.tell(one.say())
        except KeyboardInterrupt:
            interrupted = True
        self._write(found)
        if self.as_json:
            self.tell(to_json(self._document(found, time.monotonic() - begin, interrupted)))
        if interrupted:
            sys.stderr.write("ringfence: interrupted; the regions so far are told\n")
            return exits.INTERRUPTED
        return exits.VERIFIED if all(one.verified for one in found) else exits.UNKNOWN

    def _check(self) -> None:
        """Whether results can be written, before the work begins."""
        if self.out is not None and self.out.suffix != ".npz":
            raise OutputError(f"{self.out}: regions are written as .npz files; name one such as region.npz")
        if self.out is not None and not self.out.parent.is_dir():
            raise OutputError(f"{self.out}: no such folder {self.out.parent}; create it first")
        if self.plot is not None:
            check_picture(self.plot)

    def _search(self) -> Iterator[Found]:
        """One image after the other."""
        question, settings = self.question, self.settings
        data = load_dataset(question.dataset, question.folder)
        engine, goal = settings.build(), question.goal()
        network = Network.from_onnx(self.model)
        images = read_images(data, question.index, network)
        if self.plot is not None and as_picture(images.pixels[0].numpy()) is None:
            raise OutputError(f"inputs of shape {network.input_shape} are no picture; leave --plot out")
        met: list[Tensor] = []
        for index, x, label in zip(images.index, images.pixels, images.labels, strict=True):
            begin = time.monotonic()
            C, x = class_margins(label.reshape(1), network.outputs).C, x.unsqueeze(0)
            limit = None if settings.timeout is None else begin + settings.timeout
            direction = mean_direction(torch.stack(met)) if settings.learn and met else None
            shaped = None if direction is None else direction.reshape(network.input_shape)
            search = Search(settings.search(), direction=shaped, deadline=limit)
            with progress(f"image {index}: ") as observe:
                if observe is not None:
                    observe("looking for the largest region")
                region = largest_region(network, x, C, (question.norm, question.domain), engine, goal, search)
            met.append(region.eps[0])
            predicted = int(network.to(torch.float64)(x).flatten(1).argmax(1))
            yield Found(index, int(label), predicted, region, time.monotonic() - begin)

    def _write(self, found: list[Found]) -> None:
        if self.out is not None and found:
            columns: dict[str, list[Any]] = {"index": [one.index for one in found], "label": [one.label for one in found]}
            for name in ("eps", "geometric_mean", "uniform", "verified"):
                columns[name] = [getattr(one.region, name)[0].numpy() for one in found]
            columns["center"] = [one.region.regions.center[0].numpy() for one in found]
            extra = {"norm": np.array(self.question.norm), "clip": np.array(self.question.clip)}
            try:
                np.savez_compressed(self.out, **{name: np.stack(column) for name, column in columns.items()}, **extra)  # type: ignore[arg-type]
            except OSError as error:
                raise OutputError(f"{self.out}: cannot be written ({error.strerror}); choose another place with --out") from error
        for one in found if self.plot is not None else ():
            if one.verified:
                self._draw(one, len(found) > 1)

    def _draw(self, one: Found, several: bool) -> None:
        if self.plot is None:
            return
        path = self.plot.with_name(f"{self.plot.stem}-{one.index}{self.plot.suffix}") if several else self.plot
        eps = as_picture(one.region.eps[0].numpy())
        image = as_picture(one.region.regions.center[0].numpy())
        if eps is None or image is None:
            return
        if eps.ndim == 3:  # the geometric mean of a pixel's channels
            eps = np.exp(np.log(np.maximum(eps, 1e-12)).mean(-1))
        mean, uniform = float(one.region.geometric_mean[0]), float(one.region.uniform[0])
        title = (
            f"{self.model.name}, image {one.index} (label {one.label}): geometric mean {mean:.3g}, {mean / uniform:.2f} times the uniform"
        )
        draw_bounding_map(BoundingMap(image, eps, title, uniform), path)

    def _document(self, found: list[Found], seconds: float, interrupted: bool) -> dict[str, Any]:
        """One image: its figures; several, or an interrupt: a list of results."""
        question, settings = self.question, self.settings
        head: dict[str, Any] = {
            "schema": SCHEMA,
            "network": str(self.model),
            "dataset": question.dataset,
            "norm": _NORMS.get(question.norm, "inf"),
        }
        head |= {"clip": question.clip, "engine": settings.engine, "method": settings.method}
        if len(found) == 1 and not interrupted:
            return head | found[0].describe()
        body: dict[str, Any] = {"results": [one.describe() for one in found], "seconds": seconds}
        return head | body | ({"interrupted": True} if interrupted else {})


def _read_mask(path: Path) -> Tensor:
    """The array of a .npy file."""
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False) != 0)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as a .npy array of the input's shape ({error}); write one with numpy.save") from error
