"""How each ONNX operator with arithmetic becomes operators of ours. One function an operator; the table is at the end.

A handler returns the node of the first output (or a list for several). Shapes include the batch axis, set to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bounds.onnx_curve_handlers import CURVE_HANDLERS, divided, matrix_product, multiplied, selected
from bounds.onnx_graph import Handler, NodeReader, fits_into
from bounds.onnx_resize_handlers import RESIZE_HANDLERS
from bounds.onnx_shape_handlers import SHAPE_HANDLERS
from bounds.onnx_window_handlers import WINDOW_HANDLERS
from bounds.ops.affine import (
    AddBranches,
    BatchNormalization,
    Divide,
    LeftLinear,
    Linear,
    ReduceMean,
    ReduceSum,
    Scale,
    Shift,
    SubBranches,
)
from bounds.ops.base import Op
from bounds.ops.functions import Power
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, MaxReduce, PRelu, Relu
from bounds.ops.shape import Concat, Transpose
from bounds.ops.smooth import Sigmoid, Tanh


def _gemm(node: NodeReader) -> int:
    """alpha A' B' + beta C with one of A, B constant."""
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    transposed = [bool(node.attribute("transA", 0)), bool(node.attribute("transB", 0))]
    if len(node.shape(0)) != 2 or len(node.shape(1)) != 2:
        raise node.misfit(f"expects two matrices, got shapes {node.shape(0)} and {node.shape(1)}")
    if not node.is_constant(1):
        right = node.source(1)
        right = node.emit(Transpose((1, 0)), right) if transposed[1] else right
        weight = node.weight(0)
        product = node.emit(LeftLinear(weight.T.contiguous() if transposed[0] else weight), right)
    else:
        left = node.source(0)
        left = node.emit(Transpose((1, 0)), left) if transposed[0] else left
        weight = node.weight(1)
        weight = weight if transposed[1] else weight.T.contiguous()
        offset = _gemm_offset(node, weight.shape[0]) if alpha == beta == 1.0 else None
        product = node.emit(Linear(weight, offset), left)
        if offset is not None:
            return product
    if alpha != 1.0:
        product = node.emit(Scale(weight.new_tensor(alpha)), product)
    return _gemm_add(node, product, beta, weight) if node.has(2) and beta != 0.0 else product


def _gemm_offset(node: NodeReader, columns: int) -> Tensor | None:
    """C as the bias of a linear map, where it is a row."""
    if not node.has(2) or not node.is_constant(2):
        return None
    offset = node.weight(2)
    return offset.reshape(-1) if offset.numel() == columns == (offset.shape or (1,))[-1] else None


def _gemm_add(node: NodeReader, product: int, beta: float, like: Tensor) -> int:
    factor = None if beta == 1.0 else like.new_tensor(beta)
    if not fits_into(node.shape(2), node.builder.shape(product)):
        raise node.misfit(f"C of shape {node.shape(2)} does not broadcast to {node.builder.shape(product)}")
    if node.is_constant(2):
        return node.emit(Shift(node.weight(2), factor), product)
    addend = node.with_rank(node.source(2), 2)
    addend = addend if factor is None else node.emit(Scale(factor), addend)
    return node.emit(AddBranches(), product, addend)


def _matmul(node: NodeReader) -> int:
    """A B with both computed, or one of them a constant matrix (or a stack of one)."""
    if not node.is_constant(0) and not node.is_constant(1):
        return matrix_product(node)
    constant = 0 if node.is_constant(0) else 1
    source, weight = node.source(1 - constant), node.weight(constant)
    rank = max(len(node.builder.shape(source)), weight.dim())
    if weight.dim() > 2 and math.prod(weight.shape[:-2]) != 1:
        raise node.refuse(
            f"a stack of constant matrices of shape {tuple(weight.shape)} is not supported", "split it into several MatMul nodes"
        )
    matrix = weight.reshape(weight.shape[-2:]) if weight.dim() > 2 else weight
    if weight.dim() > 2:
        source = node.with_rank(source, rank)
    if weight.dim() == 1:
        return _matmul_vector(node, source, matrix, constant)
    if len(node.builder.shape(source)) == 1:
        return node.emit(Linear(matrix if constant == 0 else matrix.T.contiguous()), source)
    return node.emit(LeftLinear(matrix) if constant == 0 else Linear(matrix.T.contiguous()), source)


def _matmul_vector(node: NodeReader, source: int, vector: Tensor, constant: int) -> int:
    """A product with a constant vector; the axis it leaves is dropped."""
    shape = node.builder.shape(source)
    row = vector.unsqueeze(0)
    if constant == 1 or len(shape) == 1:
        return node.reshape(node.emit(Linear(row), source), shape[:-1])
    return node.reshape(node.emit(LeftLinear(row), source), (*shape[:-2], shape[-1]))


def _add(node: NodeReader) -> int:
    if node.is_constant(0) == node.is_constant(1):
        return _branches(node, AddBranches())
    constant = 0 if node.is_constant(0) else 1
    offset = node.weight(constant)
    fused = node.with_offset(1 - constant, offset)
    return fused if fused is not None else _shifted(node, node.source(1 - constant), offset)


def _sub(node: NodeReader) -> int:
    if node.is_constant(1):
        return _shifted(node, node.source(0), -node.weight(1))
    if node.is_constant(0):
        return _shifted(node, _scaled(node, node.source(1), node.weight(0).new_tensor(-1.0)), node.weight(0))
    return _branches(node, SubBranches())


def _mul(node: NodeReader) -> int:
    if not node.is_constant(0) and not node.is_constant(1):
        return multiplied(node, node.source(0), node.source(1))
    constant = 0 if node.is_constant(0) else 1
    return _scaled(node, node.source(1 - constant), node.weight(constant))


def _div(node: NodeReader) -> int:
    if not node.is_constant(1):
        return divided(node)
    divisor = node.weight(1)
    if bool((divisor == 0).any()):
        raise node.refuse("the divisor contains zero")
    source = node.with_rank(node.source(0), divisor.dim())
    return node.emit(Divide(divisor), source)


def _neg(node: NodeReader) -> int:
    return _scaled(node, node.source(0), torch.tensor(-1.0))


def _sum(node: NodeReader) -> int:
    return _branches(node, AddBranches())


def _mean(node: NodeReader) -> int:
    return node.emit(Divide(torch.tensor(float(node.inputs))), _branches(node, AddBranches()))


def _branches(node: NodeReader, op: Op) -> int:
    """An operator on computed tensors (constants become shifts of the sum), their ranks made equal."""
    computed = [i for i in range(node.inputs) if not node.is_constant(i)]
    rank = max(len(node.shape(i)) for i in computed)
    sources = [node.with_rank(node.source(i), rank) for i in computed]
    total = node.emit(op, *sources) if len(sources) > 1 else sources[0]
    for position in set(range(node.inputs)) - set(computed):
        total = _shifted(node, total, node.weight(position))
    return total


def _shifted(node: NodeReader, source: int, offset: Tensor) -> int:
    return node.emit(Shift(offset), node.with_rank(source, offset.dim()))


def _scaled(node: NodeReader, source: int, factor: Tensor) -> int:
    return node.emit(Scale(factor), node.with_rank(source, factor.dim()))


def _batch_normalization(node: NodeReader) -> int:
    node.require("training_mode", 0)
    node.require("is_test", 1)
    node.require("spatial", 1)
    node.ignore("momentum")
    gamma, beta, mean, variance = (node.weight(i) for i in range(1, 5))
    epsilon = node.attribute("epsilon", 1e-5)
    if bool((variance.double() + epsilon <= 0).any()):
        raise node.refuse("a variance plus epsilon is not positive")
    shape = node.shape(0)
    if len(shape) < 2 or any(p.shape != (shape[1],) for p in (gamma, beta, mean, variance)):
        raise node.misfit(f"parameters of {gamma.numel()} channels do not fit an input of shape {shape}")
    return node.emit(BatchNormalization(gamma, beta, mean, variance, epsilon, len(shape) - 2), node.source(0))


def _global_average_pool(node: NodeReader) -> int:
    return node.emit(ReduceMean(tuple(range(2, len(node.shape(0)))), True), node.source(0))


def _global_max_pool(node: NodeReader) -> int:
    shape = node.shape(0)
    flat = node.reshape(node.source(0), (*shape[:2], math.prod(shape[2:])))
    return node.reshape(node.emit(MaxReduce(), flat), (*shape[:2], *(1,) * (len(shape) - 2)))


def _reduce_axes(node: NodeReader, rank: int) -> tuple[int, ...]:
    """Axes to reduce, from the attribute of old operator sets or from the second input; all when none are given."""
    axes = node.integers(1) if node.has(1) else node.attribute("axes", [])
    if not axes and node.attribute("noop_with_empty_axes", 0):
        return ()
    return node.axes(axes or range(rank), rank)


def _reduce(make: Callable[[tuple[int, ...], bool], Op]) -> Handler:
    def handler(node: NodeReader) -> int:
        node.attribute("noop_with_empty_axes", 0)
        axes, keepdims = _reduce_axes(node, len(node.shape(0))), bool(node.attribute("keepdims", 1))
        return node.emit(make(axes, keepdims), node.source(0)) if axes else node.source(0)

    return handler


def _reduce_of(before: Callable[[], Op], after: Callable[[], Op] | None = None) -> Handler:
    """A sum over axes of what `before` makes of the elements, put through `after`."""

    def handler(node: NodeReader) -> int:
        node.attribute("noop_with_empty_axes", 0)
        axes, keepdims = _reduce_axes(node, len(node.shape(0))), bool(node.attribute("keepdims", 1))
        if not axes:
            raise node.refuse("a reduction over no axes is not supported", "name the axes")
        total = node.emit(ReduceSum(axes, keepdims), node.emit(before(), node.source(0)))
        return total if after is None else node.emit(after(), total)

    return handler


def _reduce_min(node: NodeReader) -> int:
    return _neg_of(node, _highest(node, _neg_of(node, node.source(0))))


def _reduce_max(node: NodeReader) -> int:
    return _highest(node, node.source(0))


def _highest(node: NodeReader, source: int) -> int:
    """The largest entries of `source`, which has the shape of the node's input, over the node's axes."""
    node.attribute("noop_with_empty_axes", 0)
    shape = node.shape(0)
    axes, keepdims = _reduce_axes(node, len(shape)), bool(node.attribute("keepdims", 1))
    if not axes:
        return source
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    last = node.emit(Transpose((*kept, *axes)), source)
    flat = node.reshape(last, (*(shape[axis] for axis in kept), math.prod(shape[axis] for axis in axes)))
    top = node.emit(MaxReduce(), flat)
    return node.reshape(top, tuple(1 if axis in axes else n for axis, n in enumerate(shape))) if keepdims else top


def _max(node: NodeReader) -> int:
    return _extreme(node, 1)


def _min(node: NodeReader) -> int:
    return _extreme(node, -1)


def _extreme(node: NodeReader, sign: int) -> int:
    """Element-wise maximum (sign 1) or minimum (sign -1): of branches over a new last axis, against constants as a clip."""
    computed = [node.source(i) for i in range(node.inputs) if not node.is_constant(i)]
    rank = max(len(node.shape(i)) for i in range(node.inputs))
    computed = [node.with_rank(source, rank) for source in computed]
    shape = np.broadcast_shapes(*(node.shape(i) for i in range(node.inputs)))
    if any(node.builder.shape(source) != shape for source in computed):
        raise node.refuse("broadcasting between the operands is not supported", "expand the smaller operand first")
    result = computed[0]
    if len(computed) > 1:
        signed = [s if sign > 0 else _neg_of(node, s) for s in computed]
        stacked = node.emit(Concat(len(shape)), *(node.reshape(s, (*shape, 1)) for s in signed))
        result = node.emit(MaxReduce(), stacked)
        result = result if sign > 0 else _neg_of(node, result)
    for position in range(node.inputs):
        if node.is_constant(position):
            limit = _limit(node.weight(position))
            result = node.emit(Clip(low=limit) if sign > 0 else Clip(high=limit), result)
    return result


def _neg_of(node: NodeReader, source: int) -> int:
    return _scaled(node, source, torch.tensor(-1.0))


def _limit(value: Tensor) -> float | Tensor:
    return float(value) if value.numel() == 1 else value


def _clip(node: NodeReader) -> int:
    """min(max(x, low), high); a limit at the end of its type's range is none."""
    limits = [-math.inf, math.inf]
    for k, name in enumerate(("min", "max")):
        if node.has(k + 1):
            array = node.constant(k + 1).reshape(-1)
            limits[k] = float(array[0]) if abs(float(array[0])) < np.finfo(array.dtype).max else limits[k]
        elif (value := node.attribute(name)) is not None:
            limits[k] = value if abs(value) < np.finfo(np.float32).max else limits[k]
    if any(math.isnan(limit) for limit in limits):
        raise node.refuse("a limit is NaN")
    if limits == [-math.inf, math.inf]:
        return node.source(0)
    return node.emit(Clip(*limits), node.source(0))


