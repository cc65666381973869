"""`ringfence bench` killed with signal 9 at random moments and started again, then held against a sweep that was left alone.

    python -m benchmarks.sweep_kills ../shared/vnncomp --timeout 3 --workers 2 --kills 20 --folder results/kills

Before every kill the stored rows reach a number drawn at random from all of them, and then a random part of --delay passes, so that kills
meet workers while they start, load, work and answer. After every kill the file is checked: SQLite finds it whole, no row of before is gone or
changed, every answer that was told is in it, and at most one more (stored, not told yet). At the end the sweep is left to finish, the same
sweep is run without a kill, and every row is compared. A verdict near its time limit may be decided in one of them and open in the other;
those are listed apart. What must not happen: a row that is lost, doubled or asked twice, or verified here and falsified there.

Kills are noted in kills.jsonl: started again, the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from verify.records import Row
from verify.results import Results

ROOT = Path(__file__).resolve().parents[1]
DECIDED = ("verified", "falsified")
_POLL_S = 0.2
_PATIENCE_S = 600.0
"""Seconds without a new row after which a kill no longer waits for its number of rows."""


@dataclass(frozen=True)
class Kill:
    """One kill: when, and what it left. told: lines of answers the sweep printed since it was started. faults: what must not happen."""

    number: int
    wanted: int
    seconds: float
    alive: bool
    before: int
    after: int
    told: int
    faults: tuple[str, ...]

    def line(self) -> str:
        """The kill as text."""
        when = f"{self.seconds:6.1f} s after the start" if self.alive else "too late: the sweep had ended"
        return f"kill {self.number:2d}  {when}  {self.after:4d} rows, {self.told} told since the start  {'; '.join(self.faults) or 'sound'}"


@dataclass(frozen=True)
class Bench:
    """The command that is killed. suite and options as for `ringfence bench`."""

    suite: str
    options: tuple[str, ...]

    def start(self, out: Path, told: Path) -> subprocess.Popen[bytes]:
        """The sweep in a process of its own; what it prints goes to `told`."""
        command = [sys.executable, "-c", "from verify.cli import main; main()", "bench", self.suite, *self.options]
        with told.open("wb") as file:
            return subprocess.Popen([*command, "--no-report", "--out", str(out.resolve())], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def stored(path: Path) -> dict[str, Row]:
    """The rows of a results file by key; none if there is no file, or nothing in it yet."""
    if not path.exists() or path.stat().st_size == 0:
        return {}
    with Results.read(path) as results:
        return {row.key: row for row in results.rows()}


def count(path: Path) -> int:
    """How many rows there are, without reading them."""
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30.0)
        try:
            return int(connection.execute("SELECT count(*) FROM results").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error:  # not there yet, or its tables are not
        return 0


def whole(path: Path) -> str:
    """What SQLite's own check of the file says; "ok" for a whole one, or where there is none yet."""
    if not path.exists():
        return "ok"
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


def faults(before: Mapping[str, Row], after: Mapping[str, Row], told: int, check: str) -> tuple[str, ...]:
    """What a kill must not do, if it did. told: answers printed between the two."""
    found = [] if check == "ok" else [f"SQLite: {check}"]
    lost = [row.instance.name for key, row in before.items() if key not in after]
    changed = [row.instance.name for key, row in before.items() if key in after and after[key].outcome.verdict != row.outcome.verdict]
    twice = [row.instance.name for row in after.values() if row.attempts > 1]
    for names, what in ((lost, "lost"), (changed, "changed"), (twice, "asked twice")):
        found += [f"{what}: {', '.join(names)}"] if names else []
    new = len(after.keys() - before.keys())
    if not told <= new <= told + 1:
        found.append(f"{told} answers told, {new} stored")
    return tuple(found)


def kill(number: int, wanted: int, delay: float, bench: Bench, folder: Path) -> Kill:
    """Start the sweep, wait until `wanted` rows are stored and `delay` seconds more, kill it, and look at what it left."""
    out, told = folder / "killed.sqlite", folder / "told.txt"
    before = stored(out)
    begin = since = time.monotonic()
    driver, seen = bench.start(out, told), len(before)
    while driver.poll() is None and seen < wanted and time.monotonic() - since < _PATIENCE_S:
        time.sleep(_POLL_S)
        now = count(out)
        since, seen = (time.monotonic(), now) if now != seen else (since, seen)
    time.sleep(delay)
    alive = driver.poll() is None
    driver.kill()
    driver.wait()
    seconds, after = time.monotonic() - begin, stored(out)
    lines = [line.split("/")[0] for line in told.read_text().splitlines()]
    answers = sum(line.isdecimal() for line in lines)
    return Kill(number, wanted, seconds, alive, len(before), len(after), answers, faults(before, after, answers, whole(out)))


