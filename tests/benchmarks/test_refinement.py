"""The scripts about refinement: what they choose, store and print, on a tiny suite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import certified_lower, refinement
from bounds.network import Network
from tests.verify.nets import bump
from verify.spec import Property, robustness


def question(eps: float) -> tuple[Network, Property]:
    """Two inputs; the second output wins up to a distance of 0.375 from (0.5, 0.5)."""
    return bump(), (robustness(torch.full((2,), 0.5), 1, eps, norm=float("inf"), outputs=2),)


@pytest.mark.parametrize("method", list(refinement.METHODS))
def test_answers(method: str) -> None:
    assert refinement.answer(*question(0.1), method, 10.0)["verdict"] == "crown"
    found = refinement.answer(*question(0.45), method, 10.0)
    assert (found["verdict"], found["unstable"], found["limit"]) == ("falsified", 1, 10.0)
    assert found["cpu_seconds"] >= 0


def test_instances(tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    rows = ["onnx,vnnlib,timeout_s,expected", "a.onnx,p1.vnnlib,10,unsat", "b.onnx,p2.vnnlib,10,sat", "b.onnx,p3.vnnlib,10,"]
    (tmp_path / "suite" / "instances.csv").write_text("\n".join(rows))
    (tmp_path / "suite" / "a.onnx").touch()
    found = list(refinement.instances(tmp_path, ["suite"], [], 2))
    assert [name for name, _, _ in found] == ["suite/a p1", "suite/b p2"]
    assert [path.name for _, path, _ in found] == ["a.onnx", "b.onnx.gz"]
    assert [name for name, _, _ in refinement.instances(tmp_path, ["suite"], ["p3"], None)] == ["suite/b p3"]


def test_the_table(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    verdicts = {("s/a 1", "milp"): ("verified", 4.0), ("s/a 1", "refine"): ("verified", 1.0), ("s/a 2", "milp"): ("open", 60.0)}
    verdicts |= {("s/a 2", "refine"): ("falsified", 3.0), ("s/a 3", "milp"): ("crown", 0.0), ("s/a 3", "refine"): ("crown", 0.0)}
    lines = [
        {"instance": name, "method": method, "verdict": verdict, "cpu_seconds": seconds, "unstable": 7, "detail": "why; 3 of 7"}
        for (name, method), (verdict, seconds) in verdicts.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = refinement.report(refinement.read(path))
    assert "| s | 2 | milp | 1 | 0 | 1 | 32.00 | 4.00 |" in told
    assert "| s | 2 | refine | 1 | 1 | 0 | 2.00 | 1.00 |" in told
    assert "| s/a 1 | 7 | verified 4.00 | verified 1.00 | 3 of 7 |" in told
    assert "s/a 3" not in told


def test_shares_of_exact_distances(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    told = {"network": "n", "index": 0, "ratio": 0.9, "rigorous": 0.1, "solves": 1, "d_adv": 0.3, "cpu_seconds": 2.0}
    exact = told | {"choice": "exact", "lower": 0.2, "upper": 0.2, "status": "optimal", "binaries": 20}
    weakest = told | {"choice": "weakest", "lower": 0.19, "upper": 0.2, "status": "undecided", "binaries": 4}
    path.write_text("".join(json.dumps(line) + "\n" for line in (exact, weakest)))
    assert "| n | 0.9 | 1 | weakest: at most 4 | 0.950 (0.950) | 0.500 | 2.0 | 20 | 2.0 |" in certified_lower.report(
        certified_lower.read(path)
    )
