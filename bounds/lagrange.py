"""Linear functions over norm balls with limits, by Lagrange duality."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-150
"""Smallest multiplier: its products with itself do not underflow."""
_FAR = 1e6
"""Limits beyond this many radii bind nobody: the search for a multiplier need not tell them apart."""
_ROUNDS = 20
"""Most rounds of that search."""


def largest_gain(q: Tensor, reach: Tensor | None, p: float) -> tuple[Tensor, Tensor]:
    """max over t of <q, t> with sum t^p <= 1 and 0 <= t <= reach, from above. q >= 0, reach: (..., n), None without limits -> (...).

    For every multiplier mu >= 0 the dual mu + sum_i max_{0 <= t <= reach_i} (q_i t - mu t^p) is an upper bound, so the multiplier may be found
    in any arithmetic. p: 1 or 2. Returns the bound and the sum of the absolute values of its terms, for the error allowance.

    Property: sound, and exact up to rounding. Numerics: float64, the caller adds the allowance.
    """
    if p == 1.0:
        mu = q.amax(-1, keepdim=True) if reach is None else _knapsack_multiplier(q, reach)
        top = mu.squeeze(-1)
        if reach is None:
            return top, top
        above = q > mu
        return top + torch.where(above, (q - mu) * reach, 0.0).sum(-1), top + torch.where(above, (q + mu) * reach, 0.0).sum(-1)
    mu = _quadratic_multiplier(q, reach)
    top, peak = mu.squeeze(-1), q * (q / (4 * mu))
    if reach is None:
        total = top + peak.sum(-1)
        return total, total
    limited = q > 2 * mu * reach
    edge = torch.where(limited, reach, 0.0)
    total = top + torch.where(limited, (q - mu * edge) * edge, peak).sum(-1)
    # The two terms of a limited feature, q t and mu t^2, exceed their difference by twice the second.
    return total, total + 2 * top * edge.square().sum(-1)


def _knapsack_multiplier(q: Tensor, reach: Tensor) -> Tensor:
    """The price of the budget in max <q, t>, sum t <= 1, 0 <= t <= reach: the gain of the feature at which the budget runs out."""
    ordered, order = q.sort(dim=-1, descending=True)
    spent = reach.gather(-1, order).cumsum(-1)
    exhausted = spent >= 1
    first = exhausted.to(torch.uint8).argmax(-1, keepdim=True)
    mu = ordered.gather(-1, first)
    mu = torch.where(exhausted.any(-1, keepdim=True), mu, 0.0)
    unlimited = torch.where(torch.isinf(reach), q, 0.0).amax(-1, keepdim=True)
    return torch.maximum(mu, unlimited)


def _quadratic_multiplier(q: Tensor, reach: Tensor | None) -> Tensor:
    """The multiplier mu of max <q, t>, sum t^2 <= 1, 0 <= t <= reach, where t = min(q / (2 mu), reach). (..., n) -> (..., 1).

    Without limits 4 mu^2 = sum q^2. Features beyond their limits are put there and the rest shares what is left of the budget; then mu only
    falls, and is exact once no more features pass their limits. It is found in float32, up to a few rounds: any positive number is valid.
    Reference: K. Kiwiel, "Variable fixing algorithms for the continuous quadratic knapsack problem", 2008.
    """
    scale = q.amax(-1, keepdim=True).clamp_min(_TINY)
    ratio = (q / scale).to(torch.float32)
    squares = ratio.square()
    rest = squares.sum(-1, keepdim=True)
    mu = rest.sqrt() / 2
    if reach is not None:
        limit = reach.to(torch.float32).clamp_max(_FAR)
        limits = limit.square()
        for _ in range(_ROUNDS):
            free = (ratio <= 2 * mu * limit).to(torch.float32)
            left = (free * squares).sum(-1, keepdim=True)
            room = 1 - ((1 - free) * limits).sum(-1, keepdim=True)
            better = (left / room.clamp_min(1e-6)).sqrt() / 2
            if bool((better >= mu * (1 - 1e-6)).all()):
                break
            mu = torch.minimum(mu, better)
    return mu.to(torch.float64).clamp_min(_TINY) * scale
