"""Small networks of every kind, and regions of every kind, that the tests of the engines share."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from bounds.network import Network, Node
from bounds.ops.affine import AddBranches, BatchNormalization, Linear, ReduceMean, Scale, Shift, SubBranches
from bounds.ops.base import Input, Op, Shape
from bounds.ops.bilinear import MatrixProduct, Multiply
from bounds.ops.convolution import AveragePool, Conv, ConvTranspose
from bounds.ops.functions import Cos, Elu, Exp, Power, Sin
from bounds.ops.gated import Gelu, Silu
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, MaxReduce, PRelu, Relu
from bounds.ops.shape import Concat, Gather, Reshape, Slice, Transpose, Window
from bounds.ops.smooth import Sigmoid, Tanh
from bounds.ops.softmax import LogSumExp
from bounds.region import Box, LpBall, Region

Layer = tuple[Op, tuple[int, ...]]


def build(input_shape: Shape, *layers: Layer) -> Network:
    """A network from ops and the numbers of the nodes they read (0 is the input); shapes are found by running it."""
    nodes, values = [Node(Input(), (), input_shape, "input")], [torch.zeros(1, *input_shape)]
    for number, (op, inputs) in enumerate(layers, 1):
        values.append(op.forward(*(values[i] for i in inputs)))
        nodes.append(Node(op, inputs, tuple(values[-1].shape[1:]), f"{type(op).__name__}_{number}"))
    return Network(tuple(nodes))


def chain(input_shape: Shape, *ops: Op) -> Network:
    """One op after the other."""
    return build(input_shape, *((op, (number,)) for number, op in enumerate(ops)))


class Draw:
    """Random layers from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def dense(self, outputs: int, inputs: int) -> Linear:
        return Linear(self.normal(outputs, inputs) / math.sqrt(inputs) * 1.5, self.normal(outputs) / 2)

    def conv(self, outputs: int, inputs: int, kernel: Shape, stride: int | Shape = 1, pads: int | tuple = 0, groups: int = 1) -> Conv:
        strides = (stride, stride) if isinstance(stride, int) else stride
        around = ((pads, pads), (pads, pads)) if isinstance(pads, int) else pads
        weight = self.normal(outputs, inputs // groups, *kernel) / math.sqrt(inputs // groups * math.prod(kernel)) * 1.5
        return Conv(weight, self.normal(outputs, 1, 1) / 2, strides, around, (1, 1), groups)


def fully_connected(*activations: Op, seed: int = 0, widths: tuple[int, ...] = (3, 5, 4, 2)) -> Network:
    draw = Draw(seed)
    ops: list[Op] = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        ops += [draw.dense(outputs, inputs), activations[number % len(activations)]]
    return chain(widths[:1], *ops[:-1])


def convolutional() -> Network:
    draw = Draw(1)
    return chain(
        (1, 2, 4, 5), draw.conv(4, 2, (3, 3), 1, 1), Relu(), draw.conv(4, 4, (3, 2), 2, ((1, 0), (0, 1)), 2), Relu(),
        Reshape((24,)), draw.dense(2, 24),
    )  # fmt: skip


def residual() -> Network:
    """Two blocks; the second one's shortcut is a strided 1x1 convolution."""
    draw = Draw(2)
    return build(
        (1, 1, 4, 4),
        (draw.conv(2, 1, (3, 3), 1, 1), (0,)),
        (Relu(), (1,)),
        (draw.conv(2, 2, (3, 3), 1, 1), (2,)),
        (AddBranches(), (3, 1)),
        (Relu(), (4,)),
        (draw.conv(3, 2, (3, 3), 2, 1), (5,)),
        (Relu(), (6,)),
        (draw.conv(3, 3, (3, 3), 1, 1), (7,)),
        (draw.conv(3, 2, (1, 1), 2), (5,)),
        (AddBranches(), (8, 9)),
        (Relu(), (10,)),
        (Reshape((12,)), (11,)),
        (draw.dense(2, 12), (12,)),
    )


def average_pool() -> Network:
    draw = Draw(3)
    pool = AveragePool((3, 3), (2, 2), ((1, 0), (1, 0)), torch.tensor([[4.0, 6.0], [6.0, 9.0]]))
    return chain((1, 1, 4, 4), draw.conv(2, 1, (3, 3), 1, 1), Relu(), pool, LeakyRelu(0.2), Reshape((8,)), draw.dense(2, 8))


def max_pool() -> Network:
    draw = Draw(21)
    taps = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    return chain(
        (1, 1, 4, 4), draw.conv(2, 1, (3, 3), 1, 1), Window(taps), MaxReduce(), Reshape((8,)), draw.dense(4, 8), Relu(), draw.dense(2, 4)
    )


def batch_norm() -> Network:
    draw = Draw(5)
    norm = BatchNormalization(draw.normal(2), draw.normal(2), draw.normal(2), draw.normal(2).abs() + 0.3, 1e-5, 2)
    again = BatchNormalization(draw.normal(3), draw.normal(3), draw.normal(3), draw.normal(3).abs() + 0.3, 1e-3, 2)
    return chain(
        (1, 1, 3, 4), draw.conv(2, 1, (2, 2)), norm, Relu(), draw.conv(3, 2, (2, 2), 1, 1), again, Relu(), Reshape((36,)), draw.dense(2, 36)
    )


def conv_transpose() -> Network:
    draw = Draw(37)
    up = ConvTranspose(draw.normal(2, 2, 3, 3) / 3, draw.normal(2, 1, 1), (2, 2), ((1, 0), (0, 1)), (1, 1))
    return chain((1, 1, 3, 3), draw.conv(2, 1, (2, 2)), Relu(), up, Relu(), Reshape((32,)), draw.dense(2, 32))


def branches() -> Network:
    """A slice of the hidden layer goes its own way and is put back among constants."""
    draw = Draw(7)
    constant = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, -0.5, 0.0, 0.0])
    return build(
        (3,),
        (draw.dense(6, 3), (0,)),
        (Relu(), (1,)),
        (Slice(((0, 6, 2),)), (2,)),
        (draw.dense(4, 3), (3,)),
        (Abs(), (4,)),
        (Slice(((1, 3, 1),)), (1,)),
        (Concat(0, (0, 2, 0), constant), (5, 6)),
        (Clip(-0.4, 0.8), (7,)),
        (Gather(0, torch.tensor([0, 0, 3, 4, 6, 7])), (8,)),
        (draw.dense(2, 6), (9,)),
    )


