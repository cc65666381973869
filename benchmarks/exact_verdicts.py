"""The column CRE MIP of thesis Table 3.6 on the first test images: robust errors decided one image after the other, l-inf 0.1 in [0, 1].

    python -m benchmarks.exact_verdicts --models ../shared/models --data ../shared/data [--images 100] [--seconds 60] [--cpu-clock]

With `--known FOLDER`, the results of `benchmarks.thesis_tables` (`ringfence evaluate`), images that its bounds proved or its attack broke are
taken from there. Every other image is one question to `verify.run.verify` with its default stages. Each answer is one JSON line of the
results file; a run started again continues where the last one stopped. `--report` prints the table of a results file. The printed figures
are over all 10,000 test images; those of fewer may differ by the sampling error in the table.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lines import append_line, read_lines
from bounds.network import Network
from verify.datasets import Dataset, load_dataset
from verify.run import verify
from verify.spec import robustness
from verify.verdict import Unknown, Verified

EPS = 0.1
PRINTED = {"mnist_fc1_relu_linf_l-per": 7.69, "mnist_cnn_relu_linf_kw": 4.40}
"""Percent, Table 3.6."""


@dataclass(frozen=True)
class Settings:
    """seconds: limit an image; eps: radius of the l-inf ball."""

    seconds: float
    eps: float = EPS


def answer(network: Network, data: Dataset, index: int, settings: Settings) -> dict[str, Any]:
    """The verdict on one image: misclassified, falsified, verified or open."""
    x, label = data.pixels([index], network.input_shape)[0], int(data.labels[index])
    scores = network.to(torch.float64)(torch.from_numpy(x)[None].double()).flatten()
    if int(scores.argmax()) != label:
        return {"index": index, "label": label, "verdict": "misclassified"}
    begin = time.process_time()
    verdict = verify(network, robustness(x, label, settings.eps, norm=math.inf, outputs=network.outputs), timeout=settings.seconds).verdict
    line: dict[str, Any] = {"index": index, "label": label, "cpu_seconds": time.process_time() - begin}
    if isinstance(verdict, Unknown):
        return line | {"verdict": "open", "reason": verdict.reason, "bound": verdict.bound}
    if isinstance(verdict, Verified):
        return line | {"verdict": "verified", "by": verdict.decided_by, "proof": verdict.proof, "bound": verdict.bound}
    return line | {"verdict": "falsified", "by": verdict.decided_by, "class": int(verdict.y.argmax())}


def known(path: Path) -> dict[int, dict[str, Any]]:
    """What `ringfence evaluate` decided, by image: misclassified, verified by its bounds or falsified by its attack."""
    found: dict[int, dict[str, Any]] = {}
    header, *chunks = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    if (header["norm"], header["eps"], header["clip"], header["dataset"]) != ("inf", EPS, True, "mnist"):
        raise SystemExit(f"{path} answers another question than l-inf {EPS} in [0, 1] on MNIST")
    for chunk in chunks:
        for number, correct in enumerate(chunk["correct"]):
            index = chunk["first"] + number
            proven = [name for name, margins in chunk["margins"].items() if correct and margins[number] is not None and margins[number] > 0]
            if not correct:
                found[index] = {"index": index, "verdict": "misclassified"}
            elif proven:
                found[index] = {"index": index, "verdict": "verified", "by": f"{proven[-1]} before", "proof": "rigorous"}
            elif chunk["broken"][number]:
                found[index] = {"index": index, "verdict": "falsified", "by": "pgd before"}
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file, the last one of every image; a line that was cut off is left out."""
    return list({(line["network"], line["eps"], line["index"]): line for line in read_lines(path)}.values())


def settled(line: dict[str, Any], settings: Settings) -> bool:
    """Whether an image need not be asked about again."""
    return line["verdict"] != "open" or line["limit"] >= settings.seconds


def report(lines: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with one row a network."""
    head = "| network | images | misclassified | falsified | verified (solver proofs) | open | robust error, % | printed | sampling error "
    head += "| decided by | CPU s median / max |"
    rows = [head, "|" + "---|" * 11]
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(line["network"], []).append(line)
    return "\n".join([*rows, *(_row(name, group) for name, group in groups.items())])


def _row(name: str, group: Sequence[dict[str, Any]]) -> str:
    counts = collections.Counter(line["verdict"] for line in group)
    solver = sum(line.get("proof") == "solver" for line in group)
    stages = collections.Counter(line["by"] for line in group if "by" in line)
    seconds = [line["cpu_seconds"] for line in group if "cpu_seconds" in line]
    wrong, count = counts["misclassified"] + counts["falsified"], len(group)
    error = f"{100 * wrong / count:.2f}" + (f" to {100 * (wrong + counts['open']) / count:.2f}" if counts["open"] else "")
    printed = PRINTED.get(name)
    share = (printed if printed is not None else 100 * wrong / count) / 100
    sampling = 100 * math.sqrt(share * (1 - share) / count)
    cells = [name, count, counts["misclassified"], counts["falsified"], f"{counts['verified']} ({solver})", counts["open"], error]
    cells += ["" if printed is None else f"{printed:.2f}", f"{sampling:.1f}", ", ".join(f"{k} {v}" for k, v in stages.most_common())]
    cells += [f"{statistics.median(seconds):.2f} / {max(seconds):.1f}" if seconds else ""]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Ask about the images that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", default=list(PRINTED), help="Networks by name.")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0, help="Limit for one image.")
    parser.add_argument("--cpu-clock", action="store_true", help="Count the limit in CPU seconds: for machines that others keep busy.")
    parser.add_argument("--out", type=Path, default=Path("results/exact_verdicts.jsonl"))
    parser.add_argument("--known", type=Path, help="Folder with NETWORK.jsonl of `benchmarks.thesis_tables`.")
    parser.add_argument("--report", action="store_true", help="Print the table of the results file and stop.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cpu_clock:
        time.monotonic = time.process_time
    settings = Settings(options.seconds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in [] if options.report else options.only:
        network, data = Network.from_onnx(options.models / f"{name}.onnx"), load_dataset("mnist", options.data)
        done = {
            line["index"]
            for line in read(options.out)
            if (line["network"], line["eps"]) == (name, settings.eps) and settled(line, settings)
        }
        before = known(options.known / f"{name}.jsonl") if options.known else {}
        for index in sorted(set(range(options.images)) - done):
            line = {"network": name, "eps": settings.eps, "limit": settings.seconds}
            line |= before[index] if index in before else answer(network, data, index, settings)
            append_line(options.out, line)
            if index not in before:
                print(*line.values(), flush=True)
    print(report(read(options.out)))


if __name__ == "__main__":
    main()
