"""The stage that leaves out neurons whose activation is 0 on the whole region, before batches of sub-problems and programs are built."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bounds.inactive import drop_inactive
from bounds.shrink import size
from verify.stages import Query
from verify.verdict import Verdict, original_of


@dataclass(frozen=True)
class Reduce:
    """Cut rows and columns of inactive neurons out of the network (see `bounds.inactive.drop_inactive`).

    least: share of the parameters that has to go, or the query is handed on untouched. Programs leave such neurons out by themselves: they have
    the same binaries with and without. What gains are the bounds of sub-problems, which multiply with every row, and the encoding.

    Property: exact. Nothing is rounded, the smaller network has the same values on the region, and counterexamples are still replayed on the
    original model. Only for real arithmetic: a float32 execution may find an inactive neuron a little above 0.
    """

    least: float = 0.1
    name: str = "reduce"
    kind: str = "bounds"

    def skips(self, query: Query) -> str | None:
        """See `verify.stages.Selective`."""
        if query.options.semantics != "real":
            return "neurons are left out in real arithmetic only, not in float32-any-order"
        return None if query.intervals else "no engine has bounded the neurons"

    def __call__(self, query: Query) -> Verdict | Query:
        if self.skips(query) is not None:
            return query
        reduced = drop_inactive(query.network, query.intervals)
        before, after = size(query.network).parameters, size(reduced.network).parameters
        if before - after < self.least * before:
            return query
        network = replace(reduced.network, original=original_of(query.network))
        return replace(query, network=network, intervals=reduced.narrowed(query.intervals), implied={})
