"""Planes and intervals of curves, of the sign and of log-sum-exp against arbitrary-precision arithmetic, on ordinary and on adversarial intervals."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import flint
import pytest
import torch
from flint import arb, fmpq
from torch import Tensor

from bounds.errors import DomainError, NumericsError, UnsupportedOpError
from bounds.interval import Interval
from bounds.linear import Relaxation
from bounds.ops.base import Slopes
from bounds.ops.curves import Curve
from bounds.ops.functions import Atan, Cos, Elu, Erf, Exp, Log, Power, Sin, Softplus, Softsign
from bounds.ops.gated import Gelu, GeluTanh, Mish, Silu
from bounds.ops.sign import Sign
from bounds.ops.smooth import FLOAT32_ULPS
from bounds.ops.softmax import LogSumExp

DTYPES = [torch.float32, torch.float64]
CHOICES: list[Slopes] = ["adaptive", "parallel"]
Real = Callable[[arb], arb]


@dataclass(frozen=True)
class Case:
    """A curve, its real function, the numbers it is tried on, where its curvature changes, and how many points of a grid see all its waves."""

    op: Curve
    function: Real
    low: float
    high: float
    knots: tuple[float, ...] = ()
    grain: int = 24

    def __str__(self) -> str:
        return f"{self.op} on {self.low:g}..{self.high:g}"


def power(exponent: float) -> Real:
    """x^exponent for whole and other exponents."""
    if exponent == int(exponent):
        return lambda x: x ** int(exponent)
    return lambda x: arb(0) if x == 0 else x ** arb(exponent)


def gelu(x: arb) -> arb:
    return x * (-x / arb(2).sqrt()).erfc() / 2


def gelu_tanh(x: arb) -> arb:
    return x / (1 + (-2 * (2 / arb.pi()).sqrt() * (x + arb(fmpq(44715, 10**6)) * x * x * x)).exp())


def mish(x: arb) -> arb:
    n = x.exp() * (x.exp() + 2)
    return x * n / (n + 2)


def elu(alpha: float) -> Real:
    return lambda x: x if x > 0 else arb(alpha) * (x.exp() - 1)


CASES = [
    Case(Exp(), lambda x: x.exp(), -1e4, 80.0),
    Case(Log(), lambda x: x.log(), 1e-30, 1e30),
    Case(Power(-1.0), lambda x: 1 / x, 1e-12, 1e12),
    Case(Power(-1.0), lambda x: 1 / x, -1e12, -1e-12),
    Case(Power(0.5), lambda x: x.sqrt(), 0.0, 1e30),
    Case(Power(2.0), power(2), -1e6, 1e6, (0.0,)),
    Case(Power(3.0), power(3), -1e6, 1e6, (0.0,)),
    Case(Power(4.0), power(4), -1e6, 1e6, (0.0,)),
    Case(Power(-2.0), power(-2), 1e-6, 1e6),
    Case(Power(-2.0), power(-2), -1e6, -1e-6),
    Case(Power(-3.0), power(-3), -1e6, -1e-6),
    Case(Power(-0.5), power(-0.5), 1e-12, 1e12),
    Case(Power(1.5), power(1.5), 0.0, 1e6),
    Case(Power(0.25), power(0.25), 0.0, 1e6),
    Case(Erf(), lambda x: x.erf(), -1e3, 1e3, (0.0,)),
    Case(Atan(), lambda x: x.atan(), -1e6, 1e6, (0.0,)),
    Case(Softsign(), lambda x: x / (1 + abs(x)), -1e6, 1e6, (0.0,)),
    Case(Softplus(), lambda x: x.exp().log1p(), -1e3, 1e3),
    Case(Elu(), elu(1.0), -1e3, 1e3, (0.0,)),
    Case(Elu(0.3), elu(0.3), -1e3, 1e3, (0.0,)),
    Case(Elu(1.7), elu(1.7), -1e3, 1e3, (0.0,)),
    Case(Silu(), lambda x: x / (1 + (-x).exp()), -1e3, 1e3, (-2.3993572805154677, 2.3993572805154677, -1.2784645)),
    Case(Gelu(), gelu, -1e3, 1e3, (-math.sqrt(2), math.sqrt(2), -0.7517915)),
    Case(GeluTanh(), gelu_tanh, -1e3, 1e3, (-1.4185040087908284, 1.4185040087908284, -0.7524614)),
    Case(Mish(), mish, -1e3, 1e3, (-2.256376396360793, 1.4905711794854284, -1.1924312)),
    Case(Sin(), lambda x: x.sin(), -40.0, 40.0, (0.0, math.pi, math.pi / 2), 120),
    Case(Cos(), lambda x: x.cos(), -40.0, 40.0, (0.0, math.pi, math.pi / 2), 120),
]
COVERED = {type(case.op) for case in CASES} | {Sign, LogSumExp}
each_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def _precision() -> None:
    flint.ctx.prec = 256


def exact(value: float | Tensor) -> fmpq:
    return fmpq(*float(value).as_integer_ratio())


def intervals(case: Case, dtype: torch.dtype, seed: int = 0, count: int = 16) -> Interval:
    """Random intervals of widths from 1e-8 to 1e3 around numbers of every size, and hard ones at the domain's ends, at knots and beside them."""
    rng = random.Random(seed)
    pairs = [(0.3, 0.3), (-0.7, -0.7), (1.0, 1.0 + 1e-15), (-2.0, -2.0 + 1e-7), (-1e30, 1e30), (0.0, 1e-40), (-20.0, 1.0), (-1.0, 20.0)]
    for _ in range(count):
        centre, width = rng.gauss(0, 2) * rng.choice([1, 1, 0.01, 30]), 10 ** rng.uniform(-8, 3)
        share = rng.random()
        pairs.append((centre - share * width, centre + (1 - share) * width))
    for knot in map(float, torch.tensor([*case.knots, case.low, case.high, 0.0], dtype=dtype)):
        near = [float(torch.nextafter(torch.tensor(knot, dtype=dtype), torch.tensor(to, dtype=dtype))) for to in (-math.inf, math.inf)]
        pairs += [(knot, knot), (near[0], near[1]), (knot - 1, knot), (knot, knot + 1), (near[0], knot + 3), (knot - 9, near[1])]
    first, last = torch.tensor(case.low, dtype=dtype), torch.tensor(case.high, dtype=dtype)
    ends = torch.tensor(pairs, dtype=dtype).sort(dim=1).values.clamp(first, last)
    return Interval(ends[:, 0].unsqueeze(0), ends[:, 1].unsqueeze(0))


