"""What neurons can be where an output is reached: no such point is ever left out, and linear programs say how tight it can be."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.alpha import Ascent, RowProblem
from bounds.backward import objective_start
from bounds.crown import Crown
from bounds.implied import Assumed, ImpliedProblem, implied
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.region import Region
from bounds.rowwise import Split
from bounds.trace import Trace, trace_through
from bounds.view import View
from tests.bounds.networks import ZOO, regions
from tests.bounds.test_alpha import UNIT, small, traced

MEMORY = 10**7


def lowest_tenth(network: Network, region: Region, c: Tensor) -> tuple[float, list[Tensor]]:
    """A value d that a tenth of the sampled points have c f(x) <= d for, and every node's values at those points."""
    region = region.to(torch.float64)
    x = region.sample(4000, torch.Generator().manual_seed(2))[0]
    values = network.to(torch.float64).values(x)
    rows = values[-1].flatten(1) @ c.double()
    d = float(rows.sort().values[400])
    return d, [v[rows <= d] for v in values]


def contains(interval: Interval, values: Tensor) -> bool:
    return bool((interval.lower <= values).all() and (values <= interval.upper).all())


@pytest.mark.parametrize("name", ["relu", "residual", "convolutional", "tanh", "smooth and max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_point_that_reaches_the_output_is_left_out(name: str, dtype: torch.dtype) -> None:
    network = ZOO[name]
    region = regions(network, "box").select(torch.tensor([0]))
    c = torch.zeros(network.outputs)
    c[0], c[-1] = 1.0, -1.0
    d, values = lowest_tenth(network, region, c)
    trace, narrower = traced(network, region, dtype), 0.0
    for index in network.preactivations:
        found, multipliers = implied(trace, index, Assumed(c, d), Ascent(8, beta_lr=0.2), MEMORY)
        assert contains(found, values[index])
        again, _ = implied(trace, index, Assumed(c, d), Ascent(8, beta_lr=0.2), MEMORY, multipliers)
        assert contains(again, values[index])
        narrower += float((trace.interval(index).width - found.width.to(dtype)).sum())
    assert narrower > 0


def test_an_output_that_cannot_be_reached_leaves_nothing() -> None:
    network, c = small(), torch.tensor([1.0, -1.0])
    trace = traced(network, UNIT, torch.float64)
    impossible = float(Crown(torch.float64)(network, UNIT, c.view(1, 2).double()).objective.lower) - 0.5
    last = max(network.preactivations)
    found, _ = implied(trace, last, Assumed(c, impossible), Ascent(20, beta_lr=0.3), MEMORY)
    assert bool((found.lower > found.upper).any())
    assert trace_through(network.to(torch.float64), UNIT.to(torch.float64), {last: found}) is None


def least(network: Network, trace: Trace, source: int, row: Tensor, assumed: Assumed) -> float:
    """min of the row at node `source` over the triangle relaxation with c f(x) <= d, by a linear program."""
    x = cvxpy.Variable(3)
    values: list[cvxpy.Expression] = [x]
    constraints = [x >= -1, x <= 1]
    for node in network.nodes[1:]:
        z = values[node.inputs[0]]
        if isinstance(node.op, Linear):
            values.append(node.op.weight.double().numpy() @ z + node.op.offset.double().numpy())
            continue
        interval = trace.interval(node.inputs[0])
        low, high = interval.lower[0].double().numpy(), interval.upper[0].double().numpy()
        on, off = low >= 0, high <= 0
        chord = np.where(on, 1.0, np.where(off, 0.0, high / np.where(high > low, high - low, 1)))
        y = cvxpy.Variable(z.shape[0])
        constraints += [y >= 0, y >= z, y <= cvxpy.multiply(chord, z - np.where(on | off, 0, low))]
        constraints += [y[k] == z[k] for k in np.flatnonzero(on)] + [y[k] == 0 for k in np.flatnonzero(off)]
        values.append(y)
    constraints.append(assumed.c.double().numpy() @ values[-1] <= assumed.d)
    found = cvxpy.Problem(cvxpy.Minimize(row.double().numpy() @ values[source]), constraints)
    found.solve(solver="CLARABEL")
    return float(found.value)


@pytest.mark.parametrize("seed", range(2))
def test_long_ascents_come_close_to_the_linear_program(seed: int) -> None:
    network, c = small(seed=seed), torch.tensor([1.0, -1.0])
    d, _ = lowest_tenth(network, UNIT, c)
    trace = traced(network, UNIT, torch.float64)
    index = max(network.preactivations)
    interval = trace.interval(index)
    found, start = implied(trace, index, Assumed(c, d), Ascent(150, beta_lr=0.2, decay=0.98), MEMORY)
    found, _ = implied(trace, index, Assumed(c, d), Ascent(150, lr=0.05, beta_lr=0.05, decay=0.98), MEMORY, start)
    reached = possible = 0.0
    for k in ((interval.lower < 0) & (interval.upper > 0))[0].nonzero().flatten().tolist():
        row = torch.zeros(interval.shape[1])
        row[k] = 1.0
        low, high = least(network, trace, index, row, Assumed(c, d)), least(network, trace, index, -row, Assumed(c, d))
        before = float(interval.lower[0, k]), -float(interval.upper[0, k])
        for bound, exact, known in ((float(found.lower[0, k]), low, before[0]), (-float(found.upper[0, k]), high, before[1])):
            assert bound <= max(exact, known) + 1e-6
            reached, possible = reached + bound - known, possible + max(exact, known) - known
    assert possible > 0.1
    assert reached > 0.8 * possible


def test_an_element_pays_for_what_is_rounded_below_it() -> None:
    """A row that is 3 z for one neuron: what a walk from there is charged counts three times."""
    network = small()
    trace = traced(network, UNIT)
    index = max(network.preactivations)
    start = objective_start(View(trace, None), torch.zeros(1, 1, 2))
    split = Split(
        torch.zeros(1, 1, 1, dtype=torch.long), -torch.ones(1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1)
    )
    problem = RowProblem(trace, len(network.nodes) - 1, start, splits={index: split})
    alphas, betas = problem.initial(), {index: torch.full((1, 1, 1), 3.0)}
    before = float(problem.prove(alphas, betas).bound)
    trace.charge[index] = trace.charge[index] + 0.5
    assert before - 2.0 <= float(problem.prove(alphas, betas).bound) <= before - 1.5


def test_a_wrong_sign_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dividing by mu without subtracting d, or the bound of the other sign, leaves points out."""
    network, c = small(), torch.tensor([1.0, -1.0])
    d, values = lowest_tenth(network, UNIT, c)
    trace = traced(network, UNIT, torch.float64)
    right = ImpliedProblem.implied

    def everything_inside() -> bool:
        found = [implied(trace, k, Assumed(c, d), Ascent(8, beta_lr=0.2), MEMORY)[0] for k in network.preactivations]
        return all(contains(f, values[k]) for f, k in zip(found, network.preactivations, strict=True))

    assert everything_inside()
    monkeypatch.setattr(
        ImpliedProblem, "implied", lambda self, a, b: right(self, a, b) + 2 * abs(self.d) / self._mu(b[self.index])[0, :, 0]
    )
    assert not everything_inside()
    monkeypatch.setattr(ImpliedProblem, "implied", lambda self, a, b: -right(self, a, b))
    assert not everything_inside()
