"""Written networks are read back by the importer, and ONNX Runtime gives their values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bounds.errors import UnsupportedOpError
from bounds.network import Network
from bounds.onnx_export import export_onnx
from bounds.onnx_original import open_session
from bounds.ops.base import Op
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, PRelu, Relu
from bounds.ops.smooth import Sigmoid, Tanh
from bounds.shrink import collapse
from bounds.substitutes import activations, lines, rewrite
from tests.bounds.networks import batch_norm, branches, convolutional, fully_connected, max_pool, residual

OPS: list[Op] = [Relu(), LeakyRelu(0.2), PRelu(torch.tensor(0.3)), Abs(), Clip(-0.2, 0.4), Sigmoid(), Tanh()]
WIDTHS = (3, 5, 5, 2)


def assert_agrees(network: Network) -> None:
    data = export_onnx(network)
    x = np.random.default_rng(1).random((5, *network.input_shape)).astype(np.float32)
    session = open_session(data, "the written network")
    theirs = np.concatenate([session.run(None, {"input": point[None]})[0] for point in x])
    ours = network(torch.from_numpy(x)).numpy()
    again = Network.from_onnx(data)
    assert theirs.shape == ours.shape
    assert again.input_shape == network.input_shape
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again(torch.from_numpy(x)).numpy(), ours, rtol=1e-4, atol=1e-5)


def substitute(network: Network) -> Network:
    generator = torch.Generator().manual_seed(2)
    masks = {i: torch.rand(network.nodes[i].shape, generator=generator) < 0.5 for i in activations(network)}
    x0, x1 = torch.rand(2, *network.input_shape, generator=generator)
    return rewrite(network, masks, lines(network, "linear", x0, x1))


@pytest.mark.parametrize("op", OPS, ids=lambda op: type(op).__name__)
def test_activations(op: Op) -> None:
    assert_agrees(fully_connected(op, widths=WIDTHS))
    assert_agrees(substitute(fully_connected(op, widths=WIDTHS)))


@pytest.mark.parametrize("build", [convolutional, residual, batch_norm])
def test_networks_their_substitutes_and_collapsed_forms(build: object) -> None:
    network: Network = build()  # type: ignore[operator]
    for one in (network, substitute(network), collapse(substitute(network))):
        assert_agrees(one)


def test_what_is_not_written_says_so() -> None:
    for network in (max_pool(), branches()):
        with pytest.raises(UnsupportedOpError, match="cannot be written as ONNX"):
            export_onnx(network)
