"""How the ONNX operators on sliding windows become operators of ours. One function an operator; the table is at the end."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bounds.onnx_graph import Handler, NodeReader
from bounds.onnx_windows import average_counts, max_taps, sliding_windows
from bounds.ops.convolution import AveragePool, Conv, ConvTranspose
from bounds.ops.piecewise import MaxReduce
from bounds.ops.shape import Concat, Gather, Window


def _conv(node: NodeReader) -> int:
    weight = node.weight(1)
    if weight.dim() != len(node.shape(0)) or not 3 <= weight.dim() <= 5:
        raise node.misfit(f"expects 1 to 3 spatial axes, got an input of shape {node.shape(0)} and weights of shape {tuple(weight.shape)}")
    kernel = tuple(weight.shape[2:])
    if tuple(node.attribute("kernel_shape", kernel)) != kernel:
        raise node.misfit(f"kernel_shape {node.attribute('kernel_shape')} is not that of the weights, {kernel}")
    windows = sliding_windows(node, kernel)
    groups = node.attribute("group", 1)
    if node.shape(0)[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise node.misfit(f"{node.shape(0)[1]} channels do not fit weights of shape {tuple(weight.shape)} with {groups} groups")
    return node.emit(Conv(weight, _channel_bias(node), windows.strides, windows.pads, windows.dilations, groups), node.source(0))


def _channel_bias(node: NodeReader) -> Tensor | None:
    if not node.has(2):
        return None
    bias = node.weight(2)
    return bias.reshape(-1, *(1,) * (len(node.shape(0)) - 2))


def _conv_transpose(node: NodeReader) -> int:
    weight = node.weight(1)
    if weight.dim() != len(node.shape(0)) or not 3 <= weight.dim() <= 5:
        raise node.misfit(f"expects 1 to 3 spatial axes, got an input of shape {node.shape(0)} and weights of shape {tuple(weight.shape)}")
    spatial, kernel = node.shape(0)[2:], tuple(weight.shape[2:])
    axes = len(kernel)
    if tuple(node.attribute("kernel_shape", kernel)) != kernel:
        raise node.misfit(f"kernel_shape {node.attribute('kernel_shape')} is not that of the weights, {kernel}")
    strides, dilations = (tuple(node.attribute(name, [1] * axes)) for name in ("strides", "dilations"))
    full = [s * (n - 1) + d * (k - 1) + 1 for n, k, s, d in zip(spatial, kernel, strides, dilations, strict=True)]
    extra = node.attribute("output_padding", [0] * axes)
    pads = _transposed_pads(node, [f + e for f, e in zip(full, extra, strict=True)], spatial, strides)
    pads = tuple((begin, end - e) for (begin, end), e in zip(pads, extra, strict=True))
    op = ConvTranspose(weight, _channel_bias(node), strides, pads, dilations, node.attribute("group", 1))
    return node.emit(op, node.source(0))


def _transposed_pads(node: NodeReader, full: list[int], spatial: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Crop (begin, end) per axis of a full result that includes output_padding."""
    axes = len(full)
    mode = node.attribute("auto_pad", "NOTSET")
    wanted = node.attribute("output_shape", None)
    given = node.attribute("pads", [0] * 2 * axes)
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise node.refuse(f"attribute auto_pad = {mode!r} is not understood")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(spatial, strides, strict=True)]
    if wanted is None:
        given = [0] * 2 * axes if mode == "VALID" else given
        return tuple(zip(given[:axes], given[axes:], strict=True))
    totals = [f - w for f, w in zip(full, wanted[-axes:], strict=True)]
    if mode == "SAME_UPPER":
        return tuple((t // 2, t - t // 2) for t in totals)
    return tuple((t - t // 2, t // 2) for t in totals)


def _average_pool(node: NodeReader) -> int:
    node.require("dilations", None, [1] * (len(node.shape(0)) - 2))
    windows = sliding_windows(node, tuple(node.attribute("kernel_shape")))
    counts = average_counts(windows, include_pad=bool(node.attribute("count_include_pad", 0)))
    op = AveragePool(windows.kernel, windows.strides, windows.covering_pads(), torch.tensor(counts, dtype=torch.float32))
    return node.emit(op, node.source(0))


def _max_pool(node: NodeReader) -> int:
    node.require("storage_order", 0, 1)
    windows = sliding_windows(node, tuple(node.attribute("kernel_shape")))
    groups = max_taps(windows)
    if groups[0][1].shape[1] == 0:
        raise node.refuse("a pooling window lies entirely in the padding")
    parts = [node.emit(MaxReduce(), node.emit(Window(torch.from_numpy(taps)), node.source(0))) for _, taps in groups]
    if len(parts) > 1:
        order = np.argsort(np.concatenate([members for members, _ in groups]))
        parts = [node.emit(Gather(2, torch.from_numpy(order)), node.emit(Concat(2), *parts))]
    return node.reshape(parts[0], (*node.shape(0)[:2], *windows.output))


WINDOW_HANDLERS: dict[str, Handler] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
}
