"""Every engine x small networks x every region: bound <= exact minimum <= best value met, and what else all engines promise.

The table of engines is found, not written: every dataclass in `bounds` that is called like a `BoundEngine` takes part, with each of its
switches on and off.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import math
import pkgutil
import time
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import bounds
from bounds import backward, lagrange
from bounds.crown import Crown, CrownIbp, FastLin
from bounds.engine import Bounds
from bounds.errors import MemoryLimitError, NumericsError, ShapeError, TimeLimitError
from bounds.ibp import Ibp
from bounds.interval import Interval
from bounds.linear import Halfspaces
from bounds.network import Network
from bounds.ops.affine import AddBranches, Linear, SubBranches
from bounds.ops.base import Op
from bounds.ops.bilinear import Multiply
from bounds.ops.functions import Atan, Cos, Elu, Erf, Sin, Softplus, Softsign
from bounds.ops.gated import Gelu, GeluTanh, Mish, Silu
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, Relu
from bounds.ops.shape import Concat, Slice
from bounds.ops.sign import Sign
from bounds.ops.smooth import Sigmoid, Tanh
from bounds.region import Box, LpBall, Region
from bounds.trace import Trace
from milp.encode import encode
from milp.program import Status
from milp.solvers import get_solver
from tests.bounds.networks import PIECEWISE, REGIONS, ZOO, build, chain, regions
from verify.attack import Pgd
from verify.spec import Margins

SOLVER_TOLERANCE = 1e-5


# ------------------------------------------------------------------------------------------------------------------------- engines


def _is_engine(candidate: Any) -> bool:
    if not (inspect.isclass(candidate) and is_dataclass(candidate) and "__call__" in dir(candidate)):
        return False
    wanted = {"self", "network", "region", "objective", "known"}
    return wanted <= set(inspect.signature(candidate.__call__).parameters)


def engine_classes() -> list[type]:
    """All engines of the package, except those that others build on."""
    found: dict[str, type] = {}
    for module in pkgutil.iter_modules(bounds.__path__):
        if not module.name.startswith("onnx"):
            members = vars(importlib.import_module(f"bounds.{module.name}")).values()
            found |= {c.__name__: c for c in members if _is_engine(c)}
    return [c for c in found.values() if not c.__subclasses__()]


def engines() -> list[Any]:
    """Every engine with every setting of its switches in float32, and as it comes in float64; engines that search with few steps.

    The switches of an engine that searches are turned one at a time.
    """
    table = []
    for engine in engine_classes():
        switches = [f.name for f in fields(engine) if isinstance(f.default, bool)]
        settings = list(itertools.product((True, False), repeat=len(switches)))
        few = {"steps": 4} if searches(engine) else {}
        if few:
            usual = tuple(f.default for f in fields(engine) if isinstance(f.default, bool))
            settings = [values for values in settings if sum(v != u for v, u in zip(values, usual, strict=True)) <= 1]
        for values in settings:
            table.append(engine(**dict(zip(switches, values, strict=True)), **few))
        table.append(engine(dtype=torch.float64, **few))
    return table


def searches(engine: Any) -> bool:
    """Whether the engine's bounds come from a search."""
    return any(f.name == "steps" for f in fields(engine))


def settled(engine: Any) -> Any:
    """The engine without the steps of its search, whose course the last digit of a number can change."""
    return replace(engine, steps=0) if searches(engine) else engine


TABLE = engines()


def label(engine: Any) -> str:
    changed = [f"{f.name}={getattr(engine, f.name)}" for f in fields(engine) if isinstance(f.default, bool)]
    return " ".join([type(engine).__name__, str(engine.dtype).removeprefix("torch."), *changed])


each_engine = pytest.mark.parametrize("engine", TABLE, ids=label)


def test_the_table_holds_every_engine() -> None:
    assert {Ibp, Crown, FastLin, CrownIbp} <= set(engine_classes())
    assert len(TABLE) >= 12


# --------------------------------------------------------------------------------------------------------------------------- truth


@dataclass(frozen=True)
class Truth:
    """Points of each region with the values of every node there (float64), and the extreme values of C f.

    met: the extremes over the points, (B, rows) each. exact: proven by MILP where the network is piecewise linear and the region a box.
    """

    network: Network
    region: Region
    points: Tensor
    values: list[Tensor]
    outputs: Tensor
    met: Interval
    exact: Interval | None


