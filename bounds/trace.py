"""Trace: what the forward sweep of an engine knows about every node on a batch of regions.

The backward walk works on deviations from a reference run. Let m_k be a fixed float64 value for every node (its *centre*): at the input
the region's origin, at an affine node W m + b in float64, at an activation its lower plane at the centre. For deviations d_k = x_k - m_k

    affine       d_k = W d_j            up to the float64 rounding of the reference run
    activation   s d_j <= d_k <= S d_j + h        with lower slope s, upper slope S and gap h = upper plane - lower plane at the centre
    bilinear     as an activation, with a slope for each of the two factors of every term

so biases and lower intercepts vanish from the walk, and its rounding errors scale with the size of the *deviations*, not of the values.

Every rounding error of the walk below node k, down to the next activations, is paid for by <|A_k|, charge_k>:

    affine       charge_k = |W| (gamma reach_j + charge_j + fan_j) + float64 residual
    activation   charge_k = max(|s|, |S|) (charge_j + fan_j) + slope roundings
    bilinear     the same for both factors, added up over the terms

where reach_j >= |d_j|, fan_j = gamma(users) reach_j pays for merging the paths of several users, and charge_j counts as 0 at inputs and
activations, which are paid for when the walk reaches them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bounds import rounding
from bounds.errors import DomainError, NumericsError, ShapeError, TimeLimitError, UnsupportedOpError
from bounds.inactive import Cut
from bounds.interval import Interval, chosen
from bounds.network import Network
from bounds.ops.base import Activation, Affine, Input, MovesData, Slopes
from bounds.ops.bilinear import Bilinear, Pair
from bounds.region import Box, Region

Semantics = Literal["real", "float32-any-order"]
_EXACT = torch.float64
_COEFFICIENT_ROUNDINGS = 4
"""Roundings of a coefficient itself: a weight converted to the working type, a scale computed from other parameters."""


@dataclass(frozen=True, eq=False)
class Planes:
    """An activation's planes around its centre: slope d <= act <= (slope + step) d + gap, d the deviation of its input.

    slope, step: shape of the input; the walk multiplies all coefficients by `slope` and adds `step` A where A is negative. gap >= 0: shape of
    the output; `segments` are column ranges with few enough non-zero gaps to be summed accurately. parallel: every step is zero.
    """

    slope: Tensor
    step: Tensor
    gap: Tensor
    segments: tuple[tuple[int, int], ...]
    parallel: bool


@dataclass(frozen=True, eq=False)
class ProductPlanes:
    """A bilinear op's planes around its centre, see `bounds.ops.bilinear.TwoPlanes`: sum of lower d <= y - centre <= sum of upper d + gap.

    Slopes (B, *terms); gap, segments and parallel as in `Planes`.
    """

    lower: Pair
    upper: Pair
    gap: Tensor
    segments: tuple[tuple[int, int], ...]
    parallel: bool


class Trace:
    """Intervals, centres and charges of the nodes visited so far. Node k must be visited after its inputs.

    network, region: already in the working type. deadline: a value of time.monotonic(). semantics: "float32-any-order" adds to every node
    the error any float32 execution may make. The dictionaries hold what is known of visited nodes, by index.
    """

    def __init__(self, network: Network, region: Region, semantics: Semantics = "real", deadline: float | None = None) -> None:
        if tuple(region.shape) != network.input_shape:
            raise ShapeError(f"the network reads inputs of shape {network.input_shape}, the region has shape {tuple(region.shape)}")
        self.network, self.region, self.semantics, self.deadline = network, region, semantics, deadline
        self.wide = network.to(_EXACT)
        self.dtype = network.dtype
        self.intervals: dict[int, Interval] = {}
        self.center: dict[int, Tensor] = {}
        self.reach: dict[int, Tensor] = {}
        self.charge: dict[int, Tensor] = {}
        self.planes: dict[int, Planes] = {}
        self.products: dict[int, ProductPlanes] = {}
        self._underflow = region.origin.new_zeros(region.batch)
        self._measured: list[tuple[int, Tensor]] = []
        self._ahead: dict[int, Tensor] = {}  # centres of nodes that are about to be visited

    @property
    def underflow(self) -> Tensor:
        """What coefficients that underflow may cost a row, for one of size 1; (B,) float64.

        Each costs at most one smallest normal number times the reach it meets; no sum here has 2^20 terms.
        """
        if self._measured:
            tiny = sum(elements for elements, _ in self._measured) * rounding.underflow(2**20, self.dtype)
            farthest = torch.cat([reach.detach().flatten(1) for _, reach in self._measured], dim=1).amax(1)
            self._underflow = self._underflow + tiny * (1 + farthest.to(_EXACT))
            self._measured.clear()
        return self._underflow

    def in_type(self, dtype: torch.dtype, slopes: Slopes) -> Trace:
        """The same knowledge in another working type: intervals converted outward, everything else made anew from them."""
        converted = Trace(self.network.to(dtype), self.region.to(dtype), self.semantics, self.deadline)
        for index, interval in self.intervals.items():
            converted.visit(index, interval.to(dtype), slopes)
        return converted

    def check_time(self) -> None:
        """Raises TimeLimitError once the deadline (a value of time.monotonic()) has passed."""
        if self.late:
            raise TimeLimitError("the time limit was reached while bounds were computed")

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def parallel(self) -> bool:
        """Whether all planes so far are parallel: then a row and its negative share their coefficients all the way."""
        return all(p.parallel for p in self.planes.values()) and all(p.parallel for p in self.products.values())

    @property
    def batch(self) -> int:
        """Number of regions."""
        return self.region.batch

    def interval(self, index: int) -> Interval:
        """The interval of a visited node, in the working type."""
        found = self.intervals.get(index)
        if found is None:
            raise UnsupportedOpError(f"node {self.network.nodes[index].name!r} was used before it was bounded")
        return found

    def propagate(self, index: int) -> Interval:
        """The interval of node `index` from its inputs' intervals: one step of interval propagation."""
        node = self.network.nodes[index]
        if isinstance(node.op, Input):
            return self.region.box().to(self.dtype)
        try:
            around = self._around_center(index)
            if around is None or node.op.elementwise:  # type: ignore[attr-defined]
                interval = node.op.interval(*(self.interval(s) for s in node.inputs))
                interval = interval if around is None else interval.intersect(around)  # a wide box costs its small end nothing that way
            else:
                interval = around
        except DomainError as undefined:
            raise DomainError(f"node {node.name!r}: {undefined}") from undefined
        if self.semantics == "float32-any-order":
            error = self._execution_error(index)
            interval = Interval(rounding.below(interval.lower, error), rounding.above(interval.upper, error))
        return interval

    def _around_center(self, index: int) -> Interval | None:
        """Affine images of a box: W m + b in float64, up to its own rounding, and |W| reach either way. None for other nodes.

        In the working type the values themselves would be rounded, which costs small boxes far from 0 most of what rounding costs.
        """
        op, sources = self.network.nodes[index].op, self.network.nodes[index].inputs
        if not isinstance(self.region, Box) or not isinstance(op, Affine) or isinstance(op, MovesData):
            return None
        if not self.network.affine_in_input[index] or any(s not in self.center for s in sources):
            return None
        terms = op.fan_in(*self.network.input_shapes(index))
        center = self._ahead[index] = self.wide.nodes[index].op.forward(*(self.center[s] for s in sources))
        residual, relative = rounding.gamma(terms + 2, _EXACT), 2 * rounding.gamma(terms + 4, self.dtype)
        moved = [self.reach[s] + residual * self.center[s].abs().to(self.dtype) for s in sources]
        spread, bias = op.linear(*moved, absolute=True), op.bias_magnitude()
        spread = spread if bias is None else spread + residual * bias
        spread = (spread * (1 + relative) + rounding.underflow(terms + 8, self.dtype)).to(_EXACT)
        return Interval(
            rounding.round_down(rounding.below(center, spread), self.dtype), rounding.round_up(rounding.above(center, spread), self.dtype)
        )

    def visit(self, index: int, interval: Interval, slopes: Slopes) -> None:
        """Record node `index` with its final interval, and what the backward walk needs to pass through it.

        Raises:
            NumericsError: a bound is NaN or infinite; names the node.
        """
        node = self.network.nodes[index]
        self.record(index, interval)
        if isinstance(node.op, Input):
            self.center[index] = self.region.origin
            self._measure(index, torch.zeros_like(interval.lower))
        elif isinstance(node.op, MovesData) and node.op.bias() is None and node.op.fan_out(*self.network.input_shapes(index)) == 0:
            self._visit_move(index, node.op)
        elif isinstance(node.op, Affine):
            self._visit_affine(index, node.op)
        elif isinstance(node.op, Activation):
            self._visit_activation(index, node.op, slopes)
        elif isinstance(node.op, Bilinear):
            self._visit_bilinear(index, node.op, slopes)
        else:
            raise UnsupportedOpError(f"node {node.name!r}: no engine knows how to bound the family of {type(node.op).__name__}")

    def narrow(self, index: int, interval: Interval) -> None:
        """Replace the interval of a visited affine or input node by another enclosure. Raises NumericsError as `visit` does."""
        self.record(index, interval)
        self._measure(index, self.charge[index])

    def leave_out(self, cut: Cut) -> None:
        """Go on with the smaller network. Of the nodes that become smaller those below the activation must have been visited, the others not."""
        exact = self.wide is self.network
        self.network = cut.of(self.network)
        self.wide = self.network if exact else cut.of(self.wide)
        for index, shape in cut.shapes.items():
            if index in self.intervals:
                self.intervals[index] = self.intervals[index].select(cut.left, shape)
                for known in (self.center, self.reach, self.charge):
                    known[index] = chosen(known[index], cut.left, shape)

    def anchor(self, index: int, interval: Interval) -> None:
        """Record node `index` as a place where a walk may stop: its centre is the interval's midpoint and nothing below is charged.

        Raises:
            NumericsError: a bound is NaN or infinite; names the node.
        """
        self.record(index, interval)
        self.center[index] = (interval.lower.to(_EXACT) + interval.upper.to(_EXACT)) / 2
        self._measure(index, torch.zeros_like(interval.lower))

    def record(self, index: int, interval: Interval) -> None:
        """Record the interval of node `index` alone. Raises NumericsError where a bound is NaN or infinite; names the node."""
        # Infinite and NaN ends make this sum infinite or NaN.
        if not math.isfinite((interval.upper - interval.lower).sum().item()) and not interval.is_finite():
            name = self.network.nodes[index].name
            raise NumericsError(f"node {name!r}: a bound is NaN or infinite; the region or the weights are too large for {self.dtype}")
        self.intervals[index] = interval

    def _measure(self, index: int, charge: Tensor) -> None:
        """Set reach (an upper bound on |x - centre|) and charge of a node whose centre is set."""
        interval, center = self.interval(index), self.center[index]
        # Centres are float64, and so are the differences.
        reach = torch.maximum(interval.upper - center, center - interval.lower)
        # One relative allowance pays for the difference and the conversion; what underflows is paid for by `underflow`.
        self.reach[index] = (reach * (1 + 4 * rounding.unit_roundoff(self.dtype))).to(self.dtype).clamp_min(0)
        self.charge[index] = charge.detach()
        self._measured.append((math.prod(interval.shape[1:]), self.reach[index]))

    def _arriving(self, source: int) -> Tensor:
        """What a user of node `source` pays for what lies between it and the next activations below."""
        users = len(self.network.successors[source])
        passed = self.charge[source] if isinstance(self.network.nodes[source].op, Affine) else torch.zeros_like(self.reach[source])
        if users > 1:
            passed = passed + rounding.gamma(users, self.dtype) * self.reach[source]
        return passed

    def _visit_move(self, index: int, op: MovesData) -> None:
        """No arithmetic in either direction: everything known about the inputs moves along."""
        sources = self.network.nodes[index].inputs
        self.center[index] = op.forward(*(self.center[s] for s in sources))
        self.reach[index] = op.forward(*(self.reach[s] for s in sources))
        self.charge[index] = op.forward(*(self._arriving(s) for s in sources))

    def _visit_affine(self, index: int, op: Affine) -> None:
        shapes = self.network.input_shapes(index)
        sources = self.network.nodes[index].inputs
        ahead = self._ahead.pop(index, None)
        self.center[index] = self.wide.nodes[index].op.forward(*(self.center[s] for s in sources)) if ahead is None else ahead
        fan_in, fan_out = op.fan_in(*shapes), op.fan_out(*shapes)
        adjoint_error = rounding.gamma(fan_out + _COEFFICIENT_ROUNDINGS, self.dtype) if fan_out else 0.0
        residual = rounding.gamma(fan_in + 2, _EXACT) if fan_in else 0.0
        inputs = [
            self._arriving(s) + adjoint_error * self.reach[s].detach() + residual * self.center[s].detach().abs().to(self.dtype)
            for s in sources
        ]
        charge = op.linear(*inputs, absolute=True)
        bias = op.bias()
        if bias is not None:
            charge = charge + residual * bias.abs()
        charge = charge * rounding.SAFETY if fan_in else charge
        if self.semantics == "float32-any-order":
            charge = charge + self._execution_error(index)
        self._measure(index, charge)

    def _visit_activation(self, index: int, op: Activation, slopes: Slopes) -> None:
        (source,) = self.network.nodes[index].inputs
        planes = op.relax(self.interval(source), slopes)
        lower_slope, upper_slope = planes.lower_slope, planes.upper_slope
        z = self.center[source]
        low, high = op.gather(lower_slope * z), op.gather(upper_slope * z)
        center = low + planes.lower_intercept
        straight, sizes = _straight(lower_slope, upper_slope), (lower_slope.abs(), upper_slope.abs())
        level = (planes.lower_intercept == 0) | (op.gather(sizes[0]) == 0)
        exact = (op.gather(~straight) == 0) & level & (planes.lower_intercept == planes.upper_intercept)
        # float64 roundings of the two planes at the centre, paid outward
        size = op.gather((sizes[0] + sizes[1]) * z.abs()) + planes.lower_intercept.abs() + planes.upper_intercept.abs()
        slack = torch.where(exact, 0.0, rounding.gamma(lower_slope.shape[-1] + 4 if low.shape != lower_slope.shape else 4, _EXACT) * size)
        gap = torch.where(exact, 0.0, rounding.above(high + planes.upper_intercept - center, slack)).clamp_min(0)
        charge = self._activation_charge(index, straight, sizes, None) + slack.to(self.dtype) * rounding.SAFETY
        step, gap = upper_slope - lower_slope, rounding.round_up(gap, self.dtype)
        self.planes[index] = Planes(lower_slope, step, gap, rounding.segments(gap), not bool(step.any()))
        self.center[index] = center
        self._measure(index, charge)

    def _visit_bilinear(self, index: int, op: Bilinear, slopes: Slopes) -> None:
        first, second = self.network.nodes[index].inputs
        planes = op.relax(self.interval(first), self.interval(second), slopes)
        a, b = op.lift(self.center[first], self.center[second])
        (p, q), (P, Q) = ([slope.to(_EXACT) for slope in pair] for pair in (planes.lower, planes.upper))
        low, high = op.collect(p * a + q * b), op.collect(P * a + Q * b)
        center = low + planes.below
        size = op.collect((p.abs() + P.abs()) * a.abs() + (q.abs() + Q.abs()) * b.abs()) + planes.below.abs() + planes.above.abs()
        slack = rounding.gamma(2 * op.sums(*self.network.input_shapes(index)) + 4, _EXACT) * size
        gap = rounding.round_up(rounding.above(high + planes.above - center, slack).clamp_min(0), self.dtype)
        charge = self._bilinear_charge(index, op, planes.lower, planes.upper) + slack.to(self.dtype) * rounding.SAFETY
        self.products[index] = ProductPlanes(planes.lower, planes.upper, gap, rounding.segments(gap), planes.parallel)
        self.center[index] = center
        self._measure(index, charge)

    def _bilinear_charge(self, index: int, op: Bilinear, lower: Pair, upper: Pair) -> Tensor:
        """What a walk through bilinear node `index` with these slopes costs for each coefficient."""
        first, second = self.network.nodes[index].inputs
        relative = rounding.gamma(op.uses(*self.network.input_shapes(index)) + 4, self.dtype)
        a, b = op.lift(*(self._arriving(s) + relative * self.reach[s].detach() for s in (first, second)))
        p, q = (torch.maximum(low.abs(), high.abs()).detach() for low, high in zip(lower, upper, strict=True))
        charge = op.collect(p * a + q * b) * rounding.SAFETY
        return charge + self._execution_error(index) if self.semantics == "float32-any-order" else charge

    def activation_charge(self, index: int, lower_slope: Tensor, upper_slope: Tensor, columns: Tensor | None = None) -> Tensor:
        """What a walk through activation `index` with these slopes costs for each coefficient.

        Slopes (B, *shape); or, for rows with slopes of their own at some elements (positions `columns`), (B, R, k).
        """
        return self._activation_charge(index, _straight(lower_slope, upper_slope), (lower_slope.abs(), upper_slope.abs()), columns)

    def _activation_charge(self, index: int, straight: Tensor, sizes: tuple[Tensor, Tensor], columns: Tensor | None) -> Tensor:
        """`activation_charge`. straight: where no slope rounds anything; sizes: absolute slopes below and above."""
        node = self.network.nodes[index]
        (source,) = node.inputs
        terms = [self._arriving(source), self.reach[source].detach()]
        if self.semantics == "float32-any-order":
            terms.append(self._execution_error(index))
        if columns is not None:
            terms = [t.flatten(1)[:, columns].unsqueeze(1) for t in terms]
        below, above = (size.detach() for size in sizes)
        steepness = torch.maximum(below, above)
        rough = torch.where(straight, 0.0, 2 * rounding.gamma(5, self.dtype) * (below + above))
        total = steepness * terms[0] + rough * terms[1]
        charge = (total if columns is not None else node.op.gather(total)) * rounding.SAFETY  # type: ignore[attr-defined]
        return charge + terms[2] if len(terms) == 3 else charge

    def _execution_error(self, index: int) -> Tensor:
        """How far a float32 execution of node `index` may be from the op's real value on the values that reach it."""
        node = self.network.nodes[index]
        single = torch.float32
        if isinstance(node.op, Affine):
            terms = node.op.fan_in(*self.network.input_shapes(index))
            if terms == 0:
                return torch.zeros((self.batch, *node.shape), dtype=self.dtype, device=self.region.origin.device)
            v = node.op.magnitude(*(self.interval(s).magnitude for s in node.inputs))
            return (rounding.gamma(terms + 1, single) * v + rounding.underflow(terms + 1, single)) * rounding.SAFETY
        if isinstance(node.op, Activation):
            return node.op.float_error(self.interval(node.inputs[0]))
        if isinstance(node.op, Bilinear):
            terms = node.op.sums(*self.network.input_shapes(index))
            v = node.op.magnitude(*(self.interval(s).magnitude for s in node.inputs))
            return (rounding.gamma(terms + 1, single) * v + rounding.underflow(terms + 1, single)) * rounding.SAFETY
        return torch.zeros((self.batch, *node.shape), dtype=self.dtype, device=self.region.origin.device)


def _straight(lower_slope: Tensor, upper_slope: Tensor) -> Tensor:
    """Where both slopes are the same 0, 1 or -1: multiplying by them rounds nothing."""
    return (lower_slope == upper_slope) & (lower_slope == lower_slope.round().clamp(-1, 1))


def trace_through(
    network: Network, region: Region, known: Mapping[int, Interval], semantics: Semantics = "real", deadline: float | None = None
) -> Trace | None:
    """A trace of every node, its interval propagated and cut by what is known of it; None where nothing is left of one.

    network, region: in the working type. known: in any type, converted outward.
    """
    trace = Trace(network, region, semantics, deadline)
    for index in range(len(network.nodes)):
        interval = trace.propagate(index)
        if index in known:
            interval = interval.intersect(known[index].to(network.dtype, region.origin.device))
            if bool((interval.lower > interval.upper).any()):
                return None
        trace.visit(index, interval, "adaptive")
    return trace
