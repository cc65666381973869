"""Does a program still describe the network it was made from? Asked before an answer of a solver is believed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bounds.linear import Halfspaces
from bounds.network import Network
from milp.encode import Encoding
from milp.program import Array, Limits, Solver

_RELATIVE = 1e-3
"""Relative difference between a program's value at a fixed input and the network's above which the program is not believed."""


def reproduces(network: Network, unsafe: Halfspaces, encoding: Encoding, x: Array, solver: Solver, limits: Limits) -> bool:
    """Whether the program's optimum, with the inputs fixed to x (the network's input shape), is the network's margin at x.

    A program that is empty, or too small, "proves" everything; this catches intervals that are not sound and a solver in trouble. x is
    clipped into the region's box.
    """
    inputs = encoding.inputs
    point = np.clip(np.asarray(x, dtype=np.float64).reshape(-1), inputs.lower, inputs.upper)
    lower, upper = encoding.program.lower.copy(), encoding.program.upper.copy()
    lower[inputs.columns] = upper[inputs.columns] = point[inputs.features]
    seconds = None if limits.seconds is None else max(limits.seconds, 1.0)
    solution = solver.solve(replace(encoding.program, lower=lower, upper=upper), Limits(seconds, limits.memory_mb))
    with torch.no_grad():
        y = network.to(torch.float64, "cpu")(torch.from_numpy(point).reshape(1, *inputs.shape)).flatten(1)
    expected = float(unsafe.margin(y)[0])
    return solution.objective is not None and abs(solution.objective - expected) <= _RELATIVE * max(1.0, abs(expected))
