"""Pictures by matplotlib, which is an extra: bounding maps, as in thesis Figure 3.5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bounds.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")
"""Kinds of files that pictures are written to."""
_INK, _FAINT, _FIXED = "#1a1a1a", "#6b6b6b", "#ececec"
_COLOURS = "YlGnBu"
"""Lighter is smaller, as in the thesis; lightness falls evenly, also for readers who do not see all colours."""


@dataclass(frozen=True, eq=False)
class BoundingMap:
    """One certified region as a picture. image: (height, width) or (height, width, 3) in [0, 1]; eps: (height, width) in units of the input.

    title: above the picture; uniform: the best uniform eps, marked on the scale.
    """

    image: np.ndarray
    eps: np.ndarray
    title: str
    uniform: float


def check_picture(path: Path) -> None:
    """Whether a picture can be written there: asked before the work begins.

    Raises:
        OutputError: an unknown suffix, a missing folder, matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path}: unknown kind of picture {path.suffix!r}; use one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: no such folder {path.parent}; create it first")
    empty_figure(1.0, 1.0)


def draw_bounding_map(picture: BoundingMap, path: Path) -> None:
    """The image and its bounding map side by side, with a scale: lighter pixels have a smaller eps (thesis Figure 3.5), grey ones none.

    Raises:
        OutputError: see `check_picture`; the file cannot be written.
    """
    check_picture(path)
    figure = empty_figure(7.2, 3.5)
    left, right, scale = figure.subplots(1, 3, width_ratios=(1, 1, 0.06))
    left.imshow(picture.image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    moving = np.ma.masked_less_equal(picture.eps, 0.0)
    shown = right.imshow(moving, norm=_scale(moving), cmap=_COLOURS, interpolation="nearest")
    right.set_facecolor(_FIXED)
    for axes, name in ((left, "image"), (right, "certified eps of each pixel")):
        _frame(axes, name)
    bar = figure.colorbar(shown, cax=scale)
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", labelsize=8, color=_FAINT, labelcolor=_INK)
    for axis in (bar.ax.yaxis.set_major_formatter, bar.ax.yaxis.set_minor_formatter):
        axis(_plain)
    _mark(bar.ax, picture.uniform)
    figure.suptitle(picture.title, fontsize=10, color=_INK)
    write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> None:
    """The figure as a file.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=160)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another place with --plot") from error


def as_picture(values: np.ndarray) -> np.ndarray | None:
    """Values of one input as (height, width) or (height, width, channels), or None where they are no picture.

    One channel or three, first or last, leading ones left out; a vector of 784 or 3072 numbers is an image as MNIST's and CIFAR-10's are.
    """
    kept = tuple(size for size in values.shape if size != 1)
    shape = {(784,): (28, 28), (3072,): (3, 32, 32)}.get(kept, kept)
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] == 3):
        return values.reshape(shape)
    return values.reshape(shape).transpose(1, 2, 0) if len(shape) == 3 and shape[0] == 3 else None


def empty_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, without any window system.

    Raises:
        OutputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError("pictures need matplotlib, which is not installed; run: pip install 'ringfence[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _scale(eps: np.ma.MaskedArray) -> LogNorm:
    """A logarithmic scale: as in the volume, what counts is by which factor one eps is larger than another. At most a factor of 100."""
    from matplotlib.colors import LogNorm

    largest = float(eps.max()) if eps.count() else 1.0
    smallest = float(eps.min()) if eps.count() else 1.0
    return LogNorm(vmin=min(max(smallest, largest / 100), largest / 2), vmax=largest)


def _plain(value: float, _: object) -> str:
    """Ticks at 1, 2 and 5 times powers of ten, as plain numbers."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def _frame(axes: Axes, name: str) -> None:
    axes.set_title(name, fontsize=9, color=_FAINT)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#c8c8c8")


def _mark(axes: Axes, uniform: float) -> None:
    """Where the best uniform eps lies on the scale, if it does."""
    low, high = axes.get_ylim()
    if not low <= uniform <= high:
        return
    axes.axhline(uniform, color="#c1272d", linewidth=1.4)
    axes.annotate(
        "best\nuniform", (1.0, uniform), xytext=(32, 0), textcoords="offset points", xycoords=("axes fraction", "data"),
        va="center", fontsize=7.5, color="#c1272d",
    )  # fmt: skip