def objective(network: Network) -> Tensor:
    """Three rows; outputs beyond the second enter the last one."""
    rows = torch.tensor([[1.0, 0.0], [1.0, -1.0], [-3.0, 2.0]])
    return torch.cat([rows, torch.tensor([[0.0], [0.0], [4.0]]).expand(3, network.outputs - 2)], dim=1)


def corners(region: Region) -> Tensor:
    """The ends of the features' ranges one by one, and some corners of the box, projected: (B, count, *shape)."""
    box = region.box()
    low, high, middle = box.lower.double().flatten(1), box.upper.double().flatten(1), region.origin.flatten(1)
    count = low.shape[1]
    eye = torch.eye(count, dtype=torch.bool)
    single = [torch.where(eye, side.unsqueeze(1), middle.unsqueeze(1)) for side in (low, high)]
    chosen = torch.rand(region.batch, 64, count, generator=torch.Generator().manual_seed(5)) < 0.5
    several = torch.where(chosen, low.unsqueeze(1), high.unsqueeze(1))
    return region.project(torch.cat([*single, several], dim=1).unflatten(2, region.shape))


def attacked(network: Network, region: Region, steps: int = 8) -> Tensor:
    """What PGD finds for every row of C and its negative: (B, 2 rows, *shape)."""
    signed = torch.cat([objective(network), -objective(network)]).double()
    which = torch.arange(region.batch).repeat_interleave(len(signed))
    goals = Margins(signed.repeat(region.batch, 1).unsqueeze(1), torch.full((len(which), 1), -50.0, dtype=torch.float64), ((0, 1),))
    found = Pgd(steps=steps, restarts=2)(network, region.select(which), goals)
    return found.x.unflatten(0, (region.batch, len(signed)))


def minimise(network: Network, region: Region, row: Tensor) -> tuple[float, Tensor]:
    """min over the region of row f(x) and where it is attained, by MILP."""
    wide = network.to(torch.float64)
    unsafe = Halfspaces(row[None].double(), torch.zeros(1, dtype=torch.float64))
    encoding = encode(wide, region, unsafe, Crown(dtype=torch.float64)(wide, region).intervals)
    solution = get_solver("highs").solve(encoding.program)
    assert solution.status == Status.OPTIMAL
    return solution.objective, torch.from_numpy(encoding.point(solution.x))


def exactly(network: Network, region: Region, met: Interval) -> tuple[Interval, Tensor]:
    """`met` with the proven minima in the lower ends and the maximum of the second row in the upper ends; and the points they are at."""
    C, low, high = objective(network), met.lower.clone(), met.upper.clone()
    points = region.project(region.origin.unsqueeze(1)).double().repeat(1, len(C) + 1, *([1] * len(region.shape)))
    for image in range(region.batch - 1):  # the last one is a point
        one = region.select(torch.tensor([image]))
        for row in range(len(C)):
            low[image, row], points[image, row] = minimise(network, one, C[row])
        value, points[image, -1] = minimise(network, one, -C[1])
        high[image, 1] = -value
    return Interval(low, high), points


@functools.cache
def truth(name: str, kind: str) -> Truth:
    network, region = ZOO[name], regions(ZOO[name], kind)
    inside = [region.sample(60, torch.Generator().manual_seed(3)).double(), corners(region).double()]
    is_exact = name in PIECEWISE and kind == "box"
    if is_exact or name not in PIECEWISE or "domain" in kind:
        inside.append(attacked(network, region).double())
    points = torch.cat([*inside, region.project(region.origin.unsqueeze(1)).double()], dim=1)
    found = evaluated(network, region, points)
    if not is_exact:
        return found
    exact, best = exactly(network, region, found.met)
    return replace(evaluated(network, region, torch.cat([points, best], dim=1)), exact=exact)


def evaluated(network: Network, region: Region, points: Tensor) -> Truth:
    assert bool(region.contains(points).all())
    values = network.to(torch.float64).values(points.flatten(0, 1))
    values = [v.unflatten(0, points.shape[:2]) for v in values]
    outputs = values[-1].flatten(2) @ objective(network).double().T
    return Truth(network, region, points, values, outputs, Interval(outputs.amin(1), outputs.amax(1)), None)


