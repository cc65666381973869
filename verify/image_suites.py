"""Suites of images: networks x the first N images that the network classifies correctly x radii."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bounds.errors import DataError, SpecError
from bounds.network import Network
from verify.answer import load_network
from verify.datasets import Dataset, load_dataset
from verify.questions import read_norm
from verify.records import Instance
from verify.tasks import ImageQuestion, Normalisation, Task, digest, network_digest
from verify.verdict import original_of

_BATCH = 256


@dataclass(frozen=True)
class ImageSuite:
    """Every model on the first `count` test images that it classifies correctly (all of them if None), each within every eps.

    folder: of the data set's files. norm: "inf", "2" or "1". eps: in units of pixels in [0, 1], which the images stay in; None asks for the
    certified radius.
    timeout: seconds an image.
    """

    dataset: str
    folder: Path
    models: tuple[Path, ...]
    norm: str
    eps: tuple[float | None, ...]
    count: int | None
    timeout: float | None
    normalisation: Normalisation | None = None

    def tasks(self, tell: Callable[[str], None] | None = None) -> list[Task]:
        """The tasks, model by model. tell: told how many images of each model are in the suite.

        Raises:
            DataError, SpecError, ModelError: the data set, a radius, the norm or a model cannot be used.
        """
        norm = {math.inf: "inf"}.get(read_norm(self.norm), f"{read_norm(self.norm):g}")
        for eps in self.eps:
            if eps is not None and not (math.isfinite(eps) and eps >= 0):
                raise SpecError(f"eps must be finite and not negative, got {eps}")
        data = load_dataset(self.dataset, self.folder)
        tasks = []
        for model in self.models:
            content = network_digest(digest(model), self.normalisation)
            chosen, seen = first_correct(load_network(model, self.normalisation), data, self.count)
            if tell is not None:
                tell(f"{model.name}: {len(chosen)} of the first {seen} test images of {self.dataset} are classified correctly")
            tasks += [self._task(model, content, data, index, norm, eps) for eps in self.eps for index in chosen]
        return tasks

    def _task(self, model: Path, content: str, data: Dataset, index: int, norm: str, eps: float | None) -> Task:
        asked = ImageQuestion(self.dataset, self.folder, index, int(data.labels[index]), norm, eps)
        family = f"{model.name.removesuffix('.gz').removesuffix('.onnx')} l{norm} {'radius' if eps is None else f'{eps:g}'}"
        name = f"{self.dataset} image {index}"
        hashed = asked.digest(data.images[index].tobytes())
        described = asked.describe()
        instance = Instance(family, name, str(model), name, content, hashed, "", self.timeout, described)
        return Task(instance, model, asked, self.normalisation)


def first_correct(network: Network, data: Dataset, count: int | None) -> tuple[list[int], int]:
    """The first `count` images that the original model classifies as their label, and how many images were looked at.

    The network itself finds likely ones quickly, in batches; the original has the last word.

    Raises:
        DataError: fewer than `count` images are classified correctly.
    """
    original, chosen, seen = original_of(network), list[int](), 0
    for index, right in _likely(network, data):
        if count is not None and len(chosen) == count:
            break
        seen = index + 1
        if not right:
            continue
        output = original(data.pixels([index], network.input_shape))[0].reshape(-1)
        if int(np.argmax(output)) == int(data.labels[index]):
            chosen.append(index)
    if count is not None and len(chosen) < count:
        raise DataError(
            f"{count} images were asked for; only {len(chosen)} of the {len(data)} of {data.name} here are classified correctly"
        )
    return chosen, seen


def _likely(network: Network, data: Dataset) -> Iterator[tuple[int, bool]]:
    for start in range(0, len(data), _BATCH):
        stop = min(start + _BATCH, len(data))
        pixels = torch.from_numpy(data.pixels(slice(start, stop), network.input_shape))
        with torch.no_grad():
            outputs = network(pixels.to(network.dtype)).reshape(stop - start, -1)
        labels = torch.from_numpy(data.labels[start:stop].astype(np.int64))
        if int(labels.max()) >= outputs.shape[1]:
            raise DataError(
                f"the network has {outputs.shape[1]} outputs, {data.name} has the label {int(labels.max())}; use its own data set"
            )
        best = outputs.max(1).values
        # A near tie may be decided the other way by the original.
        close = outputs.gather(1, labels[:, None])[:, 0] >= best - 1e-3 * (1 + best.abs())
        yield from zip(range(start, stop), close.tolist(), strict=True)


def models_of(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The models named, or the .onnx files of the folders named.

    Raises:
        DataError: a path is neither.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted([*path.glob("*.onnx"), *path.glob("*.onnx.gz")]) if path.is_dir() else [path]
        if not inside or not all(one.is_file() for one in inside):
            raise DataError(f"{path}: no such ONNX file, nor a folder of them")
        found += inside
    return tuple(dict.fromkeys(found))
