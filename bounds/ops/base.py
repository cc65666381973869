"""Families of operators.

Engines, encoders and attacks know families, never single ops. Every tensor an op sees has a leading batch dimension N that is not part of
the node's shape: an op with input shape (1, 3, 32, 32) receives (N, 1, 3, 32, 32).

    Op
    ├── Input                  the input node
    ├── Affine                 y = sum_j W_j x_j + b: writes `linear` (and `bias`); forward, interval, adjoint derive from it
    └── Activation             a non-linear op: writes `forward`, `interval`, `relax`
        ├── Piecewise          element-wise, continuous, piecewise linear: writes data (knots, slopes, intercepts)
        ├── Smooth             element-wise, S-shaped: writes the function and facts about its derivative
        └── MaxReduce          maximum over the last axis
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import UnsupportedOpError
from bounds.interval import Interval
from bounds.linear import Relaxation
from bounds.patch import Patch, as_map

Shape = tuple[int, ...]
Slopes = Literal["adaptive", "parallel"]


class Op(ABC):
    """One operator. Subclasses are frozen dataclasses; tensor fields are parameters in the precision the model stores."""

    @abstractmethod
    def forward(self, *xs: Tensor) -> Tensor:
        """The op's value. xs: (N, *input_shape) each."""

    @abstractmethod
    def interval(self, *xs: Interval) -> Interval:
        """An enclosure of the op's real-arithmetic values on the given enclosures, rounded outward."""

    def parameters(self) -> list[Tensor]:
        """The stored tensors of floating-point type."""
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Self:
        """A copy whose floating-point parameters have `dtype` and whose tensors live on `device`."""
        changes = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
        return replace(self, **changes) if changes else self  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Input(Op):
    """The network's input."""

    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0]

    def interval(self, *xs: Interval) -> Interval:
        return xs[0]


