from __future__ import annotations

import gzip
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bounds.errors import SpecError
from verify.exact import ExactHalfspaces, ExactRow
from verify.vnnlib import MAX_CONJUNCTIONS, parse_vnnlib, read_vnnlib

F = Fraction
HEAD = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = "(assert (>= X_0 0))\n(assert (<= X_0 1))\n(assert (>= X_1 -0.1))\n(assert (<= X_1 1.5e-1))\n"


def row(bound: Fraction | int, *terms: tuple[int, int | Fraction], strict: bool = False) -> ExactRow:
    return ExactRow(tuple((i, Fraction(c)) for i, c in terms), Fraction(bound), strict)


def test_numbers_are_exact() -> None:
    parsed = parse_vnnlib(HEAD + BOX + "(assert (<= Y_0 (- 3.5)))(assert (>= Y_1 +1.25E2))")
    (case,) = parsed.cases
    assert (parsed.inputs, parsed.outputs) == (2, 2)
    assert case.box.lower == (F(0), F(-1, 10))
    assert case.box.upper == (F(1), F(15, 100))
    assert case.unsafe == (ExactHalfspaces((row(F(-7, 2), (0, 1)), row(-125, (1, -1)))),)


def test_linear_terms_chains_and_equality() -> None:
    text = HEAD + BOX + "(assert (<= (+ (* 2 Y_0) (- Y_1) 1 (* Y_0 0.5 2)) (- (* 3 Y_0) 4 Y_1)))"
    # 2 Y_0 - Y_1 + 1 + Y_0 - 3 Y_0 + 4 + Y_1 = 5 <= 0 is never true.
    assert "never true" in error_of(text)
    (case,) = parse_vnnlib(HEAD + BOX + "(assert (= (* 2 Y_0) 2))(assert (< 0 Y_1 5))(assert (>= (/ Y_0 4) Y_1))").cases
    assert case.unsafe == (
        ExactHalfspaces(
            (
                row(2, (0, 2)),
                row(-2, (0, -2)),
                row(0, (1, -1), strict=True),
                row(5, (1, 1), strict=True),
                row(0, (0, F(-1, 4)), (1, 1)),
            )
        ),
    )


def error_of(text: str) -> str:
    with pytest.raises(SpecError) as error:
        parse_vnnlib(text, "p.vnnlib")
    return str(error.value)


def test_input_bounds_in_any_form_and_the_tightest_wins() -> None:
    text = HEAD + "(assert (and (<= 0 X_0) (<= (* 3 X_0) 1)))(assert (= X_1 0.5))(assert (<= X_0 7))(assert (> X_0 -1))(assert (<= Y_0 0))"
    (case,) = parse_vnnlib(text).cases
    assert case.box.lower == (F(0), F(1, 2))
    assert case.box.upper == (F(1, 3), F(1, 2))
    assert not case.box.open_lower
    (case,) = parse_vnnlib(HEAD + BOX + "(assert (> X_0 0))(assert (<= Y_0 0))").cases
    assert case.box.open_lower == {0}


def test_disjunction_of_outputs_is_one_case_with_several_sets() -> None:
    (case,) = parse_vnnlib(HEAD + BOX + "(assert (or (and (<= Y_0 Y_1)) (and (>= Y_0 2) (or (<= Y_1 0) (>= Y_1 1)))))").cases
    assert case.unsafe == (
        ExactHalfspaces((row(0, (0, 1), (1, -1)),)),
        ExactHalfspaces((row(-2, (0, -1)), row(0, (1, 1)))),
        ExactHalfspaces((row(-2, (0, -1)), row(-1, (1, -1)))),
    )


