"""Exact radii: the distance of the nearest adversary by mixed-integer programming, every adversary replayed on the original model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from bounds.engine import DEFAULT_MEMORY_MB
from bounds.network import Network
from verify.spec import Domain

if TYPE_CHECKING:
    from milp.distance import Distance


def exact_radius(  # noqa: PLR0913 - keyword-only settings of one call
    network: Network,
    image: Tensor | np.ndarray,
    label: int,
    *,
    norm: float = math.inf,
    domain: Domain | None = (0.0, 1.0),
    lower: float = 0.0,
    adversary: Tensor | np.ndarray | None = None,
    most: float = math.inf,
    solver: str | None = None,
    seconds: float | None = None,
    tol: float = 1e-6,
    memory_mb: float = DEFAULT_MEMORY_MB,
) -> Distance:
    """min ||x - image||_p over the points x of the domain whose largest output is not `label` alone: the exact radius of one image.

    Args:
        image: one input, without a batch axis. label: its class. norm: 1, 2 or inf. domain: (low, high) that x must respect, or None.
        lower: a radius that the caller has certified with outward rounding (0: none); it is believed.
        adversary: a point of another class, as found by an attack (None: none known). It is replayed on the original model before it counts.
        most: the largest radius of interest; adversaries further away are not looked for. Needed where there is neither a domain nor an
            adversary.
        solver: "scip", "highs", ...; None for the default. seconds: wall-clock limit for everything; None for none.
        tol: the two ends are wanted within tol * max(1, radius).

    Returns:
        `milp.distance.Distance`: lower <= radius <= upper, status, point (replayed), target, rigorous, proof, solves, binaries, seconds.
        A misclassified image has radius 0 and says so; without any adversary in the domain lower = upper = inf, status "no adversary".

    Property: `upper` belongs to an adversary that replays with zero tolerance; `lower` rests on the solver's tolerances where `proof` says
    so, `rigorous` never does.

    Raises:
        SpecError: label, norm or domain that do not fit, NaN, tol not positive, neither domain nor adversary nor `most`.
        SolverError: an unknown or missing solver. UnsupportedOpError: the network has no exact mixed-integer form.
    """
    raise NotImplementedError
