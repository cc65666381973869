"""Optimised slopes and multipliers: valid for any choice, better than CROWN's, and worth what duality promises."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import cvxpy
import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.alpha import AlphaCrown, Alphas, Ascent, RowProblem
from bounds.backward import objective_start
from bounds.crown import Crown
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.ops.piecewise import Relu
from bounds.ops.smooth import Tanh
from bounds.region import Box
from bounds.rowwise import RowWalk, Split
from bounds.trace import Trace
from bounds.view import View
from tests.bounds.networks import ZOO, chain, regions

UNIT = Box(-torch.ones(1, 3), torch.ones(1, 3))


def small(activation: type = Relu, seed: int = 0) -> Network:
    rng = torch.Generator().manual_seed(seed)
    widths = (3, 6, 5, 2)
    layers = []
    for k, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        weight, bias = torch.randn(outputs, inputs, generator=rng) / inputs**0.5, torch.randn(outputs, generator=rng) / 4
        layers += [Linear(weight, bias)] + ([activation()] if k < 2 else [])
    return chain((3,), *layers)


def traced(network: Network, region: Box, dtype: torch.dtype = torch.float32) -> Trace:
    """The trace that CROWN leaves behind."""
    net, where = network.to(dtype), region.to(dtype)
    trace, found = Trace(net, where), Crown(dtype)(network, region).intervals
    for index in range(len(net.nodes)):
        trace.visit(index, found[index], "adaptive")
    return trace


def problem_of(trace: Trace, C: Tensor, splits: dict[int, Split] | None = None, **more: object) -> RowProblem:
    start = objective_start(View(trace, None), C.to(trace.dtype).unsqueeze(0))
    return RowProblem(trace, len(trace.network.nodes) - 1, start, splits=splits, **more)  # type: ignore[arg-type]


def anything(problem: RowProblem, seed: int) -> Alphas:
    rng = torch.Generator().manual_seed(seed)
    batch, rows = problem.start.fee.shape
    return {k: tuple(torch.rand(batch, rows, *a.shape[2:], generator=rng).to(a) for a in alphas) for k, alphas in problem.initial().items()}


def samples(network: Network, region: Box, count: int = 4000) -> tuple[Tensor, list[Tensor]]:
    x = region.sample(count, torch.Generator().manual_seed(1))[0].double()
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3))).double()
    x = torch.cat([x, corners]) if region is UNIT else x
    return x, network.to(torch.float64).values(x)


@pytest.mark.parametrize("activation", [Relu, Tanh])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_slopes_are_valid(activation: type, dtype: torch.dtype) -> None:
    network, C = small(activation), torch.tensor([[1.0, 0.0], [-1.0, 2.0]])
    problem = problem_of(traced(network, UNIT, dtype), C)
    x, values = samples(network, UNIT)
    lowest = (values[-1] @ C.double().T).amin(0)
    for seed in range(20):
        alphas = anything(problem, seed)
        proven = problem.prove(alphas, {})
        assert bool((proven.bound[0] <= lowest).all())
        planes = torch.einsum("rn,sn->sr", proven.A[0].double(), x) + proven.b[0]
        assert bool((planes <= values[-1] @ C.double().T).all())
        assert torch.allclose(problem.estimate(alphas, {}).double(), proven.bound, atol=1e-3)


@pytest.mark.parametrize("name", ["relu", "residual", "convolutional", "tanh", "activation chain", "smooth and max"])
def test_more_steps_never_cost_tightness(name: str) -> None:
    network = ZOO[name]
    region = regions(network, "box")
    before = Crown()(network, region)
    for engine in (AlphaCrown(steps=0, hidden=False), AlphaCrown(steps=15, hidden=False), AlphaCrown(steps=15)):
        after = engine(network, region)
        assert bool((after.objective.lower >= before.objective.lower).all() and (after.objective.upper <= before.objective.upper).all())
    assert float(after.objective.width.sum()) < float(before.objective.width.sum())


def test_the_ascent_is_single_precision_and_its_proof_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an ascent in float32 finds is proven in float64: as tight as an ascent in float64, and not wider by float32's roundings."""
    network = small()
    searched, proven = [], []
    maximise, prove = RowProblem.maximise, RowProblem.prove

    def noting_maximise(self: RowProblem, *arguments: object) -> object:
        searched.append(self.trace.dtype)
        return maximise(self, *arguments)  # type: ignore[arg-type]

    def noting_prove(self: RowProblem, *arguments: object) -> object:
        proven.append(self.trace.dtype)
        return prove(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RowProblem, "maximise", noting_maximise)
    monkeypatch.setattr(RowProblem, "prove", noting_prove)
    engine = AlphaCrown(torch.float64, hidden=False)
    found = engine(network, UNIT).objective
    assert set(searched) == {torch.float32}
    assert set(proven) == {torch.float64}
    trace = traced(network, UNIT, torch.float64)
    for sign, ends in ((1.0, found.lower[0]), (-1.0, -found.upper[0])):
        problem = problem_of(trace, sign * torch.eye(2))
        alphas, betas, _ = maximise(problem, problem.initial(), {}, Ascent(engine.steps, engine.lr))
        assert torch.allclose(ends, prove(problem, alphas, betas).bound[0], rtol=0, atol=1e-5 * float(found.width.max()))


