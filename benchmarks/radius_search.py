"""Bound calls that three searches need for the largest certified radius of an image: thesis Table 3.9, and the bracketed secant beside it.

    python -m benchmarks.radius_search --models ../shared/models --data ../shared/data [--only mnist] [--count 100] [--norm linf]
    python -m benchmarks.radius_search --report

Every model works on its first `--count` correctly classified test images, by Fast-Lin (CROWN for sigmoid and tanh), pixels in [0, 1], from
the thesis's first interval ([0, 0.4] for MNIST and l-inf) to 1e-4. Results are kept model by model and search by search; a run that was stopped
goes on where it was.

Reference: C. Liu, thesis on verifiable and robust neural networks, section 3.3.2, Algorithm 3.5 and Table 3.9.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.lines import append_line, read_lines
from bounds.crown import Crown, FastLin
from bounds.network import Network
from verify.datasets import load_dataset
from verify.radius_search import Method, Search, certified_radii

TOL = 1e-4
MOST = {("mnist", "linf"): 0.4, ("cifar10", "linf"): 0.1, ("mnist", "l2"): 1.2, ("cifar10", "l2"): 0.4}
"""Where the thesis starts, from 0 on."""
METHODS: tuple[Method, ...] = get_args(Method)
_LOOKED_AT = 4
"""Images looked at for each one that is wanted: enough unless a model is wrong on three of four."""

PRINTED = {
    ("mnist", "fc1", "linf"): {"plain": 9.85, "AT": 10.77, "KW": 8.48, "MMR": 8.04, "MMR+at": 7.68, "L-PER": 9.34, "L-PER+at": 9.38},
    ("mnist", "cnn", "linf"): {"plain": 10.56, "AT": 11.39, "KW": 11.61, "MMR": 10.68, "MMR+at": 11.22, "L-PER": 11.17, "L-PER+at": 11.74},
    ("cifar10", "cnn", "linf"): {"plain": 9.33, "AT": 9.12, "KW": 8.43, "MMR": 8.05, "MMR+at": 8.45, "L-PER": 8.61, "L-PER+at": 8.68},
    ("mnist", "fc1", "l2"): {"plain": 9.68, "AT": 10.44, "KW": 7.72, "MMR": 5.86, "MMR+at": 5.91, "L-PER": 11.47, "L-PER+at": 11.34},
    ("mnist", "cnn", "l2"): {"plain": 13.64, "AT": 13.76, "KW": 12.63, "MMR": 8.52, "MMR+at": 12.13, "L-PER": 13.75, "L-PER+at": 13.72},
}
"""T_PEC of Table 3.9, by data set, architecture and norm; ReLU only."""


def models(folder: Path, only: str, norm: str) -> Iterator[dict[str, str]]:
    """The entries of the folder's index, MNIST first and small networks first."""
    with (folder / "index.csv").open() as file:
        entries = [entry for entry in csv.DictReader(file) if only in entry["file"] and norm in ("", entry["norm"])]
    yield from sorted(entries, key=lambda e: (e["dataset"] != "mnist", e["norm"] == "l2", e["architecture"] != "fc1", e["file"]))


def measure(entry: dict[str, str], options: argparse.Namespace, method: Method) -> dict[str, Any]:
    """One search on one model: radii, bound calls and CPU seconds of its images."""
    network = Network.from_onnx(options.models / entry["file"])
    data = load_dataset(entry["dataset"], options.data / entry["dataset"])
    part = slice(0, min(_LOOKED_AT * options.count, len(data)))
    x, labels = torch.from_numpy(data.pixels(part, network.input_shape)), torch.from_numpy(data.labels[part].astype("int64"))
    right = (network(x).flatten(1).argmax(1) == labels).nonzero().flatten()[: options.count]
    most = MOST[entry["dataset"], entry["norm"]]
    norm = 2.0 if entry["norm"] == "l2" else math.inf
    begin = time.process_time()
    engine = FastLin() if entry["activation"] == "relu" else Crown()
    found = certified_radii(network, x[right], labels[right], norm=norm, engine=engine, search=Search(method, TOL, most))
    return {
        "file": entry["file"],
        "method": method,
        "count": options.count,
        "index": right.tolist(),
        "lower": found.lower.tolist(),
        "calls": found.calls.tolist(),
        "finished": bool(found.finished.all()),
        "cpu_s": time.process_time() - begin,
    }


def stored(path: Path, count: int) -> dict[tuple[str, str], dict[str, Any]]:
    """What is there already, by model and search."""
    return {(row["file"], row["method"]): row for row in read_lines(path) if row["count"] == count}


def mean(values: Sequence[float]) -> float:
    """The average."""
    return sum(values) / len(values)


def line(entry: dict[str, str], found: dict[str, dict[str, Any]]) -> str:
    """A row of the table."""
    calls = {method: mean(found[method]["calls"]) for method in METHODS}
    bisected = found["bisection"]
    printed = PRINTED.get((entry["dataset"], entry["architecture"], entry["norm"]), {}).get(entry["thesis_row"])
    printed = printed if entry["activation"] == "relu" else None
    ours, secant = calls["pec"] / calls["bisection"], calls["secant"] / calls["bisection"]
    theirs = None if printed is None else printed / math.ceil(math.log2(MOST[entry["dataset"], entry["norm"]] / TOL))
    gains = [[a - b for a, b in zip(found[method]["lower"], bisected["lower"], strict=True)] for method in METHODS]
    milliseconds = [1000 * found[method]["cpu_s"] / len(bisected["calls"]) for method in METHODS]
    cells = [
        entry["file"].removesuffix(".onnx"),
        str(len(bisected["calls"])),
        f"{mean(bisected['lower']):.4f}",
        f"{calls['bisection']:.2f}",
        f"{calls['pec']:.2f}",
        f"{ours:.3f}",
        "-" if theirs is None else f"{theirs:.3f} ({ours - theirs:+.3f}){'' if abs(ours - theirs) <= 0.05 else ' **!**'}",
        f"{calls['secant']:.2f}",
        f"{secant:.3f}{'' if secant <= 0.5 else ' **!**'}",
        " / ".join(f"{1e4 * value:+.1f}" for value in (min(gains[2]), max(gains[2]))) + ("" if min(gains[2]) >= -TOL else " **!**"),
        f"{1e4 * max(gains[1]):+.1f}",
        " / ".join(f"{value:.0f}" for value in milliseconds),
    ]
    return "| " + " | ".join(cells) + " |"


HEADS = (
    "model",
    "images",
    "mean radius",
    "T_Lin",
    "T_PEC",
    "T_PEC / T_Lin",
    "thesis (difference)",
    "secant",
    "secant / T_Lin",
    "radii beside bisection's, 1e-4",
    "the same, Algorithm 3.5",
    "CPU ms/image",
)


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("results/radius_search.jsonl"))
    parser.add_argument("--only", default="mnist", help="part of the names to measure")
    parser.add_argument("--norm", default="", choices=("", "linf", "l2"), help="only models of this norm")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--report", action="store_true", help="print what is there without working further")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = stored(options.out, options.count)
    lines = []
    for entry in models(options.models, options.only, options.norm):
        for method in METHODS if not options.report else ():
            if (entry["file"], method) not in done:
                sys.stderr.write(f"{entry['file']}: {method}\n")
                done[entry["file"], method] = row = measure(entry, options, method)
                append_line(options.out, row)
        if all((entry["file"], method) in done for method in METHODS):
            lines.append(line(entry, {method: done[entry["file"], method] for method in METHODS}))
    print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
