"""ONNX -> Network. torch modules come in through the same door, exported to ONNX in memory.

Reading is one pass over the graph: what depends on constants and shapes only is evaluated by ONNX Runtime and becomes a constant (those
values are the stored weights), every other node is translated by its handler. Nothing that changes the arithmetic is fused.
The result is compared with ONNX Runtime on random points before it is used.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from bounds.errors import ImportMismatchError, ModelError, ShapeError, UnsupportedOpError
from bounds.network import Network
from bounds.onnx_file import STANDARD_DOMAINS, dimensions, parse_model, read_model
from bounds.onnx_graph import GraphBuilder, GraphNode, NodeReader, new_builder
from bounds.onnx_handlers import HANDLERS
from bounds.onnx_original import OnnxOriginal, first_line, open_session, run_session
from bounds.ops.base import Shape

if TYPE_CHECKING:
    from torch import nn

_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
_INPUT_TYPES = {1: np.float32, 10: np.float16, 11: np.float64}


def import_onnx(model: str | Path | bytes, check: bool = True) -> Network:
    """The network in an ONNX file (plain or gzipped) or in its bytes.

    The leading batch axis of size 1 (dynamic, fixed, or fixed to another size) is not part of the network's input and output shapes.
    check: compare with ONNX Runtime on random points.

    Raises:
        ModelError: the file is missing or corrupt, or the model has several inputs or outputs.
        UnsupportedOpError: a node, named in the message, is not supported.
        ShapeError: a dimension other than the batch is dynamic, or shapes do not fit.
        NumericsError: a weight is NaN or infinite.
        ImportMismatchError: the network does not reproduce the original's outputs.
    """
    data, what, folder = read_model(model)
    network = _Importer(parse_model(data, what, folder), what).network(data)
    if check:
        check_import(network, what)
    return network


def import_torch(module: nn.Module, input_shape: Shape, check: bool = True) -> Network:
    """A torch module in evaluation mode, exported to ONNX in memory. input_shape excludes the batch axis.

    With `check` the result is compared with ONNX Runtime and with the module itself.

    Raises:
        ModelError: onnxscript is not installed or the module cannot be exported; else as `import_onnx`.
    """
    sizes: tuple[object, ...] = input_shape
    if not all(isinstance(size, int | np.integer) and size > 0 for size in sizes):
        raise ShapeError(f"the input shape is a tuple of positive sizes without the batch axis, such as (1, 28, 28), got {sizes!r}"[:300])
    parameter = next(module.parameters(), torch.zeros(()))
    example = torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device)
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        network = import_onnx(_export(module, example), check)
        if check:
            _compare(network, lambda x: _run_module(module, x, example), f"the torch module {type(module).__name__}")
        return network
    finally:
        for part, mode in training.items():
            part.training = mode


def _export(module: nn.Module, example: torch.Tensor) -> bytes:
    try:
        from onnxscript.optimizer import fold_constants
    except ImportError as error:
        raise ModelError("importing a torch module needs onnxscript; run: pip install 'ringfence[torch-export]'") from error
    talk = io.StringIO()
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            # The exporter's own optimisation would merge batch normalisation into convolutions, rounding their weights.
            program = torch.onnx.export(module, (example,), dynamo=True, optimize=False, verbose=False)
            if program is not None:
                fold_constants(program.model)
        except (RuntimeError, ValueError, TypeError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise ModelError(f"torch cannot export {type(module).__name__} to ONNX: {first_line(cause)}") from error
        finally:
            logging.disable(level)
    if program is None:
        raise ModelError(f"torch returned nothing when exporting {type(module).__name__} to ONNX")
    return program.model_proto.SerializeToString()


def _run_module(module: nn.Module, x: np.ndarray, example: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        points = torch.from_numpy(x).to(example).reshape(-1, *example.shape)
        return np.stack([module(point).double().cpu().numpy() for point in points])


def check_import(network: Network, what: str) -> None:
    """Compare a network with its original on seeded random points, uniform in [0, 1] and normal.

    Raises:
        ImportMismatchError: an output differs by more than rounding explains, or is NaN or infinite.
    """
    if network.original is not None:
        _compare(network, network.original, what)


def _compare(network: Network, original: Any, what: str) -> None:
    """The tolerance is 1e-4 (1 + max |y|) (1e-2 in half precision) plus ten times what rounding to float32 costs our own network."""
    rng = np.random.default_rng(20)
    shape = network.input_shape
    points = np.concatenate([rng.random((2, *shape)), rng.standard_normal((2, *shape))]).astype(np.float32)
    if network.original is not None:
        points = points.astype(network.original.input_dtype).astype(np.float64)
    expected = np.asarray(original(points), dtype=np.float64).reshape(len(points), -1)
    exact, single = (_evaluate(network, points, dtype).reshape(len(points), -1) for dtype in (torch.float64, torch.float32))
    if expected.shape != exact.shape:
        raise ImportMismatchError(f"{what}: the imported network has {exact.shape[1]} outputs, the original {expected.shape[1]}")
    kept = np.isfinite(expected).all(axis=1)  # roots, logarithms and reciprocals are not defined everywhere
    expected, exact, single = expected[kept], exact[kept], single[kept]
    if not (kept.any() and np.isfinite(exact).all() and np.isfinite(single).all()):
        raise ImportMismatchError(f"{what}: an output is NaN or infinite on random points; the model cannot be verified")
    half = network.original is not None and network.original.input_dtype == np.float16
    tolerance = (1e-2 if half else 1e-4) * (1 + np.abs(expected).max()) + 10 * np.abs(single - exact).max()
    difference = max(np.abs(exact - expected).max(), np.abs(single - expected).max())
    if difference > tolerance:
        raise ImportMismatchError(
            f"{what}: the imported network differs from the original by {difference:.3g} on random points (tolerance {tolerance:.3g}); "
            "this is a defect of the importer: please report the model"
        )


def _evaluate(network: Network, points: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Outputs in `dtype`; operators are converted one at a time, so that no second copy of the weights stays behind."""
    values: list[torch.Tensor] = []
    last_use = {source: index for index, node in enumerate(network.nodes) for source in node.inputs}
    with torch.no_grad():
        for index, node in enumerate(network.nodes):
            inputs = [values[s] for s in node.inputs] or [torch.from_numpy(points).to(dtype)]
            values.append(node.op.to(dtype).forward(*inputs))
            for source in set(node.inputs):
                if last_use[source] == index:
                    values[source] = values[source].new_zeros(())
    return values[-1].double().numpy()


