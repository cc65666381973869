"""Which rows are walked together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bounds import groups
from bounds.backward import bound_node
from bounds.engine import elements
from bounds.groups import _alike_groups, _padded, row_groups
from tests.bounds.networks import ZOO, regions
from tests.bounds.test_trace import swept

PLENTY = elements(2048, torch.float64)


@pytest.mark.parametrize("name", ["relu", "branches", "sigmoid"])
def test_rows_that_name_their_images_are_bounded_as_in_groups(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = ZOO[name]
    trace = swept(network, regions(network, "l2 domain"))
    index = network.preactivations[-1]
    wanted = torch.rand(trace.interval(index).shape, generator=torch.Generator().manual_seed(1)) < 0.6
    (group,) = row_groups(trace, index, wanted.flatten(1), PLENTY)
    assert group[1].shape == (int(wanted.sum()), 1)
    named = bound_node(trace, index, wanted, PLENTY)
    monkeypatch.setattr(groups, "_CACHED", 64)
    assert len(row_groups(trace, index, wanted.flatten(1), PLENTY)) > 1
    grouped = bound_node(trace, index, wanted, PLENTY)
    assert torch.allclose(named.lower, grouped.lower, rtol=1e-11, atol=1e-11)
    assert torch.allclose(named.upper, grouped.upper, rtol=1e-11, atol=1e-11)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=7), st.integers(1, 40))
def test_groups_cover_the_mask_once(mask: list[list[bool]], rows: int) -> None:
    wanted = torch.tensor(mask)
    seen = torch.zeros_like(wanted, dtype=torch.int)
    for images, places, valid in _alike_groups(wanted, rows):
        assert places.shape == valid.shape
        assert images.shape == (places.shape[0],)
        assert places.numel() <= rows or len(images) == 1
        assert places.shape[1] <= rows
        where = images.unsqueeze(1).expand_as(places)
        seen.index_put_((where[valid], places[valid]), torch.ones_like(places[valid], dtype=torch.int), accumulate=True)
    assert torch.equal(seen, wanted.int())


def test_padded() -> None:
    elements, valid = _padded(torch.tensor([[True, False, True], [False, True, False]]), 2)
    assert elements.tolist() == [[0, 2], [1, 0]]
    assert valid.tolist() == [[True, True], [True, False]]
