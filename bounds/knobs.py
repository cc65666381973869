"""The variables of the non-uniform search: one knob for every feature, or for every group of features that move together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Knobs:
    """eps_i = clamp(z[index_i], least_i, most_i) for the features that move, eps_i = least_i for the others (index -1).

    index: (n,); weight: (n,), zero for features that do not move; least, most: (B, n), most may be infinite; shape: of one input.
    """

    index: Tensor
    weight: Tensor
    least: Tensor
    most: Tensor
    shape: tuple[int, ...]
    count: int

    @staticmethod
    def build(groups: Tensor | None, weight: Tensor, least: Tensor, most: Tensor, shape: tuple[int, ...]) -> Knobs:
        """One knob for each group (n,) among the features of positive weight (n,), in any order; None: each feature its own."""
        moves = weight > 0
        index = torch.full_like(moves, -1, dtype=torch.long)
        chosen = torch.arange(int(moves.sum())) if groups is None else torch.unique(groups[moves], return_inverse=True)[1]
        index[moves] = chosen
        return Knobs(index, weight, least, most, shape, int(chosen.max()) + 1)

    def select(self, images: Tensor | slice) -> Knobs:
        """The knobs of some images."""
        return replace(self, least=self.least[images], most=self.most[images])

    def repeat(self, times: int) -> Knobs:
        """Every image `times` times in a row."""
        return replace(self, least=self.least.repeat_interleave(times, 0), most=self.most.repeat_interleave(times, 0))

    def limited(self, most: Tensor) -> Knobs:
        """With this limit, (B,), where there is none."""
        return replace(self, most=torch.where(torch.isfinite(self.most), self.most, torch.maximum(most.unsqueeze(1), self.least)))

    def expand(self, z: Tensor) -> Tensor:
        """eps (B, *shape) of knobs z (B, k) > 0; differentiable."""
        spread = torch.clamp(z[:, self.index.clamp_min(0)], self.least, self.most)
        return torch.where(self.index >= 0, spread, self.least).unflatten(1, self.shape)

    def _gather(self, values: Tensor, kind: str) -> Tensor:
        """Sums, or largest or smallest values, of (B, n) over the features of each knob."""
        moves = self.index >= 0
        place = self.index[moves].expand(len(values), -1)
        start = values.new_zeros(len(values), self.count)
        return start.scatter_reduce(1, place, values[:, moves], kind, include_self=False)

    def low(self) -> Tensor:
        """The smallest limit from below in each knob, (B, k)."""
        return self._gather(self.least, "amin")

    def high(self) -> Tensor:
        """The largest limit from above in each knob, (B, k)."""
        return self._gather(self.most, "amax")

    def pull(self, z: Tensor) -> Tensor:
        """Weight of the features whose eps follows each knob at z, (B, k)."""
        at = z[:, self.index.clamp_min(0)]
        return self._gather(torch.where((at >= self.least) & (at <= self.most), self.weight, 0.0), "sum")

    def log_volume(self, z: Tensor) -> Tensor:
        """The mean of log eps by weight over the features that can move, (B,); differentiable."""
        return self._mean_log(self.expand(z).flatten(1))

    def geometric_mean(self, eps: Tensor) -> Tensor:
        """exp of that mean for eps (B, n); 0 where an eps is 0."""
        return self._mean_log(eps.flatten(1)).exp()

    def _mean_log(self, eps: Tensor) -> Tensor:
        """-inf where the eps of a feature that can move is zero."""
        weight = torch.where(self.most > 0, self.weight, 0.0)
        counted = weight > 0
        total = (weight * torch.where(counted, eps, 1.0).clamp_min(_TINY).log()).sum(1) / weight.sum(1)
        return torch.where((counted & (eps <= 0)).any(1), -torch.inf, total)

    def along(self, direction: Tensor, start: Tensor) -> Tensor:
        """Knobs in the direction of eps (n,), scaled so that their mean log is that of `start` (B, k)."""
        knobs = self._gather(direction.expand(len(start), -1), "amax")
        knobs = knobs.clamp_min(1e-3 * knobs.amax(1, keepdim=True).clamp_min(_TINY))
        return knobs * (start.log().mean(1) - knobs.log().mean(1)).exp().unsqueeze(1)