def violations(truth: Truth, found: Bounds, rounding: float = 1e-12) -> list[str]:
    """What the bounds claim and the truth refutes; `rounding` is what evaluating in float64 may miss."""
    wrong = []
    for node, interval, values in zip(truth.network.nodes, found.intervals, truth.values, strict=True):
        low, high = interval.lower.double().unsqueeze(1), interval.upper.double().unsqueeze(1)
        if bool(((values < low - rounding) | (values > high + rounding)).any()):
            wrong.append(node.name)
    floor, ceiling = found.objective.lower, found.objective.upper
    if bool((truth.met.lower < floor - rounding).any()) or bool((truth.met.upper > ceiling + rounding).any()):
        wrong.append("objective")
    exact = truth.exact or truth.met
    if bool((exact.lower < floor - SOLVER_TOLERANCE).any()) or bool((exact.upper > ceiling + SOLVER_TOLERANCE).any()):
        wrong.append("objective against the exact minimum")
    if found.linear is not None:
        low, high = planes(found, truth.points)
        if bool((truth.outputs < low - rounding).any()) or bool((truth.outputs > high + rounding).any()):
            wrong.append("planes")
    return wrong


def planes(found: Bounds, points: Tensor) -> tuple[Tensor, Tensor]:
    """The two planes at the points, (B, S, rows)."""
    linear = found.linear
    assert linear is not None
    flat = points.flatten(2)
    low = torch.einsum("bsi,bri->bsr", flat, linear.lower_A.flatten(2).double()) + linear.lower_b.unsqueeze(1)
    return low, torch.einsum("bsi,bri->bsr", flat, linear.upper_A.flatten(2).double()) + linear.upper_b.unsqueeze(1)


# ------------------------------------------------------------------------------------------------------------------------ sandwich


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("name", ZOO)
def test_bound_below_exact_below_met(name: str, kind: str) -> None:
    found = truth(name, kind)
    if found.exact is not None:  # attained at a point, and nobody met a better one
        assert bool(((found.exact.lower - found.met.lower).abs() <= SOLVER_TOLERANCE).all())
        assert bool(((found.exact.upper - found.met.upper).abs()[:, 1] <= SOLVER_TOLERANCE).all())
    table = TABLE if kind in ("box", "l2 domain") else [e for e in TABLE if e == type(e)()]
    wrong = {label(engine): violations(found, engine(found.network, found.region, objective(found.network))) for engine in table}
    assert {name: places for name, places in wrong.items() if places} == {}


@each_engine
@pytest.mark.parametrize("kind", ["box", "l2 domain"])
def test_a_point_gives_the_value(engine: Any, kind: str) -> None:
    """The last region of each kind is a point: there the bounds are f(x) up to a few hundred roundings of the largest value met."""
    for name, network in ZOO.items():
        region = regions(network, kind).select(torch.tensor([2]))
        values = network.to(torch.float64).values(region.origin)
        size = max(float(v.abs().max()) for v in values) * float(objective(network).abs().sum(1).max())
        exact = values[-1].flatten(1) @ objective(network).double().T
        found = engine(network, region, objective(network)).objective
        allowance = 2000 * torch.finfo(engine.dtype).eps * (1 + size)
        assert float((exact - found.lower).max()) <= allowance, name
        assert float((found.upper - exact).max()) <= allowance, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_crown_is_at_least_as_tight_as_interval_propagation_behind_one_hidden_layer(dtype: torch.dtype) -> None:
    gains = []
    for seed in range(20):
        network = chain((4,), *_two_layers(seed))
        center = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))
        region = Box(center - 0.2, center + 0.2)
        crown, ibp = (engine(dtype=dtype)(network, region, objective(network)).objective for engine in (Crown, Ibp))
        gains.append((ibp.width - crown.width).mean() / ibp.width.mean())
    assert float(torch.stack(gains).mean()) > 0.1


def _two_layers(seed: int) -> tuple[Linear, Relu, Linear]:
    rng = torch.Generator().manual_seed(seed)
    hidden = Linear(torch.randn(10, 4, generator=rng), torch.randn(10, generator=rng) / 4)
    return hidden, Relu(), Linear(torch.randn(2, 10, generator=rng))


