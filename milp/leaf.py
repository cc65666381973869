"""A part of a region on which every activation is fixed to one piece: one linear program decides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.region import Region
from milp.encode import Intervals, encode_part
from milp.program import Array, Limits
from milp.solvers import lp_session


@dataclass(frozen=True, eq=False)
class Assumption:
    """Elements of a node (flattened positions) that are assumed to be at least (side +1) or at most (side -1) their points; (k,) each."""

    elements: Array
    side: Array
    point: Array


@dataclass(frozen=True, eq=False)
class Leaf:
    """bound: a rigorous lower bound of the worst margin on the part, None if there is none. point: where the program has its minimum."""

    bound: float | None
    point: Array | None


def decide_leaf(
    network: Network, region: Region, unsafe: Halfspaces, intervals: Intervals, assumed: Mapping[int, Assumption], limits: Limits
) -> Leaf:
    """min over x of max_i (C_i f(x) - d_i) on the part of the region where the assumptions hold.

    intervals: enclosures of the nodes there. Activations that are not fixed are relaxed. An l2 ball enters as its box.

    Property: sound; exact up to rounding where every activation is fixed and the region is a box. Numerics: the bound is recomputed from the
    linear program's duals. Raises: see `milp.encode.encode`; SolverMissingError without a linear solver.
    """
    encoding = encode_part(network, region, unsafe, intervals, assumed)
    program = encoding.program
    solution = lp_session(program).minimise(program.objective, program.constant, limits.seconds)
    point = None
    if solution.x is not None:
        inside = torch.from_numpy(np.ascontiguousarray(encoding.point(solution.x)))[None, None]
        point = region.to(torch.float64, torch.device("cpu")).project(inside)[0, 0].numpy()
    return Leaf(solution.dual_bound, point)
