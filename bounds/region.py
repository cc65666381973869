"""Regions of inputs: boxes and norm balls, with an optional domain that every norm respects.

A region is a batch of B sets. Bounds need one thing of it, the exact minimum of a linear function; attacks need projection and membership.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import RegionError
from bounds.interval import Interval
from bounds.lagrange import Limits, largest_gain
from bounds.patch import Patch, as_maps

_EXACT = torch.float64
_CACHED = 2**15
"""Coefficients worked on at once, so that float64 intermediates stay in the processor's caches."""


class Region(ABC):
    """A batch of closed sets of inputs."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Number of sets B."""

    @abstractmethod
    def box(self) -> Interval:
        """The smallest box around each set, rounded outward; shape (B, *shape)."""

    @property
    @abstractmethod
    def origin(self) -> Tensor:
        """A point of each set (its centre) in float64, (B, *shape)."""

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether every set is its own mirror image about its origin, so that rows and their negatives decrease alike."""

    @abstractmethod
    def decrease(self, A: Tensor, sets: Tensor | None = None) -> Tensor:
        """max over x in the region of <A_r, origin - x> for every row r. A: (B, R, *shape) -> (B, R), float64.

        sets: which set each of the B is, where they are not all of them in order.
        Property: sound, and exact up to rounding for every region, domain included. Numerics: rounded upward.
        """

    @abstractmethod
    def decrease_patch(self, patch: Patch) -> Tensor:
        """`decrease` of rows whose coefficients live in windows of the input, which is a map: (T,)."""

    def minimise(self, A: Tensor) -> Tensor:
        """min over x in the region of <A_r, x> for every row r. A: (B, R, *shape) -> (B, R), float64.

        Property: sound, and exact up to rounding. Numerics: rounded downward.
        """
        wide, center = A.to(_EXACT).flatten(2), self.origin.flatten(1)
        value, total = rounding.matvec(wide, center), rounding.matvec(wide.abs(), center.abs())
        terms = wide.shape[-1] + 2
        error = rounding.gamma(terms, _EXACT) * total + rounding.underflow(terms, _EXACT)
        return rounding.below(rounding.below(value, error) - self.decrease(A))

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Points of the region near x. x: (B, S, *shape) -> same shape."""

    @abstractmethod
    def contains(self, x: Tensor) -> Tensor:
        """Mask (B, S): True only where x certainly lies in the region (rounding decides against). x: (B, S, *shape)."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Random points of the region, (B, count, *shape)."""

    def select(self, indices: Tensor | slice) -> Self:
        """The sub-batch of the given sets, with whatever is known of them already."""
        chosen = object.__new__(type(self))
        chosen.__dict__.update({name: _sets(value, indices) for name, value in self.__dict__.items()})
        return chosen

    @abstractmethod
    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Region:
        """A region that contains this one and is cheap to use with tensors of `dtype` on `device`."""


def _sets(value: Any, indices: Tensor | slice) -> Any:
    """The given sets' part of a tensor (B, ...), or of what is made of such tensors; anything else as it is."""
    if isinstance(value, Tensor):
        if value.dim() > 1 and not any(value.stride()[1:]):  # one number a set, expanded: it stays so
            first = _sets(value[(slice(None), *[slice(1)] * (value.dim() - 1))].flatten(), indices)
            return first.reshape(-1, *[1] * (value.dim() - 1)).expand(-1, *value.shape[1:])
        if isinstance(indices, Tensor) and indices.dtype == torch.long and indices.dim() == 1:
            return value.index_select(0, indices.to(value.device))  # several times as fast as indexing
        return value[indices]
    if isinstance(value, Interval):
        return Interval(_sets(value.lower, indices), _sets(value.upper, indices))
    return tuple(_sets(one, indices) for one in value) if isinstance(value, tuple) else value


def _per_set(value: Tensor | float, like: Tensor) -> Tensor:
    """A scalar, one value a set, or one value a feature as a tensor of the shape of `like`."""
    tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if tensor.dim() == 1 and like.dim() > 2 and tensor.shape[0] == like.shape[0]:
        tensor = tensor.reshape(-1, *([1] * (like.dim() - 1)))
    try:
        return tensor.expand_as(like)
    except RuntimeError as error:
        raise RegionError(f"a value of shape {tuple(tensor.shape)} does not fit regions of shape {tuple(like.shape)}") from error


def _clamp(x: Tensor, box: Interval) -> Tensor:
    """x (B, S, *shape) moved into the box, whose bounds are rounded inward to the type of x (upper bounds where that leaves no number)."""
    low, high = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
    return torch.clamp(x, rounding.round_up(low, x.dtype), rounding.round_down(high, x.dtype))


