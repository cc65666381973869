"""What `ringfence bench` does: ask a suite, show how it stands, sum it up."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bounds.errors import DataError, OutputError, SpecError
from verify import exits
from verify.document import SCHEMA, to_json
from verify.records import VERDICTS, Instance, Outcome
from verify.results import Results
from verify.suites import IMAGE_SUITES, LIST, families, find_lists, read_suite, spread
from verify.sweep import Count, Engine, Observer, Sweep, Tally
from verify.tasks import Normalisation, Task
from verify.witness import check_place

if TYPE_CHECKING:
    from rich.table import Table

IMAGE_TIMEOUT_S = 60.0
"""Seconds an image is given where nothing else is said."""
_VERDICTS = ("verified", "falsified", "unknown", "error")


@dataclass(frozen=True)
class Wanted:
    """Which instances are asked, as typed. `models` to `radius`, `norm`, `normalisation` and `download` are for the suites of images,
    `families` and `every` for lists."""

    suite: str
    data_dir: Path | None = None
    timeout: float | None = None
    families: tuple[str, ...] = ()
    models: tuple[Path, ...] = ()
    eps: tuple[float, ...] = ()
    radius: bool = False
    norm: str = "inf"
    count: int | None = None
    normalisation: Normalisation | None = None
    download: bool = False
    every: int = 1

    @property
    def limit_s(self) -> float | None:
        """Seconds for every instance; None for those in the lists."""
        return IMAGE_TIMEOUT_S if self.timeout is None and self.suite in IMAGE_SUITES else self.timeout

    def tasks(self, tell: Callable[[str], None]) -> list[Task]:
        """The tasks.

        Raises:
            DataError, SpecError: an option is missing or does not go with the suite; see `verify.suites` and `verify.image_suites`.
        """
        if self.suite in IMAGE_SUITES:
            return self._images(tell)
        for given, option in (
            (self.models, "--model"),
            (self.eps, "--eps"),
            (self.radius, "--radius"),
            (self.normalisation, "--mean and --std"),
            (self.download, "--download"),
        ):
            if given:
                raise SpecError(
                    f"{option} goes with the suites {' and '.join(IMAGE_SUITES)}; {self.suite} lists its own networks and questions"
                )
        tasks = spread(families(read_suite(find_lists(self.suite, self.data_dir), self.timeout), self.families), self.every)
        return tasks if self.count is None else tasks[: self.count]

    def _images(self, tell: Callable[[str], None]) -> list[Task]:
        from verify.download import download
        from verify.image_suites import ImageSuite, models_of

        eps: tuple[float | None, ...] = (*self.eps, *((None,) if self.radius else ()))
        if not self.models or not eps:
            missing = "--model NET.onnx" if not self.models else "--eps E or --radius"
            raise SpecError(f"the suite {self.suite} also needs {missing}")
        if self.families:
            raise SpecError(f"--family goes with lists of instances; choose among the networks of {self.suite} with --model")
        if self.every > 1:
            raise SpecError(f"--every goes with lists of instances; choose among the images of {self.suite} with --count")
        folder = download(self.suite, self.data_dir) if self.download else self.data_dir
        if folder is None:
            raise DataError(f"the suite {self.suite} also needs --data-dir DIR with the official files, or --download to fetch them")
        models = models_of(self.models)
        return ImageSuite(self.suite, folder, models, self.norm, eps, self.count, self.limit_s, self.normalisation).tasks(tell)


@dataclass(frozen=True)
class Bench:
    """A run of `ringfence bench`; `tell` prints text to standard output. report: where a page of the results is written at
    the end, if anywhere."""

    sweep: Sweep
    engine: Engine
    out: Path
    tell: Callable[[str], None]
    as_json: bool
    report: Path | None = None

    def run(self) -> int:
        """Ask what is left, sum up, and return the exit code.

        Raises:
            DataError: rows contradict each other. OutputError: results or the page cannot be put where they should go. Both before anything
            is asked.
        """
        self._check()
        tally, interrupted = Tally(), False
        with Results.write(self.out) as results, _watch(tally, self.engine, self._tell_line) as observe:
            try:
                self.sweep.run(results, self.engine, observe, tally)
            except KeyboardInterrupt:
                interrupted = True
        self.tell(to_json(self._document(tally, interrupted)) if self.as_json else self._text(tally))
        if interrupted:
            sys.stderr.write(f"ringfence: interrupted; {tally.all.done} answers kept in {self.out}; the same command goes on\n")
        code = _code(tally, interrupted)
        if self.report is None or interrupted:
            return code
        try:
            self._write_report(self.report)
        except OutputError as error:  # the page can be made again, and the verdicts say more
            sys.stderr.write(f"ringfence: {error}; make the page with: ringfence report {self.out} --html PAGE\n")
            return code or exits.ERROR
        return code

    def _check(self) -> None:
        """What would be noticed only when everything has been asked, or leave an empty file behind."""
        _ = self.sweep.orders
        if self.report is not None:
            check_place(self.report)
            if self.report.resolve() == self.out.resolve():
                raise OutputError(f"{self.out} cannot hold both the results and the page; name another file with --report")

    def _tell_line(self, line: str) -> None:
        if not self.as_json:
            self.tell(line)

    def _write_report(self, page: Path) -> None:
        from verify.report import write_html

        with Results.read(self.out) as results:
            ours = [number for number, known in results.configurations().items() if known.text() == self.sweep.configuration.text()]
        write_html(self.out, page, configuration=ours[-1])
        self._tell_line(f"report in {page}")

    def _text(self, tally: Tally) -> str:
        lines = _lines(tally)
        if tally.repeated:
            lines.append(f"{tally.repeated} instances are the same as earlier ones and were not asked again")
        if tally.all.wrong:
            lines.append(f"{tally.all.wrong} VERDICTS CONTRADICT what is expected")
        return "\n".join([*lines, f"results in {self.out}"])

    def _document(self, tally: Tally, interrupted: bool) -> dict[str, Any]:
        groups = {name: _describe(count) for name, count in tally.families.items()}
        document: dict[str, Any] = {"schema": SCHEMA, "suite": self.sweep.suite, "results": str(self.out)}
        document |= _describe(tally.all) | {"asked": tally.asked, "repeated": tally.repeated, "families": groups}
        return document | ({"interrupted": True} if interrupted else {})


def _code(tally: Tally, interrupted: bool) -> int:
    """130 for an interrupted sweep, 4 if a verdict contradicts what is expected, 2 if an instance ended in an error, else 0."""
    if interrupted:
        return exits.INTERRUPTED
    if tally.all.wrong:
        return exits.CONTRADICTED
    errors = tally.all.verdicts["error"]
    if errors:
        sys.stderr.write(f"ringfence: {errors} of {tally.all.total} instances ended in an error; --retry error asks them again\n")
    return exits.ERROR if errors else exits.VERIFIED


def choose_engine(name: str, workers: int | None, address: str | None, device: str = "cpu") -> Engine:
    """The engine of a name: local, or ray on the cluster at the address. device: what instances run on, which has to be here if they do.

    Raises:
        SpecError: an unknown name, or an address without a cluster. DeviceError: the device is not there. ClusterError: Ray is not installed or not reachable.
    """
    from verify.answer import make_answer

    if name == "ray":
        from verify.cluster import RayEngine

        return RayEngine.connect(address, workers, make_answer)
    if name != "local":
        raise SpecError(f"unknown engine {name!r}; use local or ray")
    if address is not None:
        raise SpecError("--address goes with --engine ray")
    from bounds.engine import place
    from verify.workers import Workers

    place(device)
    return Workers(workers or usable_cores(), make_answer)


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_out(out: Path | None, suite: str) -> Path:
    """The results file: as given, else named after the suite and in the current folder."""
    if out is not None:
        return out
    path = Path(suite)
    name = path.parent.resolve().name if path.name == LIST else path.resolve().name if path.exists() else path.name
    return Path(f"{name.removesuffix('.csv')}.sqlite")


def read_retry(text: str | None) -> Collection[str]:
    """The verdicts that "unknown", "error" or "unknown,error" names.

    Raises:
        SpecError: anything else.
    """
    names = [] if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ("unknown", "error"):
            raise SpecError(f"cannot retry {name!r}; use unknown, error or unknown,error")
    return names


def read_numbers(text: str | None, option: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        SpecError: something else.
    """
    try:
        return () if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SpecError(f"cannot read {option} {text!r}; give numbers separated by commas") from error