def close(first: Interval, second: Interval, dtype: torch.dtype, size: float = 1.0) -> bool:
    """Whether two bounds that differ only in the order of computation agree."""
    tolerance = 2000 * torch.finfo(dtype).eps
    return all(
        torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance * size)
        for a, b in ((first.lower, second.lower), (first.upper, second.upper))
    )


@each_engine
def test_a_batch_is_its_regions_one_by_one(engine: Any) -> None:
    engine = settled(engine)
    for name, kind in (
        ("relu", "l2"),
        ("convolutional", "l1 domain"),
        ("residual", "box"),
        ("branches", "l2 domain"),
        ("smooth and max", "l1"),
    ):
        network = ZOO[name]
        region, C = regions(network, kind), objective(network)
        together = engine(network, region, C)
        for image in range(region.batch):
            alone = engine(network, region.select(torch.tensor([image])), C)
            part = Interval(together.objective.lower[image : image + 1], together.objective.upper[image : image + 1])
            assert close(alone.objective, part, engine.dtype, 10), name
            for one, many in zip(alone.intervals, together.intervals, strict=True):
                assert close(one, Interval(many.lower[image : image + 1], many.upper[image : image + 1]), engine.dtype, 10), name


@each_engine
def test_rows_of_their_own_for_every_region(engine: Any) -> None:
    engine = settled(engine)
    for name in ("residual", "tanh"):
        network = ZOO[name]
        region = regions(network, "l2")
        C = torch.randint(-3, 4, (3, 2, 2), generator=torch.Generator().manual_seed(1)).float()
        together = engine(network, region, C)
        for image, row in itertools.product(range(3), range(2)):
            alone = engine(network, region.select(torch.tensor([image])), C[image : image + 1, row : row + 1])
            part = Interval(together.objective.lower[image, row], together.objective.upper[image, row])
            assert close(Interval(alone.objective.lower[0, 0], alone.objective.upper[0, 0]), part, engine.dtype, 20), name


@each_engine
def test_no_objective_means_the_outputs(engine: Any) -> None:
    engine = settled(engine)
    network = ZOO["relu"]
    region = regions(network, "box")
    named, unnamed = engine(network, region, torch.eye(2)), engine(network, region)
    assert named.objective.lower.shape == unnamed.objective.lower.shape == (3, 2)
    # folding the identity into the last layer changes nothing but roundings
    assert close(named.objective, unnamed.objective, engine.dtype, 10)


