"""How answers scale: solved instances against seconds for every family, and time per sub-problem against the size of a batch.

    python -m benchmarks.scaling cactus RESULTS.jsonl [MORE.jsonl ...] [--plot docs/pictures/cactus.png]
    python -m benchmarks.scaling batch --net NET.onnx --spec SPEC.vnnlib --out results/batch.jsonl [--most 1024]
    python -m benchmarks.scaling batch-table results/batch.jsonl [--plot docs/pictures/batch.png]

The results files are those of `benchmarks.vnncomp_verdicts`; of several answers to one question the decided one counts, the later of two. Seconds
are CPU seconds of the whole process, start-up included. A batch is bounded by the branch and bound over activations (`verify/branch.py`), a
sub-problem being one half; its CPU seconds include choosing what to split, the ascent, the proof, and the attack from the lowest points.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.vnncomp_verdicts import SAT_UNSAT, Record
from verify.pictures import empty_figure, write_figure

LIMITS = (2.0, 3.0, 5.0, 10.0, 20.0, 60.0)
_LEAST = 5
_INK, _FAINT, _LINE, _GRID = "#1a1a1a", "#6b6b6b", "#0b6aa2", "#e4e4e4"
_MARKS = ("o", "s", "^", "D")
_COLOURS = ("#0b6aa2", "#b3541e", "#3f7d20", "#6a3d9a")


def collect(paths: Iterable[Path]) -> dict[str, list[Record]]:
    """The records of every family, one for each question: the last that decides it, else the last."""
    best: dict[tuple[str, str, str], Record] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            record = Record(**json.loads(line))
            key = record.family, record.net, record.spec
            if key not in best or record.verdict in SAT_UNSAT or best[key].verdict not in SAT_UNSAT:
                best[key] = record
    families: dict[str, list[Record]] = {}
    for record in best.values():
        families.setdefault(record.family, []).append(record)
    return dict(sorted(families.items()))


def solved_seconds(records: Sequence[Record]) -> list[float]:
    """CPU seconds of the decided ones, in order."""
    return sorted(record.cpu_seconds for record in records if record.verdict in SAT_UNSAT)


def cactus_table(families: dict[str, list[Record]]) -> str:
    """How many are decided within some CPU seconds."""
    lines = ["| family | asked | " + " | ".join(f"{limit:.0f} s" for limit in LIMITS) + " | decided |", "|---" * (len(LIMITS) + 3) + "|"]
    everything = [record for records in families.values() for record in records]
    for name, records in [*families.items(), ("all", everything)]:
        seconds = solved_seconds(records)
        counts = [str(sum(s <= limit for s in seconds)) for limit in LIMITS]
        lines.append(f"| {name} | {len(records)} | " + " | ".join(counts) + f" | {len(seconds)} |")
    return "\n".join(lines)


def draw_cactus(families: dict[str, list[Record]], path: Path) -> None:
    """One small panel a family of which at least `_LEAST` were asked, all with the same axis of seconds; the dashed line is how many."""
    families = {name: records for name, records in families.items() if len(records) >= _LEAST}
    columns = 4
    height = -(-len(families) // columns)
    figure = empty_figure(9.0, 1.75 * height + 0.5)
    panels = figure.subplots(height, columns, sharex=True, squeeze=False).ravel()
    for panel, (name, records) in zip(panels, families.items(), strict=False):
        seconds = solved_seconds(records)
        panel.step(
            [1.5, *seconds, max(80.0, *seconds, 1.5)],
            [0, *range(1, len(seconds) + 1), len(seconds)],
            where="post",
            color=_LINE,
            linewidth=1.5,
        )
        panel.axhline(len(records), color=_FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
        panel.set_xscale("log")
        panel.set_xlim(1.5, 80)
        panel.set_ylim(0, len(records) * 1.08)
        panel.set_xticks([2, 5, 10, 20, 60], ["2", "5", "10", "20", "60"])
        panel.set_xticks([], minor=True)
        panel.set_title(f"{name}: {len(seconds)} of {len(records)}", fontsize=8.5, color=_INK, loc="left")
        panel.tick_params(labelsize=7.5, color=_FAINT, labelcolor=_INK)
        panel.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        _tidy(panel)
    for panel in panels[len(families) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(families) - columns) : len(families)]:
        panel.tick_params(labelbottom=True)  # the lowest of its column, even where the last row is short
    figure.supxlabel("CPU seconds of the whole process, start-up included", fontsize=8.5, color=_INK)
    figure.supylabel("questions decided", fontsize=8.5, color=_INK)
    write_figure(figure, path)


def _tidy(panel: object) -> None:
    panel.grid(color=_GRID, linewidth=0.6)  # type: ignore[attr-defined]
    panel.set_axisbelow(True)  # type: ignore[attr-defined]
    for name, spine in panel.spines.items():  # type: ignore[attr-defined]
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#b0b0b0")


@dataclass(frozen=True)
class Timing:
    """CPU seconds for each sub-problem where `rows` are bounded at once; subproblems: how many were bounded."""

    net: str
    spec: str
    rows: int
    seconds: float
    subproblems: int


def measure(net: Path, spec: Path, most: int, budget: float) -> Iterable[Timing]:
    """Time batches of 2, 4, ..., `most` halves, all from one pool of open sub-problems; about `budget` CPU seconds a size."""
    import torch

    from bounds.alpha import AlphaCrown
    from bounds.crown import Crown
    from bounds.ibp import Ibp
    from bounds.network import Network
    from verify import branch
    from verify.stages import Bound, Options, Query
    from verify.vnnlib import load_property

    torch.set_num_threads(1)
    network = Network.from_onnx(net)
    query = Query.of(network, load_property(spec, network)[0], Options())
    for name, engine in (("ibp", Ibp), ("crown", Crown), ("alpha", AlphaCrown)):
        outcome = Bound(name, lambda dtype, _, engine=engine: engine(dtype))(query)  # type: ignore[misc]
        if not isinstance(outcome, Query):
            raise SystemExit(f"{name} decides the question; nothing is left to split")
        query = outcome
    stage = branch.SplitNeurons(rows=most)
    search = branch._Search(query, stage, None)
    first = [k for k in range(len(search.goal.ranges)) if not bool(query.closed[k])]
    search._settle(*search._improve([search._whole(k) for k in first], stage.root_steps))

    def once() -> None:
        if search._settle(*search._improve(search._split(search._take()), stage.steps)) is not None:
            raise SystemExit("a counterexample was found; choose a question that holds")

    while len(search.heap) < most:
        once()
    pool = list(search.heap)
    rows = most
    while rows >= 2:
        search.most_rows = rows
        begin, before = time.process_time(), search.bounded
        while search.bounded == before or (time.process_time() - begin < budget and len(search.heap) > rows // 2):
            once()
        seconds, count = time.process_time() - begin, search.bounded - before
        yield Timing(net.name.split(".onnx")[0], spec.name.split(".vnnlib")[0], rows, seconds / count, count)
        search.heap = list(pool)
        rows //= 2


def batch_table(timings: Sequence[Timing]) -> str:
    """Milliseconds a sub-problem, one row a size."""
    nets = list(dict.fromkeys((t.net, t.spec) for t in timings))
    lines = [
        "| sub-problems at once | " + " | ".join(f"{net} {spec}, ms each" for net, spec in nets) + " |",
        "|---" * (len(nets) + 1) + "|",
    ]
    found = {(t.net, t.spec, t.rows): t for t in timings}
    for rows in sorted({t.rows for t in timings}):
        cells = [found.get((net, spec, rows)) for net, spec in nets]
        lines.append(f"| {rows} | " + " | ".join("" if c is None else f"{1e3 * c.seconds:.2f}" for c in cells) + " |")
    return "\n".join(lines)


def draw_batch(timings: Sequence[Timing], path: Path) -> None:
    """Milliseconds a sub-problem against the batch, both axes logarithmic."""
    figure = empty_figure(5.6, 3.4)
    panel = figure.subplots()
    nets = list(dict.fromkeys((t.net, t.spec) for t in timings))
    for (net, spec), mark, colour in zip(nets, _MARKS, _COLOURS, strict=False):
        points = sorted((t.rows, 1e3 * t.seconds) for t in timings if (t.net, t.spec) == (net, spec))
        panel.plot(*zip(*points, strict=True), marker=mark, markersize=4, linewidth=1.4, color=colour, label=f"{net} {spec}")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    sizes = sorted({t.rows for t in timings})
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.set_xlabel("sub-problems bounded at once", fontsize=8.5, color=_INK)
    panel.set_ylabel("CPU milliseconds for each", fontsize=8.5, color=_INK)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.tick_params(labelsize=7.5, color=_FAINT, labelcolor=_INK)
    panel.legend(fontsize=8, frameon=False)
    _tidy(panel)
    write_figure(figure, path)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("cactus", "batch-table"):
        command = commands.add_parser(name)
        command.add_argument("results", type=Path, nargs="+")
        command.add_argument("--plot", type=Path)
    batch = commands.add_parser("batch")
    batch.add_argument("--net", type=Path, required=True)
    batch.add_argument("--spec", type=Path, required=True)
    batch.add_argument("--out", type=Path, required=True)
    batch.add_argument("--most", type=int, default=1024)
    batch.add_argument("--seconds", type=float, default=3.0, help="CPU seconds for each size")
    options = parser.parse_args()
    if options.command == "batch":
        options.out.parent.mkdir(parents=True, exist_ok=True)
        for timing in measure(options.net, options.spec, options.most, options.seconds):
            with options.out.open("a") as file:
                file.write(json.dumps(asdict(timing)) + "\n")
            sys.stdout.write(f"{timing}\n")
            sys.stdout.flush()
        return
    if options.command == "cactus":
        families = collect(options.results)
        sys.stdout.write(cactus_table(families) + "\n")
        draw = (lambda path: draw_cactus(families, path)) if options.plot else None
    else:
        timings = [Timing(**json.loads(line)) for path in options.results for line in path.read_text().splitlines()]
        sys.stdout.write(batch_table(timings) + "\n")
        draw = (lambda path: draw_batch(timings, path)) if options.plot else None
    if draw is not None:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(options.plot)


if __name__ == "__main__":
    main()
