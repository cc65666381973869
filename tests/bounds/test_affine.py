"""Affine operators on numbers small enough to work out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from bounds.interval import Interval
from bounds.ops.affine import AddBranches, BatchNormalization, Divide, LeftLinear, Linear, ReduceMean, Scale, Shift, SubBranches
from bounds.ops.convolution import AveragePool, Conv, ConvTranspose
from bounds.ops.shape import Concat, Pad, Reshape, Slice, Window


def T(*values: float | list[float]) -> torch.Tensor:
    return torch.tensor([values])


def test_linear() -> None:
    op = Linear(torch.tensor([[1.0, -2.0], [0.5, 4.0]]), torch.tensor([1.0, -1.0]))
    assert op.forward(T(3.0, 1.0)).tolist() == [[2.0, 4.5]]
    assert op.adjoint(T(1.0, 2.0), (2,))[0].tolist() == [[2.0, 6.0]]
    assert op.magnitude(T(3.0, 1.0)).tolist() == [[6.0, 6.5]]
    assert (op.terms((2,)), op.adjoint_terms((2,))) == (3, 2)


def test_left_linear_on_a_column() -> None:
    op = LeftLinear(torch.tensor([[1.0, -2.0], [0.5, 4.0], [1.0, 1.0]]), torch.tensor([[1.0], [0.0], [0.0]]))
    assert op.forward(T([3.0], [1.0])).tolist() == [[[2.0], [5.5], [4.0]]]
    assert op.adjoint(T([1.0], [2.0], [0.0]), (2, 1))[0].tolist() == [[[2.0], [6.0]]]


def test_convolution_with_one_sided_padding() -> None:
    op = Conv(torch.tensor([[[1.0, 10.0, 100.0]]]), torch.tensor([[0.5]]), (2,), ((0, 1),), (1,))
    assert op.forward(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])).tolist() == [[[[321.5, 43.5]]]]
    assert op.adjoint(torch.tensor([[[[1.0, 2.0]]]]), (1, 1, 4))[0].tolist() == [[[[1.0, 10.0, 102.0, 20.0]]]]
    assert (op.terms((1, 1, 4)), op.adjoint_terms((1, 1, 4))) == (4, 2)


def test_transposed_convolution_cropped_and_extended() -> None:
    op = ConvTranspose(torch.tensor([[[1.0, 10.0, 100.0]]]), None, (2,), ((1, -1),), (1,))
    assert op.forward(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[10.0, 102.0, 20.0, 200.0, 0.0]]]]


def test_batch_normalization_counts_what_it_computes() -> None:
    op = BatchNormalization(torch.tensor([6.0]), torch.tensor([1.0]), torch.tensor([10.0]), torch.tensor([3.0]), 1.0, 0)
    assert op.forward(torch.tensor([[[12.0]]])).item() == 7.0
    assert op.bias().item() == -29.0
    assert op.magnitude(torch.tensor([[[12.0]]])).item() == 36.0 + 30.0 + 1.0


def test_division_is_the_rounded_quotient() -> None:
    """Multiplying by the reciprocal of 0.1 would be wrong in the last place."""
    x, d = torch.tensor([[0.7]]), torch.tensor([0.1])
    exact = Fraction(float(x)) / Fraction(float(d[0]))
    y = Divide(d).forward(x)
    neighbours = [torch.nextafter(y, torch.full_like(y, t)) for t in (-9.0, 9.0)]
    assert all(abs(Fraction(float(y)) - exact) <= abs(Fraction(float(n)) - exact) for n in neighbours)


def test_shift_scale_and_branches() -> None:
    assert Shift(torch.tensor([1.0, 2.0]), torch.tensor(3.0)).forward(T(1.0, 1.0)).tolist() == [[4.0, 7.0]]
    assert Scale(torch.tensor([2.0, -1.0])).forward(T(3.0, 4.0)).tolist() == [[6.0, -4.0]]
    assert AddBranches().forward(T(1.0, 2.0), T(10.0)).tolist() == [[11.0, 12.0]]
    assert SubBranches().forward(T(1.0, 2.0), T(10.0)).tolist() == [[-9.0, -8.0]]
    assert SubBranches().adjoint(T(1.0, 2.0), (2,), (1,))[1].tolist() == [[-3.0]]
    assert AddBranches().terms((2,), (1,)) == 2


@pytest.mark.parametrize(
    "op", [Shift(torch.tensor([1.0])), Scale(torch.tensor([3.0])), Divide(torch.tensor([-7.0]))], ids=lambda op: type(op).__name__
)
def test_a_wide_interval_costs_its_small_end_nothing(op: Shift | Scale | Divide) -> None:
    """x + 1 for x in [0, 1e20] stays above 0; rounding errors of the large end would take it below."""
    found = op.interval(Interval(T(1e-3), T(1e20)))
    ends = sorted(float(op.forward(torch.tensor([[x]], dtype=torch.float64))) for x in (1e-3, 1e20))
    assert float(found.lower) <= ends[0] <= ends[1] <= float(found.upper)
    small, met = min(ends, key=abs), min((float(found.lower), float(found.upper)), key=abs)
    assert met == pytest.approx(small, rel=1e-5)


def test_averages() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]])
    op = AveragePool((3,), (2,), ((1, 1),), torch.tensor([2.0, 3.0, 2.0]))
    assert op.forward(x).tolist() == [[[[1.5, 3.0, 4.5]]]]
    assert op.adjoint(torch.tensor([[[[2.0, 3.0, 4.0]]]]), (1, 1, 5))[0].tolist() == [[[[1.0, 2.0, 1.0, 3.0, 2.0]]]]
    assert ReduceMean((2,), False).forward(x).tolist() == [[[3.0]]]
    assert ReduceMean((2,), False).terms((1, 1, 5)) == 6


def test_constants_between_branches_stay_exact() -> None:
    op = Concat(0, (1, 0, 1), torch.tensor([0.1, 0.0, 0.0, 0.3]))
    box = op.interval(Interval(T(1.0), T(2.0)), Interval(T(-1.0), T(1.0)))
    assert torch.equal(box.lower, torch.tensor([[0.1, 1.0, -1.0, 0.3]]))
    assert torch.equal(box.upper, torch.tensor([[0.1, 2.0, 1.0, 0.3]]))


def test_moved_data() -> None:
    x = T(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert Reshape((2, 3)).forward(x).tolist() == [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]
    assert Slice(((1, 6, 2),)).forward(x).tolist() == [[2.0, 4.0, 6.0]]
    assert Pad(((2, -4),)).forward(x).tolist() == [[0.0, 0.0, 1.0, 2.0]]
    window = Window(torch.tensor([[0, 1], [1, 2]]))
    assert window.forward(x.reshape(1, 1, 1, 6)).tolist() == [[[[[1.0, 2.0], [2.0, 3.0]]]]]
    assert window.adjoint(torch.ones(1, 1, 1, 2, 2), (1, 1, 6))[0].tolist() == [[[[1.0, 2.0, 1.0, 0.0, 0.0, 0.0]]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_follow_the_working_type(dtype: torch.dtype) -> None:
    op = BatchNormalization(*(torch.tensor([0.1]) for _ in range(4)), 1e-5, 2).to(dtype)
    assert op.scale.dtype == dtype
    assert Conv(torch.ones(1, 1, 1), None, (1,), ((0, 0),), (1,)).to(dtype).weight.dtype == dtype
