"""The same instances through several verifiers, in turn and on the same core.

    python -m benchmarks.compare ../shared/vnncomp --family safenlp --count 20 --timeout 10 --out results/compare.sqlite \\
        --marabou PYTHON --tool 'other=other-verifier --onnx {network} --spec {property} --limit {limit} --out {result}'

A tool is a name and a command with the placeholders {network}, {property}, {limit} (seconds) and, if it writes VNN-COMP's result file,
{result}; without {result} the last line of its output that is sat, unsat, timeout, unknown, holds or violated counts. --marabou takes a Python
that has maraboupy. Every instance is given to ringfence and to each tool --rounds times, in alternating order, one process each, pinned to
--core; its files are unpacked first. What a tool calls sat is replayed on the original model where it wrote the counterexample. Answers are
rows of a results file (`ringfence report` draws them against each other); a run started again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.sweep_overhead import trivial_suite
from bounds.errors import RingfenceError
from bounds.network import Network
from verify.records import Configuration, Instance, Outcome, RunInfo
from verify.results import Results
from verify.suites import families, find_lists, read_suite
from verify.sweep import machine, revision
from verify.tasks import Task
from verify.verdict import replay
from verify.vnnlib import load_property

OURS = "ringfence"
GRACE_S = 2.0
"""Seconds beyond the limit after which a process is killed."""
VERDICTS = {
    "sat": "falsified",
    "violated": "falsified",
    "unsat": "verified",
    "holds": "verified",
    "timeout": "unknown",
    "unknown": "unknown",
}
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Tool:
    """A verifier: its name and its command with placeholders."""

    name: str
    template: str

    def command(self, network: Path, spec: Path, limit: float, result: Path) -> list[str]:
        """The command for one instance."""
        values = {"network": str(network), "property": str(spec), "limit": f"{limit:g}", "result": str(result)}
        return [re.sub(r"\{(\w+)\}", lambda m: values.get(m.group(1), m.group(0)), part) for part in shlex.split(self.template)]


@dataclass(frozen=True)
class Answer:
    """What one process said; seconds of wall clock and of CPU. replayed: whether its counterexample holds, None where there is none."""

    verdict: str
    reason: str
    seconds: float
    cpu_s: float
    peak_mb: float
    replayed: bool | None = None


def ask(tool: Tool, network: Path, spec: Path, limit: float, core: int) -> Answer:
    """One instance in a process of its own, pinned to a core."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        result = Path(folder) / "result"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        begin = time.monotonic()
        try:
            with _pinned(core):
                process = subprocess.Popen(
                    tool.command(network, spec, limit, result), stdout=out, stderr=err, env=environment, start_new_session=True
                )
        except OSError as error:
            return Answer("error", str(error), 0.0, 0.0, 0.0)
        status, usage, killed = _wait(process.pid, begin + limit + GRACE_S)
        seconds = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        said = result.read_text() if result.exists() else texts[0]
        verdict, reason = _verdict(said, killed, (texts[1] or texts[0]).strip().splitlines()[-1:] or [f"exit code {process.returncode}"])
        replayed = _replayed(network, spec, said) if verdict == "falsified" else None
    return Answer(verdict, reason, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, replayed)


