"""Pictures of certified radii as files, and what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bounds.errors import OutputError
from verify import radius_pictures
from verify.radius_pictures import CurvePicture, HistogramPicture, draw_curve, draw_histogram


def curve(eps: np.ndarray, peak: float = 0.1) -> CurvePicture:
    envelope = np.where(eps <= peak, eps, np.maximum(0.0, 2 * peak - eps))
    return CurvePicture(eps, np.where(eps <= peak, eps, 0.0), envelope, "a title", "Fast-Lin", "inf")


@pytest.mark.parametrize("suffix, start", [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_formats(suffix: str, start: bytes, tmp_path: Path) -> None:
    draw_curve(curve(np.linspace(0.01, 0.3, 30)), tmp_path / f"curve{suffix}")
    draw_histogram(HistogramPicture(np.linspace(0, 0.2, 30), "a title", "2", 0.1), tmp_path / f"hist{suffix}")
    for name in ("curve", "hist"):
        assert (tmp_path / f"{name}{suffix}").read_bytes().startswith(start)


def test_texts_of_the_curve(tmp_path: Path) -> None:
    """The SVG file holds text as text only where fonts are not turned into paths, so the legend is looked for by its groups."""
    draw_curve(curve(np.linspace(0.01, 0.3, 30)), tmp_path / "curve.svg")
    text = (tmp_path / "curve.svg").read_text()
    assert "<!-- whole ball or nothing (Fast-Lin) -->" in text
    assert "<!-- 0.1 -->" in text  # the peak
    assert "<!-- eps of the bound call (l-inf) -->" in text


def test_texts_of_the_histogram(tmp_path: Path) -> None:
    radii = np.array([0.0, 0.05, 0.1, 0.15, np.inf])
    draw_histogram(HistogramPicture(radii, "a title", "inf", 0.1), tmp_path / "hist.svg")
    text = (tmp_path / "hist.svg").read_text()
    assert "<!-- 60 % reach 0.1 -->" in text
    assert "<!-- 1 of 5 images without a certificate, 1 without any adversary -->" in text


@pytest.mark.parametrize("target", [None, 0.03, 0.1, 2.0])
def test_every_radius_has_a_bar(target: float | None) -> None:
    radii = np.random.default_rng(0).random(200) * 0.3
    edges = radius_pictures._edges(radii, target)
    assert np.histogram(radii, edges)[0].sum() == len(radii)
    assert target is None or np.isclose(edges, target).any()


@pytest.mark.parametrize("radii", [np.zeros(3), np.zeros(0), np.full(2, np.inf), np.array([0.1])], ids=["none", "no images", "all", "one"])
def test_odd_histograms(radii: np.ndarray, tmp_path: Path) -> None:
    for target in (None, 0.1):
        draw_histogram(HistogramPicture(radii, "a title", "1", target), tmp_path / "hist.png")


def test_a_flat_curve(tmp_path: Path) -> None:
    eps = np.linspace(0.01, 0.4, 5)
    draw_curve(CurvePicture(eps, np.zeros(5), np.zeros(5), "misclassified", "CROWN", "1"), tmp_path / "curve.png")
    draw_curve(CurvePicture(eps[:0], eps[:0], eps[:0], "nothing", "CROWN", "1"), tmp_path / "curve.png")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"unknown kind of picture '.gif'"):
        draw_curve(curve(np.ones(1)), tmp_path / "curve.gif")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match=r"folder.png: cannot be written"):
        draw_histogram(HistogramPicture(np.ones(2), "a title", "inf"), tmp_path / "folder.png")
