from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from bounds.errors import DataError
from tests.mnist_files import write_mnist
from verify.datasets import load_dataset, parse_index


@pytest.fixture
def images() -> np.ndarray:
    return np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)


@pytest.mark.parametrize("pack", [False, True])
def test_mnist_keeps_order_and_scales_by_255(tmp_path: Path, images: np.ndarray, pack: bool) -> None:
    write_mnist(tmp_path, images, np.array([7, 2, 1], np.uint8), pack)
    data = load_dataset("mnist", tmp_path)
    assert data.labels.tolist() == [7, 2, 1]
    x = data.pixels([2, 0], (1, 28, 28))
    assert x.shape == (2, 1, 28, 28)
    assert x.dtype == np.float32
    assert x[0, 0, 3, 4] == np.float32(images[2, 3, 4]) / np.float32(255)
    assert np.array_equal(data.pixels([2, 0], (784,)), x.reshape(2, 784))
    assert np.array_equal(data.pixels(slice(0, 2), (784, 1)), data.pixels([0, 1], (784, 1)))


def test_cifar_channels_go_last_where_the_network_reads_them_last(tmp_path: Path) -> None:
    records = np.random.default_rng(0).integers(0, 256, (2, 3073), dtype=np.uint8)
    records[:, 0] = [3, 8]
    (tmp_path / "test_batch_first2.bin.gz").write_bytes(gzip.compress(records.tobytes()))
    data = load_dataset("cifar10", tmp_path)
    assert data.labels.tolist() == [3, 8]
    first, last = data.pixels([1], (3, 32, 32))[0], data.pixels([1], (32, 32, 3))[0]
    assert first[2, 5, 7] == last[5, 7, 2] == np.float32(records[1, 1 + 2 * 1024 + 5 * 32 + 7]) / np.float32(255)


def test_errors_name_the_thing(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(DataError, match="unknown data set 'svhn'; known are mnist, cifar10"):
        load_dataset("svhn", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load_dataset("mnist", tmp_path / "absent")
    with pytest.raises(DataError, match="no file t10k-images-idx3-ubyte"):
        load_dataset("mnist", tmp_path)
    write_mnist(tmp_path, images, np.zeros(3, np.uint8))
    data = load_dataset("mnist", tmp_path)
    with pytest.raises(DataError, match="image 3 is out of range: mnist has images 0 to 2"):
        data.pixels([3], (784,))
    with pytest.raises(DataError, match=r"\(3, 32, 32\).*\(1, 28, 28\)"):
        data.pixels([0], (3, 32, 32))


@pytest.mark.parametrize("change", ["truncate", "magic", "gzip", "labels"])
def test_damaged_files_are_refused(tmp_path: Path, images: np.ndarray, change: str) -> None:
    write_mnist(tmp_path, images, np.zeros(2 if change == "labels" else 3, np.uint8))
    path = tmp_path / "t10k-images-idx3-ubyte"
    data = path.read_bytes()
    if change == "truncate":
        path.write_bytes(data[:-1])
    elif change == "magic":
        path.write_bytes(b"\0" + data[1:3] + b"\1" + data[4:])
    elif change == "gzip":
        path.write_bytes(gzip.compress(data)[:-20])
    with pytest.raises(DataError, match="fetch the file"):
        load_dataset("mnist", tmp_path)


def test_shared_mnist(shared: Path) -> None:
    data = load_dataset("mnist", shared / "data" / "mnist")
    assert len(data) == 10_000
    assert data.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert len(load_dataset("cifar10", shared / "data" / "cifar10")) == 1000


@pytest.mark.parametrize(
    "text, chosen",
    [("7", [7]), ("0:3", [0, 1, 2]), ("8:", [8, 9]), (":2", [0, 1]), ("0:10:4", [0, 4, 8]), ("3, 7,9", [3, 7, 9]), ("9,0:2", [9, 0, 1])],
)
def test_index_texts(text: str, chosen: list[int]) -> None:
    assert parse_index(text, 10) == chosen


@pytest.mark.parametrize(
    "text, message",
    [
        *((text, "cannot read") for text in ("x", "", "-1", "3,,4")),
        *((text, "names no image") for text in ("3:3", "5:2", "0:5:0")),
        *((text, "out of range: there are images 0 to 9") for text in ("10", "5:11", "3,99")),
    ],
)
def test_bad_index_texts(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_index(text, 10)


def test_splits_and_usual_folders(tmp_path: Path, images: np.ndarray) -> None:
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist", images, np.array([7, 2, 1], np.uint8))
    assert load_dataset("mnist", tmp_path).labels.tolist() == [7, 2, 1]
    with pytest.raises(DataError, match="no file train-images-idx3-ubyte"):
        load_dataset("mnist", tmp_path, "train")
    with pytest.raises(DataError, match="unknown split 'validation'"):
        load_dataset("mnist", tmp_path, "validation")
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number in (2, 1):
        record = np.full(3073, number, np.uint8)
        (folder / f"data_batch_{number}.bin").write_bytes(record.tobytes())
    assert load_dataset("cifar10", tmp_path, "train").labels.tolist() == [1, 2]
    (folder / "data_batch_1.bin").write_bytes(np.full(3073, 10, np.uint8).tobytes())
    with pytest.raises(DataError, match="a label is above 9"):
        load_dataset("cifar10", tmp_path, "train")


def test_shared_data_sets(shared: Path) -> None:
    data = load_dataset("mnist", shared / "data")
    assert len(data) == 10_000
    assert data.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert len(load_dataset("cifar10", shared / "data")) == 1_000
