"""Reading models: batch axes, folding, fusing, files, and what is said about models that cannot be used."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from bounds.errors import ImportMismatchError, ModelError, NumericsError, ShapeError, UnsupportedOpError
from bounds.network import Network
from bounds.onnx_import import check_import, import_onnx, import_torch
from bounds.ops.affine import BatchNormalization, LeftLinear, Linear, Shift
from bounds.ops.base import Input
from bounds.ops.convolution import Conv
from bounds.ops.shape import Reshape
from tests.onnx_models import I, R, model


def linear_model(*batch: int | str | None, nodes: Sequence[onnx.NodeProto] = (), **options: Any) -> bytes:
    """y = x W with x of shape (batch, 3, 4) flattened, batch axis as given."""
    nodes = nodes or [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "W"], ["y"], "product")]
    return model(nodes, {"x": [*batch, 3, 4]}, {"W": np.arange(24, dtype=np.float32).reshape(12, 2)}, [("y", [*batch, 2])], **options)


@pytest.mark.parametrize("batch", ["N", None, 1, 64], ids=str)
def test_batch_axis_is_stripped(batch: int | str | None) -> None:
    network = import_onnx(linear_model(batch))
    assert (network.input_shape, network.output_shape) == ((3, 4), (2,))
    x = R(5, 3, 4)
    np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), network.original(x), rtol=1e-5, atol=1e-4)


def test_batch_size_written_into_a_reshape() -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["f"]), helper.make_node("MatMul", ["f", "W"], ["y"])]
    data = model(nodes, {"x": [8, 3, 4]}, {"shape": I(8, 12), "W": R(12, 2)}, [("y", [8, 2])])
    network = import_onnx(data)
    assert (network.input_shape, network.output_shape, network.original.copies) == ((3, 4), (2,), 8)
    x = R(5, 3, 4)
    np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), network.original(x), rtol=1e-5, atol=1e-5)


def test_first_axis_that_is_no_batch_is_kept() -> None:
    nodes = [helper.make_node("MatMul", ["W", "x"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    network = import_onnx(model(nodes, {"x": [6, 1]}, {"W": R(4, 6), "b": R(4, 1)}, [("y", [4, 1])]))
    assert (network.input_shape, network.output_shape) == ((6, 1), (4, 1))
    assert [type(node.op) for node in network.nodes] == [Input, LeftLinear]


def test_column_input_that_would_broadcast_is_kept() -> None:
    """Taken as a batch of one, (5, 1) - (5, 1) would broadcast silently."""
    nodes = [helper.make_node("Sub", ["x", "c"], ["d"]), helper.make_node("MatMul", ["W", "d"], ["y"])]
    network = import_onnx(model(nodes, {"x": [5, 1]}, {"c": R(5, 1), "W": R(1, 5)}, [("y", [1, 1])]))
    assert network.input_shape == (5, 1)


def test_axis_that_a_constant_shares_is_no_batch() -> None:
    """The output's first axis has the input's size too, but with one of it the constant would bring five back."""
    network = import_onnx(model([helper.make_node("Sub", ["x", "c"], ["y"])], {"x": [5, 1]}, {"c": R(5, 1)}, [("y", [5, 1])]))
    assert (network.input_shape, network.output_shape) == ((5, 1), (5, 1))


def test_rank_one_input() -> None:
    network = import_onnx(model([helper.make_node("MatMul", ["x", "W"], ["y"])], {"x": [5]}, {"W": R(5, 3)}))
    assert (network.input_shape, network.output_shape) == ((5,), (3,))


def test_linear_chain_becomes_one_node_with_the_name_of_the_product() -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "W"], ["p"], "product"),
        helper.make_node("Add", ["b", "p"], ["a"]),
        helper.make_node("Identity", ["a"], ["y"]),
        helper.make_node("Softmax", ["a"], ["unused"]),
    ]
    W, b = np.arange(24, dtype=np.float32).reshape(12, 2), np.array([5.0, -1.0], np.float32)
    network = import_onnx(model(nodes, {"x": ["N", 3, 4]}, {"W": W, "b": b}))
    assert [type(node.op) for node in network.nodes] == [Input, Reshape, Linear, Reshape]
    assert network.nodes[2].name == "product"
    np.testing.assert_array_equal(network(torch.ones(3, 4)).numpy(), W.sum(axis=0) + b)


def test_a_second_bias_is_not_folded() -> None:
    nodes = [helper.make_node("Conv", ["x", "W", "b"], ["c"]), helper.make_node("Add", ["c", "t"], ["y"])]
    network = import_onnx(model(nodes, {"x": [1, 2, 4, 4]}, {"W": R(3, 2, 2, 2), "b": R(3), "t": R(3, 1, 1)}))
    assert [type(node.op) for node in network.nodes][2:4] == [Conv, Shift]


def test_a_product_read_twice_keeps_its_value() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["p"]),
        helper.make_node("Dropout", ["p"], ["d"]),
        helper.make_node("Add", ["d", "b"], ["a"]),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("Sub", ["a", "r"], ["y"]),
    ]
    import_onnx(model(nodes, {"x": [1, 5]}, {"W": R(5, 5), "b": R(5)}))


def test_shape_arithmetic_folds_away() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["f"]),
        helper.make_node("Shape", ["f"], ["t"], start=1),
        helper.make_node("ConstantOfShape", ["t"], ["ones"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [3.0])),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Pow", ["ones", "two"], ["nine"]),
        helper.make_node("Add", ["f", "nine"], ["y"]),
    ]
    constants = {"zero": np.array(0), "axis": I(0), "rest": I(-1)}
    network = import_onnx(model(nodes, {"x": ["N", 2, 3]}, constants))
    assert [type(node.op) for node in network.nodes] == [Input, Reshape, Shift, Reshape]
    np.testing.assert_array_equal(network(torch.zeros(2, 3)).numpy(), np.full(6, 9.0))


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_precisions(dtype: type) -> None:
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("MatMul", ["x", "W"], ["p"]), helper.make_node("Neg", ["p"], ["n"]), helper.make_node("Relu", ["n"], ["y"])]
    network = import_onnx(model(nodes, {"x": [1, 4]}, {"W": R(4, 3).astype(dtype)}, dtype=code))
    assert network.original.input_dtype == dtype
    assert network.dtype == (torch.float64 if dtype == np.float64 else torch.float32)
    assert network.original(np.ones((2, 4))).shape == (2, 3)


def test_a_narrow_copy_leads_back_to_the_stored_weights() -> None:
    W = np.full((2, 1), 0.1)
    network = import_onnx(model([helper.make_node("MatMul", ["x", "W"], ["y"])], {"x": [1, 2]}, {"W": W}, dtype=TensorProto.DOUBLE))
    single = network.to(torch.float32)
    assert single.dtype == torch.float32
    again = single.to(torch.float64).nodes[2].op
    assert isinstance(again, Linear)
    assert again.weight.tolist() == [[0.1, 0.1]]


def test_original_can_be_sent_to_another_process() -> None:
    original = import_onnx(linear_model("N")).original
    x = R(2, 3, 4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(original))(x), original(x))


def test_gzipped_and_plain_files(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(linear_model("N"))
    (tmp_path / "a.onnx.gz").write_bytes(gzip.compress(linear_model("N")))
    x = torch.ones(3, 4)
    plain, zipped = (Network.from_onnx(tmp_path / name)(x) for name in ("a.onnx", "a.onnx.gz"))
    assert torch.equal(plain, zipped)


def test_external_weights(tmp_path: Path) -> None:
    proto = onnx.load_model_from_string(linear_model("N"))
    path = tmp_path / "a.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="a.bin", size_threshold=0)
    expected = import_onnx(linear_model("N"))(torch.ones(3, 4))
    assert torch.equal(import_onnx(path)(torch.ones(3, 4)), expected)
    with pytest.raises(ModelError, match="give the path"):
        import_onnx(path.read_bytes())
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ModelError, match=r"a\.onnx.*external files that cannot be read"):
        import_onnx(path)


def test_missing_file() -> None:
    with pytest.raises(ModelError, match=r"'no/such.onnx' cannot be read: No such file"):
        import_onnx("no/such.onnx")


@pytest.mark.parametrize("keep", [0, 1, 20, 100, -1])
@pytest.mark.parametrize("zipped", [False, True])
def test_truncated_file(tmp_path: Path, keep: int, zipped: bool) -> None:
    data = gzip.compress(linear_model("N")) if zipped else linear_model("N")
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[:keep])
    with pytest.raises(ModelError, match=r"cut\.onnx"):
        import_onnx(path)


def test_text_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_text("(declare-const X_0 Real)")
    with pytest.raises(ModelError, match=r"a\.onnx"):
        import_onnx(path)


def test_initializer_shorter_than_its_shape() -> None:
    proto = onnx.load_model_from_string(linear_model("N"))
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ModelError, match="'W' is corrupt"):
        import_onnx(proto.SerializeToString())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(bad: float) -> None:
    W = R(4, 2)
    W[1, 1] = bad
    with pytest.raises(NumericsError, match=r"'W'.*'product'.*NaN or infinity"):
        import_onnx(model([helper.make_node("MatMul", ["x", "W"], ["y"], "product")], {"x": [1, 4]}, {"W": W}))


@pytest.mark.parametrize(
    "nodes, shape, message",
    [
        ([helper.make_node("Hardmax", ["x"], ["y"], "hard")], [1, 4], "node 'hard': op Hardmax is not supported"),
        ([helper.make_node("Pow", ["x", "x"], ["y"], "power")], [1, 4], "node 'power' .*a computed exponent is not supported"),
        ([helper.make_node("Pow", ["x", "pads"], ["y"], "power")], [1, 4], "node 'power' .*2 different exponents are not supported"),
        ([helper.make_node("Pow", ["x", "zero"], ["y"], "power")], [1, 4], "node 'power' .*the exponent is 0.0"),
        ([helper.make_node("Div", ["x", "zero"], ["y"], "d")], [1, 4], "node 'd' .*divisor contains zero"),
        ([helper.make_node("Relu", ["x"], ["y"], "r", alpha=1.0)], [1, 4], "node 'r' .*'alpha' is not understood"),
        ([helper.make_node("Cast", ["x"], ["y"], "c", to=TensorProto.INT32)], [1, 4], "node 'c' .*to = 6"),
        ([helper.make_node("Pad", ["x", "pads"], ["y"], "p", mode="mirror")], [1, 4], "node 'p' .*'mirror' is not understood"),
        ([helper.make_node("MaxPool", ["x"], ["y"], "m", kernel_shape=[2, 2], auto_pad="SAME")], [1, 1, 4, 4], "'SAME' is not understood"),
        ([helper.make_node("MaxPool", ["x"], ["i", "y"], "m", kernel_shape=[2, 2])], [1, 1, 4, 4], "extra output 'y'"),
        ([helper.make_node("RandomNormalLike", ["x"], ["y"], "noise")], [1, 4], "'noise' .*is random"),
        ([helper.make_node("Relu", ["x"], ["y"], "r", domain="com.example")], [1, 4], "domain 'com.example'"),
        ([helper.make_node("Dropout", ["x", "one", "true"], ["y"], "drop")], [1, 4], "'drop' .*training_mode"),
    ],
)
def test_what_is_not_supported_names_the_node(nodes: list[onnx.NodeProto], shape: list[int], message: str) -> None:
    constants = {"one": np.array(1, np.float32), "zero": np.zeros(4, np.float32), "pads": I(0, 1, 0, 1), "true": np.array(True)}
    with pytest.raises(UnsupportedOpError, match=message):
        import_onnx(model(nodes, {"x": shape}, constants))


@pytest.mark.parametrize(
    "shape, message",
    [
        (["N", "length"], "axis 1 of input 'x'.*'length'"),
        (["N", 0], "axis 1 of input 'x'.*dynamic"),
        (["N"], "axis 0 of input 'x'"),
        (None, "no declared shape"),
    ],
)
def test_dynamic_shapes(shape: list[int | str] | None, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        import_onnx(model([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}))


def test_shapes_that_do_not_fit_name_the_node() -> None:
    with pytest.raises(ShapeError, match=r"node 'product'.*\(1, 5\)"):
        import_onnx(model([helper.make_node("MatMul", ["x", "W"], ["y"], "product")], {"x": [1, 5]}, {"W": R(4, 2)}))


def test_several_inputs_or_outputs() -> None:
    node = helper.make_node("Add", ["x", "z"], ["y"])
    with pytest.raises(ModelError, match="one of graph inputs, found 2 \\('x', 'z'\\)"):
        import_onnx(model([node], {"x": [1, 2], "z": [1, 2]}))
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["z"])]
    with pytest.raises(ModelError, match="one of graph outputs, found 2"):
        import_onnx(model(nodes, {"x": [1, 2]}, outputs=("y", "z")))


def test_output_that_is_constant_or_missing() -> None:
    with pytest.raises(ModelError, match="does not depend on the input"):
        import_onnx(model([helper.make_node("Identity", ["c"], ["y"])], {"x": [1, 2]}, {"c": R(2)}))
    with pytest.raises(ModelError, match="'gone', which nothing before it produces"):
        import_onnx(model([helper.make_node("Add", ["x", "gone"], ["y"])], {"x": [1, 2]}))


def test_integer_input() -> None:
    with pytest.raises(UnsupportedOpError, match=r"input 'x'.*INT64"):
        import_onnx(model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 2]}, dtype=TensorProto.INT64))


def test_mismatch_with_the_original_is_an_error() -> None:
    network = import_onnx(linear_model("N"))
    product = network.nodes[2]
    assert isinstance(product.op, Linear)
    wrong = replace(product, op=replace(product.op, weight=product.op.weight * 1.001))
    with pytest.raises(ImportMismatchError, match="differs from the original by"):
        check_import(replace(network, nodes=(*network.nodes[:2], wrong, *network.nodes[3:])), "the model")


def test_a_nan_output_is_an_error() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "c"], ["m"]),
        helper.make_node("Mul", ["m", "c"], ["n"]),
        helper.make_node("Sub", ["n", "n"], ["y"]),
    ]
    with pytest.raises(ImportMismatchError, match="NaN or infinite"):
        import_onnx(model(nodes, {"x": [1, 2]}, {"c": np.full(2, 3e38, np.float32)}))


class _Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.LeakyReLU(0.1))
        self.second = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.tail = torch.nn.Sequential(
            torch.nn.MaxPool2d(2), torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.Linear(36, 3), torch.nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        left, right = torch.relu(self.second(y) + y).chunk(2, dim=1)
        return self.tail(torch.cat([right, left], dim=1) - 0.1 * y)


def test_torch_module() -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    module = _Residual()
    module.first[1].running_mean.normal_()
    module.first[1].running_var.uniform_(0.5, 2.0)
    network = import_torch(module, (2, 6, 6))
    assert module.training
    assert any(isinstance(node.op, BatchNormalization) for node in network.nodes)
    assert (network.input_shape, network.output_shape) == ((2, 6, 6), (3,))
    x = torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(network(x), module.eval()(x), rtol=1e-5, atol=1e-5)


class _Cumulative(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, dim=-1)


class _Transformer(torch.nn.Module):
    """One attention head and a GELU layer, each behind a layer normalisation and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.LayerNorm(6), torch.nn.LayerNorm(6)
        self.query, self.key, self.value = (torch.nn.Linear(6, 6) for _ in range(3))
        self.wide, self.narrow = torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        weights = torch.softmax(self.query(h) @ self.key(h).transpose(-1, -2) / 6**0.5, dim=-1)
        x = x + weights @ self.value(h)
        return x + self.narrow(torch.nn.functional.gelu(self.wide(self.second(x))))