def test_hidden_bounds_are_optimised_until_their_time_is_over() -> None:
    network = small(seed=1)
    over, never, ever = (AlphaCrown(hidden_until=time.monotonic() - 1), AlphaCrown(hidden=False), AlphaCrown())
    late, last, all_ = (engine(network, UNIT).intervals for engine in (over, never, ever))
    for index in range(len(network.nodes) - 1):
        assert torch.equal(late[index].lower, last[index].lower)
    assert float(sum(i.width.sum() for i in all_)) < float(sum(i.width.sum() for i in late))


def test_a_trace_in_another_type_encloses() -> None:
    trace = traced(small(Tanh), UNIT, torch.float64)
    narrow = trace.in_type(torch.float32, "adaptive")
    assert narrow.dtype == torch.float32
    for index, interval in trace.intervals.items():
        assert bool((narrow.interval(index).lower <= interval.lower).all() and (narrow.interval(index).upper >= interval.upper).all())
        assert torch.allclose(narrow.interval(index).width.double(), interval.width, atol=1e-6)


def relaxed_minimum(network: Network, trace: Trace, row: Tensor, assumed: dict[int, tuple[int, int]]) -> float:
    """min of the row over the triangle relaxation of every ReLU on the trace's intervals, by a linear program."""
    x = cvxpy.Variable(3)
    values: list[cvxpy.Expression] = [x]
    constraints = [x >= -1, x <= 1]
    for node in network.nodes[1:]:
        z = values[node.inputs[0]]
        if isinstance(node.op, Linear):
            values.append(node.op.weight.double().numpy() @ z + node.op.offset.double().numpy())
            continue
        low, high = (getattr(trace.interval(node.inputs[0]), side)[0].double().numpy().copy() for side in ("lower", "upper"))
        for source, (element, sign) in assumed.items():
            if source == node.inputs[0]:
                constraints += [sign * z[element] >= 0]
                low[element], high[element] = (max(low[element], 0), high[element]) if sign > 0 else (low[element], min(high[element], 0))
        y = cvxpy.Variable(z.shape[0])
        stable_on, stable_off = low >= 0, high <= 0
        chord = np.where(stable_on, 1.0, np.where(stable_off, 0.0, high / np.where(high > low, high - low, 1)))
        constraints += [y >= 0, y >= z, y <= cvxpy.multiply(chord, z - np.where(stable_on | stable_off, 0, low))]
        constraints += [y[k] == z[k] for k in np.flatnonzero(stable_on)] + [y[k] == 0 for k in np.flatnonzero(stable_off)]
        values.append(y)
    found = cvxpy.Problem(cvxpy.Minimize(row.double().numpy() @ values[-1]), constraints)
    found.solve(solver="CLARABEL")
    return float(found.value)


@pytest.mark.parametrize("seed", range(4))
def test_the_ascent_reaches_the_linear_program(seed: int) -> None:
    """For ReLU networks and fixed intervals the best slopes give the value of the triangle relaxation, by duality."""
    network, row = small(seed=seed), torch.tensor([[1.0, -1.0]])
    trace = traced(network, UNIT, torch.float64)
    problem = problem_of(trace, row)
    alphas, _, record = problem.maximise(problem.initial(), {}, Ascent(steps=600, lr=0.05, decay=0.993))
    exact = relaxed_minimum(network, trace, row[0], {})
    proven = float(problem.prove(alphas, {}).bound)
    assert proven <= exact + 1e-7
    assert proven == pytest.approx(exact, abs=5e-3)
    assert float(record) == pytest.approx(proven, abs=1e-9)


def unstable_neurons(trace: Trace) -> list[tuple[int, int]]:
    """(node, element) of every unstable ReLU."""
    found = []
    for index, node in enumerate(trace.network.nodes):
        if isinstance(node.op, Relu):
            interval = trace.interval(node.inputs[0])
            found += [(node.inputs[0], int(k)) for k in ((interval.lower < 0) & (interval.upper > 0))[0].nonzero().flatten()]
            assert index > 0
    return found