def test_mixed_disjunction_gives_one_case_per_box() -> None:
    text = (
        HEAD
        + BOX
        + """(assert (or
        (and (<= X_0 0.25) (<= Y_0 0))
        (and (>= X_0 0.75) (<= Y_1 0))
        (and (<= X_0 0.25) (<= Y_1 3))
    ))(assert (>= Y_0 -9))"""
    )
    first, second = parse_vnnlib(text).cases
    base = row(9, (0, -1))
    assert (first.box.lower[0], first.box.upper[0]) == (F(0), F(1, 4))
    assert first.unsafe == (ExactHalfspaces((base, row(0, (0, 1)))), ExactHalfspaces((base, row(3, (1, 1)))))
    assert (second.box.lower[0], second.box.upper[0]) == (F(3, 4), F(1))
    assert second.unsafe == (ExactHalfspaces((base, row(0, (1, 1)))),)


def test_input_and_output_disjunctions_multiply() -> None:
    text = HEAD + BOX + "(assert (or (<= X_0 0.1) (>= X_0 0.9)))(assert (or (<= Y_0 0) (<= Y_1 0)))"
    cases = parse_vnnlib(text).cases
    assert [len(case.unsafe) for case in cases] == [2, 2]
    assert len(parse_vnnlib(text).specifications((2,), 2)) == 2


def test_an_alternative_without_inputs_is_dropped_and_noted() -> None:
    parsed = parse_vnnlib(HEAD + BOX + "(assert (or (<= X_0 -1) (<= Y_0 0)))")
    assert len(parsed.cases) == 1
    assert "alternative 1 of 2 holds no input and was dropped: X_0" in parsed.notes[0]


def test_without_output_constraints_every_output_is_unsafe() -> None:
    (case,) = parse_vnnlib(HEAD + BOX).cases
    assert case.unsafe == (ExactHalfspaces(()),)
    (spec,) = parse_vnnlib(HEAD + BOX).specifications()
    assert spec.violated_by(np.array([1.0, -1.0]))


def test_comments_ignored_statements_and_odd_layout() -> None:
    text = (
        "(set-logic QF_LRA) ; (broken\n(set-info :source |a ; (b|)" + HEAD.replace("\n", "\r\n") + BOX.replace("(", "\n( ") + "(check-sat)"
    )
    assert parse_vnnlib(text).cases[0].box.upper == (F(1), F(3, 20))
    assert parse_vnnlib(HEAD.replace("declare-const X_0 Real", "declare-fun X_0 () Real") + BOX).inputs == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "line 1: the file holds no statements"),
        ("; only a comment\n", "no statements"),
        (HEAD + BOX + "(assert (<= Y_0", "line 9: this parenthesis is never closed; the file may be truncated"),
        (HEAD + BOX + ")", "line 9: a closing parenthesis has no opening one"),
        (HEAD + "(assert (<= X_0 1))(assert (>= X_0 0))(assert (<= X_1 1))", "line 2: input X_1 has no lower bound"),
        (HEAD + BOX + "(assert (<= X_0 -0.1))", "line 9: X_0 has lower bound 0.0 above its upper bound -0.1: the region is empty"),
        (HEAD + BOX + "(assert (< X_0 0))", "the region is empty"),
        (HEAD + BOX + "(assert (<= X_0 X_1))", "line 9: a constraint relates the inputs X_0 and X_1"),
        (HEAD + BOX + "\n(assert (<= X_0 Y_0))", "line 10: one constraint mixes input X_0 with outputs"),
        (HEAD + BOX + "(assert (<= Y_7 0))", "line 9: 'Y_7' is not declared"),
        (HEAD + BOX + "(assert (<= Y_0 1e9e9))", "neither a number nor a declared variable"),
        (HEAD + BOX + "(assert (<= Y_0 1e99999999999))", "out of range"),
        (HEAD + BOX + "(assert (<= Y_0 nan))", "'nan' is neither"),
        (HEAD + BOX + "(assert (<= (* Y_0 Y_1) 0))", "product of two variables"),
        (HEAD + BOX + "(assert (<= (^ Y_0 2) 0))", "operator '\\^' is not supported in a term"),
        (HEAD + BOX + "(assert (not (<= Y_0 0)))", "operator 'not' is not supported in a formula"),
        (HEAD + BOX + "(assert (or))", "has no arguments"),
        (HEAD + BOX + "(assert (<= Y_0))", "compares at least two terms"),
        (HEAD + BOX + "(assert Y_0)", "expected a formula, met 'Y_0'"),
        (HEAD + BOX + "(assert (<= 1 0))", "line 9: this assertion is never true"),
        (HEAD + BOX + "(assert)", "assert takes one formula, got 0"),
        (HEAD + "(declare-const X_0 Real)", "line 5: X_0 is declared twice"),
        (HEAD + "(declare-const X_3 Real)", "line 5: X_3 is declared but X_2 is not"),
        (HEAD + "(declare-const Z Real)", "'Z' is neither an input X_i nor an output Y_j"),
        (HEAD + "(declare-const Y_2 Int)", "has sort 'Int'"),
        ("(vnnlib-version <2.0>)", "VNNLIB 2"),
        ("(frobnicate)", "unknown statement 'frobnicate'"),
        ("hello", "expected a statement in parentheses, met 'hello'"),
        ("(declare-const X_0 Real)(assert (<= X_0 1))(assert (>= X_0 0))", "declares no outputs"),
        ("(declare-const Y_0 Real)", "declares no inputs"),
        (HEAD + "(assert " + "(and " * 200 + ")" * 201, "nested deeper than 100"),
    ],
)
def test_bad_files_are_refused_with_their_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_vnnlib(text, "p.vnnlib")
    assert error_of(text).startswith("p.vnnlib, line ")