@each_engine
@pytest.mark.parametrize("name", ["residual", "max pool"])
def test_chunks_change_roundings_only(engine: Any, name: str) -> None:
    engine = settled(engine)
    network = ZOO[name]
    widest = max(math.prod(node.shape) for node in network.nodes)
    one_row = 8 * widest * (torch.finfo(engine.dtype).bits // 8) / 2**20
    for kind, share in (("box", 1.001), ("l1 domain", 7.0)):
        region, C = regions(network, kind), objective(network)
        whole, parts = engine(network, region, C), replace(engine, memory_mb=share * one_row)(network, region, C)
        assert close(whole.objective, parts.objective, engine.dtype, 10)
        assert all(close(a, b, engine.dtype, 10) for a, b in zip(whole.intervals, parts.intervals, strict=True))
        if whole.linear is not None:
            assert parts.linear is not None
            assert torch.allclose(whole.linear.lower_A, parts.linear.lower_A, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", [Crown(), FastLin(), CrownIbp()], ids=label)
def test_a_row_that_does_not_fit(engine: Any) -> None:
    with pytest.raises(MemoryLimitError, match="one row of coefficients needs 32 elements, the limit allows 26; raise"):
        replace(engine, memory_mb=26.5 * 32 / 2**20)(ZOO["residual"], regions(ZOO["residual"], "box"))


@each_engine
def test_concrete_bounds_are_what_the_planes_imply(engine: Any) -> None:
    for name in ("residual", "activation chain", "sigmoid"):
        for kind in ("box", "l2", "l1 domain"):
            network = ZOO[name]
            region = regions(network, kind).to(engine.dtype)
            found = engine(network, region, objective(network))
            if found.linear is None:
                assert type(engine) is Ibp
                return
            implied = found.linear.concretize(region)
            assert close(implied, found.objective, engine.dtype, 10), (name, kind)
            slack = 1e-12 * (1 + found.objective.upper.abs().max())
            assert bool((implied.lower <= found.objective.lower + slack).all() and (implied.upper >= found.objective.upper - slack).all())


# ----------------------------------------------------------------------------------------------------------------- known intervals


@each_engine
def test_known_intervals_only_tighten(engine: Any) -> None:
    for name in ("relu", "residual", "activation chain", "tanh"):
        network = ZOO[name]
        region, C = regions(network, "box"), objective(network)
        tight = Crown(dtype=torch.float64)(network, region, C).intervals
        known = {index: tight[index] for index in network.preactivations}
        loose, better = engine(network, region, C), engine(network, region, C, known)
        assert violations(truth(name, "box"), better) == []
        if type(engine) is Ibp:  # adaptive planes over a smaller interval may be worse for one objective
            assert bool((better.objective.lower >= loose.objective.lower - 1e-5).all())
            assert bool((better.objective.upper <= loose.objective.upper + 1e-5).all())
        for index, interval in known.items():
            outward = interval.to(engine.dtype)
            assert bool((better.intervals[index].lower >= outward.lower).all() and (better.intervals[index].upper <= outward.upper).all())


@each_engine
def test_known_intervals_reach_the_objective(engine: Any) -> None:
    """x -> relu(relu(x) - 1/4) + (5, 6) on [-1, 1]^2, and the claim that relu(x) - 1/4 is within [-1/8, -1/16]."""
    identity = torch.eye(2)
    hidden, last = Linear(identity, torch.full((2,), -0.25)), Linear(identity, torch.tensor([5.0, 6.0]))
    network = chain((2,), Linear(identity), Relu(), hidden, Relu(), last)
    region = Box(-torch.ones(1, 2), torch.ones(1, 2))
    claim = {3: Interval(torch.full((1, 2), -0.125), torch.full((1, 2), -0.0625))}
    assert bool((engine(network, region).objective.upper > 5.7).all())
    found = engine(network, region, None, claim)
    assert torch.allclose(found.objective.lower, torch.tensor([[5.0, 6.0]]).double(), atol=1e-5)
    assert torch.allclose(found.objective.upper, torch.tensor([[5.0, 6.0]]).double(), atol=1e-5)


# -------------------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("engine", [e for e in TABLE if hasattr(e, "deadline")], ids=label)
def test_the_deadline_is_kept(engine: Any) -> None:
    late = replace(engine, deadline=time.monotonic() - 1)
    with pytest.raises(TimeLimitError, match="time limit"):
        late(ZOO["residual"], regions(ZOO["residual"], "l2"), objective(ZOO["residual"]))
    early = replace(engine, deadline=time.monotonic() + 600)
    assert early(ZOO["relu"], regions(ZOO["relu"], "l2")).objective.is_finite()


@each_engine
@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_not_a_number_names_the_node(engine: Any, value: float) -> None:
    """A weight that is NaN or infinite, or two finite ones whose products overflow float32."""
    weight = torch.eye(3)
    weight[1, 1] = value
    network = chain((3,), Linear(weight), Linear(weight), Relu(), Linear(torch.ones(2, 3)))
    if value == 3e38 and engine.dtype == torch.float64:
        assert engine(network, Box(torch.ones(1, 3), 2 * torch.ones(1, 3))).objective.is_finite()
        return
    with pytest.raises(NumericsError, match=r"node 'Linear_[12]'|objective"):
        engine(network, Box(torch.ones(1, 3), 2 * torch.ones(1, 3)))


@each_engine
def test_an_objective_that_overflows(engine: Any) -> None:
    network = chain((3,), Linear(torch.full((2, 3), 1e20)))
    huge = 2.0 ** (127 if engine.dtype == torch.float32 else 1023)
    with pytest.raises(NumericsError, match="objective"):
        engine(network, Box(torch.ones(1, 3), 2 * torch.ones(1, 3)), torch.tensor([[huge, -huge]], dtype=engine.dtype))


@each_engine
def test_objectives_that_do_not_fit(engine: Any) -> None:
    network, region = ZOO["relu"], regions(ZOO["relu"], "box")
    for wrong in (torch.ones(1, 3), torch.ones(2, 1, 2), torch.ones(2), torch.full((1, 2), math.nan)):
        with pytest.raises(ShapeError, match="objective"):
            engine(network, region, wrong)
    if engine.dtype == torch.float32:
        with pytest.raises(ShapeError, match="cannot represent exactly"):
            engine(network, region, torch.tensor([[0.1, 1.0]], dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"reads inputs of shape \(3,\), the region has shape \(4,\)"):
        engine(network, LpBall(torch.zeros(1, 4), 1.0))


# ----------------------------------------------------------------------------------------------------------------------- semantics


@each_engine
def test_any_order_is_wider_than_real(engine: Any) -> None:
    engine = settled(engine)
    for name in ("batch norm", "smooth and max", "activation chain"):
        network = ZOO[name]
        for kind in ("box", "l2"):
            region, C = regions(network, kind), objective(network)
            real, wide = engine(network, region, C), replace(engine, semantics="float32-any-order")(network, region, C)
            assert bool((wide.objective.lower <= real.objective.lower).all() and (wide.objective.upper >= real.objective.upper).all())
            assert bool((wide.objective.width > real.objective.width).any())
            assert close(real.objective, wide.objective, torch.float32, 10)


# ------------------------------------------------------------------------------------------------------------------ random networks

ACTIVATIONS = [
    Relu(),
    LeakyRelu(0.25),
    LeakyRelu(-0.5),
    Clip(-0.5, 1.0),
    Clip(0.25),
    Abs(),
    Sigmoid(),
    Tanh(),
    Sin(),
    Cos(),
    Erf(),
    Gelu(),
    GeluTanh(),
    Silu(),
    Mish(),
    Elu(0.5),
    Elu(2.0),
    Softplus(),
    Softsign(),
    Atan(),
    Sign(),
]


@st.composite
def random_networks(draw: st.DrawFn) -> Network:
    """A graph of affine nodes, activations, sums, differences, products, concatenations and slices of vectors; later nodes are likelier read."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    sizes, layers = [draw(st.integers(1, 3))], []

    def add(op: Op, inputs: tuple[int, ...], size: int) -> None:
        layers.append((op, inputs))
        sizes.append(size)

    for _ in range(draw(st.integers(2, 9))):
        source = len(sizes) - 1 - min(draw(st.integers(0, 2)), len(sizes) - 1)
        kind = draw(st.sampled_from(["linear", "linear", "activation", "activation", "sum", "difference", "product", "concat", "slice"]))
        equal = [k for k, size in enumerate(sizes) if size == sizes[source]]
        other = draw(st.sampled_from(equal))
        if kind == "linear":
            size = draw(st.integers(1, 4))
            add(Linear(torch.randn(size, sizes[source], generator=rng), torch.randn(size, generator=rng) / 2), (source,), size)
        elif kind == "activation":
            add(draw(st.sampled_from(ACTIVATIONS)), (source,), sizes[source])
        elif kind in ("sum", "difference"):
            add(AddBranches() if kind == "sum" else SubBranches(), (source, other), sizes[source])
        elif kind == "product":
            add(Multiply(), (source, other), sizes[source])
        elif kind == "concat":
            add(Concat(0), (source, other), 2 * sizes[source])
        else:
            start = draw(st.integers(0, sizes[source] - 1))
            add(Slice(((start, sizes[source], 1),)), (source,), sizes[source] - start)
    add(Linear(torch.randn(2, sizes[-1], generator=rng)), (len(sizes) - 1,), 2)
    return build((sizes[0],), *layers)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(random_networks(), st.sampled_from(REGIONS), st.lists(st.sampled_from(TABLE), min_size=3, max_size=3, unique=True))
def test_random_networks(network: Network, kind: str, some: list[Any]) -> None:
    region = regions(network, kind)
    points = torch.cat([region.sample(40, torch.Generator().manual_seed(0)).double(), corners(region).double()], dim=1)
    found = evaluated(network, region, points)
    size = max(float(v.abs().max()) for v in found.values)
    for engine in some:
        assert violations(found, engine(network, region, objective(network)), rounding=1e-12 * (1 + size)) == [], label(engine)


# ------------------------------------------------------------------------------------------------------------------------- planted


def _sum_of_steps(patch: pytest.MonkeyPatch) -> None:
    """The step between the slopes with the wrong sign."""
    visit = Trace._visit_activation

    def mutated(self: Trace, index: int, *rest: Any) -> None:
        visit(self, index, *rest)
        self.planes[index] = replace(self.planes[index], step=-self.planes[index].step)

    patch.setattr(Trace, "_visit_activation", mutated)


def _half_gaps(patch: pytest.MonkeyPatch) -> None:
    visit = Trace._visit_activation

    def mutated(self: Trace, index: int, *rest: Any) -> None:
        visit(self, index, *rest)
        self.planes[index] = replace(self.planes[index], gap=self.planes[index].gap / 2)

    patch.setattr(Trace, "_visit_activation", mutated)


def _last_branch_only(patch: pytest.MonkeyPatch) -> None:
    """Where paths meet, the one that came first is forgotten."""
    patch.setattr(backward.Walk, "_add", lambda self, index, A: self.pending.__setitem__(index, A))


def _other_side(patch: pytest.MonkeyPatch) -> None:
    """Negated rows take the lower planes of the rows themselves."""
    patch.setattr(backward.Walk, "_double", lambda self, A: setattr(self, "doubled", True) or torch.cat([A, A], dim=1))


def _half_regions(patch: pytest.MonkeyPatch) -> None:
    for region in (Box, LpBall):
        decrease = region.decrease
        patch.setattr(region, "decrease", lambda self, A, sets=None, decrease=decrease: decrease(self, A, sets) / 2)


def _swapped_images(patch: pytest.MonkeyPatch) -> None:
    """Planes of another region of the batch."""
    planes = backward.View.planes

    def mutated(self: backward.View, index: int) -> Any:
        found = planes(self, index)
        return replace(found, slope=found.slope.roll(1, 0), gap=found.gap.roll(1, 0))

    patch.setattr(backward.View, "planes", mutated)


def _negative_part_only(patch: pytest.MonkeyPatch) -> None:
    """Interval propagation through W without |W|: radii are multiplied by W itself."""
    linear = Linear.linear
    patch.setattr(Linear, "linear", lambda self, *xs, absolute=False: linear(self, *xs))


PLANTED = {
    "sign of steps": (_sum_of_steps, "relu", "box", Crown()),
    "half gaps": (_half_gaps, "leaky", "box", Crown()),
    "half gaps, parallel": (_half_gaps, "leaky", "box", FastLin()),
    "half gaps, maxima": (_half_gaps, "max pool", "box", CrownIbp()),
    "a branch dropped": (_last_branch_only, "residual", "box", Crown()),
    "a branch dropped, difference": (_last_branch_only, "difference", "box", FastLin()),
    "other side": (_other_side, "leaky", "box", CrownIbp()),
    "half regions": (_half_regions, "affine", "l2", Crown()),
    "half regions, clipped": (_half_regions, "one hidden layer", "l1 domain", Crown()),
    "swapped images": (_swapped_images, "relu", "box", Crown()),
    "weights without absolute values": (_negative_part_only, "relu", "box", Ibp()),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, network, kind, engine = PLANTED[name]
    found = truth(network, kind)
    assert violations(found, engine(found.network, found.region, objective(found.network))) == []
    plant(monkeypatch)
    assert violations(found, engine(found.network, found.region, objective(found.network))) != []


@pytest.mark.parametrize("factor", [1e-3, 0.5, 3.0, 1e3])
@pytest.mark.parametrize("kind", ["l2", "l2 domain"])
def test_a_wrong_multiplier_costs_tightness_only(kind: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lagrange duality: every positive multiplier gives a bound, the right one the best."""
    found = truth("leaky", kind)
    right = Crown()(found.network, found.region, objective(found.network)).objective
    multiplier = lagrange._multiplier
    monkeypatch.setattr(lagrange, "_multiplier", lambda *args: factor * multiplier(*args))
    wrong = Crown()(found.network, found.region, objective(found.network))
    assert violations(found, wrong) == []
    assert bool((wrong.objective.width[:2] > right.width[:2]).all())