def _prelu(node: NodeReader) -> int:
    slope = node.weight(1)
    if not fits_into(slope.shape, node.shape(0)):
        raise node.misfit(f"slopes of shape {tuple(slope.shape)} do not broadcast to the input's shape {node.shape(0)}")
    return node.emit(PRelu(slope), node.source(0))


def _leaky_relu(node: NodeReader) -> int:
    return node.emit(LeakyRelu(node.attribute("alpha", 0.01)), node.source(0))


def _hard_sigmoid(node: NodeReader) -> int:
    """max(0, min(1, alpha x + beta))."""
    alpha, beta = torch.tensor(node.attribute("alpha", 0.2)), torch.tensor(node.attribute("beta", 0.5))
    return node.emit(Clip(0.0, 1.0), _shifted(node, _scaled(node, node.source(0), alpha), beta))


def _where(node: NodeReader) -> int:
    """c a + (1 - c) b with a constant condition c."""
    if not node.is_constant(0):
        return selected(node)
    chosen = torch.from_numpy(node.constant(0).astype(np.float32))
    parts, offset = [], None
    for position, mask in ((1, chosen), (2, 1 - chosen)):
        if node.is_constant(position):
            offset = mask * node.weight(position)
        else:
            parts.append(_scaled(node, node.source(position), mask))
    rank = max(len(node.builder.shape(part)) for part in parts)
    parts = [node.with_rank(part, rank) for part in parts]
    total = node.emit(AddBranches(), *parts) if len(parts) > 1 else parts[0]
    return total if offset is None else _shifted(node, total, offset)


def _element_wise(make: Callable[[], Op]) -> Handler:
    return lambda node: node.emit(make(), node.source(0))


HANDLERS: dict[str, Handler] = {
    **SHAPE_HANDLERS,
    **RESIZE_HANDLERS,
    **WINDOW_HANDLERS,
    **CURVE_HANDLERS,
    "Abs": _element_wise(Abs),
    "Add": _add,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Div": _div,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "Max": _max,
    "Mean": _mean,
    "Min": _min,
    "Mul": _mul,
    "Neg": _neg,
    "PRelu": _prelu,
    "ReduceL1": _reduce_of(Abs),
    "ReduceL2": _reduce_of(lambda: Power(2.0), lambda: Power(0.5)),
    "ReduceMax": _reduce_max,
    "ReduceMean": _reduce(ReduceMean),
    "ReduceMin": _reduce_min,
    "ReduceSum": _reduce(ReduceSum),
    "ReduceSumSquare": _reduce_of(lambda: Power(2.0)),
    "Relu": _element_wise(Relu),
    "Sigmoid": _element_wise(Sigmoid),
    "Sub": _sub,
    "Sum": _sum,
    "Tanh": _element_wise(Tanh),
    "Where": _where,
}
