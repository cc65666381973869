"""Every activation's planes and intervals against exact arithmetic, on ordinary and on adversarial intervals."""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import pkgutil
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import flint
import pytest
import torch
from flint import arb, fmpq
from torch import Tensor

import bounds.ops
from bounds.interval import Interval
from bounds.linear import Relaxation
from bounds.ops.base import Activation, Slopes
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, MaxReduce, PRelu, Relu
from bounds.ops.smooth import Sigmoid, Smooth, Tanh
from bounds.ops.substituted import Line, Substituted, SubstitutedPiecewise
from tests.batteries.test_curves import COVERED as CURVES

DTYPES = [torch.float32, torch.float64]
CHOICES: list[Slopes] = ["adaptive", "parallel"]
TENTH = torch.tensor(0.1, dtype=torch.float32)


def exact(value: float | Tensor) -> fmpq:
    return fmpq(*float(value).as_integer_ratio())


def leaky(slope: float) -> Callable[[fmpq], fmpq]:
    return lambda x: x if x > 0 else exact(slope) * x


def clipped(low: float, high: float) -> Callable[[fmpq], fmpq]:
    def value(x: fmpq) -> fmpq:
        x = exact(low) if math.isfinite(low) and x < exact(low) else x
        return exact(high) if math.isfinite(high) and x > exact(high) else x

    return value


@dataclass(frozen=True)
class Case:
    """An activation, its real function written independently of its data, and where its slope changes."""

    op: Activation
    function: Callable[[fmpq], fmpq]
    knots: tuple[float, ...] = (0.0,)

    def __str__(self) -> str:
        return f"{type(self.op).__name__}-{self.knots}"


PIECEWISE = [
    Case(Relu(), lambda x: max(x, fmpq(0))),
    Case(Abs(), abs),
    Case(LeakyRelu(0.01), leaky(0.01)),
    Case(LeakyRelu(-0.5), leaky(-0.5)),
    Case(LeakyRelu(2.0), leaky(2.0)),
    Case(PRelu(TENTH), leaky(float(TENTH))),
    Case(Clip(0.0, 6.0), clipped(0.0, 6.0), (0.0, 6.0)),
    Case(Clip(-0.3, 0.7), clipped(-0.3, 0.7), (-0.3, 0.7)),
    Case(Clip(-math.inf, 1.0), clipped(-math.inf, 1.0), (1.0,)),
    Case(Clip(torch.tensor(-1.0), torch.tensor(math.inf)), clipped(-1.0, math.inf), (-1.0,)),
    Case(SubstitutedPiecewise(Clip(-1.0, 1.0), torch.tensor(False), TENTH, TENTH), clipped(-1.0, 1.0), (-1.0, 1.0)),
    Case(Clip(torch.tensor(0.1), TENTH + 1), clipped(float(TENTH), float(TENTH + 1)), (float(TENTH), float(TENTH + 1))),
]
SMOOTH: list[Smooth] = [Sigmoid(), Tanh()]


def concrete_activations() -> set[type]:
    for module in pkgutil.iter_modules(bounds.ops.__path__):
        importlib.import_module(f"bounds.ops.{module.name}")
    found, stack = set(), [Activation]
    while stack:
        kind = stack.pop()
        stack.extend(kind.__subclasses__())
        if kind.__module__.startswith("bounds.") and not inspect.isabstract(kind):
            found.add(kind)
    return found


def test_every_activation_is_in_this_battery() -> None:
    covered = (
        {type(case.op) for case in PIECEWISE} | {type(op) for op in SMOOTH} | {MaxReduce, Line, Substituted} | CURVES
    )  # the lines have tests/bounds/test_substituted.py
    assert covered == concrete_activations()


