"""Walks that start at a dense layer look its rows up instead of multiplying unit vectors with it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bounds.crown import Crown, FastLin
from bounds.network import Network, Node
from bounds.ops.affine import Linear
from bounds.ops.base import Affine, Input
from bounds.ops.piecewise import Relu
from bounds.region import LpBall


@pytest.mark.parametrize(("input_shape", "output_shape"), [((5,), (4,)), ((1, 5), (1, 4)), ((2, 5), (2, 4))])
def test_rows_are_those_of_the_adjoint(input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
    op = Linear(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    elements = torch.tensor([[3, 0, 2], [1, 1, 3]])
    found = op.unit_adjoint(elements, input_shape)
    if math.prod(input_shape) != 5:
        assert found is None
        return
    units = torch.eye(4)[elements].view(6, *output_shape)
    assert found is not None
    assert torch.equal(found[0], op.adjoint(units, input_shape)[0].view(2, 3, *input_shape))


@pytest.mark.parametrize("engine", [Crown(), FastLin(), Crown(dtype=torch.float64, intersect=False)])
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_bounds_stay_the_same(engine: Crown, p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes, nodes = (6, 9, 8, 3), [Node(Input(), (), (6,), "x")]
    for number, (wide, high) in enumerate(itertools.pairwise(sizes)):
        weight, bias = torch.randn(high, wide, generator=generator), torch.randn(high, generator=generator)
        nodes.append(Node(Linear(weight, bias), (len(nodes) - 1,), (high,), f"z{number}"))
        nodes.append(Node(Relu(), (len(nodes) - 1,), (high,), f"y{number}"))
    network = Network(tuple(nodes[:-1]))
    region = LpBall(torch.rand(3, 6, generator=generator), 0.2, p, (0.0, 1.0))
    looked_up = engine(network, region)
    monkeypatch.setattr(Linear, "unit_adjoint", Affine.unit_adjoint)
    multiplied = engine(network, region)
    for ours, theirs in zip(looked_up.intervals, multiplied.intervals, strict=True):
        assert torch.allclose(ours.lower, theirs.lower, atol=1e-4)
        assert torch.allclose(ours.upper, theirs.upper, atol=1e-4)