class Affine(Op):
    """y = sum_j W_j x_j + b.

    A subclass writes `linear`, and `bias` if it has one. `adjoint` may be overridden by a faster kernel; a battery compares the two.
    `elementwise`: each output depends on one input element only.
    """

    elementwise: bool = False

    @abstractmethod
    def linear(self, *xs: Tensor, absolute: bool = False) -> Tensor:
        """sum_j W_j x_j, or sum_j |W_j| x_j when `absolute` (the stored coefficients replaced by their absolute values)."""

    def bias(self) -> Tensor | None:
        """b, broadcastable to (N, *output_shape), or None for zero."""
        return None

    def bias_magnitude(self) -> Tensor | None:
        """|b|, or more where the bias is itself computed from larger numbers; None for zero."""
        bias = self.bias()
        return None if bias is None else bias.abs()

    def fan_in(self, *shapes: Shape) -> int:
        """`terms`, computed once per set of shapes."""
        return self._counted("terms", shapes)

    def fan_out(self, *shapes: Shape) -> int:
        """`adjoint_terms`, computed once per set of shapes."""
        return self._counted("adjoint_terms", shapes)

    def _counted(self, what: str, shapes: tuple[Shape, ...]) -> int:
        cache = self.__dict__.setdefault("_counts", {})
        if (what, shapes) not in cache:
            cache[what, shapes] = getattr(self, what)(*shapes)
        return cache[what, shapes]

    def terms(self, *shapes: Shape) -> int:
        """How many rounded operations one output passes through: products in the sum, the bias, and any rounding of the coefficients
        themselves (a scale computed from other parameters counts its own roundings). 0 means the op is exact.

        The default serves ops whose coefficients are all 1: 0 when they only move data, else the largest number of addends.
        """
        count = int(self.linear(*(torch.ones(1, *s, device=self._device()) for s in shapes), absolute=True).amax())
        return 0 if count <= 1 else count

    def adjoint_terms(self, *shapes: Shape) -> int:
        """The same for one coefficient of the adjoint (fan-out instead of fan-in). Default: for ops whose coefficients are all 1."""
        y = self.linear(*(torch.zeros(1, *s, device=self._device()) for s in shapes))
        count = max(int(a.amax()) if a.numel() else 0 for a in self.adjoint(torch.ones_like(y), *shapes, absolute=True))
        return 0 if count <= 1 else count

    def _device(self) -> torch.device:
        """Where the op's tensors live (an index tensor is no parameter but decides it too)."""
        tensors = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return next((t.device for t in tensors if isinstance(t, Tensor)), torch.device("cpu"))

    def magnitude(self, *mags: Tensor) -> Tensor:
        """|W| mag + |b|, an upper bound (up to rounding) on the sum of the absolute values of the terms of one output."""
        total = self.linear(*mags, absolute=True)
        bias = self.bias_magnitude()
        return total if bias is None else total + bias

    def forward(self, *xs: Tensor) -> Tensor:
        total = self.linear(*xs)
        bias = self.bias()
        return total if bias is None else total + bias

    def adjoint(self, A: Tensor, *shapes: Shape, absolute: bool = False) -> tuple[Tensor, ...]:
        """W_j^T A for every input j. A: (M, *output_shape) -> one (M, *input_shape) per input."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            xs = [A.new_zeros(A.shape[0], *s).requires_grad_() for s in shapes]
            recorded = wanted and (A.requires_grad or any(p.requires_grad for p in self.parameters()))
            return torch.autograd.grad(self.linear(*xs, absolute=absolute), xs, A, create_graph=recorded)

    def unit_adjoint(self, elements: Tensor, *shapes: Shape) -> tuple[Tensor, ...] | None:
        """The adjoint of rows that are 1 at one element of the output each, where that is a mere look-up; else None.

        elements: (*rows) indices into the flattened output -> one (*rows, *input_shape) per input, exact.
        """
        return None

    def local_adjoint(self, patch: Patch, *shapes: Shape) -> tuple[Patch, ...] | None:
        """W_j^T A for every input j where A's rows live in windows of a map; None where the op is not local.

        Entries beyond the map's edge are zero in `patch` and may be anything in the results. The default serves element-wise ops.
        """
        maps = [as_map(shape) for shape in shapes]
        if not self.elementwise or len(maps) != 1 or maps[0] is None:
            return None
        factors = self.linear(patch.A.new_ones(1, *shapes[0]))
        if as_map(tuple(factors.shape[1:])) != maps[0]:
            return None
        windows = replace(patch, image=torch.zeros_like(patch.image)).windows(factors.reshape(1, *maps[0]))
        return (replace(patch, A=patch.A * windows),)

    def interval(self, *xs: Interval) -> Interval:
        """With c and r the centres and radii, W c + b -+ |W| r encloses the values; computing both costs at most gamma (|W| |x| + |b|) each."""
        terms = self.fan_in(*(tuple(x.shape[1:]) for x in xs))
        if terms == 0 and isinstance(self, MovesData):
            return Interval(self.forward(*(x.lower for x in xs)), self.forward(*(x.upper for x in xs)))
        dtype = xs[0].lower.dtype
        relative = 2 * rounding.gamma(terms + 8, dtype)
        if self.elementwise and len(xs) == 1:
            return self._ends(xs[0], relative, rounding.underflow(terms + 8, dtype))
        centers = [(x.lower + x.upper) / 2 for x in xs]
        radii = [torch.maximum(x.upper - c, c - x.lower) for x, c in zip(xs, centers, strict=True)]
        # The rounding error is bounded in the same product as the radius: |W| (r + relative |x|).
        spread = self.linear(*(torch.add(r, x.magnitude, alpha=relative) for r, x in zip(radii, xs, strict=True)), absolute=True)
        offset = self.bias_magnitude()
        spread = (
            spread + rounding.underflow(terms + 8, dtype)
            if offset is None
            else spread + (relative * offset + rounding.underflow(terms + 8, dtype))
        )
        center = self.forward(*centers)
        return Interval(rounding.below(center, spread), rounding.above(center, spread))

    def _ends(self, x: Interval, relative: float, tiny: float) -> Interval:
        """The values at both ends, each less its own rounding: a wide interval costs its small end nothing."""
        offset = self.bias_magnitude()
        values = []
        for end in (x.lower, x.upper):
            size = self.linear(end.abs(), absolute=True)
            values.append((self.forward(end), relative * (size if offset is None else size + offset) + tiny))
        below, above = ([side(value, error) for value, error in values] for side in (rounding.below, rounding.above))
        return Interval(torch.minimum(*below), torch.maximum(*above))


class MovesData(Affine):
    """Affine ops whose coefficients are all 0 or 1 and whose outputs are single inputs or constants: reshapes, gathers, pads.

    A bias may only be non-zero where `linear` is zero for every input, so that bounds map to bounds without rounding.
    """


class Activation(Op):
    """A non-linear op with one input, relaxed by planes above and below.

    free: it is element-wise and any slopes may be chosen (`fit`). The slope of the plane above (below) needs no choice where `convex`
    (`concave`): the chord's is best. piecewise: `touching` does not depend on the slope. partial: it is not defined everywhere.
    """

    exact_in_milp: bool = False
    free: bool = False
    piecewise: bool = False
    convex: bool = False
    concave: bool = False
    partial: bool = False

    @abstractmethod
    def unstable(self, x: Interval) -> Tensor:
        """Mask (N, *input_shape): where a tighter input interval could improve the relaxation."""

    @abstractmethod
    def relax(self, x: Interval, slopes: Slopes = "adaptive") -> Relaxation:
        """Planes that enclose the op on `x` in real arithmetic.

        "adaptive": the line of the upper (lower) hull over the interval's midpoint, as CROWN chooses; "parallel": one slope for both
        sides, the secant's, as Fast-Lin chooses.
        """

    def usual_slopes(self, x: Interval, slopes: Slopes = "adaptive") -> tuple[Tensor, Tensor]:
        """The slopes of the planes that `relax` gives. Only where `free`."""
        raise UnsupportedOpError(f"the slopes of {type(self).__name__} cannot be chosen freely; use the planes that relax() gives")

    def fit(self, x: Interval, lower_slope: Tensor, upper_slope: Tensor) -> Relaxation:
        """The planes with these slopes that enclose the op on `x` most tightly, for any slopes. All shapes may have further leading
        dimensions and broadcast. Only where `free`."""
        raise UnsupportedOpError(f"the slopes of {type(self).__name__} cannot be chosen freely; use the planes that relax() gives")

    def slope_range(self, x: Interval) -> tuple[Tensor, Tensor]:
        """The smallest and largest slope worth giving to `fit`. Only where `free`."""
        raise UnsupportedOpError(f"the slopes of {type(self).__name__} cannot be chosen freely; use the planes that relax() gives")

    def touching(self, x: Interval, slope: Tensor, *, below: bool) -> tuple[Tensor, ...]:
        """Points of `x` at one of which act(z) - slope z is smallest (largest unless `below`), up to rounding. Only where `free`, for a
        slope within `slope_range`."""
        raise UnsupportedOpError(f"the slopes of {type(self).__name__} cannot be chosen freely; use the planes that relax() gives")

    def split_point(self, x: Interval) -> Tensor:
        """Where to cut the interval of an unstable element so that the planes of both parts are tighter. Only where `free`."""
        return (x.lower + x.upper) / 2

    def at(self, columns: Tensor, shape: Shape) -> Self:
        """The op on some elements of a node of that shape only, given by their positions; element-wise ops alone."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        chosen = {k: v.expand(shape).flatten()[columns] for k, v in tensors.items() if isinstance(v, Tensor) and v.dim() > 0}
        return replace(self, **chosen) if chosen else self  # type: ignore[type-var]

    @abstractmethod
    def float_error(self, x: Interval) -> Tensor:
        """By how much a float32 execution of the op on inputs in `x` may differ from the real function; shape (N, *output_shape)."""

    def spread(self, A: Tensor) -> Tensor:
        """Coefficients on the output viewed as coefficients on the input, before slopes are applied. A: (..., *output_shape)."""
        return A

    def gather(self, terms: Tensor) -> Tensor:
        """Products of slopes and inputs added up to the plane's value on the output. terms: (N, *input_shape) -> (N, *output_shape)."""
        return terms


def product(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)