def intervals(knots: tuple[float, ...], dtype: torch.dtype, seed: int = 0, count: int = 60) -> Interval:
    """Random intervals of widths from 1e-8 to 1e3, and the hard ones around every knot, all in `dtype`."""
    rng = random.Random(seed)
    pairs: list[tuple[float, float]] = []
    for _ in range(count):
        centre, width = rng.gauss(0, 2) * rng.choice([1, 1, 0.01]), 10 ** rng.uniform(-8, 3)
        share = rng.random()
        pairs.append((centre - share * width, centre + (1 - share) * width))
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max ** 0.8
    subnormal = tiny * torch.finfo(dtype).eps
    for knot in map(float, torch.tensor([*knots, 0.0], dtype=dtype)):
        near = [float(torch.nextafter(torch.tensor(knot, dtype=dtype), torch.tensor(to, dtype=dtype))) for to in (-math.inf, math.inf)]
        pairs += [
            (knot, knot),
            (near[0], near[1]),
            (near[0], knot),
            (knot, near[1]),
            (knot - 1, knot),
            (knot, knot + 1),
            (near[0], 3.0 + knot),
        ]
        pairs += [(knot - 1e-3, near[1]), (-huge, huge), (-huge, knot), (knot, huge), (-huge, near[1]), (near[0], huge)]
    pairs += [
        (-subnormal, subnormal),
        (-3 * subnormal, tiny),
        (-tiny, 1.0),
        (-1.0, subnormal),
        (0.5, 0.5),
        (-0.1, -0.1),
        (1e4 - 1, 1e4),
        (-1e4, -9e3),
    ]
    ends = torch.tensor(pairs, dtype=dtype).sort(dim=1).values
    return Interval(ends[:, 0].unsqueeze(0), ends[:, 1].unsqueeze(0))


def sample(lower: Tensor, upper: Tensor, count: int, rng: random.Random) -> list[fmpq]:
    """Points of [lower, upper]: the ends and rational points between them."""
    low, high = exact(lower), exact(upper)
    shares = [fmpq(rng.randrange(1001), 1000) for _ in range(count)]
    return [low, high, *(low + share * (high - low) for share in shares)]


def rows(x: Interval, *others: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(t.squeeze(0).unbind() for t in (x.lower, x.upper, *others)), strict=True))


def broken(case: Case, x: Interval, r: Relaxation) -> list[int]:
    """Indices of the intervals on which a plane cuts the function: at an end, a knot or a sampled point."""
    rng, found = random.Random(1), []
    for index, (low, high, *planes) in enumerate(rows(x, r.lower_slope, r.lower_intercept, r.upper_slope, r.upper_intercept)):
        a, b, c, d = (exact(p) for p in planes)
        points = sample(low, high, 12, rng) + [exact(k) for k in case.knots if float(low) < k < float(high)]
        if any(not a * p + b <= case.function(p) <= c * p + d for p in points):
            found.append(index)
    return found


@pytest.mark.parametrize("slopes", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PIECEWISE, ids=str)
def test_piecewise_planes_hold_exactly(case: Case, dtype: torch.dtype, slopes: Slopes) -> None:
    x = intervals(case.knots, dtype)
    r = case.op.relax(x, slopes)
    assert r.lower_slope.dtype == r.upper_intercept.dtype == dtype
    assert broken(case, x, r) == []
    if slopes == "parallel":
        assert torch.equal(r.lower_slope, r.upper_slope)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PIECEWISE, ids=str)
def test_piecewise_planes_hold_exactly_on_a_gpu(case: Case, dtype: torch.dtype) -> None:
    x = intervals(case.knots, dtype)
    r = case.op.to(dtype, "cuda").relax(Interval(x.lower.cuda(), x.upper.cuda()))
    assert broken(case, x, Relaxation(r.lower_slope.cpu(), r.lower_intercept.cpu(), r.upper_slope.cpu(), r.upper_intercept.cpu())) == []


@pytest.mark.parametrize("slopes", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PIECEWISE, ids=str)
def test_piecewise_planes_are_tight(case: Case, dtype: torch.dtype, slopes: Slopes) -> None:
    """No intercept is further from the best one for its slope than a few roundings; a stable neuron's is exact."""
    x = intervals(case.knots, dtype)
    r = case.op.relax(x, slopes)
    unstable = case.op.unstable(x).squeeze(0)
    roundoff = exact(torch.finfo(dtype).eps)
    for index, (low, high, *planes) in enumerate(rows(x, r.lower_slope, r.lower_intercept, r.upper_slope, r.upper_intercept)):
        a, b, c, d = (exact(p) for p in planes)
        points = [exact(low), exact(high)] + [exact(k) for k in case.knots if float(low) < k < float(high)]
        inner = [k for k in case.knots if float(low) < k < float(high)]
        assert bool(unstable[index]) == bool(inner)
        best_low, best_high = (min(case.function(p) - a * p for p in points), max(case.function(p) - c * p for p in points))
        if not inner:
            assert a == c
        scale = max(max(abs(a * p), abs(c * p), abs(case.function(p))) for p in points)
        slack = (4 if inner else 1) * roundoff * scale + exact(torch.finfo(dtype).smallest_normal) * (8 if inner else roundoff)
        assert best_low - b <= slack
        assert d - best_high <= slack


