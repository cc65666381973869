"""Patches by hand and against dense coefficients; walks on patches against walks on whole maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bounds.backward
import bounds.groups
import bounds.local
from bounds.crown import Crown, FastLin, LinearEngine
from bounds.interval import Interval
from bounds.local import LocalWalk, coefficients
from bounds.network import Network
from bounds.ops.affine import AddBranches, BatchNormalization, Scale, Shift, SubBranches
from bounds.ops.base import Op, Shape
from bounds.ops.convolution import Conv
from bounds.ops.piecewise import LeakyRelu, Relu
from bounds.ops.shape import Reshape
from bounds.ops.smooth import Sigmoid
from bounds.patch import Patch, as_map
from bounds.region import Box, LpBall
from bounds.trace import Trace
from bounds.view import View
from tests.bounds.networks import Draw, build, chain, regions


def arange(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape) + 1


def patch_at(A: Tensor, places: list[tuple[int, int, int]], scale: tuple[int, int] = (1, 1), offset: tuple[int, int] = (0, 0)) -> Patch:
    """A patch whose rows have the (image, y, x) given."""
    image, y, x = torch.tensor(places).T
    return Patch(A, image, y, x, scale, offset)


# ---------------------------------------------------------------------------------------------------------------- patches by hand


def test_maps() -> None:
    assert as_map((2, 3, 4)) == as_map((1, 2, 3, 4)) == as_map((1, 1, 2, 3, 4)) == (2, 3, 4)
    assert as_map((2, 2, 3, 4)) is None
    assert as_map((3, 4)) is None


def test_windows_inside_a_map_and_over_its_edges() -> None:
    """2 x 3 windows of a 3 x 4 map of the numbers 1 to 12: at (1, 1), over the upper left and the lower right corner."""
    patch = patch_at(torch.zeros(3, 1, 2, 3, dtype=torch.float64), [(0, 1, 1), (0, -1, -2), (0, 2, 2)])
    found = patch.windows(arange(1, 1, 3, 4))[:, 0].tolist()
    assert found == [
        [[6.0, 7.0, 8.0], [10.0, 11.0, 12.0]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
        [[11.0, 12.0, 0.0], [0.0, 0.0, 0.0]],
    ]


def test_windows_belong_to_their_image_and_all_channels() -> None:
    maps = arange(2, 2, 2, 2)
    patch = patch_at(torch.zeros(3, 2, 1, 1, dtype=torch.float64), [(1, 0, 1), (0, 1, 0), (1, 1, 1)])
    assert patch.windows(maps).flatten(1).tolist() == [[10.0, 14.0], [3.0, 7.0], [12.0, 16.0]]


def test_scale_and_offset_move_the_corner() -> None:
    """Started at (1, 2), scale (2, 1), offset (-1, 1): the corner is at (1, 3)."""
    patch = patch_at(torch.zeros(1, 1, 2, 1, dtype=torch.float64), [(0, 1, 2)], (2, 1), (-1, 1))
    assert patch.windows(arange(1, 1, 4, 4)).flatten().tolist() == [8.0, 12.0]


def test_dense_drops_what_lies_beyond_the_edges() -> None:
    A = arange(2, 1, 2, 2)
    patch = patch_at(A, [(0, 1, 1), (0, -1, 2)])
    assert patch.dense(1, 3, 3)[0, 0].tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 4.0]]
    assert patch.dense(1, 3, 3)[1, 0].tolist() == [[0.0, 0.0, 7.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_inside_zeroes_what_lies_beyond_the_edges() -> None:
    patch = patch_at(arange(2, 1, 2, 2), [(0, 1, 1), (0, -1, 2)])
    kept = patch.inside(3, 3)
    assert kept.A[:, 0].tolist() == [[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [7.0, 0.0]]]
    assert patch.inside(9, 9).A[0].tolist() == patch.A[0].tolist()
    within = patch_at(arange(1, 1, 2, 2), [(0, 0, 0)])
    assert within.inside(2, 2) is within


def test_merge_adds_in_the_smallest_common_window() -> None:
    """2 x 1 at offset (0, 0) and 1 x 2 at offset (1, -1): the sum covers rows 0 to 1 and columns -1 to 0."""
    one = patch_at(torch.tensor([[[[1.0], [2.0]]]]), [(0, 3, 3)])
    two = patch_at(torch.tensor([[[[10.0, 20.0]]]]), [(0, 3, 3)], offset=(1, -1))
    total = one.merge(two)
    assert total is not None
    assert (total.A[0, 0].tolist(), total.offset, total.size) == ([[0.0, 1.0], [10.0, 22.0]], (0, -1), (2, 2))
    other = two.merge(one)
    assert other is not None
    assert torch.equal(other.A, total.A)
    assert one.merge(replace(two, scale=(2, 1))) is None


# ------------------------------------------------------------------------------------------------------- one op: local and dense


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Conv, Shape]:
    groups = draw(st.sampled_from([1, 1, 2]))
    channels, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 2))
    kernel, strides = (tuple(draw(st.integers(1, 4)) for _ in range(2)) for _ in range(2))
    strides = tuple(min(s, 3) for s in strides)
    pads = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(2))
    size = tuple(max(1, k - sum(p)) + draw(st.integers(0, 4)) for k, p in zip(kernel, pads, strict=True))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    weight = torch.randint(-4, 5, (outputs, channels // groups, *kernel), generator=rng).double()
    return Conv(weight, None, strides, pads, (1, 1), groups), (1, channels, *size)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(convolutions(), st.data())
def test_local_adjoint_of_a_convolution_is_the_dense_one(case: tuple[Conv, Shape], data: st.DataObject) -> None:
    """Small integers throughout, so that equality is exact; windows of any size that may hang over the edges on all sides."""
    op, shape = case
    _, outputs, height, width = op.linear(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
    tall, wide = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    offset = data.draw(st.integers(-2, 1)), data.draw(st.integers(-2, 1))
    rows = list(itertools.product((0, 1), range(height), range(width)))
    A = torch.randint(-3, 4, (len(rows), outputs, tall, wide), generator=torch.Generator().manual_seed(1)).double()
    patch = patch_at(A, rows, offset=offset)
    found = op.local_adjoint(patch.inside(height, width), shape)
    assert found is not None
    dense = patch.dense(outputs, height, width).unsqueeze(1)
    (wanted,) = op.adjoint(dense, shape)
    assert torch.equal(found[0].dense(*shape[1:]), wanted.squeeze(1))
    again = Conv(op.weight.transpose(0, 1)[:, :1].contiguous(), None, (1, 2), ((1, 0), (2, 1)), (1, 1)) if op.groups == 1 else None
    if again is not None and again.weight.shape[0] == shape[1]:
        before = (1, 1, shape[2] + again.weight.shape[2] - 2, 2 * shape[3] + again.weight.shape[3] - 5)
        if min(before) > 0 and tuple(again.linear(torch.zeros(1, *before, dtype=torch.float64)).shape[1:]) == shape:
            further = again.local_adjoint(found[0].inside(*shape[2:]), before)
            assert further is not None
            assert torch.equal(further[0].dense(*before[1:]), again.adjoint(wanted, before)[0].squeeze(1))


@pytest.mark.parametrize(
    "op, shapes",
    [
        (AddBranches(), ((1, 2, 3, 4), (1, 2, 3, 4))),
        (SubBranches(), ((1, 2, 3, 4), (1, 2, 3, 4))),
        (Reshape((2, 3, 4)), ((1, 2, 3, 4),)),
        (Scale(torch.tensor([[[2.0]], [[-3.0]]], dtype=torch.float64)), ((1, 2, 3, 4),)),
        (Shift(arange(2, 3, 4)), ((1, 2, 3, 4),)),
        (BatchNormalization(*(arange(2) * k for k in (1, 2, 3, 4)), 1e-5, 2), ((1, 2, 3, 4),)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_local_ops(op: Op, shapes: tuple[Shape, ...]) -> None:
    rows = list(itertools.product((0, 1), range(3), range(4)))
    A = torch.randn(len(rows), 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    patch = patch_at(A, rows, offset=(-1, 0))
    found = op.local_adjoint(patch.inside(3, 4), *shapes)  # type: ignore[attr-defined]
    assert found is not None
    here = tuple(op.linear(*(torch.zeros(1, *s, dtype=torch.float64) for s in shapes)).shape[1:])  # type: ignore[attr-defined]
    wanted = op.adjoint(patch.dense(2, 3, 4).reshape(-1, *here), *shapes)  # type: ignore[attr-defined]
    for one, whole in zip(found, wanted, strict=True):
        assert torch.allclose(one.dense(2, 3, 4), whole.reshape(-1, 2, 3, 4), rtol=1e-12, atol=1e-12)


def test_ops_that_are_not_local_say_so() -> None:
    patch = patch_at(torch.zeros(1, 2, 1, 1), [(0, 0, 0)])
    assert Reshape((2, 4, 3)).local_adjoint(patch, (1, 2, 3, 4)) is None
    assert AddBranches().local_adjoint(patch, (1, 2, 3, 4), (1, 2, 1, 1)) is None
    assert Conv(torch.ones(2, 2, 2, 2), None, (1, 1), ((0, 0), (0, 0)), (2, 2)).local_adjoint(patch, (1, 2, 5, 5)) is None
    assert Conv(torch.ones(2, 2, 2), None, (1,), ((0, 0),), (1,)).local_adjoint(patch, (1, 2, 5)) is None
    assert Scale(torch.ones(2, 3, 4)).local_adjoint(patch, (1, 2, 1, 1)) is None


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf, None])
@pytest.mark.parametrize("clipped", [False, True])
def test_concretisation_of_patches(p: float | None, clipped: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    center = torch.randn(2, 1, 2, 4, 3, generator=rng, dtype=torch.float64)
    eps = torch.rand(2, 1, 2, 4, 3, generator=rng, dtype=torch.float64)
    region = Box(center - eps, center + eps) if p is None else LpBall(center, eps, p, (center - 0.3, center + 0.2) if clipped else None)
    patch = patch_at(
        torch.randn(6, 2, 3, 3, generator=rng, dtype=torch.float64),
        [(i, y, x) for i in (0, 1) for y, x in ((0, 0), (2, 1), (3, 2))],
        offset=(-1, -1),
    )
    dense = patch.dense(2, 4, 3).reshape(2, 3, 1, 2, 4, 3)
    assert torch.allclose(region.decrease_patch(patch), region.decrease(dense).flatten(), rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------------- whole walks


@dataclass(frozen=True)
class Plan:
    """A convolutional chain: channels, kernel, stride, pads and groups of every layer."""

    size: tuple[int, int]
    layers: tuple[tuple[int, Shape, int | Shape, int | tuple, int], ...]

    def network(self, activations: tuple[Op, ...]) -> Network:
        draw, channels, ops = Draw(1), 2, []
        for number, (outputs, kernel, stride, pads, groups) in enumerate(self.layers):
            ops += [draw.conv(outputs, channels, kernel, stride, pads, groups), activations[number % len(activations)]]
            channels = outputs
        return chain((1, 2, *self.size), *ops)


PLANS = {
    "same": Plan((5, 6), ((4, (3, 3), 1, 1, 1), (3, (3, 3), 1, 1, 1), (2, (3, 3), 1, 1, 1))),
    "strided": Plan((7, 8), ((4, (3, 3), 2, 1, 1), (4, (3, 3), 2, 1, 1), (2, (2, 2), 1, 0, 1))),
    "even kernels": Plan((8, 8), ((4, (4, 4), 2, 1, 1), (3, (4, 4), 2, 1, 1))),
    "no padding": Plan((6, 7), ((3, (2, 3), 1, 0, 1), (3, (3, 2), 1, 0, 1), (3, (1, 1), 1, 0, 1))),
    "one-sided padding": Plan((5, 5), ((4, (3, 2), 1, ((2, 0), (0, 1)), 1), (3, (3, 3), (1, 2), ((0, 2), (2, 1)), 1))),
    "groups": Plan((5, 5), ((4, (3, 3), 1, 1, 2), (4, (3, 3), 1, 1, 4), (2, (1, 1), 2, 0, 2))),
    "wide padding": Plan((3, 3), ((3, (3, 3), 1, 3, 1), (2, (5, 5), 2, 2, 1))),
    "gaps between windows": Plan((7, 7), ((3, (1, 1), 2, 0, 1), (3, (2, 2), 3, 1, 1))),
    "rows": Plan((1, 9), ((3, (1, 3), 1, ((0, 0), (1, 1)), 1), (3, (1, 3), (1, 2), ((0, 0), (1, 1)), 1))),
}


def shortcuts() -> Network:
    """A block whose shortcut is a strided 1x1 convolution, a block with a plain one, batch normalisation between."""
    draw = Draw(3)
    norm = BatchNormalization(draw.normal(3), draw.normal(3), draw.normal(3), draw.normal(3).abs() + 0.5, 1e-5, 2)
    return build(
        (1, 2, 6, 6),
        (draw.conv(3, 2, (3, 3), 1, 1), (0,)),
        (norm, (1,)),
        (Relu(), (2,)),
        (draw.conv(4, 3, (3, 3), 2, 1), (3,)),
        (Relu(), (4,)),
        (draw.conv(4, 4, (3, 3), 1, 1), (5,)),
        (draw.conv(4, 3, (1, 1), 2), (3,)),
        (AddBranches(), (6, 7)),
        (LeakyRelu(0.1), (8,)),
        (draw.conv(4, 4, (3, 3), 1, 1), (9,)),
        (SubBranches(), (10, 9)),
        (Relu(), (11,)),
    )


def unequal_scales() -> Network:
    """Two paths that reach one map in different strides: their windows do not add up to a window."""
    draw = Draw(4)
    return build(
        (1, 2, 3, 3),
        (draw.conv(2, 2, (3, 3), 1, 1), (0,)),
        (Relu(), (1,)),
        (draw.conv(2, 2, (1, 1), 2, 1), (2,)),
        (Sigmoid(), (2,)),
        (AddBranches(), (3, 4)),
        (Relu(), (5,)),
        (Sigmoid(), (2,)),
        (draw.conv(2, 2, (3, 3), 1, 1), (7,)),
        (AddBranches(), (8, 6)),
        (Relu(), (9,)),
    )


NETWORKS = {name: plan.network((Relu(), LeakyRelu(0.2), Sigmoid())) for name, plan in PLANS.items()}
NETWORKS["stacked"] = chain(
    (1, 2, 5, 5), Draw(2).conv(3, 2, (3, 3), 1, 1), Relu(), Draw(3).conv(3, 3, (3, 3), 1, 1), Draw(4).conv(2, 3, (3, 3), 1, 1), Relu()
)
NETWORKS |= {"shortcuts": shortcuts(), "unequal scales": unequal_scales()}
ENGINES: dict[str, LinearEngine] = {
    "crown": Crown(dtype=torch.float64),
    "walk only": Crown(dtype=torch.float64, intersect=False),
    "fastlin": FastLin(dtype=torch.float64),
    "crown in float32": Crown(),
}


def agree(first: Interval, second: Interval, tolerance: float) -> bool:
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in ((first.lower, second.lower), (first.upper, second.upper)))


@pytest.mark.parametrize("share", [0.6, 1e9])
@pytest.mark.parametrize("name", NETWORKS)
def test_local_walks_equal_dense_walks(name: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With share 1e9 patches go on when their windows are larger than the map."""
    network, ends = NETWORKS[name], []
    run = LocalWalk.run
    monkeypatch.setattr(LocalWalk, "run", lambda self: ends.append(run(self)) or ends[-1])
    monkeypatch.setattr(bounds.local, "_LARGEST_SHARE", share)
    for engine, kind in itertools.product(ENGINES.values(), ("box", "l2 domain")):
        region = regions(network, kind)
        local = engine(network, region)
        before = len(ends)
        with monkeypatch.context() as patch:
            patch.setattr(bounds.backward, "is_local", lambda *_: False)
            dense = engine(network, region)
        assert len(ends) == before > 0
        tolerance = 1e-10 if engine.dtype == torch.float64 else 1e-4
        assert all(agree(a, b, tolerance) for a, b in zip(local.intervals, dense.intervals, strict=True))
        assert agree(local.objective, dense.objective, tolerance)
    if share > 1:
        assert 0 in ends  # some rows arrived at the input as patches
        assert name != "unequal scales" or max(ends) > 0