class _Importer:
    """One model being read."""

    def __init__(self, proto: onnx.ModelProto, what: str) -> None:
        self.proto, self.what, self.graph = proto, what, proto.graph
        self.opset = max((o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS), default=0)
        self.initializers = {t.name: t for t in self.graph.initializer}
        if self.graph.sparse_initializer:
            raise UnsupportedOpError(f"{what} has sparse initializers; store them densely")
        inputs = [i for i in self.graph.input if i.name not in self.initializers]
        self.input = self._only(inputs, "inputs")
        self.output = self._only(list(self.graph.output), "outputs")
        self.dtype = self._input_dtype()
        self.needed = self._needed_nodes()

    def _only(self, values: list[onnx.ValueInfoProto], which: str) -> onnx.ValueInfoProto:
        if len(values) != 1:
            names = ", ".join(repr(v.name) for v in values) or "none"
            raise ModelError(f"{self.what} must have exactly one of graph {which}, found {len(values)} ({names}); export it with one")
        return values[0]

    def _input_dtype(self) -> np.dtype:
        code = self.input.type.tensor_type.elem_type
        if code not in _INPUT_TYPES:
            name = onnx.TensorProto.DataType.Name(code) if code in onnx.TensorProto.DataType.values() else str(code)
            raise UnsupportedOpError(f"input {self.input.name!r} of {self.what} has type {name}, expected a floating-point type")
        return np.dtype(_INPUT_TYPES[code])

    def _needed_nodes(self) -> list[onnx.NodeProto]:
        """The nodes that the output depends on, in the graph's order."""
        wanted, kept = {self.output.name}, []
        for node in reversed(self.graph.node):
            if wanted.intersection(node.output):
                kept.append(node)
                wanted.update(node.input)
        return kept[::-1]

    def network(self, data: bytes) -> Network:
        """Translate with the batch axis set to 1; where the first axis may not be a batch, with the declared size too."""
        declared = dimensions(self.input)
        if declared is None:
            raise ShapeError(f"input {self.input.name!r} of {self.what} has no declared shape; export it with one")
        errors: list[ShapeError] = []
        for first in self._first_dimensions(declared):
            try:
                return self._translate(data, declared, first)
            except ShapeError as error:
                errors.append(error)
        raise errors[0]

    def _first_dimensions(self, declared: list[int | str]) -> list[int]:
        """Sizes of the first axis to try. A fixed size > 1 is taken for a batch when the output's first axis has it too or is dynamic."""
        for axis, size in enumerate(declared):
            if (isinstance(size, str) or size < 1) and (axis > 0 or len(declared) == 1):
                raise ShapeError(
                    f"axis {axis} of input {self.input.name!r} of {self.what} is dynamic ({size!r}); export the model with a fixed size"
                )
        if not declared:
            raise ShapeError(f"input {self.input.name!r} of {self.what} is a scalar; export it with at least one axis")
        first = declared[0]
        if isinstance(first, str) or first <= 1:
            return [1]
        if len(declared) == 1:
            return [first]
        output = dimensions(self.output)
        batched = not output or isinstance(output[0], str) or output[0] in (0, first)
        return [1, first] if batched else [first, 1]

    def _translate(self, data: bytes, declared: list[int | str], first: int) -> Network:
        shape = (first, *(int(n) for n in declared[1:]))
        readers = Counter(name for node in self.needed for name in node.input)
        readers[self.output.name] += 1
        builder = new_builder(self._constants(), readers, self.input.name, shape, strip=first == 1 and len(shape) > 1)
        if first == 1 and isinstance(declared[0], int) and declared[0] > 1:
            builder.declared_batch = declared[0]
        for node in self.needed:
            self._translate_node(node, builder)
        output = self._finish(builder)
        self._check_batch_axis(builder, output)
        shape_out = builder.shape(output)
        if len(shape_out) != 1:
            stripped = shape_out[1:] if len(shape_out) > 1 and shape_out[0] == 1 else shape_out or (1,)
            output = NodeReader(_pseudo_node(self.output.name), builder).reshape(output, stripped)
        nodes = builder.finish(output)
        copies = builder.declared_batch if builder.batch_is_baked_in else 1
        model = self._session_model(data, declared, shape, rewritten=copies == 1)
        original = OnnxOriginal(model, self.what, self.input.name, shape, nodes[0].shape, nodes[-1].shape, self.dtype, copies)
        return Network(nodes, original)

    def _finish(self, builder: GraphBuilder) -> int:
        if self.output.name in builder.constants:
            raise ModelError(f"output {self.output.name!r} of {self.what} does not depend on the input")
        if self.output.name not in builder.index:
            raise ModelError(f"output {self.output.name!r} of {self.what} is not produced by any node")
        return builder.index[self.output.name]

    def _check_batch_axis(self, builder: GraphBuilder, output: int) -> None:
        """With the batch set to 1, an output declared with that batch has to have 1 too, else the first axis was no batch."""
        declared = dimensions(self.output)
        if builder.declared_batch > 1 and declared and declared[0] == builder.declared_batch and builder.shape(output)[:1] != (1,):
            raise ShapeError(f"{self.what}: the first axis of input {self.input.name!r} is not a batch axis")

    def _constants(self) -> dict[str, np.ndarray]:
        """Initializers that a needed node reads."""
        names = {name for node in self.needed for name in node.input}
        return {name: _to_array(self.initializers[name], name) for name in names if name in self.initializers}

    def _translate_node(self, proto: onnx.NodeProto, builder: GraphBuilder) -> None:
        name = proto.name or next((o for o in proto.output if o), proto.op_type)
        if proto.domain not in STANDARD_DOMAINS:
            raise UnsupportedOpError(
                f"node {name!r} uses op {proto.op_type} of domain {proto.domain!r}; export with standard ONNX operators"
            )
        if proto.op_type in _RANDOM:
            raise UnsupportedOpError(f"node {name!r} ({proto.op_type}) is random; remove it or replace it by its mean")
        known = [n in builder.constants for n in proto.input if n]
        if proto.op_type in ("Shape", "Size") and not all(known):
            node = _graph_node(proto, name, self.opset)
            builder.constants[proto.output[0]] = _shape_values(NodeReader(node, builder))
        elif proto.op_type == "CastLike" and known[0]:
            builder.constants[proto.output[0]] = builder.constants[proto.input[0]].astype(self.dtype)
        elif all(known):
            self._fold(proto, name, builder)
        elif proto.op_type in HANDLERS:
            self._handle(_graph_node(proto, name, self.opset), builder)
        else:
            way_out = "rewrite the model without it, or see `ringfence inspect` for what is supported"
            raise UnsupportedOpError(f"node {name!r}: op {proto.op_type} is not supported; {way_out}")

    def _handle(self, node: GraphNode, builder: GraphBuilder) -> None:
        reader = NodeReader(node, builder)
        made = HANDLERS[node.op_type](reader)
        reader.check_attributes()
        results = made if isinstance(made, list) else [made]
        for extra in node.outputs[len(results) :]:
            if extra and (builder.readers[extra] > 0):
                raise reader.refuse(f"its extra output {extra!r} is not supported")
        builder.index.update(zip(node.outputs, results, strict=False))

    def _fold(self, proto: onnx.NodeProto, name: str, builder: GraphBuilder) -> None:
        """Evaluate a node whose inputs are all known."""
        if proto.op_type == "Constant":
            attribute = proto.attribute[0] if len(proto.attribute) == 1 else None
            if attribute is None or attribute.name in ("sparse_value", "value_string", "value_strings"):
                raise UnsupportedOpError(f"node {name!r} (Constant) holds no dense numeric value; store one")
            builder.constants[proto.output[0]] = _constant_value(attribute, name)
            return
        feeds = {n: builder.constants[n] for n in dict.fromkeys(proto.input) if n}
        inputs = [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()]
        used = [n for n in proto.output if n]
        outputs = [onnx.ValueInfoProto(name=n) for n in used]
        graph = onnx.helper.make_graph([proto], "constant", inputs, outputs)
        model = onnx.helper.make_model(graph, opset_imports=list(self.proto.opset_import), ir_version=min(self.proto.ir_version, 10))
        what = f"node {name!r} ({proto.op_type}) of {self.what}"
        results = run_session(open_session(model.SerializeToString(), what), feeds, what)
        builder.constants.update(zip(used, results, strict=True))

    def _session_model(self, data: bytes, declared: list[int | str], shape: Shape, *, rewritten: bool) -> bytes:
        """What ONNX Runtime is given: the file's bytes, or the model with its batch size corrected or its weights read from beside it."""
        changed = rewritten and isinstance(declared[0], int) and declared[0] != shape[0]
        if changed:
            proto = onnx.ModelProto()
            proto.CopyFrom(self.proto)
            proto.graph.ClearField("value_info")
            next(i for i in proto.graph.input if i.name == self.input.name).type.tensor_type.shape.dim[0].dim_value = shape[0]
            for output in proto.graph.output:
                output.type.tensor_type.ClearField("shape")
            return proto.SerializeToString()
        external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in onnx.load_model_from_string(data).graph.initializer)
        return self.proto.SerializeToString() if external else data