def nudged(values: Tensor, to: float, ulps: int) -> Tensor:
    for _ in range(ulps):
        values = torch.nextafter(values, torch.full_like(values, to))
    return values


MUTATIONS: dict[str, Callable[[Relaxation], Relaxation]] = {
    "upper intercept moved in": lambda r: replace(r, upper_intercept=nudged(r.upper_intercept, -math.inf, 16)),
    "lower intercept moved in": lambda r: replace(r, lower_intercept=nudged(r.lower_intercept, math.inf, 16)),
    "upper slope less steep": lambda r: replace(r, upper_slope=nudged(r.upper_slope, -math.inf, 32)),
    "upper slope steeper": lambda r: replace(r, upper_slope=nudged(r.upper_slope, math.inf, 32)),
    "lower slope less steep": lambda r: replace(r, lower_slope=nudged(r.lower_slope, -math.inf, 32)),
    "lower slope steeper": lambda r: replace(r, lower_slope=nudged(r.lower_slope, math.inf, 32)),
    "upper slope's sign": lambda r: replace(r, upper_slope=-r.upper_slope),
    "lower slope's sign": lambda r: replace(r, lower_slope=-r.lower_slope),
    "planes swapped": lambda r: Relaxation(r.upper_slope, r.upper_intercept, r.lower_slope, r.lower_intercept),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [PIECEWISE[i] for i in (0, 2, 6)], ids=str)
def test_planted_bugs_in_piecewise_planes_are_caught(case: Case, dtype: torch.dtype, mutation: str) -> None:
    x = intervals(case.knots, dtype)
    r = case.op.relax(x, "parallel")
    caught = broken(case, x, MUTATIONS[mutation](r))
    assert len(caught) >= 0.2 * x.lower.numel()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PIECEWISE, ids=str)
def test_piecewise_intervals_and_values(case: Case, dtype: torch.dtype) -> None:
    """The interval is the exact range up to a few roundings; forward agrees with the real function up to two."""
    x = intervals(case.knots, dtype)
    y = case.op.interval(x)
    rng, eps = random.Random(2), exact(torch.finfo(dtype).eps)
    for low, high, least, most in rows(x, y.lower, y.upper):
        points = sample(low, high, 4, rng) + [exact(k) for k in case.knots if float(low) < k < float(high)]
        values = [case.function(p) for p in points]
        assert exact(least) <= min(values)
        assert max(values) <= exact(most)
        slack = exact(torch.finfo(dtype).smallest_normal) * 4 * isinstance(case.op, LeakyRelu | PRelu)
        assert min(values) - exact(least) <= 4 * eps * abs(min(values)) + slack
        assert exact(most) - max(values) <= 4 * eps * abs(max(values)) + slack
    for point, value in zip(x.lower.flatten(), case.op.forward(x.lower).flatten(), strict=True):
        assert abs(case.function(exact(point)) - exact(value)) <= eps * abs(exact(value)) + exact(torch.finfo(dtype).smallest_normal)


@pytest.mark.parametrize("case", PIECEWISE, ids=str)
def test_piecewise_float32_executions_stay_within_their_allowance(case: Case) -> None:
    x = intervals(case.knots, torch.float32)
    allowance = case.op.float_error(x)
    values = case.op.forward(x.upper)
    for point, value, error in zip(x.upper.flatten(), values.flatten(), allowance.flatten(), strict=True):
        assert abs(case.function(exact(point)) - exact(value)) <= exact(error)


