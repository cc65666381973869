"""Products, quotients and selections of computed tensors that are one curve of ours: planes of a curve are tighter than planes of its parts.

Exporters write constants such as sqrt 2 as rounded numbers. A curve stands in for what such a graph computes if the two are nowhere further
apart than its `stray`, which its planes include.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from bounds.network import Node
from bounds.onnx_graph import NodeReader
from bounds.ops.affine import AddBranches, Divide, Scale, Shift
from bounds.ops.functions import Erf, Power, Softplus, Softsign
from bounds.ops.gated import TANH_CUBE, TANH_RATE, Gelu, GeluTanh, Mish, Silu
from bounds.ops.piecewise import Abs
from bounds.ops.sign import Exceeds
from bounds.ops.smooth import Sigmoid, Tanh

_NEARLY = 1e-5
"""How far a constant may be from the curve's own, relatively."""
_CUT_OFF = 12.0
"""The smallest threshold beyond which softplus(u) may be taken for u: they differ by 6e-6 there."""
_WHOLE_POWERS = (2.0, 3.0)


@dataclass(frozen=True)
class Gate:
    """What a computed tensor multiplies `source` by: x gate(x) = times * curve(x), for the curve that `emit` makes."""

    source: int
    emit: Callable[[NodeReader], int]
    times: float


def product(node: NodeReader, first: int, second: int) -> int | None:
    """Two computed tensors multiplied, where that is a curve of one of them: x x, x^2 x, x sigmoid(x), Mish, GELU."""
    if first == second:
        return node.emit(Power(2.0), first)
    for one, other in ((first, second), (second, first)):
        held = node.builder.nodes[other]
        if isinstance(held.op, Power) and held.inputs == (one,) and held.op.exponent in _WHOLE_POWERS:
            return node.emit(Power(held.op.exponent + 1), one)
        if isinstance(held.op, Sigmoid) and held.inputs == (one,):
            return node.emit(Silu(), one)
        below = node.builder.nodes[held.inputs[0]] if isinstance(held.op, Tanh) else None
        if below is not None and isinstance(below.op, Softplus) and below.inputs == (one,):
            # a softplus that is cut off where x > 12: |x| |tanh(x) - tanh(softplus(x))| <= 4 |x| exp(-3 x) there
            return node.emit(Mish(1.2e-14 if below.op.stray else 0.0), one)
        gate = _gate(node, other)
        if gate is not None and gate.source == one:
            return _times(node, gate.emit(node), gate.times)
        if gate is not None and _doubled(node, one) and node.builder.nodes[one].inputs == (gate.source,):
            return _times(node, gate.emit(node), _doubled(node, one) * gate.times)
    return None


def quotient(node: NodeReader, first: int, second: int) -> int | None:
    """One computed tensor divided by another, where that is a curve: x / (1 + |x|)."""
    size = _plus_one(node, second)
    return node.emit(Softsign(), first) if size is not None and isinstance(size.op, Abs) and size.inputs == (first,) else None


def reciprocal(node: NodeReader, source: int) -> int:
    """1 / x; of a positive power the power with the opposite exponent, which is defined where both are."""
    held = node.builder.nodes[source]
    if isinstance(held.op, Power) and held.op.exponent > 0:
        return node.emit(Power(-held.op.exponent), *held.inputs)
    return node.emit(Power(-1.0), source)


def selection(node: NodeReader, condition: int, then: int, otherwise: int) -> int | None:
    """A softplus that exporters cut off: x where beta x > threshold, softplus(beta x) / beta elsewhere."""
    test, chosen = node.builder.nodes[condition], node.builder.nodes[otherwise]
    if not isinstance(test.op, Exceeds):
        return None
    (argument,) = test.inputs
    divided = chosen.op if isinstance(chosen.op, Divide) and chosen.op.divisor.numel() == 1 else None
    softplus = node.builder.nodes[chosen.inputs[0]] if divided is not None else chosen
    if not isinstance(softplus.op, Softplus) or softplus.inputs != (argument,):
        return None
    if divided is None and then != argument:
        return None
    if divided is not None and _scaled(node, argument) != (then, float(divided.divisor.double().reshape(()))):
        return None
    if not test.op.threshold >= _CUT_OFF:
        return None
    # softplus(u) - u = log(1 + exp(-u)) < exp(-u)
    made = node.emit(Softplus(math.exp(-test.op.threshold) * (1 + 1e-9)), argument)
    return made if divided is None else node.emit(divided, made)


