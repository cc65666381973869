"""A region that a first look has divided: the boxes that it left open, for a longer one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from bounds.network import Network


@dataclass(frozen=True, eq=False)
class OpenBox:
    """A box that is open. lower, upper: (inputs,) float64. axis: the input to bisect next. intervals: (2, neurons), lower and upper ends of all
    pre-activations one after the other, proven on the box; None where there is no memory for them."""

    lower: Tensor
    upper: Tensor
    axis: int
    intervals: Tensor | None


@dataclass(frozen=True, eq=False)
class Divided:
    """A region in parts: the open ones with the lower bound of each, whose intervals are those of `network`; every margin is at least `proven`
    elsewhere."""

    network: Network
    open: tuple[tuple[float, OpenBox], ...]
    proven: float

    def parts(self, network: Network) -> list[tuple[float, OpenBox]]:
        """The open parts for a network with the same values: what is known of neurons holds for the first one alone."""
        return [(bound, part if network is self.network else replace(part, intervals=None)) for bound, part in self.open]