def rows(x: Interval, *others: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(t.squeeze(0).unbind() for t in (x.lower, x.upper, *others)), strict=True))


def grid(low: float, high: float, case: Case) -> list[fmpq]:
    """Points of [low, high]: evenly, geometrically from both ends, and around the knots."""
    first, last = exact(low), exact(high)
    width = last - first
    points = {first + width * k / case.grain for k in range(case.grain + 1)}
    points |= {first + width / 4**k for k in range(4, 28, 4)} | {last - width / 4**k for k in range(4, 28, 4)}
    if first < 0 < last:
        points |= {first / 16**k for k in range(1, 7)} | {last / 16**k for k in range(1, 7)}
    if first > 0:
        ratio = (float(high) / float(low)) ** (1 / 16)
        points |= {min(last, first * exact(ratio**k)) for k in range(1, 16)}
    if last < 0:
        ratio = (float(low) / float(high)) ** (1 / 16)
        points |= {max(first, last * exact(ratio**k)) for k in range(1, 16)}
    near = [exact(k + d) for k in case.knots for d in (-3.0, -1.5, -0.7, -0.2, 0.0, 0.2, 0.7, 1.5, 3.0)]
    return sorted(points | {p for p in near if first < p < last})


def largest(case: Case, low: Tensor, high: Tensor, slope: Tensor, side: int) -> arb:
    """The largest value of side (act(x) - slope x) that a grid and golden-section searches from its three highest peaks meet, in arbitrary precision."""
    d, points = arb(exact(slope)), grid(float(low), float(high), case)

    def height(p: arb) -> arb:
        return side * (case.function(p) - d * p)

    heights = [height(arb(p)) for p in points]
    rank = [-math.inf, *(float(h.mid()) for h in heights), -math.inf]
    peaks = [k for k in range(len(points)) if rank[k] <= rank[k + 1] >= rank[k + 2]]
    golden, met = (arb(5).sqrt() - 1) / 2, heights
    for best in sorted(peaks, key=lambda k: -rank[k + 1])[:3]:
        left, right = arb(points[max(best - 1, 0)]), arb(points[min(best + 1, len(points) - 1)])
        a, b = right - golden * (right - left), left + golden * (right - left)
        at_a, at_b = height(a), height(b)
        for _ in range(44):
            if at_a.mid() > at_b.mid():
                right, b, at_b = b, a, at_a
                a = right - golden * (right - left)
                at_a = height(a)
            else:
                left, a, at_a = a, b, at_b
                b = left + golden * (right - left)
                at_b = height(b)
        met += [at_a, at_b]
    return max(met, key=lambda v: v.mid())


