"""Engines' float32 and float64 bounds against exact arithmetic, on networks made to hurt, and with their error terms taken away."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flint
import pytest
import torch
from flint import arb, fmpq
from torch import Tensor

from bounds import rounding
from bounds.crown import Crown, CrownIbp, FastLin
from bounds.engine import BoundEngine, Bounds
from bounds.ibp import Ibp
from bounds.network import Network, Node
from bounds.ops.affine import AddBranches, Linear, SubBranches
from bounds.ops.base import Input, Op
from bounds.ops.bilinear import Bilinear, MatrixProduct, Multiply
from bounds.ops.functions import Cos, Elu, Erf, Exp, Power, Sin, Softplus
from bounds.ops.gated import Gelu, GeluTanh, Mish, Silu
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, MaxReduce, Relu
from bounds.ops.shape import Reshape
from bounds.ops.smooth import Sigmoid, Tanh
from bounds.ops.softmax import LogSumExp
from bounds.region import Box, LpBall, Region
from bounds.trace import Trace
from tests.bounds.networks import build

Number = Any  # fmpq, or arb where the network is smooth
DTYPES = [torch.float32, torch.float64]
ENGINES: dict[str, Callable[..., BoundEngine]] = {
    "ibp": Ibp,
    "ibp-outputs": lambda **fields: Ibp(elide=False, **fields),
    "crown": Crown,
    "crown-walk-only": lambda **fields: Crown(intersect=False, **fields),
    "fastlin": FastLin,
    "crown-ibp": CrownIbp,
}


@pytest.fixture(autouse=True)
def _precision() -> None:
    flint.ctx.prec = 400


def exact(value: float | Tensor) -> fmpq:
    return fmpq(*float(value).as_integer_ratio())


# ------------------------------------------------------------------------------------------------------------------------ networks


def stack(inputs: int, *ops: Op, residual: bool = False) -> Network:
    """A chain; with `residual` the values before the first activation are added to those after the second affine node."""
    nodes = [Node(Input(), (), (inputs,), "input")]
    skip = 0
    for op in ops:
        shape = (op.weight.shape[0],) if isinstance(op, Linear) else nodes[-1].shape
        nodes.append(Node(op, (len(nodes) - 1,), shape, f"{type(op).__name__}-{len(nodes)}"))
        if residual and isinstance(op, Linear):
            if skip:
                nodes.append(Node(AddBranches(), (len(nodes) - 1, skip), shape, f"add-{len(nodes)}"))
            skip = 0 if skip else len(nodes) - 1
    return Network(tuple(nodes))


def gaussian(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng)


def scales(rng: torch.Generator, *shape: int, decades: float = 5.0) -> Tensor:
    return 10.0 ** ((torch.rand(*shape, generator=rng) * 2 - 1) * decades)


def plain(rng: torch.Generator, activation: Op | None = None) -> Network:
    act = activation or Relu()
    layers = [Linear(gaussian(rng, *s), gaussian(rng, s[0])) for s in ((5, 3), (4, 5), (2, 4))]
    return stack(3, layers[0], act, layers[1], act, layers[2])


def ill_scaled(rng: torch.Generator) -> Network:
    weights = [gaussian(rng, *s) * scales(rng, *s) for s in ((5, 3), (4, 5), (2, 4))]
    return stack(3, *itertools.chain(*((Linear(w, gaussian(rng, w.shape[0])), Relu()) for w in weights)))


def cancelling(rng: torch.Generator) -> Network:
    """Active neurons, and a second layer that annihilates the first up to the rounding of its own weights."""
    first = gaussian(rng, 6, 3)
    null = torch.linalg.svd(first.double().T).Vh[3:]
    second = (null * scales(rng, 3, 1)).float()
    return stack(
        3, Linear(first, torch.full((6,), 50.0) + gaussian(rng, 6)), Relu(), Linear(second, None), Relu(), Linear(gaussian(rng, 2, 3), None)
    )


def large_biases(rng: torch.Generator) -> Network:
    """Active neurons around 1e6 whose differences are of order one."""
    bias = torch.full((6,), 1e6)
    signs = torch.tensor([1.0, -1.0]).repeat(3)
    second = signs * (1 + torch.zeros(3, 6))
    return stack(
        3,
        Linear(gaussian(rng, 6, 3), bias + gaussian(rng, 6)),
        Relu(),
        Linear(second, gaussian(rng, 3)),
        Relu(),
        Linear(gaussian(rng, 2, 3)),
    )


def tiny(rng: torch.Generator) -> Network:
    """Products that underflow in float32."""
    weights = [gaussian(rng, *s) * scales(rng, *s) * 1e-20 for s in ((4, 3), (2, 4))]
    return stack(3, Linear(weights[0]), Relu(), Linear(weights[1]))


def residual(rng: torch.Generator) -> Network:
    layers = [Linear(gaussian(rng, *s) * scales(rng, *s, decades=2), gaussian(rng, s[0])) for s in ((5, 3), (5, 5), (2, 5))]
    return stack(3, layers[0], Relu(), layers[1], Relu(), layers[2], residual=True)


def maxima(rng: torch.Generator) -> Network:
    """Two windows of three taps, their maxima mixed."""
    taps = Linear(gaussian(rng, 6, 3), gaussian(rng, 6))
    network = stack(3, taps, Relu(), Linear(gaussian(rng, 6, 6), gaussian(rng, 6)))
    last = len(network.nodes)
    windows = Node(Reshape((2, 3)), (last - 1,), (2, 3), "windows")
    maximum, mixed = Node(MaxReduce(), (last,), (2,), "maximum"), Node(Linear(gaussian(rng, 2, 2)), (last + 1,), (2,), "mixed")
    return Network((*network.nodes, windows, maximum, mixed))


def linear_chain(rng: torch.Generator) -> Network:
    """Affine layers in a row: the exact range is known and every bound is tight, so that rounding alone decides."""
    return stack(3, *(Linear(gaussian(rng, *s) * scales(rng, *s, decades=2), gaussian(rng, s[0])) for s in ((7, 3), (7, 7), (4, 7))))


def products(rng: torch.Generator, decades: float = 2.0, offset: float = 0.0) -> Network:
    """Products of sums, multiplied once more with one of them behind a ReLU."""
    first, second = (Linear(gaussian(rng, 4, 3) * scales(rng, 4, 3, decades=decades), gaussian(rng, 4) + offset) for _ in range(2))
    mixed = Linear(gaussian(rng, 4, 4), gaussian(rng, 4))
    layers = [(first, (0,)), (second, (0,)), (Multiply(), (1, 2)), (mixed, (3,)), (Relu(), (4,)), (Multiply(), (5, 2))]
    return build((3,), *layers, (Linear(gaussian(rng, 2, 4)), (6,)))


def matrices(rng: torch.Generator) -> Network:
    """A 2 x 3 and a 3 x 2 matrix of sums, multiplied."""
    first, second = (Linear(gaussian(rng, 6, 3) * scales(rng, 6, 3, decades=2), gaussian(rng, 6)) for _ in range(2))
    shaped = [(first, (0,)), (second, (0,)), (Reshape((2, 3)), (1,)), (Reshape((3, 2)), (2,)), (MatrixProduct(), (3, 4))]
    return build((3,), *shaped, (Reshape((4,)), (5,)), (Relu(), (6,)), (Linear(gaussian(rng, 2, 4)), (7,)))


def quotients(rng: torch.Generator) -> Network:
    """1 / (1 + h^2), multiplied with h."""
    hidden, shift = Linear(gaussian(rng, 4, 3), gaussian(rng, 4)), Linear(torch.eye(4), torch.ones(4))
    layers = [(hidden, (0,)), (Power(2.0), (1,)), (shift, (2,)), (Power(-1.0), (3,)), (Multiply(), (1, 4))]
    return build((3,), *layers, (Linear(gaussian(rng, 2, 4)), (5,)))


def softmax(rng: torch.Generator) -> Network:
    """exp(x - LSE(x)) of three sums."""
    hidden = Linear(gaussian(rng, 3, 3), gaussian(rng, 3))
    layers = [(hidden, (0,)), (Reshape((1, 3)), (1,)), (LogSumExp(), (2,)), (SubBranches(), (1, 3)), (Exp(), (4,))]
    return build((3,), *layers, (Linear(gaussian(rng, 2, 3)), (5,)))


FAMILIES: dict[str, Callable[[torch.Generator], Network]] = {
    "plain": plain,
    "ill-scaled": ill_scaled,
    "cancelling": cancelling,
    "large-biases": large_biases,
    "tiny": tiny,
    "residual": residual,
    "linear-chain": linear_chain,
    "maxima": maxima,
    "leaky": lambda rng: plain(rng, LeakyRelu(0.1)),
    "abs": lambda rng: plain(rng, Abs()),
    "clip": lambda rng: plain(rng, Clip(-0.3, 0.7)),
    "products": products,
    "cancelling-products": lambda rng: products(rng, 0.0, 1e4),
    "matrices": matrices,
    "quotients": quotients,
}
SMOOTH: dict[str, Callable[[torch.Generator], Network]] = {
    "sigmoid": lambda rng: plain(rng, Sigmoid()),
    "tanh": lambda rng: plain(rng, Tanh()),
    "sine": lambda rng: plain(rng, Sin()),
    "cosine": lambda rng: plain(rng, Cos()),
    "erf": lambda rng: plain(rng, Erf()),
    "gelu": lambda rng: plain(rng, Gelu()),
    "gelu-tanh": lambda rng: plain(rng, GeluTanh()),
    "silu": lambda rng: plain(rng, Silu()),
    "mish": lambda rng: plain(rng, Mish()),
    "elu": lambda rng: plain(rng, Elu(1.5)),
    "softplus": lambda rng: plain(rng, Softplus()),
    "softmax": softmax,
}
QUESTIONS = [(0, 0.0), (0, 0.05), (1, 1e-6), (1, 3.0)]
"""Seed and width of the regions: single points, neighbourhoods, wide boxes."""
MORE_QUESTIONS = [*QUESTIONS, (0, 3.0), (2, 1e-6), (2, 3.0)]


def regions(rng: torch.Generator, width: float) -> list[Region]:
    centre = gaussian(rng, 1, 3).double()
    eps = torch.tensor([[1.0, 0.3, 0.0 if width > 1 else 2.0]], dtype=torch.float64) * width
    box = LpBall(centre, eps).box()
    balls: list[Region] = [LpBall(centre, eps, 2.0), LpBall(centre, eps, 1.0)]
    return [Box(box.lower, box.upper), *(balls if width == 0.05 else [])]


# ---------------------------------------------------------------------------------------------------------------- exact evaluation


def apply(op: Op, *xs: list[Number]) -> list[Number]:
    """One node in exact arithmetic (fmpq), or in 400-bit balls (arb)."""
    x = xs[0]
    if isinstance(op, Linear):
        rows = [[exact(w) for w in row] for row in op.weight]
        offset = [fmpq(0)] * len(rows) if op.offset is None else [exact(b) for b in op.offset]
        return [sum((w * v for w, v in zip(row, x, strict=True)), b) for row, b in zip(rows, offset, strict=True)]
    if isinstance(op, AddBranches):
        return [a + b for a, b in zip(*xs, strict=True)]
    if isinstance(op, SubBranches):
        return [a - xs[1][0] for a in x]
    if isinstance(op, Multiply):
        return [a * b for a, b in zip(*xs, strict=True)]
    if isinstance(op, MatrixProduct):
        return [sum((x[3 * i + t] * xs[1][2 * t + j] for t in range(3)), fmpq(0)) for i in range(2) for j in range(2)]
    if isinstance(op, LogSumExp):
        return [sum((v.exp() for v in x), arb(0)).log()]
    if isinstance(op, Reshape):
        return x
    if isinstance(op, MaxReduce):
        return [max(x[:3]), max(x[3:])]
    scalar: dict[type, Callable[[Number], Number]] = {
        Relu: lambda v: max(v, fmpq(0)),
        Abs: abs,
        LeakyRelu: lambda v: v if v > 0 else exact(op.slope) * v,  # type: ignore[attr-defined]
        Clip: lambda v: min(max(v, exact(op.low)), exact(op.high)),  # type: ignore[attr-defined]
        Sigmoid: lambda v: 1 / (1 + (-v).exp()),
        Tanh: lambda v: v.tanh(),
        Sin: lambda v: v.sin(),
        Cos: lambda v: v.cos(),
        Erf: lambda v: v.erf(),
        Gelu: lambda v: v * (-v / arb(2).sqrt()).erfc() / 2,
        GeluTanh: lambda v: v / (1 + (-2 * (2 / arb.pi()).sqrt() * (v + arb(fmpq(44715, 10**6)) * v * v * v)).exp()),
        Silu: lambda v: v / (1 + (-v).exp()),
        Mish: lambda v: v * v.exp().log1p().tanh(),
        Elu: lambda v: v if v > 0 else arb(op.alpha) * (v.exp() - 1),  # type: ignore[attr-defined]
        Softplus: lambda v: v.exp().log1p(),
        Exp: lambda v: v.exp(),
        Power: lambda v: v ** int(op.exponent),  # type: ignore[attr-defined]
    }
    return [scalar[type(op)](v) for v in x]


def evaluate(network: Network, x: list[Number]) -> list[list[Number]]:
    values = [x]
    for node in network.nodes[1:]:
        values.append(apply(node.op, *(values[s] for s in node.inputs)))
    return values


def points(region: Region, rng: random.Random) -> list[list[fmpq]]:
    """Points that lie in the region exactly: its corners (or, in a ball, points of its surface), its centre, and some inside."""
    if isinstance(region, Box):
        low, high = ([exact(v) for v in side[0]] for side in (region.lower, region.upper))
        corners = [list(c) for c in itertools.product(*zip(low, high, strict=True))]
        inside = [[a + fmpq(rng.randrange(101), 100) * (b - a) for a, b in zip(low, high, strict=True)] for _ in range(4)]
        return [*corners, *inside]
    assert isinstance(region, LpBall)
    centre = [exact(v) for v in region.center[0]]
    eps = [exact(v) for v in torch.as_tensor(region.eps)[0]]
    unit = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    triples = (
        [(fmpq(3, 5), fmpq(4, 5), 0), (fmpq(2, 3), fmpq(1, 3), fmpq(2, 3)), (fmpq(6, 7), fmpq(2, 7), fmpq(3, 7))] if region.p == 2 else []
    )
    signs = list(itertools.product((1, -1), repeat=3))
    steps = {tuple(fmpq(s) * t for s, t in zip(sign, triple, strict=True)) for triple in [*unit, *triples, (0, 0, 0)] for sign in signs}
    return [[c + e * s for c, e, s in zip(centre, eps, step, strict=True)] for step in sorted(steps)]


def dot(row: Tensor, x: list[Number]) -> Number:
    return sum((exact(a) * v for a, v in zip(row, x, strict=True)), fmpq(0))


OBJECTIVES = torch.tensor([[1.0, 0.0], [1.0, -1.0], [-3.0, 2.0]])


@dataclass(frozen=True)
class Truth:
    """A question and its exact answers: per node element the extreme values over the points, per point the objectives' values."""

    network: Network
    region: Region
    objective: Tensor
    points: list[list[Number]]
    extremes: list[list[tuple[Number, Number]]]
    objectives: list[list[Number]]


