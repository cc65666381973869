"""ONNX files: plain or gzipped, with weights inside or beside them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import onnx

from bounds.errors import ModelError
from bounds.onnx_original import first_line

STANDARD_DOMAINS = ("", "ai.onnx")
"""Names of the domain of the standard operators."""


def read_model(model: str | Path | bytes) -> tuple[bytes, str, Path | None]:
    """The uncompressed bytes of a model, how to call it in messages, and the folder it lies in.

    Raises:
        ModelError: the file cannot be read or decompressed.
    """
    folder = None
    if isinstance(model, bytes):
        data, what = model, "the model"
    else:
        path = Path(model)
        what, folder = f"model {str(path)!r}", path.parent
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{what} cannot be read: {error.strerror or error}; check the path") from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ModelError(f"{what} is not a complete gzip file: {first_line(error)}; fetch it again") from error
    return data, what, folder


def parse_model(data: bytes, what: str, folder: Path | None) -> onnx.ModelProto:
    """The model with weights kept in other files read and local functions inlined.

    Raises:
        ModelError: the bytes are no complete model, or weights kept beside the file cannot be read.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not data:
        raise ModelError(f"{what} is empty; fetch or export it again")
    try:
        proto = onnx.load_model_from_string(data)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{what} is not a complete ONNX file: {first_line(error)}; fetch or export it again") from error
    if not proto.HasField("graph") or not proto.graph.output or not proto.opset_import:
        raise ModelError(f"{what} holds no ONNX graph; fetch or export it again")
    if any(onnx.external_data_helper.uses_external_data(t) for t in proto.graph.initializer):
        if folder is None:
            raise ModelError(f"{what} keeps weights in external files, which bytes cannot name; give the path of the file instead")
        try:
            onnx.load_external_data_for_model(proto, str(folder))
        except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
            raise ModelError(f"{what} keeps weights in external files that cannot be read: {first_line(error)}") from error
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    return proto


def dimensions(value: onnx.ValueInfoProto) -> list[int | str] | None:
    """Declared sizes, dynamic ones as text ('?' when unnamed); None when no shape is declared."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
