"""The box of largest weighted log-volume under linear constraints: the convex step of the non-uniform search."""

from __future__ import annotations

import torch
from torch import Tensor

from bounds import rounding

_TINY = 1e-300
_BARRIER = 0.1
"""Weight of the first barrier, as a share of the total weight a row; it falls by `_FALL` with every Newton step that was long enough."""
_FALL = 0.2
_LARGEST = 10.0
"""The largest factor by which a step changes a multiplier."""


def largest_log_volume(c: Tensor, h: Tensor, weight: Tensor, low: Tensor, high: Tensor, rounds: int = 24) -> tuple[Tensor, Tensor]:
    """argmax over u of sum_k weight_k log u_k with sum_k c_rk u_k <= h_r and low <= u <= high; u (B, k) and the multipliers (B, R).

    c: (B, R, k) >= 0, h: (B, R) > 0, weight: (B, k) >= 0, 0 < low <= high. For multipliers l >= 0 the best u is weight / (l c), cut to its
    limits, so that the dual is a smooth convex function of R numbers: a barrier keeps them positive, Newton's method finds them.
    Where even `low` breaks a row, the result is `low` or close to it.

    Property: an estimate (24 rounds leave a relative error of about 1e-6 in the volume). float64.
    """
    total, rows = weight.sum(1, keepdim=True), h.shape[1]
    unit = total / rows  # with every row scaled to h = 1, multipliers add up to the total weight where no limit binds
    c, h = c / h.unsqueeze(-1), torch.ones_like(h)
    multipliers = unit.expand_as(h).clone()
    barrier, factor, before = _BARRIER * unit, torch.full_like(unit, _LARGEST), torch.zeros_like(multipliers)
    for _ in range(rounds):
        u, free = _best(c, multipliers, weight, low, high)
        gradient = h - rounding.matvec(c, u) - barrier / multipliers
        bend = torch.where(free, u * u / weight.clamp_min(_TINY), 0.0)
        curvature = torch.bmm(c * bend.unsqueeze(1), c.transpose(1, 2))
        curvature = curvature + torch.diag_embed(barrier / multipliers.square() + 1e-12 / unit)
        step = -torch.linalg.solve(curvature, gradient.unsqueeze(-1)).squeeze(-1)
        # No multiplier changes by more than a factor, which shrinks when a step turns back: limits that bind make the dual's slope jump.
        relative = step / multipliers
        turns = (relative * before).sum(1, keepdim=True) < 0
        factor, before = torch.where(turns, factor.sqrt(), (1.3 * factor).clamp(max=_LARGEST)), relative
        length = torch.where(step < 0, (1 - 1 / factor) / -relative, torch.where(step > 0, (factor - 1) / relative, 1.0))
        length = length.amin(1, keepdim=True).clamp(max=1.0)
        multipliers = (multipliers + length * step).clamp_min(1e-12 * unit)
        barrier = torch.where(length > 0.5, barrier * _FALL, barrier).clamp_min(1e-10 * unit)
    return _best(c, multipliers, weight, low, high)[0], multipliers


def _best(c: Tensor, multipliers: Tensor, weight: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The best u for given multipliers, and where no limit cuts it."""
    price = torch.bmm(multipliers.unsqueeze(1), c).squeeze(1)
    wanted = weight / price.clamp_min(_TINY)
    return torch.minimum(torch.maximum(wanted, low), high), (wanted > low) & (wanted < high)
