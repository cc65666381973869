"""MNIST and CIFAR-10 from a local folder of the official files, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bounds.errors import DataError

_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_CIFAR_RECORD = 1 + 3 * 32 * 32


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


def load_dataset(name: str, folder: str | Path) -> Dataset:
    """The test images of a data set. `name`: mnist or cifar10; `folder`: where its official files are.

    Raises:
        DataError: an unknown name, a missing or malformed file.
    """
    readers = {"mnist": _read_mnist, "cifar10": _read_cifar10}
    if name not in readers:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(readers)}")
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the {name} files")
    return readers[name](folder)


def _read_mnist(folder: Path) -> Dataset:
    images = _read_idx(_find(folder, ("t10k-images-idx3-ubyte*", "t10k-images.idx3-ubyte*")), _IDX_IMAGES)
    labels = _read_idx(_find(folder, ("t10k-labels-idx1-ubyte*", "t10k-labels.idx1-ubyte*")), _IDX_LABELS)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} images but {len(labels)} labels; fetch the files again")
    return Dataset("mnist", images[:, None], labels)


def _read_cifar10(folder: Path) -> Dataset:
    path = _find(folder, ("test_batch*.bin", "test_batch*.bin.gz", "cifar-10-batches-bin/test_batch*.bin"))
    data = _read(path)
    if not data or len(data) % _CIFAR_RECORD:
        raise DataError(f"{path}: {len(data)} bytes are no whole number of {_CIFAR_RECORD}-byte records; fetch the file again")
    records = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_RECORD)
    return Dataset("cifar10", records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])


def _find(folder: Path, patterns: Sequence[str]) -> Path:
    """The first file that matches a pattern; patterns are tried in order."""
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found[0]
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
