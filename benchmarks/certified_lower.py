"""Certified lower ends of distances with few binaries, as shares of the exact distance: l-inf, domain [0, 1], the first images classified rightly.

    python -m benchmarks.certified_lower NET.onnx ... --data ../shared/data [--anchors 5] [--ratio 0.9] [--seconds 60]
    python -m benchmarks.certified_lower --report

A share `ratio` of all neurons loses its binaries. Which ones: "narrowest" as Algorithm 1 of the local substitutes says (the first layer taken in),
"stable" the same after those that are stable on the ball, "weakest" whatever is worth least in each program (`milp.refine.Strongest`). "default" is
what `ringfence substitute` does in 5 seconds, branching first. Limits and figures are CPU seconds of this process. Exact distances that programs do
not reach are left to branching. Each line of the results file is one image and choice; a run started again continues where the last stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lines import append_line, read_lines
from benchmarks.refinement import on_cpu_clock
from bounds.network import Network
from milp.distance import Distance
from verify.datasets import load_dataset
from verify.exact_radius import exact_radius
from verify.minimal import MinimalNorm
from verify.pruning import Pruning, balls, prune
from verify.refine import certified_lower, proven_ends

CHOICES = ("exact", "narrowest", "stable", "weakest", "default")
_DEFAULT_SECONDS = 5.0


def images(network: Network, data: Path, count: int) -> Iterator[tuple[int, Tensor, int]]:
    """The first images of the MNIST test set that the network classifies rightly, with their numbers and labels."""
    found = load_dataset("mnist", data)
    for index in range(len(found)):
        x, label = torch.from_numpy(found.pixels([index], network.input_shape)).double(), int(found.labels[index])
        if int(network.to(torch.float64)(x).flatten(1).argmax(1)) == label:
            yield index, x, label
            count -= 1
        if count <= 0:
            return


def answer(network: Network, x: Tensor, label: int, choice: str, options: argparse.Namespace) -> dict[str, Any]:
    """One image and choice. x: (1, *input_shape)."""
    hits = MinimalNorm()(network, x, torch.tensor([label]), norm=math.inf)
    point = torch.from_numpy(hits.points.astype(np.float64))
    begin = time.process_time()
    if choice == "exact":
        found = exact_radius(network, x[0], label, adversary=point[0], seconds=options.seconds)
        if found.status != "optimal":
            near = hits.points[0] if found.point is None else found.point
            found = proven_ends(network, x[0], label, None, adversary=near, lower=found.rigorous, seconds=options.seconds)
    else:
        found = _certified(network, x, label, point, choice, options)
    told = {name: getattr(found, name) for name in ("lower", "upper", "rigorous", "status", "binaries", "solves")}
    return told | {"d_adv": float(hits.distance[0]), "cpu_seconds": time.process_time() - begin}


def _certified(network: Network, x: Tensor, label: int, point: Tensor, choice: str, options: argparse.Namespace) -> Distance:
    if choice in ("weakest", "default"):
        neurons = sum(math.prod(node.shape) for node in network.nodes if type(node.op).__name__ == "Relu")
        keep = neurons - math.floor(options.ratio * neurons)
        if choice == "default":
            return proven_ends(network, x[0], label, keep, adversary=point[0].numpy(), seconds=_DEFAULT_SECONDS)
        return certified_lower(network, x[0], label, keep, adversary=point[0], seconds=options.seconds)
    radius = (point - x).abs().flatten(1).amax(1)
    pruning = Pruning("linear", options.ratio, 0.1, first_layer=True, stable_first=choice == "stable")
    (made,) = prune(network, x, point, balls(x, radius, math.inf, (0.0, 1.0)), pruning)
    return certified_lower(network, x[0], label, made.pruned, adversary=point[0], seconds=options.seconds)


def read(path: Path) -> dict[tuple[str, int, str, float], dict[str, Any]]:
    """The last line of every network, image, choice and ratio."""
    return {(line["network"], line["index"], line["choice"], line["ratio"]): line for line in read_lines(path)}


def report(lines: dict[tuple[str, int, str, float], dict[str, Any]]) -> str:
    """A Markdown table: means over the images whose exact distance was reached."""
    rows = [
        "| network | share pruned | images | binaries kept | certified lower / exact, mean (least) | bounds alone | CPU s | exact: binaries | CPU s |"
    ]
    rows.append("|---|--:|--:|---|--:|--:|--:|--:|--:|")
    for network, ratio in sorted({(key[0], key[3]) for key in lines}):
        exact = {k[1]: v for k, v in lines.items() if k[::3] == (network, ratio) and k[2] == "exact" and v["status"] == "optimal"}
        for choice in CHOICES[1:]:
            found = {i: lines[network, i, choice, ratio] for i in exact if (network, i, choice, ratio) in lines}
            if not found:
                continue
            shares = [v["lower"] / exact[i]["upper"] for i, v in found.items()]
            alone = statistics.mean(v["rigorous"] / exact[i]["upper"] for i, v in found.items())
            cells = [f"{statistics.mean(shares):.3f} ({min(shares):.3f})", f"{alone:.3f}", _mean(found, "cpu_seconds")]
            kept = f"{choice}: at most {max(v['binaries'] for v in found.values())}"
            whole = {i: exact[i] for i in found}
            cells += [str(max(v["binaries"] for v in whole.values())), _mean(whole, "cpu_seconds")]
            rows.append(f"| {network} | {ratio} | {len(found)} | {kept} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _mean(lines: dict[int, dict[str, Any]], name: str) -> str:
    return f"{statistics.mean(line[name] for line in lines.values()):.1f}"


def main() -> None:
    """Answer what is not answered yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, help="Folder with MNIST.")
    parser.add_argument("--anchors", type=int, default=5)
    parser.add_argument("--ratio", type=float, default=0.9)
    parser.add_argument("--seconds", type=float, default=60.0, help="An image and choice.")
    parser.add_argument("--results", type=Path, default=Path("results/certified_lower.jsonl"))
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.report:
        sys.stdout.write(report(read(options.results)))
        return
    if options.data is None or not options.networks:
        parser.error("networks and --data are needed")
    torch.set_num_threads(1)
    on_cpu_clock()
    options.results.parent.mkdir(exist_ok=True)
    done = read(options.results)
    for path in options.networks:
        network = Network.from_onnx(path)
        for index, x, label in images(network, options.data, options.anchors):
            for choice in CHOICES:
                key = (path.stem, index, choice, options.ratio)
                if key in done:
                    continue
                line = dict(zip(("network", "index", "choice", "ratio"), key, strict=True)) | answer(network, x, label, choice, options)
                append_line(options.results, line)
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