def test_the_number_of_alternatives_is_limited() -> None:
    choice = "(assert (or (<= Y_0 0) (<= Y_1 0)))\n"
    with pytest.raises(SpecError, match=f"above the limit of {MAX_CONJUNCTIONS}"):
        parse_vnnlib(HEAD + BOX + choice * 14)


def test_wrong_networks_are_refused() -> None:
    parsed = parse_vnnlib(HEAD + BOX, "p.vnnlib")
    with pytest.raises(SpecError, match=r"declares 2 inputs, but the network reads 3 \(shape \(3, 1\)\)"):
        parsed.specifications((3, 1), 2)
    with pytest.raises(SpecError, match="declares 2 outputs, but the network has 5"):
        parsed.specifications((2,), 5)


def test_files_plain_gzipped_damaged_and_missing(tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text(HEAD + BOX)
    packed = tmp_path / "p.vnnlib.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_vnnlib(path).cases == read_vnnlib(packed).cases
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(SpecError, match="damaged or truncated"):
        read_vnnlib(packed)
    path.write_bytes(b"(declare\n\xff\xfe)")
    with pytest.raises(SpecError, match="line 2: not text"):
        read_vnnlib(path)
    with pytest.raises(SpecError, match="no such file"):
        read_vnnlib(tmp_path / "absent")
    with pytest.raises(SpecError, match="cannot be read"):
        read_vnnlib(tmp_path)


def test_large_files_are_quick() -> None:
    lines = [f"(declare-const X_{i} Real)" for i in range(3072)] + ["(declare-const Y_0 Real)"]
    lines += [f"(assert (>= X_{i} -0.{i:07d}1))\n(assert (<= X_{i} 0.{i:07d}3))" for i in range(3072)]
    text = "\n".join(lines)
    start = time.process_time()
    parsed = parse_vnnlib(text)
    assert time.process_time() - start < 1.0
    assert parsed.cases[0].box.upper[3071] == F("0.00030713")


def test_shared_properties_parse_and_are_enclosed(shared: Path) -> None:
    paths = sorted((shared / "vnncomp").glob("**/*.vnnlib.gz"))
    assert paths
    # Families have many files of one kind: every fifth is enough here.
    for path in paths[::5]:
        parsed = read_vnnlib(path)
        for case in parsed.cases:
            low, high = case.box.outer
            assert np.all(low <= high)
            assert len(case.box) == parsed.inputs
            for halfspaces in case.unsafe:
                C, d = halfspaces.outward(parsed.outputs)
                assert C.shape[1] == parsed.outputs
                assert np.all(np.isfinite(d))
