"""What the rounding-error terms cost: CROWN with and without them, in turn, in two processes.

    python -m benchmarks.rigour_cost --shared ../shared [--rounds 15]

Prints the median, smallest and largest of the paired ratios. Bounds without the terms prove nothing; they exist in this measurement alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.bounds_speed import NETS, boxes, switch_rigour_off

CASES = (("mnist-net_256x4", 16), ("cifar_wide_kw", 16), ("cifar10_large", 1), ("resnet_2b", 1), ("resnet_4b", 1))


def serve(connection: Connection, shared: Path, rigorous: bool) -> None:
    """Time one bound call for every (network, batch) asked for; None ends."""
    import torch

    torch.set_num_threads(1)
    from bounds.crown import Crown
    from bounds.network import Network
    from bounds.region import Box

    if not rigorous:
        switch_rigour_off()
    ready = {}
    while (case := connection.recv()) is not None:
        name, batch = case
        if case not in ready:
            path, shape = NETS[name]
            network = Network.from_onnx(shared / "vnncomp" / path, check=False)
            lower, upper = (side.reshape(batch, *network.input_shape) for side in boxes(shape, batch))
            ready[case] = network, Box(lower, upper)
            Crown()(*ready[case])
        start = time.perf_counter()
        Crown()(*ready[case])
        connection.send(time.perf_counter() - start)


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes = []
    for rigorous in (True, False):
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, options.shared, rigorous), daemon=True).start()
        pipes.append(ours)
    for case in CASES:
        ratios = []
        for _ in range(options.rounds):
            seconds = []
            for pipe in pipes:
                pipe.send(case)
                seconds.append(pipe.recv())
            ratios.append(seconds[0] / seconds[1] - 1)
        low, middle, high = (100 * r for r in (min(ratios), statistics.median(ratios), max(ratios)))
        sys.stdout.write(f"{case[0]:16s} batch {case[1]:2d}: {middle:+.1f} % (from {low:+.1f} to {high:+.1f})\n")
        sys.stdout.flush()
    for pipe in pipes:
        pipe.send(None)


if __name__ == "__main__":
    main()