def read_normalisation(mean: str | None, std: str | None) -> Normalisation | None:
    """Mean and standard deviation, one number each or one a channel; None where neither is given.

    Raises:
        SpecError: only one of them, or different numbers of them.
    """
    if mean is None and std is None:
        return None
    means, stds = read_numbers(mean, "--mean"), read_numbers(std, "--std")
    if not means or not stds or len(means) != len(stds):
        raise SpecError("--mean and --std go together, with one number each or one a channel")
    return Normalisation(means, stds)


def _describe(count: Count) -> dict[str, Any]:
    verdicts = {name: count.verdicts[name] for name in VERDICTS}
    return {"total": count.total, "done": count.done} | verdicts | {"wrong": count.wrong, "seconds": count.seconds}


def _columns(tally: Tally) -> tuple[str, ...]:
    measured = ("measured",) if tally.all.verdicts["measured"] else ()
    return ("family", "done", "left", *measured, *_VERDICTS, "wrong", "seconds")


def _rows(tally: Tally) -> list[tuple[str, ...]]:
    """One row a family, and their sum if there are several."""
    counts = list(tally.families.items())
    counts += [("all", tally.all)] if len(counts) > 1 else []
    rows = []
    for name, count in counts:
        known = {"family": name, "done": str(count.done), "left": str(count.total - count.done), "wrong": str(count.wrong)}
        known["seconds"] = f"{count.seconds:.1f}"
        rows.append(tuple(known.get(column, str(count.verdicts[column])) for column in _columns(tally)))
    return rows


