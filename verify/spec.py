"""Specification: the question that is asked about a network."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import RegionError, SpecError
from bounds.linear import Halfspaces
from bounds.region import Box, LpBall, Region
from verify.exact import ExactBox, ExactHalfspaces, ExactSpec, ball_box, in_ball

Domain = tuple[Tensor | np.ndarray | float, Tensor | np.ndarray | float]


@dataclass(frozen=True, eq=False)
class Specification:
    """Violated iff some x of `region` has f(x) in some set of `unsafe`.

    `region` has batch size 1. `region` and `unsafe` are what proofs use: where the question came as decimal text they are outward-rounded
    copies of `exact`. A `Property` read from a file is a tuple of specifications, violated iff one of them is.

    Raises:
        SpecError: no unsafe set, sets over different numbers of outputs, a region of batch size other than 1.
    """

    region: Region
    unsafe: tuple[Halfspaces, ...]
    description: str = ""
    exact: ExactSpec | None = None

    def __post_init__(self) -> None:
        if self.region.batch != 1:
            raise SpecError(f"a specification has one region, got a batch of {self.region.batch}; make one specification for each")
        if not self.unsafe:
            raise SpecError("a specification needs at least one unsafe set; with none there is nothing to ask")
        widths = {u.C.shape[-1] for u in self.unsafe}
        if len(widths) != 1 or any(u.C.dim() != 2 or u.d.shape != u.C.shape[:1] or u.C.shape[0] == 0 for u in self.unsafe):
            raise SpecError("every unsafe set needs C of shape (rows, outputs), rows >= 1, and d of shape (rows,), with the same outputs")
        if not all(torch.isfinite(u.C).all() and torch.isfinite(u.d).all() for u in self.unsafe):
            raise SpecError("an unsafe set has a coefficient or bound that is not finite; leave such a constraint out or correct it")

    @property
    def outputs(self) -> int:
        """Number of network outputs the unsafe sets speak about."""
        return self.unsafe[0].C.shape[-1]

    @functools.cached_property
    def exact_box(self) -> ExactBox:
        """The exact bounding box of the region, domain included."""
        if self.exact is not None:
            return self.exact.box
        if isinstance(self.region, LpBall):
            center, eps, domain = _ball_arrays(self.region)
            return ball_box(center, eps, domain)
        box = self.region.box()
        return ExactBox.from_floats(_numpy(box.lower[0]), _numpy(box.upper[0]))

    @functools.cached_property
    def exact_unsafe(self) -> tuple[ExactHalfspaces, ...]:
        """The unsafe sets with exact data."""
        if self.exact is not None:
            return self.exact.unsafe
        return tuple(ExactHalfspaces.from_floats(_numpy(u.C), _numpy(u.d)) for u in self.unsafe)

    def contains(self, x: np.ndarray) -> bool:
        """Whether the point lies in the exact region, with zero tolerance. Never true outside it."""
        if not self.exact_box.contains(x):
            return False
        if isinstance(self.region, Box) or self.exact is not None:
            return True
        if isinstance(self.region, LpBall):
            center, eps, _ = _ball_arrays(self.region)
            return self.region.p == math.inf or in_ball(x, center, eps, self.region.p)
        return bool(self.region.contains(torch.from_numpy(x).reshape(1, 1, *self.region.shape))[0, 0])

    def violated_by(self, y: np.ndarray) -> bool:
        """Whether the output lies in an exact unsafe set, with zero tolerance; NaN and infinity never do."""
        return any(unsafe.contains(y) for unsafe in self.exact_unsafe)


Property = tuple[Specification, ...]


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()


def _ball_arrays(ball: LpBall) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    center = _numpy(ball.center[0])
    eps = _numpy(torch.as_tensor(ball.eps).expand_as(ball.center)[0])
    if ball.domain is None:
        return center, eps, None
    low, high = (_numpy(torch.as_tensor(side, dtype=torch.float64).expand_as(ball.center)[0]) for side in ball.domain)
    return center, eps, (low, high)


@dataclass(frozen=True, eq=False)
class Margins:
    """The rows of all unsafe sets of a question, stacked: what engines bound and attacks minimise.

    C: (rows, outputs), or (batch, rows, outputs) where every region has its own; d: (rows,) or (batch, rows); `ranges`: for every unsafe
    set the rows [start, stop) that belong to it. The margin of a set is max over its rows of (C y - d), positive exactly when y is not in
    the set; the worst margin is the minimum over the sets.
    """

    C: Tensor
    d: Tensor
    ranges: tuple[tuple[int, int], ...]

    def per_set(self, rows: Tensor) -> Tensor:
        """max over the rows of each set. rows: (..., rows) -> (..., sets)."""
        if all(stop - start == 1 for start, stop in self.ranges):
            return rows
        return torch.stack([rows[..., start:stop].amax(-1) for start, stop in self.ranges], dim=-1)

    def impossible(self, lower: Tensor) -> Tensor:
        """Mask (..., sets) of the unsafe sets that lower bounds of C y exclude: some row has lower > d. lower: (..., rows).

        Property: sound; the comparison is exact and NaN excludes nothing.
        """
        d = self.d.to(device=lower.device, dtype=torch.float64)
        return self.per_set((lower.to(torch.float64) > d).to(torch.uint8)).bool()

    def at_least(self, lower: Tensor) -> Tensor:
        """Lower bounds of the sets' margins from lower bounds of C y, rounded downward. lower: (..., rows) -> (..., sets), float64."""
        wide = lower.to(torch.float64)
        return self.per_set(rounding.below(wide - self.d.to(wide)))

    def worst(self, lower: Tensor) -> Tensor:
        """A lower bound of the worst margin, as `at_least`. lower: (..., rows) -> (...), float64."""
        return self.at_least(lower).amin(-1)

    def of(self, y: Tensor) -> Tensor:
        """The margin of every set at outputs y, in the type of y (an estimate). y: (..., outputs) -> (..., sets).

        With one C for each region y is (batch, points, outputs).
        """
        return self.per_set(self.rows(y))

    def rows(self, y: Tensor) -> Tensor:
        """C y - d in the type of y. y: (..., outputs) -> (..., rows); with one C for each region y is (batch, points, outputs)."""
        C, d = self.C.to(y), self.d.to(y)
        if C.dim() == 2:
            return y @ C.T - d
        return torch.bmm(y, C.transpose(1, 2)) - d.unsqueeze(1)

    def excess(self, rows: Tensor) -> Tensor:
        """sum over the rows of each set of max(C y - d, 0): the total violation, zero exactly in the set. rows: (..., rows) -> (..., sets)."""
        return torch.stack([rows[..., start:stop].clamp_min(0).sum(-1) for start, stop in self.ranges], dim=-1)

    def select(self, indices: Tensor) -> Margins:
        """The margins of a sub-batch of regions (itself where all regions share one C)."""
        return self if self.C.dim() == 2 else Margins(self.C[indices], self.d[indices], self.ranges)


