"""The forward sweep of an engine: a trace that becomes smaller where nothing is left to bound."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bounds.inactive import Cut, plan
from bounds.interval import Interval
from bounds.ops.base import Activation, Slopes, product
from bounds.trace import Trace

_LEAST = 0.25
"""Share of a layer that must leave."""
_WORTH_A_CUT = 2**17
"""Products that a smaller layer must save every walk of one row a region: making it takes as long as fifty operations on small tensors."""

_MOST_COPIED = 2**24
"""Numbers that the smaller maps may hold at the most: they take memory beside the whole ones."""


class Sweep:
    """A trace that is built node by node, and leaves out elements that are 0 on all of its regions as soon as that is known.

    known: of nodes of the whole network.
    """

    def __init__(self, trace: Trace, known: Mapping[int, Interval]) -> None:
        self.trace, self.known, self.network = trace, known, trace.network
        self._kept: dict[int, Tensor] = {}
        self._whole: dict[int, Interval] = {}

    def visit(self, index: int, slopes: Slopes) -> Interval:
        """Visit the next node with what is known of it; its interval, of the elements that are left."""
        trace = self.trace
        interval = trace.propagate(index)
        if index in self.known:
            interval = interval.intersect(self._part(index, self.known[index]))
        if isinstance(trace.network.nodes[index].op, Activation) and trace.semantics == "real":
            interval = self._leave_out(index, interval)
        trace.visit(index, interval, slopes)
        return interval

    def _leave_out(self, index: int, interval: Interval) -> Interval:
        zero = ((interval.lower == 0) & (interval.upper == 0)).all(0)
        cut = plan(self.trace.network, index, zero)
        if cut is None or not self._pays(cut):
            return interval
        for k in cut.shapes:
            self._kept[k] = cut.left
            if k in self.trace.intervals:
                self._whole[k] = self.trace.interval(k)
        self.trace.leave_out(cut)
        return self._part(index, interval)

    def _pays(self, cut: Cut) -> bool:
        left, products = cut.left.numel(), cut.products(self.trace.network)
        saved = self.trace.batch * (cut.elements - left) * products
        return left <= (1 - _LEAST) * cut.elements and saved >= _WORTH_A_CUT and left * products <= _MOST_COPIED

    def intervals(self) -> tuple[Interval, ...]:
        """The intervals of all nodes of the whole network."""
        return tuple(self._all(index) for index in range(len(self.network.nodes)))

    def _all(self, index: int) -> Interval:
        interval = self.trace.interval(index)
        if index in self._whole or index not in self._kept:
            return self._whole.get(index, interval)
        shape = self.network.nodes[index].shape
        nothing = interval.lower.new_zeros(self.trace.batch, product(shape))
        lower, upper = (
            nothing.index_copy(1, self._kept[index], end.flatten(1)).unflatten(1, shape) for end in (interval.lower, interval.upper)
        )
        return Interval(lower, upper)

    def _part(self, index: int, interval: Interval) -> Interval:
        if index not in self._kept:
            return interval
        return interval.select(self._kept[index], self.trace.network.nodes[index].shape)
