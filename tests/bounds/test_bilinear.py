"""Products of two tensors: planes against exact arithmetic at the corners of the terms' boxes, where a bilinear function is extreme."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from flint import fmpq
from torch import Tensor

from bounds import rounding
from bounds.crown import Crown
from bounds.interval import Interval
from bounds.ops.affine import Linear
from bounds.ops.base import Shape, Slopes
from bounds.ops.bilinear import Bilinear, MatrixProduct, Multiply, Pair, TwoPlanes
from bounds.ops.shape import Reshape
from bounds.region import Box
from bounds.trace import Trace
from tests.bounds.networks import Draw, build

DTYPES = [torch.float32, torch.float64]
CHOICES: list[Slopes] = ["adaptive", "parallel"]


@dataclass(frozen=True)
class Case:
    op: Bilinear
    shapes: tuple[Shape, Shape]

    def __str__(self) -> str:
        return f"{type(self.op).__name__}{self.shapes}"


CASES = [
    Case(Multiply(), ((3, 4), (3, 4))),
    Case(Multiply(), ((3, 1), (1, 4))),
    Case(Multiply(), ((2, 1, 3), (2, 2, 1))),
    Case(MatrixProduct(), ((2, 3), (3, 4))),
    Case(MatrixProduct(), ((2, 1, 2, 3), (1, 3, 3, 2))),
    Case(MatrixProduct(), ((1, 4), (4, 1))),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def exact(value: float | Tensor) -> fmpq:
    return fmpq(*float(value).as_integer_ratio())


def boxes(case: Case, dtype: torch.dtype, seed: int = 0) -> tuple[Interval, Interval]:
    """Factors of every sign and size; some that are points, some that touch 0."""
    rng, found = torch.Generator().manual_seed(seed), []
    for shape in case.shapes:
        centre = torch.randn(2, *shape, generator=rng, dtype=torch.float64) * 10.0 ** (torch.rand(2, *shape, generator=rng) * 4 - 2)
        radius = torch.rand(2, *shape, generator=rng, dtype=torch.float64) * 2 * centre.abs()
        kind = torch.randint(0, 6, centre.shape, generator=rng)
        radius = torch.where(kind == 0, 0.0, torch.where(kind == 1, centre.abs(), radius))
        lower = (centre - radius).to(dtype)
        found.append(Interval(lower, torch.maximum((centre + radius).to(dtype), lower)))
    return found[0], found[1]


def terms(case: Case, *values: Tensor) -> list[Tensor]:
    """Tensors of the inputs' shapes laid out over the terms, from the definition of the product, not from `lift`."""
    (a, b), matrix = values, isinstance(case.op, MatrixProduct)
    return list(torch.broadcast_tensors(a.unsqueeze(-1), b.unsqueeze(-3)) if matrix else torch.broadcast_tensors(a, b))


def per_output(case: Case, values: Tensor) -> Tensor:
    """(N, *terms) as (N * outputs, terms of one output)."""
    if isinstance(case.op, MatrixProduct):
        values = values.transpose(-1, -2)
        return values.reshape(-1, values.shape[-1])
    return values.reshape(-1, 1)


def violations(case: Case, x: tuple[Interval, Interval], planes: TwoPlanes) -> int:
    """How many outputs have a corner on the wrong side of a plane. Terms vary independently: every term's worst corner counts."""
    lows, highs = terms(case, x[0].lower, x[1].lower), terms(case, x[0].upper, x[1].upper)
    slopes = [per_output(case, s) for s in (*planes.lower, *planes.upper)]
    ends = [per_output(case, side) for side in (lows[0], highs[0], lows[1], highs[1])]
    count = 0
    for output, (below, above) in enumerate(zip(planes.below.flatten(), planes.above.flatten(), strict=True)):
        least, most = fmpq(0), fmpq(0)
        for column in range(slopes[0].shape[1]):
            p, q, P, Q = (exact(s[output, column]) for s in slopes)
            a_low, a_high, b_low, b_high = (exact(e[output, column]) for e in ends)
            corners = list(itertools.product((a_low, a_high), (b_low, b_high)))
            least += min(a * b - p * a - q * b for a, b in corners)
            most += max(a * b - P * a - Q * b for a, b in corners)
        count += least < exact(below) or most > exact(above)
    return count