# ---------------------------------------------------------------------------------------------------------------------------- ReLU


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_is_the_textbook_relaxation(dtype: torch.dtype) -> None:
    """Thesis (3.4) for parallel slopes, CROWN's choice for adaptive ones; the lower intercept is exactly 0."""
    x = intervals((0.0,), dtype)
    parallel, adaptive = Relu().relax(x, "parallel"), Relu().relax(x, "adaptive")
    assert not parallel.lower_intercept.any()
    assert not adaptive.lower_intercept.any()
    assert torch.equal(adaptive.upper_slope, parallel.upper_slope)
    assert torch.equal(adaptive.upper_intercept, parallel.upper_intercept)
    for low, high, slope, above, lower_slope in rows(x, parallel.upper_slope, parallel.upper_intercept, adaptive.lower_slope):
        if low >= 0 or high <= 0:
            assert float(above) == 0
            assert float(slope) == float(lower_slope) == (1 if low >= 0 else 0)
            continue
        l, u = exact(low), exact(high)  # noqa: E741
        normal = exact(torch.finfo(dtype).smallest_normal)
        assert abs(exact(slope) - u / (u - l)) <= exact(torch.finfo(dtype).eps) * (u / (u - l)) + normal
        assert abs(exact(above) + u * l / (u - l)) <= 4 * exact(torch.finfo(dtype).eps) * max(-l, u) + 4 * normal
        assert float(lower_slope) == (1 if u > -l else 0)


# ------------------------------------------------------------------------------------------------------------------------- maximum


def windows(dtype: torch.dtype, count: int = 60) -> Interval:
    rng = torch.Generator().manual_seed(3)
    lower = torch.randn(1, count, 3, generator=rng, dtype=dtype) * torch.logspace(-6, 6, count, dtype=dtype)[:, None]
    width = torch.rand(1, count, 3, generator=rng, dtype=dtype) * lower.abs() * torch.tensor([0.0, 0.5, 4.0], dtype=dtype)
    lower[0, :4] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [-1e-40, 0.0, 0.0], [2.0, 0.0, 2.0]], dtype=dtype)
    return Interval(lower, lower + width)


def broken_maxima(x: Interval, r: Relaxation) -> list[int]:
    """max(x) - s x is convex: its supremum is at a vertex. The lower plane is tested at vertices, ties and samples."""
    rng, found = random.Random(4), []
    for index in range(x.shape[1]):
        low, high = ([exact(v) for v in side[0, index]] for side in (x.lower, x.upper))
        lower_slope, upper_slope = ([exact(v) for v in side[0, index]] for side in (r.lower_slope, r.upper_slope))
        below, above = exact(r.lower_intercept[0, index]), exact(r.upper_intercept[0, index])
        points = list(itertools.product(*zip(low, high, strict=True)))
        points += [tuple(a + fmpq(rng.randrange(11), 10) * (b - a) for a, b in zip(low, high, strict=True)) for _ in range(6)]
        for point in points:
            planes = [sum((s * p for s, p in zip(slopes, point, strict=True)), fmpq(0)) for slopes in (lower_slope, upper_slope)]
            if not planes[0] + below <= max(point) <= planes[1] + above:
                found.append(index)
                break
    return found


