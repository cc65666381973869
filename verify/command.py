"""What `ringfence verify` does: every question in turn, answers told as they come, partial results kept on an interrupt."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

import torch

from bounds.engine import DEFAULT_MEMORY_MB, place
from bounds.errors import OutputError, RingfenceError, SolverMissingError, SpecError
from bounds.network import Network
from verify import account, exits
from verify.code_pages import release_code
from verify.document import to_json
from verify.output import Answer, counterexample_path, describe_all, say
from verify.progress import progress
from verify.questions import Question, Robustness, from_file
from verify.run import Effort, verify
from verify.verdict import Falsified, Semantics, Unknown
from verify.witness import write_counterexample


class Source(Protocol):
    """Where questions come from."""

    def questions(self, network: Network) -> Iterable[Question]:
        """The questions about a network."""


@dataclass(frozen=True)
class VnnlibFile:
    """The one question of a VNNLIB file."""

    path: Path

    def questions(self, network: Network) -> Iterator[Question]:
        """See `Source`."""
        yield from_file(self.path, network)


def choose(spec: Path | None, dataset: str | None, folder: Path | None, index: str, norm: str, eps: float | None) -> Source:
    """The source that the arguments name.

    Raises:
        SpecError: none, two, or only part of one.
    """
    if (spec is None) == (dataset is None):
        raise SpecError("give the question either as SPEC.vnnlib or as --dataset NAME --data-dir DIR --index I --eps E")
    if spec is not None:
        return VnnlibFile(spec)
    if dataset is None or folder is None or eps is None:
        raise SpecError(f"a question about a data set also needs {'--data-dir DIR' if folder is None else '--eps E'}")
    return Robustness(dataset, folder, index, norm, eps)


@dataclass(frozen=True)
class Settings:
    """What limits a run. `counterexample`: where witnesses are written, if anywhere. `explain`: tell what every stage did. See
    `verify.run.verify` for the rest.

    `threads`: of torch. One is the default because a question is many small operations, which gain nothing from more threads and lose much
    where another process wants the same cores.
    """

    timeout: float | None = None
    device: str = "cpu"
    memory_mb: float = DEFAULT_MEMORY_MB
    seed: int = 0
    semantics: Semantics = "real"
    confirm: str | None = None
    counterexample: Path | None = None
    threads: int = 1
    effort: Effort = "normal"
    explain: bool = False

    def check(self) -> Settings:
        """These settings, if they can be met here.

        Raises:
            DeviceError: the device is not there. OutputError: the folder of the counterexample is missing.
        """
        place(self.device)
        path = self.counterexample
        if path is not None and not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: no folder {path.parent}; create it or name another")
        if path is not None and path.exists() and not path.is_file():
            raise OutputError(f"cannot write {path}: it is no ordinary file; name another")
        return self


def second_solver() -> str:
    """The solver that confirms the default one: the next that is installed.

    Raises:
        SolverMissingError: there is none.
    """
    from milp.solvers import available

    names = available()
    if len(names) < 2:
        raise SolverMissingError("--confirm needs a second solver beside the default: pip install highspy pyscipopt")
    return names[1]


def read_semantics(text: str) -> Semantics:
    """The arithmetic that a verdict covers.

    Raises:
        SpecError: an unknown name.
    """
    for known in get_args(Semantics):
        if text == known:
            return known
    raise SpecError(f"unknown semantics {text!r}; use {' or '.join(get_args(Semantics))}")


def read_effort(text: str) -> Effort:
    """How much is tried.

    Raises:
        SpecError: an unknown name.
    """
    for known in get_args(Effort):
        if text == known:
            return known
    raise SpecError(f"unknown effort {text!r}; use {', '.join(get_args(Effort)[:-1])} or {get_args(Effort)[-1]}")


@dataclass(frozen=True)
class Run:
    """A run of `ringfence verify`; `tell` prints a line of text or the JSON document."""

    settings: Settings
    tell: Callable[[str], None]
    as_json: bool

    def verify(self, model: Path, source: Source, start: float) -> int:
        """Answer every question and return the exit code. `start`: when the command began, on time.monotonic()."""
        answers: list[Answer] = []
        interrupted = False
        torch.set_num_threads(self.settings.threads)
        try:
            network = Network.from_onnx(model)
            questions = list(source.questions(network))
            release_code()
            load = time.monotonic() - start
            for question in questions:
                answers.append(self._answer(network, question, load, alone=len(questions) == 1))
                load = 0.0
                if not self.as_json:
                    self.tell(say(answers[-1]))
                    _explain(answers[-1])
                self._keep_witness(answers[-1], several=len(questions) > 1)
        except KeyboardInterrupt:
            interrupted = True
        if self.as_json:
            self.tell(to_json(describe_all(answers, interrupted=interrupted)))
        if interrupted:
            sys.stderr.write(f"ringfence: interrupted; {len(answers)} answers kept\n")
        return exits.INTERRUPTED if interrupted else exits.worst(answer.code for answer in answers)

    def _answer(self, network: Network, question: Question, load: float, *, alone: bool) -> Answer:
        begin = time.monotonic()
        settings = self.settings
        try:
            with progress("" if question.index is None else f"image {question.index}: ") as observe:
                result = verify(
                    network,
                    question.property,
                    timeout=settings.timeout,
                    device=settings.device,
                    memory_mb=settings.memory_mb,
                    seed=settings.seed,
                    semantics=settings.semantics,
                    confirm=settings.confirm,
                    effort=settings.effort,
                    observe=observe,
                )
        except RingfenceError as error:
            if alone:
                raise
            sys.stderr.write(f"ringfence: image {question.index}: {error}\n")
            seconds = _seconds({}, load, time.monotonic() - begin)
            return Answer(Unknown(str(error)), seconds, settings.semantics, question.index, question.label, str(error))
        seconds = _seconds(result.seconds, load, result.seconds["total"])
        stages = result.stages if settings.explain else None
        return Answer(result.verdict, seconds, settings.semantics, question.index, question.label, stages=stages)

    def _keep_witness(self, answer: Answer, *, several: bool) -> None:
        path = self.settings.counterexample
        if path is None or not isinstance(answer.verdict, Falsified):
            return
        path = counterexample_path(path, answer.index, several)
        write_counterexample(path, answer.verdict)
        if not self.as_json:
            self.tell(f"           counterexample written to {path}")


def _explain(answer: Answer) -> None:
    """What every stage did, on stderr, if that was asked for."""
    if answer.stages:
        sys.stderr.write("".join(f"    {line}\n" for line in account.explain(answer.stages).splitlines()))
        sys.stderr.flush()


def _seconds(spent: dict[str, float], load: float, total: float) -> dict[str, float]:
    """Seconds by kind; loading counts for the first question of a run."""
    kinds: Sequence[str] = ("attack", "bounds", "milp")
    return {"load": load} | {kind: spent.get(kind, 0.0) for kind in kinds} | {"total": load + total}
