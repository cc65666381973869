"""Non-uniform certificates against the best uniform ball: volume, time, and how alike the regions of different images are.

    python -m benchmarks.nonuniform --models ../shared/models --data ../shared/data [--only fc1] [--out results/nonuniform.jsonl]
    python -m benchmarks.nonuniform --like-for-like results/nonuniform --data ../shared/data
    python -m benchmarks.nonuniform --report

Test images in the official order, misclassified ones left out of the means. Every case (network, method, engine, domain) is one line of the
results file; cases that are in it are not run again. Seconds are CPU seconds of one thread, uniform search and final check included. The
networks of the like-for-like rows are made by `benchmarks.train_nonuniform`.

Columns: `uniform` and `mean`: averages of the bisected uniform eps and of the geometric-mean eps; `ratio`: the mean of their ratios, and the
smallest; `widths`: the mean ratio of the geometric means of the widths of the two boxes after the domain cut them; `cosine`: mean and
smallest cosine between the eps of two images (thesis Table 3.3).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.lines import append_line, read_lines
from bounds.crown import Crown, FastLin
from bounds.engine import BoundEngine
from bounds.network import Network
from bounds.nonuniform import Domain, Method, NonUniform, Search, largest_region
from bounds.region import LpBall
from verify.datasets import load_dataset
from verify.spec import class_margins

ENGINES: dict[str, BoundEngine] = {"crown": Crown(), "fastlin": FastLin(intersect=True)}
_KEYS = ("network", "norm", "domain", "engine", "method", "steps", "images", "learn")


@dataclass(frozen=True)
class Case:
    """One line of the results."""

    network: str
    norm: str = "inf"
    domain: tuple[float, float] | None = (0.0, 1.0)
    engine: str = "crown"
    method: Method = "convex"
    steps: int | None = None
    images: int = 50
    learn: bool = False
    batch: int = 16


def cases(folder: Path, only: str) -> Iterator[tuple[Case, Path]]:
    """The networks of the thesis: every l-inf network, and the thesis's method on two of them; l2 on three."""
    paths = sorted(folder.glob("mnist_fc1_*linf*.onnx")) + sorted(folder.glob("mnist_cnn_relu_linf_*.onnx"))
    for path in paths:
        if only not in path.stem:
            continue
        count, batch = (50, 16) if "fc1" in path.stem else (20, 4)
        yield Case(path.stem, images=count, batch=batch), path
        if "fc1" in path.stem:
            yield Case(path.stem, domain=None, images=count), path
            yield Case(path.stem, images=count, steps=10, learn=True), path
        if path.stem in ("mnist_fc1_relu_linf_plain", "mnist_fc1_relu_linf_kw", "mnist_fc1_relu_linf_l-per"):
            yield Case(path.stem, images=16), path
            yield Case(path.stem, method="lagrangian", images=16), path
            yield Case(path.stem, norm="2", images=16), path
        if path.stem == "mnist_cnn_relu_linf_kw":
            yield Case(path.stem, images=4, batch=batch), path
            yield Case(path.stem, method="lagrangian", images=4, batch=batch), path


def like_for_like(folder: Path) -> Iterator[tuple[Case, Path]]:
    """The thesis's 3x100 networks, pixels in [-1, 1], without a domain as there and with it; the first 8 images as in the authors' figures."""
    for kind, domain, engine in itertools.product(("vanilla", "robust"), (None, (-1.0, 1.0)), ("fastlin", "crown")):
        for method in ("convex", "lagrangian"):
            yield Case(f"3x100 {kind}", domain=domain, engine=engine, method=method, images=8), folder / f"{kind}.onnx"
        yield Case(f"3x100 {kind}", domain=domain, engine=engine, images=100), folder / f"{kind}.onnx"


