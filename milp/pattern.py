"""The nearest adversary among the points with the activation pattern of a known one: the program of distances with its binaries fixed.

On such a part of the region the network is affine, so that a linear program finds the point; an attack that follows gradients stops a little
before it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bounds.crown import Crown
from bounds.linear import Halfspaces
from bounds.network import Network
from milp.encode import encode
from milp.incumbent import Adversary
from milp.metric import Metric, Window, nearest
from milp.program import Array, Limits, Solver
from milp.solvers import lp_session


def nearest_in_pattern(
    network: Network, row: torch.Tensor, metric: Metric, adversary: Adversary, solver: Solver, limits: Limits
) -> Array | None:
    """The nearest point with the adversary's activation pattern that f(x) . row <= 0 allows, by a solver: a candidate to replay.

    row: (1, outputs), the margin of the label against the adversary's class. None for the 2-norm, which is not linear, and where the solver
    finds nothing.

    Raises:
        UnsupportedOpError: a network without an exact form.
    """
    if metric.p == 2.0:
        return None
    exact = network.to(torch.float64, "cpu")
    found = Crown(torch.float64, both=False)(exact, metric.ball(adversary.distance), row.unsqueeze(0))
    encoding = encode(
        exact, metric.box(adversary.distance), Halfspaces(row, torch.zeros(1, dtype=torch.float64)), dict(enumerate(found.intervals))
    )
    program, inputs = nearest(encoding, metric, Window(0.0, adversary.distance)), encoding.inputs
    lower, upper = encoding.program.lower.copy(), encoding.program.upper.copy()
    point = np.clip(np.asarray(adversary.point, dtype=np.float64).reshape(-1), inputs.lower, inputs.upper)
    lower[inputs.columns] = upper[inputs.columns] = point[inputs.features]
    there = solver.solve(replace(encoding.program, lower=lower, upper=upper), limits)
    if there.x is None:
        return None
    binary = np.flatnonzero(program.integer)
    lower, upper = program.lower.copy(), program.upper.copy()
    lower[binary] = upper[binary] = np.round(there.x[binary])
    solution = lp_session(replace(program, lower=lower, upper=upper)).minimise(program.objective, program.constant, limits.seconds)
    return None if solution.x is None else encoding.point(solution.x)
