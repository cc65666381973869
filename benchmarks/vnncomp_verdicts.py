"""Verdicts on VNN-COMP instances: one `ringfence verify` process after the other, compared with the expected answers.

    python -m benchmarks.vnncomp_verdicts --shared ../shared [--timeout 60] [--family safenlp cora] [--every 4] [--out results/FILE.jsonl]

Every finished instance is one JSON line of the results file; a run started again continues where the last one stopped, and a run with a
longer limit asks again only what a shorter one left open. `--summary` prints the table of a results file without running anything. Each
process has one thread; its wall-clock seconds, CPU seconds and peak resident memory are recorded.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FAMILIES = (
    "rl_benchmarks",
    "reach_prob_density",
    "safenlp",
    "mnist_fc",
    "eran",
    "verivital",
    "marabou_cifar10",
    "collins_rul_cnn",
    "dist_shift",
    "cora",
)
SAT_UNSAT = {"falsified": "sat", "verified": "unsat"}
GRACE = 30.0
CPU_CLOCK = (sys.executable, "-c", "import time; time.monotonic = time.process_time; from verify.cli import main; main()")
"""`ringfence` with limits in CPU seconds; a MILP solver's own clock stays what it is."""
"""Seconds beyond the limit after which a process is killed."""
LATE = 1.0
"""Seconds beyond the limit that count as honouring it."""


@dataclass(frozen=True)
class Instance:
    """One row of a family's instances.csv; expected is "sat", "unsat" or "" where nobody knows."""

    family: str
    net: str
    spec: str
    expected: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the instance."""
        return self.family, self.net, self.spec


@dataclass(frozen=True)
class Record:
    """What one process answered. seconds: as the command reports them; process_seconds (wall clock), cpu_seconds and peak_mb: of the whole process.

    On a busy machine the limit, which is one of wall-clock time, buys less computation than it seems to: cpu_seconds tells how much.
    """

    family: str
    net: str
    spec: str
    expected: str
    limit: float
    verdict: str
    reason: str
    decided_by: str
    proof: str
    rounded: int
    lower_bound: float | None
    seconds: dict[str, float]
    process_seconds: float
    cpu_seconds: float
    peak_mb: float
    code: int

    @property
    def contradicts(self) -> bool:
        """Whether the verdict is the opposite of the expected one."""
        found = SAT_UNSAT.get(self.verdict)
        return found is not None and self.expected in ("sat", "unsat") and found != self.expected

    @property
    def overrun(self) -> float:
        """Seconds that the question (loading excluded) took beyond its limit."""
        return self.seconds.get("total", self.process_seconds) - self.seconds.get("load", 0.0) - self.limit


def instances(shared: Path, families: Sequence[str], every: int) -> Iterator[Instance]:
    """Every `every`-th instance of the families, in the order of their files."""
    for family in families:
        with (shared / "vnncomp" / family / "instances.csv").open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                if number % every == 0:
                    yield Instance(family, row["onnx"], row["vnnlib"], (row["expected"] or "").strip())


def ask(command: Sequence[str], shared: Path, instance: Instance, limit: float, grace: float = GRACE) -> Record:
    """One instance in a process of its own, killed `grace` seconds after its limit."""
    folder = shared / "vnncomp" / instance.family
    arguments = ["nice", "-n", "2", *command, "verify", str(_plain_or_gzipped(folder / instance.net))]
    arguments += [str(_plain_or_gzipped(folder / instance.spec)), "--json", "--timeout", str(limit)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # modules are compiled once, as where installed
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        process = subprocess.Popen(arguments, stdout=out, stderr=err, env=environment)
        status, usage = _wait(process.pid, start + limit + grace)
        seconds = time.monotonic() - start
        process.returncode = status
        out.seek(0)
        err.seek(0)
        document, complaint = _parse(out.read()), err.read().decode(errors="replace").strip()
    failed = document is None
    found = document or {}
    reason = (complaint.splitlines() or ["no output"])[-1] if failed else found.get("reason") or ""
    witness = found.get("counterexample") or {}
    return Record(
        **asdict(instance),
        limit=limit,
        verdict="error" if failed else found["verdict"],
        reason=reason,
        decided_by=found.get("decided_by") or "",
        proof=found.get("proof") or "",
        rounded=len(witness.get("rounded", [])),
        lower_bound=found.get("lower_bound"),
        seconds=found.get("seconds") or {},
        process_seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss / 1024,
        code=os.waitstatus_to_exitcode(status),
    )


def _plain_or_gzipped(path: Path) -> Path:
    gzipped = path.with_name(path.name + ".gz")
    return gzipped if not path.exists() and gzipped.exists() else path


def _wait(pid: int, deadline: float) -> tuple[int, resource.struct_rusage]:
    """Exit status and resources of a child, which is killed at the deadline."""
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, usage
        if time.monotonic() > deadline:
            os.kill(pid, 9)
        time.sleep(0.01)


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def read(path: Path) -> dict[tuple[str, str, str], Record]:
    """The last record of every instance in a results file; a last line that was cut off is ignored."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = Record(**json.loads(line))
        except json.JSONDecodeError:
            continue
        records[record.family, record.net, record.spec] = record
    return records


