"""Graphs that exporters write for one curve: read as that curve, whose planes hold for what the graph computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flint
import numpy as np
import onnx
import pytest
import torch
from flint import arb, fmpq
from onnx import helper

from bounds.crown import Crown
from bounds.errors import DomainError, UnsupportedOpError
from bounds.interval import Interval
from bounds.network import Network
from bounds.ops.curves import Curve
from bounds.region import Box
from tests.onnx_models import model

Step = tuple[str, Sequence[str], str]
ROOT, RATE, CUBE = (np.float32(v) for v in (math.sqrt(2), math.sqrt(2 / math.pi), 0.044715))
CONSTANTS = {
    "root": np.array(ROOT), "inverse": np.array(np.float32(math.sqrt(0.5))), "one": np.array(np.float32(1)), "half": np.array(np.float32(0.5)),
    "rate": np.array(RATE), "twice": np.array(2 * RATE), "cube": np.array(CUBE), "three": np.array(np.float32(3)),
    "far": np.array(np.float32(20)), "near": np.array(np.float32(3)), "beta": np.array(np.float32(0.7)), "quick": np.array(np.float32(1.702)),
    "other": np.array(np.float32(1.5)),
}  # fmt: skip


def read(steps: Sequence[Step]) -> Network:
    """The last step's output is the network's. Reading checks against ONNX Runtime."""
    nodes = [helper.make_node(op, list(inputs), [output]) for op, inputs, output in steps]
    used = {name for _, inputs, _ in steps for name in inputs}
    return Network.from_onnx(model(nodes, {"x": [1, 6]}, {k: v for k, v in CONSTANTS.items() if k in used}, opset=18))


def ops(network: Network) -> list[str]:
    return [type(node.op).__name__ for node in network.nodes if type(node.op).__name__ not in ("Input", "Reshape")]


ERF: list[Step] = [("Div", ["x", "root"], "a"), ("Erf", ["a"], "b"), ("Add", ["b", "one"], "c")]
CUBED: list[Step] = [("Pow", ["x", "three"], "p"), ("Mul", ["p", "cube"], "q"), ("Add", ["x", "q"], "r")]
TANH: list[Step] = [*CUBED, ("Mul", ["r", "rate"], "s"), ("Tanh", ["s"], "t"), ("Add", ["one", "t"], "c")]
CUT: list[Step] = [("Softplus", ["x"], "a"), ("Greater", ["x", "far"], "b")]
SCALED: list[Step] = [("Mul", ["x", "beta"], "u"), ("Softplus", ["u"], "s"), ("Div", ["s", "beta"], "d"), ("Greater", ["u", "far"], "b")]
ROOTED: list[Step] = [("Mul", ["x", "x"], "a"), ("Add", ["a", "one"], "b"), ("Sqrt", ["b"], "c")]

PATTERNS: dict[str, tuple[list[Step], list[str]]] = {
    "gelu, halved at the end": ([*ERF, ("Mul", ["x", "c"], "d"), ("Mul", ["d", "half"], "y")], ["Gelu"]),
    "gelu, gate halved": ([*ERF, ("Mul", ["half", "c"], "d"), ("Mul", ["x", "d"], "y")], ["Gelu"]),
    "gelu, input halved": ([*ERF, ("Mul", ["x", "half"], "h"), ("Mul", ["h", "c"], "y")], ["Gelu"]),
    "gelu, multiplied inside": (
        [("Mul", ["x", "inverse"], "a"), *ERF[1:], ("Mul", ["c", "x"], "d"), ("Mul", ["d", "half"], "y")], ["Gelu"],
    ),
    "twice gelu": ([*ERF, ("Mul", ["x", "c"], "y")], ["Gelu", "Scale"]),
    "tanh, halved at the end": ([*TANH, ("Mul", ["x", "c"], "d"), ("Mul", ["d", "half"], "y")], ["GeluTanh"]),
    "tanh, products for the cube": (
        [("Mul", ["x", "x"], "o"), ("Mul", ["o", "x"], "p"), *TANH[1:], ("Mul", ["x", "half"], "h"), ("Mul", ["h", "c"], "y")], ["GeluTanh"],
    ),
    "tanh as a sigmoid": ([*CUBED, ("Mul", ["r", "twice"], "s"), ("Sigmoid", ["s"], "t"), ("Mul", ["x", "t"], "y")], ["GeluTanh"]),
    "quick gelu": ([("Mul", ["x", "quick"], "a"), ("Sigmoid", ["a"], "b"), ("Mul", ["x", "b"], "y")], ["Scale", "Silu", "Divide"]),
    "scaled silu": ([("Mul", ["x", "quick"], "a"), ("Sigmoid", ["a"], "b"), ("Mul", ["a", "b"], "y")], ["Scale", "Silu"]),
    "softplus": ([*CUT, ("Where", ["b", "x", "a"], "y")], ["Softplus"]),
    "softplus with beta": ([*SCALED, ("Where", ["b", "x", "d"], "y")], ["Scale", "Softplus", "Divide"]),
    "mish": ([("Softplus", ["x"], "a"), ("Tanh", ["a"], "b"), ("Mul", ["b", "x"], "y")], ["Mish"]),
    "mish of a softplus that is cut off": ([*CUT, ("Where", ["b", "x", "a"], "c"), ("Tanh", ["c"], "d"), ("Mul", ["x", "d"], "y")], ["Mish"]),
    "softsign": ([("Abs", ["x"], "a"), ("Add", ["a", "one"], "b"), ("Div", ["x", "b"], "y")], ["Softsign"]),
    "one over a root": ([*ROOTED, ("Div", ["one", "c"], "y")], ["Power", "Shift", "Power", "Scale"]),
    "divided by a root": ([*ROOTED, ("Div", ["x", "c"], "y")], ["Power", "Shift", "Power", "Multiply"]),
    "cube": ([("Mul", ["x", "x"], "a"), ("Mul", ["a", "x"], "y")], ["Power"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_what_exporters_write_is_one_curve(name: str) -> None:
    steps, expected = PATTERNS[name]
    assert ops(read(steps)) == expected


def test_the_reciprocal_of_a_negative_power_stays_undefined_at_0() -> None:
    """1 / (1 / x^2) is x^2 everywhere else."""
    network = read([("Mul", ["x", "x"], "a"), ("Reciprocal", ["a"], "b"), ("Reciprocal", ["b"], "y")])
    assert ops(network) == ["Power", "Power"]
    around = Box(-torch.ones(1, 6), torch.ones(1, 6))
    with pytest.raises(DomainError):
        Crown()(network, around)


OTHERS: dict[str, list[Step]] = {
    "another divisor": [("Div", ["x", "other"], "a"), *ERF[1:], ("Mul", ["x", "c"], "y")],
    "another rate": [*CUBED, ("Mul", ["r", "other"], "s"), *TANH[4:], ("Mul", ["x", "c"], "y")],
    "another cube": [CUBED[0], ("Mul", ["p", "other"], "q"), *TANH[2:], ("Mul", ["x", "c"], "y")],
    "not one": [*ERF[:2], ("Add", ["b", "half"], "c"), ("Mul", ["x", "c"], "y")],
    "another factor": [*ERF, ("Mul", ["x", "other"], "h"), ("Mul", ["h", "c"], "y")],
    "tanh alone": [("Tanh", ["x"], "a"), ("Mul", ["x", "a"], "y")],
    "softplus alone": [("Softplus", ["x"], "a"), ("Mul", ["x", "a"], "y")],
    "mish of another variable": [("Neg", ["x"], "h"), ("Softplus", ["h"], "a"), ("Tanh", ["a"], "b"), ("Mul", ["x", "b"], "y")],
    "another variable": [*ERF, ("Neg", ["x"], "h"), ("Mul", ["h", "c"], "y")],
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_resembles_a_curve_stays_a_product(name: str) -> None:
    assert "Multiply" in ops(read(OTHERS[name]))


REFUSED: dict[str, list[Step]] = {
    "cut off too early": [CUT[0], ("Greater", ["x", "near"], "b"), ("Where", ["b", "x", "a"], "y")],
    "the wrong way round": [*CUT, ("Where", ["b", "a", "x"], "y")],
    "another input": [*CUT, ("Neg", ["x"], "n"), ("Where", ["b", "n", "a"], "y")],
    "a constant": [*CUT, ("Where", ["b", "one", "a"], "y")],
    "not divided": [*SCALED[:2], SCALED[3], ("Where", ["b", "x", "s"], "y")],
    "a condition by itself": [*CUT, ("Not", ["b"], "n"), ("Where", ["n", "x", "a"], "y")],
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_selections_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedOpError, match="not supported"):
        read(REFUSED[name])


def test_a_comparison_that_is_no_condition_is_refused() -> None:
    """Read as a number by a cast."""
    nodes = [helper.make_node("Greater", ["x", "far"], ["b"]), helper.make_node("Cast", ["b"], ["y"], to=onnx.TensorProto.FLOAT)]
    with pytest.raises(UnsupportedOpError, match="supported"):
        Network.from_onnx(model(nodes, {"x": [1, 6]}, {"far": CONSTANTS["far"]}, opset=18))


def _exact(value: float | np.floating) -> fmpq:
    return fmpq(*float(value).as_integer_ratio())


def _gelu(x: arb) -> arb:
    return x * (1 + (x / arb(_exact(ROOT))).erf()) / 2


def _tanh(x: arb) -> arb:
    return x * (1 + (arb(_exact(RATE)) * (x + arb(_exact(CUBE)) * x * x * x)).tanh()) / 2


def _softplus(x: arb) -> arb:
    return x if x > 20 else x.exp().log1p()


@pytest.mark.parametrize(
    "name, function",
    [("gelu, halved at the end", _gelu), ("tanh, halved at the end", _tanh), ("softplus", _softplus)],
    ids=["gelu", "tanh", "softplus"],
)
def test_planes_hold_for_what_the_graph_computes(name: str, function: Callable[[arb], arb]) -> None:
    """With the constants as they are stored, in arbitrary precision; without the curve's stray some points lie outside."""
    flint.ctx.prec = 128
    op = next(node.op for node in read(PATTERNS[name][0]).nodes if isinstance(node.op, Curve))
    assert 0 < op.stray < 1e-7
    points = [0.0, *np.linspace(-6, 6, 121), *np.linspace(19.5, 21, 61)]
    x = Interval(torch.tensor([points], dtype=torch.float64), torch.tensor([points], dtype=torch.float64))
    flat = torch.zeros_like(x.lower)
    held, missed = op.fit(x, flat, flat), type(op)().fit(x, flat, flat)
    outside = 0
    for k, point in enumerate(points):
        value = function(arb(_exact(point)))
        assert _exact(float(held.lower_intercept[0, k])) <= value <= _exact(float(held.upper_intercept[0, k]))
        outside += not _exact(float(missed.lower_intercept[0, k])) <= value <= _exact(float(missed.upper_intercept[0, k]))
    assert outside > 10
