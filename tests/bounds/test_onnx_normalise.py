from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bounds.crown import Crown
from bounds.errors import ModelError, ShapeError
from bounds.network import Network
from bounds.onnx_normalise import normalised
from bounds.region import LpBall


def model(shape: tuple[int, ...], elem_type: int = TensorProto.FLOAT) -> bytes:
    """y = relu(flat(x)) W + flat(x) W: the input is read twice."""
    size = math.prod(shape)
    W = np.random.default_rng(0).normal(size=(size, 3)).astype(helper.tensor_dtype_to_np_dtype(elem_type))
    nodes = [
        helper.make_node("Flatten", ["x"], ["normalise_mean"]),  # a name that the added nodes would like to have
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Flatten", ["r"], ["s"]),
        helper.make_node("Add", ["s", "normalise_mean"], ["t"]),
        helper.make_node("MatMul", ["t", "W"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", elem_type, ["batch", *shape])
    y = helper.make_tensor_value_info("y", elem_type, ["batch", 3])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(W, "W")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


CASES = [
    ((3, 4, 4), (0.5, 0.25, 0.1), (0.2, 0.3, 0.4), (3, 1, 1)),
    ((4, 4, 3), (0.5, 0.25, 0.1), (0.2, 0.3, 0.4), (3,)),
    ((1, 4, 4), (0.1307,), (0.3081,), ()),
    ((48,), (0.1307,), (0.3081,), ()),
    ((3,), (0.5, 0.25, 0.1), (0.2, 0.3, 0.4), (3,)),
]


@pytest.mark.parametrize("shape, mean, std, arranged", CASES)
@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_it_is_the_model_of_the_normalised_input(
    shape: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...], arranged: tuple[int, ...], elem_type: int
) -> None:
    plain = Network.from_onnx(model(shape, elem_type))
    scaled = Network.from_onnx(normalised(model(shape, elem_type), mean, std))
    x = np.random.default_rng(1).uniform(size=(5, *shape))
    by_hand = (x - np.array(mean).reshape(arranged)) / np.array(std).reshape(arranged)
    assert scaled.original is not None
    assert plain.original is not None
    assert scaled.input_shape == shape
    assert np.allclose(scaled.original(x), plain.original(by_hand), rtol=1e-5, atol=1e-5)
    assert np.allclose(
        scaled.to(torch.float64)(torch.from_numpy(x)), plain.to(torch.float64)(torch.from_numpy(by_hand)), rtol=1e-5, atol=1e-5
    )


def test_bounds_enclose_the_original() -> None:
    network = Network.from_onnx(normalised(model((3, 4, 4)), (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)))
    x = torch.full((1, 3, 4, 4), 0.5)
    bounds = Crown()(network, LpBall(x, 0.1, math.inf, domain=(0.0, 1.0)))
    points = np.random.default_rng(2).uniform(0.4, 0.6, (200, 3, 4, 4)).astype(np.float32)
    assert network.original is not None
    outputs = network.original(points)
    assert np.all(outputs >= bounds.objective.lower[0].numpy())
    assert np.all(outputs <= bounds.objective.upper[0].numpy())


@pytest.mark.parametrize(
    "mean, std, error, told",
    [
        ((0.5,), (0.0,), ModelError, "std positive"),
        ((0.5,), (-1.0,), ModelError, "std positive"),
        ((math.nan,), (1.0,), ModelError, "finite"),
        ((0.5, 0.5), (1.0, 1.0), ShapeError, "no axis of 2 channels"),
    ],
)
def test_what_does_not_fit_is_refused(mean: tuple[float, ...], std: tuple[float, ...], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        normalised(model((3, 4, 4)), mean, std)


def test_models_without_one_floating_input_are_refused(tmp_path: Path) -> None:
    proto = onnx.load_model_from_string(model((3,)))
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    with pytest.raises(ModelError, match="2 inputs"):
        normalised(proto.SerializeToString(), (0.5,), (1.0,))
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    x, y = helper.make_tensor_value_info("x", TensorProto.INT64, [1, 3]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    integer = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(ModelError, match="int64 inputs"):
        normalised(integer.SerializeToString(), (0.5,), (1.0,))
    with pytest.raises(ModelError, match="cannot be read"):
        normalised(tmp_path / "none.onnx", (0.5,), (1.0,))