@contextmanager
def _pinned(core: int) -> Iterator[None]:
    """Processes started meanwhile run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _wait(pid: int, deadline: float) -> tuple[int, resource.struct_rusage, bool]:
    """Exit status and resources of a child and its children, killed at the deadline."""
    killed = False
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, usage, killed
        if time.monotonic() > deadline:
            killed = True
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)


def _verdict(text: str, killed: bool, last: Sequence[str]) -> tuple[str, str]:
    if killed:
        return "unknown", "killed after the time limit"
    words = [line.split()[0].strip().lower() for line in text.splitlines() if line.split()]
    found = [word for word in words if word in VERDICTS]
    if not found:
        return "error", last[-1]
    word = found[0] if words[0] in VERDICTS else found[-1]
    return VERDICTS[word], "" if VERDICTS[word] != "unknown" else word


def _replayed(network: Path, spec: Path, text: str) -> bool | None:
    """Whether the counterexample in a result file is one, on the original model and without tolerance."""
    values = {int(index): float(value) for index, value in re.findall(r"\(\s*X_(\d+)\s+([^\s()]+)\s*\)", text)}
    if not values:
        return None
    model = Network.from_onnx(network)
    x = np.array([values[index] for index in sorted(values)], np.float64)
    return any(replay(model, one, x, "compare") is not None for one in load_property(spec, model))


def unpacked(path: Path, folder: Path) -> Path:
    """The file itself, or its content in the folder where it is gzipped."""
    if path.suffix != ".gz":
        return path.resolve()
    target = folder / path.stem
    target.write_bytes(gzip.decompress(path.read_bytes()))
    return target


def answer_in_turn(task: Task, tools: Sequence[Tool], limit: float, core: int, rounds: int) -> dict[str, list[Answer]]:
    """The answers of every tool, `rounds` each; the order changes from round to round."""
    answers: dict[str, list[Answer]] = {tool.name: [] for tool in tools}
    with tempfile.TemporaryDirectory() as name:
        network, spec = unpacked(task.model, Path(name)), unpacked(Path(str(task.spec)), Path(name))
        for number in range(rounds):
            for tool in tools if number % 2 == 0 else reversed(tools):
                answers[tool.name].append(ask(tool, network, spec, limit, core))
    return answers


def outcome(answers: Sequence[Answer]) -> Outcome:
    """What is stored: the first round's verdict, median times, every round in the detail; a verdict that changes is an error."""
    verdicts = {answer.verdict for answer in answers}
    first = answers[0]
    wall, cpu = ([getattr(answer, name) for answer in answers] for name in ("seconds", "cpu_s"))
    detail = json.dumps({"wall_s": wall, "cpu_s": cpu, "replayed": [answer.replayed for answer in answers]})
    decided = {answer.verdict for answer in answers} - {"unknown"}
    verdict = first.verdict if len(verdicts) == 1 else next(iter(decided)) if len(decided) == 1 else "error"
    reason = first.reason if len(decided) < 2 else f"different verdicts: {', '.join(sorted(decided))}"
    return Outcome(
        verdict,
        reason or None,
        detail=detail,
        seconds={"total": statistics.median(wall)},
        wall_s=statistics.median(wall),
        cpu_s=statistics.median(cpu),
        peak_mb=max(answer.peak_mb for answer in answers),
    )


@dataclass(frozen=True)
class Comparison:
    """What two tools said about the same instances."""

    instance: Instance
    ours: Outcome
    theirs: Outcome

    @property
    def both_solved(self) -> bool:
        """Whether both decided it."""
        return {self.ours.verdict, self.theirs.verdict} <= {"verified", "falsified"}

    @property
    def disagree(self) -> bool:
        """Whether they decided it differently."""
        return self.both_solved and self.ours.verdict != self.theirs.verdict

    def ratio(self, clock: str) -> float:
        """Their seconds over ours: the median over the rounds, each of which is a pair. clock: "wall_s" or "cpu_s"."""
        pairs = zip(*(json.loads(o.detail or "{}")[clock] for o in (self.theirs, self.ours)), strict=True)
        return statistics.median(theirs / max(ours, 1e-9) for theirs, ours in pairs)


def report(comparisons: Sequence[Comparison], name: str) -> str:
    """Solved counts, ratios and disagreements as text."""
    lines = [f"{name} beside {OURS} on {len(comparisons)} instances"]
    for who in ("ours", "theirs"):
        outcomes: list[Outcome] = [getattr(c, who) for c in comparisons]
        counts = {verdict: sum(o.verdict == verdict for o in outcomes) for verdict in ("verified", "falsified", "unknown", "error")}
        wrong = sum(o.contradicts(c.instance.expected) for o, c in zip(outcomes, comparisons, strict=True))
        lines.append(f"  {OURS if who == 'ours' else name:12s} {counts}, against what is expected: {wrong}")
    solved = [c for c in comparisons if c.both_solved and not c.disagree]
    for clock, what in (("wall_s", "wall clock"), ("cpu_s", "CPU")):
        ratios = sorted(c.ratio(clock) for c in solved)
        if ratios:
            told = f"median {statistics.median(ratios):.2f}, range {ratios[0]:.2f} to {ratios[-1]:.2f}"
            lines.append(f"  {what} of {name} over {OURS}, {len(ratios)} instances that both solve: {told}")
    for who, other in (("ours", "theirs"), ("theirs", "ours")):
        alone = [
            c
            for c in comparisons
            if getattr(c, who).verdict in ("verified", "falsified") and getattr(c, other).verdict in ("unknown", "error")
        ]
        lines.append(f"  solved by {OURS if who == 'ours' else name} alone: {len(alone)}")
    for c in comparisons:
        if c.disagree:
            sides = ((OURS, c.ours), (name, c.theirs))
            told = ", ".join(f"{who} {o.verdict} (replayed: {json.loads(o.detail or '{}').get('replayed')})" for who, o in sides)
            lines.append(f"  DISAGREEMENT {c.instance.family} {c.instance.name}: {told}, expected {c.instance.expected or 'nothing'}")
    return "\n".join(lines)


