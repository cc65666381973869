"""Refinement against the plain mixed-integer stage on VNN-COMP instances: what CROWN leaves open, decided by either alone, on a CPU clock.

    python -m benchmarks.refinement --root ../shared/vnncomp [--suites mnist_fc cora] [--match 256x2] [--count 10] [--seconds 60]
    python -m benchmarks.refinement --report

Both start from the same CROWN bounds, and no attack comes before them. Limits and figures are CPU seconds of this process, SCIP's included, so
that other processes do not count. Each answer is one JSON line of the results file; a run started again continues where the last one stopped.
"""

from __future__ import annotations

import argparse
import csv
import gc
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.lines import append_line, read_lines
from bounds.network import Network, Node
from bounds.ops.affine import Linear
from bounds.ops.base import Input
from bounds.ops.piecewise import Relu
from milp.solvers import scip
from verify.refine import Refine
from verify.run import default_stages
from verify.spec import Property, robustness
from verify.stages import Bound, Exact, Options, Query, Stage
from verify.verdict import Falsified, Verified
from verify.vnnlib import load_property

METHODS: dict[str, Stage] = {"milp": Exact(), "refine": Refine()}


def on_cpu_clock() -> None:
    """Let every limit count this process's CPU time."""
    module: Any = scip
    configure = module._configure

    def on_cpu(model: Any, *settings: Any) -> None:
        configure(model, *settings)
        model.setParam("timing/clocktype", 1)

    module._configure = on_cpu
    time.monotonic = time.perf_counter = time.process_time


def instances(root: Path, suites: Sequence[str], match: Sequence[str], count: int | None) -> Iterator[tuple[str, Path, Path]]:
    """(name, network, property) of the instances whose name holds one of the given texts, at most `count` of every suite."""
    for suite in suites:
        with (root / suite / "instances.csv").open(encoding="utf-8") as file:
            found = [(f"{suite}/{Path(r['onnx']).stem} {Path(r['vnnlib']).stem}", r) for r in csv.DictReader(file)]
        chosen = [(name, r) for name, r in found if not match or any(text in name for text in match)]
        for name, row in chosen[:count]:
            yield name, _unpacked(root / suite / row["onnx"]), _unpacked(root / suite / row["vnnlib"])


def _unpacked(path: Path) -> Path:
    return path if path.exists() else path.with_name(path.name + ".gz")


def after_crown(network: Network, question: Property, seconds: float) -> list[Query]:
    """The specifications that CROWN leaves open, better informed."""
    bound = next(stage for stage in default_stages() if isinstance(stage, Bound) and stage.name == "crown")
    queries = [bound(Query.of(network, specification, Options(time.monotonic() + seconds))) for specification in question]
    return [query for query in queries if isinstance(query, Query)]


def answer(network: Network, question: Property, method: str, seconds: float) -> dict[str, Any]:
    """One instance by one method: the verdict and the CPU seconds of its stage."""
    queries = after_crown(network, question, seconds)
    line: dict[str, Any] = {"unstable": max((query.unstable for query in queries), default=0), "limit": seconds}
    begin = time.process_time()
    verdict, detail = "crown" if not queries else "verified", ""
    for query in queries:
        found = METHODS[method](query)
        if isinstance(found, Falsified):
            verdict, detail = "falsified", found.decided_by
            break
        if isinstance(found, Verified):
            detail = found.detail
        else:
            verdict, detail = "open", "; ".join(found.notes) if isinstance(found, Query) else ""
            line["sets_open"] = int((~found.closed).sum()) if isinstance(found, Query) else None
    return line | {"verdict": verdict, "detail": detail, "cpu_seconds": time.process_time() - begin}


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The last line of every instance and method."""
    return {(line["instance"], line["method"]): line for line in read_lines(path)}


def report(lines: dict[tuple[str, str], dict[str, Any]]) -> str:
    """A Markdown table with one row a suite and method, then one row an instance that CROWN leaves open."""
    names = sorted({name for name, _ in lines if all((name, method) in lines for method in METHODS)})
    rows = [
        "| suite | instances | method | verified | falsified | open | CPU s, median | median where verified by both |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for suite in sorted({name.split("/")[0] for name in names}):
        mine = [name for name in names if name.startswith(suite + "/") and lines[name, "milp"]["verdict"] != "crown"]
        both = [name for name in mine if all(lines[name, method]["verdict"] == "verified" for method in METHODS)]
        for method in METHODS:
            verdicts = [lines[name, method]["verdict"] for name in mine]
            counts = " | ".join(str(verdicts.count(kind)) for kind in ("verified", "falsified", "open"))
            rows.append(
                f"| {suite} | {len(mine)} | {method} | {counts} | {_median(lines, mine, method)} | {_median(lines, both, method)} |"
            )
    rows += ["", "| instance | unstable | " + " | ".join(METHODS) + " | |", "|---|--:|" + "---|" * len(METHODS) + "---|"]
    for name in names:
        if lines[name, "milp"]["verdict"] != "crown":
            cells = [f"{lines[name, method]['verdict']} {lines[name, method]['cpu_seconds']:.2f}" for method in METHODS]
            rows.append(
                f"| {name} | {lines[name, 'milp']['unstable']} | {' | '.join(cells)} | {lines[name, 'refine']['detail'].split('; ')[-1]} |"
            )
    return "\n".join(rows) + "\n"


def _median(lines: dict[tuple[str, str], dict[str, Any]], names: Sequence[str], method: str) -> str:
    return f"{statistics.median(lines[name, method]['cpu_seconds'] for name in names):.2f}" if names else "-"


def warm_up() -> None:
    """Load what solvers need, so that no instance pays for it."""
    weight = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    nodes = [
        Node(Input(), (), (2,), "x"),
        Node(Linear(weight), (0,), (2,), "a"),
        Node(Relu(), (1,), (2,), "b"),
        Node(Linear(weight), (2,), (2,), "c"),
    ]
    question = (robustness(torch.full((2,), 0.5), 0, 0.4, norm=float("inf"), outputs=2),)
    for method in METHODS:
        answer(Network(tuple(nodes)), question, method, 1.0)


def main() -> None:
    """Answer what is not answered yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="Folder with one folder a suite, each with instances.csv.")
    parser.add_argument("--suites", nargs="+", default=["mnist_fc", "cora"])
    parser.add_argument("--match", nargs="+", default=[], help="Only instances whose name holds one of these texts.")
    parser.add_argument("--count", type=int, help="At most so many of each suite.")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds an instance and method.")
    parser.add_argument("--results", type=Path, default=Path("results/refinement.jsonl"))
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.report:
        sys.stdout.write(report(read(options.results)))
        return
    if options.root is None:
        parser.error("--root is needed: the folder that holds the suites")
    torch.set_num_threads(1)
    on_cpu_clock()
    done = read(options.results)
    warm_up()
    options.results.parent.mkdir(exist_ok=True)
    for name, model, path in instances(options.root, options.suites, options.match, options.count):
        if all((name, method) in done for method in METHODS):
            continue
        for method in [m for m in METHODS if (name, m) not in done]:
            network = Network.from_onnx(model, check=False)  # anew, because it keeps what was computed from its weights
            question = load_property(path, network)
            gc.collect()
            line = {"instance": name, "method": method} | answer(network, question, method, options.seconds)
            append_line(options.results, line)
            sys.stdout.write(f"{name:40s} {method:7s} {line['verdict']:10s} {line['cpu_seconds']:7.2f} CPU s  {line['detail'][-60:]}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
