from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from bounds.errors import ModelError
from bounds.onnx_survey import survey


def model(nodes: list[object]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((3, 4), np.float32), "W")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("odd", 1)], ir_version=8
    ).SerializeToString()


def test_rows_tell_what_stands_in_the_way() -> None:
    rows = survey(
        model(
            [
                helper.make_node("Erf", ["W"], ["V"], name="folded"),
                helper.make_node("MatMul", ["x", "V"], ["h"], name="product"),
                helper.make_node("Hardmax", ["h"], ["g"], name="unknown"),
                helper.make_node("Relu", ["g"], ["r"], name="foreign", domain="odd"),
                helper.make_node("Relu", ["r"], ["y"]),
            ]
        )
    )
    assert [row.name for row in rows] == ["folded", "product", "unknown", "foreign", "y"]
    assert [row.supported for row in rows] == [True, True, False, False, True]
    assert [row.parameters for row in rows] == [12, 0, 0, 0, 0]
    assert rows[1].shape == ("batch", 4)


def test_refuses_what_is_no_model() -> None:
    with pytest.raises(ModelError, match="ONNX"):
        survey(b"nothing")
    with pytest.raises(ModelError, match="no nodes"):
        survey(model([]))