def _lines(tally: Tally) -> list[str]:
    """The table as text."""
    rows = [_columns(tally), *_rows(tally)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))) for row in rows]


@contextmanager
def _watch(tally: Tally, engine: Engine, tell: Callable[[str], None]) -> Iterator[Observer]:
    """A table that follows the sweep on a terminal; in a pipe one line an instance."""
    if not sys.stdout.isatty():
        yield lambda instance, outcome, now: tell(_line(instance, outcome, now))
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), get_renderable=lambda: _table(tally, engine), refresh_per_second=4, transient=True):
        yield lambda instance, outcome, now: None


def _line(instance: Instance, outcome: Outcome, tally: Tally) -> str:
    wrong = f"  WRONG, expected {instance.expected}" if outcome.contradicts(instance.expected) else ""
    place = f"{tally.all.done}/{tally.all.total}"
    reason = f"  {outcome.reason}" if outcome.reason else ""
    radius = "" if outcome.radius_lower is None else f"  radius at least {outcome.radius_lower:.6g}"
    return f"{place}  {instance.family}  {instance.name}  {outcome.verdict}  {outcome.wall_s:.2f} s{radius}{reason}{wrong}"


def _table(tally: Tally, engine: Engine) -> Table:
    from rich.table import Table

    working = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in engine.running())
    eta = tally.eta_s
    ends = "" if eta is None else f"about {_duration(eta)} left"
    table = Table(caption="\n".join(part for part in (ends, working) if part), caption_justify="left")
    for name in _columns(tally):
        table.add_column(
            name, justify="left" if name == "family" else "right", style="bold red" if name == "wrong" and tally.all.wrong else None
        )
    rows = _rows(tally)
    for row in [*rows[-1:], *rows[:-1]]:  # the sum first: a terminal that is too low cuts the end off
        table.add_row(*row, end_section=row[0] == "all")
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