@pytest.mark.parametrize("slopes", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_maximum_planes_hold_exactly(dtype: torch.dtype, slopes: Slopes) -> None:
    x = windows(dtype)
    r = MaxReduce().relax(x, slopes)
    assert broken_maxima(x, r) == []
    dominated = ~MaxReduce().unstable(x).any(dim=-1)
    assert dominated.any()
    assert torch.equal(r.upper_slope[dominated].amax(-1), torch.ones_like(r.upper_intercept[dominated]))
    assert not r.upper_intercept[dominated].any()


@pytest.mark.parametrize("mutation", [m for m in MUTATIONS if m not in {"lower slope steeper", "lower slope less steep"}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_planted_bugs_in_maximum_planes_are_caught(dtype: torch.dtype, mutation: str) -> None:
    x = windows(dtype)
    assert len(broken_maxima(x, MUTATIONS[mutation](MaxReduce().relax(x)))) >= 10


# -------------------------------------------------------------------------------------------------------------------------- smooth


@pytest.fixture(autouse=True)
def _precision() -> None:
    flint.ctx.prec = 256


def smooth_value(op: Smooth, x: arb) -> arb:
    if isinstance(op, Tanh):
        return x.tanh()
    return x.exp() / (1 + x.exp()) if x < 0 else 1 / (1 + (-x).exp())


def critical_points(op: Smooth, slope: arb, low: arb, high: arb) -> list[arb]:
    """Points of [low, high] where the derivative is `slope`, from thesis Table 3.1."""
    ratio = slope if isinstance(op, Tanh) else 4 * slope
    if not 0 < ratio < 1:
        return []
    root = (1 - ratio).sqrt()
    t = ((1 + root) / (1 - root)).log() / (2 if isinstance(op, Tanh) else 1)
    return [p for p in (t, -t) if low < p < high]


def extremes(op: Smooth, low: Tensor, high: Tensor, slope: Tensor) -> tuple[arb, arb]:
    """Smallest and largest value of act(x) - slope x on [low, high], in arbitrary precision."""
    d, first, last = arb(exact(slope)), arb(exact(low)), arb(exact(high))
    points = [first, last, *critical_points(op, d, first, last)]
    values = [smooth_value(op, p) - d * p for p in points]
    return min(values, key=lambda v: v.mid()), max(values, key=lambda v: v.mid())


def broken_smooth(op: Smooth, x: Interval, r: Relaxation) -> list[int]:
    rng, found = random.Random(5), []
    for index, (low, high, *planes) in enumerate(rows(x, r.lower_slope, r.lower_intercept, r.upper_slope, r.upper_intercept)):
        a, b, c, d = (arb(exact(p)) for p in planes)
        points = [arb(p) for p in sample(low, high, 6, rng)]
        cut = any(smooth_value(op, p) < a * p + b or smooth_value(op, p) > c * p + d for p in points)
        if cut or extremes(op, low, high, planes[0])[0] < b or extremes(op, low, high, planes[2])[1] > d:
            found.append(index)
    return found


@pytest.mark.parametrize("slopes", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SMOOTH, ids=lambda op: type(op).__name__)
def test_smooth_planes_hold_and_are_tight(op: Smooth, dtype: torch.dtype, slopes: Slopes) -> None:
    x = intervals((0.0,), dtype, seed=6)
    r = op.relax(x, slopes)
    assert broken_smooth(op, x, r) == []
    if slopes == "parallel":
        assert torch.equal(r.lower_slope, r.upper_slope)
    for low, high, *planes in rows(x, r.lower_slope, r.lower_intercept, r.upper_slope, r.upper_intercept):
        below, above = (
            extremes(op, low, high, planes[0])[0] - arb(exact(planes[1])),
            arb(exact(planes[3])) - extremes(op, low, high, planes[2])[1],
        )
        if max(-low, high) <= 1e5:
            slack = 1e-12 + 2 * torch.finfo(dtype).eps * max(1.0, abs(float(planes[1])), abs(float(planes[3])))
            assert below < slack
            assert above < slack


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("op", SMOOTH, ids=lambda op: type(op).__name__)
def test_planted_bugs_in_smooth_planes_are_caught(op: Smooth, mutation: str) -> None:
    x = intervals((0.0,), torch.float32, seed=7)
    caught = broken_smooth(op, x, MUTATIONS[mutation](op.relax(x, "parallel")))
    assert len(caught) >= 0.2 * x.lower.numel()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SMOOTH, ids=lambda op: type(op).__name__)
def test_smooth_intervals_contain_and_are_tight(op: Smooth, dtype: torch.dtype) -> None:
    x = intervals((0.0,), dtype, seed=8)
    y = op.interval(x)
    for low, high, least, most in rows(x, y.lower, y.upper):
        values = [smooth_value(op, arb(exact(end))) for end in (low, high)]
        assert not values[0] < arb(exact(least))
        assert not values[1] > arb(exact(most))
        assert values[0] - arb(exact(least)) < 8 * torch.finfo(dtype).eps
        assert arb(exact(most)) - values[1] < 8 * torch.finfo(dtype).eps
    assert bool((y.lower >= op.low).all())
    assert bool((y.upper <= op.high).all())
