"""The encoding is the network: on points exactly, over a region the minimum of an independent oracle, and mutilated it is not."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sparse
import torch
from scipy.optimize import linprog

import milp.activations
import milp.jacobian
from bounds.errors import MemoryLimitError, NumericsError, ShapeError, UnsupportedOpError
from bounds.ibp import Ibp
from bounds.interval import Interval
from bounds.linear import Halfspaces
from bounds.network import Network, Node
from bounds.ops.affine import AddBranches, BatchNormalization, Linear, Shift, SubBranches
from bounds.ops.base import Input, Op
from bounds.ops.convolution import AveragePool, Conv
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, MaxReduce, PRelu, Relu
from bounds.ops.shape import Concat, Reshape, Window
from bounds.ops.smooth import Sigmoid
from bounds.region import Box, LpBall, Region
from milp.encode import Encoding, encode, encode_node
from milp.inputs import ball_cut, cut_rows
from milp.jacobian import jacobians
from milp.program import Program, Status
from milp.solvers import get_solver


def build(input_shape: tuple[int, ...], *layers: tuple[Op, tuple[int, ...]]) -> Network:
    """A network from ops and the numbers of the nodes they read; shapes are found by running it."""
    nodes, values = [Node(Input(), (), input_shape, "input")], [torch.zeros(1, *input_shape)]
    for number, (op, inputs) in enumerate(layers, 1):
        values.append(op.forward(*(values[i] for i in inputs)))
        nodes.append(Node(op, inputs, tuple(values[-1].shape[1:]), f"{type(op).__name__}_{number}"))
    return Network(tuple(nodes))


def dense(generator: torch.Generator, outputs: int, inputs: int) -> Linear:
    return Linear(torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator) / 2)


def mlp(activation: Op, seed: int = 0, widths: tuple[int, ...] = (3, 4, 4, 2)) -> Network:
    generator = torch.Generator().manual_seed(seed)
    layers: list[tuple[Op, tuple[int, ...]]] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [(dense(generator, outputs, inputs), (len(layers),)), (activation, (len(layers) + 1,))]
    return build(widths[:1], *layers[:-1])


def residual(seed: int = 0) -> Network:
    g = torch.Generator().manual_seed(seed)
    return build(
        (3,),
        (dense(g, 4, 3), (0,)),
        (Relu(), (1,)),
        (dense(g, 4, 4), (2,)),
        (AddBranches(), (3, 1)),
        (Relu(), (4,)),
        (dense(g, 4, 4), (5,)),
        (SubBranches(), (6, 2)),
        (Concat(0), (7, 5)),
        (dense(g, 2, 8), (8,)),
    )


def convolutional(seed: int = 0) -> Network:
    g = torch.Generator().manual_seed(seed)
    conv = Conv(torch.randn(2, 1, 2, 2, generator=g), torch.randn(2, 1, 1, generator=g), (1, 1), ((0, 1), (0, 1)), (1, 1))
    scale = BatchNormalization(
        torch.rand(2, generator=g) + 0.5, torch.randn(2, generator=g), torch.randn(2, generator=g), torch.rand(2, generator=g), 1e-5, 2
    )
    windows = torch.tensor([[[0, 1, 3, 4], [2, 5, 2, 5]], [[6, 7, 6, 7], [8, 8, 8, 8]]])
    pool = AveragePool((2, 2), (2, 2), ((0, 0), (0, 0)), torch.full((1, 1), 4.0))
    return build(
        (1, 3, 3),
        (Reshape((1, 1, 3, 3)), (0,)),
        (conv, (1,)),
        (scale, (2,)),
        (Relu(), (3,)),
        (Window(windows), (4,)),
        (MaxReduce(), (5,)),
        (pool, (6,)),
        (Reshape((2,)), (7,)),
        (Shift(torch.tensor([0.25, -0.5])), (8,)),
        (dense(g, 2, 2), (9,)),
    )


ZOO = {
    "relu": mlp(Relu()),
    "leaky": mlp(LeakyRelu(0.1)),
    "prelu": mlp(PRelu(torch.tensor(-0.3))),
    "abs": mlp(Abs()),
    "clip": mlp(Clip(-0.5, 1.0)),
    "one-sided clip": mlp(Clip(0.25)),
    "clip per element": build(
        (4,), (Clip(torch.tensor([-0.5, 0.1, -math.inf, 0.7]), torch.tensor([0.5, 0.2, 0.3, 0.3])), (0,)), (Linear(torch.ones(2, 4)), (1,))
    ),
    "residual": residual(),
    "convolutional": convolutional(),
    "affine": build((3,), (dense(torch.Generator().manual_seed(1), 2, 3), (0,))),
}


@pytest.fixture(params=ZOO)
def network(request: pytest.FixtureRequest) -> Network:
    return ZOO[request.param]


def box_of(network: Network, radius: float = 0.7, seed: int = 3) -> Box:
    center = torch.rand(1, *network.input_shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    return Box(center - radius, center + radius)


def intervals_of(network: Network, region: Region) -> tuple[Interval, ...]:
    return Ibp()(network.to(torch.float64), region).intervals


def unsafe_sets() -> list[Halfspaces]:
    one = Halfspaces(torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64))
    two = Halfspaces(torch.tensor([[1.0, -1.0], [0.5, 1.0]], dtype=torch.float64), torch.tensor([0.3, -0.2], dtype=torch.float64))
    return [one, two]


def margin_at(network: Network, unsafe: Halfspaces, x: np.ndarray) -> float:
    y = network.to(torch.float64)(torch.from_numpy(x)[None])
    return float(unsafe.margin(y.flatten(1))[0])


def fixed(encoding: Encoding, x: np.ndarray) -> Program:
    lower, upper = encoding.program.lower.copy(), encoding.program.upper.copy()
    lower[encoding.inputs.columns] = upper[encoding.inputs.columns] = x.reshape(-1)[encoding.inputs.features]
    return replace(encoding.program, lower=lower, upper=upper)


def extreme(program: Program, sign: float) -> float:
    solution = get_solver("highs").solve(replace(program, objective=sign * program.objective, constant=sign * program.constant))
    assert solution.status is Status.OPTIMAL
    return sign * solution.objective


@pytest.mark.parametrize("unsafe", unsafe_sets(), ids=["one", "two"])
def test_a_fixed_input_has_the_networks_value(network: Network, unsafe: Halfspaces) -> None:
    region = box_of(network)
    encoding = encode(network, region, unsafe, intervals_of(network, region))
    for x in region.sample(3, torch.Generator().manual_seed(0))[0].double().numpy():
        program = fixed(encoding, x)
        expected = margin_at(network, unsafe, x)
        assert extreme(program, 1.0) == pytest.approx(expected, abs=1e-6)
        if len(unsafe.d) == 1:
            assert extreme(program, -1.0) == pytest.approx(expected, abs=1e-6)


def test_every_value_is_unique_and_right(network: Network) -> None:
    region = box_of(network)
    last = len(network.nodes) - 1
    encoding = encode_node(network, region, intervals_of(network, region), last, np.ones(network.outputs, dtype=bool))
    x = region.sample(1, torch.Generator().manual_seed(1))[0, 0].double().numpy()
    solution = get_solver("scip").solve(fixed(encoding, x))
    values = network.to(torch.float64).values(torch.from_numpy(x)[None])
    for index, expression in encoding.values.items():
        wanted = encoding.wanted[index]
        assert np.allclose(expression.value(solution.x)[wanted], values[index].flatten().numpy()[wanted], atol=1e-6)
    assert np.allclose(encoding.point(solution.x), x, atol=1e-12)


def enumerate_relu(network: Network, region: Box, unsafe: Halfspaces) -> float:
    """min over the box of the worst margin by one linear program per activation pattern, with dense matrices made here."""
    layers = [node.op for node in network.nodes if isinstance(node.op, Linear)]
    weights = [(op.weight.double().numpy(), op.offset.double().numpy()) for op in layers]
    lower, upper = region.lower[0].double().numpy(), region.upper[0].double().numpy()
    hidden = sum(w.shape[0] for w, _ in weights[:-1])
    normals, offsets = unsafe.C.numpy(), unsafe.d.numpy()
    best = math.inf
    for pattern in itertools.product([0.0, 1.0], repeat=hidden):
        matrix, constant, rest = np.eye(lower.size), np.zeros(lower.size), np.array(pattern)
        rows, sides = [], []
        for w, b in weights[:-1]:
            matrix, constant = w @ matrix, w @ constant + b
            active, rest = rest[: b.size], rest[b.size :]
            sign = 1 - 2 * active
            rows.append(sign[:, None] * matrix)
            sides.append(-sign * constant)
            matrix, constant = active[:, None] * matrix, active * constant
        matrix, constant = weights[-1][0] @ matrix, weights[-1][0] @ constant + weights[-1][1]
        rows = np.vstack([*rows, normals @ matrix])
        sides = np.concatenate([*sides, offsets - normals @ constant])
        above = np.concatenate([np.zeros(hidden), -np.ones(len(offsets))])
        result = linprog(
            np.r_[np.zeros(lower.size), 1.0], A_ub=np.c_[rows, above], b_ub=sides, bounds=[*zip(lower, upper, strict=True), (None, None)]
        )
        if result.status == 0:
            best = min(best, result.fun)
    return best


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("unsafe", unsafe_sets(), ids=["one", "two"])
def test_minimum_equals_enumeration_of_activation_patterns(seed: int, unsafe: Halfspaces) -> None:
    network = mlp(Relu(), seed, (3, 4, 3, 2))
    region = box_of(network, seed=seed)
    expected = enumerate_relu(network, region, unsafe)
    solution = get_solver("scip").solve(encode(network, region, unsafe, intervals_of(network, region)).program)
    assert solution.objective == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_minimum_is_below_every_sample_and_attained(network: Network) -> None:
    region, unsafe = box_of(network), unsafe_sets()[1]
    encoding = encode(network, region, unsafe, intervals_of(network, region))
    solution = get_solver("scip").solve(encoding.program)
    samples = region.sample(300, torch.Generator().manual_seed(0))[0].double().numpy()
    assert solution.objective <= min(margin_at(network, unsafe, x) for x in samples) + 1e-6
    assert margin_at(network, unsafe, encoding.point(solution.x)) == pytest.approx(solution.objective, abs=1e-5)


def minimum(network: Network, region: Box, unsafe: Halfspaces) -> float:
    encoding = encode(network, region, unsafe, intervals_of(network, region))
    return get_solver("highs").solve(encoding.program).objective


def test_planted_big_m_too_small_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    network, unsafe = ZOO["relu"], unsafe_sets()[0]
    region = box_of(network)
    right = minimum(network, region, unsafe)
    exact = milp.activations._difference_up
    monkeypatch.setattr(milp.activations, "_difference_up", lambda a, b: exact(a, b) * 0.5)
    encoding = encode(network, region, unsafe, intervals_of(network, region))
    solution = get_solver("highs").solve(encoding.program)
    assert solution.objective is None or solution.objective > right + 1e-3


def test_planted_dropped_neuron_is_caught() -> None:
    network, unsafe = ZOO["relu"], unsafe_sets()[0]
    region = box_of(network)
    right = minimum(network, region, unsafe)
    intervals = list(intervals_of(network, region))
    unstable = (intervals[3].lower < 0) & (intervals[3].upper > 0)
    assert unstable.any()
    wrong = torch.where(unstable, torch.full_like(intervals[3].upper, -1e-9), intervals[3].upper)
    intervals[3] = Interval(intervals[3].lower, wrong)
    changed = get_solver("highs").solve(encode(network, region, unsafe, intervals).program).objective
    assert abs(changed - right) > 1e-3


def test_relaxation_is_the_triangle() -> None:
    network = build((1,), (Linear(torch.ones(1, 1)), (0,)), (Relu(), (1,)), (Linear(torch.ones(1, 1)), (2,)))
    region = Box(torch.tensor([[-1.0]]), torch.tensor([[3.0]]))
    for at in (-1.0, -0.25, 0.5, 3.0):
        values = {}
        for sign in (1.0, -1.0):
            unsafe = Halfspaces(torch.tensor([[sign]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
            encoding = encode(network, region, unsafe, intervals_of(network, region), relaxed=True)
            assert encoding.program.is_linear
            values[sign] = sign * extreme(fixed(encoding, np.array([at])), 1.0)
        assert values[1.0] == pytest.approx(max(at, 0.0), abs=1e-9)
        assert values[-1.0] == pytest.approx(0.75 * (at + 1.0), abs=1e-5)


def test_stable_neurons_need_no_variables() -> None:
    network = ZOO["relu"]
    region = box_of(network, radius=1e-4)
    encoding = encode(network, region, unsafe_sets()[0], intervals_of(network, region))
    assert encoding.binaries == 0
    assert encoding.program.columns == 3
    assert encoding.program.rows.shape[0] == 0


def test_fixed_features_are_constants() -> None:
    network = ZOO["relu"]
    region = Box(torch.tensor([[-0.5, 0.2, -0.4]]), torch.tensor([[0.5, 0.2, 0.4]]))
    encoding = encode(network, region, unsafe_sets()[0], intervals_of(network, region))
    assert encoding.inputs.features.tolist() == [0, 2]
    point = encoding.point(get_solver("scip").solve(encoding.program).x)
    assert point[1] == np.float32(0.2)


@pytest.mark.parametrize("eps", [0.6, torch.tensor([[0.6, 0.0, 1.1]])], ids=["scalar", "per feature"])
def test_l1_ball(eps: float | torch.Tensor) -> None:
    network, unsafe = ZOO["relu"], unsafe_sets()[0]
    region = LpBall(torch.tensor([[0.1, -0.2, 0.3]]), eps, 1.0)
    encoding = encode(network, region, unsafe, intervals_of(network, region))
    solution = get_solver("scip").solve(encoding.program)
    point = encoding.point(solution.x)
    widths = torch.as_tensor(region.eps)[0].numpy()
    moved = np.abs(point - region.center[0].numpy())
    assert moved[widths == 0].max(initial=0.0) == 0.0
    assert (moved[widths > 0] / widths[widths > 0]).sum() <= 1 + 1e-5
    samples = region.sample(2000, torch.Generator().manual_seed(0))[0].numpy()
    assert solution.objective <= min(margin_at(network, unsafe, x) for x in samples) + 1e-6


def test_ball_cuts_keep_the_ball() -> None:
    network = ZOO["relu"]
    region = LpBall(torch.tensor([[0.1, -0.2, 0.3]]), torch.tensor([[0.5, 0.25, 1.0]]), 2.0)
    encoding = encode(network, region, unsafe_sets()[0], intervals_of(network, region))
    columns = encoding.program.columns
    corner = encoding.program.upper.copy()
    cut = ball_cut(encoding.inputs, corner)
    matrix, _, sides = cut_rows(encoding.inputs, [cut, cut], columns)
    assert ((matrix @ corner) > sides + 0.1).all()
    for x in region.sample(500, torch.Generator().manual_seed(0))[0].numpy():
        inside = np.zeros(columns)
        inside[encoding.inputs.columns] = x
        assert (matrix @ inside <= sides).all()
    middle = np.zeros(columns)
    middle[encoding.inputs.columns] = region.center[0].numpy()
    assert ball_cut(encoding.inputs, middle) is None


@pytest.mark.parametrize("index", range(1, 11))
def test_jacobians_are_the_ops(index: int) -> None:
    network = ZOO["convolutional"].to(torch.float64)
    node = network.nodes[index]
    if not hasattr(node.op, "linear"):
        return
    shapes = network.input_shapes(index)
    xs = [torch.randn(1, *shape, dtype=torch.float64) for shape in shapes]
    total = sum(part @ x.flatten().numpy() for part, x in zip(jacobians(node.op, shapes), xs, strict=True))
    assert np.allclose(total, node.op.linear(*xs).flatten().numpy(), atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_coloured_probes_find_what_single_columns_find(stride: int) -> None:
    generator = torch.Generator().manual_seed(stride)
    weight = torch.randn(4, 2, 3, 2, generator=generator, dtype=torch.float64)
    weight[0, 0] = 0.0
    op = Conv(weight, None, (stride, 1), ((1, 1), (0, 2)), (1, 2))
    shape = (1, 2, 9, 11)
    calls: list[int] = []

    def apply(probe: torch.Tensor) -> torch.Tensor:
        calls.append(len(probe))
        return op.linear(probe).flatten(1)

    colored = milp.jacobian._by_colors(apply, shape, math.inf)
    assert sum(calls) < 2 * 9 * 11 / 2
    assert (colored != milp.jacobian._by_columns(apply, shape, math.inf)).nnz == 0
    with pytest.raises(MemoryLimitError, match="memory-limit"):
        milp.jacobian._by_colors(apply, shape, 1e-5)


def test_smooth_activations() -> None:
    network, unsafe = mlp(Sigmoid()), unsafe_sets()[0]
    region = box_of(network)
    with pytest.raises(UnsupportedOpError, match=r"Sigmoid_2.*no exact MILP form"):
        encode(network, region, unsafe, intervals_of(network, region))
    relaxed = encode(network, region, unsafe, intervals_of(network, region), relaxed=True)
    bound = get_solver("highs").solve(relaxed.program).dual_bound
    samples = region.sample(300, torch.Generator().manual_seed(0))[0].double().numpy()
    lowest = min(margin_at(network, unsafe, x) for x in samples)
    assert lowest - 2.0 < bound <= lowest


def test_errors_name_what_is_wrong() -> None:
    network, unsafe = ZOO["relu"], unsafe_sets()[0]
    region = box_of(network)
    intervals = intervals_of(network, region)
    with pytest.raises(ShapeError, match="5"):
        encode(network, region, Halfspaces(torch.ones(1, 5, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)), intervals)
    with pytest.raises(ShapeError, match="one region"):
        encode(network, Box(torch.zeros(2, 3), torch.ones(2, 3)), unsafe, intervals)
    broken = {1: Interval(intervals[1].lower, intervals[1].upper * math.nan)}
    with pytest.raises(NumericsError, match="Linear_1"):
        encode(network, region, unsafe, broken)
    with pytest.raises(MemoryLimitError, match="memory-limit"):
        encode(network, region, unsafe, intervals, memory_mb=1e-4)


def test_rows_enclose_the_network_in_real_arithmetic() -> None:
    """A pre-activation that is a sum of three layers' rounding still satisfies its rows in float64 within their slack."""
    network = ZOO["convolutional"]
    region = box_of(network)
    encoding = encode(network, region, unsafe_sets()[0], intervals_of(network, region))
    program = encoding.program
    widths = (program.row_upper - program.row_lower)[np.isfinite(program.row_lower) & np.isfinite(program.row_upper)]
    assert (widths >= 0).all()
    assert widths[widths < 1].max(initial=0.0) < 1e-10
    assert isinstance(program.rows, sparse.csr_matrix)
