"""The report of many rows in a headless browser: seconds to make, size, seconds to open, to sort and to search.

    python -m benchmarks.report_speed [--rows 5000] [--browser /usr/bin/chromium] [--keep FOLDER] [--rounds 5]

Made-up results: eight families, every verdict, a second tool on the same instances, pictures of counterexamples and bounding maps until
their budget is spent. Opening is timed from the start of the navigation until the table has been painted, sorting and searching from the
click or key until the next frame has been painted. Medians of `rounds` fresh pages.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from verify.records import Configuration, Instance, Outcome, RunInfo
from verify.report import write_html
from verify.results import Results

FAMILIES = ("acasxu", "mnist_fc", "cifar10_resnet", "safenlp", "collins_rul_cnn", "rl_benchmarks", "mnist l-inf 0.1", "mnist radii")
OURS = Configuration("ringfence", "0.1.0", {"timeout": None, "memory_mb": 4096.0, "seed": 0, "semantics": "real", "device": "cpu"})
THEIRS = Configuration("other tool", "2.1", {"timeout": None})
MACHINE = {"host": "made up", "system": "Linux", "processor": "made up", "cores": 2, "python": "3.11"}
PAINTED = "() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()), 0)))"


def write_results(path: Path, rows: int) -> None:
    """Made-up results of two tools on `rows` instances."""
    rng = np.random.default_rng(0)
    with Results.write(path) as results:
        for configuration in (OURS, THEIRS):
            number = results.configuration(configuration)
            run = results.begin(RunInfo("made up", "local", 2, "0123456789abcdef0123456789abcdef01234567", MACHINE))
            for index in range(rows):
                instance = _instance(index)
                results.record(run, number, instance.key(configuration), instance, _outcome(index, rng))
            results.end(run, "finished")


def _instance(index: int) -> Instance:
    family, number = FAMILIES[index % len(FAMILIES)], index // len(FAMILIES)
    expected = ("unsat", "sat", "", "")[number % 4] if not family.startswith("mnist ") else ""
    question = None
    if family.startswith("mnist "):
        question = {"dataset": "mnist", "index": number, "label": number % 10, "norm": "inf", "eps": 0.1, "clip": True}
    net = f"vnncomp/{family}/onnx/{family.replace(' ', '_')}_network_{number % 12}.onnx"
    spec = f"vnncomp/{family}/vnnlib/prop_{index}_eps_0.0{index % 9}0.vnnlib"
    return Instance(
        family, f"{Path(net).stem} {Path(spec).stem}", net, spec, f"{number % 12:064x}", f"{index:064x}", expected, 120.0, question
    )


def _outcome(index: int, rng: np.random.Generator) -> Outcome:
    family, number = FAMILIES[index % len(FAMILIES)], index // len(FAMILIES)
    total = float(np.exp(rng.normal(0.5, 1.6)))
    parts = {"load": 0.02, "attack": total * 0.2, "bounds": total * 0.3, "milp": total * 0.5, "total": total}
    cost: dict[str, Any] = {"seconds": parts, "wall_s": total + 0.01, "cpu_s": total, "peak_mb": 250 + 500 * float(rng.random())}
    if family == "mnist radii":
        lower = float(rng.gamma(6, 0.012))
        arrays = _map(rng) if number % 10 == 0 else {}
        return Outcome(
            "measured", radius_lower=lower, radius_upper=lower * 1.3, semantics="real", decided_by="crown", arrays=arrays, **cost
        )
    kind = number % 8
    if kind in (1, 5):
        return Outcome("falsified", decided_by="pgd", arrays=_witness(family, rng), **cost)
    if kind == 3:
        reason = f"time limit of 120 s reached with {int(rng.integers(1, 400))} open subproblems"
        return Outcome("unknown", reason, -float(rng.random()), semantics="real", **cost)
    proof = "solver" if kind == 7 else "rigorous"
    return Outcome("verified", None, float(rng.random()), proof, "real", "milp" if kind == 7 else "crown", None, **cost)


def _witness(family: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shape = {"cifar10_resnet": (3, 32, 32), "mnist_fc": (1, 28, 28), "mnist l-inf 0.1": (1, 28, 28)}.get(family, (1, 5))
    center = _smooth(shape, rng) if len(shape) == 3 else rng.random(shape)
    x = np.clip(center + rng.choice([-0.1, 0.1], shape), 0, 1).astype(np.float32)
    return {"input": x, "center": center.astype(np.float32), "output": rng.normal(size=10).astype(np.float32)}


def _map(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"radius_map": 0.02 + 0.2 * _smooth((1, 28, 28), rng) ** 2, "center": _smooth((1, 28, 28), rng)}


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Something like a picture: a few bright blobs, values in [0, 1]."""
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    total = np.zeros(shape)
    for _ in range(4):
        row, column, width = rng.uniform(6, shape[1] - 6), rng.uniform(6, shape[2] - 6), rng.uniform(4, 20)
        total += rng.random((shape[0], 1, 1)) * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / width)
    return np.clip(total, 0, 1)


def measure(browser: Any, page: Path) -> dict[str, float]:
    """Seconds to open, sort and search in a fresh page. browser: a launched browser of playwright."""
    tab = browser.new_page(viewport={"width": 1366, "height": 800})
    tab.goto(page.resolve().as_uri())
    found = {"open": tab.evaluate(PAINTED) / 1000}
    press = "document.querySelector('th[data-key={}] button').click()"
    for name, key in (("sort by seconds", "seconds"), ("sort by name", "name")):
        found[name] = _timed(tab, press.format(key))
    typed = "const box = document.getElementById('search'); box.value = 'acasxu 7'; box.dispatchEvent(new Event('input'))"
    found["search"] = _timed(tab, typed)
    tab.close()
    return found


def _timed(tab: Any, action: str) -> float:
    """Seconds from an action until the next frame is painted."""
    return tab.evaluate(f"async () => {{ const start = performance.now(); {action}; return (await ({PAINTED})()) - start; }}") / 1000


def main() -> None:
    """Make the page, measure it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--browser", help="a Chromium on this machine; otherwise playwright's own")
    parser.add_argument("--keep", type=Path, help="folder in which results.sqlite and report.html are left")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        results, page = folder / "results.sqlite", folder / "report.html"
        if not results.exists():
            write_results(results, options.rows)
        start = time.monotonic()
        write_html(results, page)
        print(f"rows {options.rows}, made in {time.monotonic() - start:.2f} s, size {page.stat().st_size / 1e6:.2f} MB", flush=True)
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
            rounds = [measure(browser, page) for _ in range(options.rounds)]
            browser.close()
    for name in rounds[0]:
        values = [found[name] for found in rounds]
        print(f"{name:16s} median {statistics.median(values):.3f} s, from {min(values):.3f} to {max(values):.3f} s")


if __name__ == "__main__":
    main()
