from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from bounds.errors import SpecError
from bounds.linear import Halfspaces
from bounds.region import Box, LpBall
from verify.exact import ExactBox, ExactHalfspaces, ExactRow, ExactSpec
from verify.spec import Margins, Specification, class_margins, from_exact, margins, output_bounds, robustness, targeted


def unit_box(features: int = 2) -> Box:
    return Box(torch.zeros(1, features, dtype=torch.float64), torch.ones(1, features, dtype=torch.float64))


def test_robustness_has_one_set_per_other_class() -> None:
    spec = robustness(np.full((1, 2, 2), 0.5, np.float32), 1, 0.1, norm=math.inf, outputs=3)
    assert [u.C.tolist() for u in spec.unsafe] == [[[-1.0, 1.0, 0.0]], [[0.0, 1.0, -1.0]]]
    assert all(u.d.tolist() == [0.0] for u in spec.unsafe)
    assert isinstance(spec.region, LpBall)
    assert spec.region.shape == (1, 2, 2)
    assert spec.violated_by(np.array([2.0, 2.0, 0.0], np.float32))
    assert not spec.violated_by(np.array([1.0, 2.0, 0.0], np.float32))
    assert not spec.violated_by(np.array([math.nan, 0.0, 5.0], np.float32))


def test_numbers_keep_their_full_precision() -> None:
    spec = robustness(np.array([0.5, 0.25]), 0, 0.3, norm=2.0, outputs=2, domain=(0.1, 0.7))
    assert isinstance(spec.region, LpBall)
    assert torch.as_tensor(spec.region.eps).unique().tolist() == [0.3]  # as float32 it would be 0.30000001
    assert spec.region.domain is not None
    assert [torch.as_tensor(side).unique().tolist() for side in spec.region.domain] == [[0.1], [0.7]]


def test_the_domain_and_the_radius_are_exact() -> None:
    spec = robustness(np.array([0.5, 0.05]), 0, 0.1, norm=math.inf, outputs=2)
    top = 0.5 + 0.1
    assert Fraction(top) <= Fraction(0.5) + Fraction(0.1) or not spec.contains(np.array([top, 0.05]))
    assert spec.contains(np.array([0.5, 0.0]))
    assert not spec.contains(np.array([0.5, -5e-324]))
    wide = robustness(np.array([0.5, 0.05]), 0, 0.1, norm=math.inf, outputs=2, domain=None)
    assert wide.contains(np.array([0.5, -0.01]))


def test_a_dyadic_boundary_point_is_inside_and_its_neighbour_outside() -> None:
    for norm in (1.0, 2.0, math.inf):
        spec = robustness(np.array([0.5, 0.5]), 0, 0.25, norm=norm, outputs=2)
        assert spec.contains(np.array([0.75, 0.5]))
        assert not spec.contains(np.array([math.nextafter(0.75, 1), 0.5]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"eps": -0.1}, "eps must be finite and not negative, got -0.1"),
        ({"eps": math.nan}, "eps must be finite"),
        ({"eps": math.inf}, "eps must be finite"),
        ({"eps": np.array([0.1, 0.1, 0.1])}, r"eps has shape \(3,\)"),
        ({"label": 2}, "label 2 is out of range: the network has 2 outputs"),
        ({"label": -1}, "label -1 is out of range"),
        ({"x": np.array([0.5, 1.5])}, "input 1 of x is 1.5, outside the domain"),
        ({"x": np.array([0.5, math.nan])}, "NaN"),
        ({"norm": 3.0}, "norm 3.0 is not supported"),
        ({"outputs": 1, "label": 0}, "output_bounds"),
    ],
)
def test_robustness_refuses_bad_input(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"x": np.array([0.5, 0.5]), "label": 0, "eps": 0.1, "norm": math.inf, "outputs": 2}
    with pytest.raises(SpecError, match=message):
        robustness(**(arguments | change))  # type: ignore[arg-type]


