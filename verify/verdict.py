"""Verdicts: what is known about a question, and replay, the only maker of `Falsified`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from bounds.errors import ModelError, SpecError
from bounds.network import Network, Original
from bounds.region import LpBall

if TYPE_CHECKING:
    from bounds.ops.base import Shape
    from verify.spec import Specification

Proof = Literal["rigorous", "solver"]
Semantics = Literal["real", "float32-any-order"]
_REPLAYED = object()


@dataclass(frozen=True)
class Verified:
    """No input of the region violates the specification.

    `bound`: proven lower bound of the worst margin (> 0), or None where the proof gives none. `proof`: "rigorous" (outward rounded all the
    way) or "solver" (rests on the tolerances described in `detail`).
    """

    bound: float | None
    proof: Proof
    semantics: Semantics
    decided_by: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Falsified:
    """`x` lies in the region and the original model's output `y` lies in an unsafe set, with zero tolerance. Only `replay` builds it.

    `x`: (*input_shape) in the model's input type; `y`: (*output_shape). `rounded`: flat indices of inputs whose interval holds no number of
    the model's input type, so that the model was given the rounding of a number inside; empty unless `replay` was told to allow it.
    """

    x: np.ndarray
    y: np.ndarray
    decided_by: str
    rounded: tuple[int, ...] = ()
    proof_of_replay: InitVar[object] = None

    def __post_init__(self, proof_of_replay: object) -> None:
        if proof_of_replay is not _REPLAYED:
            raise TypeError(
                "Falsified is built by verify.verdict.replay alone: a counterexample counts once the original model confirmed it"
            )


@dataclass(frozen=True)
class Unknown:
    """Not decided: why, and the best proven lower bound of the worst margin so far (None if no engine finished)."""

    reason: str
    bound: float | None = None


Verdict = Verified | Falsified | Unknown


class TorchOriginal:
    """A network built in Python, which is its own original: evaluated in the type its parameters are held in."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.input_shape: Shape = network.input_shape
        self.input_dtype = np.dtype(np.float64 if network.dtype == torch.float64 else np.float32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        dtype = torch.float64 if self.input_dtype == np.float64 else torch.float32
        with torch.no_grad():
            return self.network.to(dtype, "cpu")(torch.from_numpy(x)).numpy()


def original_of(model: Network | Original) -> Original:
    """The model a counterexample is replayed on: the network's original, or the network itself where it has none."""
    if not isinstance(model, Network):
        return model
    return model.original if model.original is not None else TorchOriginal(model)


def _float_type(original: Original) -> np.dtype:
    dtype = np.dtype(original.input_dtype)
    if not np.issubdtype(dtype, np.floating):
        raise ModelError(f"the model reads {dtype} inputs; counterexamples are replayed on floating-point inputs only")
    return dtype


def replay(model: Network | Original, spec: Specification, x: np.ndarray, decided_by: str, *, rounded: bool = False) -> Falsified | None:
    """A counterexample if x is one, else None.

    x is cast to the model's input type; the cast point must lie in the exact region and the original model's output in an exact unsafe set,
    both with zero tolerance. An output with NaN or infinity is not a counterexample.

    With `rounded` an input whose interval holds no number of the model's type may be given as the rounding of a number in it (every runtime
    would receive such a rounding); the result lists these inputs. Without it a question with such an input has no counterexample.

    Raises:
        SpecError: x does not have the size of the region's inputs.
        ModelError: the model does not read floating-point inputs.
    """
    original = original_of(model)
    dtype = _float_type(original)
    point = np.asarray(x)
    if point.size != len(spec.exact_box):
        raise SpecError(f"the point has {point.size} values, the region {len(spec.exact_box)}")
    with np.errstate(over="ignore"):
        point = point.astype(dtype).reshape(-1)
    crossed = unrepresentable(spec, dtype) if rounded else ()
    if not _inside(spec, point, crossed):
        return None
    y = np.asarray(original(np.ascontiguousarray(point.reshape(1, *original.input_shape))))[0]
    if not spec.violated_by(y):
        return None
    return Falsified(point.reshape(spec.region.shape), y, decided_by, crossed, proof_of_replay=_REPLAYED)


def _inside(spec: Specification, point: np.ndarray, crossed: tuple[int, ...]) -> bool:
    """Exact membership; at the indices in `crossed` the point must be the rounding of a number of the interval."""
    if not crossed:
        return spec.contains(point)
    low, high = _roundings(spec, point.dtype)
    at = np.array(crossed)
    if not np.all((point[at] >= low[at]) & (point[at] <= high[at])):
        return False
    lower, upper = spec.exact_box.inner(point.dtype)
    rest = np.ones(point.size, dtype=bool)
    rest[at] = False
    in_box = bool(np.all((point[rest] >= lower[rest]) & (point[rest] <= upper[rest])))
    # With p = 1 or 2 the distance at a rounded input is not the interval's; such balls are left to the strict rule.
    return in_box and not (isinstance(spec.region, LpBall) and spec.region.p != math.inf)


def _roundings(spec: Specification, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The roundings to nearest of the ends of every exact interval (through float64)."""
    lower, upper = spec.exact_box.outer
    return lower.astype(dtype), upper.astype(dtype)


def unrepresentable(spec: Specification, dtype: np.dtype | type) -> tuple[int, ...]:
    """Flat indices of the inputs whose exact interval holds no number of `dtype`."""
    lower, upper = spec.exact_box.inner(dtype)
    return tuple(np.flatnonzero(~(lower <= upper)).tolist())


def nudge(spec: Specification, x: np.ndarray, dtype: np.dtype | type, *, rounded: bool = False) -> np.ndarray | None:
    """The point moved into the exact region as numbers of `dtype`, as little as needed; None where that cannot be done.

    Bounds are rounded inward, so an interval that holds no number of `dtype` gives None (with `rounded`: the rounding of its lower end).
    Points of l1 and l2 balls are drawn towards the centre until they lie inside.
    """
    lower, upper = spec.exact_box.inner(dtype)
    crossed = ~(lower <= upper)
    if crossed.any() and not rounded:
        return None
    flat = np.asarray(x, dtype=np.float64).reshape(-1)
    with np.errstate(over="ignore"):
        point = np.clip(flat.astype(dtype), lower, np.maximum(lower, upper))
    if crossed.any():
        point[crossed] = _roundings(spec, np.dtype(dtype))[0][crossed]
    region = spec.region
    if spec.exact is not None or not isinstance(region, LpBall) or region.p == math.inf:
        return point.reshape(region.shape) if np.all(np.isfinite(point)) else None
    projected = region.project(torch.from_numpy(flat).reshape(1, 1, *region.shape).to(region.center.device))
    flat = projected.cpu().numpy().reshape(-1)
    center = region.center[0].cpu().numpy().reshape(-1)
    point = np.clip(flat.astype(dtype), lower, upper)
    for exponent in range(-24, 0, 2):
        if spec.contains(point):
            return point.reshape(region.shape)
        point = np.clip((center + (1 - 2.0**exponent) * (flat - center)).astype(dtype), lower, upper)
    return None


def confirm(
    model: Network | Original, spec: Specification, candidates: Iterable[np.ndarray], decided_by: str, *, rounded: bool = False
) -> Falsified | None:
    """The first candidate that, moved into the exact region, replays as a counterexample, or None."""
    dtype = _float_type(original_of(model))
    for candidate in candidates:
        point = nudge(spec, candidate, dtype, rounded=rounded)
        if point is not None:
            found = replay(model, spec, point, decided_by, rounded=rounded)
            if found is not None:
                return found
    return None
