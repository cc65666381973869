"""What the polyhedral envelope adds to the time of the linear bounds that it is read off: thesis footnote 12 says about 1 %.

    python -m benchmarks.envelope_cost --models ../shared/models --data ../shared/data [--only mnist_fc1] [--count 300] [--engine fastlin]

Every network works through its images a hundred at a time, several times over: the bounds and, on their planes, the envelope. The shortest CPU
time of each counts. "open" is the share of images that the bounds do not prove, the only ones whose distances cost anything.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bounds.network import Network
from bounds.region import LpBall
from verify.datasets import load_dataset
from verify.provers import LINEAR, Prover

CHUNK = 100


@dataclass(frozen=True)
class Cost:
    """CPU seconds over `images` correctly classified images, `left` of which the bounds do not prove."""

    images: int
    left: int
    bounds: float
    envelope: float

    @property
    def share(self) -> float:
        """What the envelope adds, in percent of the bounds."""
        return 100 * self.envelope / self.bounds


def measure(network: Network, chunks: Iterator[tuple[LpBall, Tensor]], prover: Prover, repeats: int) -> Cost:
    """The costs over chunks of regions with their labels, as `ringfence evaluate` works on them."""
    images = left = 0
    bounds = envelope = 0.0
    for region, labels in chunks:
        runs = [prover(network, region, labels, radii=True) for _ in range(repeats)]
        images, left = images + len(labels), left + int((runs[0].margins <= 0).sum())
        bounds, envelope = bounds + min(run.seconds for run in runs), envelope + min(run.radii_seconds for run in runs)
    return Cost(images, left, bounds, envelope)


def chunks_of(entry: dict[str, str], network: Network, data: Path, count: int) -> Iterator[tuple[LpBall, Tensor]]:
    """The balls around the first `count` test images that are classified correctly, a hundred at a time, pixels in [0, 1]."""
    images = load_dataset(entry["dataset"], data / entry["dataset"])
    for start in range(0, min(count, len(images)), CHUNK):
        part = slice(start, min(start + CHUNK, count, len(images)))
        x, labels = torch.from_numpy(images.pixels(part, network.input_shape)), torch.from_numpy(images.labels[part].astype("int64"))
        right = network(x).flatten(1).argmax(1) == labels
        yield LpBall(x[right], float(entry["eps"]), 2.0 if entry["norm"] == "l2" else math.inf, (0.0, 1.0)), labels[right]


def main() -> None:
    """Print one line a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="", help="part of the names to measure")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine", choices=LINEAR, default="fastlin")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with (options.models / "index.csv").open() as file:
        entries = [entry for entry in csv.DictReader(file) if options.only in entry["file"]]
    print("| network | images | open % | bounds, ms/image | envelope, us/image | added % |\n|---|---|---|---|---|---|")
    for entry in entries:
        network = Network.from_onnx(options.models / entry["file"])
        cost = measure(
            network,
            chunks_of(entry, network, options.data, options.count),
            Prover(options.engine, clock=time.process_time),
            options.repeats,
        )
        row = (
            entry["file"].removesuffix(".onnx"),
            str(cost.images),
            f"{100 * cost.left / cost.images:.1f}",
            f"{1e3 * cost.bounds / cost.images:.2f}",
            f"{1e6 * cost.envelope / cost.images:.1f}",
            f"{cost.share:.2f}",
        )
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