@pytest.mark.parametrize("slopes", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
@each_case
def test_planes_hold_exactly(case: Case, dtype: torch.dtype, slopes: Slopes) -> None:
    x = boxes(case, dtype)
    planes = case.op.relax(*x, slopes)
    assert planes.lower[0].dtype == dtype
    assert planes.parallel == (slopes == "parallel")
    assert violations(case, x, planes) == 0


@pytest.mark.parametrize("mutation", ["lower", "upper", "slopes swapped", "sides swapped"])
@each_case
def test_planted_bugs_are_caught(case: Case, mutation: str) -> None:
    x = boxes(case, torch.float32)
    planes = case.op.relax(*x)
    size = torch.maximum(planes.below.abs(), planes.above.abs())
    wrong = {
        "lower": replace(planes, below=planes.below + 1e-9 * size),
        "upper": replace(planes, above=planes.above - 1e-9 * size),
        "slopes swapped": replace(planes, lower=planes.lower[::-1]),
        "sides swapped": replace(planes, lower=planes.upper, upper=planes.lower),
    }[mutation]
    assert violations(case, x, wrong) >= 0.3 * planes.below.numel()


def concrete(case: Case, x: tuple[Interval, Interval], slopes: Pair, intercept: Tensor, side: int) -> Tensor:
    """The smallest (side -1) or largest value of a plane when every term's factors vary on their own."""
    total = torch.zeros_like(per_output(case, slopes[0]).double())
    lows, highs = terms(case, x[0].lower, x[1].lower), terms(case, x[0].upper, x[1].upper)
    for slope, low, high in zip(slopes, lows, highs, strict=True):
        ends = [per_output(case, slope * end).double() for end in (low, high)]
        total = total + (torch.maximum(*ends) if side > 0 else torch.minimum(*ends))
    return total.sum(1) + intercept.flatten()


@each_case
def test_adaptive_planes_prove_the_interval(case: Case) -> None:
    """On the terms' own boxes nothing is lost: the planes' extremes are the extremes of the products."""
    x = boxes(case, torch.float64, seed=2)
    planes, y = case.op.relax(*x), case.op.interval(*x)
    size = 1e-12 * case.op.magnitude(*(side.magnitude for side in x)).flatten() + 1e-300
    assert bool(((concrete(case, x, planes.lower, planes.below, -1) - y.lower.flatten()).abs() <= size).all())
    assert bool(((concrete(case, x, planes.upper, planes.above, 1) - y.upper.flatten()).abs() <= size).all())


def test_planes_are_mccormicks() -> None:
    """[1, 3] times [2, 6]: below 2 a + 1 b - 2 (the lower corners), above 6 a + 1 b - 6 or 2 a + 3 b - 6."""
    a, b = (Interval(torch.tensor([[low]]), torch.tensor([[high]])) for low, high in ((1.0, 3.0), (2.0, 6.0)))
    planes = Multiply().relax(a, b)
    assert (planes.lower[0].item(), planes.lower[1].item(), planes.below.item()) == pytest.approx((2, 1, -2), rel=1e-12)
    found = (planes.upper[0].item(), planes.upper[1].item(), planes.above.item())
    assert found == pytest.approx((6, 1, -6), rel=1e-12) or found == pytest.approx((2, 3, -6), rel=1e-12)
    parallel = Multiply().relax(a, b, "parallel")
    assert (parallel.lower[0].item(), parallel.lower[1].item()) == (4, 2)
    assert (parallel.below.item(), parallel.above.item()) == pytest.approx((-10, -6), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@each_case
def test_intervals_are_the_exact_range_of_independent_terms(case: Case, dtype: torch.dtype) -> None:
    x = boxes(case, dtype, seed=3)
    y = case.op.interval(*x)
    ends = [per_output(case, t) for t in (*terms(case, x[0].lower, x[1].lower), *terms(case, x[0].upper, x[1].upper))]
    eps = exact(torch.finfo(dtype).eps)
    for output, (low, high) in enumerate(zip(y.lower.flatten(), y.upper.flatten(), strict=True)):
        least = most = size = fmpq(0)
        for column in range(ends[0].shape[1]):
            a_low, b_low, a_high, b_high = (exact(e[output, column]) for e in ends)
            products = [a * b for a, b in itertools.product((a_low, a_high), (b_low, b_high))]
            least, most, size = least + min(products), most + max(products), size + max(map(abs, products))
        assert exact(low) <= least
        assert most <= exact(high)
        assert least - exact(low) <= 8 * eps * size
        assert exact(high) - most <= 8 * eps * size


@each_case
def test_forward_and_pull_agree_with_the_terms(case: Case) -> None:
    """<pull(A), (a, b)> = <A, sum over terms of p a + q b>, by autograd."""
    rng = torch.Generator().manual_seed(4)
    a, b = (torch.randn(2, *shape, generator=rng, dtype=torch.float64, requires_grad=True) for shape in case.shapes)
    left, right = terms(case, a, b)
    y = case.op.forward(a, b)
    torch.testing.assert_close(y.reshape(-1), per_output(case, left * right).sum(1))
    p, q = (torch.randn(left.shape, generator=rng, dtype=torch.float64) for _ in range(2))
    plane = case.op.collect(p * left + q * right)
    torch.testing.assert_close(plane.reshape(-1), per_output(case, p * left + q * right).sum(1))
    A = torch.randn(2, 5, *y.shape[1:], generator=rng, dtype=torch.float64)
    pulled = case.op.pull(A, (p, q), *case.shapes)
    for row in range(5):
        expected = torch.autograd.grad((plane * A[:, row]).sum(), (a, b), retain_graph=True)
        for found, gradient in zip(pulled, expected, strict=True):
            torch.testing.assert_close(found[:, row], gradient)


@each_case
def test_counts(case: Case) -> None:
    ones = [torch.ones(1, *shape) for shape in case.shapes]
    left, _ = terms(case, *ones)
    assert case.op.sums(*case.shapes) == int(case.op.forward(*ones).max())
    uses = [left.numel() // one.numel() for one in ones]
    assert case.op.uses(*case.shapes) >= max(uses)
    assert case.op.magnitude(*ones).shape == case.op.forward(*ones).shape


@each_case
def test_the_charge_pays_for_the_rounding_of_a_pull(case: Case) -> None:
    """|A fl(slopes) - A slopes| times the reach of the factors, against <|A|, charge>, for coefficients of every size."""
    draw, size = Draw(3), [int(torch.tensor(shape).prod()) for shape in case.shapes]
    layers = [draw.dense(n, 3) for n in size]
    network = build(
        (3,), (layers[0], (0,)), (layers[1], (0,)), (Reshape(case.shapes[0]), (1,)), (Reshape(case.shapes[1]), (2,)), (case.op, (3, 4))
    )
    x = torch.randn(1, 3, generator=torch.Generator().manual_seed(2))
    trace = Trace(network, Box(x - 0.5, x + 0.5))
    for index in range(len(network.nodes)):
        trace.visit(index, trace.propagate(index), "adaptive")
    planes = trace.products[5]
    rng = torch.Generator().manual_seed(1)
    A = torch.randn(1, 200, *network.output_shape, generator=rng) * 10.0 ** (
        torch.rand(1, 200, *network.output_shape, generator=rng) * 6 - 3
    )
    found = case.op.pull(A, planes.lower, *case.shapes)
    wide = case.op.pull(A.double(), (planes.lower[0].double(), planes.lower[1].double()), *case.shapes)
    lost = sum(
        ((f.double() - w).abs() * trace.reach[source].double().unsqueeze(1)).flatten(2).sum(-1)
        for f, w, source in zip(found, wide, (3, 4), strict=True)
    )
    paid = (A.abs().double() * trace.charge[5].double().unsqueeze(1)).flatten(2).sum(-1)
    assert bool((lost <= paid).all())
    assert bool((lost > 0).any())


def test_a_product_of_a_tensor_with_its_own_function() -> None:
    """x (1 - x) on [0.2, 0.4], where it is between 0.16 and 0.24: both factors read the input, and the walk adds their coefficients up."""
    layers = [(Linear(torch.tensor([[-1.0]]), torch.tensor([1.0])), (0,)), (Multiply(), (0, 1))]
    network = build((1,), *layers)
    found = Crown(dtype=torch.float64)(network, Box(torch.tensor([[0.2]]), torch.tensor([[0.4]]))).objective
    assert 0.16 - 1e-7 <= found.lower.item() <= 0.16 + 1e-7
    assert 0.24 <= found.upper.item() <= 0.28 + 1e-7  # 0.32 for intervals


def test_rounding_allowances_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them the planes of some case are cut."""
    monkeypatch.setattr(rounding, "gamma", lambda terms, dtype: 0.0)
    monkeypatch.setattr(rounding, "above", lambda value, error=0.0: value + error)
    monkeypatch.setattr(rounding, "below", lambda value, error=0.0: value - error)
    broken = 0
    for case in CASES:
        for dtype in DTYPES:
            x = boxes(case, dtype)
            broken += violations(case, x, case.op.relax(*x))
    assert broken > 0


def test_an_empty_batch_has_empty_bounds() -> None:
    nothing = Interval(torch.zeros(0, 3), torch.zeros(0, 3))
    assert Multiply().interval(nothing, nothing).lower.shape == (0, 3)
