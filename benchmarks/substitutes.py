"""Estimates on local substitutes against exact distances: the shape of Table 1 of the paper, with an open solver.

    python -m benchmarks.substitutes --train results/substitutes --data ../shared/data/mnist
    python -m benchmarks.substitutes results/substitutes/fc_at.onnx --data ../shared/data/mnist [--anchors 10] [--seconds 60]
    python -m benchmarks.substitutes --report

The anchors are the first test images that the network classifies correctly. Every pair of an anchor and a configuration (type, share, layers) is
one line of the results file; lines that are in it are not made again. Exact distances of the network are searched once an anchor. Times are CPU
seconds of one thread, solver included; neurons are pruned for all anchors in one batch, and each anchor has its share of that time.

The paper divides by optimisation runs because it asks about one radius after another. Here a program has the distance itself as its objective:
a run is one such program, for one class. Runs of both networks start from the same attack and the same certificate of nothing, so that their
radii are comparable: everything up to the adversary's distance. Programs are asked alone, without the branching that usually comes before them.
Where that does not end in time for the network, branching and programs get as much time again for the distance; the time counted is the first one.
"""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lines import append_line, read_lines
from benchmarks.substitute_networks import train_all
from bounds.network import Network
from milp.distance import Distance
from milp.solvers import get_solver, highs
from verify import narrowing
from verify.datasets import load_dataset
from verify.exact_radius import exact_radius
from verify.pruning import Limits, Order, Pruning
from verify.substitute import Estimate, Estimator

_NEURONS: tuple[tuple[bool, Order], ...] = ((True, "width"), (False, "width"), (True, "effect"))
CONFIGURATIONS = tuple(
    Pruning(kind, ratio, 0.1, first_layer=first, order=order)
    for first, order in _NEURONS
    for kind in ("constant", "linear", "activation")
    for ratio in (0.9, 0.99)
    if kind != "constant" or (first and order == "width")
)
RESULTS = Path("results/substitutes.jsonl")


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

    def __init__(self, path: Path, data: Path, out: Path, limits: Limits, count: int) -> None:
        self.name, self.network, self.out, self.limits = path.stem, Network.from_onnx(path), out, limits
        self.anchors = list(anchors(self.network, data, count))
        self.done = {(line["network"], *key(line)) for line in read_lines(out)}

    def run(self, configurations: Sequence[Pruning]) -> None:
        """Everything that is missing, anchor by anchor."""
        started = {chosen: self.started(chosen) for chosen in configurations if self.missing(chosen)}
        for number, (index, x, label) in enumerate(self.anchors):
            if (self.name, index, "none", 0.0, True, "width") not in self.done:
                self.store({"index": index, "kind": "none", "ratio": 0.0, "first_layer": True}, self.exact(x, label))
            for chosen, starts in started.items():
                if (self.name, index, *described(chosen)) not in self.done:
                    names = ("kind", "ratio", "first_layer", "order")
                    head = {"index": index} | dict(zip(names, described(chosen), strict=True))
                    self.store(head, self.substitute(starts[number], x, chosen))

    def missing(self, chosen: Pruning) -> bool:
        """Whether some anchor has no line of this configuration."""
        return any((self.name, index, *described(chosen)) not in self.done for index, _, _ in self.anchors)

    def started(self, chosen: Pruning) -> list[Estimate]:
        """Attacks and substitutes of all anchors, in one batch."""
        images, labels = torch.stack([x for _, x, _ in self.anchors]), torch.tensor([label for *_, label in self.anchors])
        return Estimator(self.network, chosen, limits=self.limits, certify=0.0).start(images, labels)

    def exact(self, x: Tensor, label: int) -> dict[str, Any]:
        """The network's own distance, from an attack alone, as the substitutes' are."""
        estimator = Estimator(self.network, Pruning("constant", 0.5, 0.4), limits=self.limits)
        start = estimator.start(x[None], torch.tensor([label]))[0]
        begin = time.process_time()
        with programs_alone():
            distance = estimator._distance(self.network, start, x, 0.0, None)
        line = {"d_adv": start.d_adv, "certified": start.certified_lower} | _told(distance, time.process_time() - begin)
        if distance.status == "optimal":
            return line
        again = exact_radius(
            self.network,
            x,
            label,
            lower=distance.rigorous,
            adversary=distance.point,
            seconds=self.limits.seconds,
            solver=self.limits.solver,
        )
        return line | {"lower": max(distance.lower, again.lower), "upper": again.upper, "distance": _told(again, 0.0)["distance"]}

    def substitute(self, start: Estimate, x: Tensor, pruning: Pruning) -> dict[str, Any]:
        """The distance on a substitute, and how long it took to make it."""
        begin = time.process_time()
        with programs_alone():
            found = Estimator(self.network, pruning, limits=self.limits, certify=0.0).finish(start, x)
        return _estimated(found, start.seconds["pruning"], time.process_time() - begin)

    def store(self, head: dict[str, Any], values: dict[str, Any]) -> None:
        """One line more."""
        line = {"network": self.name} | head | values
        self.out.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.out, line)
        print(json.dumps(line), flush=True)


