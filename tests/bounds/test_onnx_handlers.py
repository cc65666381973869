"""Every supported ONNX operator and attribute against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from bounds.onnx_handlers import HANDLERS
from bounds.onnx_import import check_import, import_onnx
from tests.onnx_models import I, R, model


def F(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def M(*values: int) -> np.ndarray:
    return np.array(values, np.bool_)


@dataclass(frozen=True)
class Case:
    """One node `op` reading x, or a mixture of computed inputs ("x", "z" = another branch) and constants."""

    op: str
    shape: Sequence[int]
    constants: Sequence[np.ndarray | str | None] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    first: bool = True
    outputs: int = 1

    def __str__(self) -> str:
        return f"{self.op}-{self.opset}{tuple(self.shape)}{self.attributes}"

    def model(self) -> bytes:
        """x (and the branches z = 2x, w = the first entries of x along axis 1, p = x^2 + 1/2) -> op -> the first outputs joined by Concat if
        several."""
        names, constants = (["x"] if self.first else []), {}
        for i, value in enumerate(self.constants):
            names.append(value if isinstance(value, str) else "" if value is None else f"c{i}")
            if isinstance(value, np.ndarray):
                constants[f"c{i}"] = value
        outs = [f"o{i}" for i in range(self.outputs)]
        nodes = [helper.make_node("Add", ["x", "x"], ["z"], "double"), helper.make_node("ReduceSum", ["x", "one"], ["w"], "sum")]
        if self.opset < 13:
            nodes[1] = helper.make_node("ReduceSum", ["x"], ["w"], "sum", axes=[1])
        nodes += [helper.make_node("Mul", ["x", "x"], ["square"], "square"), helper.make_node("Add", ["square", "half"], ["p"], "positive")]
        nodes.append(helper.make_node(self.op, names, outs, "node", **self.attributes))
        last = helper.make_node("Concat", outs, ["y"], axis=1) if self.outputs > 1 else helper.make_node("Identity", outs, ["y"])
        return model([*nodes, last], {"x": self.shape}, {"one": I(1), "half": np.array(0.5, np.float32), **constants}, opset=self.opset)


IMAGE, ROW = (1, 2, 7, 6), (1, 6)
CASES = [
    Case("Abs", ROW),
    Case("Add", IMAGE, [R(2, 1, 1)]),
    Case("Add", IMAGE, ["z"]),
    Case("Add", IMAGE, ["w"]),
    Case("Add", ROW, [R(3, 1, 1)]),
    Case("Add", ROW, [R(4, 6), "x"], first=False),
    Case("Atan", ROW),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [2, 3], "strides": [2, 2]}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 0, 1, 2]}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    Case(
        "AveragePool",
        (1, 2, 8, 7),
        attributes={"kernel_shape": [3, 3], "strides": [3, 2], "pads": [0, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1},
    ),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "auto_pad": "VALID"}),
    Case("AveragePool", (1, 2, 9), attributes={"kernel_shape": [3], "strides": [2]}),
    Case("AveragePool", (1, 1, 4, 5, 4), attributes={"kernel_shape": [2, 2, 3]}),
    Case("BatchNormalization", IMAGE, [R(2), R(2), R(2), np.abs(R(2))]),
    Case("BatchNormalization", (1, 3), [R(3), R(3), R(3), np.abs(R(3))], {"epsilon": 0.01, "momentum": 0.8}),
    Case("BatchNormalization", (1, 3, 4), [R(3), R(3), R(3), np.abs(R(3))], {}, 9),
    Case("Cast", ROW, attributes={"to": TensorProto.FLOAT}),
    Case("CastLike", ROW, ["z"]),
    Case("CastLike", ROW, [R(2)]),
    Case("Celu", ROW, attributes={"alpha": 0.4}),
    Case("Celu", ROW),
    Case("Clip", ROW, [np.array(-0.5, np.float32), np.array(0.75, np.float32)]),
    Case("Clip", ROW, [None, np.array(0.75, np.float32)]),
    Case("Clip", ROW, attributes={"min": 0.0, "max": 6.0}, opset=9),
    Case("Clip", ROW, attributes={"min": -0.25}, opset=9),
    Case("Concat", IMAGE, [R(1, 2, 3, 6), "z"], {"axis": 2}),
    Case("Concat", IMAGE, [R(1, 2, 3, 6), "x", R(1, 2, 2, 6), "z"], {"axis": -2}, first=False),
    Case("Concat", ROW, ["z"], {"axis": 1}),
    Case("Conv", IMAGE, [R(4, 2, 3, 3), R(4)]),
    Case(
        "Conv", IMAGE, [R(4, 1, 3, 2)], {"group": 2, "strides": [2, 1], "dilations": [2, 1], "pads": [1, 0, 2, 1], "kernel_shape": [3, 2]}
    ),
    Case("Conv", IMAGE, [R(3, 2, 3, 3), R(3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", IMAGE, [R(3, 2, 2, 4), R(3)], {"auto_pad": "SAME_LOWER"}),
    Case("Conv", IMAGE, [R(3, 2, 2, 4)], {"auto_pad": "VALID"}),
    Case("Conv", (1, 2, 9), [R(3, 2, 4), R(3)], {"strides": [2], "pads": [2, 1]}),
    Case("Conv", (1, 1, 4, 5, 4), [R(2, 1, 2, 2, 3), R(2)]),
    Case("ConvTranspose", IMAGE, [R(2, 3, 3, 3), R(3)], {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    Case("ConvTranspose", IMAGE, [R(2, 2, 3, 2)], {"group": 2, "dilations": [2, 1], "strides": [1, 3], "pads": [0, 1, 1, 0]}),
    Case("ConvTranspose", IMAGE, [R(2, 3, 3, 3), R(3)], {"strides": [2, 2], "output_shape": [14, 12]}),
    Case("ConvTranspose", IMAGE, [R(2, 3, 3, 3), R(3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", IMAGE, [R(2, 3, 4, 3), R(3)], {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("ConvTranspose", (1, 2, 5), [R(2, 3, 4), R(3)], {"strides": [2]}),
    Case("Cos", ROW),
    Case("DepthToSpace", (1, 8, 3, 2), attributes={"blocksize": 2}),
    Case("DepthToSpace", (1, 8, 3, 2), attributes={"blocksize": 2, "mode": "CRD"}),
    Case("Div", ROW, [R(6) + 4]),
    Case("Div", IMAGE, [np.full((1, 2, 1, 1), 0.3081, np.float32)]),
    Case("Div", ROW, ["p"]),
    Case("Div", ROW, [R(6), "p"], first=False),
    Case("Div", ROW, ["x", "p"], first=False),
    Case("Div", ROW, [R(3, 1, 6), "p"], first=False),
    Case("Dropout", ROW),
    Case("Dropout", ROW, attributes={"ratio": 0.4}, opset=7),
    Case("Dropout", ROW, [np.array(0.3, np.float32), np.array(False)]),
    Case("Elu", ROW),
    Case("Elu", ROW, attributes={"alpha": 1.6}),
    Case("Erf", ROW),
    Case("Exp", ROW),
    Case("Expand", (1, 3, 1), [I(2, 1, 4)]),
    Case("Expand", (1, 3), [I(2, 1, 1)]),
    Case("Flatten", IMAGE),
    Case("Flatten", IMAGE, attributes={"axis": 2}),
    Case("Flatten", IMAGE, attributes={"axis": -1}),
    Case("Flatten", IMAGE, attributes={"axis": 0}),
    Case("Gather", IMAGE, [np.array([[0, -1], [3, 3]])], {"axis": 2}),
    Case("Gather", IMAGE, [np.array(1)], {"axis": 1}),
    Case("Gelu", ROW, opset=20),
    Case("Gelu", ROW, attributes={"approximate": "tanh"}, opset=20),
    Case("Gemm", ROW, [R(6, 4), R(4)]),
    Case("Gemm", ROW, [R(4, 6), R(1, 4)], {"transB": 1, "alpha": 0.3, "beta": 1.7}),
    Case("Gemm", ROW, [R(4, 6)], {"transB": 1, "alpha": 2.0}),
    Case("Gemm", ROW, [R(1, 4), R(6, 4)], {"transA": 1}),
    Case("Gemm", (5, 3), [R(2, 5), "x", R(2, 1)], first=False),
    Case("Gemm", (4, 3), [R(4, 2), "x", R(3)], {"transA": 1, "beta": 0.5}, first=False),
    Case("Gemm", (3, 4), [R(5, 4), "x"], {"transB": 1}, first=False),
    Case("Gemm", ROW, [R(6, 6), "z"], {"beta": 0.5}),
    Case("GlobalAveragePool", IMAGE),
    Case("GlobalMaxPool", IMAGE),
    Case("GroupNormalization", (1, 4, 3, 2), [R(2), R(2)], {"num_groups": 2}, opset=18),
    Case("GroupNormalization", (1, 4, 3, 2), [R(4), R(4)], {"num_groups": 2, "epsilon": 0.01}, opset=21),
    Case("HardSigmoid", ROW),
    Case("HardSigmoid", ROW, attributes={"alpha": 0.7, "beta": 0.1}),
    Case("HardSwish", ROW, opset=14),
    Case("Identity", ROW),
    Case("InstanceNormalization", IMAGE, [R(2), R(2)]),
    Case("InstanceNormalization", (1, 3, 5), [R(3), R(3)], {"epsilon": 0.01}),
    Case("LayerNormalization", (1, 3, 4), [R(4), R(4)]),
    Case("LayerNormalization", (1, 3, 4), [R(3, 4)], {"axis": 1, "epsilon": 0.01}),
    Case("LeakyRelu", ROW),
    Case("LeakyRelu", ROW, attributes={"alpha": 0.3}),
    Case("Log", ROW, ["p"], first=False),
    Case("LogSoftmax", (1, 3, 4)),
    Case("LogSoftmax", (1, 3, 4), attributes={"axis": 1}),
    Case("MatMul", ROW, [R(6, 4)]),
    Case("MatMul", (1, 3, 3), ["z"]),
    Case("MatMul", (1, 2, 3, 3), ["w"]),
    Case("MatMul", (1, 2, 3, 3), ["w", "x"], first=False),
    Case("MatMul", (1, 3, 6), [R(6, 4)]),
    Case("MatMul", (3, 6), [R(1, 6, 4)]),
    Case("MatMul", (1, 5, 2), [R(3, 5), "x"], first=False),
    Case("MatMul", (1, 5, 2), [R(1, 3, 5), "x"], first=False),
    Case("MatMul", (1, 3, 6), [R(6)]),
    Case("MatMul", (1, 5, 2), [R(5), "x"], first=False),
    Case("Max", ROW, [R(6), "z"]),
    Case("Max", ROW, [np.array(0.2, np.float32)]),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [3, 2], "strides": [2, 1], "pads": [0, 0, 2, 1], "dilations": [2, 1]}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [2, 4], "strides": [2, 4], "ceil_mode": 1}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("MaxPool", (1, 2, 9), attributes={"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    Case("Mean", ROW, ["z", R(6)]),
    Case("Min", ROW, [R(6), "z"]),
    Case("Mish", ROW, opset=18),
    Case("Mul", IMAGE, [R(2, 1, 6)]),
    Case("Mul", ROW, [R(3, 1, 6), "x"], first=False),
    Case("Mul", IMAGE, ["z"]),
    Case("Mul", IMAGE, ["w"]),
    Case("Mul", ROW, ["x"]),
    Case("Neg", ROW),
    Case("PRelu", IMAGE, [R(2, 1, 1)]),
    Case("PRelu", ROW, [R(1)]),
    Case("Pad", IMAGE, [I(0, 0, 1, 2, 0, 0, 3, 0)]),
    Case("Pad", IMAGE, [I(0, 0, 1, -2, 0, 0, 0, 1), np.array(0.5, np.float32)]),
    Case("Pad", IMAGE, attributes={"pads": [0, 1, 1, 2, 0, 0, 3, 0], "value": -1.5}, opset=9),
    Case("Pad", IMAGE, [I(0, 0, 2, 1, 0, 0, 3, 2)], {"mode": "reflect"}),
    Case("Pad", IMAGE, [I(0, 0, 2, 1, 0, 0, 3, 2)], {"mode": "edge"}),
    Case("Pad", IMAGE, [I(1, 2, 0, 1), None, I(3, -2)], opset=18),
    Case("Pow", ROW, [np.array(2.0, np.float32)]),
    Case("Pow", ROW, [np.full((1, 1, 6), 3.0, np.float32)]),
    Case("Pow", ROW, [I(4)]),
    Case("Pow", ROW, [np.array(1.0, np.float32)]),
    Case("Pow", ROW, ["p", np.array(-1.5, np.float32)], first=False),
    Case("Reciprocal", ROW, ["p"], first=False),
    Case("ReduceL1", IMAGE, attributes={"axes": [1, -1]}),
    Case("ReduceL2", IMAGE, attributes={"axes": [2], "keepdims": 0}),
    Case("ReduceMax", IMAGE, attributes={"axes": [1, -1]}),
    Case("ReduceMax", IMAGE, attributes={"axes": [2], "keepdims": 0}),
    Case("ReduceMean", IMAGE, attributes={"axes": [-1, 2], "keepdims": 0}),
    Case("ReduceMean", IMAGE, [I(2, 3)], opset=18),
    Case("ReduceMin", IMAGE, attributes={"axes": [1, -1]}),
    Case("ReduceMin", IMAGE, attributes={"axes": [2], "keepdims": 0}),
    Case("ReduceSum", IMAGE, [I(1)], {"keepdims": 0}),
    Case("ReduceSum", IMAGE),
    Case("ReduceSum", IMAGE, attributes={"noop_with_empty_axes": 1}),
    Case("ReduceSum", IMAGE, attributes={"axes": [3]}, opset=11),
    Case("ReduceSumSquare", IMAGE, attributes={"axes": [1, 3], "keepdims": 0}),
    Case("Relu", ROW),
    Case("Reshape", IMAGE, [I(0, -1)]),
    Case("Reshape", IMAGE, [I(1, 6, -1, 2)]),
    Case("Reshape", IMAGE, [I(1, 14, 6)], {"allowzero": 1}),
    Case("Resize", IMAGE, [None, F(1, 1, 2, 3)]),
    Case("Resize", IMAGE, [None, F(1, 1, 2, 1.5)], {"mode": "linear"}),
    Case("Resize", IMAGE, [None, F(1, 1, 0.5, 0.6)], {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
    Case("Resize", IMAGE, [None, None, I(1, 2, 5, 9)], {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    Case("Resize", IMAGE, [None, None, I(1, 2, 11, 13)], {"mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel"}),
    Case("Resize", IMAGE, [None, None, I(1, 2, 10, 4)], {"nearest_mode": "ceil", "coordinate_transformation_mode": "asymmetric"}),
    Case("Resize", (1, 2, 5), [None, F(1, 1, 2)], {"mode": "linear"}),
    Case("Resize", IMAGE, [F(1, 1, 2, 2)], opset=10),
    Case("Selu", ROW),
    Case("Selu", ROW, attributes={"alpha": 1.2, "gamma": 0.7}),
    Case("Sigmoid", ROW),
    Case("Sign", ROW),
    Case("Sin", ROW),
    Case("Slice", IMAGE, [I(1, 0), I(6, 4), I(2, 3), I(2, 3)]),
    Case("Slice", IMAGE, [I(-1), I(-1000), I(-1), I(-2)]),
    Case("Slice", IMAGE, [I(5), I(0), I(2), I(-1)]),
    Case("Slice", IMAGE, [I(0, 1), I(1, 2)]),
    Case("Slice", IMAGE, attributes={"starts": [1, -3], "ends": [2147483647, -1], "axes": [2, 3]}, opset=9),
    Case("Softmax", (1, 3, 4)),
    Case("Softmax", (1, 3, 4), attributes={"axis": 1}),
    Case("Softmax", (2, 3, 4), opset=11),
    Case("Softmax", (1, 3, 4), attributes={"axis": 2}, opset=9),
    Case("Softplus", ROW),
    Case("Softsign", ROW),
    Case("SpaceToDepth", (1, 2, 6, 4), attributes={"blocksize": 2}),
    Case("Split", ROW, attributes={"axis": 1}, outputs=3),
    Case("Split", ROW, [I(1, 3, 2)], {"axis": -1}, outputs=3),
    Case("Split", ROW, attributes={"axis": 1, "split": [4, 2]}, opset=11, outputs=2),
    Case("Split", (1, 7), attributes={"axis": 1, "num_outputs": 3}, opset=18, outputs=3),
    Case("Sqrt", ROW, ["p"], first=False),
    Case("Squeeze", (1, 3, 1, 2, 1), [I(2, -1)]),
    Case("Squeeze", (1, 3, 1, 2, 1)),
    Case("Squeeze", (1, 3, 1, 2), attributes={"axes": [2]}, opset=11),
    Case("Sub", IMAGE, [R(7, 6)]),
    Case("Sub", ROW, [R(6), "x"], first=False),
    Case("Sub", IMAGE, ["w"]),
    Case("Sub", IMAGE, ["w", "x"], first=False),
    Case("Sum", ROW, ["z", R(6), "w"]),
    Case("Swish", ROW, opset=24),
    Case("Swish", ROW, attributes={"alpha": 0.7}, opset=24),
    Case("Tanh", ROW),
    Case("Tile", (1, 2, 3), [I(1, 2, 3)]),
    Case("Transpose", IMAGE),
    Case("Transpose", IMAGE, attributes={"perm": [0, 3, 1, 2]}),
    Case("Upsample", IMAGE, [F(1, 1, 2, 2)], opset=9),
    Case("Upsample", IMAGE, attributes={"mode": "linear", "scales": [1.0, 1.0, 2.0, 2.0]}, opset=7),
    Case("Unsqueeze", ROW, [I(0, -1)]),
    Case("Unsqueeze", ROW, attributes={"axes": [2]}, opset=11),
    Case("Where", ROW, [M(1, 0, 1, 1, 0, 0), "x", "z"], first=False),
    Case("Where", ROW, [M(1, 0, 1, 1, 0, 0), R(6), "x"], first=False),
    Case("Where", ROW, [M(1, 0, 1, 1, 0, 0), "x", F(0.5)], first=False),
]


def test_every_handler_has_a_case() -> None:
    # a comparison has no value of its own: see test_onnx_patterns
    assert {case.op for case in CASES} == set(HANDLERS) - {"Greater"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_matches_onnx_runtime(case: Case) -> None:
    network = import_onnx(case.model(), check=False)
    check_import(network, "the model")
    x = np.random.default_rng(1).standard_normal((5, *network.input_shape)).astype(np.float32)
    expected = network.original(x)
    got = network(torch.from_numpy(x))
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(network.to(torch.float64)(torch.from_numpy(x).double()).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "left, right", [((4,), (4, 3)), ((3, 4), (4,)), ((4,), (4,)), ((4,), (2, 4, 3)), ((2, 3, 4), (4, 5)), ((1, 3, 4), (2, 4, 5))]
)
def test_products_of_computed_tensors_of_every_rank(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """x is cut into two pieces of any shape, whose product is the output."""
    sizes = [int(np.prod(shape)) for shape in (left, right)]
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=1),
        helper.make_node("Reshape", ["a", "left"], ["l"]),
        helper.make_node("Reshape", ["b", "right"], ["r"]),
        helper.make_node("MatMul", ["l", "r"], ["m"]),
        helper.make_node("Reshape", ["m", "flat"], ["y"]),
    ]
    network = import_onnx(
        model(nodes, {"x": (1, sum(sizes))}, {"sizes": I(*sizes), "left": I(*left), "right": I(*right), "flat": I(1, -1)})
    )
    x = np.random.default_rng(1).standard_normal((5, sum(sizes))).astype(np.float32)
    np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), network.original(x), rtol=1e-5, atol=1e-5)