class _Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_torch_module_that_cannot_be_exported_or_imported(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(ModelError, match=r"torch cannot export _Branching to ONNX: .*data-dependent"):
        import_torch(_Branching(), (3,))
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UnsupportedOpError, match="CumSum"):
        import_torch(_Cumulative(), (3,))


FAMILIES = [
    "acasxu", "cgan", "cifar10_resnet", "collins_rul_cnn", "cora", "dist_shift", "eran", "marabou_cifar10", "mnist_fc", "oval21",
    "reach_prob_density", "rl_benchmarks", "safenlp", "sri_resnet_a", "tllverifybench", "verivital", "vit",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_of_every_family_loads_and_matches(shared: Path, family: str) -> None:
    path = sorted((shared / "vnncomp" / family / "onnx").rglob("*.onnx.gz"))[0]
    assert import_onnx(path).original is not None


def test_the_networks_of_the_tables_load_and_match(shared: Path) -> None:
    for kind in ("mnist_cnn_relu_linf_at", "mnist_fc1_sigmoid_linf_l-per", "cifar10_cnn_relu_linf_kw"):
        assert import_onnx(shared / "models" / f"{kind}.onnx").output_shape == (10,)


def test_a_torch_transformer_layer_loads_and_matches() -> None:
    """Attention, layer normalisation and GELU as torch exports them."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    network = import_torch(_Transformer(), (4, 6))
    assert {"MatrixProduct", "LogSumExp", "Power"} <= {type(node.op).__name__ for node in network.nodes}


def test_a_torch_decoder_with_newer_layers_loads_and_matches() -> None:
    """Normalisation of groups, SiLU as torch exports it, interpolation and sub-pixel layers; ELU and hard swish."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.SiLU(), torch.nn.Upsample(scale_factor=1.5, mode="bilinear"),
        torch.nn.Conv2d(4, 8, 3), torch.nn.Hardswish(), torch.nn.PixelShuffle(2), torch.nn.ELU(0.7), torch.nn.Upsample(scale_factor=2),
        torch.nn.InstanceNorm2d(2, affine=True), torch.nn.Flatten(), torch.nn.Linear(800, 3), torch.nn.SELU(),
    )  # fmt: skip
    network = import_torch(module, (2, 7, 7))
    assert "Silu" in {type(node.op).__name__ for node in network.nodes}


def test_a_torch_module_needs_the_shape_of_an_input_not_an_input() -> None:
    for wrong in (torch.zeros(1, 3), (3, 0), (3, "x")):
        with pytest.raises(ShapeError, match="the input shape is a tuple of positive sizes without the batch axis"):
            Network.from_torch(torch.nn.Linear(3, 2), wrong)  # type: ignore[arg-type]
