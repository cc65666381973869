"""The official files of MNIST and CIFAR-10, fetched once into the user's cache and checked against their SHA-256."""

from __future__ import annotations

import logging
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bounds.errors import DataError
from verify.witness import write_atomically

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_CIFAR_FOLDER = "cifar-10-batches-bin"


@dataclass(frozen=True)
class Source:
    """A file: where it is and the SHA-256 of its bytes."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


SOURCES: dict[str, tuple[Source, ...]] = {
    "mnist": (
        Source(_MNIST + "train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        Source(_MNIST + "train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        Source(_MNIST + "t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        Source(_MNIST + "t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    "cifar10": (
        Source(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        ),
    ),
}


def download(name: str, folder: Path | None = None) -> Path:
    """The folder that holds the files of a data set, for `verify.datasets.load_dataset`; what is not there yet is fetched.

    folder: where they go; by default a folder of the user's cache.

    Raises:
        DataError: an unknown data set, pooch is not installed, a file cannot be fetched, or it is not the official one.
    """
    if name not in SOURCES:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(SOURCES)}")
    try:
        import pooch
    except ImportError as error:
        raise DataError("downloading needs pooch; run: pip install 'ringfence[download]', or give --data-dir") from error
    pooch.get_logger().setLevel(logging.WARNING)
    place = Path(pooch.os_cache("ringfence")) / name if folder is None else folder
    for source in SOURCES[name]:
        try:
            path = pooch.retrieve(source.url, f"sha256:{source.sha256}", fname=source.name, path=place)
        except ValueError as error:  # pooch's word for a wrong hash; the file is gone
            raise DataError(f"{source.url} is not the official file: its SHA-256 differs; try again or give --data-dir") from error
        except OSError as error:
            raise DataError(f"cannot fetch {source.url}: {error}; try again, or fetch it yourself and give --data-dir") from error
        if source.name.endswith(".tar.gz"):
            _unpack(Path(path), place / _CIFAR_FOLDER)
    return place


def _unpack(archive: Path, folder: Path) -> None:
    """The .bin files of an archive, each complete or not at all."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(archive) as packed:
        for member in packed:
            target = folder / PurePosixPath(member.name).name
            file = packed.extractfile(member) if member.isfile() and target.suffix == ".bin" and not target.exists() else None
            if file is not None:
                write_atomically(target, file.read())
