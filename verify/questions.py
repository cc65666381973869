"""From what was typed at the command line to questions about a network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bounds.engine import DEFAULT_MEMORY_MB
from bounds.errors import DataError, SpecError
from bounds.network import Network
from verify.datasets import Dataset, load_dataset, parse_index
from verify.spec import Property, robustness
from verify.vnnlib import load_property

_NORMS = {"inf": math.inf, "linf": math.inf, "1": 1.0, "l1": 1.0, "2": 2.0, "l2": 2.0}
_UNITS = {"": 1.0, "k": 2.0**-10, "m": 1.0, "g": 2.0**10, "t": 2.0**20}


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked, and which image of a data set it is about, if any."""

    property: Property
    index: int | None = None
    label: int | None = None


def from_file(path: Path, network: Network) -> Question:
    """The question of a VNNLIB file.

    Raises:
        SpecError: the file cannot be read or does not fit the network.
    """
    return Question(load_property(path, network))


@dataclass(frozen=True)
class Robustness:
    """Robustness of a data set's images: `index` as typed ("7" or "0:10"), eps in units of pixels in [0, 1]."""

    dataset: str
    folder: Path
    index: str
    norm: str
    eps: float

    def questions(self, network: Network) -> Iterator[Question]:
        """One question an image: every image within eps keeps the label, pixels stay in [0, 1].

        Raises:
            DataError, SpecError: the data set, an index, the norm, eps, or a label does not fit.
        """
        norm = read_norm(self.norm)
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise SpecError(f"eps must be finite and not negative, got {self.eps}")
        data = load_dataset(self.dataset, self.folder)
        chosen = read_index(self.index, len(data))
        pixels = data.pixels(chosen, network.input_shape)
        for index, x in zip(chosen, pixels, strict=True):
            label = int(data.labels[index])
            yield Question((robustness(x, label, self.eps, norm=norm, outputs=network.outputs),), index, label)


@dataclass(frozen=True, eq=False)
class Images:
    """Images of a data set as a network reads them. index: their numbers in the test set; pixels: (N, *input_shape) float64 in [0, 1]; labels:
    (N,) int64."""

    index: list[int]
    pixels: Tensor
    labels: Tensor


def read_images(data: Dataset, index: str, network: Network) -> Images:
    """The images that `index` names, as typed: "7", "0:10", "3,7,9".

    Raises:
        DataError: the index is not of that form or out of range. SpecError: the images or a label do not fit the network.
    """
    chosen = parse_index(index, len(data))
    pixels = torch.from_numpy(data.pixels(chosen, network.input_shape)).to(torch.float64)
    labels = torch.as_tensor([int(data.labels[number]) for number in chosen])
    if int(labels.max()) >= network.outputs:
        raise SpecError(f"label {int(labels.max())} is out of range: the network has {network.outputs} outputs")
    return Images(chosen, pixels, labels)


def read_norm(text: str) -> float:
    """1, 2 or inf, with or without a leading l.

    Raises:
        SpecError: anything else.
    """
    if text.lower() not in _NORMS:
        raise SpecError(f"unknown norm {text!r}; use inf, 2 or 1")
    return _NORMS[text.lower()]


def read_index(text: str, count: int) -> list[int]:
    """The images that "7", "0:10", "5:" or ":5" names among `count`.

    Raises:
        DataError: not of that form, or out of range.
    """
    match = re.fullmatch(r"(\d+)|(\d*):(\d*)", text.strip())
    if match is None:
        raise DataError(f"cannot read the index {text!r}; give one image such as 7, or a range such as 0:10")
    single, start, stop = match.groups()
    first = int(single if single is not None else start or 0)
    last = first + 1 if single is not None else int(stop or count)
    if not 0 <= first < last:
        raise DataError(f"the index {text!r} names no image; a range ends after it starts")
    if last > count:
        raise DataError(f"the index {text!r} is out of range: there are images 0 to {count - 1}")
    return list(range(first, last))


def choose_index(index: str | None, curve: int | None) -> str:
    """The images that --index names, or the one of --curve; the first one without either.

    Raises:
        SpecError: both.
    """
    if curve is not None and index is not None:
        raise SpecError(f"--curve {curve} names its image itself; leave --index {index} out")
    return index or "0" if curve is None else str(curve)


def read_memory(text: str | None) -> float:
    """Megabytes (2^20 bytes) that "4GB", "500MB" or "500" names; the default limit for None.

    Raises:
        SpecError: not of that form, or not positive.
    """
    if text is None:
        return DEFAULT_MEMORY_MB
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?b)?", text.strip().lower())
    if match is None or float(match.group(1)) <= 0:
        raise SpecError(f"cannot read the memory limit {text!r}; give a size such as 4GB or 500MB")
    return float(match.group(1)) * _UNITS[match.group(2)]
