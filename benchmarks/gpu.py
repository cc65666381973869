"""Bounds and branching on a GPU beside the processor: seconds by batch size. Needs torch, numpy and this repository only.

    python -m benchmarks.gpu [--device cuda cpu] [--out FILE.jsonl] [--net mlp conv resnet] [--batch 1 16 256] [--seconds 2]

The networks have random weights (seed 0) in common shapes, the regions are boxes of radius 0.01 around random points, so that no file is needed.
Every line is a measurement: a bound engine's seconds a region for a batch of regions, or branch and bound's seconds a sub-problem for a batch of
sub-problems. The first region's bounds are compared with the processor's in float64: both are sound, so they must overlap.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bounds.alpha import AlphaCrown
from bounds.crown import Crown
from bounds.errors import RingfenceError
from bounds.ibp import Ibp
from bounds.network import Network, Node
from bounds.ops.affine import AddBranches, Linear
from bounds.ops.base import Input, Op
from bounds.ops.convolution import Conv
from bounds.ops.piecewise import Relu
from bounds.ops.shape import Reshape
from bounds.region import Box
from verify import branch
from verify.spec import output_bounds
from verify.stages import Bound, Options, Query

RADIUS = 0.01
MEMORY_MB = 8_000.0
ENGINES: dict[str, Callable[..., Any]] = {
    "ibp": lambda device: Ibp(device=device, memory_mb=MEMORY_MB),
    "crown": lambda device: Crown(device=device, memory_mb=MEMORY_MB),
    "alpha": lambda device: AlphaCrown(device=device, memory_mb=MEMORY_MB, hidden=False, both=False),
}


class Layers:
    """A network under construction: each call appends an op and gives its number."""

    def __init__(self, *input_shape: int) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.nodes = [Node(Input(), (), input_shape, "input")]
        self.values = [torch.zeros(1, *input_shape)]

    def __call__(self, op: Op, *inputs: int) -> int:
        """Append an op that reads these nodes, by default the last one."""
        read = inputs or (len(self.nodes) - 1,)
        self.values.append(op.forward(*(self.values[i] for i in read)))
        self.nodes.append(Node(op, read, tuple(self.values[-1].shape[1:]), f"{type(op).__name__}_{len(self.nodes)}"))
        return len(self.nodes) - 1

    def normal(self, *shape: int) -> Tensor:
        """Weights whose sums keep their size from layer to layer."""
        return torch.randn(*shape, generator=self.random) * math.sqrt(2 / math.prod(shape[1:]))

    def dense(self, outputs: int) -> int:
        """Append a dense layer."""
        return self(Linear(self.normal(outputs, self.values[-1][0].numel()), torch.zeros(outputs)))

    def conv(self, channels: int, kernel: int, stride: int = 1, source: int | None = None) -> int:
        """Append a convolution that keeps the size, or divides it by the stride."""
        source = len(self.nodes) - 1 if source is None else source
        before, after = (kernel - 1) // 2, kernel // 2 if stride == 1 else (kernel - stride + 1) // 2
        weight = self.normal(channels, self.values[source].shape[2], kernel, kernel)
        return self(Conv(weight, torch.zeros(channels, 1, 1), (stride, stride), ((before, after), (before, after)), (1, 1), 1), source)

    def flat(self) -> int:
        """Append a reshape to one dimension."""
        return self(Reshape((self.values[-1][0].numel(),)))

    def network(self) -> Network:
        """What was built."""
        return Network(tuple(self.nodes))


def mlp() -> Network:
    """784 inputs, four hidden layers of 256, 10 classes."""
    layers = Layers(784)
    for _ in range(4):
        layers.dense(256)
        layers(Relu())
    layers.dense(10)
    return layers.network()


def conv() -> Network:
    """3 x 32 x 32 inputs, two strided convolutions, a dense layer of 100, 10 classes (the size of cifar_wide)."""
    layers = Layers(1, 3, 32, 32)
    for channels in (16, 32):
        layers.conv(channels, 4, 2)
        layers(Relu())
    layers.flat()
    layers.dense(100)
    layers(Relu())
    layers.dense(10)
    return layers.network()


def resnet() -> Network:
    """3 x 32 x 32 inputs, a strided convolution, two residual blocks, a dense layer of 100, 10 classes (the size of resnet_2b)."""
    layers = Layers(1, 3, 32, 32)
    layers.conv(8, 3, 2)
    last = layers(Relu())
    for stride in (2, 1):
        layers.conv(16, 3, stride, last)
        layers(Relu())
        branch_end = layers.conv(16, 3)
        skip = layers.conv(16, 1, stride, last) if stride > 1 else last
        layers(AddBranches(), branch_end, skip)
        last = layers(Relu())
    layers.flat()
    layers.dense(100)
    layers(Relu())
    layers.dense(10)
    return layers.network()


NETS = {"mlp": mlp, "conv": conv, "resnet": resnet}


def regions(network: Network, batch: int) -> Box:
    """Boxes around random points of [0, 1]."""
    center = torch.rand(batch, *network.input_shape, generator=torch.Generator().manual_seed(1))
    return Box((center - RADIUS).clamp(0, 1), (center + RADIUS).clamp(0, 1))


def timed(call: Callable[[], Any], device: str, seconds: float) -> tuple[float, int]:
    """Median wall-clock seconds of a call after a first one, and how many were made."""

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    call()
    wait()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - start < seconds and len(times) < 200):
        begin = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - begin)
        if time.perf_counter() - start > 10 * seconds:
            break
    return statistics.median(times), len(times)


def bounding(name: str, device: str, batches: list[int], seconds: float) -> Iterator[dict[str, Any]]:
    """The engines' rows for one network."""
    network = NETS[name]()
    for method, engine in ENGINES.items():
        reference = Crown(torch.float64)(network, regions(network, 1)).objective
        for batch in batches:
            box = regions(network, batch)
            if device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
            try:
                found = engine(device)(network, box).objective
                each, calls = timed(lambda: engine(device)(network, box), device, seconds)  # noqa: B023 - called here and now
            except (RingfenceError, torch.OutOfMemoryError) as error:
                yield {"net": name, "method": method, "device": device, "batch": batch, "error": str(error).splitlines()[0]}
                break
            low, high = found.lower[0].cpu().to(torch.float64), found.upper[0].cpu().to(torch.float64)
            yield {
                "net": name, "method": method, "device": device, "batch": batch, "seconds": each / batch, "calls": calls,
                "mean_width": float((high - low).mean()), "width_by_reference": float(reference.width.mean()),
                "overlap": bool((low <= reference.upper[0]).all() and (high >= reference.lower[0]).all()),
                "gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else None,
            }  # fmt: skip
            if each > 10 * seconds:
                break


