"""Exact radii: the distance of the nearest adversary by mixed-integer programming, every adversary replayed on the original model.

On networks with many unstable neurons branching draws the ends together first (`verify.narrowing`), often until they meet.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bounds import rounding
from bounds.engine import DEFAULT_MEMORY_MB
from bounds.errors import SpecError
from bounds.network import Network
from verify.exact import ExactBox
from verify.spec import Domain, robustness
from verify.verdict import original_of, replay

if TYPE_CHECKING:
    from milp.distance import Distance
    from milp.encode import Pruned
    from milp.incumbent import Adversary
    from milp.refine import Strongest

_LEAST_TOL = 1e-9
"""Ends that are nearer each other are within the tolerances of solvers, and of the evaluation of a network."""
_BRANCHING = 0.7
"""Of the time limit, for branching, where many neurons are unstable."""


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
    relaxed: Pruned | Strongest | None = None,
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
        relaxed: masks of the elements of activations (by node index) that get no binary, or how many binaries a program keeps. `lower` then
            holds as it does without, from programs with few binaries; where it stays below `upper` the status is "undecided".

    Returns:
        `milp.distance.Distance`: lower <= radius <= upper, status, point (replayed), target, rigorous, proof, solves, binaries, seconds.
        A misclassified image has radius 0 and says so; without any adversary in the domain lower = upper = inf, status "no adversary".

    Property: `upper` belongs to an adversary that replays with zero tolerance; `lower` rests on the solver's tolerances where `proof` says
    so, `rigorous` never does.

    Raises:
        SpecError: label, norm or domain that do not fit, NaN, tol below 1e-9, neither domain nor adversary nor `most`.
        SolverError: an unknown or missing solver. UnsupportedOpError: the network has no exact mixed-integer form.
    """
    from milp.distance import Effort, Start, exact_distance
    from milp.metric import Metric
    from milp.program import Limits
    from milp.solvers import default_solver, get_solver
    from verify.narrowing import narrowed, worthwhile

    center = torch.as_tensor(image).detach().to("cpu", torch.float64)
    if not _LEAST_TOL <= tol < math.inf:
        raise SpecError(
            f"the tolerance must be at least {_LEAST_TOL:g}, which rounding and solvers can tell apart, got {tol}; 1e-6 is the default"
        )
    if math.isnan(lower) or lower < 0 or math.isnan(most) or most <= 0:
        raise SpecError(f"the certified radius must not be negative and the largest radius must be positive, got {lower} and {most}")
    replayer = Replayer(network, center, label, norm, domain)
    point = None if adversary is None else torch.as_tensor(adversary).detach().to("cpu", torch.float64).numpy()
    if point is not None and point.size != center.numel():
        raise SpecError(f"the adversary has {point.size} values, the image {center.numel()}")
    sides = None if domain is None else (torch.as_tensor(domain[0], dtype=torch.float64), torch.as_tensor(domain[1], dtype=torch.float64))
    first, second = (default_solver(precise=p) if solver is None else get_solver(solver, precise=p) for p in (False, True))
    begin = time.monotonic()
    effort = Effort(first, None if relaxed else second, Limits(seconds, memory_mb), tol, replayer.slack, relaxed=relaxed or {})
    metric, start = Metric(center, norm, sides), Start(lower, point, most)
    if not relaxed and worthwhile(network, metric, start):
        share = None if seconds is None else _BRANCHING * seconds
        start = narrowed(network, label, metric, replayer, start, replace(effort, limits=Limits(share, memory_mb)))
        left = None if seconds is None else max(seconds - (time.monotonic() - begin), 0.0)
        effort = replace(effort, limits=Limits(left, memory_mb))
    found = exact_distance(network, label, metric, replayer, start, effort)
    return replace(found, seconds=time.monotonic() - begin)


class Replayer:
    """Replays candidates on the original model: the `accept` of `milp.incumbent`.

    slack: the distance of the image from itself as a number of the model's input type: no adversary can be placed more exactly.
    """

    def __init__(self, network: Network, center: Tensor, label: int, norm: float, domain: Domain | None) -> None:
        robustness(center, label, 0.0, norm=norm, outputs=network.outputs, domain=domain)
        if tuple(center.shape) != network.input_shape:
            raise SpecError(f"the network reads inputs of shape {network.input_shape}, the image has {tuple(center.shape)}")
        self.network, self.center, self.label, self.norm, self.domain = network, center, label, norm, domain
        self.dtype = original_of(network).input_dtype
        self.sides: tuple[np.ndarray, np.ndarray] | None = None
        if domain is not None:
            low, high = (torch.as_tensor(side, dtype=torch.float64).expand_as(center).numpy() for side in domain)
            self.sides = ExactBox.from_floats(low, high).inner(self.dtype)
        self.slack = self.distance(self.cast(center.numpy()))

    def __call__(self, point: np.ndarray) -> Adversary | None:
        """The adversary that a float64 point is once it is cast to the model's input type and moved into the domain; None if it is none."""
        from milp.incumbent import Adversary

        cast = self.cast(point)
        distance = self.distance(cast)
        question = robustness(self.center, self.label, distance, norm=self.norm, outputs=self.network.outputs, domain=self.domain)
        found = replay(self.network, question, cast, "milp")
        if found is None:
            return None
        others = found.y.reshape(-1).astype(np.float64)
        others[self.label] = -np.inf
        return Adversary(found.x, distance, int(others.argmax()))

    def cast(self, point: np.ndarray) -> np.ndarray:
        """The point in the model's input type, inside the domain."""
        flat = point.reshape(-1).astype(self.dtype)
        return (flat if self.sides is None else np.clip(flat, *self.sides)).reshape(self.center.shape)

    def distance(self, point: np.ndarray) -> float:
        """||point - image||, rounded upward; exactly 0 at the image."""
        step = np.abs(point.astype(np.float64).reshape(-1) - self.center.numpy().reshape(-1))
        step = np.where(step > 0, np.nextafter(step, np.inf), 0.0)
        if self.norm == math.inf:
            return float(step.max(initial=0.0))
        total = math.fsum(step if self.norm == 1.0 else step * step)
        size = total if self.norm == 1.0 else math.sqrt(total)
        return size * (1 + rounding.gamma(8, torch.float64))