@functools.cache
def truths(family: str, seed: int, width: float) -> list[Truth]:
    rng = torch.Generator().manual_seed(seed)
    network = (FAMILIES | SMOOTH)[family](rng)
    objective = torch.cat([OBJECTIVES, torch.zeros(3, network.outputs - 2)], dim=1)
    found = []
    for region in regions(rng, width):
        xs: list[list[Number]] = points(region, random.Random(seed))
        xs = [[arb(v) for v in x] for x in xs] if family in SMOOTH else xs
        values = [evaluate(network, x) for x in xs]
        extremes = [
            [(min(column), max(column)) for column in zip(*(v[node] for v in values), strict=True)] for node in range(len(values[0]))
        ]
        found.append(Truth(network, region, objective, xs, extremes, [[dot(C, v[-1]) for C in objective] for v in values]))
    return found


def violations(truth: Truth, found: Bounds) -> list[str]:
    """What a bound claims and exact arithmetic refutes."""
    wrong: list[str] = []
    for node, interval, extremes in zip(truth.network.nodes, found.intervals, truth.extremes, strict=True):
        for (least, most), low, high in zip(extremes, interval.lower[0].flatten(), interval.upper[0].flatten(), strict=True):
            if least < exact(low) or most > exact(high):
                wrong.append(node.name)
    for row, column in enumerate(zip(*truth.objectives, strict=True)):
        if min(column) < exact(found.objective.lower[0, row]) or max(column) > exact(found.objective.upper[0, row]):
            wrong.append("objective")
        if found.linear is None:
            continue
        linear = found.linear
        lower_A, upper_A = ([exact(a) for a in A[0, row].flatten()] for A in (linear.lower_A, linear.upper_A))
        lower_b, upper_b = exact(linear.lower_b[0, row]), exact(linear.upper_b[0, row])
        for x, value in zip(truth.points, column, strict=True):
            low, high = (sum((a * v for a, v in zip(A, x, strict=True)), b) for A, b in ((lower_A, lower_b), (upper_A, upper_b)))
            if low > value or high < value:
                wrong.append("plane")
    return wrong


