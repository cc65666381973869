"""Linear functions over norm balls with limits, by Lagrange duality."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-150
"""Smallest multiplier: its products with itself do not underflow."""
_ROUNDS = 8
"""Most rounds of the search for a multiplier."""

Limits = tuple[Tensor, Tensor]
"""How far a feature may move down and up, both >= 0 and finite; broadcastable to the coefficients."""


def largest_gain(a: Tensor, limits: Limits | None, p: float) -> tuple[Tensor, Tensor]:
    """max over s of <a, s> with sum |s|^p <= 1 and -up <= s <= down, from above. a: (..., n) float64, limits: (down, up) -> (...).

    For every multiplier mu >= 0 the dual mu + sum_i max_s (a_i s - mu |s|^p) is an upper bound, so the multiplier may be found in any
    arithmetic. p: 1 or 2. Returns the bound and the sum of the absolute values of its terms, for the error allowance.

    Property: sound, and exact up to rounding. Numerics: float64, the caller adds the allowance.
    """
    if p == 1.0:
        return _knapsack(a, limits)
    mu = _multiplier(a, limits)
    s = a * (0.5 / mu)
    if limits is not None:
        s = torch.clamp(s, -limits[1], limits[0])
    # Every term is at its maximum up to the rounding of s, which changes it only in second order.
    first, second, top = (a * s).sum(-1), s.square().sum(-1), mu.squeeze(-1)
    return top + (first - top * second), top + (first + top * second)


def _knapsack(a: Tensor, limits: Limits | None) -> tuple[Tensor, Tensor]:
    """`largest_gain` for p = 1: the price of the budget is the gain of the feature at which the budget runs out."""
    q = a.abs()
    if limits is None:
        top = q.amax(-1)
        return top, top
    reach = torch.where(a > 0, *limits)
    ordered, order = q.sort(dim=-1, descending=True)
    exhausted = reach.gather(-1, order).cumsum(-1) >= 1
    first = exhausted.to(torch.uint8).argmax(-1, keepdim=True)
    mu = torch.where(exhausted.any(-1, keepdim=True), ordered.gather(-1, first), 0.0)
    above, top = q > mu, mu.squeeze(-1)
    return top + torch.where(above, (q - mu) * reach, 0.0).sum(-1), top + torch.where(above, (q + mu) * reach, 0.0).sum(-1)


@torch.no_grad()
def _multiplier(a: Tensor, limits: Limits | None) -> Tensor:
    """The multiplier mu of max <a, s>, sum s^2 <= 1, -up <= s <= down, where s = a / (2 mu) cut to its limits. (..., n) -> (..., 1).

    Without limits 4 mu^2 = sum a^2. Features beyond their limits are put there and the rest shares what is left of the budget; then mu only
    falls, and is exact once no more features pass their limits. It is found in float32, up to a few rounds: any positive number is valid.
    Reference: K. Kiwiel, "Variable fixing algorithms for the continuous quadratic knapsack problem", 2008.
    """
    scale = torch.maximum(a.amax(-1, keepdim=True), -a.amin(-1, keepdim=True)).clamp_min(_TINY)
    ratio = (a * (1 / scale)).to(torch.float32)
    mu = ratio.square().sum(-1, keepdim=True).sqrt() / 2
    if limits is not None:
        down, up = (side.to(torch.float32) for side in limits)
        for _ in range(_ROUNDS):
            wanted = ratio * (0.5 / mu.clamp_min(1e-30))
            s = torch.clamp(wanted, -up, down)
            fixed = (s * (wanted - s).sign()).square().sum(-1, keepdim=True)
            free = (s.square().sum(-1, keepdim=True) - fixed).clamp_min(0)
            # The free features' share of the budget grows from `free` to 1 - `fixed`.
            better = mu * (free / (1 - fixed).clamp_min(1e-6)).sqrt()
            if bool((better >= mu * (1 - 1e-6)).all()):
                break
            mu = torch.minimum(mu, better)
    return mu.to(torch.float64).clamp_min(_TINY) * scale
