"""A program that describes its network is recognised, on the demo's network too; one that does not is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bounds.crown import Crown
from bounds.interval import Interval
from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.region import LpBall
from milp.check import reproduces
from milp.encode import encode
from milp.program import Limits
from milp.solvers import get_solver
from tests.milp.test_encode import ZOO, box_of, intervals_of

ONE = Halfspaces(torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("name", ["scip", "highs"])
@pytest.mark.parametrize("precise", [False, True])
def test_a_convolutional_network_at_corners_of_a_region(root: Path, name: str, precise: bool) -> None:
    """Here SCIP, left to aggregate variables, finds some of these feasible programs infeasible."""
    network, stored = Network.from_onnx(root / "demo" / "network.onnx"), np.load(root / "demo" / "images.npz")
    label = int(stored["labels"][1])
    x = torch.from_numpy(stored["images"][1].astype(np.float32) / np.float32(255)).reshape(1, *network.input_shape)
    unsafe = Halfspaces(torch.zeros(1, 10, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    unsafe.C[0, label], unsafe.C[0, (label + 3) % 10] = 1.0, -1.0
    ball = LpBall(x, 0.1, math.inf, (0.0, 1.0))
    encoding = encode(network, ball, unsafe, Crown(torch.float64)(network, ball, unsafe.C).intervals)
    box, generator = ball.box(), torch.Generator().manual_seed(0)
    for _ in range(4):
        low = torch.rand(box.lower.shape, generator=generator) < 0.5
        corner = torch.where(low, box.lower, box.upper)[0].numpy()
        assert reproduces(network, unsafe, encoding, corner, get_solver(name, precise=precise), Limits())


@pytest.mark.parametrize("kind", ["relu", "residual", "convolutional"])
def test_unsound_intervals_are_noticed(kind: str) -> None:
    network = ZOO[kind]
    region = box_of(network)
    intervals = dict(enumerate(intervals_of(network, region)))
    center = region.origin[0].numpy()
    assert reproduces(network, ONE, encode(network, region, ONE, intervals), center, get_solver("scip"), Limits())
    first = network.preactivations[0]
    values = network.to(torch.float64).values(region.origin)[first]
    shifted = Interval(values + 0.5, values + 1.0)
    wrong = encode(network, region, ONE, intervals | {first: shifted})
    assert not reproduces(network, ONE, wrong, center, get_solver("scip"), Limits())
