"""The stage that writes maxima as ReLUs and products as squares, which can be split and have slopes to choose, before anything is divided."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bounds.errors import NumericsError
from bounds.ops.bilinear import Bilinear
from bounds.ops.piecewise import MaxReduce
from bounds.unfold import unfold
from verify.stages import Bound, Query, crown
from verify.verdict import Verdict, original_of


@dataclass(frozen=True)
class Unfold:
    """Write maxima as ReLUs and products as squares (see `bounds.unfold.unfold`).

    Property: exact. Nothing is rounded, the unfolded network has the same values on the region, and counterexamples are still replayed on the
    original model. Only for real arithmetic: in a float32 execution a - b + b is not a.

    share: of the time that is left, for bounds of the new neurons; where that is not enough the network stays as it is.
    """

    share: float = 0.2
    name: str = "unfold"
    kind: str = "bounds"

    def skips(self, query: Query) -> str | None:
        """See `verify.stages.Selective`."""
        if query.options.semantics != "real":
            return "maxima and products are rewritten in real arithmetic only, not in float32-any-order"
        if not any(isinstance(node.op, MaxReduce | Bilinear) for node in query.network.nodes):
            return "there are no maxima and no products"
        return None if query.intervals else "no engine has bounded the neurons"

    def __call__(self, query: Query) -> Verdict | Query:
        if self.skips(query) is not None:
            return query
        unfolded = unfold(query.network, query.intervals)
        if len(unfolded.network.nodes) == len(query.network.nodes):
            return query
        network = replace(unfolded.network, original=original_of(query.network))
        limits = replace(query.options, deadline=query.options.until(self.share))
        moved = replace(query, network=network, intervals=unfolded.moved(query.intervals), implied={}, options=limits)
        try:
            found = Bound(self.name, crown)(moved)
        except NumericsError:
            return query  # a square may overflow where the product does not
        if not isinstance(found, Query):
            return found
        # A limit: nothing is known of the new nodes.
        return replace(found, options=query.options) if len(found.intervals) == len(network.nodes) else query
