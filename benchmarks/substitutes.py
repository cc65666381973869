"""Estimates on local substitutes against exact distances: the shape of Table 1 of the paper, with an open solver.

    python -m benchmarks.substitutes --train results/substitutes --data ../shared/data/mnist
    python -m benchmarks.substitutes results/substitutes/fc_at.onnx --data ../shared/data/mnist [--anchors 10] [--seconds 60]
    python -m benchmarks.substitutes --report

The anchors are the first test images that the network classifies correctly. Every pair of an anchor and a configuration (type, share, layers) is
one line of the results file; lines that are in it are not made again. Exact distances of the network are searched once an anchor. Times are CPU
seconds of one thread, solver included.

The paper divides by optimisation runs because it asks about one radius after another. Here a program has the distance itself as its objective:
a run is one such program, for one class. Runs of both networks start from the same attack and the same certificate of nothing, so that their
radii are comparable: everything up to the adversary's distance.
"""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.train_demo import pixels, read_split, to_onnx
from bounds.network import Network
from bounds.substitutes import Kind
from milp.distance import Distance
from milp.solvers import get_solver, highs
from verify.datasets import load_dataset
from verify.pruning import Limits, Pruning, balls, prune
from verify.substitute import Estimate, Estimator

CONFIGURATIONS: tuple[tuple[Kind, float, bool], ...] = (
    ("constant", 0.9, True),
    ("constant", 0.99, True),
    ("linear", 0.9, True),
    ("linear", 0.99, True),
    ("activation", 0.9, True),
    ("activation", 0.99, True),
    ("linear", 0.9, False),
    ("linear", 0.99, False),
    ("activation", 0.9, False),
    ("activation", 0.99, False),
)
"""Type, share, and whether the first layer takes part."""
RESULTS = Path("results/substitutes.jsonl")
_NETWORKS = ("fc", "cnn")
_EPS = 0.1
_EPOCHS = 3


def build(name: str) -> nn.Sequential:
    """The networks trained here: two hidden layers of 32, or two small convolutions and a hidden layer of 32."""
    if name == "fc":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    convolutions = (nn.Conv2d(1, 3, 5, stride=4, padding=1), nn.ReLU(), nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*convolutions, nn.Linear(6 * 16, 32), nn.ReLU(), nn.Linear(32, 10))


def train(name: str, images: Tensor, labels: Tensor, eps: float) -> nn.Sequential:
    """Ordinary training (eps 0), or adversarial training with projected gradient steps in the l-inf ball of radius eps."""
    torch.manual_seed(0)
    generator, model = torch.Generator().manual_seed(0), build(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(images), generator=generator).split(128):
            x, y = images[batch], labels[batch]
            moved = x
            for _ in range(4 if eps > 0 else 0):
                start = moved.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(functional.cross_entropy(model(start), y), start)
                moved = (x + (start + 0.4 * eps * gradient.sign() - x).clamp(-eps, eps)).clamp(0, 1).detach()
            optimizer.zero_grad()
            functional.cross_entropy(model(moved), y).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def train_all(folder: Path, data: Path) -> None:
    """Every network, plain and adversarially trained, as ONNX files."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = read_split(data, "train")
    test_images, test_labels = read_split(data, "t10k")
    for name in _NETWORKS:
        for training, eps in (("plain", 0.0), ("at", _EPS)):
            model = train(name, pixels(images), torch.from_numpy(labels.astype(np.int64)), eps)
            accuracy = float((model(pixels(test_images)).argmax(1).numpy() == test_labels).mean())
            (folder / f"{name}_{training}.onnx").write_bytes(to_onnx(model))
            print(f"{name}_{training}: test accuracy {100 * accuracy:.2f} %", flush=True)


def anchors(network: Network, data: Path, count: int) -> Iterator[tuple[int, Tensor, int]]:
    """The first test images that are classified correctly: number, pixels, label."""
    images = load_dataset("mnist", data)
    found = 0
    for index in range(len(images)):
        x, label = torch.from_numpy(images.pixels([index], network.input_shape)).double(), int(images.labels[index])
        if int(network.to(torch.float64)(x).flatten(1).argmax(1)) == label:
            yield index, x[0], label
            found += 1
        if found == count:
            return


class Run:
    """One network's anchors, stored line by line."""

    def __init__(self, path: Path, data: Path, out: Path, seconds: float, solver: str) -> None:
        self.name, self.network, self.data, self.out = path.stem, Network.from_onnx(path), data, out
        self.limits = Limits(seconds, solver)
        self.done = {(line["network"], line["index"], line["kind"], line["ratio"], line["first_layer"]) for line in read(out)}

    def run(self, count: int, configurations: tuple[tuple[Kind, float, bool], ...]) -> None:
        """Everything that is missing, anchor by anchor."""
        for index, x, label in anchors(self.network, self.data, count):
            if (self.name, index, "none", 0.0, True) not in self.done:
                self.store(index, "none", 0.0, True, self.exact(x, label))
            for kind, ratio, first in configurations:
                if (self.name, index, kind, ratio, first) not in self.done:
                    self.store(index, kind, ratio, first, self.substitute(x, label, Pruning(kind, ratio, 0.1, first)))

    def exact(self, x: Tensor, label: int) -> dict[str, Any]:
        """The network's own distance, from an attack alone, as the substitutes' are."""
        estimator = Estimator(self.network, Pruning("constant", 0.5, 0.4), limits=self.limits)
        start = estimator.start(x[None], torch.tensor([label]))[0]
        begin = time.process_time()
        distance = estimator._distance(self.network, start, x, 0.0, None)
        return {"d_adv": start.d_adv, "certified": start.certified_lower} | _told(distance, time.process_time() - begin)

    def substitute(self, x: Tensor, label: int, pruning: Pruning) -> dict[str, Any]:
        """The distance on a substitute, and how long it took to make it."""
        estimator = Estimator(self.network, pruning, limits=self.limits, certify=0.0)
        start = estimator.start(x[None], torch.tensor([label]))[0]
        made = self.pruned(start, x, pruning)
        begin = time.process_time()
        found = estimator.finish(start, x)
        spent = time.process_time() - begin
        return _estimated(found, made, spent)

    def pruned(self, start: Estimate, x: Tensor, pruning: Pruning) -> float:
        """CPU seconds of Algorithm 1 alone, on the same ball."""
        if start.adversary is None:
            return 0.0
        points, radius = torch.from_numpy(start.adversary.astype(np.float64))[None], torch.tensor([start.d_adv], dtype=torch.float64)
        begin = time.process_time()
        prune(self.network, x[None], points, balls(x[None], radius, math.inf, (0.0, 1.0)), pruning)
        return time.process_time() - begin

    def store(self, index: int, kind: str, ratio: float, first: bool, values: dict[str, Any]) -> None:
        """One line more."""
        line = {"network": self.name, "index": index, "kind": kind, "ratio": ratio, "first_layer": first} | values
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def _told(distance: Distance, seconds: float) -> dict[str, Any]:
    optimal = distance.status == "optimal"
    ends = {"lower": distance.lower, "upper": distance.upper, "distance": distance.upper if optimal else None}
    return ends | {"status": distance.status, "runs": distance.solves, "binaries": distance.binaries, "seconds": seconds}


