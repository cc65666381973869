"""The allowances and directed roundings against exact rational arithmetic."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import NumericsError
from bounds.interval import Interval

DTYPES = [torch.float32, torch.float64]


def hard_values(dtype: torch.dtype, count: int = 400, seed: int = 0) -> Tensor:
    """Values of every size, subnormal and extreme ones, both signs, zero."""
    rng = torch.Generator().manual_seed(seed)
    info = torch.finfo(dtype)
    sizes = torch.linspace(math.log10(info.smallest_normal) - 5, math.log10(info.max) - 0.5, count, dtype=torch.float64)
    values = (torch.randn(count, generator=rng, dtype=torch.float64).clamp(-2, 2) * 10.0**sizes).to(dtype)
    special = [0.0, 1.0, -1.0, info.smallest_normal, info.smallest_normal * info.eps, -info.max, info.max, 1 + info.eps, 1 - info.eps / 2]
    return torch.cat([values[torch.isfinite(values)], torch.tensor(special, dtype=dtype)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_below_and_above_bound_the_exact_difference_and_sum(dtype: torch.dtype) -> None:
    value = hard_values(dtype)
    order = torch.randperm(len(value), generator=torch.Generator().manual_seed(1))
    for error in (value[order].abs() * 1e-3, value.abs() * torch.finfo(dtype).eps / 3, torch.zeros_like(value)):
        low, high = rounding.below(value, error), rounding.above(value, error)
        for v, e, least, most in zip(value.tolist(), error.tolist(), low.tolist(), high.tolist(), strict=True):
            if not (math.isinf(least) or math.isinf(most)):
                assert Fraction(least) < Fraction(v) - Fraction(e)
                assert Fraction(v) + Fraction(e) < Fraction(most)
            assert least < v + (e == 0) or least == -math.inf
    assert bool((rounding.below(value) < value).all())
    assert bool((rounding.above(value) > value).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_below_and_above_are_within_two_units_in_the_last_place(dtype: torch.dtype) -> None:
    value = hard_values(dtype)
    value = value[value.abs() < torch.finfo(dtype).max / 2]
    error = value.abs() * 0.1
    gap = (value.double() - error.double()) - rounding.below(value, error).double()
    assert bool((gap <= 2 * torch.finfo(dtype).eps * value.abs().double() + torch.finfo(dtype).smallest_normal).all())


def test_rounding_to_float32_never_goes_the_wrong_way() -> None:
    value = torch.cat(
        [hard_values(torch.float64), hard_values(torch.float32).double(), torch.tensor([1e39, -1e39, 1e-46, -1e-46, 1 + 2.0**-30])]
    )
    low, high = rounding.round_down(value, torch.float32), rounding.round_up(value, torch.float32)
    assert low.dtype == high.dtype == torch.float32
    assert bool((low.double() <= value).all())
    assert bool((high.double() >= value).all())
    representable = value.float().double() == value
    assert torch.equal(low[representable].double(), value[representable])
    assert torch.equal(high[representable].double(), value[representable])
    neighbours = torch.nextafter(low, torch.full_like(low, math.inf))
    assert torch.equal(neighbours[~representable], high[~representable])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_to_the_same_type_changes_nothing(dtype: torch.dtype) -> None:
    value = hard_values(dtype)
    assert torch.equal(rounding.round_down(value, dtype), value)
    assert torch.equal(rounding.round_up(value, dtype), value)


def test_interval_conversion_is_outward() -> None:
    value = hard_values(torch.float64)
    x = Interval(value, value).to(torch.float32)
    assert bool((x.lower.double() <= value).all())
    assert bool((x.upper.double() >= value).all())
    assert torch.equal(Interval(value, value).to(torch.float64).lower, value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", [1, 2, 7, 100])
def test_gamma_bounds_dot_products_in_any_order(dtype: torch.dtype, terms: int) -> None:
    """Cancelling, ill-scaled sums, added up forwards, backwards, pairwise and by the matrix kernel."""
    rng = random.Random(terms)
    worst = Fraction(0)
    for _ in range(30):
        a = torch.tensor([rng.gauss(0, 1) * 10 ** rng.uniform(-4, 4) for _ in range(terms)], dtype=dtype)
        b = torch.tensor([rng.gauss(0, 1) * 10 ** rng.uniform(-4, 4) for _ in range(terms)], dtype=dtype)
        if terms > 1:
            b[-1] = -(a[:-1] * b[:-1]).sum() / a[-1]
        exact = [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)]
        allowance = Fraction(rounding.gamma(terms, dtype)) * sum(map(abs, exact)) + Fraction(rounding.underflow(terms, dtype))
        for order in (list(range(terms)), list(range(terms))[::-1], sorted(range(terms), key=lambda i: -abs(exact[i]))):
            total = torch.zeros((), dtype=dtype)
            for i in order:
                total = total + a[i] * b[i]
            worst = max(worst, abs(Fraction(float(total)) - sum(exact)) / allowance)
        for total in (a @ b, (a * b).sum(), torch.addmv(torch.zeros(1, dtype=dtype), a[None], b)[0]):
            worst = max(worst, abs(Fraction(float(total)) - sum(exact)) / allowance)
    assert worst <= 1
    assert worst > 0  # the sums do round


@pytest.mark.parametrize("dtype", DTYPES)
def test_underflow_covers_products_that_vanish(dtype: torch.dtype) -> None:
    small = torch.tensor([torch.finfo(dtype).smallest_normal ** 0.6], dtype=dtype)
    exact = Fraction(float(small)) ** 2
    assert float(small * small) != exact
    assert abs(Fraction(float(small * small)) - exact) <= Fraction(rounding.underflow(1, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gamma_is_at_least_the_textbook_value(dtype: torch.dtype) -> None:
    u = Fraction(rounding.unit_roundoff(dtype))
    assert u == Fraction(1, 2**24 if dtype == torch.float32 else 2**53)
    for terms in (1, 10, 1000, 100_000):
        textbook = terms * u / (1 - terms * u)
        assert textbook < Fraction(rounding.gamma(terms, dtype)) <= textbook * Fraction(11, 10)


def test_gamma_refuses_sums_it_cannot_bound() -> None:
    with pytest.raises(NumericsError, match="use float64"):
        rounding.gamma(200_000, torch.float32)
    assert rounding.gamma(200_000, torch.float64) < 1e-9
