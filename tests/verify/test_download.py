from __future__ import annotations

import hashlib
import http.server
import io
import struct
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bounds.errors import DataError
from verify import download as module
from verify.datasets import load_dataset
from verify.download import SOURCES, Source, download

pytest.importorskip("pooch")


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` on this machine and counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []

    def source(self, name: str, data: bytes) -> Source:
        self.files["/" + name] = data
        return Source(f"http://127.0.0.1:{self.server_address[1]}/{name}", hashlib.sha256(data).hexdigest())


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        data = self.server.files.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        return


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def mnist(server: Server) -> tuple[Source, ...]:
    images = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    return (
        server.source("t10k-images-idx3-ubyte", struct.pack(">4I", 2051, 2, 28, 28) + images.tobytes()),
        server.source("t10k-labels-idx1-ubyte", struct.pack(">2I", 2049, 2) + bytes([3, 1])),
    )


def test_files_are_fetched_once_and_read(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "mnist", mnist(server))
    folder = download("mnist", tmp_path / "cache")
    assert load_dataset("mnist", folder).labels.tolist() == [3, 1]
    asked = len(server.asked)
    assert download("mnist", tmp_path / "cache") == folder
    assert len(server.asked) == asked == 2


def test_the_cache_is_the_users(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "mnist", mnist(server))
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / name)
    assert download("mnist") == tmp_path / "ringfence" / "mnist"


def test_archives_are_unpacked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = np.random.default_rng(0).integers(0, 256, (2, 3073), dtype=np.uint8)
    records[:, 0] = [3, 8]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, data in (("cifar-10-batches-bin/test_batch.bin", records.tobytes()), ("cifar-10-batches-bin/readme.html", b"x")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    monkeypatch.setitem(SOURCES, "cifar10", (server.source("cifar-10-binary.tar.gz", buffer.getvalue()),))
    folder = download("cifar10", tmp_path)
    assert load_dataset("cifar10", folder).labels.tolist() == [3, 8]
    assert [p.name for p in (folder / "cifar-10-batches-bin").iterdir()] == ["test_batch.bin"]


def test_another_file_is_refused_and_not_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = mnist(server)
    server.files["/" + labels.name] = b"something else"
    monkeypatch.setitem(SOURCES, "mnist", (images, labels))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte is not the official file"):
        download("mnist", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [images.name]


def test_unreachable_is_told(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "mnist", (Source(f"http://127.0.0.1:{server.server_address[1]}/none", "0" * 64),))
    with pytest.raises(DataError, match=r"cannot fetch http://127.0.0.1:\d+/none.*--data-dir"):
        download("mnist", tmp_path)


def test_without_pooch_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"pip install 'ringfence\[download\]'"):
        download("mnist")


def test_unknown_data_set() -> None:
    with pytest.raises(DataError, match="unknown data set 'imagenet'; known are mnist, cifar10"):
        download("imagenet")


def test_official_sources_are_checksummed() -> None:
    assert set(module.SOURCES) == {"mnist", "cifar10"}
    for source in (s for sources in SOURCES.values() for s in sources):
        assert source.url.startswith("https://")
        assert len(bytes.fromhex(source.sha256)) == 32
