"""What a network is made of, and how each part is handled: the answer to `ringfence inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bounds.errors import ModelError
from bounds.network import Network
from bounds.ops.base import Activation, Op, product
from bounds.ops.bilinear import Bilinear
from bounds.ops.smooth import Smooth
from verify.document import SCHEMA

if TYPE_CHECKING:
    from bounds.onnx_survey import GraphRow

Support = Literal["exact", "relaxed", "not"]


@dataclass(frozen=True)
class Layer:
    """One operator application. `inputs` index earlier layers; `parameters` counts stored numbers; `shape` excludes the batch dimension.

    `support`: "exact" where bounds are sound and the mixed-integer encoding is exact; "relaxed" where bounds are sound and there is no exact
    encoding; "not" where the operator stands in the way of using the network.
    """

    index: int
    name: str
    op: str
    inputs: tuple[int, ...]
    shape: tuple[int | str, ...] | None
    parameters: int
    support: Support


@dataclass(frozen=True)
class Inventory:
    """A network's layers in topological order. `error`: why the network cannot be used, if it cannot."""

    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    dtype: str | None
    nodes: tuple[Layer, ...]
    neurons: int | None
    error: str | None = None

    @property
    def totals(self) -> dict[str, int | None]:
        """Sums over the layers; `neurons`: values that an activation reads."""
        count = {kind: sum(row.support == kind for row in self.nodes) for kind in ("exact", "relaxed", "not")}
        return {"nodes": len(self.nodes), "parameters": sum(row.parameters for row in self.nodes), "neurons": self.neurons} | count

    def document(self) -> dict[str, Any]:
        """The JSON object that `ringfence inspect --json` prints."""
        document: dict[str, Any] = {"schema": SCHEMA, "input_shape": self.input_shape, "output_shape": self.output_shape}
        document |= {"dtype": self.dtype, "nodes": [asdict(row) for row in self.nodes], "totals": self.totals}
        return document if self.error is None else document | {"error": self.error}

    def __str__(self) -> str:
        sums = self.totals
        parts = [f"{sums['nodes']} nodes", f"{sums['parameters']:,} parameters"]
        if self.neurons is not None:
            parts.append(f"{self.neurons:,} values read by activations")
        kinds = [f"{sums['exact']} nodes exact", f"{sums['relaxed']} relaxed (sound bounds, no exact encoding)"]
        if sums["not"]:
            kinds.append(f"{sums['not']} not supported")
        return f"{_table(self.nodes)}\n\n{', '.join(parts)}; {', '.join(kinds)}"


def inventory(model: str | Path | bytes) -> Inventory:
    """The layers of an ONNX model; of one that cannot be imported, the nodes of its graph and those that stand in the way.

    Raises:
        ModelError: the file is missing or corrupt.
    """
    try:
        return of_network(Network.from_onnx(model))
    except ModelError as error:
        return _of_graph(model, error)


def of_network(network: Network) -> Inventory:
    """The layers of an imported network."""
    rows = tuple(
        Layer(
            index,
            node.name,
            type(node.op).__name__,
            node.inputs,
            node.shape,
            sum(parameter.numel() for parameter in node.op.parameters()),
            support_of(node.op),
        )
        for index, node in enumerate(network.nodes)
    )
    neurons = sum(product(network.nodes[index].shape) for index in network.preactivations)
    return Inventory(network.input_shape, network.output_shape, str(network.dtype).removeprefix("torch."), rows, neurons)


def support_of(op: Op) -> Support:
    """How an operator is handled."""
    return "relaxed" if isinstance(op, Bilinear) or (isinstance(op, Activation) and not op.exact_in_milp) else "exact"


def _of_graph(model: str | Path | bytes, error: ModelError) -> Inventory:
    from bounds.onnx_survey import survey

    try:
        found = survey(model)
    except ModelError:
        raise error from None
    producer = {output: index for index, row in enumerate(found) for output in row.outputs if output}
    rows = tuple(
        Layer(
            index,
            row.name,
            row.op,
            tuple(producer[source] for source in row.inputs if source in producer),
            row.shape,
            row.parameters,
            _support_of_row(row, error),
        )
        for index, row in enumerate(found)
    )
    return Inventory(None, None, None, rows, None, str(error))


def _support_of_row(row: GraphRow, error: ModelError) -> Support:
    """How a node of the graph would be handled; the one that the error names is what stands in the way."""
    from bounds.onnx_curve_handlers import CURVE_HANDLERS

    if not row.supported or f"node {row.name!r}" in str(error):
        return "not"
    return "relaxed" if row.op in {*CURVE_HANDLERS, *(kind.__name__ for kind in Smooth.__subclasses__())} else "exact"


def _table(rows: Sequence[Layer]) -> str:
    """The layers as aligned text."""
    head = ("", "name", "op", "reads", "shape", "parameters", "support")
    lines = [head]
    for row in rows:
        shape = "?" if row.shape is None else "x".join(map(str, row.shape)) or "scalar"
        count = f"{row.parameters:,}" if row.parameters else ""
        lines.append((str(row.index), row.name, row.op, " ".join(map(str, row.inputs)), shape, count, row.support))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = {0, 5}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
