"""Results that survive: an append-only file of JSON lines, a header that says what they are results of, then one record a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from bounds.errors import OutputError
from verify.document import to_json
from verify.evaluate import Chunk, Settings


@dataclass(frozen=True)
class Journal:
    """A file whose first line is a header; every further line is one finished record. A run that is killed loses its unfinished line."""

    path: Path

    def read(self, header: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The records already there, none if there is no such file; a last line without its end is left out.

        Raises:
            OutputError: the file is the result of something else, is damaged, or cannot be read.
        """
        return self._read(header)[0]

    def resume(self, header: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As `read`, and makes the file ready for more: a new one gets its header, a last line without its end is removed.

        Raises:
            OutputError: as `read`, or it cannot be written.
        """
        records, size = self._read(header)
        if size == 0:
            self._append(to_json(header), size)
        else:
            self._truncate(size)
        return records

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record, on the disk before this returns.

        Raises:
            OutputError: it cannot be written; what was there before is unchanged.
        """
        self._append(to_json(record))

    def _read(self, header: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
        """The records, and how many bytes the whole lines fill."""
        whole, _, rest = self._bytes().rpartition(b"\n")
        wanted = to_json(header)
        if not whole:
            if not wanted.encode().startswith(rest):
                raise OutputError(f"{self.path}: not a file of evaluation results; name another --out file")
            return [], 0
        lines = [self._parse(line, number) for number, line in enumerate(whole.split(b"\n"), start=1)]
        self._compare(lines[0], json.loads(wanted))
        return lines[1:], len(whole) + 1

    def _bytes(self) -> bytes:
        if self.path.exists() and not self.path.is_file():
            raise OutputError(f"{self.path}: it is no ordinary file; name another --out file")
        try:
            return self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read ({error.strerror}); name another --out file") from error

    def _append(self, line: str, size: int | None = None) -> None:
        """Write a line at the end, or at `size`; a failure leaves the file as it was."""
        try:
            with self.path.open("ab", buffering=0) as file:
                start = file.seek(0, os.SEEK_END) if size is None else file.truncate(size)
                try:
                    _write(file, line.encode() + b"\n")
                except OSError:
                    file.truncate(start)
                    raise
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror}); finished results before it are kept."
                " Free space or choose another place, then run the same command again"
            ) from error

    def _truncate(self, size: int) -> None:
        try:
            if self.path.stat().st_size > size:
                os.truncate(self.path, size)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}); name another --out file") from error

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise OutputError(f"{self.path}: line {number} is damaged; remove it and those after it, or name another --out file") from error
        if not isinstance(record, dict):
            raise OutputError(f"{self.path}: line {number} is no result; name another --out file")
        return record

    def _compare(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for name in (*wanted, *found):
            if found.get(name) != wanted.get(name):
                raise OutputError(
                    f"{self.path}: holds the results of another run, whose {name} is {json.dumps(found.get(name))} instead of"
                    f" {json.dumps(wanted.get(name))}; name another --out file or remove this one"
                )


def _write(file: FileIO, data: bytes) -> None:
    """All of the data, onto the disk."""
    while data:
        data = data[file.write(data) or 0 :]
    os.fsync(file.fileno())


def to_record(chunk: Chunk) -> dict[str, Any]:
    """A chunk as a record."""
    margins = {name: list(values) for name, values in chunk.margins.items()}
    broken = None if chunk.broken is None else list(chunk.broken)
    record = {"first": chunk.first, "correct": list(chunk.correct), "margins": margins, "broken": broken, "seconds": dict(chunk.seconds)}
    return record if chunk.radii is None else record | {"radii": list(chunk.radii)}


def read_chunks(records: Sequence[Mapping[str, Any]], settings: Settings, path: Path) -> list[Chunk]:
    """The chunks of records.

    Raises:
        OutputError: a record that is not one of a run with these settings, or not the next one after its predecessor.
    """
    chunks: list[Chunk] = []
    start = 0
    for number, record in enumerate(records, start=2):
        chunk = _chunk(record)
        if chunk is None or not _fits(chunk, settings):
            raise OutputError(f"{path}: line {number} is no result of this run; remove it and those after it, or name another --out file")
        if chunk.first != start:
            raise OutputError(
                f"{path}: line {number} begins at image {chunk.first} instead of {start}, as if two runs wrote at once;"
                " remove it and those after it, or name another --out file"
            )
        chunks.append(chunk)
        start += len(chunk)
    return chunks


def _chunk(record: Mapping[str, Any]) -> Chunk | None:
    try:
        margins = {str(name): _numbers(values) for name, values in record["margins"].items()}
        broken = None if record["broken"] is None else tuple(map(bool, record["broken"]))
        seconds = {str(name): float(value) for name, value in record["seconds"].items()}
        radii = _numbers(record["radii"]) if "radii" in record else None
        return Chunk(int(record["first"]), tuple(map(bool, record["correct"])), margins, broken, seconds, radii)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _numbers(values: Iterable[float | None]) -> tuple[float | None, ...]:
    return tuple(None if value is None else float(value) for value in values)


def _fits(chunk: Chunk, settings: Settings) -> bool:
    """Whether the chunk has one entry an image for every method of the settings."""
    columns = [*chunk.margins.values(), *(column for column in (chunk.broken, chunk.radii) if column is not None)]
    same = all(len(column) == len(chunk) for column in columns)
    asked = (chunk.broken is not None) == settings.attacks and (chunk.radii is not None) == bool(settings.envelope)
    return same and asked and len(chunk) > 0 and set(chunk.margins) == set(settings.provers)