def described(chosen: Pruning) -> tuple[str, float, bool, str]:
    """What tells configurations apart."""
    return chosen.kind, chosen.ratio, chosen.first_layer, chosen.order


def _choice(chosen: Pruning) -> str:
    return "effect" if chosen.order == "effect" else "all" if chosen.first_layer else "not-first"


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """Anchor and configuration of a line."""
    return line["index"], line["kind"], line["ratio"], line["first_layer"], line.get("order", "width")


@contextmanager
def programs_alone() -> Iterator[None]:
    """Exact distances without branching first."""
    before = narrowing.worthwhile
    narrowing.worthwhile = lambda *_: False
    try:
        yield
    finally:
        narrowing.worthwhile = before


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


def report(path: Path) -> None:
    """One row a network and a configuration, as in Table 1."""
    lines = read_lines(path)
    exact = {(line["network"], line["index"]): line for line in lines if line["kind"] == "none"}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        if line["kind"] != "none" and (line["network"], line["index"]) in exact:
            groups.setdefault((line["network"], *key(line)[1:]), []).append(line)
    columns = ["network", "type", "share", "neurons", "both known", "no adversary", "rel. difference", "at most d_adv", "d_adv itself"]
    columns += ["pruning / run", "run with", "run without", "binaries"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for (name, kind, ratio, first, order), group in sorted(groups.items()):
        pairs = [(line, exact[name, line["index"]]) for line in group]
        both = [(a["distance"], b["distance"]) for a, b in pairs if _known(a["distance"]) and _known(b["distance"])]
        difference = [abs(a - b) / b for a, b in both]
        told = f"{np.mean(difference):.4f} ± {np.std(difference):.4f}" if both else "-"
        known = [(a, b) for a, b in pairs if a["distance"] is not None and _known(b["distance"])]
        moved = np.mean([abs(min(a["distance"], a["d_adv"]) - b["distance"]) / b["distance"] for a, b in known]) if known else math.nan
        attack = np.mean([(b["d_adv"] - b["distance"]) / b["distance"] for _, b in known]) if known else math.nan
        mine, theirs = _per_run([a for a, _ in pairs]), _per_run([b for _, b in pairs])
        timed = [a for a, _ in pairs if "pruning_cpu" in a]
        pruning = sum(a["pruning_cpu"] for a in timed) / max(1, sum(a["runs"] for a in timed))
        binaries = f"{np.mean([a['binaries'] for a, _ in pairs]):.0f} of {np.mean([b['binaries'] for _, b in pairs]):.0f}"
        print(
            f"| {name} | {kind} | {ratio} | {'by effect' if order == 'effect' else 'all' if first else 'not the first layer'} | "
            f"{len(both)} of {len(pairs)} | {sum(a['distance'] == math.inf for a, _ in pairs)} | {told} | {moved:.4f} | {attack:.4f} | {pruning:.3f} | "
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
    parser.add_argument("--neurons", choices=("all", "not-first", "effect"), help="Only this choice of neurons.")
    parser.add_argument("--ratio", type=float, help="Only this share.")
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
    wanted = arguments.only.split(",") if arguments.only else [chosen.kind for chosen in CONFIGURATIONS]
    chosen = [c for c in CONFIGURATIONS if c.kind in wanted and arguments.neurons in (None, _choice(c))]
    chosen = [c for c in chosen if not arguments.ratio or c.ratio == arguments.ratio]
    for model in arguments.models:
        Run(model, arguments.data, arguments.out, Limits(arguments.seconds, arguments.solver), arguments.anchors).run(chosen)


if __name__ == "__main__":
    main()
