"""The graph: order, shapes, copies in other types."""

from __future__ import annotations

import pytest
import torch

from bounds.errors import ShapeError
from bounds.network import Network, Node
from bounds.ops.affine import AddBranches, Linear
from bounds.ops.base import Input
from bounds.ops.piecewise import Relu
from bounds.ops.shape import Gather, Reshape
from tests.bounds.networks import ZOO, build, chain


def small() -> Network:
    """y = W relu(x) + relu(x), W = [[1, 2], [3, 4]]."""
    return build((2,), (Relu(), (0,)), (Linear(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), (1,)), (AddBranches(), (2, 1)))


def test_values_and_outputs() -> None:
    network, x = small(), torch.tensor([[1.0, -1.0], [2.0, 1.0]])
    assert [v.tolist() for v in network.values(x)] == [
        x.tolist(),
        [[1.0, 0.0], [2.0, 1.0]],
        [[1.0, 3.0], [4.0, 10.0]],
        [[2.0, 3.0], [6.0, 11.0]],
    ]
    assert network(x).tolist() == [[2.0, 3.0], [6.0, 11.0]]


def test_any_number_of_leading_dimensions() -> None:
    network = ZOO["convolutional"]
    x = torch.randn(2, 3, *network.input_shape)
    assert network(x).shape == (2, 3, 2)
    assert network(x[0, 0]).shape == (2,)
    assert torch.allclose(network(x)[1, 2], network(x[1, 2]), atol=1e-6)
    with pytest.raises(ShapeError, match=r"reads inputs of shape \(1, 2, 4, 5\), got \(3, 1, 2, 5, 4\)"):
        network(torch.zeros(3, 1, 2, 5, 4))


def test_what_is_known_of_the_graph() -> None:
    network = small()
    assert (network.input_shape, network.output_shape, network.outputs) == ((2,), (2,), 2)
    assert network.successors == ((1,), (2, 3), (3,), ())
    assert network.preactivations == (0,)
    assert network.affine_in_input == (True, False, False, False)
    assert network.input_shapes(3) == ((2,), (2,))


def test_a_node_that_reads_another_twice_is_two_uses() -> None:
    network = build((2,), (AddBranches(), (0, 0)), (Relu(), (1,)), (Relu(), (1,)), (AddBranches(), (2, 3)))
    assert network.successors[0] == (1, 1)
    assert network.preactivations == (1,)


def test_graph() -> None:
    graph = small().graph
    assert sorted(graph.edges) == [(0, 1), (1, 2), (1, 3), (2, 3)]
    assert graph.nodes[2] == {"name": "Linear_2", "op": "Linear", "shape": (2,)}


@pytest.mark.parametrize(
    "nodes, message",
    [
        ((), "exactly one input node"),
        ((Node(Relu(), (0,), (1,), "r"),), "exactly one input node"),
        ((Node(Input(), (), (1,), "x"), Node(Relu(), (1,), (1,), "self")), "node 'self' .number 1. is not in topological order"),
        ((Node(Input(), (), (1,), "x"), Node(Relu(), (2,), (1,), "early"), Node(Relu(), (0,), (1,), "late")), "node 'early'"),
        ((Node(Input(), (), (1,), "x"), Node(Input(), (), (1,), "again")), "node 'again'"),
    ],
)
def test_graphs_that_are_none(nodes: tuple[Node, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Network(nodes)


# --------------------------------------------------------------------------------------------------------------------------- types


def test_copies_are_kept() -> None:
    network = small()
    wide = network.to(torch.float64)
    assert (network.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert network.to(torch.float64) is wide
    assert network.to(torch.float32) is network
    assert wide.to(torch.float64) is wide


def test_copies_are_made_from_the_parameters_as_stored() -> None:
    """A float64 model narrowed to float32 and widened again has its float64 weights, not rounded ones."""
    network = chain((1,), Linear(torch.tensor([[0.1]])))
    network = Network((network.nodes[0], Node(Linear(torch.tensor([[0.1]], dtype=torch.float64)), (0,), (1,), "l")))
    narrow = network.to(torch.float32)
    assert narrow.nodes[1].op.weight.dtype == torch.float32  # type: ignore[attr-defined]
    assert narrow.to(torch.float64).nodes[1].op.weight.item() == 0.1  # type: ignore[attr-defined]
    assert narrow.to(torch.float64).to(torch.float32) is narrow


def test_indices_are_not_converted() -> None:
    network = chain((3,), Gather(0, torch.tensor([2, 0])), Linear(torch.ones(1, 2))).to(torch.float64)
    assert network.nodes[1].op.index.dtype == torch.int64  # type: ignore[attr-defined]


def test_networks_without_parameters_have_the_type_they_were_converted_to() -> None:
    network = chain((2,), Relu(), Reshape((1, 2)))
    assert network.dtype == torch.float32
    wide = network.to(torch.float64, "cpu")
    assert wide.dtype == torch.float64
    assert network.to(torch.float64).dtype == torch.float64
    assert wide.to(torch.float32).dtype == torch.float32
    assert wide.to(torch.float64, "cpu").dtype == torch.float64
