"""The table of bound calls: its rows, its flags, and what a stopped run leaves behind."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import radius_search
from tests.mnist_files import write_mnist

KW = {
    "file": "mnist_fc1_relu_linf_kw.onnx",
    "dataset": "mnist",
    "architecture": "fc1",
    "activation": "relu",
    "norm": "linf",
    "thesis_row": "KW",
}


def found(bisection: float, pec: float, secant: float, off: float = 0.0) -> dict[str, dict[str, Any]]:
    rows = {}
    for method, calls in (("bisection", bisection), ("pec", pec), ("secant", secant)):
        lower = 0.1 + (off if method == "secant" else 0.0)
        rows[method] = {"calls": [calls, calls], "lower": [lower, 0.2], "cpu_s": 1.0}
    return rows


def test_a_row() -> None:
    cells = radius_search.line(KW, found(12, 8.4, 4)).strip("| ").split(" | ")
    assert cells[0] == "mnist_fc1_relu_linf_kw"
    assert cells[5:9] == ["0.700", "0.707 (-0.007)", "4.00", "0.333"]
    assert radius_search.line(KW | {"thesis_row": "IBP"}, found(12, 8.4, 4)).count("**!**") == 0


@pytest.mark.parametrize(
    "rows, flags", [(found(12, 8.4, 4), 0), (found(12, 12, 4), 1), (found(12, 8.4, 7), 1), (found(12, 12, 7, -0.01), 3)]
)
def test_missed_figures_are_marked(rows: dict[str, dict[str, Any]], flags: int) -> None:
    assert radius_search.line(KW, rows).count("**!**") == flags


def test_a_stopped_run_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    assert radius_search.stored(path, 5) == {}
    row = {"file": "a", "method": "pec", "count": 5}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"count": 6}) + "\n" + '{"file": "b", "met')
    assert radius_search.stored(path, 5) == {("a", "pec"): row}


def test_the_searches_on_a_network(root: Path, tmp_path: Path) -> None:
    stored = np.load(root / "demo" / "images.npz")
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist", stored["images"][:2], stored["labels"][:2])
    options = argparse.Namespace(models=root / "demo", data=tmp_path, count=2)
    rows = {m: radius_search.measure(KW | {"file": "network.onnx"}, options, m) for m in ("bisection", "secant")}
    assert rows["bisection"]["calls"] == [12, 12]
    assert sum(rows["secant"]["calls"]) < 24
    assert rows["bisection"]["lower"] == pytest.approx(rows["secant"]["lower"], abs=1e-4)
