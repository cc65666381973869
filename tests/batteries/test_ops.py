"""Every affine operator against its own matrix: adjoint, interval, absolute values, counts of roundings.

The matrix of a case is read off column by column from `linear` in float64, so nothing here trusts an override.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bounds import rounding
from bounds.interval import Interval
from bounds.ops import affine, convolution, shape
from bounds.ops.base import Affine, MovesData, Shape, product

SEEDED = torch.Generator().manual_seed(3)


@dataclass(frozen=True)
class Case:
    op: Affine
    shapes: tuple[Shape, ...]

    def __str__(self) -> str:
        return f"{type(self.op).__name__}{self.shapes}"


def _frame(shape: Shape, pads: tuple[tuple[int, int], ...], value: float) -> Tensor:
    return torch.nn.functional.pad(torch.zeros(shape), [p for pair in reversed(pads) for p in pair], value=value)


def R(*size: int) -> Tensor:
    return torch.randn(*size, generator=SEEDED)


PADS = ((0, 0), (1, 2), (0, -1))
CASES = [
    Case(affine.Linear(R(4, 6), R(4)), ((1, 6),)),
    Case(affine.Linear(R(4, 6), R(3, 4)), ((3, 6),)),
    Case(affine.Linear(R(4, 6)), ((6,),)),
    Case(affine.LeftLinear(R(3, 5), R(3, 1)), ((5, 1),)),
    Case(affine.LeftLinear(R(3, 5)), ((2, 5, 4),)),
    Case(convolution.Conv(R(4, 2, 3, 3), R(4, 1, 1), (1, 1), ((1, 1), (1, 1)), (1, 1)), ((1, 2, 5, 6),)),
    Case(convolution.Conv(R(4, 2, 4, 4), None, (2, 2), ((1, 1), (1, 1)), (1, 1)), ((1, 2, 7, 8),)),
    Case(convolution.Conv(R(4, 8, 3, 3), None, (2, 2), ((1, 1), (1, 1)), (1, 1)), ((1, 8, 6, 5),)),
    Case(convolution.Conv(R(4, 1, 5, 3), None, (3, 3), ((0, 2), (1, 0)), (1, 1)), ((1, 1, 10, 6),)),
    Case(convolution.Conv(R(4, 1, 1, 1), None, (2, 2), ((0, 0), (0, 0)), (1, 1)), ((1, 1, 4, 5),)),
    Case(convolution.Conv(R(4, 1, 3, 2), R(4, 1, 1), (3, 2), ((0, 2), (1, 0)), (2, 1), 2), ((1, 2, 9, 6),)),
    Case(convolution.Conv(R(3, 2, 3), R(3, 1), (2,), ((2, 0),), (2,)), ((1, 2, 8),)),
    Case(convolution.Conv(R(2, 1, 2, 2, 2), None, (1, 2, 1), ((0, 0), (1, 1), (0, 1)), (1, 1, 1)), ((1, 1, 3, 4, 3),)),
    Case(convolution.ConvTranspose(R(2, 3, 3, 3), R(3, 1, 1), (2, 2), ((1, 1), (1, 1)), (1, 1)), ((1, 2, 4, 3),)),
    Case(convolution.ConvTranspose(R(4, 2, 2, 3), None, (3, 2), ((1, -1), (0, 2)), (1, 2), 2), ((1, 4, 3, 3),)),
    Case(convolution.ConvTranspose(R(2, 2, 4), R(2, 1), (2,), ((1, 1),), (1,)), ((1, 2, 5),)),
    Case(affine.Scale(R(3, 1)), ((1, 3, 4),)),
    Case(affine.Scale(R(2, 4)), ((2, 1),)),
    Case(affine.Divide(R(4) + 3), ((2, 4),)),
    Case(affine.Divide(torch.tensor(0.3081)), ((2, 4),)),
    Case(affine.Shift(R(2, 3, 4)), ((2, 3, 1),)),
    Case(affine.Shift(R(4), torch.tensor(0.3)), ((2, 4),)),
    Case(affine.AddBranches(), ((2, 3), (2, 3))),
    Case(affine.AddBranches(), ((2, 3), (1, 3), (2, 1))),
    Case(affine.SubBranches(), ((1, 3), (2, 3))),
    Case(affine.BatchNormalization(R(3), R(3), R(3), R(3).abs() + 0.1, 1e-5, 2), ((1, 3, 2, 2),)),
    Case(affine.BatchNormalization(R(3), R(3), R(3), R(3).abs(), 1e-3, 0), ((1, 3),)),
    Case(convolution.AveragePool((2, 3), (2, 1), ((0, 0), (1, 1)), torch.full((2, 4), 6.0)), ((1, 2, 4, 4),)),
    Case(convolution.AveragePool((3,), (2,), ((1, 1),), torch.tensor([2.0, 3.0, 2.0])), ((1, 2, 5),)),
    Case(convolution.AveragePool((2, 2, 2), (1, 2, 2), ((0, 0), (0, -1), (0, 0)), torch.full((2, 1, 2), 8.0)), ((1, 1, 3, 3, 4),)),
    Case(affine.ReduceSum((1, 2), False), ((2, 3, 4),)),
    Case(affine.ReduceMean((0, 2), True), ((2, 3, 4),)),
    Case(shape.Reshape((4, 6)), ((2, 3, 4),)),
    Case(shape.Transpose((2, 0, 1)), ((2, 3, 4),)),
    Case(shape.Expand((2, 3, 4)), ((2, 1, 4),)),
    Case(shape.Slice(((0, 2, 1), (1, 5, 2))), ((2, 6),)),
    Case(shape.Gather(1, torch.tensor([[0, 2], [2, 1]])), ((2, 3, 2),)),
    Case(shape.Gather(0, torch.tensor(1)), ((3, 2),)),
    Case(shape.Window(torch.tensor([[0, 1, 4, 5], [5, 6, 9, 10]])), ((1, 2, 3, 4),)),
    Case(shape.Concat(1), ((2, 3), (2, 1))),
    Case(shape.Concat(1, (0, 2, 1), torch.cat([torch.zeros(2, 3), R(2, 2), torch.zeros(2, 1), R(2, 1)], 1)), ((2, 3), (2, 1))),
    Case(shape.Pad(PADS), ((1, 3, 4),)),
    Case(shape.Pad(PADS, _frame((1, 3, 4), PADS, -0.7)), ((1, 3, 4),)),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def matrices(case: Case) -> tuple[list[Tensor], Tensor]:
    """W_j of shape (outputs, inputs_j) and b of shape (outputs,), in float64, from `linear` on unit vectors."""
    op = case.op.to(torch.float64)
    zeros = [torch.zeros(1, *s, dtype=torch.float64) for s in case.shapes]
    found = []
    for j, s in enumerate(case.shapes):
        units = torch.eye(product(s), dtype=torch.float64).reshape(-1, *s)
        xs = [units if k == j else z.expand(len(units), *z.shape[1:]) for k, z in enumerate(zeros)]
        found.append(op.linear(*xs).flatten(1).T)
    return found, op.forward(*zeros).flatten()


def points(case: Case, dtype: torch.dtype, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(count, *s, generator=generator, dtype=torch.float64).to(dtype) for s in case.shapes]


def concrete(family: type) -> Iterator[type]:
    for cls in family.__subclasses__():
        yield from concrete(cls)
        if not inspect.isabstract(cls) and cls is not MovesData:
            yield cls


def test_every_affine_operator_has_a_case() -> None:
    ours = {cls for cls in concrete(Affine) if cls.__module__.startswith("bounds.")}
    assert ours == {type(case.op) for case in CASES}


@each_case
def test_forward_is_the_matrix(case: Case) -> None:
    weights, bias = matrices(case)
    xs = points(case, torch.float64)
    expected = sum(x.flatten(1) @ w.T for x, w in zip(xs, weights, strict=True)) + bias
    torch.testing.assert_close(case.op.to(torch.float64).forward(*xs).flatten(1), expected, rtol=1e-12, atol=1e-12)


@each_case
@pytest.mark.parametrize("absolute", [False, True])
def test_adjoint(case: Case, absolute: bool) -> None:
    op = case.op.to(torch.float64)
    xs = points(case, torch.float64)
    y = op.linear(*xs, absolute=absolute)
    c = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    pulled = op.adjoint(c, *case.shapes, absolute=absolute)
    assert [tuple(a.shape) for a in pulled] == [tuple(x.shape) for x in xs]
    inner = sum((x * a).sum() for x, a in zip(xs, pulled, strict=True))
    torch.testing.assert_close((y * c).sum(), inner, rtol=1e-10, atol=1e-10)
    for fast, derived in zip(pulled, Affine.adjoint(op, c, *case.shapes, absolute=absolute), strict=True):
        torch.testing.assert_close(fast, derived, rtol=1e-12, atol=1e-12)


@each_case
def test_absolute_is_the_matrix_of_absolute_values(case: Case) -> None:
    weights, _ = matrices(case)
    xs = [x.abs() for x in points(case, torch.float64)]
    expected = sum(x.flatten(1) @ w.abs().T for x, w in zip(xs, weights, strict=True))
    got = case.op.to(torch.float64).linear(*xs, absolute=True).flatten(1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    signed = case.op.to(torch.float64).linear(*xs).flatten(1)
    assert (got >= signed.abs() - 1e-12).all()


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interval_is_the_exact_range(case: Case, dtype: torch.dtype) -> None:
    weights, bias = matrices(case)
    centers, radii = points(case, dtype), [r.abs() for r in points(case, dtype)]
    boxes = [Interval(c - r, c + r) for c, r in zip(centers, radii, strict=True)]
    got = case.op.to(dtype).interval(*boxes)
    low, high = bias.clone(), bias.clone()
    for box, w in zip(boxes, weights, strict=True):
        lower, upper = box.lower.double().flatten(1), box.upper.double().flatten(1)
        low = low + lower @ w.clamp(min=0).T + upper @ w.clamp(max=0).T
        high = high + upper @ w.clamp(min=0).T + lower @ w.clamp(max=0).T
    mags = [box.magnitude.double().flatten(1) for box in boxes]
    expected_v = sum(m @ w.abs().T for m, w in zip(mags, weights, strict=True)) + bias.abs()
    v = case.op.to(torch.float64).magnitude(*(box.magnitude.double() for box in boxes)).flatten(1)
    slack = 1e-15 * (1 + expected_v) * product(case.shapes[0])  # this test's own float64 roundings
    loose = 4 * (case.op.fan_in(*case.shapes) + 8) * rounding.unit_roundoff(dtype) * v + slack
    lower, upper = got.lower.double().flatten(1), got.upper.double().flatten(1)
    assert (lower <= low + slack).all()
    assert (upper >= high - slack).all()
    assert (lower >= low - loose).all()
    assert (upper <= high + loose).all()
    assert (v >= expected_v * (1 - 1e-5)).all()


@each_case
def test_moved_data_is_exact(case: Case) -> None:
    if not isinstance(case.op, MovesData):
        assert case.op.terms(*case.shapes) > 0
        return
    assert case.op.terms(*case.shapes) == 0
    xs = points(case, torch.float32)
    got = case.op.interval(*(Interval(x, x) for x in xs))
    assert torch.equal(got.lower, got.upper)
    assert torch.equal(got.lower, case.op.forward(*xs))


def _roundings(coefficients: Tensor, extra: int) -> int:
    """Roundings of the longest sum of a row: one per product (none for +-1), and one fewer additions than addends."""
    count = int((coefficients != 0).sum(dim=1).max()) + extra
    exact = bool(((coefficients == 0) | (coefficients.abs() == 1)).all())
    return count - 1 if exact else count


@each_case
def test_terms_count_every_rounding(case: Case) -> None:
    weights, bias = matrices(case)
    if isinstance(case.op, MovesData):
        return
    assert case.op.terms(*case.shapes) >= _roundings(torch.cat(weights, dim=1), int(bool(bias.any())))
    assert case.op.adjoint_terms(*case.shapes) >= max(_roundings(w.T, 0) for w in weights)


@each_case
def test_float32_stays_within_the_allowance(case: Case) -> None:
    weights, bias = matrices(case)
    xs = points(case, torch.float32, 20)
    shapes = case.shapes
    exact = sum(x.double().flatten(1) @ w.T for x, w in zip(xs, weights, strict=True)) + bias
    v = case.op.magnitude(*(x.abs() for x in xs)).double().flatten(1)
    terms, adjoint_terms = case.op.fan_in(*shapes), case.op.fan_out(*shapes)
    y = case.op.forward(*xs)
    assert ((y.double().flatten(1) - exact).abs() <= rounding.gamma(terms, torch.float32) * v + 1e-30).all()
    A = torch.randn(20, *y.shape[1:], generator=torch.Generator().manual_seed(5))
    for a, w in zip(case.op.adjoint(A, *shapes), weights, strict=True):
        flat = A.double().flatten(1)
        allowance = rounding.gamma(adjoint_terms, torch.float32) * (flat.abs() @ w.abs()) + 1e-30
        assert ((a.double().flatten(1) - flat @ w).abs() <= allowance).all()


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_convolutions_take_no_short_cuts(batch: int, stride: int, kernel: int) -> None:
    """Winograd and FFT algorithms let a large value leak into outputs that do not read it, far beyond the allowance."""

    def spread(*size: int) -> Tensor:
        return R(*size) * 10.0 ** (14 * torch.rand(*size, generator=SEEDED) - 7)

    sides = ((kernel // 2,) * 2,) * 2
    op = convolution.Conv(spread(16, 16, kernel, kernel), None, (stride, stride), sides, (1, 1))
    wide, shape = op.to(torch.float64), (1, 16, 16, 16)
    x = spread(batch, *shape)
    error, v = (op.linear(x) - wide.linear(x.double())).abs(), wide.linear(x.double().abs(), absolute=True)
    assert (error <= rounding.gamma(op.terms(shape), torch.float32) * v).all()
    A = spread(*op.linear(x).shape)
    (pulled,), (exact,) = op.adjoint(A, shape), wide.adjoint(A.double(), shape)
    (size,) = wide.adjoint(A.double().abs(), shape, absolute=True)
    assert ((pulled - exact).abs() <= rounding.gamma(op.adjoint_terms(shape), torch.float32) * size).all()


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "side", "size"), [(1, 4, 2, 1, 7), (3, 4, 2, 1, 8), (2, 3, 3, 0, 11), (1, 1, 2, 0, 5)]
)
def test_derivative_of_the_adjoint_of_a_thin_convolution(channels: int, kernel: int, stride: int, side: int, size: int) -> None:
    """It is the convolution itself, whichever way it is computed; with weights that want gradients, too, it is torch's own."""
    op = convolution.Conv(R(4, channels, kernel, kernel).double(), None, (stride, stride), ((side, side),) * 2, (1, 1))
    shape = (1, channels, size, size)
    outputs = op.linear(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
    A = R(3, *outputs).double().requires_grad_()
    (x,) = op.adjoint(A, shape)
    along = R(*x.shape).double()
    (found,) = torch.autograd.grad((x * along).sum(), A)
    torch.testing.assert_close(found, op.linear(along), rtol=1e-12, atol=1e-12)
    weight = op.weight.clone().requires_grad_()
    (y,) = convolution.Conv(weight, None, op.strides, op.pads, op.dilations).adjoint(A, shape)
    torch.testing.assert_close(y, x, rtol=1e-12, atol=1e-12)
    gradient, slope = torch.autograd.grad((y * along).sum(), (A, weight))
    torch.testing.assert_close(gradient, found, rtol=1e-12, atol=1e-12)
    assert bool((slope != 0).any())


@each_case
def test_points_of_a_batch_do_not_mix(case: Case) -> None:
    op = case.op.to(torch.float64)
    xs = points(case, torch.float64)
    together = op.forward(*xs)
    alone = torch.cat([op.forward(*(x[i : i + 1] for x in xs)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
