"""Verdicts: what is known about a question, and replay, the only maker of `Falsified`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Proof = Literal["rigorous", "solver"]
Semantics = Literal["real", "float32-any-order"]


@dataclass(frozen=True)
class Verified:
    """No input of the region violates the specification.

    `bound`: proven lower bound of the worst margin (> 0), or None where the proof gives none. `proof`: "rigorous" (outward rounded all the
    way) or "solver" (rests on the tolerances described in `detail`).
    """

    bound: float | None
    proof: Proof
    semantics: Semantics
    decided_by: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Falsified:
    """`x` lies in the region and the original model's output `y` lies in an unsafe set, with zero tolerance. Only `replay` builds it."""

    x: np.ndarray
    y: np.ndarray
    decided_by: str


@dataclass(frozen=True)
class Unknown:
    """Not decided: why, and the best proven lower bound of the worst margin so far (None if no engine finished)."""

    reason: str
    bound: float | None = None


Verdict = Verified | Falsified | Unknown