def _estimated(found: Estimate, pruning: float, seconds: float) -> dict[str, Any]:
    ends = {
        "lower": found.estimate_range[0],
        "upper": found.estimate_range[1],
        "distance": found.estimate,
        "status": found.note or "optimal",
    }
    sizes = {
        "activations": (found.before.activations, found.after.activations),
        "parameters": (found.before.parameters, found.after.parameters),
    }
    work = {"runs": found.seconds["runs"], "binaries": found.binaries[0], "seconds": seconds, "pruning_cpu": pruning}
    return ends | sizes | work | {"delta": found.delta, "certified": found.certified_lower, "d_adv": found.d_adv}


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def report(path: Path) -> None:
    """One row a network and a configuration, as in Table 1."""
    lines = read(path)
    exact = {(line["network"], line["index"]): line for line in lines if line["kind"] == "none"}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        if line["kind"] != "none" and (line["network"], line["index"]) in exact:
            groups.setdefault((line["network"], line["kind"], line["ratio"], line["first_layer"]), []).append(line)
    print("| network | type | share | first layer | both optimal | rel. difference | pruning / run | run with | run without | binaries |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (name, kind, ratio, first), group in groups.items():
        pairs = [(line, exact[name, line["index"]]) for line in group]
        both = [(a["distance"], b["distance"]) for a, b in pairs if _known(a["distance"]) and _known(b["distance"])]
        difference = [abs(a - b) / b for a, b in both]
        told = f"{np.mean(difference):.4f} ± {np.std(difference):.4f}" if both else "-"
        mine, theirs = _per_run([a for a, _ in pairs]), _per_run([b for _, b in pairs])
        timed = [a for a, _ in pairs if "pruning_cpu" in a]
        pruning = sum(a["pruning_cpu"] for a in timed) / max(1, sum(a["runs"] for a in timed))
        binaries = f"{np.mean([a['binaries'] for a, _ in pairs]):.0f} of {np.mean([b['binaries'] for _, b in pairs]):.0f}"
        print(
            f"| {name} | {kind} | {ratio} | {'yes' if first else 'no'} | {len(both)} of {len(pairs)} | {told} | {pruning:.3f} | "
            f"{mine:.2f} | {theirs:.2f} | {binaries} |"
        )


def _known(distance: float | None) -> bool:
    return distance is not None and 0 < distance < math.inf


def _per_run(lines: list[dict[str, Any]]) -> float:
    """CPU seconds of one program."""
    return sum(line["seconds"] for line in lines) / max(1, sum(line["runs"] for line in lines))


def _run_on_cpu_clock(model: Any) -> None:
    """Solve with a limit that counts CPU seconds of this process: the wall-clock limit is lifted, and a watcher cancels the solve."""
    limit = model.getOptionValue("time_limit")[1]
    end = time.process_time() + limit
    model.setOptionValue("time_limit", math.inf)
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(model.run()), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.2)
        if time.process_time() > end:
            model.cancelSolve()
            thread.join()
    highs._check(done[0], "run")


def main() -> None:
    """Train, run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--anchors", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--solver", default="highs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", default="", help="types to run, separated by commas")
    parser.add_argument("--all-layers", action="store_true", help="Only where the first layer takes part.")
    parser.add_argument("--cpu-clock", action="store_true", help="Count limits in CPU seconds: for machines that others keep busy.")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.report:
        report(arguments.out)
        return
    if arguments.data is None:
        parser.error("--data is needed")
    if arguments.train is not None:
        train_all(arguments.train, arguments.data)
    if arguments.cpu_clock:
        time.monotonic = time.perf_counter = time.process_time
        get_solver(arguments.solver)  # its module is loaded before it is changed
        highs._run = _run_on_cpu_clock  # type: ignore[assignment]
    wanted = arguments.only.split(",") if arguments.only else [c[0] for c in CONFIGURATIONS]
    chosen = tuple(c for c in CONFIGURATIONS if c[0] in wanted and (c[2] or not arguments.all_layers))
    for model in arguments.models:
        Run(model, arguments.data, arguments.out, arguments.seconds, arguments.solver).run(arguments.anchors, chosen)


if __name__ == "__main__":
    main()
