"""What the harness of sweeps costs.

    python -m benchmarks.sweep_overhead overhead [--count 500]
    python -m benchmarks.sweep_overhead memory [--count 10000] [--workers 2]

`overhead`: trivial instances, one worker: seconds per instance beyond what the worker spent on loading the question and verifying it, measured
in the same run; a plain write of the same rows beside it tells how much of that is the disk. `memory`: many trivial instances: resident
memory of the driver and of the workers as the sweep goes on. What it survives is in `benchmarks.sweep_kills`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from numpy.random import default_rng
from onnx import TensorProto, helper, numpy_helper

from verify.answer import make_answer
from verify.records import Instance, Outcome, RunInfo
from verify.resources import resident_mb
from verify.results import Results
from verify.suites import read_suite
from verify.sweep import Sweep, Tally
from verify.tasks import Settings, Task
from verify.workers import Workers

SETTINGS = Settings(memory_mb=2048.0)
BOX = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n" + "".join(
    f"(assert (>= X_{i} -1.0))\n(assert (<= X_{i} 1.0))\n" for i in range(2)
)


def trivial_suite(folder: Path, count: int) -> list[Task]:
    """A network with 8 neurons and `count` questions that intervals decide."""
    rng = default_rng(0)
    W, V = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8), (8, 2)))
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "V"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "trivial", [x], [y], [numpy_helper.from_array(W, "W"), numpy_helper.from_array(V, "V")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "net.onnx")
    for number in range(count):
        (folder / f"{number}.vnnlib").write_text(f"{BOX}(assert (>= Y_0 {1000 + number}.0))\n")
    (folder / "instances.csv").write_text("\n".join(f"net.onnx,{number}.vnnlib,20,unsat" for number in range(count)))
    return read_suite([folder / "instances.csv"], None)


def overhead(count: int) -> None:
    """Print the seconds per instance that are not the worker's own."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        begin = time.perf_counter()
        tasks = trivial_suite(folder, count + 1)
        reading = time.perf_counter() - begin
        engine = Workers(1, make_answer, stay=True)
        with Results.write(folder / "r.sqlite") as results:
            Sweep("warm", tasks[:1], SETTINGS).run(results, engine)
            begin, cpu = time.perf_counter(), time.process_time()
            Sweep("overhead", tasks[1:], SETTINGS).run(results, engine)
            wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
            rows = list(results.rows())[1:]
            engine.close()
            begin = time.perf_counter()
            run, number = results.begin(RunInfo("plain", "none", 1, None, {})), rows[0].configuration
            for row in rows:
                results.record(run, number, row.key, row.instance, row.outcome)
            writing = time.perf_counter() - begin
    own = sum(row.outcome.seconds["total"] for row in rows)
    answering = [1e3 * (row.outcome.wall_s - row.outcome.seconds["total"]) for row in rows]
    print(f"{len(rows)} instances, {1e3 * own / len(rows):.2f} ms each for loading the question and verifying it")
    print(f"harness: {1e3 * (wall - own) / len(rows):.2f} ms an instance beyond that ({1e3 * cpu / len(rows):.2f} ms of CPU in the driver)")
    print(f"  of which to the worker and back, median {statistics.median(answering):.2f} ms, largest {max(answering):.2f} ms")
    print(f"  a plain synced write of the same rows: {1e3 * writing / len(rows):.2f} ms each")
    print(f"writing and hashing the suite, before the sweep: {1e3 * reading / len(rows):.2f} ms an instance")


def memory(count: int, workers: int) -> None:
    """Print resident memory while a long sweep goes on."""
    peaks: list[float] = []
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        tasks = trivial_suite(folder, count)
        step = max(1, count // 10)

        def observe(instance: Instance, outcome: Outcome, tally: Tally) -> None:
            peaks.append(outcome.peak_mb or 0.0)
            if tally.asked % step == 0 or tally.asked == step // 10:
                driver = resident_mb(os.getpid()) or 0.0
                recent = max(peaks[-step:])
                seconds = time.monotonic() - tally.began
                print(
                    f"{tally.asked:6d} instances  {seconds:6.1f} s  driver {driver:6.1f} MB  workers at most {recent:6.1f} MB", flush=True
                )
                peaks.clear()

        with Results.write(folder / "r.sqlite") as results:
            tally = Sweep("memory", tasks, SETTINGS).run(results, Workers(workers, make_answer), observe)
    print(f"verdicts: {dict(tally.all.verdicts)}")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "memory"))
    parser.add_argument("--count", type=int)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "overhead":
        overhead(arguments.count or 500)
    else:
        memory(arguments.count or 10_000, arguments.workers)


if __name__ == "__main__":
    main()
