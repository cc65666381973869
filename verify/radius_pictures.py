"""Pictures of certified radii by matplotlib: one image's radius against the eps of its bounds (thesis Figure 3.6), and how the radii of many
images are distributed (thesis Figure 3.9)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from verify.pictures import check_picture, empty_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _FAINT, _GRID = "#1a1a1a", "#6b6b6b", "#e4e4e4"
_ENVELOPE, _VERDICT, _TARGET = "#1f6f8b", "#c97b12", "#c1272d"
_FEWEST, _MOST = 8, 40
"""Bars of a histogram."""


@dataclass(frozen=True, eq=False)
class CurvePicture:
    """What bound calls on one image certify, by their eps. eps, verdict, envelope: (K,) as in `verify.radius_search.Curve`.

    title: above the picture; verdict_name: what is called the method that knows "proven at eps or not" only; norm: "inf", "2" or "1".
    """

    eps: np.ndarray
    verdict: np.ndarray
    envelope: np.ndarray
    title: str
    verdict_name: str
    norm: str


@dataclass(frozen=True, eq=False)
class HistogramPicture:
    """Certified radii of many images, (N,), 0 where nothing is proven. target: the radius asked of the model, marked in red."""

    radii: np.ndarray
    title: str
    norm: str
    target: float | None = None


def draw_curve(picture: CurvePicture, path: Path) -> None:
    """Both methods certify eps itself as long as the whole ball is proven; beyond, one certifies nothing and the other the nearest plane.

    Raises:
        OutputError: see `verify.pictures.check_picture`; the file cannot be written.
    """
    check_picture(path)
    figure = empty_figure(6.2, 4.0)
    axes = figure.subplots()
    axes.plot(picture.eps, picture.envelope, color=_ENVELOPE, linewidth=2.2, label="polyhedral envelope (PEC)")
    axes.plot(
        picture.eps, picture.verdict, color=_VERDICT, linewidth=1.6, linestyle="--", label=f"whole ball or nothing ({picture.verdict_name})"
    )
    peak = int(picture.envelope.argmax()) if len(picture.envelope) else 0
    if len(picture.envelope) and picture.envelope[peak] > 0:
        axes.plot(picture.eps[peak], picture.envelope[peak], marker="o", markersize=5, color=_ENVELOPE)
        axes.annotate(f"{picture.envelope[peak]:.4g}", (picture.eps[peak], picture.envelope[peak]), xytext=(0, 7),
                      textcoords="offset points", ha="center", fontsize=8, color=_INK)  # fmt: skip
    axes.set_xlabel(f"eps of the bound call (l-{picture.norm})", fontsize=9, color=_INK)
    axes.set_ylabel("certified radius", fontsize=9, color=_INK)
    axes.set_xlim(0.0, float(picture.eps.max(initial=0.0)) or 1.0)
    axes.set_ylim(0.0, 1.15 * float(picture.envelope.max(initial=0.0)) or 1.0)
    _dress(axes, picture.title)
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    write_figure(figure, path)


def draw_histogram(picture: HistogramPicture, path: Path) -> None:
    """Shares of all images in percent; images without any certificate, and without any adversary, are counted in a line of text.

    Raises:
        OutputError: see `verify.pictures.check_picture`; the file cannot be written.
    """
    check_picture(path)
    figure = empty_figure(6.2, 4.0)
    axes = figure.subplots()
    radii = np.asarray(picture.radii, dtype=float)
    shown = radii[(radii > 0) & np.isfinite(radii)]
    edges = _edges(shown, picture.target)
    weights = np.full(len(shown), 100 / max(len(radii), 1))
    axes.hist(shown, bins=edges, weights=weights, color=_ENVELOPE, edgecolor="white", linewidth=0.5)  # type: ignore[arg-type]
    axes.set_xlim(0.0, edges[-1])
    if picture.target is not None:
        axes.axvline(picture.target, color=_TARGET, linewidth=1.4)
        beyond = 100 * float((radii >= picture.target).mean()) if len(radii) else 0.0
        axes.annotate(f"{beyond:.4g} % reach {picture.target:g}", (picture.target, 1.0), xycoords=("data", "axes fraction"), xytext=(-4, -10),
                      textcoords="offset points", ha="right", fontsize=8, color=_TARGET)  # fmt: skip
    axes.set_xlabel(f"certified radius (l-{picture.norm})", fontsize=9, color=_INK)
    axes.set_ylabel("images, %", fontsize=9, color=_INK)
    _dress(axes, picture.title)
    axes.set_title(_left_out(radii), fontsize=8, color=_FAINT, loc="right", pad=4)
    write_figure(figure, path)


def _edges(shown: np.ndarray, target: float | None) -> np.ndarray:
    """Edges of the bars, of equal width from 0 on; the target is one of them."""
    bars = int(np.clip(1.5 * np.sqrt(len(shown)), _FEWEST, _MOST))
    most = max(float(shown.max(initial=0.0)), target or 0.0) or 1.0
    width = most / bars
    if target is not None:
        width = target / max(1, round(target / width))
    return width * np.arange(np.ceil(most / width * (1 + 1e-9)) + 1)


def _left_out(radii: np.ndarray) -> str:
    """What no bar shows."""
    nothing, everything = int((radii <= 0).sum()), int(np.isposinf(radii).sum())
    parts = [f"{nothing} of {len(radii)} images without a certificate"] if nothing else []
    parts += [f"{everything} without any adversary"] if everything else []
    return ", ".join(parts)


def _dress(axes: Axes, title: str) -> None:
    axes.figure.suptitle(title, fontsize=10, color=_INK)
    axes.tick_params(labelsize=8, color=_FAINT, labelcolor=_INK)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b8b8b8")
