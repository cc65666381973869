from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from bounds.errors import ModelError, OutputError, SpecError
from bounds.linear import Halfspaces
from bounds.region import Box
from tests.verify.nets import linear
from verify import witness
from verify.spec import Specification, robustness
from verify.verdict import Falsified, confirm, nudge, replay, unrepresentable
from verify.vnnlib import parse_vnnlib

IDENTITY = linear([[1.0, 0.0], [0.0, 1.0]])


def box_spec(lower: list[float], upper: list[float], C: list[list[float]], d: list[float]) -> Specification:
    region = Box(torch.tensor([lower], dtype=torch.float64), torch.tensor([upper], dtype=torch.float64))
    return Specification(region, (Halfspaces(torch.tensor(C, dtype=torch.float64), torch.tensor(d, dtype=torch.float64)),))


def text_spec(first: str, unsafe: str) -> Specification:
    text = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1"))
    (spec,) = parse_vnnlib(f"{text}(assert {first})(assert (<= 0 X_1 1))(assert {unsafe})").specifications()
    return spec


class Fake:
    """An original that answers what it is told."""

    input_shape = (2,)

    def __init__(self, y: list[float], dtype: type = np.float32) -> None:
        self.y, self.input_dtype, self.asked = np.array([y], np.float32), np.dtype(dtype), []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.asked.append(x)
        return self.y


def test_a_violation_by_exactly_zero_counts_for_a_closed_set_only() -> None:
    point = np.array([0.5, 0.5])
    closed = text_spec("(<= 0 X_0 1)", "(<= Y_0 Y_1)")
    found = replay(IDENTITY, closed, point, "test")
    assert found is not None
    assert found.x.dtype == np.float32
    assert found.y.tolist() == [0.5, 0.5]
    assert found.decided_by == "test"
    assert replay(IDENTITY, text_spec("(<= 0 X_0 1)", "(< Y_0 Y_1)"), point, "test") is None


def test_a_point_one_ulp_outside_is_rejected() -> None:
    spec = box_spec([0.0, 0.0], [0.25, 1.0], [[0.0, 0.0]], [0.0])
    assert replay(IDENTITY, spec, np.array([0.25, 1.0]), "test") is not None
    assert replay(IDENTITY, spec, np.array([np.nextafter(np.float32(0.25), np.float32(1)), 1.0]), "test") is None
    # The cast to the model's type comes first: this float64 number rounds to 0.25.
    assert replay(IDENTITY, spec, np.array([math.nextafter(0.25, 1), 1.0]), "test") is not None


def test_the_cast_may_leave_the_region() -> None:
    # float32(0.1) > 0.1, so the upper end 0.1 itself is no counterexample, but the float32 below it is.
    spec = text_spec("(<= 0 X_0 0.1)", "(<= Y_1 1)")
    assert replay(IDENTITY, spec, np.array([0.1, 0.0]), "test") is None
    found = confirm(IDENTITY, spec, [np.array([0.1, 0.0])], "test")
    assert found is not None
    assert Fraction(float(found.x[0])) <= Fraction(1, 10) < Fraction(float(np.nextafter(found.x[0], np.float32(1))))


def test_outputs_are_compared_without_rounding() -> None:
    # y0 - y1 is 2^-30 exactly, although float32 cannot tell 1 + 2^-30 from 1.
    spec = box_spec([0.0, 0.0], [1.0, 1.0], [[1.0, -1.0]], [0.0])
    tiny = 2.0**-30
    assert replay(Fake([tiny, 0.0]), spec, np.zeros(2), "test") is None
    assert replay(Fake([0.0, tiny]), spec, np.zeros(2), "test") is not None
    assert replay(Fake([float(np.nextafter(np.float32(1), np.float32(2))), 1.0]), spec, np.zeros(2), "test") is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_numbers_are_no_counterexample(bad: float) -> None:
    spec = box_spec([0.0, 0.0], [1.0, 1.0], [[0.0, -1.0]], [0.0])
    assert replay(Fake([0.0, 1.0]), spec, np.zeros(2), "test") is not None
    assert replay(Fake([bad, 1.0]), spec, np.zeros(2), "test") is None