def compare(killed: Mapping[str, Row], quiet: Mapping[str, Row]) -> str:
    """The two sweeps side by side as text: rows, verdicts, and every row that is not the same."""
    both = killed.keys() & quiet.keys()
    pairs = [(killed[key], quiet[key]) for key in sorted(both, key=lambda key: (quiet[key].instance.family, quiet[key].instance.name))]
    other = [(one, two) for one, two in pairs if one.outcome.verdict != two.outcome.verdict]
    against = [(one, two) for one, two in other if one.outcome.verdict in DECIDED and two.outcome.verdict in DECIDED]
    lines = [
        f"rows: {len(killed)} killed, {len(quiet)} left alone; only killed {len(killed.keys() - both)}, only left alone {len(quiet.keys() - both)}",
        f"asked more than once: {sum(row.attempts > 1 for row in killed.values())}",
        f"contradictions: {len(against)}; of what is expected: {_wrong(killed)} killed, {_wrong(quiet)} left alone",
        f"same verdict: {len(pairs) - len(other)} of {len(pairs)}; decided in one and open in the other: {len(other) - len(against)}",
    ]
    for name, rows in (("killed", killed), ("left alone", quiet)):
        lines.append(f"  {name}: {dict(sorted(Counter(row.outcome.verdict for row in rows.values()).items()))}")
    lines += [_family(name, pairs) for name in dict.fromkeys(two.instance.family for _, two in pairs)]
    lines += [f"  {two.instance.family} {two.instance.name}: {_told(one)} killed, {_told(two)} left alone" for one, two in other]
    return "\n".join(lines)


def _family(name: str, pairs: Sequence[tuple[Row, Row]]) -> str:
    mine = [(one.outcome.verdict, two.outcome.verdict) for one, two in pairs if two.instance.family == name]
    return f"  {name}: {sum(one == two for one, two in mine)} of {len(mine)} the same"


def _wrong(rows: Mapping[str, Row]) -> int:
    return sum(row.outcome.contradicts(row.instance.expected) for row in rows.values())


def _told(row: Row) -> str:
    reason = f" ({row.outcome.reason})" if row.outcome.reason else ""
    return f"{row.outcome.verdict} {row.outcome.seconds.get('total', row.outcome.wall_s):.2f} s{reason}"


def left_alone(bench: Bench, out: Path, folder: Path) -> float:
    """Run the sweep to its end; the seconds it took."""
    begin = time.monotonic()
    bench.start(out, folder / "told.txt").wait()
    return time.monotonic() - begin


def main() -> None:
    """Read the arguments, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="as for ringfence bench")
    parser.add_argument("--timeout", type=float, help="seconds for every instance instead of the suite's own")
    parser.add_argument("--family", action="append", default=[])
    parser.add_argument("--every", type=int, default=1, help="only every n-th instance of each family")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--delay", type=float, default=3.0, help="at most so many seconds between a row and the kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/kills"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--workers", str(arguments.workers), "--every", str(arguments.every)] + [
        part for name in arguments.family for part in ("--family", name)
    ]
    options += [] if arguments.timeout is None else ["--timeout", f"{arguments.timeout:g}"]
    bench = Bench(str(Path(arguments.suite).resolve()), tuple(options))
    took = left_alone(bench, folder / "quiet.sqlite", folder)
    quiet = stored(folder / "quiet.sqlite")
    print(f"left alone: {len(quiet)} rows in {took:.0f} s", flush=True)
    rng = random.Random(arguments.seed)
    moments = sorted(rng.randrange(len(quiet)) for _ in range(arguments.kills))
    delays = [arguments.delay * rng.random() for _ in moments]
    notes = folder / "kills.jsonl"
    noted = notes.read_text().splitlines() if notes.exists() else []
    for line in noted:
        print(Kill(**json.loads(line)).line())
    for number in range(len(noted), arguments.kills):
        one = kill(number + 1, moments[number], delays[number], bench, folder)
        with notes.open("a") as file:
            file.write(json.dumps(asdict(one)) + "\n")
        print(one.line(), flush=True)
    print(f"resumed to its end in {left_alone(bench, folder / 'killed.sqlite', folder):.0f} s")
    killed = stored(folder / "killed.sqlite")
    with Results.read(folder / "killed.sqlite") as results:
        print(f"runs: {dict(Counter(str(run.status) for run in results.runs()))}; SQLite: {whole(folder / 'killed.sqlite')}")
        print(f"revisions: {sorted({str(run.info.revision) for run in results.runs()})}")
    print(compare(killed, quiet))


if __name__ == "__main__":
    main()
