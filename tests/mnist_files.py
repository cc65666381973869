"""MNIST files as the official ones are, with images of a test's own."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def write_mnist(folder: Path, images: np.ndarray, labels: np.ndarray, pack: bool = False) -> None:
    files = {
        "t10k-images-idx3-ubyte": struct.pack(">4I", 2051, *images.shape) + images.tobytes(),
        "t10k-labels-idx1-ubyte": struct.pack(">2I", 2049, len(labels)) + labels.tobytes(),
    }
    for name, data in files.items():
        (folder / (name + ".gz" if pack else name)).write_bytes(gzip.compress(data) if pack else data)
