"""Exact minimal adversarial distances: how far is the nearest point of another class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from milp.program import Array

Closeness = Literal["optimal", "no adversary", "misclassified", "time limit", "memory limit", "undecided"]


@dataclass(frozen=True, eq=False)
class Distance:
    """lower <= min ||x - image||_p over the points x of the domain that are not certainly of the image's class <= upper.

    lower: the best lower end; it rests on a solver's tolerances where `proof` is "solver". rigorous: the best lower end that was rounded
    outward all the way (<= lower). upper: the distance of `point`, rounded upward; inf without one. point: an adversary that the caller's
    `accept` replayed, in the network's input shape; None if none is known. target: the class that `point` is taken for.

    status: "optimal" (the ends agree within the tolerance), "no adversary" (none within the domain and the radius looked at: lower is that
    radius, inf where the whole domain was looked at), "misclassified" (the image itself is not of its class: 0), "time limit",
    "memory limit", or "undecided" with a reason.

    solves: mixed-integer programs solved; binaries: the most that one of them had; seconds: wall-clock time.
    """

    lower: float
    upper: float
    status: Closeness
    point: Array | None
    target: int | None
    rigorous: float
    proof: Literal["rigorous", "solver"]
    solves: int
    binaries: int
    seconds: float
    reason: str = ""
