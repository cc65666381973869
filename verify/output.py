"""What `ringfence verify` tells: one answer as a JSON object or as a line of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verify import account, exits
from verify.account import StageRecord
from verify.document import SCHEMA
from verify.verdict import Falsified, Unknown, Verdict, Verified

MAX_SHOWN = 20
"""Longest output that is printed in a line of text."""


@dataclass(frozen=True, eq=False)
class Answer:
    """One question's verdict and how long it took. `index` and `label` are those of the data set's image, if there is one.

    `seconds` has the keys load, attack, bounds, milp and total. `error`: what stopped the question, when it ended in an error.
    stages: what every stage did, where that is to be told.
    """

    verdict: Verdict
    seconds: Mapping[str, float]
    semantics: str
    index: int | None = None
    label: int | None = None
    error: str | None = None
    stages: tuple[StageRecord, ...] | None = None

    @property
    def code(self) -> int:
        """The exit code for this question alone."""
        if self.error is not None:
            return exits.ERROR
        return {Verified: exits.VERIFIED, Falsified: exits.FALSIFIED, Unknown: exits.UNKNOWN}[type(self.verdict)]


def describe(answer: Answer) -> dict[str, Any]:
    """One answer as the JSON object that `ringfence verify --json` prints."""
    verdict = answer.verdict
    document: dict[str, Any] = {"schema": SCHEMA}
    if answer.index is not None:
        document |= {"index": answer.index, "label": answer.label}
    document |= {
        "verdict": type(verdict).__name__.lower(),
        "reason": answer.error or (verdict.reason if isinstance(verdict, Unknown) else None),
        "proof": verdict.proof if isinstance(verdict, Verified) else None,
        "semantics": verdict.semantics if isinstance(verdict, Verified) else answer.semantics,
        "decided_by": None if isinstance(verdict, Unknown) else verdict.decided_by,
        "lower_bound": None if isinstance(verdict, Falsified) else verdict.bound,
        "counterexample": None,
    }
    if isinstance(verdict, Verified) and verdict.detail:
        document["detail"] = verdict.detail
    if isinstance(verdict, Falsified):
        document["counterexample"] = {"input": verdict.x.tolist(), "output": verdict.y.tolist()}
        if verdict.rounded:
            document["counterexample"]["rounded"] = list(verdict.rounded)
    document["seconds"] = dict(answer.seconds)
    if answer.stages is not None:
        document["stages"] = account.describe(answer.stages)
    return document


def describe_all(answers: Sequence[Answer], *, interrupted: bool = False) -> dict[str, Any]:
    """The JSON document of a run: the object itself for one question, a list of results for several or for an interrupted run."""
    if len(answers) == 1 and not interrupted:
        return describe(answers[0])
    results = [describe(answer) for answer in answers]
    for result in results:
        del result["schema"]
    return {"schema": SCHEMA, "results": results} | ({"interrupted": True} if interrupted else {})


def counterexample_path(path: Path, index: int | None, several: bool) -> Path:
    """Where the counterexample of one question goes: `path` itself, or `NAME-INDEX.EXT` when there are several questions."""
    return path.with_name(f"{path.stem}-{index}{path.suffix}") if several else path


def say(answer: Answer) -> str:
    """One answer as one line of text."""
    verdict = answer.verdict
    name = "" if answer.index is None else f"image {answer.index} (label {answer.label}): "
    if answer.error is not None:
        return f"{name}error      {answer.error}"
    if isinstance(verdict, Verified):
        bound = "" if verdict.bound is None else f", margin at least {verdict.bound:.6g}"
        detail = f" ({verdict.detail})" if verdict.detail else ""
        text = f"verified   by {verdict.decided_by}, {verdict.proof} proof, {verdict.semantics} semantics{bound}{detail}"
    elif isinstance(verdict, Falsified):
        text = f"falsified  by {verdict.decided_by}, replayed on the original model"
        if verdict.y.size <= MAX_SHOWN:
            text += f"; its output is {', '.join(f'{value:.6g}' for value in verdict.y.ravel().tolist())}"
    else:
        bound = "" if verdict.bound is None else f"; margin at least {verdict.bound:.6g}"
        text = f"unknown    {verdict.reason}{bound}"
    return f"{name}{text}  [{answer.seconds['total']:.2f} s]"
