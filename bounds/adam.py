"""Adam's gradient ascent. torch.optim has it too, but loads torch._dynamo with it: a second and 90 MB at every start of the program."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MEAN, _SQUARE, _TINY = 0.9, 0.999, 1e-8


class Adam:
    """Ascent on `variables`, each with a rate of its own, a number or a tensor that broadcasts against it.

    Reference: Kingma and Ba 2015, Adam: a method for stochastic optimization, Algorithm 1, with the sign of ascent.
    """

    def __init__(self, variables: Sequence[Tensor], rates: Sequence[float | Tensor]) -> None:
        self.variables, self.rates = list(variables), list(rates)
        self._moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in self.variables]
        self._steps = 0

    @torch.no_grad()
    def rise(self, gradients: Sequence[Tensor | None], decay: float = 1.0) -> None:
        """One step uphill; the rates are multiplied by `decay` afterwards. A variable without a gradient stays."""
        self._steps += 1
        first, second = 1 - _MEAN**self._steps, math.sqrt(1 - _SQUARE**self._steps)
        for variable, gradient, (mean, square), rate in zip(self.variables, gradients, self._moments, self.rates, strict=True):
            if gradient is not None:
                mean.lerp_(gradient, 1 - _MEAN)
                square.mul_(_SQUARE).addcmul_(gradient, gradient, value=1 - _SQUARE)
                size = square.sqrt().div_(second).add_(_TINY)
                if isinstance(rate, Tensor):
                    variable.addcmul_(size.reciprocal_().mul_(mean), rate, value=1 / first)
                else:
                    variable.addcdiv_(mean, size, value=rate / first)
        self.rates = [rate * decay for rate in self.rates]
