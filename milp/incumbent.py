"""The best adversary so far: every candidate is replayed by the caller before it counts.

A nearest point lies on the boundary of the label's region, where a model evaluated in float32 may still see the label. So a candidate is
pushed outward along the ray from the image until float64 and then the replay agree that it has crossed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bounds.network import Network
from milp.metric import Metric
from milp.program import Array

_STRETCH = np.concatenate([[1.0], 1.0 + 1e-12 * 3.0 ** np.arange(21)])
"""How far along its ray a candidate is pushed, in turn."""


@dataclass(frozen=True, eq=False)
class Adversary:
    """A point, as the model was given it, that the model does not assign to the label; its distance, rounded upward; its class."""

    point: Array
    distance: float
    target: int


Accept = Callable[[Array], Adversary | None]
"""Replays a float64 point (input shape) on the original model; None where it is no adversary there."""


class Incumbent:
    """The nearest adversary so far. rows: (classes, outputs), the margins of the label against every other class."""

    def __init__(self, network: Network, rows: torch.Tensor, metric: Metric, accept: Accept) -> None:
        self.network, self.rows, self.metric, self.accept = network, rows, metric, accept
        self.best: Adversary | None = None

    @property
    def distance(self) -> float:
        """Its distance; inf if there is none."""
        return math.inf if self.best is None else self.best.distance

    def offer(self, point: Array) -> bool:
        """Replay a point as it is; whether it is an adversary."""
        found = self.accept(point)
        if found is not None and found.distance < self.distance:
            self.best = found
        return found is not None

    def push(self, point: Array) -> bool:
        """Replay a point, or the first one beyond it on its ray that has crossed the boundary; whether there is one."""
        center = self.metric.center.numpy()
        steps = _STRETCH.reshape(-1, *([1] * center.ndim))
        along = self.metric.clip(center + steps * (point - center))
        crossed = np.flatnonzero(self.margins(along) <= 0)
        return any(self.offer(along[number]) for number in crossed)

    def margins(self, points: Array) -> Array:
        """The smallest margin of the label at every point, in float64; (points,)."""
        with torch.no_grad():
            scores = self.network(torch.from_numpy(np.ascontiguousarray(points))).flatten(1)
        return (scores @ self.rows.T).amin(1).numpy()
