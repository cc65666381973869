"""Intervals of hidden nodes implied by a bound on the output: what a neuron can be where an unsafe output is reached.

Let x be a point of the region with c f(x) <= d. For any mu > 0 and any slopes of the relaxation, a backward walk gives P <= c f(x) + mu s z_j
for a neuron z_j and a sign s, hence

    s z_j >= (P - d) / mu.

mu and the slopes are found by gradient ascent for every neuron and sign, one row of the walk each. As long as no x is known to exist, these
intervals hold of nothing perhaps; where one of them is empty, or where c f > d follows from them, there is none.

Reference: Kotha et al. 2023, Provably bounding neural network preimages (INVPROP).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import rounding
from bounds.alpha import COPIES, Alphas, Ascent, Betas, Measure, RowProblem, neurons
from bounds.backward import objective_start
from bounds.crown import unstable
from bounds.interval import Interval
from bounds.rowwise import Split
from bounds.trace import Trace
from bounds.view import View

_EXACT = torch.float64
_GRID = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
"""Where log mu starts, in units of the coefficient that arrives at the node: the best of these for every row."""
_FARTHEST = 12.0
_MOST_ROWS = 512


@dataclass(frozen=True, eq=False)
class Assumed:
    """c f(x) <= d. c: (outputs,), exact in the trace's type; d: an upper bound of what is assumed, float64."""

    c: Tensor
    d: float


class ImpliedProblem(RowProblem):
    """Rows c f + mu s z_j for elements j of one node; its `betas` are log(mu / unit), any number.

    elements: (R,) positions in the flattened node; sign: (R,).
    """

    def __init__(self, trace: Trace, index: int, assumed: Assumed, elements: Tensor, sign: Tensor) -> None:
        count = len(elements)
        C = assumed.c.to(trace.dtype).expand(1, count, -1).unflatten(2, trace.network.output_shape)
        shape = (1, count, 1)
        nothing = torch.zeros(shape, dtype=_EXACT, device=elements.device)
        split = Split(elements.view(shape), -sign.view(shape), nothing, nothing.to(trace.dtype))
        last = len(trace.network.nodes) - 1
        super().__init__(trace, last, objective_start(View(trace, None), C), splits={index: split})
        self.index, self.d = index, assumed.d
        seen = self.coefficients(self.initial(), {index: split.beta})
        arriving = [float(seen[user].abs().amax()) for user in trace.network.successors[index] if user in seen and seen[user].numel()]
        self.unit = max(arriving, default=0.0) or 1.0

    def estimate(self, alphas: Alphas, betas: Betas, measure: Measure | None = None) -> Tensor:
        """The bounds of s z_j without regard to rounding, (1, R), differentiable."""
        mu = self._mu(betas[self.index])
        value = super().estimate(alphas, {self.index: mu}, measure)
        return (value - self.d) / mu[..., 0].to(value)

    def implied(self, alphas: Alphas, betas: Betas) -> Tensor:
        """Lower bounds of s z_j wherever the assumption holds, (R,) float64. Numerics: outward rounded."""
        mu = self._mu(betas[self.index])
        proven = self.prove(alphas, {self.index: mu}).bound[0]
        quotient = rounding.below(proven - self.d) / mu[0, :, 0].to(_EXACT)
        return rounding.below(quotient, rounding.gamma(4, _EXACT) * quotient.abs() + rounding.underflow(2, _EXACT))

    def grid(self) -> Tensor:
        """The best of a few multipliers for CROWN's slopes, (1, R, 1)."""
        alphas, rows = self.initial(), self.start.fee.shape[1]
        choices = [torch.full((1, rows, 1), x, dtype=self.trace.dtype, device=self.start.fee.device) for x in _GRID]
        with torch.no_grad():
            values = torch.stack([self.estimate(alphas, {self.index: choice}) for choice in choices])
        return torch.stack(choices).gather(0, values.argmax(0)[None, ..., None])[0]

    def _mu(self, beta: Tensor) -> Tensor:
        return beta.exp() * self.unit

    def _units(self, alphas: Alphas, betas: Betas) -> Betas:
        return {index: torch.ones_like(beta) for index, beta in betas.items()}

    def _admit(self, betas: Tensor) -> None:
        betas.clamp_(-_FARTHEST, _FARTHEST)


def implied(
    trace: Trace, index: int, assumed: Assumed, ascent: Ascent, memory: int, start: Tensor | None = None
) -> tuple[Interval, Tensor]:
    """What node `index` can be on the trace's region where the assumption holds, and the log mu found, (2, n); trace.batch must be 1.

    start: log mu of an earlier call, NaN where there is none. memory: elements of coefficient tensors at a time. Only elements that an
    activation relaxes are looked at. An empty interval (lower > upper) proves that the assumption holds nowhere.

    Property: sound. Numerics: outward rounded, returned in float64. Raises: TimeLimitError once the trace's deadline has passed.
    """
    interval = trace.interval(index)
    chosen = unstable(trace.network, index, interval).flatten().nonzero().flatten()
    lower, upper = (side.flatten().to(_EXACT).clone() for side in (interval.lower, interval.upper))
    found = torch.full((2, len(lower)), math.nan, dtype=trace.dtype, device=lower.device)
    elements, side = torch.cat([chosen, chosen]), torch.arange(2 * len(chosen), device=chosen.device) // max(1, len(chosen))
    height = max(1, min(_MOST_ROWS, 8 * memory // (COPIES * neurons(trace.network, len(trace.network.nodes) - 1))))
    for where, which in zip(elements.split(height), side.split(height), strict=True):
        trace.check_time()
        if not len(where):
            continue
        problem = ImpliedProblem(trace, index, assumed, where, (1 - 2 * which).to(trace.dtype))
        begin = problem.grid() if start is None else (start[which, where] - math.log(problem.unit)).view(1, -1, 1)
        begin = torch.where(begin.isnan(), 0.0, begin).clamp(-_FARTHEST, _FARTHEST)
        alphas, betas, _ = problem.maximise(problem.initial(), {index: begin}, ascent)
        bound = problem.implied(alphas, betas)
        found[which, where] = betas[index][0, :, 0] + math.log(problem.unit)
        low, high = where[which == 0], where[which == 1]
        lower[low] = torch.maximum(lower[low], bound[which == 0])
        upper[high] = torch.minimum(upper[high], -bound[which == 1])
    return Interval(lower.view(interval.shape), upper.view(interval.shape)), found