def check(family: str, engine: BoundEngine, questions: list[tuple[int, float]] = QUESTIONS) -> list[str]:
    """All violations of an engine on a family's networks, regions and points."""
    wrong: list[str] = []
    for seed, width in questions:
        for truth in truths(family, seed, width):
            wrong += violations(truth, engine(truth.network, truth.region, truth.objective))
    return wrong


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", [*FAMILIES, *SMOOTH])
def test_bounds_hold_in_exact_arithmetic(family: str, engine: str, dtype: torch.dtype) -> None:
    assert check(family, ENGINES[engine](dtype=dtype)) == []


# ---------------------------------------------------------------------------------------------------------------------- not vacuous


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ["crown", "fastlin", "crown-ibp"])
def test_bounds_of_an_affine_chain_are_tight(engine: str, dtype: torch.dtype) -> None:
    """Nothing but rounding separates the bounds from the exact range: they must not hide behind large allowances."""
    truth = truths("linear-chain", 0, 0.05)[0]
    found = ENGINES[engine](dtype=dtype)(truth.network, truth.region, truth.objective)
    size = torch.eye(3).double()
    for node in truth.network.nodes[1:]:
        size = size @ node.op.weight.double().abs().T  # type: ignore[attr-defined]
    allowance = exact(30 * torch.finfo(dtype).eps * float(size.sum()))
    for row, column in enumerate(zip(*truth.objectives, strict=True)):
        assert min(column) - exact(found.objective.lower[0, row]) <= allowance
        assert exact(found.objective.upper[0, row]) - max(column) <= allowance