def _to_array(tensor: onnx.TensorProto, name: str) -> np.ndarray:
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"initializer {name!r} is corrupt: {first_line(error)}; fetch or export the model again") from error
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _constant_value(attribute: onnx.AttributeProto, name: str) -> np.ndarray:
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return _to_array(value, name)
    return np.asarray(value, dtype=np.float32 if attribute.name.startswith("value_float") else np.int64)


def _shape_values(node: NodeReader) -> np.ndarray:
    shape = node.shape(0)
    if node.node.op_type == "Size":
        return np.asarray(int(np.prod(shape)), dtype=np.int64)
    chosen = shape[node.attribute("start", 0) : node.attribute("end", None)]
    return np.asarray(chosen, dtype=np.int64)


def _graph_node(proto: onnx.NodeProto, name: str, opset: int) -> GraphNode:
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise UnsupportedOpError(
                f"node {name!r} ({proto.op_type}) holds a subgraph, which is not supported; export without control flow"
            )
        value = onnx.helper.get_attribute_value(attribute)
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        attributes[attribute.name] = list(value) if isinstance(value, list | tuple) or hasattr(value, "append") else value
    return GraphNode(proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes, opset)


def _pseudo_node(name: str) -> GraphNode:
    return GraphNode("Reshape", name, (), (name,), {}, 0)
