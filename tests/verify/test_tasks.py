from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from bounds.errors import DataError
from verify.tasks import Digests, ImageQuestion, Normalisation, combine, digest, network_digest

QUESTION = ImageQuestion("mnist", Path("data"), 3, 7, "inf", 0.1)


def test_a_file_and_its_gzip_are_the_same_content(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"network")
    (tmp_path / "packed").write_bytes(gzip.compress(b"network"))
    assert digest(tmp_path / "plain") == digest(tmp_path / "packed") == hashlib.sha256(b"network").hexdigest()


CUT = gzip.compress(b"network" * 99, mtime=0)[:-9]


@pytest.mark.parametrize(
    "data", [CUT, b"\x1f\x8bno gzip at all", b"\x1f\x8b\x08" + bytes(20), None], ids=["cut", "no gzip", "nothing in it", "missing"]
)
def test_what_cannot_be_read_is_named(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "file").write_bytes(data)
    with pytest.raises(DataError, match="file: cannot be read"):
        digest(tmp_path / "file")


def test_every_file_is_read_once(tmp_path: Path) -> None:
    path, digests = tmp_path / "file", Digests()
    path.write_bytes(b"one")
    first = digests(path)
    path.write_bytes(b"two")
    assert digests(path) == first
    assert Digests()(path) != first


@pytest.mark.parametrize("change", [{"label": 8}, {"norm": "2"}, {"eps": 0.2}, {"eps": None}])
def test_another_question_has_another_hash(change: dict[str, object]) -> None:
    assert replace(QUESTION, **change).digest(b"pixels") != QUESTION.digest(b"pixels")  # type: ignore[arg-type]


def test_the_hash_is_of_the_pixels_and_not_of_their_place() -> None:
    assert replace(QUESTION, folder=Path("elsewhere"), index=9).digest(b"pixels") == QUESTION.digest(b"pixels")
    assert QUESTION.digest(b"other") != QUESTION.digest(b"pixels")


def test_what_is_put_in_front_counts() -> None:
    assert network_digest("a" * 64, None) == "a" * 64
    found = {
        network_digest("a" * 64, Normalisation(mean, std)) for mean, std in (((0.1,), (1.0,)), ((0.1,), (2.0,)), ((0.1, 0.1), (1.0, 1.0)))
    }
    assert len(found | {"a" * 64}) == 4


def test_parts_do_not_run_into_each_other() -> None:
    assert combine("ab", "c") != combine("a", "bc")
    assert combine(1, 2) != combine((1, 2), None)