def open_query(network: Network, device: str) -> Query:
    """A question that stays open for long: is the first output above a value halfway between CROWN's bound and the smallest one sampled?"""
    box = regions(network, 1)
    proven = float(Crown(torch.float64)(network, box).objective.lower[0, 0])
    sampled = float(network(box.sample(1000, torch.Generator().manual_seed(2))[0].to(torch.float32)).flatten(1)[:, 0].min())
    question = output_bounds(box, [(proven + sampled) / 2, *[None] * (network.outputs - 1)], [None] * network.outputs)
    query = Query.of(network, question, Options(device=device, memory_mb=MEMORY_MB))
    outcome = Bound("crown", lambda dtype, options: Crown(dtype, options.device))(query)
    if not isinstance(outcome, Query):
        raise SystemExit("CROWN decides the question; nothing is left to split")
    return outcome


def branching(name: str, device: str, batches: list[int], seconds: float) -> Iterator[dict[str, Any]]:
    """Branch and bound's rows for one network: sub-problems in a given time."""
    query = open_query(NETS[name](), device)
    for batch in batches:
        found = []
        for limit in (seconds / 2, 2 * seconds):
            search = branch._Search(query, branch.SplitNeurons(rows=max(2, batch)), time.monotonic() + limit)
            begin = time.perf_counter()
            outcome = search.run()
            found.append((time.perf_counter() - begin, search.bounded, outcome))
        spent, count, outcome = found[-1]
        yield {
            "net": name, "method": "branch", "device": device, "batch": batch, "seconds": spent / max(1, count), "sub_problems": count,
            "bound": outcome.bound if isinstance(outcome, Query) else type(outcome).__name__, "rows": search.most_rows,
        }  # fmt: skip


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", nargs="+", default=["cuda", "cpu"])
    parser.add_argument("--net", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for device in options.device:
        for name in options.net:
            for part in (bounding, branching):
                for row in part(name, device, options.batch, options.seconds):
                    line = json.dumps(row)
                    sys.stdout.write(line + "\n")
                    sys.stdout.flush()
                    if options.out:
                        with options.out.open("a") as file:
                            file.write(line + "\n")


if __name__ == "__main__":
    main()
