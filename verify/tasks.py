"""One instance as a worker is told it: which network, which question, under which settings. Nothing heavy is loaded here."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bounds.errors import DataError
from verify.records import Instance, Outcome


@dataclass(frozen=True)
class Normalisation:
    """x -> (x - mean) / std, put in front of a network that was trained on normalised inputs; one number a channel, or one for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ImageQuestion:
    """Whether every image within eps of an image of a test set, pixels kept in [0, 1], gets its label. norm: "inf", "2" or "1".

    eps None asks for the radius within which that is certified.
    """

    dataset: str
    folder: Path
    index: int
    label: int
    norm: str
    eps: float | None

    def digest(self, image: bytes) -> str:
        """The hash of the question; image: the pixels as they are in the data set."""
        return combine(hashlib.sha256(image).hexdigest(), self.label, self.norm, self.eps)

    def describe(self) -> dict[str, object]:
        """What is stored about the question."""
        return {"dataset": self.dataset, "index": self.index, "label": self.label, "norm": self.norm, "eps": self.eps, "clip": True}


@dataclass(frozen=True)
class Settings:
    """What `verify.run.verify` is called with, the time limit apart."""

    memory_mb: float
    device: str = "cpu"
    seed: int = 0
    semantics: str = "real"
    confirm: str | None = None


@dataclass(frozen=True)
class Task:
    """An instance and where its parts are.

    model: the network's file; spec: the question's file or the image; broken: why it cannot be asked, if a part is missing.
    """

    instance: Instance
    model: Path
    spec: Path | ImageQuestion
    normalisation: Normalisation | None = None
    broken: str | None = None


@dataclass(frozen=True)
class Order:
    """A task on its way to a worker; `key` is that of the result."""

    key: str
    task: Task
    settings: Settings

    @property
    def limit_s(self) -> float | None:
        """Seconds allowed for the question."""
        return self.task.instance.limit_s


@dataclass(frozen=True, eq=False)
class Done:
    """An answered order."""

    order: Order
    outcome: Outcome


Answer = Callable[[Order, Callable[[], None]], Outcome]
"""What a worker does with an order. It calls the function it is given once everything is loaded and the time limit begins."""
MakeAnswer = Callable[[], Answer]
"""Called once in every worker; a function at the top level of a module, so that it can be named to another process."""


@dataclass
class Digests:
    """SHA-256 of files, gzipped ones unpacked; every file is read once."""

    known: dict[Path, str] = field(default_factory=dict)

    def __call__(self, path: Path) -> str:
        """64 hexadecimal digits.

        Raises:
            DataError: the file cannot be read or unpacked.
        """
        if path not in self.known:
            self.known[path] = digest(path)
        return self.known[path]


def digest(path: Path) -> str:
    """SHA-256 of a file's content, unpacked if it is gzipped.

    Raises:
        DataError: it cannot be read or unpacked.
    """
    try:
        data = path.read_bytes()
        return hashlib.sha256(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); fetch it again or correct the path"
        ) from error


def combine(*parts: object) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def network_digest(content: str, normalisation: Normalisation | None) -> str:
    """The hash of a network from that of its file: the same unless something is put in front of it."""
    return content if normalisation is None else combine(content, normalisation.mean, normalisation.std)
