"""The model as the user gave it, run by ONNX Runtime: what an import is checked against and a counterexample is replayed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bounds.errors import ModelError
from bounds.ops.base import Shape


def runtime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises; its exceptions have no common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded", "NoModel")
    more = ("NoSuchFile", "NotImplemented", "RuntimeException")
    return (RuntimeError, ValueError, TypeError, *(getattr(state, name) for name in (*names, *more) if hasattr(state, name)))


def open_session(model: bytes, what: str) -> Any:
    """An inference session with one thread and no logging.

    Raises:
        ModelError: ONNX Runtime refuses the model; `what` names it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except runtime_errors() as error:
        raise ModelError(f"ONNX Runtime cannot load {what}: {first_line(error)}") from error


def run_session(session: Any, feeds: dict[str, np.ndarray], what: str) -> Sequence[np.ndarray]:
    """All outputs.

    Raises:
        ModelError: ONNX Runtime fails; `what` names the model.
    """
    try:
        return session.run(None, feeds)
    except runtime_errors() as error:
        raise ModelError(f"ONNX Runtime cannot run {what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@dataclass(frozen=True, eq=False)
class OnnxOriginal:
    """The model in ONNX Runtime. It may be sent to other processes: the session is opened where it is first used.

    feed_shape is the shape of one feed, batch axis first. `copies` > 1 serves a model whose batch size is fixed inside the graph: it is
    run on that many copies of a point and the first row of its output is taken.
    """

    model: bytes
    what: str
    input_name: str
    feed_shape: Shape
    input_shape: Shape
    output_shape: Shape
    input_dtype: np.dtype
    copies: int = 1

    @cached_property
    def session(self) -> Any:
        """The ONNX Runtime session."""
        return open_session(self.model, self.what)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, *input_shape) -> (N, *output_shape); every point is cast to the model's input type and run on its own."""
        points = np.asarray(x).reshape(-1, *self.feed_shape).astype(self.input_dtype)
        outputs = [self._run(point) for point in points]
        return np.stack(outputs) if outputs else np.zeros((0, *self.output_shape), self.input_dtype)

    def _run(self, point: np.ndarray) -> np.ndarray:
        feed = np.concatenate([point] * self.copies) if self.copies > 1 else point
        (output,) = run_session(self.session, {self.input_name: feed}, self.what)
        output = output[:1] if self.copies > 1 else output
        if output.size != int(np.prod(self.output_shape)):
            raise ModelError(f"{self.what} returned an output of shape {output.shape}, expected the values of {self.output_shape}")
        return output.reshape(self.output_shape)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
