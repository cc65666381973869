"""What `ringfence evaluate` does: a data set through `verify.evaluate`, with progress, a file to resume from, and a report."""

from __future__ import annotations

import gzip
import hashlib
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bounds.engine import place
from bounds.errors import DataError, ModelError
from bounds.network import Network
from verify import exits
from verify.datasets import Dataset, load_dataset
from verify.document import SCHEMA, to_json
from verify.evaluate import INTERRUPTED, Chunk, Evaluation, Limits, Settings, evaluate, summarise
from verify.evaluation_file import Journal, read_chunks, to_record

Progress = Callable[[Evaluation], None]


@dataclass(frozen=True)
class Job:
    """A network, a data set in a folder, how many of its images (None: all), and where results are kept, if anywhere."""

    model: Path
    dataset: str
    folder: Path
    settings: Settings
    count: int | None = None
    out: Path | None = None

    def run(self, limits: Limits, progress: Progress | None = None) -> Evaluation:
        """Evaluate what is not in the file yet. progress: called with the figures so far.

        Raises:
            RingfenceError: a file, the data set, the device or the network cannot be used; see `bounds.errors`.
        """
        place(limits.device)
        data = load_dataset(self.dataset, self.folder)
        count = self._count(data)
        journal, chunks = self._resume(data)
        network = Network.from_onnx(self.model)
        images = data.pixels(slice(0, count), network.input_shape)

        def record(chunk: Chunk) -> None:
            if journal is not None:
                journal.append(to_record(chunk))
            chunks.append(chunk)
            if progress is not None:
                progress(summarise(chunks, self.settings, count))

        if progress is not None:
            progress(summarise(chunks, self.settings, count))
        return evaluate(network, images, data.labels[:count], self.settings, limits, tuple(chunks), record)

    def finished(self) -> Evaluation:
        """The figures of what is in the file, without any further work."""
        data = load_dataset(self.dataset, self.folder)
        chunks = [] if self.out is None else read_chunks(Journal(self.out).read(self.header(data)), self.settings, self.out)
        return summarise(chunks, self.settings, self._count(data))

    def _count(self, data: Dataset) -> int:
        count = len(data) if self.count is None else self.count
        if not 0 < count <= len(data):
            raise DataError(f"{count} images were asked for; {data.name} has {len(data)} here, so use 1 to {len(data)}")
        return count

    def _resume(self, data: Dataset) -> tuple[Journal | None, list[Chunk]]:
        if self.out is None:
            return None, []
        journal = Journal(self.out)
        return journal, read_chunks(journal.resume(self.header(data)), self.settings, self.out)

    def header(self, data: Dataset) -> dict[str, Any]:
        """What the results depend on. The device and limits are not in it: they may change from one run to the next."""
        settings = self.settings
        digest = hashlib.sha256(data.images.tobytes() + data.labels.tobytes()).hexdigest()
        return {
            "schema": SCHEMA,
            "version": version("ringfence"),
            "network": _digest(self.model),
            "dataset": data.name,
            "images": digest,
            "norm": _norm(settings.norm),
            "eps": settings.eps,
            "clip": settings.clip,
            "methods": list(settings.methods),
            "semantics": settings.semantics,
            "batch": settings.batch,
            "attack": {"steps": settings.steps, "restarts": settings.restarts, "seed": settings.seed} if settings.attacks else None,
        }


def _digest(model: Path) -> str:
    """SHA-256 of the model, unpacked if it is gzipped."""
    try:
        data = model.read_bytes()
        return hashlib.sha256(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise ModelError(f"{model}: cannot be read ({getattr(error, 'strerror', None) or error}); give an ONNX file") from error


def _norm(norm: float) -> str:
    return {1.0: "1", 2.0: "2"}.get(norm, "inf")


@dataclass(frozen=True)
class Command:
    """A run of `ringfence evaluate`; `tell` prints the report."""

    job: Job
    limits: Limits
    tell: Callable[[str], None]
    as_json: bool
    threads: int = 1

    def run(self) -> int:
        """Evaluate, report and return the exit code: 0, or 3 where a limit stopped the run, or 130 where Ctrl-C did."""
        torch.set_num_threads(self.threads)
        begin = time.monotonic()
        with _bar() as progress:
            found = self.job.run(self.limits, progress)
        document = self._document(found, time.monotonic() - begin)
        self.tell(to_json(document) if self.as_json else say(self.job, found))
        if found.complete:
            return exits.VERIFIED
        kept = f"; results kept in {self.job.out}" if self.job.out else ""
        sys.stderr.write(f"ringfence: {found.reason} after {found.images} of {found.requested} images{kept}\n")
        return exits.INTERRUPTED if found.reason == INTERRUPTED else exits.UNKNOWN

    def _document(self, found: Evaluation, seconds: float) -> dict[str, Any]:
        job, settings = self.job, self.job.settings
        question = {"network": str(job.model), "dataset": job.dataset, "norm": _norm(settings.norm), "eps": settings.eps}
        document: dict[str, Any] = (
            {"schema": SCHEMA} | question | {"clip": settings.clip, "semantics": settings.semantics} | found.to_dict()
        )
        document["seconds"]["total"] = seconds
        return document


@contextmanager
def _bar() -> Iterator[Progress | None]:
    """A progress bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(found: Evaluation) -> None:
            errors = [f"{name} {value:.2f} %" for name, value in found.certified_error.items() if value is not None]
            bar.update(task, total=found.requested, completed=found.images, description=", ".join(errors))

        yield show


def say(job: Job, found: Evaluation) -> str:
    """The figures as text."""
    settings = job.settings
    where = "pixels in [0, 1]" if settings.clip else "pixels not clipped"
    lines = [
        f"{job.model.name}: first {found.images} images of {job.dataset}, l-{_norm(settings.norm)} radius {settings.eps:g}, {where}",
        f"clean error   {_percent(found.clean_error)}",
    ]
    if settings.attacks:
        lines.append(f"pgd error     {_percent(found.pgd_error)}   {found.seconds['pgd']:.1f} s")
    if settings.provers:
        rows = [("method", "certified error", "average certified bound", "seconds")]
        for name in settings.provers:
            bound = found.average_certified_bound[name]
            rows.append(
                (name, _percent(found.certified_error[name]), "-" if bound is None else f"{bound:.6g}", f"{found.seconds[name]:.1f}")
            )
        lines += _columns(rows)
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
