"""A results file with something of everything, for tests and for looking at reports:  python -m tests.verify.sample_results FILE [ROWS]"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from verify.records import Configuration, Instance, Outcome, RunInfo
from verify.results import Results

FAMILIES = ("acasxu", "collins_rul_cnn", "mnist", "mnist radii")
OURS = Configuration("ringfence", "0.1.0", {"timeout": 60.0, "memory_mb": 4096.0, "seed": 0, "semantics": "real"})
OTHER = Configuration("other", "2.0", {"timeout": 60.0})
DIGITS = Path(__file__).resolve().parents[2] / "demo" / "images.npz"


def write_sample(path: Path, rows: int = 80) -> None:
    """Two tools on the same instances of four families: every verdict, counterexamples with pictures, radii, one contradiction, one retry."""
    rng = np.random.default_rng(0)
    stored = np.load(DIGITS)
    machine = {"host": "example", "system": "Linux", "processor": "example", "cores": 2, "python": "3.11"}
    with Results.write(path) as results:
        for configuration in (OURS, OTHER):
            number = results.configuration(configuration)
            run = results.begin(RunInfo("sample", "local", 2, "0123456789abcdef0123456789abcdef01234567", machine))
            for index in range(rows // 2):
                instance = _instance(index, stored)
                outcome = _outcome(index, configuration is OURS, stored, rng)
                for _ in range(2 if index == 5 else 1):
                    results.record(run, number, instance.key(configuration), instance, outcome)
            results.end(run, "finished" if configuration is OURS else "interrupted")


def _instance(index: int, stored: np.lib.npyio.NpzFile) -> Instance:
    family, number = FAMILIES[index % 4], index // 4
    spec_hash = f"{index:064x}"
    if family.startswith("mnist"):
        label = int(stored["labels"][number % 8])
        question = {"dataset": "mnist", "index": number, "label": label, "norm": "inf", "eps": 0.1}
        return Instance(
            family, f"mnist_cnn image {number}", "models/mnist_cnn.onnx", f"image {number}", "b" * 64, spec_hash, "", 60.0, question
        )
    expected = "sat" if index == 0 else ("unsat", "sat", "")[number % 3]
    return Instance(
        family, f"net_{number} prop_{index}", f"onnx/net_{number}.onnx", f"vnnlib/prop_{index}.vnnlib", "a" * 64, spec_hash, expected, 60.0
    )


def _outcome(index: int, ours: bool, stored: np.lib.npyio.NpzFile, rng: np.random.Generator) -> Outcome:
    family, number = FAMILIES[index % 4], index // 4
    total = float(rng.lognormal(0.0, 1.5))
    cost = {
        "seconds": {"load": 0.01, "attack": total / 4, "bounds": total / 4, "milp": total / 2, "total": total},
        "wall_s": total + 0.02,
        "cpu_s": total,
        "peak_mb": 300.0 + index,
    }
    if family == "mnist radii":
        lower = float(rng.uniform(0.02, 0.12))
        return Outcome("measured", radius_lower=lower, radius_upper=lower * 1.5, semantics="real", decided_by="crown", **cost)
    if index == 8 or (number == 5 and ours):
        return Outcome("error", "the worker died (killed by signal 9)", **cost | {"seconds": {}})
    if number % 4 == 3:
        return Outcome("unknown", "time limit", -0.25, semantics="real", **cost)
    if number % 3 != 1:
        return Outcome("verified", None, 0.125, "solver" if index % 5 == 0 else "rigorous", "real", "milp", "scip, tolerance 1e-9", **cost)
    if family != "mnist":
        x, y, center = np.array([[0.1, -0.2]], np.float32), np.array([[1.0, 0.5]], np.float32), np.zeros((1, 2), np.float32)
        rounded: tuple[int, ...] = (1,) if family == "acasxu" else ()
        return Outcome("falsified", decided_by="pgd", rounded=rounded, arrays={"input": x, "output": y, "center": center}, **cost)
    center = stored["images"][number % 8][None].astype(np.float32) / np.float32(255)
    x = np.clip(center + rng.choice(np.array([-0.1, 0.1], np.float32), center.shape), 0, 1)
    outputs = {"output": rng.normal(size=10).astype(np.float32), "center_output": rng.normal(size=10).astype(np.float32)}
    return Outcome("falsified", decided_by="pgd", arrays={"input": x, "center": center} | outputs, **cost)


if __name__ == "__main__":
    write_sample(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 80)