def _gate(node: NodeReader, index: int) -> Gate | None:
    """Node `index` as a gate."""
    held = node.builder.nodes[index]
    if isinstance(held.op, Sigmoid):
        return _tanh_gate(node, held.inputs[0], 2 * TANH_RATE, 1.0) or _sigmoid_gate(node, held.inputs[0])
    if _doubled(node, index):
        gate = _gate(node, held.inputs[0])
        return None if gate is None else replace(gate, times=gate.times * _doubled(node, index))
    inner = _plus_one(node, index)
    if inner is None:
        return None
    if isinstance(inner.op, Erf):
        return _erf_gate(node, inner.inputs[0])
    return _tanh_gate(node, inner.inputs[0], TANH_RATE, 2.0) if isinstance(inner.op, Tanh) else None


def _sigmoid_gate(node: NodeReader, argument: int) -> Gate | None:
    """x sigmoid(a x) = SiLU(a x) / a."""
    scaled, held = _scaled(node, argument), node.builder.nodes[argument]
    if scaled is None or scaled[1] == 0 or not isinstance(held.op, Scale):
        return None
    factor = held.op.factor.reshape(())
    return Gate(scaled[0], lambda reader: reader.emit(Divide(factor), reader.emit(Silu(), argument)), 1.0)


def _erf_gate(node: NodeReader, argument: int) -> Gate | None:
    """x (1 + erf(q x / sqrt 2)) = 2 GELU(x) for q = 1; else |x| |Phi(q x) - Phi(x)| <= |q - 1| max x^2 phi(x), up to 1 / q^2."""
    scaled = _scaled(node, argument)
    if scaled is None:
        return None
    source, off = scaled[0], _off(scaled[1], math.sqrt(0.5))
    return None if off > _NEARLY else Gate(source, lambda reader: reader.emit(Gelu(0.3 * off), source), 2.0)


def _tanh_gate(node: NodeReader, argument: int, rate: float, times: float) -> Gate | None:
    """x (1 + tanh(k (x + c x^3))) is twice GELU's approximation.

    Where k and c are relatively off by d in all, so is u = 2 k (x + c x^3), and |x| |sigmoid(u') - sigmoid(u)| <= d |x| |u| exp(-|u|) up to
    1 + 3 d, where |x| <= |u| / 1.59 and u^2 exp(-|u|) <= 4 exp(-2).
    """
    scaled = _scaled(node, argument)
    if scaled is None or not isinstance(node.builder.nodes[scaled[0]].op, AddBranches):
        return None
    terms = node.builder.nodes[scaled[0]].inputs
    for x, cubic in (terms, terms[::-1]) if len(terms) == 2 else ():
        cube = _scaled(node, cubic)
        power = None if cube is None else node.builder.nodes[cube[0]]
        if cube is None or power is None or not isinstance(power.op, Power) or power.op.exponent != 3 or power.inputs != (x,):
            continue
        off = _off(scaled[1], rate) + _off(cube[1], TANH_CUBE)
        if off <= _NEARLY:
            return Gate(x, lambda reader, x=x, off=off: reader.emit(GeluTanh(0.4 * off), x), times)  # type: ignore[misc]
    return None


def _times(node: NodeReader, source: int, factor: float) -> int:
    return source if factor == 1.0 else node.emit(Scale(torch.tensor(factor)), source)


def _doubled(node: NodeReader, index: int) -> float:
    """The number that node `index` multiplies by, if it is 2 or 1/2, whose products are exact; else 0."""
    op = node.builder.nodes[index].op
    value = float(op.factor) if isinstance(op, Scale) and op.factor.numel() == 1 else 0.0
    return value if value in (0.5, 2.0) else 0.0


def _off(value: float, wanted: float) -> float:
    """Relative deviation, roundings of the comparison included."""
    return abs(value / wanted - 1) + 1e-14


def _scaled(node: NodeReader, index: int) -> tuple[int, float] | None:
    """The node that node `index` multiplies by a number, and that number up to a rounding; for a quotient its reciprocal."""
    held = node.builder.nodes[index]
    if isinstance(held.op, Scale) and held.op.factor.numel() == 1:
        return held.inputs[0], float(held.op.factor.double().reshape(()))
    if isinstance(held.op, Divide) and held.op.divisor.numel() == 1:
        return held.inputs[0], 1 / float(held.op.divisor.double().reshape(()))
    return None


def _plus_one(node: NodeReader, index: int) -> Node | None:
    """The node that node `index` adds 1 to."""
    held = node.builder.nodes[index]
    if not isinstance(held.op, Shift) or held.op.factor is not None or not bool((held.op.offset == 1).all()):
        return None
    return node.builder.nodes[held.inputs[0]] if node.builder.shape(held.inputs[0]) == held.shape else None