def test_targeted_is_one_set() -> None:
    spec = targeted(unit_box(), 2, 3)
    assert len(spec.unsafe) == 1
    assert spec.violated_by(np.array([1.0, 1.0, 1.0]))
    assert not spec.violated_by(np.array([1.0, 2.0, 1.5]))
    with pytest.raises(SpecError, match="target 3 is out of range"):
        targeted(unit_box(), 3, 3)


def test_output_bounds_name_both_sides() -> None:
    spec = output_bounds(unit_box(), [None, -1.0], [2.0, None])
    assert spec.violated_by(np.array([2.0, 0.0]))
    assert spec.violated_by(np.array([0.0, -1.0]))
    assert not spec.violated_by(np.array([1.9, -0.9]))
    with pytest.raises(SpecError, match="no output has a bound"):
        output_bounds(unit_box(), [None], [None])


def test_specification_refuses_what_engines_cannot_use() -> None:
    one = Halfspaces(torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    with pytest.raises(SpecError, match="at least one unsafe set"):
        Specification(unit_box(), ())
    with pytest.raises(SpecError, match="batch of 2"):
        Specification(Box(torch.zeros(2, 1), torch.ones(2, 1)), (one,))
    with pytest.raises(SpecError, match="same outputs"):
        Specification(unit_box(), (one, Halfspaces(torch.ones(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))))
    with pytest.raises(SpecError, match="not finite"):
        Specification(unit_box(), (Halfspaces(one.C * math.nan, one.d),))


def test_margins_of_several_rows() -> None:
    spec = output_bounds(unit_box(), [0.0, 0.0], [None, None])
    both = Specification(
        spec.region, (Halfspaces(torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)), spec.unsafe[0])
    )
    goal = margins(both)
    assert goal.ranges == ((0, 2), (2, 3))
    y = torch.tensor([[3.0, 2.5], [0.5, 1.0]])
    assert goal.of(y).tolist() == [[2.0, 3.0], [-0.5, 0.5]]
    assert goal.excess(goal.rows(y)).tolist() == [[2.5, 3.0], [0.0, 0.5]]
    lower = torch.tensor([[1.0, 2.1, 0.0], [1.0, 2.0, 1.0], [math.nan, math.nan, math.nan]], dtype=torch.float64)
    assert goal.impossible(lower).tolist() == [[True, False], [False, True], [False, False]]
    assert 0 < goal.worst(torch.tensor([1.0, 2.1, 0.5], dtype=torch.float64)).item() < 0.1000001
    assert goal.worst(lower[0]).item() <= 0
    assert math.isnan(goal.worst(lower[2]).item())


def test_class_margins_follow_each_label() -> None:
    goal = class_margins(torch.tensor([0, 2]), 3)
    y = torch.tensor([[[5.0, 1.0, 2.0]], [[5.0, 1.0, 2.0]]])
    assert goal.of(y).tolist() == [[[4.0, 3.0]], [[-3.0, 1.0]]]
    assert goal.select(torch.tensor([1])).of(y[1:]).tolist() == [[[-3.0, 1.0]]]
    assert isinstance(goal, Margins)


def test_from_exact_rounds_outward_and_keeps_the_exact_data() -> None:
    third = Fraction(1, 3)
    row = ExactRow(((0, Fraction(1)),), third)
    case = ExactSpec(ExactBox((third, third), (2 * third, third)), (ExactHalfspaces((row,)),))
    (spec,) = from_exact([case], (2, 1), 1, "p")
    assert spec.region.shape == (2, 1)
    box = spec.region.box()
    assert Fraction(box.lower[0, 0, 0].item()) < third < Fraction(box.upper[0, 1, 0].item())
    assert Fraction(spec.unsafe[0].d[0].item()) > third
    assert spec.exact is case
    assert not spec.contains(box.lower[0].numpy())
    assert spec.violated_by(np.array([1 / 3]))
    assert not spec.violated_by(np.array([math.nextafter(1 / 3, 1)]))
