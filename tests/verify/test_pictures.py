"""Bounding maps as picture files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bounds.errors import OutputError
from verify.pictures import BoundingMap, as_picture, check_picture, draw_bounding_map


def bounding_map(eps: np.ndarray) -> BoundingMap:
    return BoundingMap(np.linspace(0, 1, eps.size).reshape(eps.shape), eps, "a title", 0.1)


def read(path: Path) -> np.ndarray:
    """Pixels of a PNG file, (height, width, 4)."""
    from matplotlib.image import imread

    return np.asarray(imread(path))


def test_lighter_is_smaller(tmp_path: Path) -> None:
    """The map of a ramp from left to right darkens from left to right."""
    eps = np.tile(np.geomspace(0.01, 1.0, 12), (12, 1))
    draw_bounding_map(bounding_map(eps), tmp_path / "map.png")
    row = read(tmp_path / "map.png")[300, :, :3].mean(-1)
    middle = row[int(0.44 * len(row)) : int(0.82 * len(row))]
    assert middle[:40].mean() > middle[-40:].mean() + 0.4
    assert np.all(np.diff(middle[:: len(middle) // 10]) < 0.02)


@pytest.mark.parametrize("suffix, start", [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_formats(suffix: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"map{suffix}"
    draw_bounding_map(bounding_map(np.full((4, 4), 0.2)), path)
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("eps", [np.zeros((3, 3)), np.eye(3), np.full((3, 3), 1e-7)], ids=["none", "some", "tiny"])
def test_maps_with_fixed_features(eps: np.ndarray, tmp_path: Path) -> None:
    draw_bounding_map(bounding_map(eps), tmp_path / "map.png")
    assert read(tmp_path / "map.png").shape[2] == 4


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"unknown kind of picture '.gif'; use one of .png, .pdf, .svg"):
        check_picture(tmp_path / "map.gif")
    with pytest.raises(OutputError, match="no such folder"):
        check_picture(tmp_path / "nowhere" / "map.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match=r"folder.png: cannot be written"):
        draw_bounding_map(bounding_map(np.ones((2, 2))), tmp_path / "folder.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OutputError, match=r"need matplotlib, which is not installed; run: pip install 'ringfence\[plots\]'"):
        check_picture(tmp_path / "map.png")


@pytest.mark.parametrize(
    "shape, picture",
    [
        ((1, 28, 28), (28, 28)),
        ((784,), (28, 28)),
        ((3072,), (32, 32, 3)),
        ((3, 32, 32), (32, 32, 3)),
        ((1, 3, 8, 8), (8, 8, 3)),
        ((8, 8, 3), (8, 8, 3)),
        ((5,), None),
        ((4, 8, 8), None),
        ((1,), None),
    ],
)
def test_inputs_as_pictures(shape: tuple[int, ...], picture: tuple[int, ...] | None) -> None:
    values = np.arange(np.prod(shape), dtype=float).reshape(shape)
    found = as_picture(values)
    assert (None if found is None else found.shape) == picture
    if found is not None and shape == (3072,):
        assert found[0, 1, 2] == values[2 * 1024 + 1]
