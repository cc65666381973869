from __future__ import annotations

import json
import math

import numpy as np

from verify.explain import explain
from verify.spec import robustness
from verify.vnnlib import parse_vnnlib


def text(inputs: list[tuple[float, float]], outputs: int, unsafe: str) -> str:
    lines = [f"(declare-const X_{i} Real)" for i in range(len(inputs))] + [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    lines += [f"(assert (<= {low!r} X_{i} {high!r}))" for i, (low, high) in enumerate(inputs)]
    return "\n".join([*lines, unsafe])


def test_a_clipped_box_and_the_largest_output() -> None:
    inputs = [(0.0, 0.03), (0.47, 0.53), (0.2, 0.26), (0.94, 1.0), (0.99, 1.0), (0.3, 0.36), (0.0, 0.05), (0.5, 0.56)]
    found = explain(parse_vnnlib(text(inputs, 3, "(assert (or (<= Y_1 Y_0) (>= Y_2 Y_1)))"), "p.vnnlib"))
    (case,) = found.cases
    assert case.radius is not None
    assert math.isclose(case.radius, 0.03, rel_tol=1e-9)
    assert case.clip == (0.0, 1.0)
    assert (case.free, case.fixed, case.alternatives) == (8, 0, 2)
    assert case.violated_when == "output 1 is not strictly the largest"
    words = str(found)
    assert "8 inputs X_0 to X_7 and returns 3 outputs Y_0 to Y_2" in words
    assert "a box around a centre, with radius 0.03 in every free direction, clipped to [0, 1]; 8 free, 0 fixed" in words
    assert "for every such input output 1 is strictly the largest" in words


def test_few_inputs_are_listed_and_fixed_ones_named() -> None:
    found = explain(parse_vnnlib(text([(0.0, 1.0), (0.1, 0.1)], 1, "(assert (<= Y_0 (- 2)))")))
    assert found.cases[0].region == "a box: X_0 in [0, 1], X_1 = 0.1; 1 free, 1 fixed"
    assert found.cases[0].violated_when == "Y_0 <= -2"
    assert "2 inputs X_0 and X_1 and returns 1 output Y_0" in str(found)


def test_other_output_conditions() -> None:
    one = [(0.0, 1.0)]

    def condition(outputs: int, unsafe: str) -> str:
        return explain(parse_vnnlib(text(one, outputs, unsafe))).cases[0].violated_when

    assert condition(3, "(assert (and (>= Y_2 Y_0) (>= Y_2 Y_1)))") == "output 2 is the largest, ties included"
    assert condition(3, "(assert (and (<= Y_2 Y_0) (<= Y_2 Y_1)))") == "output 2 is the smallest, ties included"
    assert condition(3, "(assert (or (<= Y_0 Y_2) (<= Y_1 Y_2)))") == "output 2 is not strictly the smallest"
    assert condition(3, "(assert (or (<= Y_0 Y_2) (< Y_1 Y_2)))") == "one of these holds: Y_0 <= Y_2; or Y_1 < Y_2"
    assert condition(4, "(assert (and (<= Y_3 Y_0) (<= Y_3 Y_1)))") == "Y_3 is at most each of Y_0 and Y_1"
    assert condition(2, "(assert (<= (+ (* 2 Y_0) (* -3 Y_1)) 5))") == "2 Y_0 - 3 Y_1 <= 5"
    assert condition(2, "(assert (> Y_1 5))") == "Y_1 > 5"
    assert condition(2, "").startswith("always")
    many = " ".join(f"(<= Y_0 {i})" for i in range(9))
    assert condition(1, f"(assert (or {many}))").endswith("Y_0 <= 5; or 3 more alternatives")


def test_several_cases_and_notes() -> None:
    unsafe = "(assert (or (and (<= X_0 0.25) (<= Y_0 0)) (and (>= X_0 0.75) (>= Y_0 1)) (<= X_0 -1)))"
    found = explain(parse_vnnlib(text([(0.0, 1.0)], 1, unsafe)))
    words = str(found)
    assert "Case 2 of 2. Inputs: a box: X_0 in [0.75, 1]" in words
    assert "verified only if all 2 cases are" in words
    assert "Note: alternative 3 of 3 holds no input" in words


def test_three_channels_with_their_own_radius() -> None:
    inputs = [(-r, r + 0.0) for r in (0.1, 0.2, 0.3) for _ in range(16)]
    words = explain(parse_vnnlib(text(inputs, 1, "(assert (<= Y_0 0))"))).cases[0].region
    assert "radii 0.1, 0.2, 0.3 in the three channels, within [-0.3, 0.3]" in words


def test_balls_from_arrays() -> None:
    words = str(explain(robustness(np.full(4, 0.5), 1, 0.25, norm=2.0, outputs=3)))
    assert "every point whose l2 distance from the given centre is at most 0.25, within the domain [0, 1]" in words
    assert "output 1 is not strictly the largest" in words


def test_the_dictionary_is_json() -> None:
    found = explain(parse_vnnlib(text([(0.0, 1.0)], 1, "(assert (< Y_0 0))")))
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["inputs"] == 1
    assert document["cases"][0]["violated_when"] == "Y_0 < 0"