def measure(case: Case, path: Path, data: Path) -> dict[str, Any]:
    """Run one case."""
    network = Network.from_onnx(path)
    test = load_dataset("mnist", data)
    x = torch.from_numpy(test.pixels(slice(0, case.images), network.input_shape)).double()
    if case.network.startswith("3x100"):
        x = 2 * x - 1
    labels = torch.from_numpy(test.labels[: case.images].astype("int64"))
    right = network.to(torch.float64)(x).flatten(1).argmax(1) == labels
    x, C = x[right], class_margins(labels[right], network.outputs).C
    norm = math.inf if case.norm == "inf" else float(case.norm)
    search, engine = Search(case.method, case.steps, batch=case.batch, learn=case.learn), ENGINES[case.engine]
    begin = time.process_time()
    found = largest_region(network, x, C, (norm, case.domain), engine, None, search)
    seconds = time.process_time() - begin
    return asdict(case) | figures(found, case.domain) | {"correct": int(right.sum()), "seconds": seconds / len(x)}


def figures(found: NonUniform, domain: Domain | None) -> dict[str, Any]:
    """The columns of a case, over the images with a region."""
    kept = found.verified
    eps, ratio = found.eps[kept].flatten(1), found.ratio[kept]
    directions = eps / eps.norm(dim=1, keepdim=True)
    cosines = (directions @ directions.T)[~torch.eye(len(eps), dtype=torch.bool)]
    return {
        "certified": int(kept.sum()),
        "uniform": found.uniform[kept].mean().item(),
        "mean": found.geometric_mean[kept].mean().item(),
        "ratio": ratio.mean().item(),
        "smallest": ratio.min().item(),
        "widths": (_widths(found.regions, kept, domain) / _widths(_balls(found), kept, domain)).mean().item(),
        "calls": found.calls[kept].double().mean().item(),
        "cosine": cosines.mean().item(),
        "smallest_cosine": cosines.min().item(),
        "finished": bool(found.finished.all()),
    }


def _balls(found: NonUniform) -> LpBall:
    shape = (-1, *[1] * len(found.regions.shape))
    return LpBall(found.regions.center, found.uniform.reshape(shape), found.regions.p, found.regions.domain)


def _widths(regions: LpBall, kept: Tensor, domain: Domain | None) -> Tensor:
    """Geometric means of the widths of the boxes around the regions, cut to the domain."""
    box = LpBall(regions.center, regions.eps, math.inf, domain).box()
    return (box.upper - box.lower)[kept].flatten(1).clamp_min(1e-300).log().mean(1).exp()


def key(line: dict[str, Any]) -> str:
    """What makes a case."""
    return json.dumps([line[name] for name in _KEYS])


def report(lines: list[dict[str, Any]]) -> str:
    """The results as a table."""
    head = "| network | norm | domain | engine | method | images | uniform | mean | ratio (smallest) | widths | cosine (smallest) | calls | s/image |"
    rows = [head, "|" + "---|" * 13]
    for line in lines:
        method = line["method"] + ("" if line["steps"] is None else f", {line['steps']} steps") + (", learn" if line["learn"] else "")
        domain = "none" if line["domain"] is None else f"[{line['domain'][0]:g}, {line['domain'][1]:g}]"
        cells = [line["network"], line["norm"], domain, line["engine"], method, f"{line['certified']} of {line['images']}"]
        cells += [f"{line['uniform']:.4f}", f"{line['mean']:.4f}", f"{line['ratio']:.3f} ({line['smallest']:.3f})", f"{line['widths']:.3f}"]
        cells += [f"{line['cosine']:.4f} ({line['smallest_cosine']:.4f})", f"{line['calls']:.0f}", f"{line['seconds']:.2f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Run the cases that are missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="Folder of the thesis's networks.")
    parser.add_argument("--like-for-like", type=Path, help="Folder of vanilla.onnx and robust.onnx.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="", help="Networks whose name holds this.")
    parser.add_argument("--out", type=Path, default=Path("results/nonuniform.jsonl"))
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.report:
        print(report(read_lines(options.out)))
        return
    wanted = list(cases(options.models, options.only)) if options.models else []
    wanted += list(like_for_like(options.like_for_like)) if options.like_for_like else []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for case, path in wanted:
        if key(json.loads(json.dumps(asdict(case)))) in {key(line) for line in read_lines(options.out)}:
            continue
        line = measure(case, path, options.data)
        append_line(options.out, line)
        print(report([line]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