def test_points_that_are_not_numbers_never_reach_the_model() -> None:
    spec = box_spec([0.0, 0.0], [1.0, 1.0], [[0.0, 0.0]], [0.0])
    model = Fake([0.0, 0.0])
    assert replay(model, spec, np.array([math.nan, 0.0]), "test") is None
    assert replay(model, spec, np.array([1e300, 0.0]), "test") is None
    assert model.asked == []


def test_only_replay_builds_falsified() -> None:
    with pytest.raises(TypeError, match="replay alone"):
        Falsified(np.zeros(2), np.zeros(2), "me")


def test_wrong_sizes_and_types_are_errors() -> None:
    spec = box_spec([0.0, 0.0], [1.0, 1.0], [[0.0, 0.0]], [0.0])
    with pytest.raises(SpecError, match="3 values, the region 2"):
        replay(IDENTITY, spec, np.zeros(3), "test")
    with pytest.raises(ModelError, match="int64"):
        replay(Fake([0.0, 0.0], np.int64), spec, np.zeros(2), "test")


def test_float64_networks_replay_in_float64() -> None:
    spec = text_spec("(<= 0 X_0 0.1)", "(<= Y_1 1)")
    found = confirm(IDENTITY.to(torch.float64), spec, [np.array([0.1, 0.0])], "test")
    assert found is not None
    assert found.x.dtype == np.float64
    assert found.x[0] == math.nextafter(0.1, 0)


def test_an_input_fixed_between_floats_needs_permission() -> None:
    spec = text_spec("(= X_0 0.1)", "(<= Y_1 1)")
    assert unrepresentable(spec, np.float32) == (0,)
    point = np.array([0.1, 0.5])
    assert nudge(spec, point, np.float32) is None
    assert confirm(IDENTITY, spec, [point], "test") is None
    found = confirm(IDENTITY, spec, [point], "test", rounded=True)
    assert found is not None
    assert found.rounded == (0,)
    assert found.x[0] == np.float32(0.1)
    assert replay(IDENTITY, spec, np.array([np.nextafter(np.float32(0.1), np.float32(1)), 0.5]), "test", rounded=True) is None
    assert replay(IDENTITY, spec, np.array([0.1, 1.5]), "test", rounded=True) is None


@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
def test_nudge_brings_points_into_the_exact_ball(norm: float) -> None:
    generator = np.random.default_rng(0)
    spec = robustness(generator.random((4, 5)), 0, 0.1, norm=norm, outputs=2)
    for far in (1.0, 1e-3, 1e-8):
        point = spec.region.center[0].numpy() + 0.1 * generator.choice([-1, 1], (4, 5)) * (1 + far)
        moved = nudge(spec, point, np.float32)
        assert moved is not None
        assert moved.dtype == np.float32
        assert moved.shape == (4, 5)
        assert spec.contains(moved)


def test_witness_files_read_back(tmp_path: Path) -> None:
    spec = box_spec([0.0, 0.0], [1.0, 1.0], [[0.0, 0.0]], [0.0])
    found = replay(IDENTITY, spec, np.array([0.1, 0.75]), "test")
    assert found is not None
    witness.write_counterexample(tmp_path / "w.npy", found)
    assert np.load(tmp_path / "w.npy").tolist() == found.x.tolist()
    witness.write_counterexample(tmp_path / "w.txt", found)
    text = (tmp_path / "w.txt").read_text()
    assert text == "((X_0 0.10000000149011612)\n(X_1 0.75)\n(Y_0 0.10000000149011612)\n(Y_1 0.75))\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.npy", "w.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.txt"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(witness.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        witness.write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["w.txt"]
    with pytest.raises(OutputError, match="cannot be written"):
        witness.write_atomically(tmp_path / "absent" / "w.txt", b"new")