def margins(spec: Specification) -> Margins:
    """All rows of all unsafe sets of one specification."""
    stops = np.cumsum([u.C.shape[0] for u in spec.unsafe]).tolist()
    ranges = tuple(zip([0, *stops[:-1]], stops, strict=True))
    return Margins(torch.cat([u.C for u in spec.unsafe]), torch.cat([u.d for u in spec.unsafe]), ranges)


def class_margins(labels: Tensor, outputs: int) -> Margins:
    """Margins of "the label stays strictly the largest output" for a batch: row j of image b is y[label] - y[j], j != label, d = 0.

    labels: (batch,) -> C: (batch, outputs - 1, outputs), every row its own unsafe set.
    """
    identity = torch.eye(outputs, dtype=torch.float64, device=labels.device)
    differences = identity[labels].unsqueeze(1) - identity
    others = torch.arange(outputs, device=labels.device) != labels.unsqueeze(1)
    C = differences[others].reshape(len(labels), outputs - 1, outputs)
    return Margins(C, C.new_zeros(C.shape[:2]), tuple((j, j + 1) for j in range(outputs - 1)))


def _ball(x: Tensor | np.ndarray, eps: Tensor | np.ndarray | float, norm: float, domain: Domain | None) -> LpBall:
    """The region of a robustness question, with its arguments checked."""
    center = torch.as_tensor(x).detach().to(torch.float64).unsqueeze(0)
    if not torch.isfinite(center).all():
        raise SpecError("the input x holds NaN or infinity; it must be finite")
    radius = torch.as_tensor(eps, dtype=torch.float64).detach()
    if bool(torch.isnan(radius).any()) or bool((radius < 0).any()) or bool(torch.isinf(radius).any()):
        raise SpecError(f"eps must be finite and not negative, got {radius.min().item() if radius.numel() else eps}")
    if radius.dim() and radius.shape != center.shape[1:]:
        raise SpecError(f"eps has shape {tuple(radius.shape)}; use one number or the input's shape {tuple(center.shape[1:])}")
    sides = None
    if domain is not None:
        low, high = (torch.as_tensor(side, dtype=torch.float64).detach() for side in domain)
        outside = ((center < low) | (center > high)).flatten().nonzero()
        if len(outside):
            index = int(outside[0])
            raise SpecError(
                f"input {index} of x is {center.flatten()[index].item()}, outside the domain; scale x to the domain, or pass domain=None"
            )
        sides = (low, high)
    try:
        return LpBall(center, radius, norm, sides)
    except RegionError as error:
        raise SpecError(str(error)) from error


