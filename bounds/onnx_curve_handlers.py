"""How each ONNX operator that is a curve, a product of computed tensors or made of such becomes operators of ours; the table is at the end.

What is decomposed stays exact as a function of real numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from bounds import onnx_patterns
from bounds.onnx_graph import Handler, NodeReader
from bounds.ops.affine import AddBranches, Divide, ReduceMean, Scale, Shift, SubBranches
from bounds.ops.base import Op
from bounds.ops.bilinear import MatrixProduct, Multiply
from bounds.ops.functions import Atan, Cos, Elu, Erf, Exp, Log, Power, Sin, Softplus, Softsign
from bounds.ops.gated import Gelu, GeluTanh, Mish, Silu
from bounds.ops.piecewise import Clip, Relu
from bounds.ops.shape import Transpose
from bounds.ops.sign import Exceeds, Sign
from bounds.ops.softmax import LogSumExp


def multiplied(node: NodeReader, first: int, second: int) -> int:
    """The product of two computed tensors, or the curve that it is."""
    curve = onnx_patterns.product(node, first, second)
    if curve is not None:
        return curve
    rank = max(len(node.builder.shape(first)), len(node.builder.shape(second)))
    return node.emit(Multiply(), node.with_rank(first, rank), node.with_rank(second, rank))


def divided(node: NodeReader) -> int:
    """A constant or a computed tensor divided by a computed one: multiplied by its reciprocal, or the curve that the quotient is."""
    if not node.is_constant(0):
        curve = onnx_patterns.quotient(node, node.source(0), node.source(1))
        return curve if curve is not None else multiplied(node, node.source(0), onnx_patterns.reciprocal(node, node.source(1)))
    inverse = onnx_patterns.reciprocal(node, node.source(1))
    factor = node.weight(0)
    return node.emit(Scale(factor), node.with_rank(inverse, factor.dim()))


def selected(node: NodeReader) -> int:
    """A selection by a computed condition, where it is a curve."""
    where = "only a softplus cut off by a comparison may be selected"
    if not any(node.is_constant(position) for position in range(3)):
        curve = onnx_patterns.selection(node, *(node.source(position) for position in range(3)))
        if curve is not None:
            return curve
    raise node.refuse(f"a computed condition is not supported ({where})", "write it as a product or a maximum")


def _greater(node: NodeReader) -> int:
    """A condition, which what it selects has to do away with."""
    if node.is_constant(0) or not node.is_constant(1) or node.constant(1).size != 1:
        raise node.refuse("comparisons are not supported (except with one number, where that cuts off a softplus)")
    return node.emit(Exceeds(float(node.constant(1).reshape(-1)[0])), node.source(0))


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
    """Exactly, or its approximation by tanh."""
    if node.attribute("approximate", "none") == "none":
        return node.emit(Gelu(), node.source(0))
    node.require("approximate", "tanh")
    return node.emit(GeluTanh(), node.source(0))


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
    """Over the last axes, scaled and shifted."""
    node.ignore("stash_type")
    rank = len(node.shape(0))
    axes = tuple(range(node.axis(node.attribute("axis", -1), rank), rank))
    return _scaled_and_shifted(node, _standardised(node, node.source(0), axes), ())


def _instance_normalization(node: NodeReader) -> int:
    """Over everything but batch and channels, scaled and shifted a channel."""
    rank = len(node.shape(0))
    return _scaled_and_shifted(node, _standardised(node, node.source(0), tuple(range(2, rank))), (1,) * (rank - 2))


def _group_normalization(node: NodeReader) -> int:
    """Over groups of channels, scaled and shifted a channel (before opset 21: a group)."""
    node.ignore("stash_type")
    shape, groups = node.shape(0), node.attribute("num_groups")
    if not groups or shape[1] % groups:
        raise node.misfit(f"{groups} groups do not divide {shape[1]} channels")
    apart = node.reshape(node.source(0), (shape[0], groups, math.prod(shape[1:]) // groups))
    normal = _standardised(node, apart, (2,))
    if node.opset < 21:
        return node.reshape(_scaled_and_shifted(node, normal, (1,)), shape)
    return _scaled_and_shifted(node, node.reshape(normal, shape), (1,) * (len(shape) - 2))


def _standardised(node: NodeReader, source: int, axes: tuple[int, ...]) -> int:
    """(x - mean) / sqrt(variance + epsilon) over the axes; the variance is the mean of the squared deviations."""
    epsilon = torch.tensor(node.attribute("epsilon", 1e-5))
    centred = node.emit(SubBranches(), source, node.emit(ReduceMean(axes, True), source))
    variance = node.emit(ReduceMean(axes, True), node.emit(Power(2.0), centred))
    inverse = node.emit(Power(-0.5), node.emit(Shift(epsilon), variance))
    return node.emit(Multiply(), centred, inverse)


def _scaled_and_shifted(node: NodeReader, source: int, trailing: tuple[int, ...]) -> int:
    """Times the second input plus the third, where they are given; trailing: ones put behind their shapes."""
    for position, make in ((1, Scale), (2, Shift)):
        if node.has(position):
            values = node.weight(position)
            values = values.reshape(*values.shape, *trailing)
            source = node.emit(make(values), node.with_rank(source, values.dim()))
    return source


def _celu(node: NodeReader) -> int:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    alpha = torch.tensor(node.attribute("alpha", 1.0))
    if not alpha > 0:
        raise node.refuse(f"alpha = {float(alpha):g} is not positive")
    return node.emit(Scale(alpha), node.emit(Elu(), node.emit(Divide(alpha), node.source(0))))


def _selu(node: NodeReader) -> int:
    """gamma times an ELU."""
    alpha, gamma = node.attribute("alpha", 1.67326319217681884765625), node.attribute("gamma", 1.05070102214813232421875)
    return node.emit(Scale(torch.tensor(gamma)), node.emit(Elu(alpha), node.source(0)))


def _hard_swish(node: NodeReader) -> int:
    """x max(0, min(1, x / 6 + 1/2)) = (t^2 / 3 + t) / 2 + relu(x - 3) with t = max(-3, min(3, x)): curves of x, no product."""
    source = node.source(0)
    middle = node.emit(Clip(-3.0, 3.0), source)
    square = node.emit(Divide(torch.tensor(3.0)), node.emit(Power(2.0), middle))
    half = node.emit(Scale(torch.tensor(0.5)), node.emit(AddBranches(), square, middle))
    return node.emit(AddBranches(), half, node.emit(Relu(), node.emit(Shift(torch.tensor(-3.0)), source)))


def _swish(node: NodeReader) -> int:
    """x sigmoid(alpha x)."""
    alpha = torch.tensor(node.attribute("alpha", 1.0))
    if alpha == 1:
        return node.emit(Silu(), node.source(0))
    if alpha == 0:
        raise node.refuse("alpha is 0", "replace the node by x / 2")
    return node.emit(Divide(alpha), node.emit(Silu(), node.emit(Scale(alpha), node.source(0))))


def _curve(make: Callable[[], Op]) -> Handler:
    return lambda node: node.emit(make(), node.source(0))


CURVE_HANDLERS: dict[str, Handler] = {
    "Atan": _curve(Atan),
    "Celu": _celu,
    "Cos": _curve(Cos),
    "Elu": lambda node: node.emit(Elu(node.attribute("alpha", 1.0)), node.source(0)),
    "Erf": _curve(Erf),
    "Exp": _curve(Exp),
    "Gelu": _gelu,
    "Greater": _greater,
    "GroupNormalization": _group_normalization,
    "HardSwish": _hard_swish,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "Log": _curve(Log),
    "LogSoftmax": _log_softmax,
    "Mish": _curve(Mish),
    "Pow": _pow,
    "Reciprocal": lambda node: onnx_patterns.reciprocal(node, node.source(0)),
    "Selu": _selu,
    "Sign": _curve(Sign),
    "Sin": _curve(Sin),
    "Softmax": _softmax,
    "Softplus": _curve(Softplus),
    "Softsign": _curve(Softsign),
    "Sqrt": _curve(lambda: Power(0.5)),
    "Swish": _swish,
}