def split_problem(trace: Trace, row: Tensor, source: int, element: int) -> RowProblem:
    """Two rows: the first assumes z >= 0 for the neuron, the second z <= 0."""
    activation = trace.network.successors[source][0]
    relu = trace.interval(source)
    columns = ((relu.lower < 0) & (relu.upper > 0))[0].nonzero().flatten()
    lower, upper = (side[0, columns].repeat(1, 2, 1).clone() for side in (relu.lower, relu.upper))
    where = columns.tolist().index(element)
    lower[0, 0, where], upper[0, 1, where] = 0.0, 0.0
    split = Split(
        torch.full((1, 2, 1), element),
        torch.tensor([[[1.0], [-1.0]]], dtype=trace.dtype),
        torch.zeros(1, 2, 1, dtype=torch.float64),
        torch.zeros(1, 2, 1, dtype=trace.dtype),
    )
    return problem_of(trace, row.repeat(2, 1), {source: split}, intervals={activation: Interval(lower, upper)})


@pytest.mark.parametrize("seed", range(2))
def test_split_neurons(seed: int) -> None:
    """Multipliers reach the linear program with the split's half-space, and stay below every point of that side."""
    network, row = small(seed=seed), torch.tensor([[1.0, -1.0]])
    trace = traced(network, UNIT, torch.float64)
    _, values = samples(network, UNIT)
    outputs = values[-1] @ row[0].double()
    for source, element in unstable_neurons(trace)[::2]:
        problem = split_problem(trace, row, source, element)
        betas, alphas = {source: torch.full((1, 2, 1), 0.01, dtype=torch.float64)}, problem.initial()
        # The bound has kinks: ascents that start from the best point met, with smaller and smaller steps, depend less on one path's last bits.
        for lr in (0.1, 0.05, 0.02):
            alphas, betas, _ = problem.maximise(alphas, betas, Ascent(steps=120, lr=lr, beta_lr=5 * lr, decay=0.98))
        proven = problem.prove(alphas, betas).bound[0]
        for side, sign in enumerate((1, -1)):
            inside = outputs[sign * values[source][:, element] >= 0]
            assert inside.numel() == 0 or float(proven[side]) <= float(inside.min())
            exact = relaxed_minimum(network, trace, row[0], {source: (element, sign)})
            assert float(proven[side]) <= exact + 1e-7
            assert float(proven[side]) >= min(exact, 10.0) - 0.025


def violated(problem: RowProblem, network: Network, source: int, element: int, row: Tensor) -> bool:
    """Whether some multiplier gives a bound above a point of its own side."""
    _, values = samples(network, UNIT)
    outputs = values[-1] @ row[0].double()
    for beta in (0.0, 0.1, 0.5, 2.0):
        betas = {source: torch.full((1, 2, 1), beta, dtype=torch.float64)}
        best = problem.maximise(problem.initial(), betas, Ascent(steps=30, beta_lr=0.2))
        for alphas, chosen in ((problem.initial(), betas), best[:2]):
            proven = problem.prove(alphas, chosen).bound[0]
            for side, sign in enumerate((1, -1)):
                inside = outputs[sign * values[source][:, element] >= 0]
                if inside.numel() and float(proven[side]) > float(inside.min()):
                    return True
    return False


def test_any_multiplier_is_valid_and_a_wrong_sign_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    network, row = small(), torch.tensor([[1.0, -1.0]])
    trace = traced(network, UNIT, torch.float64)
    neurons = unstable_neurons(trace)[-3:]
    assert not any(violated(split_problem(trace, row, *neuron), network, *neuron, row) for neuron in neurons)
    arrive = RowWalk._arrive

    def flipped(self: RowWalk, index: int, A: Tensor | None) -> Tensor | None:
        view = self.view
        if index in view.splits:
            self.view = replace(view, splits={index: replace(view.splits[index], assumed=-view.splits[index].assumed)})
        result = arrive(self, index, A)
        self.view = view
        return result

    def no_offset(self: RowWalk, index: int, A: Tensor | None) -> Tensor | None:
        before = self.lower
        result = arrive(self, index, A)
        self.lower = before
        return result

    for mutant in (flipped, no_offset):
        monkeypatch.setattr(RowWalk, "_arrive", mutant)
        assert any(violated(split_problem(trace, row, *neuron), network, *neuron, row) for neuron in neurons)
