"""Pictures of networks with two inputs, as in the paper's Figure 1: the classes before and after pruning, far and near."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bounds.errors import SpecError
from bounds.network import Network
from verify.pictures import check_picture, empty_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _FAINT, _ANCHOR, _FOUND = "#1a1a1a", "#6b6b6b", "#1a1a1a", "#c1272d"
_COLOURS = ("#cfe3ee", "#f6dfb8", "#d6e6c9", "#e8d3e3", "#dcdcdc", "#f3cfc6", "#c8e4df", "#efe6a6", "#d5d0ea", "#e6d2bd")
"""Of the classes: pale, so that boundaries and points stand out."""
_GRID = 320
_NEAR = 1.35
"""How much farther the near view reaches than the ball and both adversaries."""


@dataclass(frozen=True, eq=False)
class BoundaryPicture:
    """A network and its substitute around an anchor (2,). radius: of the ball that the pruning was built around; nearest: the nearest adversary
    known of the network and the nearest one of the substitute, each (2,) or None; norm: 1, 2 or inf; window: (low, high) of the far view."""

    network: Network
    substitute: Network
    anchor: np.ndarray
    radius: float
    nearest: tuple[np.ndarray | None, np.ndarray | None]
    norm: float
    window: tuple[float, float]
    title: str


def check_inputs(network: Network) -> None:
    """Whether boundaries can be drawn.

    Raises:
        SpecError: the network does not read two numbers.
    """
    if math.prod(network.input_shape) != 2:
        raise SpecError(f"boundaries are drawn for networks with two inputs, this one reads {network.input_shape}; leave --plot out")


def draw_boundaries(picture: BoundaryPicture, path: Path) -> None:
    """Two rows, the whole window and the ball alone; two columns, the network and the substitute.

    Raises:
        OutputError: see `check_picture`; the file cannot be written.
    """
    check_picture(path)
    figure = empty_figure(7.0, 7.2)
    panels = figure.subplots(2, 2)
    farthest = [float(np.abs(point - picture.anchor).max()) for point in picture.nearest if point is not None]
    reach = _NEAR * max([picture.radius, *farthest])
    near = [(float(c) - reach, float(c) + reach) for c in picture.anchor]
    far = [picture.window, picture.window]
    names, networks = ("network", "substitute"), (picture.network, picture.substitute)
    for column, (name, network, found) in enumerate(zip(names, networks, picture.nearest, strict=True)):
        _classes(panels[0][column], network, far)
        _classes(panels[1][column], network, near)
        _frame(panels[0][column], name)
        _frame(panels[1][column], f"{name}, near the anchor")
        _ball(panels[0][column], picture)
        _ball(panels[1][column], picture)
        for row in panels:
            row[column].plot(*picture.anchor, "o", color=_ANCHOR, markersize=4)
        if found is not None:
            line = np.stack([picture.anchor, found])
            panels[1][column].plot(line[:, 0], line[:, 1], color=_FOUND, linewidth=1.4)
            panels[1][column].plot(*found, "x", color=_FOUND, markersize=6)
    figure.suptitle(picture.title, fontsize=10, color=_INK)
    figure.supxlabel(
        "dot: the anchor; cross: the nearest point of another class; dashed: the ball of the pruning", fontsize=8, color=_FAINT
    )
    write_figure(figure, path)


def _classes(axes: Axes, network: Network, sides: list[tuple[float, float]]) -> None:
    """Areas of the classes and the boundaries between them."""
    from matplotlib.colors import ListedColormap

    first, second = (torch.linspace(*side, _GRID, dtype=torch.float64) for side in sides)
    points = torch.stack(torch.meshgrid(first, second, indexing="xy"), -1).reshape(-1, *network.input_shape)
    with torch.no_grad():
        scores = network.to(torch.float64)(points).flatten(1)
    classes = scores.argmax(1).reshape(_GRID, _GRID).numpy()
    colours = [_COLOURS[k % len(_COLOURS)] for k in range(max(2, network.outputs))]
    extent = (*sides[0], *sides[1])
    axes.imshow(
        classes, origin="lower", extent=extent, aspect="auto", cmap=ListedColormap(colours), vmin=0, vmax=len(colours) - 1,
        interpolation="nearest",
    )  # fmt: skip
    for label in range(network.outputs):
        margin = _margin(scores, label).reshape(_GRID, _GRID).numpy()
        if margin.min() < 0 < margin.max():
            axes.contour(first.numpy(), second.numpy(), margin, levels=[0.0], colors=_INK, linewidths=0.9)


def _margin(scores: Tensor, label: int) -> Tensor:
    """How far a class is ahead of the best other one."""
    others = scores.clone()
    others[:, label] = -math.inf
    return scores[:, label] - others.amax(1)


def _ball(axes: Axes, picture: BoundaryPicture) -> None:
    angles = np.linspace(0, 2 * np.pi, 361)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    circle /= np.linalg.norm(circle, ord=picture.norm, axis=0)
    axes.plot(*(picture.anchor[:, None] + picture.radius * circle), color=_FAINT, linewidth=0.9, linestyle="--")


def _frame(axes: Axes, name: str) -> None:
    axes.set_title(name, fontsize=9, color=_FAINT)
    axes.tick_params(labelsize=7, color=_FAINT, labelcolor=_FAINT)
    for side in axes.spines.values():
        side.set_color("#c8c8c8")
