"""Clipping: the part of a box in which an unsafe output is still possible, cut down by linear bounds.

Let A_r x + b_r <= C_r f(x) hold on the box for the rows r of an unsafe set {y : C_r y <= d_r for all r}. Where A_r x + b_r > d_r for some row the
set is impossible; what is left is the box intersected with half-spaces. Its bounding box is found one input at a time, from the least that the
other inputs contribute.

Reference: Zhou et al. 2025, Clip-and-Verify (linear constraint-driven domain clipping).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds import rounding
from verify.spec import Margins

_EXACT = torch.float64


def clip(A: Tensor, b: Tensor, goal: Margins, margin: float, box: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """For every unsafe set the smallest box around the points where its margin may be below `margin` >= 0; crossed where there are none.

    A: (boxes, rows, inputs), b: (boxes, rows): lower planes of the rows. box: lower and upper ends, (boxes, inputs). All float64.

    Returns: lower and upper ends, (boxes, sets, inputs) each. Property: sound. Numerics: outward rounded.
    """
    lower, upper = (side.unsqueeze(1) for side in box)
    limit = goal.d.to(_EXACT) + margin
    least = torch.where(A > 0, A * lower, A * upper)
    size = (A.abs() * torch.maximum(lower.abs(), upper.abs())).sum(-1) + b.abs() + goal.d.abs() + margin
    error = rounding.gamma(A.shape[-1] + 5, _EXACT) * size + rounding.underflow(A.shape[-1] + 5, _EXACT)
    # What a row's plane may still rise above its least value, and how far each input alone may move for that.
    slack = rounding.above(limit - b - least.sum(-1), error).unsqueeze(-1)
    reach = rounding.above(slack / A.abs())
    high = torch.where(A > 0, torch.minimum(upper, rounding.above(lower + reach)), upper)
    low = torch.where(A < 0, torch.maximum(lower, rounding.below(upper - reach)), lower)
    lows = [low[:, start:stop].amax(1) for start, stop in goal.ranges]
    return torch.stack(lows, 1), torch.stack([high[:, start:stop].amin(1) for start, stop in goal.ranges], 1)