def start_up(tools: Sequence[Tool], core: int, rounds: int) -> str:
    """What every tool spends on an instance that needs no work: its start and its imports."""
    with tempfile.TemporaryDirectory() as name:
        (task,) = trivial_suite(Path(name), 1)
        answers = answer_in_turn(task, tools, 60.0, core, rounds)
    told = (
        f"{tool.name} {statistics.median(a.cpu_s for a in answers[tool.name]):.2f} s ({answers[tool.name][0].verdict})" for tool in tools
    )
    return f"CPU for an instance that needs no work: {', '.join(told)}"


def compare(tasks: Sequence[Task], tools: Sequence[Tool], results: Results, arguments: argparse.Namespace) -> None:
    """Ask what is not stored yet."""
    configurations = [_configuration(tool, arguments) for tool in tools]
    numbers = [results.configuration(configuration) for configuration in configurations]
    stored = {row.key for number in numbers for row in results.rows(number)}
    run = results.begin(RunInfo(arguments.suite, "compare", 1, revision(), machine()))
    for task in tasks:
        keys = [task.instance.key(configuration) for configuration in configurations]
        if task.broken is not None or all(key in stored for key in keys):
            continue
        answers = answer_in_turn(task, tools, task.instance.limit_s or 60.0, arguments.core, arguments.rounds)
        for tool, number, key in zip(tools, numbers, keys, strict=True):
            results.record(run, number, key, task.instance, outcome(answers[tool.name]))
        told = "  ".join(f"{tool.name} {outcome(answers[tool.name]).verdict} {outcome(answers[tool.name]).wall_s:.2f} s" for tool in tools)
        print(f"{task.instance.family}  {task.instance.name}  {told}", flush=True)
    results.end(run, "finished")
    print(start_up(tools, arguments.core, arguments.rounds))
    ours, *others = ({(r.instance.network_hash, r.instance.spec_hash): r for r in results.rows(number)} for number in numbers)
    wanted = {(task.instance.network_hash, task.instance.spec_hash) for task in tasks}
    for tool, theirs in zip(tools[1:], others, strict=True):
        both = [pair for pair in ours if pair in theirs and pair in wanted]
        print(report([Comparison(ours[pair].instance, ours[pair].outcome, theirs[pair].outcome) for pair in both], tool.name))


def _configuration(tool: Tool, arguments: argparse.Namespace) -> Configuration:
    return Configuration(tool.name, "", {"command": tool.template, "timeout": arguments.timeout, "rounds": arguments.rounds})


def read_tool(text: str) -> Tool:
    """A tool from "name=command".

    Raises:
        ValueError: it has another form, or a placeholder is missing.
    """
    name, _, template = text.partition("=")
    if not name or any(f"{{{part}}}" not in template for part in ("network", "property")):
        raise ValueError(f"cannot read the tool {text!r}; write name=command with {{network}} and {{property}} in it")
    return Tool(name, template)


def main() -> None:
    """Read the arguments, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="an instances.csv, or a folder of families")
    parser.add_argument("--family", nargs="+", default=[])
    parser.add_argument("--count", type=int, help="only the first instances of each family")
    parser.add_argument("--every", type=int, default=1, help="only every n-th instance of a family")
    parser.add_argument("--timeout", type=float, help="seconds for every instance instead of the suite's own")
    parser.add_argument("--tool", action="append", type=read_tool, default=[], metavar="NAME=COMMAND")
    parser.add_argument("--marabou", metavar="PYTHON", help="a Python that has maraboupy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0)
    parser.add_argument("--out", type=Path, default=Path("results/compare.sqlite"))
    arguments = parser.parse_args()
    place = "{network} {property} {result} {limit}"
    tools = [Tool(OURS, f"{shlex.quote(sys.executable)} -m verify.competition run {place}"), *arguments.tool]
    if arguments.marabou:
        tools.append(Tool("marabou", f"{shlex.quote(arguments.marabou)} {shlex.quote(str(_HERE / 'marabou_instance.py'))} {place}"))
    if len(tools) == 1:
        parser.error("name at least one other verifier with --tool or --marabou")
    try:
        tasks = families(read_suite(find_lists(arguments.suite, None), arguments.timeout), arguments.family)
        groups: dict[str, list[Task]] = {}
        for task in tasks:
            groups.setdefault(task.instance.family, []).append(task)
        chosen = [task for group in groups.values() for task in group[:: arguments.every][: arguments.count]]
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with Results.write(arguments.out) as results:
            compare(chosen, tools, results, arguments)
    except RingfenceError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