@dataclass(frozen=True, eq=False)
class Box(Region):
    """{x : lower <= x <= upper}, element-wise; lower, upper: (B, *shape).

    Raises:
        RegionError: bounds that are not finite, reversed, or of different shapes.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise RegionError(f"lower has shape {tuple(self.lower.shape)}, upper {tuple(self.upper.shape)}; they must be equal")
        if not (torch.isfinite(self.lower).all() and torch.isfinite(self.upper).all()):
            raise RegionError("a box needs finite bounds for every input; give each input a lower and an upper bound")
        if bool((self.lower > self.upper).any()):
            index = int((self.lower > self.upper).flatten().nonzero()[0])
            low, high = self.lower.flatten()[index].item(), self.upper.flatten()[index].item()
            raise RegionError(f"input {index} has lower bound {low} above its upper bound {high}: the region is empty")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.lower.shape[1:])

    @property
    def batch(self) -> int:
        return self.lower.shape[0]

    def box(self) -> Interval:
        return Interval(self.lower, self.upper)

    @property
    def symmetric(self) -> bool:
        return True

    @functools.cached_property
    def origin(self) -> Tensor:
        return (self.lower.to(_EXACT) + self.upper.to(_EXACT)) / 2

    @functools.cached_property
    def _radius(self) -> Tensor:
        """Half widths around `origin`, rounded upward, in the type of the bounds; exactly zero for a fixed feature."""
        radius = torch.maximum(self.upper.to(_EXACT) - self.origin, self.origin - self.lower.to(_EXACT))
        radius = torch.where(self.lower == self.upper, 0.0, rounding.above(radius))
        return rounding.round_up(radius, self.lower.dtype)

    @functools.cached_property
    def _segments(self) -> tuple[tuple[int, int], ...]:
        return rounding.segments(self._radius)

    def radius(self, dtype: torch.dtype) -> Tensor:
        """Half widths around the origin, (B, *shape), rounded upward."""
        return rounding.round_up(self._radius, dtype) if dtype != self.lower.dtype else self._radius

    def decrease(self, A: Tensor, sets: Tensor | None = None) -> Tensor:
        radius = self.radius(A.dtype).flatten(1)
        ranges = self._segments if A.dtype == self.lower.dtype else None
        return rounding.dot_above(A.flatten(2).abs(), radius if sets is None else radius.index_select(0, sets), ranges)

    def decrease_patch(self, patch: Patch) -> Tensor:
        dtype = patch.A.dtype
        total = patch.sums(patch.A.abs() * patch.windows(as_maps(self.radius(dtype))))
        return rounding.above(total, patch.sums_error() * total + rounding.underflow(patch.A[0].numel(), dtype))

    def project(self, x: Tensor) -> Tensor:
        return _clamp(x, Interval(self.lower, self.upper))

    def contains(self, x: Tensor) -> Tensor:
        inside = (x >= self.lower.unsqueeze(1)) & (x <= self.upper.unsqueeze(1))
        return inside.flatten(2).all(-1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        low, high = self.lower.unsqueeze(1), self.upper.unsqueeze(1)
        u = torch.rand(self.batch, count, *self.shape, dtype=low.dtype, generator=generator).to(low.device)
        return torch.minimum(torch.maximum(low + u * (high - low), low), high)

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Box:
        moved = Interval(self.lower.to(device), self.upper.to(device)).to(dtype)
        return Box(moved.lower, moved.upper)


@dataclass(frozen=True, eq=False)
class LpBall(Region):
    """{x : ||(x - center) / eps||_p <= 1} intersected with the domain; an eps of zero fixes its feature.

    center: (B, *shape); eps: a number, one number a set, or a tensor broadcastable to (B, *shape); p: 1, 2 or inf; domain: (low, high),
    numbers or tensors, or None. All data are held in float64.

    Raises:
        RegionError: negative or non-finite eps, unsupported p, a centre outside the domain, shapes that do not fit.
    """

    center: Tensor
    eps: Tensor | float
    p: float = math.inf
    domain: tuple[Tensor | float, Tensor | float] | None = None

    def __post_init__(self) -> None:
        if self.p not in (1.0, 2.0, math.inf):
            raise RegionError(f"norm {self.p} is not supported: use 1, 2 or inf")
        center = self.center.to(_EXACT)
        eps = _per_set(self.eps, center)
        if not torch.isfinite(center).all():
            raise RegionError("the centre of a ball must be finite")
        if not (torch.isfinite(eps).all() and bool((eps >= 0).all())):
            raise RegionError(f"eps must be finite and not negative, got a minimum of {eps.min().item()}")
        object.__setattr__(self, "center", center)
        object.__setattr__(self, "eps", eps)
        if self.domain is not None:
            low, high = (_per_set(side, center) for side in self.domain)
            if not bool(((low <= center) & (center <= high)).all()):
                raise RegionError("the centre of a ball must lie in its domain; clip it first or drop the domain")
            object.__setattr__(self, "domain", (low, high))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.center.shape[1:])

    @property
    def batch(self) -> int:
        return self.center.shape[0]

    @property
    def symmetric(self) -> bool:
        return self.domain is None

    @property
    def origin(self) -> Tensor:
        return self.center

    @property
    def _eps(self) -> Tensor:
        return torch.as_tensor(self.eps)

    def box(self) -> Interval:
        return self._outer

    @functools.cached_property
    def _outer(self) -> Interval:
        center, eps = self.center, self._eps
        return self._clipped(Interval(rounding.sum_below(center, -eps), rounding.sum_above(center, eps)))

    @functools.cached_property
    def _inner(self) -> Interval:
        """The box rounded inward: its float64 numbers are exactly those of the real box."""
        center, eps = self.center, self._eps
        return self._clipped(Interval(rounding.sum_above(center, -eps), rounding.sum_below(center, eps)))

    def _clipped(self, box: Interval) -> Interval:
        if self.domain is None:
            return box
        low, high = (torch.as_tensor(side) for side in self.domain)
        return box.intersect(Interval(low, high))

    @functools.cached_property
    def _extents(self) -> tuple[Tensor, Tensor]:
        """How far each feature of the box lies below and above the centre, rounded upward; (B, *shape) each."""
        box = self.box()
        return rounding.sum_above(self.center, -box.lower), rounding.sum_above(box.upper, -self.center)

    def decrease(self, A: Tensor, sets: Tensor | None = None) -> Tensor:
        if sets is not None:
            return self.select(sets).decrease(A)
        if self.p == math.inf:
            wide, (down, up) = A.to(_EXACT).flatten(2), self._extents
            return rounding.dot_above(wide.clamp(min=0), down.flatten(1)) + rounding.dot_above(-wide.clamp(max=0), up.flatten(1))
        eps, limits = self._eps.flatten(1).unsqueeze(1), self._limits(lambda side: side.flatten(1).unsqueeze(1))
        rows = max(1, _CACHED // (A.shape[0] * math.prod(self.shape))) if A.device.type == "cpu" else A.shape[1]
        parts = [self._gain(part.to(_EXACT) * eps, limits) for part in A.flatten(2).split(rows, dim=1)]
        return torch.cat(parts, dim=1)

    def decrease_patch(self, patch: Patch) -> Tensor:
        if self.p == math.inf:
            wide, (down, up) = replace(patch, A=patch.A.to(_EXACT)), self._extents
            fall = wide.A.clamp(min=0) * wide.windows(as_maps(down)) - wide.A.clamp(max=0) * wide.windows(as_maps(up))
            total = wide.sums(fall)
            return rounding.above(total, wide.sums_error() * total + rounding.underflow(fall[0].numel(), _EXACT))

        def windows(values: Tensor) -> Tensor:
            return patch.windows(as_maps(values)).flatten(1)

        return self._gain(patch.A.to(_EXACT).flatten(1) * windows(self._eps), self._limits(windows))

    def _gain(self, a: Tensor, limits: Limits | None) -> Tensor:
        """`largest_gain` rounded upward; a also has the rounding of the products with eps."""
        drop, size = largest_gain(a, limits, self.p)
        terms = math.prod(self.shape) + 12
        return rounding.above(drop, 2 * rounding.gamma(terms, _EXACT) * size + rounding.underflow(terms, _EXACT))

    def _limits(self, arrange: Callable[[Tensor], Tensor]) -> Limits | None:
        """How far each feature may move down and up, arranged like the coefficients; None without a domain."""
        if self.domain is None:
            return None
        down, up = self._reaches
        return arrange(down), arrange(up)

    @functools.cached_property
    def _reaches(self) -> tuple[Tensor, Tensor]:
        """How far each feature may move down and up, in units of eps, rounded upward; (B, *shape) each, at most 2 (the ball allows 1)."""
        low, high = (torch.as_tensor(side) for side in self.domain)  # type: ignore[union-attr]
        moving = self._eps > 0
        safe = torch.where(moving, self._eps, 1.0)
        down = rounding.above(rounding.above(self.center - low) / safe).clamp(0.0, 2.0)
        up = rounding.above(rounding.above(high - self.center) / safe).clamp(0.0, 2.0)
        return torch.where(moving & (self.center > low), down, 0.0), torch.where(moving & (self.center < high), up, 0.0)

    def project(self, x: Tensor) -> Tensor:
        if self.p == math.inf:
            return _clamp(x, self._inner)
        center, eps = self.center.unsqueeze(1), self._eps.unsqueeze(1)
        clamped = x if self.domain is None else _clamp(x, Interval(*(torch.as_tensor(side) for side in self.domain)))
        steps = torch.where(eps > 0, (clamped.to(_EXACT) - center) / torch.where(eps > 0, eps, 1.0), 0.0)
        if self.p == 1.0:
            steps = _project_l1(steps)
        norm = torch.linalg.vector_norm(steps.flatten(2), ord=self.p, dim=-1)
        # Shrinking towards the centre stays in the domain, and so does rounding towards it.
        margin = (1 - self._slip(x.dtype) - rounding.gamma(2 * math.prod(self.shape) + 64, _EXACT)).clamp_min(0).unsqueeze(1)
        shrink = torch.where(norm > margin, margin / norm.clamp_min(1e-300), 1.0)
        move = steps * shrink.reshape(*shrink.shape, *([1] * len(self.shape))) * eps
        down = rounding.round_down(rounding.sum_below(center, move), x.dtype)
        up = rounding.round_up(rounding.sum_above(center, move), x.dtype)
        return _clamp(torch.where(move > 0, down, up), self._inner)

    def _slip(self, dtype: torch.dtype) -> Tensor:
        """Norm of what rounding towards the centre may add to a point's distance, in units of eps, (B,).

        A feature comes no further from the centre unless it crosses it, and then ends at a neighbour of a centre that `dtype` lacks.
        """
        below, above = (side.to(_EXACT) for side in (rounding.round_down(self.center, dtype), rounding.round_up(self.center, dtype)))
        missed = torch.maximum(self.center - below, above - self.center)
        steps = torch.where(self._eps > 0, missed / torch.where(self._eps > 0, self._eps, 1.0), 0.0)
        return torch.linalg.vector_norm(steps.flatten(1), ord=self.p, dim=-1)

    def contains(self, x: Tensor) -> Tensor:
        inner, wide = self._inner, x.to(_EXACT)
        inside = ((wide >= inner.lower.unsqueeze(1)) & (wide <= inner.upper.unsqueeze(1))).flatten(2).all(-1)
        if self.p == math.inf:
            return inside
        center, eps = self.center.unsqueeze(1), self._eps.unsqueeze(1)
        distance = torch.where(wide == center, 0.0, rounding.above((wide - center).abs()))
        moving = eps > 0
        steps = torch.where(moving, distance / torch.where(moving, eps, 1.0), torch.where(distance > 0, math.inf, 0.0))
        norm = torch.linalg.vector_norm(steps.flatten(2), ord=self.p, dim=-1)
        return inside & (norm * (1 + rounding.gamma(math.prod(self.shape) + 8, _EXACT)) <= 1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        if self.p == math.inf:
            return Box(self._inner.lower, self._inner.upper).sample(count, generator)
        directions = torch.randn(self.batch, count, *self.shape, dtype=_EXACT, generator=generator).to(self.center.device)
        norms = torch.linalg.vector_norm(directions.flatten(2), ord=self.p, dim=-1)
        radii = torch.rand(self.batch, count, dtype=_EXACT, generator=generator).to(self.center.device)
        scale = (radii / norms.clamp_min(1e-300)).reshape(self.batch, count, *([1] * len(self.shape)))
        return self.project(self.center.unsqueeze(1) + directions * scale * self._eps.unsqueeze(1))

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Region:
        if self.p == math.inf:
            box = self.box()
            return Box(box.lower, box.upper).to(dtype, device)
        domain = None if self.domain is None else tuple(torch.as_tensor(side).to(device) for side in self.domain)
        return LpBall(self.center.to(device), self._eps.to(device), self.p, domain)  # type: ignore[arg-type]


def _project_l1(steps: Tensor) -> Tensor:
    """Euclidean projection of each (B, S) point onto the unit l1 ball by soft thresholding."""
    flat = steps.flatten(2)
    ordered = flat.abs().sort(dim=-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    counts = torch.arange(1, flat.shape[-1] + 1, dtype=flat.dtype, device=flat.device)
    active = (ordered * counts > excess).to(flat.dtype).sum(-1, keepdim=True).clamp_min(1)
    threshold = (excess.gather(-1, active.long() - 1) / active).clamp_min(0)
    outside = flat.abs().sum(-1, keepdim=True) > 1
    shrunk = flat.sign() * (flat.abs() - threshold).clamp_min(0)
    return torch.where(outside, shrunk, flat).reshape(steps.shape)