def cuts(case: Case, x: Interval, r: Relaxation) -> tuple[list[int], list[float]]:
    """Indices of the intervals on which a plane cuts the curve, and by how much the other intercepts miss the best ones, relative above 1."""
    found, missed = [], []
    for index, (low, high, *planes) in enumerate(rows(x, r.lower_slope, r.lower_intercept, r.upper_slope, r.upper_intercept)):
        below = -largest(case, low, high, planes[0], -1) - arb(exact(planes[1]))
        above = arb(exact(planes[3])) - largest(case, low, high, planes[2], 1)
        # a ball holds the exact difference: negative for sure is a cut
        if below < 0 or above < 0:
            found.append(index)
        ends = max(abs(float(low)), abs(float(high)))
        size = 1 + max(abs(float(p)) * ends for p in (planes[0], planes[2])) + max(abs(float(p)) for p in (planes[1], planes[3]))
        missed.append(float(max(below.mid(), above.mid())) / size)
    return found, missed


@pytest.mark.parametrize("dtype, slopes", [(torch.float32, "adaptive"), (torch.float32, "parallel"), (torch.float64, "adaptive")])
@each_case
def test_planes_hold_and_are_tight(case: Case, dtype: torch.dtype, slopes: Slopes) -> None:
    x = intervals(case, dtype)
    r = case.op.relax(x, slopes)
    assert r.lower_slope.dtype == r.upper_intercept.dtype == dtype
    broken, missed = cuts(case, x, r)
    assert broken == []
    assert max(missed) < 1e-9 + 4 * torch.finfo(dtype).eps
    if slopes == "parallel":
        assert torch.equal(r.lower_slope, r.upper_slope)


