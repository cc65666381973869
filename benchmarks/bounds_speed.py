"""Time, memory and tightness of the bound engines on five networks, against stored figures of auto_LiRPA 0.7.1.

    python -m benchmarks.bounds_speed --shared ../shared [--batch 1 16] [--net resnet_2b] [--method CROWN alpha-last] [--dtype float64] [--no-rigour]

Each (network, batch, method) runs in a process of its own with one thread, so that peak memory is its own. `--no-rigour` switches the error
terms off (benchmark only; such bounds prove nothing).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

NETS = {
    "mnist-net_256x4": ("mnist_fc/onnx/mnist-net_256x4.onnx.gz", (784, 1)),
    "cifar10_large": ("marabou_cifar10/onnx/cifar10_large.onnx.gz", (32, 32, 3)),
    "cifar_wide_kw": ("oval21/onnx/cifar_wide_kw.onnx.gz", (3, 32, 32)),
    "resnet_2b": ("cifar10_resnet/onnx/resnet_2b.onnx.gz", (3, 32, 32)),
    "resnet_4b": ("cifar10_resnet/onnx/resnet_4b.onnx.gz", (3, 32, 32)),
}
# Seconds of auto_LiRPA on one core of the kind of machine the project is developed on, at batch 1 and 16.
REFERENCE = {
    ("mnist-net_256x4", "CROWN"): {1: 0.0088, 16: 0.029},
    ("cifar10_large", "CROWN"): {1: 0.214, 16: 14.6},
    ("cifar_wide_kw", "CROWN"): {1: 0.0111, 16: 0.165},
    ("resnet_2b", "CROWN"): {1: 0.205, 16: 6.1},
    ("resnet_4b", "CROWN"): {1: 1.60, 16: 52.0},
    ("mnist-net_256x4", "IBP"): {1: 0.0018, 16: 0.0022},
    ("cifar10_large", "IBP"): {1: 0.0024, 16: 0.0051},
    ("cifar_wide_kw", "IBP"): {1: 0.0018, 16: 0.0034},
    ("resnet_2b", "IBP"): {1: 0.0025, 16: 0.0049},
    ("resnet_4b", "IBP"): {1: 0.0040, 16: 0.0097},
    ("mnist-net_256x4", "alpha-last"): {1: 0.248, 16: 0.527},
    ("cifar10_large", "alpha-last"): {1: 1.17, 16: 57.9},
    ("cifar_wide_kw", "alpha-last"): {1: 0.306, 16: 2.93},
    ("resnet_2b", "alpha-last"): {1: 1.05, 16: 18.8},
    ("resnet_4b", "alpha-last"): {1: 5.92, 16: 180.0},
    ("mnist-net_256x4", "alpha-full"): {1: 0.610, 16: 2.87},
    ("cifar_wide_kw", "alpha-full"): {1: 0.993, 16: 63.8},
    ("resnet_2b", "alpha-full"): {1: 23.6},
}


def boxes(shape: tuple[int, ...], batch: int):  # type: ignore[no-untyped-def]
    """The reference's boxes: random centres, eps 0.01, clipped to [0, 1]."""
    import numpy as np
    import torch

    center = np.random.default_rng(0).random((batch, *shape)).astype(np.float32)
    return torch.from_numpy(np.clip(center - np.float32(0.01), 0, 1)), torch.from_numpy(np.clip(center + np.float32(0.01), 0, 1))


def measure(shared: Path, net: str, batch: int, method: str, rigour: bool, precision: str) -> dict[str, object]:
    """One configuration in this process: median seconds, mean width, peak memory, and the bounds of the first box."""
    import torch

    torch.set_num_threads(1)
    from bounds.alpha import AlphaCrown
    from bounds.crown import Crown
    from bounds.engine import BoundEngine
    from bounds.ibp import Ibp
    from bounds.network import Network
    from bounds.region import Box

    path, shape = NETS[net]
    network = Network.from_onnx(shared / "vnncomp" / path, check=False)
    lower, upper = boxes(shape, batch)
    region = Box(lower.reshape(batch, *network.input_shape), upper.reshape(batch, *network.input_shape))
    if not rigour:
        switch_rigour_off()
    dtype = {"float32": torch.float32, "float64": torch.float64}[precision]
    engines: dict[str, BoundEngine] = {
        "IBP": Ibp(dtype),
        "CROWN": Crown(dtype),
        "alpha-last": AlphaCrown(dtype, hidden=False),
        "alpha-full": AlphaCrown(dtype, most_hidden=10**9),
    }
    engine = engines[method]
    engine(network, region)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - start < 2 and len(times) < 50):
        begin = time.perf_counter()
        bounds = engine(network, region)
        times.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = bounds.objective
    return {
        "net": net, "batch": batch, "method": method, "seconds": statistics.median(times), "peak_mb": peak,
        "width": float(found.width.mean()), "lower": found.lower[0].tolist(), "upper": found.upper[0].tolist(),
    }  # fmt: skip


def switch_rigour_off() -> None:
    """Turn every error term into nothing, to measure what rigour costs."""
    import torch

    from bounds import backward, local, rounding, trace

    rounding.gamma = lambda terms, dtype: 0.0
    rounding.underflow = lambda terms, dtype: 0.0
    rounding.dot = lambda A, v, ranges: rounding.matvec(A, v).double()
    backward.Walk._pay = lambda self, index, flat: None  # type: ignore[method-assign]
    local._payment = lambda A, charge: charge.new_zeros(())

    def visit_without_charge(self, index, op):  # type: ignore[no-untyped-def]
        sources = self.network.nodes[index].inputs
        self.center[index] = self.wide.nodes[index].op.forward(*(self.center[s] for s in sources))
        self._measure(index, torch.zeros_like(self.interval(index).lower))

    trace.Trace._visit_affine = visit_without_charge  # type: ignore[method-assign]


def _child(connection, *arguments) -> None:  # type: ignore[no-untyped-def]
    connection.send(measure(*arguments))


def main() -> None:
    """Print one line per configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--net", nargs="+", default=list(NETS))
    parser.add_argument("--method", nargs="+", default=["IBP", "CROWN"])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="working type of our bounds; theirs is float32")
    parser.add_argument("--no-rigour", action="store_true")
    options = parser.parse_args()
    stored = json.loads((options.shared / "design" / "autolirpa_bounds.json").read_text())["rows"]
    context = multiprocessing.get_context("spawn")
    for net in options.net:
        for method in options.method:
            for batch in options.batch:
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_child, args=(theirs, options.shared, net, batch, method, not options.no_rigour, options.dtype)
                )
                process.start()
                row = ours.recv()
                process.join()
                reference = REFERENCE.get((net, method), {}).get(batch)
                ratio = "" if reference is None else f"x{row['seconds'] / reference:.2f} of auto_LiRPA, "
                line = f"{net:16s} {method:10s} batch {batch:3d}: {row['seconds']:.4f} s, {ratio}"
                line += f"{row['peak_mb']:.0f} MB, mean width {row['width']:.6g}"
                name = {"alpha-last": "CROWN-Optimized-lastlayer", "alpha-full": "CROWN-Optimized"}.get(method, method)
                match = [r for r in stored if r["net"] == net and r["method"] == name and batch == 1]
                if match:
                    slack = [a - b for a, b in zip(row["lower"], match[0]["lower"][0], strict=True)]
                    slack += [b - a for a, b in zip(row["upper"], match[0]["upper"][0], strict=True)]
                    line += f" (theirs {match[0]['mean_width']:.6g}), worst of {len(slack)} bounds {min(slack) / match[0]['mean_width']:+.2e} widths tighter"
                sys.stdout.write(line + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