def test_rows_that_stay_patches_are_walked_in_larger_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two 3x3 convolutions on a large map: 3 x 3 x 2 coefficients after the first step, 5 x 5 x 3 after the second; the bounds are the same."""
    network = chain((1, 3, 20, 20), Draw(1).conv(2, 3, (3, 3), 1, 1), Relu(), Draw(2).conv(4, 2, (3, 3), 1, 1), Relu())
    region, sizes = Box(-torch.ones(2, 1, 3, 20, 20), torch.ones(2, 1, 3, 20, 20)), []
    walk = bounds.backward._walk_elements
    monkeypatch.setattr(bounds.backward, "_walk_elements", lambda view, rows: sizes.append(rows.elements.numel()) or walk(view, rows))
    monkeypatch.setattr(bounds.groups, "_CACHED", 2**16)
    large = FastLin()(network, region).objective
    assert max(sizes) == 2**16 // (4 * 75)
    monkeypatch.setattr(bounds.groups, "coefficients", lambda view, start: 3 * 20 * 20)
    sizes.clear()
    small = FastLin()(network, region).objective
    assert max(sizes) == 2**16 // (2 * 4 * 20 * 20)
    assert agree(large, small, 1e-6)


@pytest.mark.parametrize(("name", "widest"), [("shortcuts", None), ("stacked", 3 * 5 * 5)])
def test_rows_that_grow_to_whole_maps_count_as_such(name: str, widest: int | None) -> None:
    network = NETWORKS[name]
    trace = Trace(network.to(torch.float64), regions(network, "box").to(torch.float64))
    for index in range(len(network.nodes)):
        trace.visit(index, trace.propagate(index), "adaptive")
    last = network.preactivations[-1]
    expected = max(math.prod(node.shape) for node in network.nodes[: last + 1]) if widest is None else widest
    assert coefficients(View(trace, torch.zeros(1, dtype=torch.long)), last) == expected


def test_rows_of_one_image_do_not_see_another() -> None:
    network = NETWORKS["strided"]
    region = regions(network, "l1 domain")
    together = Crown(dtype=torch.float64, intersect=False)(network, region)
    for image in range(3):
        alone = Crown(dtype=torch.float64, intersect=False)(network, region.select(torch.tensor([image])))
        for a, b in zip(alone.intervals, together.intervals, strict=True):
            assert agree(a, Interval(b.lower[image : image + 1], b.upper[image : image + 1]), 1e-10)


# ------------------------------------------------------------------------------------------------------------------------ planted


def _shifted(patch: pytest.MonkeyPatch) -> None:
    adjoint = Conv.local_adjoint

    def mutated(self: Conv, given: Patch, *shapes: Shape) -> tuple[Patch, ...] | None:
        found = adjoint(self, given, *shapes)
        return found and (replace(found[0], offset=(found[0].offset[0] + 1, found[0].offset[1])),)

    patch.setattr(Conv, "local_adjoint", mutated)


def _scaled(patch: pytest.MonkeyPatch) -> None:
    adjoint = Conv.local_adjoint

    def mutated(self: Conv, given: Patch, *shapes: Shape) -> tuple[Patch, ...] | None:
        found = adjoint(self, given, *shapes)
        return found and (replace(found[0], scale=given.scale),)

    patch.setattr(Conv, "local_adjoint", mutated)


def _over_the_edge(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Patch, "inside", lambda self, height, width: self)


def _one_branch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Patch, "merge", lambda self, other: other)


@pytest.mark.parametrize("plant, name", [(_shifted, "same"), (_scaled, "strided"), (_over_the_edge, "stacked"), (_one_branch, "shortcuts")])
def test_planted_bugs_are_caught(plant: Callable[[pytest.MonkeyPatch], None], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    monkeypatch.setattr(bounds.local, "_LARGEST_SHARE", 1e9)
    network, engine = NETWORKS[name], ENGINES["walk only"]
    region = regions(network, "box")
    local = engine(network, region)
    monkeypatch.setattr(bounds.backward, "is_local", lambda *_: False)
    dense = engine(network, region)
    assert not all(agree(a, b, 1e-6) for a, b in zip(local.intervals, dense.intervals, strict=True))
