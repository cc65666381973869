"""Small networks whose answers are known by hand."""

from __future__ import annotations

import torch

from bounds.network import Network, Node
from bounds.ops.affine import Linear
from bounds.ops.base import Input, Op
from bounds.ops.piecewise import Relu


def chain(features: int, *ops: tuple[Op, int]) -> Network:
    """A network of one op after the other; each comes with its number of outputs."""
    nodes = [Node(Input(), (), (features,), "x")]
    for number, (op, size) in enumerate(ops):
        nodes.append(Node(op, (number,), (size,), f"n{number}"))
    return Network(tuple(nodes))


def linear(weight: list[list[float]], bias: list[float] | None = None) -> Network:
    """y = W x + b."""
    W = torch.tensor(weight)
    return chain(W.shape[1], (Linear(W, None if bias is None else torch.tensor(bias)), W.shape[0]))


def bump() -> Network:
    """y = (relu(x0 + x1 - 1.5), 0.25) on two inputs: the first output wins only near the corner (1, 1)."""
    hidden = Linear(torch.tensor([[1.0, 1.0]]), torch.tensor([-1.5]))
    last = Linear(torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, 0.25]))
    return chain(2, (hidden, 1), (Relu(), 1), (last, 2))
