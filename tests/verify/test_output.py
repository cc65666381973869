from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from bounds.engine import DEFAULT_MEMORY_MB
from bounds.errors import DataError, SpecError
from verify import exits
from verify.document import to_json
from verify.output import Answer, describe_all, say
from verify.questions import read_index, read_memory, read_norm
from verify.verdict import Unknown, Verified

SECONDS = {"load": 0.5, "attack": 0.0, "bounds": 0.25, "milp": 0.0, "total": 0.75}


def test_worst_code_order() -> None:
    order = [2, 1, 3, 0]
    for size in range(1, 5):
        for codes in itertools.permutations(order, size):
            assert exits.worst(codes) == next(code for code in order if code in codes)
    assert exits.worst([]) == 0


def test_numbers_survive_json() -> None:
    value = float(np.float32(0.1)) + 2.0**-53
    text = to_json({"a": [value, float("inf"), float("nan"), np.float64(0.1), np.int64(3)], "b": {"c": (-float("inf"),)}})
    assert json.loads(text) == {"a": [value, None, None, 0.1, 3], "b": {"c": [None]}}


def test_one_question_is_an_object_and_several_are_a_list() -> None:
    answer = Answer(Verified(0.5, "solver", "real", "milp", "SCIP, tolerance 1e-6"), SECONDS, "real", 4, 9)
    other = Answer(Unknown("time limit", -float("inf")), SECONDS, "real", 5, 1)
    one, several = describe_all([answer]), describe_all([answer, other])
    assert (one["index"], one["label"], one["proof"], one["detail"]) == (4, 9, "solver", "SCIP, tolerance 1e-6")
    assert set(several) == {"schema", "results"}
    assert [r["verdict"] for r in several["results"]] == ["verified", "unknown"]
    assert describe_all([answer], interrupted=True)["results"][0]["index"] == 4
    assert json.loads(to_json(several))["results"][1]["lower_bound"] is None


def test_codes_follow_verdicts() -> None:
    assert Answer(Verified(1.0, "rigorous", "real", "ibp"), SECONDS, "real").code == 0
    assert Answer(Unknown("time limit"), SECONDS, "real").code == 3
    assert Answer(Unknown("broken"), SECONDS, "real", error="broken").code == 2


def test_a_line_names_a_solver_proof() -> None:
    line = say(Answer(Verified(None, "solver", "real", "milp", "SCIP, tolerance 1e-6"), SECONDS, "real", 4, 9))
    assert "image 4 (label 9)" in line
    assert "solver proof" in line
    assert "tolerance 1e-6" in line


@pytest.mark.parametrize("text, expected", [("7", [7]), ("0:3", [0, 1, 2]), (":2", [0, 1]), ("8:", [8, 9]), (" 1:2 ", [1])])
def test_index(text: str, expected: list[int]) -> None:
    assert read_index(text, 10) == expected


@pytest.mark.parametrize("text", ["", "a", "3:3", "4:2", "10", "0:11", "-1", "1:2:3", "1,2"])
def test_index_refused(text: str) -> None:
    with pytest.raises(DataError, match="index"):
        read_index(text, 10)


@pytest.mark.parametrize("text, megabytes", [("500", 500), ("500MB", 500), ("4GB", 4096), ("1.5g", 1536), ("2048k", 2), ("1TiB", 2**20)])
def test_memory(text: str, megabytes: float) -> None:
    assert read_memory(text) == megabytes


def test_memory_default_and_refusals() -> None:
    assert read_memory(None) == DEFAULT_MEMORY_MB
    for text in ("", "0", "-1GB", "much", "1e3", "inf"):
        with pytest.raises(SpecError, match="memory limit"):
            read_memory(text)


def test_norm() -> None:
    assert [read_norm(text) for text in ("inf", "Linf", "2", "l2", "1")] == [float("inf"), float("inf"), 2.0, 2.0, 1.0]
    with pytest.raises(SpecError, match="'0'"):
        read_norm("0")
