"""Fast-Lin, CROWN and interval propagation as the textbook writes them: dense float64 matrices, one region, fully connected layers.

Written from thesis section 3.1: planes (3.3) to (3.5) and Table 3.1, the linear bounds (3.7) and Algorithm 3.1, interval propagation (3.8).
No rounding is accounted for, nothing is shared with the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Bounds = tuple[Array, Array]
Planes = tuple[Array, Array, Array, Array]
"""Lower slope, lower intercept, upper slope, upper intercept."""
LEAN = 0.7
Relax = Callable[[Array, Array], Planes]


@dataclass(frozen=True)
class Layers:
    """z_1 = W_1 x + b_1, z_{k+1} = W_{k+1} act(z_k) + b_{k+1} on {x : ||(x - center) / eps||_p <= 1}."""

    weights: list[Array]
    biases: list[Array]
    center: Array
    eps: Array
    p: float

    def concrete(self, A: Array, constant: Array) -> Bounds:
        """The range of A x + constant, by the dual norm."""
        dual = {1.0: math.inf, 2.0: 2, math.inf: 1}[self.p]
        radius = np.array([np.linalg.norm(row, dual) for row in A * self.eps])
        return A @ self.center + constant - radius, A @ self.center + constant + radius


def interval_propagation(net: Layers, act: Callable[[Array], Array]) -> list[Bounds]:
    """(3.8), the first layer by the dual norm. Bounds of every z_k."""
    bounds = [net.concrete(net.weights[0], net.biases[0])]
    for W, b in zip(net.weights[1:], net.biases[1:], strict=True):
        low, high = (act(side) for side in bounds[-1])
        positive, negative = np.maximum(W, 0), np.minimum(W, 0)
        bounds.append((positive @ low + negative @ high + b, negative @ low + positive @ high + b))
    return bounds


def linear_bounds(net: Layers, relax: Relax, hidden: list[Bounds] | None = None) -> list[Bounds]:
    """Bounds of every z_k by backward substitution: Algorithm 3.1 when `relax` gives parallel planes, CROWN otherwise.

    hidden: bounds of all z_k but the last, instead of those found on the way (CROWN-IBP); then only the last is returned.
    """
    bounds: list[Bounds] = [] if hidden is None else list(hidden)
    for k in range(len(bounds), len(net.weights)):
        sides = []
        for sign in (1.0, -1.0):
            A, constant = sign * net.weights[k], sign * net.biases[k]
            for W, b, (low, high) in zip(net.weights[:k][::-1], net.biases[:k][::-1], bounds[:k][::-1], strict=True):
                lower_slope, lower_intercept, upper_slope, upper_intercept = relax(low, high)
                positive, negative = np.maximum(A, 0), np.minimum(A, 0)
                constant = constant + positive @ lower_intercept + negative @ upper_intercept
                A = positive * lower_slope + negative * upper_slope
                A, constant = A @ W, constant + A @ b
            sides.append(sign * net.concrete(A, constant)[0])
        bounds.append((sides[0], sides[1]))
    return bounds if hidden is None else bounds[-1:]


def relu_planes(low: Array, high: Array, *, parallel: bool, leak: float = 0.0) -> Planes:
    """(3.4); adaptive: the lower plane is the piece that holds the longer part of the interval. leak: slope of the negative piece."""
    low, high = np.minimum(low, high), np.maximum(low, high)
    unstable = (low < 0) & (high > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        chord = np.where(unstable, (high - leak * low) / (high - low), np.where(low >= 0, 1.0, leak))
    top = np.where(unstable, (1 - chord) * high, 0.0)
    steep = np.where(unstable, np.where(high > -low, 1.0, leak), chord)
    return chord if parallel else steep, np.zeros_like(low), chord, top


@dataclass(frozen=True)
class Sigmoidal:
    """An S-shaped function, its derivative, and the tangent points t1 < 0 < t2 of slope d of Table 3.1."""

    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    tangents: Callable[[Array], tuple[Array, Array]]

    def parallel(self, low: Array, high: Array) -> Planes:
        """(3.5), the tangent points kept inside the interval (outside it the thesis's planes are valid, but not the closest)."""
        f = self.value
        d = (f(high) - f(low)) / (high - low)
        t1, t2 = self.tangents(d)
        t1, t2 = np.clip(t1, low, np.maximum(low, np.minimum(high, 0))), np.clip(t2, np.minimum(high, np.maximum(low, 0)), high)
        chord = (high * f(low) - low * f(high)) / (high - low)
        return d, np.where(low < 0, f(t1) - t1 * d, chord), d, np.where(high > 0, f(t2) - t2 * d, chord)

    def adaptive(self, low: Array, high: Array) -> Planes:
        """Chord or tangent at the midpoint where the function bends one way, else CROWN's tangent from the far end.

        Not CROWN's: a tangent from the far end that touches before `LEAN` of the way gives way to the tangent there.
        """
        upper = np.array([self._upper(a, b) for a, b in zip(low, high, strict=True)])
        mirrored = np.array([self._upper(-b, -a, mirror=True) for a, b in zip(low, high, strict=True)])
        return mirrored[:, 0], -mirrored[:, 1], upper[:, 0], upper[:, 1]

    def _upper(self, low: float, high: float, mirror: bool = False) -> tuple[float, float]:
        def f(x: float) -> float:
            return float(-self.value(np.array(-x)) if mirror else self.value(np.array(x)))

        def slope(x: float) -> float:
            return float(self.derivative(np.array(x)))

        touch = (low + high) / 2
        chord = (f(high) - f(low)) / (high - low)
        if low < 0 and high > 0:
            left, right = 0.0, high
            if slope(high) * (high - low) >= f(high) - f(low):  # it would touch beyond the interval
                return chord, f(high) - chord * high
            for _ in range(100):
                touch = (left + right) / 2
                left, right = (touch, right) if slope(touch) * (touch - low) >= f(touch) - f(low) else (left, touch)
            touch = max(touch, low + LEAN * (high - low))
        elif high <= 0:
            return chord, f(high) - chord * high
        return slope(touch), f(touch) - slope(touch) * touch


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _sigmoid_tangents(d: Array) -> tuple[Array, Array]:
    root = np.sqrt(1 - 4 * d)
    return -np.log((-(2 * d - 1) + root) / (2 * d)), -np.log((-(2 * d - 1) - root) / (2 * d))


def _tanh_tangents(d: Array) -> tuple[Array, Array]:
    root = 2 * np.sqrt(1 - d)
    return np.log((-(d - 2) - root) / d) / 2, np.log((-(d - 2) + root) / d) / 2


SIGMOID = Sigmoidal(_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x), _sigmoid_tangents)
TANH = Sigmoidal(np.tanh, lambda x: 1 - np.tanh(x) ** 2, _tanh_tangents)
