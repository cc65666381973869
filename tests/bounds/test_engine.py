"""What all engines take and give: devices, objectives, limits, bounds that are numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bounds.engine import BoundEngine, Bounds, as_objective, elements, place
from bounds.errors import DeviceError, NumericsError, ShapeError
from bounds.ibp import Ibp
from bounds.interval import Interval
from bounds.ops.affine import Linear
from bounds.region import Box
from tests.bounds.networks import chain

CPU = torch.device("cpu")
NETWORK = chain((2,), Linear(torch.ones(3, 2)))
REGION = Box(torch.zeros(4, 2), torch.ones(4, 2))


def objective(C: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
    return as_objective(C, NETWORK, REGION, dtype, CPU)


def test_objectives_are_spread_over_the_regions() -> None:
    assert torch.equal(objective(None), torch.eye(3).expand(4, 3, 3))
    shared = torch.tensor([[1, 0, -1]])
    assert torch.equal(objective(shared), shared.float().expand(4, 1, 3))
    own = torch.arange(24.0).reshape(4, 2, 3)
    assert torch.equal(objective(own), own)
    assert objective(own, torch.float64).dtype == torch.float64


def test_objectives_take_the_shape_of_the_outputs() -> None:
    network = chain((1, 2, 3), Linear(torch.ones(2, 3)))
    assert as_objective(None, network, Box(torch.zeros(1, 1, 2, 3), torch.ones(1, 1, 2, 3)), torch.float32, CPU).shape == (1, 4, 1, 2, 2)


@pytest.mark.parametrize("shape", [(3,), (1, 2), (3, 1, 3), (4, 1, 2), (4, 1, 3, 1)])
def test_objectives_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"an objective for 4 regions and 3 outputs has shape \(B, rows, 3\)"):
        objective(torch.ones(shape))


def test_objectives_must_be_exact_in_the_working_type() -> None:
    row = torch.tensor([[1.0, 2.0**-30 + 1, 0.0]], dtype=torch.float64)
    assert torch.equal(objective(row, torch.float64)[0], row)
    with pytest.raises(ShapeError, match=r"entries that torch.float32 cannot represent exactly; scale it or use float64"):
        objective(row)
    with pytest.raises(ShapeError, match="exactly"):
        objective(torch.full((1, 3), math.nan))
    with pytest.raises(ShapeError, match="exactly"):
        objective(torch.full((1, 3), 2**24 + 1))


def test_devices() -> None:
    assert place("cpu") == CPU
    for name in ("tpu9", "cpu:x", ""):
        with pytest.raises(DeviceError, match=f"device {name!r} is not known; use 'cpu' or 'cuda'"):
            place(name)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="asked for, but torch sees no GPU; use --device cpu"):
        place("cuda")


def test_memory_in_elements() -> None:
    assert elements(1.0, torch.float32) == 2**20 // 32
    assert elements(1.0, torch.float64) == 2**20 // 64
    assert elements(0.0, torch.float32) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bounds_are_numbers(bad: float) -> None:
    fine, wrong = torch.zeros(1, 2), torch.tensor([[0.0, bad]])
    assert Bounds((), Interval(fine, fine), None).linear is None
    for interval in (Interval(wrong, fine), Interval(fine, wrong)):
        with pytest.raises(NumericsError, match="NaN or infinite; scale the objective"):
            Bounds((), interval, None)


def test_an_engine_is_a_callable_with_fields() -> None:
    engine: BoundEngine = Ibp(dtype=torch.float64)
    assert engine(NETWORK, REGION).objective.lower.shape == (4, 3)
    assert Ibp() == Ibp(dtype=torch.float32)
    assert hash(Ibp()) != hash(Ibp(elide=False))