def difference() -> Network:
    draw = Draw(8)
    return build(
        (3,),
        (draw.dense(4, 3), (0,)),
        (Relu(), (1,)),
        (draw.dense(4, 4), (2,)),
        (SubBranches(), (3, 1)),
        (LeakyRelu(0.1), (4,)),
        (draw.dense(3, 4), (5,)),
        (Slice(((0, 3, 1),)), (0,)),
        (SubBranches(), (6, 7)),
        (Relu(), (8,)),
        (draw.dense(2, 3), (9,)),
    )


def channels_last() -> Network:
    """Height x width x channels, with the transposes that an exporter puts around its convolutions, and a mean over positions."""
    draw = Draw(9)
    return chain(
        (1, 4, 3, 2), Transpose((0, 3, 1, 2)), draw.conv(3, 2, (3, 3), 1, 1), Relu(), Transpose((0, 2, 3, 1)), Scale(draw.normal(3)),
        Shift(draw.normal(3)), Relu(), ReduceMean((1, 2), False), draw.dense(2, 3),
    )  # fmt: skip


def constant_output() -> Network:
    """One output that is a constant, one that is always zero, one alive; and neurons nobody reads."""
    draw = Draw(23)
    return build(
        (3,),
        (draw.dense(4, 3), (0,)),
        (Relu(), (1,)),
        (draw.dense(3, 4), (2,)),
        (Relu(), (3,)),
        (Slice(((0, 1, 1),)), (2,)),
        (Linear(torch.zeros(1, 4)), (2,)),
        (Concat(0, (0, 0, 1), torch.tensor([0.0, 0.0, 0.75])), (5, 6)),
    )


def activation_chain() -> Network:
    """Activations that read the input, each other, and are the output."""
    draw = Draw(32)
    return build(
        (3,),
        (Relu(), (0,)),
        (Clip(-1.0, 0.6), (1,)),
        (Clip(-0.2, 0.3), (0,)),
        (Concat(0), (2, 3)),
        (draw.dense(4, 6), (4,)),
        (Abs(), (5,)),
        (LeakyRelu(-0.5), (6,)),
        (draw.dense(2, 4), (7,)),
        (Relu(), (8,)),
    )


def attention() -> Network:
    """Three tokens of two numbers that look at each other once: softmax of products, products with its weights, a shortcut."""
    draw = Draw(41)
    query, key, value = (Linear(draw.normal(2, 2), draw.normal(2) / 4) for _ in range(3))
    return build(
        (3,),
        (draw.dense(6, 3), (0,)),
        (Reshape((3, 2)), (1,)),
        (query, (2,)),
        (key, (2,)),
        (value, (2,)),
        (Transpose((1, 0)), (4,)),
        (MatrixProduct(), (3, 6)),
        (ReduceMean((1,), True), (7,)),
        (SubBranches(), (7, 8)),
        (LogSumExp(), (9,)),
        (Reshape((3, 1)), (10,)),
        (SubBranches(), (9, 11)),
        (Clip(high=0.0), (12,)),
        (Exp(), (13,)),
        (MatrixProduct(), (14, 5)),
        (AddBranches(), (15, 2)),
        (Reshape((6,)), (16,)),
        (draw.dense(2, 6), (17,)),
    )