# -------------------------------------------------------------------------------------------------- float32 executions in any order


def execute(network: Network, x: Tensor, rng: torch.Generator) -> list[Tensor]:
    """A float32 execution in which every sum is taken in its own random order, the bias somewhere in it."""
    values = [x]
    for node in network.nodes[1:]:
        op, sources = node.op, [values[s] for s in node.inputs]
        if not isinstance(op, Linear):
            values.append(op.forward(*(s.unsqueeze(0) for s in sources)).squeeze(0))
            continue
        offset = torch.zeros(len(op.weight)) if op.offset is None else op.offset.expand(len(op.weight))
        terms = torch.cat([op.weight * sources[0], offset.unsqueeze(1)], dim=1)
        order = torch.rand(terms.shape, generator=rng).argsort(dim=1)
        terms, total = terms.gather(1, order), torch.zeros(len(op.weight))
        for column in terms.unbind(1):
            total = total + column
        values.append(total)
    return values


def escapes(family: str, engine: BoundEngine) -> int:
    """How many node values of float32 executions at float32 corners and centres leave the node's interval."""
    count = 0
    for seed, width in QUESTIONS:
        rng = torch.Generator().manual_seed(seed)
        network = (FAMILIES | SMOOTH)[family](rng)
        centre = gaussian(rng, 1, 3)
        region = Box(centre - width, centre + width)
        found = engine(network, region)
        for signs in itertools.product((-1, 0, 1), repeat=3):
            x = torch.stack([side[0, i] for i, side in enumerate((region.lower, centre, region.upper)[s + 1] for s in signs)])
            for value, interval in zip(execute(network, x, rng), found.intervals, strict=True):
                count += int(((value < interval.lower[0]) | (value > interval.upper[0])).sum())
    return count


