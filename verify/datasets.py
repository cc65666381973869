"""MNIST and CIFAR-10 from a local folder of the official files, plain or gzipped."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bounds.errors import DataError

_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_CIFAR_RECORD = 1 + 3 * 32 * 32
_MNIST_FOLDERS = ("mnist", "MNIST", "MNIST/raw")
_CIFAR_FOLDERS = ("cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin")
_INDEX = re.compile(r"(\d+)|(\d*):(\d*)(?::(\d+))?")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (count, channels, height, width) and labels (count,), both uint8, in the official order."""

    name: str
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, indices: Sequence[int] | slice, input_shape: Sequence[int]) -> np.ndarray:
        """The chosen images in [0, 1] as float32 (byte / 255, rounded to nearest), arranged for a network: (count, *input_shape).

        A network that reads (height, width, channels) gets that order; any other shape of the same size gets channels first.

        Raises:
            DataError: an index is out of range, or the network's input has another number of values.
        """
        if not isinstance(indices, slice):
            for index in indices:
                if not 0 <= index < len(self):
                    raise DataError(f"image {index} is out of range: {self.name} has images 0 to {len(self) - 1} here")
        images = self.images[indices if isinstance(indices, slice) else list(indices)]
        _, channels, height, width = images.shape
        shape = tuple(input_shape)
        if int(np.prod(shape)) != channels * height * width:
            raise DataError(
                f"the network reads inputs of shape {shape}, {self.name} images have shape {(channels, height, width)}; use the data set it was trained on"
            )
        if shape == (height, width, channels):
            images = images.transpose(0, 2, 3, 1)
        return images.reshape(-1, *shape).astype(np.float32) / np.float32(255)


def load_dataset(name: str, folder: str | Path, split: str = "test") -> Dataset:
    """The images of a data set. `name`: mnist or cifar10; `split`: test or train.

    `folder` holds the official files, plain or gzipped, itself or in a folder named after the data set. CIFAR-10 may be cut short: what is
    there is read, in the official order.

    Raises:
        DataError: an unknown name or split, a missing or malformed file.
    """
    readers = {"mnist": _read_mnist, "cifar10": _read_cifar10}
    if name not in readers:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(readers)}")
    if split not in ("test", "train"):
        raise DataError(f"unknown split {split!r}; use test or train")
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the {name} files")
    return readers[name](folder, split)


def parse_index(text: str, count: int) -> list[int]:
    """The images that a text such as "7", "0:10" (10 not included), "5:", ":5", "0:100:10" or "3,7,9" names among `count`, in its order.

    Raises:
        DataError: anything else, an empty range, an index out of range.
    """
    chosen: list[int] = []
    for part in text.split(","):
        match = _INDEX.fullmatch(part.strip())
        if match is None:
            raise DataError(
                f"cannot read the index {part.strip()!r}; give an image such as 7, a range such as 0:10, or a list such as 3,7,9"
            )
        single, start, stop, step = match.groups()
        first = int(single or start or 0)
        last = first + 1 if single else int(stop or count)
        numbers = range(first, last, max(1, int(step or 1)))
        if not numbers or (step and int(step) == 0):
            raise DataError(f"the index {part.strip()!r} names no image; a range ends after it starts and its step is at least 1")
        if numbers[-1] >= count or (stop and last > count):
            raise DataError(f"the index {part.strip()!r} is out of range: there are images 0 to {count - 1}")
        chosen.extend(numbers)
    return chosen


def _read_mnist(folder: Path, split: str) -> Dataset:
    prefix = "t10k" if split == "test" else "train"
    images = _read_idx(_find(folder, (f"{prefix}-images-idx3-ubyte*", f"{prefix}-images.idx3-ubyte*"), _MNIST_FOLDERS)[0], _IDX_IMAGES)
    labels = _read_idx(_find(folder, (f"{prefix}-labels-idx1-ubyte*", f"{prefix}-labels.idx1-ubyte*"), _MNIST_FOLDERS)[0], _IDX_LABELS)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} images but {len(labels)} labels; fetch the files again")
    return Dataset("mnist", images[:, None], labels)


def _read_cifar10(folder: Path, split: str) -> Dataset:
    if split == "test":
        paths = _find(folder, ("test_batch.bin", "test_batch.bin.gz", "test_batch*.bin", "test_batch*.bin.gz"), _CIFAR_FOLDERS)[:1]
    else:
        paths = _find(folder, ("data_batch_[1-5].bin", "data_batch_[1-5].bin.gz"), _CIFAR_FOLDERS)
    records = []
    for path in paths:
        data = _read(path)
        if not data or len(data) % _CIFAR_RECORD:
            raise DataError(f"{path}: {len(data)} bytes are no whole number of {_CIFAR_RECORD}-byte records; fetch the file again")
        records.append(np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_RECORD))
        if int(records[-1][:, 0].max()) > 9:
            raise DataError(f"{path}: a label is above 9, so this is not the CIFAR-10 binary format; fetch the file again")
    joined = np.concatenate(records)
    return Dataset("cifar10", joined[:, 1:].reshape(-1, 3, 32, 32), joined[:, 0])


def _find(folder: Path, patterns: Sequence[str], inside: Sequence[str]) -> list[Path]:
    """The files that match the first pattern to match any, in `folder` or else in one of its folders `inside`."""
    for place in (folder, *(folder / name for name in inside)):
        for pattern in patterns:
            found = sorted(path for path in place.glob(pattern) if path.is_file())
            if found:
                return found
    raise DataError(f"{folder}: no file {patterns[0].removesuffix('*')} (or .gz) here; give the folder that holds the official files")


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from error


def _read_idx(path: Path, magic: int) -> np.ndarray:
    """An IDX file of bytes: a magic number whose last byte is the rank, the sizes, the values."""
    data = _read(path)
    rank = magic % 256
    header = np.frombuffer(data[: 4 * (1 + rank)], ">u4") if len(data) >= 4 * (1 + rank) else None
    if header is None or header[0] != magic:
        raise DataError(f"{path}: not an IDX file of the expected kind; fetch the file again")
    sizes = tuple(int(size) for size in header[1:])
    if len(data) != 4 * (1 + rank) + int(np.prod(sizes)):
        raise DataError(f"{path}: its length does not fit its header {sizes}; fetch the file again")
    return np.frombuffer(data, np.uint8, offset=4 * (1 + rank)).reshape(sizes)