@each_case
def test_any_slope_gives_planes_that_hold(case: Case) -> None:
    """Also slopes that the curve never has."""
    x = intervals(case, torch.float32, seed=3, count=20)
    least, most = case.op.slope_range(x)
    share = torch.rand(x.lower.shape, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.3
    slope = least + share * (most - least)
    broken, _ = cuts(case, x, case.op.fit(x, slope, -slope))
    assert broken == []


@each_case
def test_adaptive_planes_are_the_hulls_over_the_midpoint(case: Case) -> None:
    """No line through two points of the curve, or tangent at one, is further out there by more than the search leaves."""
    x = intervals(case, torch.float64, seed=4, count=30)
    middle = (x.lower + x.upper) / 2
    r, both = case.op.relax(x), case.op.relax(x, "parallel")
    kept = (x.upper - x.lower < 50) & (x.upper - x.lower > 1e-6)
    for slope, intercept, other, side in (
        (r.upper_slope, r.upper_intercept, both.upper_slope * middle + both.upper_intercept, 1),
        (r.lower_slope, r.lower_intercept, both.lower_slope * middle + both.lower_intercept, -1),
    ):
        height = slope * middle + intercept
        scale = 1 + intercept.abs() + other.abs() + ((slope.abs() + both.upper_slope.abs()) * middle.abs())
        kept = kept & (slope.abs() < 2.0**59)  # where slopes are not cut
        assert bool((side * (height - other) <= 1e-9 * scale)[kept].all())
        for nudge in (0.9, 0.99, 1.01, 1.1):
            tried = case.op.fit(x, slope * nudge, slope * nudge)
            value = slope * nudge * middle + (tried.upper_intercept if side == 1 else tried.lower_intercept)
            assert bool((side * (height - value) <= 3e-3 * (x.upper - x.lower) * (1 + slope.abs()) + 1e-9 * scale)[kept].all())


@pytest.mark.parametrize("dtype", DTYPES)
@each_case
def test_intervals_contain_and_are_tight(case: Case, dtype: torch.dtype) -> None:
    x = intervals(case, dtype, seed=8, count=6)
    y = case.op.interval(x)
    zero = torch.tensor(0.0)
    for low, high, least, most in rows(x, y.lower, y.upper):
        bottom, top = -largest(case, low, high, zero, -1), largest(case, low, high, zero, 1)
        assert not bottom < arb(exact(least))
        assert not top > arb(exact(most))
        slack = 1e-9 + 8 * torch.finfo(dtype).eps
        assert float((bottom - arb(exact(least))).mid()) <= slack * (1 + abs(float(least)))
        assert float((arb(exact(most)) - top).mid()) <= slack * (1 + abs(float(most)))
    assert bool((y.lower >= case.op.least).all() and (y.upper <= case.op.most).all())


def nudged(values: Tensor, to: float, ulps: int) -> Tensor:
    for _ in range(ulps):
        values = torch.nextafter(values, torch.full_like(values, to))
    return values


MUTATIONS: dict[str, Callable[[Relaxation], Relaxation]] = {
    "upper intercept moved in": lambda r: replace(r, upper_intercept=nudged(r.upper_intercept, -math.inf, 64)),
    "lower intercept moved in": lambda r: replace(r, lower_intercept=nudged(r.lower_intercept, math.inf, 64)),
    "upper slope's sign": lambda r: replace(r, upper_slope=-r.upper_slope),
    "planes swapped": lambda r: Relaxation(r.upper_slope, r.upper_intercept, r.lower_slope, r.lower_intercept),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("case", [CASES[i] for i in (0, 1, 5, 15, 16)], ids=str)
def test_planted_bugs_are_caught(case: Case, mutation: str) -> None:
    x = intervals(case, torch.float32, seed=7, count=25)
    broken, _ = cuts(case, x, MUTATIONS[mutation](case.op.relax(x, "parallel")))
    assert len(broken) >= 0.2 * x.lower.numel()


@each_case
def test_kernels_are_as_accurate_as_stated(case: Case) -> None:
    """Values and derivatives in float64 against arbitrary precision; derivatives by a difference quotient of tiny steps there."""
    rng = torch.Generator().manual_seed(0)
    spread = torch.randn(400, generator=rng, dtype=torch.float64) * 10.0 ** torch.linspace(-12, 4, 400, dtype=torch.float64)
    x = torch.cat([spread, torch.randn(600, generator=rng, dtype=torch.float64) * 3, torch.linspace(-30, 30, 241, dtype=torch.float64)])
    x = x.clamp(case.low, case.high)
    x = x[x != 0]
    values, derivatives = case.op.value(x), case.op.derivative(x)
    allowed, steep = case.op.value_error(x, values), case.op.derivative_error(x, derivatives)
    step = arb(2) ** -90
    for point, value, error, derivative, other in zip(*(t.tolist() for t in (x, values, allowed, derivatives, steep)), strict=True):
        p = arb(exact(point))
        h = step * max(abs(p).mid(), arb(2) ** -40)
        assert abs(case.function(p) - arb(value)) < arb(error)
        quotient = (case.function(p + h) - case.function(p - h)) / (2 * h)
        assert abs(quotient - arb(derivative)) < arb(other) + abs(quotient) * arb(2) ** -70 + arb(2) ** -160


@each_case
def test_float32_executions_stay_within_their_allowance(case: Case) -> None:
    rng = torch.Generator().manual_seed(2)
    x = torch.cat([torch.randn(2000, generator=rng) * s for s in (0.01, 1.0, 20.0)]).clamp(case.low, case.high)
    error = (case.op.forward(x).double() - case.op.forward(x.double())).abs()
    assert bool((error <= case.op.float_error(Interval(x.unsqueeze(0), x.unsqueeze(0))).squeeze(0)).all())


@each_case
def test_the_best_plane_touches_where_it_says(case: Case) -> None:
    """`touching` names points at one of which the extreme is, for slopes of the range."""
    x = intervals(case, torch.float64, seed=5, count=30)
    least, most = case.op.slope_range(x)
    slope = least + (most - least) * torch.rand(x.lower.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    planes = case.op.fit(x, slope, slope)
    for below, intercept in ((True, planes.lower_intercept), (False, planes.upper_intercept)):
        points = torch.stack(torch.broadcast_tensors(*case.op.touching(x, slope, below=below)))
        assert bool(((points >= x.lower) & (points <= x.upper)).all())
        heights = case.op.value(points) - slope * points
        best = heights.amin(0) if below else heights.amax(0)
        size = 1 + (slope * x.magnitude).abs() + intercept.abs()
        assert bool(((best - intercept).abs() <= 1e-9 * size).all())


def test_waves_far_from_the_origin_are_enclosed() -> None:
    x = Interval(torch.tensor([[1e6, -1e8, 1e12, -3e5]]), torch.tensor([[1e6 + 1, -1e8, 1e13, 4e5]]))
    for op in (Sin(), Cos()):
        y, r = op.interval(x), op.relax(x)
        assert bool((y.lower == -1).all() and (y.upper == 1).all())
        points = x.lower + (x.upper - x.lower) * torch.linspace(0, 1, 400).unsqueeze(1)
        values = op.value(points.double())
        assert bool((r.lower_slope * points.double() + r.lower_intercept <= values).all())
        assert bool((r.upper_slope * points.double() + r.upper_intercept >= values).all())


@pytest.mark.parametrize(
    "op, low, high, name",
    [
        (Power(-1.0), -1.0, 2.0, "Reciprocal"),
        (Power(-2.0), 0.0, 1.0, r"Power\(-2\)"),
        (Power(0.5), -1e-9, 1.0, "Sqrt"),
        (Power(0.3), -1.0, -0.5, r"Power\(0.3\)"),
        (Power(-0.5), 0.0, 1.0, r"Power\(-0.5\)"),
        (Log(), 0.0, 1.0, "Log"),
    ],
)
def test_intervals_beyond_the_domain_are_refused(op: Curve, low: float, high: float, name: str) -> None:
    x = Interval(torch.tensor([[low]]), torch.tensor([[high]]))
    for method in (op.interval, op.relax):
        with pytest.raises(DomainError, match=f"{name} is not defined on all of .* take a smaller region, or split it"):
            method(x)


def test_bounds_that_are_not_numbers_are_refused() -> None:
    for op in (Exp(), Gelu(), Sign(), LogSumExp()):
        with pytest.raises(NumericsError, match=f"{type(op).__name__} met a NaN or infinite bound"):
            op.relax(Interval(torch.tensor([[0.0]]), torch.tensor([[math.nan]])))


def test_powers_that_are_no_curves_are_refused() -> None:
    for exponent in (0.0, 1.0, math.inf, math.nan):
        with pytest.raises(UnsupportedOpError, match="a power's exponent is a number other than 0 and 1"):
            Power(exponent)


# ---------------------------------------------------------------------------------------------------------------------------- sign


def sign_intervals() -> Interval:
    tiny = torch.finfo(torch.float32).smallest_normal
    pairs = [
        (-1.0, 2.0),
        (-2.0, 1.0),
        (0.0, 1.0),
        (-1.0, 0.0),
        (0.0, 0.0),
        (-tiny, tiny),
        (-3.0, -1.0),
        (0.5, 0.5),
        (-1e-8, 3.0),
        (-1e30, 1e30),
    ]
    ends = torch.tensor(pairs)
    return Interval(ends[:, 0].unsqueeze(0), ends[:, 1].unsqueeze(0))


@pytest.mark.parametrize("slopes", CHOICES)
def test_sign_planes_hold_exactly(slopes: Slopes) -> None:
    x, rng = sign_intervals(), random.Random(1)
    r = Sign().relax(x, slopes)
    y = Sign().interval(x)
    for low, high, a, b, c, d, least, most in rows(x, r.lower_slope, r.lower_intercept, r.upper_slope, r.upper_intercept, y.lower, y.upper):
        first, last = exact(low), exact(high)
        shares = [fmpq(rng.randrange(1001), 1000) for _ in range(10)] + [fmpq(0), fmpq(1)]
        points = {first + s * (last - first) for s in shares} | {
            p for p in (fmpq(-1, 10**50), fmpq(0), fmpq(1, 10**50)) if first <= p <= last
        }
        for p in points:
            value = fmpq((p > 0) - (p < 0))
            assert exact(a) * p + exact(b) <= value <= exact(c) * p + exact(d)
            assert exact(least) <= value <= exact(most)
        gap = (exact(c) - exact(a)) * (first + last) / 2 + exact(d) - exact(b)
        assert gap <= 2 + fmpq(1, 10**5)


def test_sign_is_stable_beside_its_jump() -> None:
    assert Sign().unstable(sign_intervals()).tolist() == [[True, True, True, True, False, True, False, False, True, True]]


# --------------------------------------------------------------------------------------------------------------------- log-sum-exp


def lse_intervals(dtype: torch.dtype) -> Interval:
    rng = torch.Generator().manual_seed(3)
    lower = torch.randn(1, 24, 3, generator=rng, dtype=dtype) * torch.logspace(-4, 2, 24, dtype=dtype)[:, None]
    width = torch.rand(1, 24, 3, generator=rng, dtype=dtype) * torch.logspace(1, -6, 24, dtype=dtype)[:, None]
    width[0, ::5] = 0.0
    lower[0, 3], width[0, 3] = -300.0, 600.0
    lower[0, 4] = torch.tensor([0.0, -2000.0, -2000.0])
    width[0, 4] = torch.tensor([0.0, 4000.0, 1.0])
    return Interval(lower, lower + width)


def lse(point: tuple[fmpq, ...]) -> arb:
    top = max(point)
    return arb(top) + sum((arb(p - top).exp() for p in point), arb(0)).log()


@pytest.mark.parametrize("slopes", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_sum_exp_planes_hold(dtype: torch.dtype, slopes: Slopes) -> None:
    """LSE(x) - <s, x> is convex: its supremum is at a vertex. Below, vertices, the midpoint and samples are tried."""
    x, rng = lse_intervals(dtype), random.Random(4)
    r, y = LogSumExp().relax(x, slopes), LogSumExp().interval(x)
    for k in range(x.lower.shape[1]):
        low, high = ([exact(v) for v in side[0, k]] for side in (x.lower, x.upper))
        slope_low, slope_high = ([exact(v) for v in side[0, k]] for side in (r.lower_slope, r.upper_slope))
        below, above = arb(exact(r.lower_intercept[0, k])), arb(exact(r.upper_intercept[0, k]))
        points = list(itertools.product(*zip(low, high, strict=True)))
        points += [tuple((a + b) / 2 for a, b in zip(low, high, strict=True))]
        points += [tuple(a + fmpq(rng.randrange(101), 100) * (b - a) for a, b in zip(low, high, strict=True)) for _ in range(8)]
        for point in points:
            value = lse(point)
            planes = [arb(sum((s * p for s, p in zip(slopes_, point, strict=True)), fmpq(0))) for slopes_ in (slope_low, slope_high)]
            assert not value < planes[0] + below
            assert not value > planes[1] + above
            assert not value < arb(exact(y.lower[0, k]))
            assert not value > arb(exact(y.upper[0, k]))


def test_log_sum_exp_planes_are_tight() -> None:
    """Exact at a point; the tangent touches at the midpoint; the upper plane's height there is the least of its kind."""
    x = lse_intervals(torch.float64)
    r = LogSumExp().relax(x)
    middle = (x.lower + x.upper) / 2
    value = torch.logsumexp(middle, -1)
    low, high = ((s * middle).sum(-1) + t for s, t in ((r.lower_slope, r.lower_intercept), (r.upper_slope, r.upper_intercept)))
    size = 1 + middle.abs().amax(-1)
    assert bool(((value - low).abs() <= 1e-13 * size * (1 + (x.upper - x.lower).amax(-1))).all())
    expected = torch.logsumexp(torch.cat([x.lower, x.upper], -1), -1) - math.log(2)
    assert bool(((high - expected).abs() <= 1e-13 * size * (1 + (x.upper - x.lower).amax(-1))).all())
    points = (x.lower == x.upper).all(-1)
    assert bool(points.any() and ((high - low)[points] <= 1e-13 * size[points]).all())


def test_log_sum_exp_in_float32_stays_within_its_allowance() -> None:
    for spread in (0.1, 5.0, 50.0):
        x = torch.randn(200, 17, generator=torch.Generator().manual_seed(1)) * spread
        error = (LogSumExp().forward(x).double() - LogSumExp().forward(x.double())).abs()
        assert bool((error <= LogSumExp().float_error(Interval(x, x))).all())


def test_a_float32_softmax_stays_within_the_allowances_of_its_parts() -> None:
    """exp(x - LSE(x)) with the argument's and the kernel's allowances covers a softmax that subtracts its largest entry first."""
    for spread in (0.1, 5.0, 50.0):
        x = torch.randn(300, 17, generator=torch.Generator().manual_seed(2)) * spread
        z = x.double() - torch.logsumexp(x.double(), -1, keepdim=True)
        error = (torch.softmax(x, -1).double() - z.exp()).abs()
        point = Interval(z.float().unsqueeze(0), z.float().unsqueeze(0))
        assert bool((error <= Exp().float_error(point).squeeze(0) * (1 + FLOAT32_ULPS * 1e-7)).all())
