"""How each ONNX operator that is a curve, a product of computed tensors or made of such becomes operators of ours; the table is at the end.

What is decomposed stays exact as a function of real numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from bounds.onnx_graph import Handler, NodeReader
from bounds.ops.affine import ReduceMean, Scale, Shift, SubBranches
from bounds.ops.base import Op
from bounds.ops.bilinear import MatrixProduct, Multiply
from bounds.ops.functions import Cos, Erf, Exp, Gelu, Log, Power, Sign, Sin
from bounds.ops.piecewise import Clip
from bounds.ops.shape import Transpose
from bounds.ops.softmax import LogSumExp


def multiplied(node: NodeReader, first: int, second: int) -> int:
    """The product of two computed tensors; of one with itself, its square."""
    if first == second:
        return node.emit(Power(2.0), first)
    rank = max(len(node.builder.shape(first)), len(node.builder.shape(second)))
    return node.emit(Multiply(), node.with_rank(first, rank), node.with_rank(second, rank))


def divided(node: NodeReader) -> int:
    """A constant or a computed tensor divided by a computed one: multiplied by its reciprocal."""
    inverse = node.emit(Power(-1.0), node.source(1))
    if not node.is_constant(0):
        return multiplied(node, node.source(0), inverse)
    factor = node.weight(0)
    return node.emit(Scale(factor), node.with_rank(inverse, factor.dim()))


def matrix_product(node: NodeReader) -> int:
    """The matrix product of two computed tensors; a vector is a matrix of one row (on the left) or one column."""
    left, right = node.source(0), node.source(1)
    shapes = [node.builder.shape(s) for s in (left, right)]
    if not all(shapes):
        raise node.misfit("a product of scalars is no matrix product")
    left = node.reshape(left, (1, *shapes[0])) if len(shapes[0]) == 1 else left
    right = node.reshape(right, (*shapes[1], 1)) if len(shapes[1]) == 1 else right
    rank = max(len(node.builder.shape(s)) for s in (left, right))
    made = node.emit(MatrixProduct(), node.with_rank(left, rank), node.with_rank(right, rank))
    shape = list(node.builder.shape(made))
    if len(shapes[1]) == 1:
        shape.pop()
    if len(shapes[0]) == 1:
        shape.pop(-1 if len(shapes[1]) == 1 else -2)
    return node.reshape(made, shape)


def _pow(node: NodeReader) -> int:
    """x to a constant power, the same for all elements."""
    if not node.is_constant(1):
        raise node.refuse("a computed exponent is not supported", "the exponent has to be a constant")
    values = np.unique(node.constant(1).astype(np.float64))
    if values.size != 1:
        raise node.refuse(f"{values.size} different exponents are not supported", "split it into one Pow node for each")
    exponent = float(values[0])
    if not math.isfinite(exponent) or exponent == 0.0:
        raise node.refuse(f"the exponent is {exponent}", "replace the node by what it computes")
    source = node.with_rank(node.source(0), node.constant(1).ndim)
    return source if exponent == 1.0 else node.emit(Power(exponent), source)


def _gelu(node: NodeReader) -> int:
    if node.attribute("approximate", "none") != "none":
        raise node.refuse(
            "the approximation by tanh is not supported as one node", "export it with approximate='none' or as Mul, Pow and Tanh"
        )
    return node.emit(Gelu(), node.source(0))


def _softmax(node: NodeReader) -> int:
    """softmax(x) = exp(log-softmax(x)), which does not overflow."""

    def made(source: int) -> int:
        return node.emit(Exp(), _log_softmax_of(node, source))

    return _over_last_axis(node, made)


def _log_softmax(node: NodeReader) -> int:
    return _over_last_axis(node, lambda source: _log_softmax_of(node, source))


def _log_softmax_of(node: NodeReader, source: int) -> int:
    """min(0, c - log sum_j exp(c_j)) over the last axis, c the entries less their mean.

    What all entries have in common cancels before the sum is relaxed; the minimum changes nothing but keeps bounds below 0.
    """
    shape = node.builder.shape(source)
    centred = node.emit(SubBranches(), source, node.emit(ReduceMean((len(shape) - 1,), True), source))
    total = node.reshape(node.emit(LogSumExp(), centred), (*shape[:-1], 1))
    return node.emit(Clip(high=0.0), node.emit(SubBranches(), centred, total))


def _over_last_axis(node: NodeReader, make: Callable[[int], int]) -> int:
    """An op over `axis`, made over the last one. Before opset 13 it is over all axes from `axis` on, flattened."""
    source, shape = node.source(0), node.shape(0)
    if node.opset < 13:
        axis = node.axis(node.attribute("axis", 1), len(shape))
        return node.reshape(make(node.reshape(source, (math.prod(shape[:axis]), math.prod(shape[axis:])))), shape)
    axis = node.axis(node.attribute("axis", -1), len(shape))
    if axis == len(shape) - 1:
        return make(source)
    order = (*(k for k in range(len(shape)) if k != axis), axis)
    back = tuple(sorted(range(len(shape)), key=order.__getitem__))
    return node.emit(Transpose(back), make(node.emit(Transpose(order), source)))


def _layer_normalization(node: NodeReader) -> int:
    """(x - mean) / sqrt(variance + epsilon) over the last axes, scaled and shifted; the variance is the mean of the squared deviations."""
    node.ignore("stash_type")
    shape = node.shape(0)
    axes = tuple(range(node.axis(node.attribute("axis", -1), len(shape)), len(shape)))
    epsilon = torch.tensor(node.attribute("epsilon", 1e-5))
    source = node.source(0)
    centred = node.emit(SubBranches(), source, node.emit(ReduceMean(axes, True), source))
    variance = node.emit(ReduceMean(axes, True), node.emit(Power(2.0), centred))
    inverse = node.emit(Power(-0.5), node.emit(Shift(epsilon), variance))
    normal = node.emit(Multiply(), centred, inverse)
    for position, make in ((1, Scale), (2, Shift)):
        if node.has(position):
            values = node.weight(position)
            normal = node.emit(make(values), node.with_rank(normal, values.dim()))
    return normal


def _curve(make: Callable[[], Op]) -> Handler:
    return lambda node: node.emit(make(), node.source(0))


CURVE_HANDLERS: dict[str, Handler] = {
    "Cos": _curve(Cos),
    "Erf": _curve(Erf),
    "Exp": _curve(Exp),
    "Gelu": _gelu,
    "LayerNormalization": _layer_normalization,
    "Log": _curve(Log),
    "LogSoftmax": _log_softmax,
    "Pow": _pow,
    "Reciprocal": _curve(lambda: Power(-1.0)),
    "Sign": _curve(Sign),
    "Sin": _curve(Sin),
    "Softmax": _softmax,
    "Sqrt": _curve(lambda: Power(0.5)),
}