def robustness(
    x: Tensor | np.ndarray,
    label: int,
    eps: Tensor | np.ndarray | float,
    *,
    norm: float,
    outputs: int,
    domain: Domain | None = (0.0, 1.0),
) -> Specification:
    """Local robustness: for all x' with ||(x' - x) / eps||_p <= 1 in the domain, f(x')[label] > f(x')[j] for every j != label.

    A tie counts as a violation. x: the input without a batch axis; eps: one number or one per feature (0 fixes a feature), in units of x;
    norm: 1, 2 or inf; outputs: number of network outputs; domain: (low, high) that x' must respect, or None.

    Raises:
        SpecError: negative or non-finite eps, label out of range, x outside the domain or not finite, an unknown norm, shapes that do not fit.
    """
    if outputs < 2:
        raise SpecError(f"robustness compares outputs, but the network has {outputs}; use output_bounds instead")
    if not 0 <= label < outputs:
        raise SpecError(f"label {label} is out of range: the network has {outputs} outputs, labels 0 to {outputs - 1}")
    region = _ball(x, eps, norm, domain)
    stacked = class_margins(torch.tensor([label]), outputs)
    unsafe = tuple(Halfspaces(stacked.C[0, j : j + 1], stacked.d[0, j : j + 1]) for j in range(outputs - 1))
    return Specification(region, unsafe, f"the output stays {label}")


def targeted(region: Region, target: int, outputs: int) -> Specification:
    """For all x in the region, `target` is not a largest output: unsafe iff f(x)[target] >= f(x)[j] for every j.

    Raises:
        SpecError: the target is out of range.
    """
    if not 0 <= target < outputs or outputs < 2:
        raise SpecError(f"target {target} is out of range: the network has {outputs} outputs, targets 0 to {outputs - 1}")
    stacked = class_margins(torch.tensor([target]), outputs)
    return Specification(region, (Halfspaces(-stacked.C[0], stacked.d[0]),), f"output {target} is never the largest")


def output_bounds(region: Region, lower: Sequence[float | None], upper: Sequence[float | None]) -> Specification:
    """For all x in the region, lower[j] < f(x)[j] < upper[j]; None leaves a side open. Reaching a bound counts as a violation.

    Raises:
        SpecError: sides of different lengths, or no bound at all.
    """
    if len(lower) != len(upper):
        raise SpecError(f"lower has {len(lower)} entries and upper {len(upper)}; give one of each for every output")
    unsafe = []
    for index, (low, high) in enumerate(zip(lower, upper, strict=True)):
        unit = torch.zeros(1, len(lower), dtype=torch.float64)
        unit[0, index] = 1.0
        if low is not None:
            unsafe.append(Halfspaces(unit, torch.tensor([low], dtype=torch.float64)))
        if high is not None:
            unsafe.append(Halfspaces(-unit, torch.tensor([-high], dtype=torch.float64)))
    if not unsafe:
        raise SpecError("no output has a bound; give at least one number in lower or upper")
    return Specification(region, tuple(unsafe), "the outputs stay within their bounds")


def from_exact(cases: Sequence[ExactSpec], input_shape: Sequence[int], outputs: int, description: str = "") -> Property:
    """Specifications for exact cases over the flattened input, their sets rounded outward to float64."""
    built = []
    for number, case in enumerate(cases):
        lower, upper = (torch.from_numpy(side.copy()).reshape(1, *input_shape) for side in case.box.outer)
        unsafe = []
        for halfspaces in case.unsafe:
            C, d = halfspaces.outward(outputs)
            unsafe.append(Halfspaces(torch.from_numpy(C), torch.from_numpy(d)))
        name = description if len(cases) == 1 else f"{description} case {number + 1} of {len(cases)}".strip()
        built.append(Specification(Box(lower, upper), tuple(unsafe), name, case))
    return tuple(built)