EXECUTED = ["plain", "ill-scaled", "cancelling", "large-biases", "tiny", "residual", "leaky", "tanh", "sigmoid"]
EXECUTED += ["products", "cancelling-products", "matrices", "quotients", "sine", "gelu", "softmax"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", EXECUTED)
def test_any_order_bounds_hold_for_float32_executions(family: str, engine: str, dtype: torch.dtype) -> None:
    assert escapes(family, ENGINES[engine](dtype=dtype, semantics="float32-any-order")) == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_real_bounds_do_not_claim_float32_executions(engine: str) -> None:
    """The switch matters: real-arithmetic bounds in float64 are left by float32 executions."""
    assert escapes("cancelling", ENGINES[engine](dtype=torch.float64)) > 0


# ------------------------------------------------------------------------------------------------------------------------ planted


def without_gamma(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rounding, "gamma", lambda terms, dtype: 0.0)


def without_direction(patch: pytest.MonkeyPatch) -> None:
    without_gamma(patch)
    patch.setattr(rounding, "below", lambda value, error=0.0: value - error)
    patch.setattr(rounding, "above", lambda value, error=0.0: value + error)


def without_charges(patch: pytest.MonkeyPatch) -> None:
    measure = Trace._measure
    patch.setattr(Trace, "_measure", lambda self, index, charge: measure(self, index, torch.zeros_like(charge)))


def without_underflow(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rounding, "underflow", lambda terms, dtype: 0.0)


def with_steeper_planes(patch: pytest.MonkeyPatch) -> None:
    relax = Relu.relax

    def mutated(self: Relu, *args: Any, **kwargs: Any) -> Any:
        planes = relax(self, *args, **kwargs)
        return replace(planes, upper_intercept=planes.upper_intercept * 0.9999)

    patch.setattr(Relu, "relax", mutated)


def with_less_gap(patch: pytest.MonkeyPatch) -> None:
    """The upper planes of products a little too low."""
    relax = Bilinear.relax

    def mutated(self: Bilinear, *args: Any, **kwargs: Any) -> Any:
        planes = relax(self, *args, **kwargs)
        return replace(planes, above=planes.above - 1e-3 * (planes.above - planes.below))

    patch.setattr(Bilinear, "relax", mutated)


@pytest.mark.parametrize(
    "plant, family, engine, dtype",
    [
        (without_gamma, "linear-chain", "ibp", torch.float32),
        (without_gamma, "cancelling", "crown-walk-only", torch.float32),
        (without_gamma, "linear-chain", "crown", torch.float32),
        (without_direction, "linear-chain", "crown", torch.float64),
        (without_direction, "plain", "ibp", torch.float64),
        (without_charges, "cancelling", "fastlin", torch.float32),
        (without_underflow, "tiny", "crown", torch.float32),
        (with_steeper_planes, "plain", "crown", torch.float64),
        (with_less_gap, "products", "crown", torch.float64),
        (with_less_gap, "matrices", "crown-walk-only", torch.float32),
        (without_gamma, "cancelling-products", "crown", torch.float64),
    ],
)
def test_planted_bugs_are_caught(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], family: str, engine: str, dtype: torch.dtype
) -> None:
    plant(monkeypatch)
    assert check(family, ENGINES[engine](dtype=dtype), MORE_QUESTIONS)
