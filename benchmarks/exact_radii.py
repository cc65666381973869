"""Exact radii of the demo's network: the images nearest to another class, and the first ones.

    python -m benchmarks.exact_radii --data ../shared/data [--norms inf 1] [--images 20] [--among 1000] [--seconds 60] [--cpu-clock]

The images are those of the first `--among` test images, correctly classified, whose l-inf radius certified by CROWN is smallest; with
`--among` equal to `--images`, the first ones. Each radius is one JSON line of the results file; a run started again continues where the last
one stopped. `--report` prints the table of a results file.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.lines import append_line, read_lines
from bounds.network import Network
from verify.datasets import load_dataset
from verify.radius import Limits, Search, certified_radii, certified_radius

NETWORK = Path(__file__).resolve().parent.parent / "demo" / "network.onnx"


@dataclass(frozen=True)
class Case:
    """One image in one norm; limit: seconds."""

    norm: str
    index: int
    limit: float


def chosen(network: Network, images: Tensor, labels: Tensor, count: int) -> list[int]:
    """The correctly classified images with the smallest radii certified by CROWN to 0.01, in their own order."""
    radii = certified_radii(network, images, labels, search=Search(tol=0.01, most=0.25)).lower
    right = (network.to(torch.float64)(images.double()).flatten(1).argmax(1) == labels).nonzero().flatten()
    return sorted(right[radii[right].argsort(stable=True)[:count]].tolist())


def measure(network: Network, image: Tensor, label: int, case: Case) -> dict[str, Any]:
    """Both ends and what they took."""
    begin = time.process_time()
    norm = math.inf if case.norm == "inf" else float(case.norm)
    (bounds,) = certified_radius(network, image[None], torch.tensor([label]), norm=norm, method="alpha")
    quick, begin = time.process_time() - begin, time.process_time()
    (found,) = certified_radius(network, image[None], torch.tensor([label]), norm=norm, method="exact", limits=Limits(seconds=case.limit))
    certificate = found.certificate
    return asdict(case) | {
        "label": label,
        "alpha": bounds.lower,
        "attack": bounds.upper,
        "alpha_cpu_seconds": quick,
        "lower": found.lower,
        "upper": found.upper,
        "optimal": found.exact is not None,
        "proof": certificate.proof if certificate else None,
        "by": certificate.engine if certificate else None,
        "cpu_seconds": time.process_time() - begin,
        "note": found.note,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file, the last one of every case; a line that was cut off is left out."""
    return list({(line["norm"], line["index"]): line for line in read_lines(path)}.values())


def report(lines: Sequence[dict[str, Any]]) -> str:
    """One row an image, then one a norm."""
    rows = ["| norm | image | alpha | exact lower | upper | attack | proof | CPU s | |", "|" + "---|" * 9]
    for line in sorted(lines, key=lambda line: (line["norm"] != "inf", line["index"])):
        numbers = [f"{line[name]:.7f}" for name in ("alpha", "lower", "upper", "attack")]
        state = "optimal" if line["optimal"] else f"open: {(line['upper'] / line['lower'] - 1):.2%}"
        rows.append(
            "| " + " | ".join([line["norm"], str(line["index"]), *numbers, str(line["proof"]), f"{line['cpu_seconds']:.1f}", state]) + " |"
        )
    rows += [
        "",
        "| norm | images | optimal | proof without a solver | median alpha / exact | median attack / exact | median CPU s | most |",
        "|" + "---|" * 8,
    ]
    for norm in sorted({line["norm"] for line in lines}, reverse=True):
        group = [line for line in lines if line["norm"] == norm]
        below, above = (statistics.median(line[name] / line["upper"] for line in group) for name in ("alpha", "attack"))
        seconds = [line["cpu_seconds"] for line in group]
        cells = [norm, len(group), sum(line["optimal"] for line in group), sum(line["proof"] == "rigorous" for line in group)]
        cells += [f"{below:.4f}", f"{above:.4f}", f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def main() -> None:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--norms", nargs="+", default=["inf", "1"], choices=["inf", "1", "2"])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--among", type=int, default=1000, help="Test images that the images are taken from.")
    parser.add_argument("--seconds", type=float, default=60.0, help="Limit for one image.")
    parser.add_argument("--cpu-clock", action="store_true", help="Count the limit in CPU seconds: for machines that others keep busy.")
    parser.add_argument("--out", type=Path, default=Path("results/exact_radii.jsonl"))
    parser.add_argument("--report", action="store_true", help="Print the table of the results file and stop.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cpu_clock:
        time.monotonic = time.process_time
    if not options.report:
        network, data = Network.from_onnx(NETWORK), load_dataset("mnist", options.data)
        images = torch.from_numpy(data.pixels(slice(0, options.among), network.input_shape))
        labels = torch.from_numpy(data.labels[: options.among].astype("int64"))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        wanted = chosen(network, images, labels, options.images)
        done = {(line["norm"], line["index"]) for line in read(options.out) if line["optimal"] or line["limit"] >= options.seconds}
        for norm, index in [(norm, index) for norm in options.norms for index in wanted]:
            if (norm, index) in done:
                continue
            line = measure(network, images[index], int(labels[index]), Case(norm, index, options.seconds))
            append_line(options.out, line)
            print(*line.values(), flush=True)
    print(report(read(options.out)))


if __name__ == "__main__":
    main()