def summary(records: Sequence[Record], limit: float) -> str:
    """A Markdown table with one row a family; an unknown within less than `limit` seconds may still be solved."""
    lines = [
        "| family | solved of | verified (solver proofs) | falsified (rounded inputs) | unknown (asked with a shorter limit) | errors | contradictions "
        "| median s | max s | median CPU s | max CPU s | peak MB | over the limit by > 1 s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(f"{record.family} (sigmoid)" if "SIGMOID" in record.net else record.family, []).append(record)
    lines += [_row(name, group, limit) for name, group in groups.items()]
    return "\n".join([*lines, _row("all", records, limit)] if records else lines)


def _row(name: str, records: Sequence[Record], limit: float) -> str:
    verified = [r for r in records if r.verdict == "verified"]
    falsified = [r for r in records if r.verdict == "falsified"]
    unknown, errors = (sum(r.verdict == kind for r in records) for kind in ("unknown", "error"))
    seconds = [r.process_seconds for r in records]
    solver, rounded = sum(r.proof == "solver" for r in verified), sum(r.rounded > 0 for r in falsified)
    cpu = [r.cpu_seconds for r in records]
    short = sum(r.verdict == "unknown" and r.limit < limit for r in records)
    late = sum(r.overrun > LATE for r in records)
    return (
        f"| {name} | {len(verified) + len(falsified)} of {len(records)} | {len(verified)} ({solver}) | {len(falsified)} ({rounded}) | {unknown} ({short}) "
        f"| {errors} | {sum(r.contradicts for r in records)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} "
        f"| {statistics.median(cpu):.1f} | {max(cpu):.1f} "
        f"| {max(r.peak_mb for r in records):.0f} | {late} |"
    )


def main() -> None:
    """Run what is left to run, then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--family", nargs="+", default=list(FAMILIES))
    parser.add_argument("--every", type=int, default=1, help="only every n-th instance of a family")
    parser.add_argument("--out", type=Path, default=Path("results/vnncomp_verdicts.jsonl"))
    parser.add_argument("--cpu-clock", action="store_true", help="count the limit in CPU seconds: for machines that others keep busy")
    parser.add_argument("--command", default=str(Path(sys.executable).with_name("ringfence")))
    parser.add_argument("--summary", action="store_true", help="print the table of the results file and stop")
    options = parser.parse_args()
    wanted = list(instances(options.shared, options.family, options.every))
    done = {
        key for key, r in read(options.out).items() if r.verdict in SAT_UNSAT or (r.verdict == "unknown" and r.limit >= options.timeout)
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for instance in [] if options.summary else wanted:
        if instance.key in done:
            continue
        command = CPU_CLOCK if options.cpu_clock else options.command.split()
        record = ask(command, options.shared, instance, options.timeout, GRACE + 20 * options.timeout * options.cpu_clock)
        with options.out.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        flag = "  CONTRADICTION" if record.contradicts else ""
        print(
            f"{record.family:20s} {Path(record.net).stem:28s} {Path(record.spec).stem:46s} {record.verdict:9s} {record.expected or '-':5s} "
            f"{record.decided_by:6s} {record.process_seconds:6.1f} s ({record.cpu_seconds:5.1f} CPU) {record.peak_mb:5.0f} MB {record.reason[:90]}{flag}",
            flush=True,
        )
    found = read(options.out)
    print(summary([found[instance.key] for instance in wanted if instance.key in found], options.timeout))


if __name__ == "__main__":
    main()
