"""Activations with lines in place of some elements: every method mixes the line's answer and the activation's own."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bounds.alpha import AlphaCrown
from bounds.crown import Crown, FastLin
from bounds.engine import BoundEngine
from bounds.errors import UnsupportedOpError
from bounds.ibp import Ibp
from bounds.interval import Interval
from bounds.ops.base import Activation
from bounds.ops.gated import Gelu
from bounds.ops.piecewise import Clip, MaxReduce, PRelu, Relu
from bounds.ops.smooth import Sigmoid, Tanh
from bounds.ops.substituted import Line, Substituted, SubstitutedPiecewise, substituted
from bounds.region import LpBall
from tests.bounds.networks import Draw, chain

MASK = torch.tensor([True, False, True, False, True])
SLOPE = torch.tensor([0.3, 9.0, 0.0, 9.0, -1.5], dtype=torch.float64)
INTERCEPT = torch.tensor([0.1, 9.0, 0.7, 9.0, 0.0], dtype=torch.float64)
OPS: list[Activation] = [Relu(), Clip(-0.5, 0.5), PRelu(torch.linspace(0.1, 0.5, 5)), Sigmoid(), Tanh(), Gelu()]
each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: type(op).__name__)


def mixed(op: Activation) -> Substituted:
    return substituted(op, MASK, SLOPE, INTERCEPT)


def intervals() -> Interval:
    ends = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).sort(0).values
    return Interval(ends[0], ends[1])


def inside(x: Interval, count: int = 30) -> Tensor:
    share = torch.rand(count, *x.lower.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.cat([x.lower[None], x.upper[None], x.lower + share * x.width])


@each_op
def test_values_are_the_lines_where_pruned_and_the_activation_elsewhere(op: Activation) -> None:
    x = intervals().lower
    assert torch.equal(mixed(op).forward(x), torch.where(MASK, SLOPE * x + INTERCEPT, op.to(torch.float64).forward(x)))


@each_op
@pytest.mark.parametrize("slopes", ["adaptive", "parallel"])
def test_planes_and_intervals_hold_and_lines_are_exact(op: Activation, slopes: str) -> None:
    x, act = intervals(), mixed(op)
    points, values, planes = inside(x), act.forward(inside(x)), act.relax(x, slopes)  # type: ignore[arg-type]
    allowance = 1e-12 * (1 + values.abs())
    assert bool((values >= planes.lower_slope * points + planes.lower_intercept - allowance).all())
    assert bool((values <= planes.upper_slope * points + planes.upper_intercept + allowance).all())
    assert torch.equal(planes.lower_slope[:, MASK], SLOPE[MASK].expand(40, 3))
    assert torch.equal(planes.lower_slope[:, MASK], planes.upper_slope[:, MASK])
    assert torch.equal(planes.lower_intercept[:, MASK], planes.upper_intercept[:, MASK])
    reach = act.interval(x)
    assert bool((values >= reach.lower - allowance).all())
    assert bool((values <= reach.upper + allowance).all())
    ends = torch.stack([SLOPE * x.lower + INTERCEPT, SLOPE * x.upper + INTERCEPT])
    assert torch.allclose(reach.lower[:, MASK], ends.amin(0)[:, MASK], atol=1e-12)
    assert torch.allclose(reach.upper[:, MASK], ends.amax(0)[:, MASK], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_intervals_and_planes_of_lines_hold_in_exact_arithmetic(dtype: torch.dtype) -> None:
    x, line = intervals().to(dtype), Line(SLOPE, INTERCEPT).to(dtype)
    reach, planes = line.interval(x), line.fit(x, torch.full_like(x.lower, 0.1), torch.full_like(x.lower, 0.7))
    for row in range(40):
        for k in range(5):
            slope, intercept = Fraction(line.slope[k].item()), Fraction(line.intercept[k].item())
            for end in (x.lower, x.upper):
                point = Fraction(end[row, k].item())
                y = slope * point + intercept
                assert Fraction(reach.lower[row, k].item()) <= y <= Fraction(reach.upper[row, k].item())
                low = Fraction(planes.lower_slope[row, k].item()) * point + Fraction(planes.lower_intercept[row, k].item())
                high = Fraction(planes.upper_slope[row, k].item()) * point + Fraction(planes.upper_intercept[row, k].item())
                assert low <= y <= high


@each_op
def test_any_chosen_slopes_give_planes_that_hold(op: Activation) -> None:
    x, act = intervals(), mixed(op)
    least, most = act.slope_range(x)
    for share in (0.0, 0.4, 1.0):
        slope = least + share * (most - least)
        planes, points = act.fit(x, slope, slope), inside(x)
        values = act.forward(points)
        assert bool((values >= planes.lower_slope * points + planes.lower_intercept - 1e-12).all())
        assert bool((values <= planes.upper_slope * points + planes.upper_intercept + 1e-12).all())
        lowest = torch.stack([act.forward(p) - slope * p for p in act.touching(x, slope, below=True)]).amin(0)
        assert bool((lowest[:, MASK] <= (values - slope * points).amin(0)[:, MASK] + 1e-12).all())


@each_op
def test_pruned_elements_are_never_unstable(op: Activation) -> None:
    x = Interval(torch.full((1, 5), -3.0), torch.full((1, 5), 3.0))
    assert mixed(op).to(torch.float32).unstable(x)[0].tolist() == (~MASK).tolist()


@each_op
@pytest.mark.parametrize(
    "engine", [Ibp(torch.float64), Crown(torch.float64), FastLin(torch.float64), AlphaCrown(torch.float64)], ids=lambda e: type(e).__name__
)
def test_engines_bound_networks_with_lines(op: Activation, engine: BoundEngine) -> None:
    draw = Draw(5)
    network = chain((3,), draw.dense(5, 3), mixed(op), draw.dense(5, 5), mixed(op), draw.dense(2, 5)).to(torch.float64)
    ball = LpBall(torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64))
    found, y = engine(network, ball).objective, network(ball.sample(500, torch.Generator().manual_seed(1)).reshape(-1, 3))
    assert bool((y >= found.lower).all())
    assert bool((y <= found.upper).all())


def test_what_is_pruned_stays_pruned() -> None:
    again = substituted(mixed(Relu()), torch.tensor([True, True, False, False, False]), SLOPE * 0 + 5, INTERCEPT * 0 + 5)
    assert isinstance(again, SubstitutedPiecewise)
    assert isinstance(again.act, Relu)
    assert again.pruned.tolist() == [True, True, True, False, True]
    assert again.slope[again.pruned].tolist() == [pytest.approx(0.3), 5.0, 0.0, -1.5]


def test_elements_can_be_chosen() -> None:
    act, x = mixed(PRelu(torch.linspace(0.1, 0.5, 5))), intervals().lower
    columns = torch.tensor([4, 1])
    assert torch.equal(act.at(columns, (5,)).forward(x[:, columns]), act.forward(x)[:, columns])


def test_a_maximum_is_not_replaced() -> None:
    with pytest.raises(UnsupportedOpError, match="MaxReduce is not an element-wise activation"):
        mixed(MaxReduce())


def test_planted_error_in_a_line_is_caught() -> None:
    x = intervals()
    wrong = Line(SLOPE, INTERCEPT + 1e-9).relax(x)
    points = inside(x)
    assert not bool((SLOPE * points + INTERCEPT >= wrong.lower_slope * points + wrong.lower_intercept - 1e-12).all())
