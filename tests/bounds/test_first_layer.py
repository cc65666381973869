"""The first layer of a network on a small box far from zero: enclosed in exact arithmetic, and hardly wider than it has to be."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bounds.crown import Crown, FastLin
from bounds.network import Network
from bounds.ops.affine import Linear, Scale, Shift
from bounds.ops.piecewise import Relu
from bounds.region import Box, LpBall
from tests.bounds.networks import Draw, build


def far(seed: int) -> tuple[Network, Box]:
    """A linear layer behind a normalisation, and a box of width 2e-3 around values near 300."""
    draw = Draw(seed)
    network = build(
        (30,),
        (Shift(-draw.normal(30) * 3), (0,)),
        (Scale(draw.normal(30)), (1,)),
        (Linear(draw.normal(8, 30), draw.normal(8)), (2,)),
        (Relu(), (3,)),
        (draw.dense(2, 8), (4,)),
    )
    middle = 300 + draw.normal(2, 30).to(torch.float32)
    return network, Box(middle - 1e-3, middle + 1e-3)


def exact(network: Network, lower: Tensor, upper: Tensor) -> list[tuple[Fraction, Fraction]]:
    """What the linear layer can be at most and at least, with the parameters as they are stored."""
    shift, scale, linear = (network.nodes[i].op for i in (1, 2, 3))
    assert isinstance(shift, Shift)
    assert isinstance(scale, Scale)
    assert isinstance(linear, Linear)
    assert linear.offset is not None
    ends = [
        sorted(Fraction(float(s)) * (Fraction(float(x)) + Fraction(float(o))) for x in (low, high))
        for s, o, low, high in zip(scale.factor, shift.offset, lower, upper, strict=True)
    ]
    found = []
    for row, offset in zip(linear.weight, linear.offset, strict=True):
        terms = [sorted((Fraction(float(w)) * low, Fraction(float(w)) * high)) for w, (low, high) in zip(row, ends, strict=True)]
        found.append((Fraction(float(offset)) + sum(t[0] for t in terms), Fraction(float(offset)) + sum(t[1] for t in terms)))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("engine", [Crown, FastLin])
def test_a_small_box_far_from_zero(engine: type[Crown], seed: int, dtype: torch.dtype) -> None:
    network, box = far(seed)
    interval = engine(dtype)(network, box).intervals[3]
    for b in range(2):
        for j, (low, high) in enumerate(exact(network, box.lower[b], box.upper[b])):
            found = Fraction(float(interval.lower[b, j])), Fraction(float(interval.upper[b, j]))
            assert found[0] <= low
            assert high <= found[1]
            # The normalisation rounds its ends in the working type; in float32 that is a tenth of the box.
            assert found[1] - found[0] <= (high - low) * Fraction(12, 10) if dtype == torch.float32 else Fraction(1 + 10**-9) * (high - low)


def test_a_ball_that_the_domain_cuts_keeps_its_short_side() -> None:
    network = build((3,), (Linear(torch.ones(1, 3), torch.zeros(1)), (0,)), (Relu(), (1,)), (Linear(torch.ones(1, 1)), (2,)))
    ball = LpBall(torch.zeros(1, 3), 0.5, domain=(0.0, 1.0))
    interval = Crown()(network, ball).intervals[1]
    assert float(interval.lower) >= -1e-6
