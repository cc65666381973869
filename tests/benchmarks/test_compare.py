from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.compare import OURS, Comparison, Tool, ask, main, outcome, read_tool, report
from tests.verify.test_cli import dense, question
from verify.records import Instance, Outcome
from verify.results import Results

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are pinned to a core as Linux does it")
INSTANCE = Instance("family", "net p", "net.onnx", "p.vnnlib", "1", "2", "unsat", 20.0)


def tool(code: str, tail: str = "") -> Tool:
    """A verifier that is a line of Python; a is its arguments."""
    return read_tool(
        f"other={sys.executable} -c 'import sys, time; a = sys.argv[1:]; {code}' {{network}} {{property}} {{limit}} {{result}}{tail}"
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return dense(tmp_path / "net.onnx"), question(tmp_path / "p.vnnlib", "(>= Y_0 0.75)")


@pytest.mark.parametrize(
    "code, verdict",
    [
        ('print("starting"); print("unsat")', "verified"),
        ('print("Result: no"); print("sat 3 s")', "falsified"),
        ('open(a[3], "w").write("unsat\\n")', "verified"),
        ('open(a[3], "w").write("timeout\\n"); print("unsat")', "unknown"),
        ('print("holds")', "verified"),
        ('print("violated")', "falsified"),
        ('print("nothing")', "error"),
        ("sys.exit(3)", "error"),
    ],
)
def test_what_a_tool_says(files: tuple[Path, Path], code: str, verdict: str) -> None:
    assert ask(tool(code), *files, 20.0, 0).verdict == verdict


def test_a_tool_that_does_not_end_is_killed(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.compare.GRACE_S", 0.2)
    answer = ask(tool("time.sleep(60)"), *files, 0.3, 0)
    assert (answer.verdict, answer.reason) == ("unknown", "killed after the time limit")
    assert 0.5 <= answer.seconds < 30


def test_a_tool_that_is_not_there_is_an_error(files: tuple[Path, Path]) -> None:
    answer = ask(Tool("gone", "/no/such/tool {network} {property}"), *files, 1.0, 0)
    assert (answer.verdict, "No such file" in answer.reason) == ("error", True)


@pytest.mark.parametrize("x, holds", [("0.9", True), ("0.1", False), ("1.5", False)])
def test_counterexamples_of_others_are_replayed(files: tuple[Path, Path], x: str, holds: bool) -> None:
    code = f'open(a[3], "w").write("sat\\n((X_0 {x})\\n(X_1 0.0)\\n(Y_0 {x})\\n(Y_1 0.0))")'
    assert ask(tool(code), *files, 20.0, 0).replayed is holds


def test_rounds_become_one_outcome(files: tuple[Path, Path]) -> None:
    answers = [ask(tool(f'print("{word}")'), *files, 20.0, 0) for word in ("unknown", "unsat", "unsat")]
    assert outcome(answers[1:]).verdict == "verified"
    assert outcome(answers).verdict == "verified"
    assert len(json.loads(outcome(answers).detail or "")["wall_s"]) == 3
    different = [*answers, ask(tool('print("sat")'), *files, 20.0, 0)]
    assert (outcome(different).verdict, outcome(different).reason) == ("error", "different verdicts: falsified, verified")


def compared(ours: str, theirs: str, seconds: tuple[list[float], list[float]]) -> Comparison:
    first, second = (json.dumps({"wall_s": s, "cpu_s": s, "replayed": [None]}) for s in seconds)
    return Comparison(INSTANCE, Outcome(ours, detail=first), Outcome(theirs, detail=second))


def test_report_counts_ratios_and_disagreements() -> None:
    text = report(
        [
            compared("verified", "verified", ([1.0, 2.0], [2.0, 8.0])),
            compared("verified", "verified", ([1.0, 1.0], [0.5, 0.5])),
            compared("verified", "unknown", ([1.0], [9.0])),
            compared("unknown", "error", ([9.0], [9.0])),
            compared("verified", "falsified", ([1.0], [1.0])),
        ],
        "other",
    )
    assert "wall clock of other over ringfence, 2 instances that both solve: median 1.75, range 0.50 to 3.00" in text
    assert "solved by ringfence alone: 1" in text
    assert "solved by other alone: 0" in text
    assert text.count("DISAGREEMENT") == 1
    assert "other        {'verified': 2, 'falsified': 1, 'unknown': 1, 'error': 1}, against what is expected: 1" in text


def test_a_comparison_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "family"
    folder.mkdir()
    dense(folder / "net.onnx")
    question(folder / "safe.vnnlib", "(>= Y_0 2.0)")
    (folder / "instances.csv").write_text("net.onnx,safe.vnnlib,20,unsat")
    out = tmp_path / "r.sqlite"
    template = tool('print("sat")').template
    arguments = ["compare", str(folder), "--tool", f"other={template}", "--rounds", "1", "--out", str(out)]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", arguments)
        main()
        assert "DISAGREEMENT family net safe: ringfence verified (replayed: [None]), other falsified" in capsys.readouterr().out
    with Results.read(out) as results:
        rows = list(results.rows())
        assert [c.tool for c in results.configurations().values()] == [OURS, "other"]
        assert [(row.outcome.verdict, row.attempts) for row in rows] == [("verified", 1), ("falsified", 1)]


@pytest.mark.parametrize("text", ["other", "=x {network} {property}", "other=x {network}"])
def test_malformed_tools_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read the tool"):
        read_tool(text)
