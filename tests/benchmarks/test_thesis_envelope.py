"""The column ACB PEC made from results that are there already is the one that `evaluate` makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.thesis_envelope import average_radius
from tests.mnist_files import write_mnist
from verify.evaluate import Limits, Settings
from verify.evaluation_command import Job


def job(root: Path, folder: Path, methods: tuple[str, ...]) -> Job:
    stored = np.load(root / "demo" / "images.npz")
    write_mnist(folder, stored["images"], stored["labels"])
    settings = Settings(0.05, methods=methods, batch=3, steps=5, restarts=1)
    return Job(root / "demo" / "network.onnx", "mnist", folder, settings, out=folder / "results.jsonl")


@pytest.mark.parametrize("methods", [("fastlin",), ("fastlin", "crown")])
def test_radii_are_those_of_the_evaluation(root: Path, tmp_path: Path, methods: tuple[str, ...]) -> None:
    there = job(root, tmp_path, ("ibp", *methods))
    assert average_radius(there, methods) is None
    there.run(Limits())
    done: list[int] = []
    found = average_radius(there, methods, done.append)
    assert done == [3, 6, 8]
    afresh = replace(there, settings=Settings(0.05, methods=(*methods, "pec"), batch=3), out=None)
    wanted = afresh.run(Limits()).average_certified_bound
    assert found == pytest.approx(wanted["pec"], rel=1e-6)
    assert found is not None
    assert found > (wanted["fastlin"] or 0)


def test_it_goes_on_where_it_was(root: Path, tmp_path: Path) -> None:
    there = job(root, tmp_path, ("fastlin",))
    there.run(Limits())
    whole = average_radius(there, ("fastlin",), lambda done: None)
    path = tmp_path / "results_pec.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    assert average_radius(there, ("fastlin",)) is None
    done: list[int] = []
    assert average_radius(there, ("fastlin",), done.append) == whole
    assert done == [8]
    assert average_radius(there, ("fastlin",)) == whole