def control() -> Network:
    """A step of a pendulum on a cart: sine and cosine of a state, products of them, a square and a quotient."""
    draw = Draw(42)
    return build(
        (3,),
        (draw.dense(4, 3), (0,)),
        (Slice(((0, 2, 1),)), (1,)),
        (Slice(((2, 4, 1),)), (1,)),
        (Sin(), (2,)),
        (Cos(), (2,)),
        (Multiply(), (4, 3)),
        (Multiply(), (6, 5)),
        (Power(2.0), (5,)),
        (Shift(torch.tensor([1.0, 1.5])), (8,)),
        (Power(-1.0), (9,)),
        (Multiply(), (7, 10)),
        (Concat(0), (11, 6)),
        (draw.dense(2, 4), (12,)),
    )


PIECEWISE: dict[str, Network] = {
    "relu": fully_connected(Relu(), seed=21),
    "one hidden layer": fully_connected(Relu(), widths=(3, 8, 2)),
    "leaky": fully_connected(LeakyRelu(0.1), seed=1),
    "clip and abs": fully_connected(Clip(-0.3, 0.7), Abs(), PRelu(torch.tensor([0.3, -0.2, 1.5, 0.0])), seed=2, widths=(3, 5, 4, 4, 2)),
    "convolutional": convolutional(),
    "residual": residual(),
    "average pool": average_pool(),
    "max pool": max_pool(),
    "batch norm": batch_norm(),
    "conv transpose": conv_transpose(),
    "branches": branches(),
    "difference": difference(),
    "channels last": channels_last(),
    "constant output": constant_output(),
    "activation chain": activation_chain(),
    "affine": chain((3,), Draw(12).dense(4, 3), Draw(13).dense(2, 4)),
    "no parameters": build((3,), (Relu(), (0,)), (AddBranches(), (1, 0)), (Slice(((0, 2, 1),)), (2,))),
}
SMOOTH: dict[str, Network] = {
    "sigmoid": fully_connected(Sigmoid(), seed=3),
    "tanh": fully_connected(Tanh(), seed=4),
    "gelu": fully_connected(Gelu(), seed=6),
    "silu and elu": fully_connected(Silu(), Elu(1.5), seed=8),
    "attention": attention(),
    "control": control(),
    "smooth and max": chain((3,), Draw(14).dense(6, 3), Sigmoid(), Reshape((2, 3)), MaxReduce(), Tanh(), Draw(15).dense(2, 2)),
}
ZOO = PIECEWISE | SMOOTH


def centers(network: Network, count: int = 3, seed: int = 20) -> Tensor:
    """Float32 numbers around zero, in float64: (count, *input_shape)."""
    return torch.randn(count, *network.input_shape, generator=torch.Generator().manual_seed(seed)).double() / 2


def radii(network: Network, size: float) -> Tensor:
    """A wide set, one with a radius of its own for every feature (some of them zero), a point: (3, *input_shape)."""
    shape = network.input_shape
    uneven = torch.rand(shape, generator=torch.Generator().manual_seed(21), dtype=torch.float64) * 2 * size
    uneven = torch.where(torch.arange(math.prod(shape)).reshape(shape) % 3 == 1, 0.0, uneven)
    return torch.stack([torch.full(shape, size, dtype=torch.float64), uneven, torch.zeros(shape, dtype=torch.float64)])


def regions(network: Network, kind: str) -> Region:
    """Three regions of one kind; the last is a single point."""
    name, _, domain = kind.partition(" ")
    size = {"box": 0.4, "linf": 0.3, "l2": 0.6, "l1": 0.9}[name] * (1.0 if math.prod(network.input_shape) < 8 else 0.3)
    x, eps = centers(network), radii(network, size)
    if name == "box":
        return Box((x - eps).float(), (x + eps / 2).float())
    limits = (x.amin() - 0.05, torch.maximum(x, torch.tensor(0.25, dtype=torch.float64))) if domain else None
    return LpBall(x, eps, {"linf": math.inf, "l2": 2.0, "l1": 1.0}[name], limits)


REGIONS = ("box", "linf domain", "l2", "l2 domain", "l1", "l1 domain")
