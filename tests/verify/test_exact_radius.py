"""Exact radii of one image: known answers, limits, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bounds.errors import SolverError, SpecError
from bounds.network import Network, Node
from bounds.ops.affine import Linear
from bounds.ops.base import Input
from verify.exact_radius import exact_radius

IMAGE = torch.tensor([0.5, 0.25])


def linear() -> Network:
    """Scores 3 x + 4 y + 1 and 0: from (0.5, 0.25) the boundary is 3.5 / ||(3, 4)||_q away, beyond the corner of [0, 1] x [0, 1]."""
    weight, bias = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0])
    return Network((Node(Input(), (), (2,), "x"), Node(Linear(weight, bias), (0,), (2,), "y")))


@pytest.mark.parametrize(("norm", "expected"), [(1.0, 3.5 / 4), (2.0, 0.7), (math.inf, 0.5)])
def test_a_linear_network_has_the_textbook_radius(norm: float, expected: float) -> None:
    found = exact_radius(linear(), IMAGE, 0, norm=norm, domain=(-1.0, 1.0))
    assert (found.status, found.target) == ("optimal", 1)
    assert found.lower <= expected * (1 + 1e-9)
    assert found.lower == pytest.approx(expected, abs=3e-6)
    assert expected * (1 - 1e-6) <= found.upper <= expected + 3e-6
    assert found.rigorous <= found.lower <= found.upper


def test_no_adversary_in_the_domain_or_within_the_radius_of_interest() -> None:
    whole = exact_radius(linear(), IMAGE, 0)
    assert (whole.status, whole.lower, whole.upper, whole.point) == ("no adversary", math.inf, math.inf, None)
    near = exact_radius(linear(), IMAGE, 0, domain=None, most=0.25)
    assert (near.status, near.upper, near.point) == ("no adversary", math.inf, None)
    assert near.lower == pytest.approx(0.25, abs=1e-6)


def test_a_misclassified_image_says_so() -> None:
    found = exact_radius(linear(), IMAGE, 1)
    assert (found.status, found.lower, found.upper, found.target) == ("misclassified", 0.0, 0.0, 0)
    assert found.point is not None
    assert np.array_equal(found.point, IMAGE.numpy())


def test_an_adversary_that_is_none_is_not_believed() -> None:
    found = exact_radius(linear(), IMAGE, 0, adversary=np.array([0.4, 0.2]))
    assert (found.status, found.point) == ("no adversary", None)


def test_a_time_limit_keeps_the_best_ends() -> None:
    adversary = np.array([-1.0, -0.5])
    found = exact_radius(linear(), IMAGE, 0, domain=(-1.0, 1.0), lower=0.1, adversary=adversary, seconds=0.0)
    assert (found.status, found.lower, found.target) == ("time limit", 0.1, 1)
    assert 0.5 <= found.upper <= 1.5 + 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tol": 0.0}, "tolerance must be"),
        ({"tol": math.nan}, "tolerance must be"),
        ({"tol": 1e-13}, "tolerance must be"),
        ({"lower": -0.1}, "must not be negative"),
        ({"lower": math.nan}, "must not be negative"),
        ({"most": 0.0}, "largest radius must be positive"),
        ({"norm": 3.0}, "norm"),
        ({"label": 2}, "label"),
        ({"domain": (1.0, 0.0)}, "domain"),
        ({"domain": (0.4, 1.0)}, "domain"),
        ({"domain": None}, "nothing bounds the search"),
        ({"image": torch.zeros(3)}, "inputs of shape"),
        ({"image": torch.tensor([math.nan, 0.0])}, "NaN|finite|domain"),
        ({"adversary": np.zeros(3)}, "the adversary has 3 values, the image 2"),
    ],
    ids=str,
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"image": IMAGE, "label": 0} | change
    with pytest.raises(SpecError, match=message):
        exact_radius(linear(), **given)


def test_an_unknown_solver() -> None:
    with pytest.raises(SolverError, match="no solver 'simplex'"):
        exact_radius(linear(), IMAGE, 0, solver="simplex")
