"""Suites of instances: lists in the layout of VNN-COMP, one file or a folder of families."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bounds.errors import DataError
from verify.records import Instance
from verify.sweep import MISSING, missing
from verify.tasks import Digests, Task

LIST = "instances.csv"
IMAGE_SUITES = ("mnist", "cifar10")
EXPECTED = ("", "sat", "unsat")
_COLUMNS = ("onnx", "vnnlib", "timeout", "expected")
_NEEDED = 3


@dataclass(frozen=True)
class Listed:
    """One row of a list: paths as written, seconds allowed, and "sat", "unsat" or "" for nobody knows."""

    onnx: str
    vnnlib: str
    timeout: float
    expected: str


def find_lists(suite: str, data_dir: Path | None) -> list[Path]:
    """The lists that a suite means: a file, a folder with instances.csv in it or in its folders, or the name of such a folder in data_dir.

    Raises:
        DataError: there is none.
    """
    places = [Path(suite)]
    if data_dir is not None:
        places = [data_dir / suite, *([data_dir] if data_dir.resolve().name == suite else []), Path(suite)]
    for place in places:
        if place.is_file():
            return [place]
        found = [place / LIST] if (place / LIST).is_file() else sorted(place.glob(f"*/{LIST}"))
        if found:
            return found
    where = "" if data_dir is None else f" in {data_dir}"
    raise DataError(
        f"no suite {suite!r}{where}: give {', '.join(IMAGE_SUITES)}, an instances.csv, a folder that holds one or whose folders do,"
        " or the name of such a folder with --data-dir"
    )


def read_suite(lists: Sequence[Path], timeout: float | None) -> list[Task]:
    """The tasks of lists; the name of a list's folder is the family. timeout: instead of the seconds in the list.

    A row whose files are missing becomes a task that says so. Files may lie there gzipped.

    Raises:
        DataError: a list cannot be read, or a row of it is malformed.
    """
    digests = Digests()
    return [_task(path.parent, row, timeout, digests) for path in lists for row in read_list(path)]


def read_list(path: Path) -> list[Listed]:
    """The rows of an instances.csv, with or without a first line that names the columns onnx, vnnlib, timeout (or timeout_s), expected.

    Raises:
        DataError: the file cannot be read, is empty, or a row of it is malformed; the message names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); give a list of onnx,vnnlib,timeout"
        ) from error
    order = _header(rows[0][1]) if rows else None
    found = [_listed(path, line, cells, order or list(_COLUMNS)) for line, cells in (rows[1:] if order else rows)]
    if not found:
        raise DataError(f"{path}: no instance in it; each line is onnx,vnnlib,timeout and, if known, expected")
    return found


def _header(cells: Sequence[str]) -> list[str] | None:
    """The names of the columns, if the first line holds them."""
    names = [cell.lower().removesuffix("_s") for cell in cells]
    return names if "onnx" in names and "vnnlib" in names else None


def _listed(path: Path, line: int, cells: Sequence[str], columns: Sequence[str]) -> Listed:
    values = dict(zip(columns, cells, strict=False))
    absent = [name for name in _COLUMNS[:_NEEDED] if not values.get(name)]
    if absent:
        raise DataError(f"{path}: line {line} has no {' and no '.join(absent)}; each line is onnx,vnnlib,timeout and, if known, expected")
    try:
        timeout = float(values["timeout"])
    except ValueError:
        timeout = math.nan
    if not (math.isfinite(timeout) and timeout > 0):
        raise DataError(f"{path}: line {line} has the timeout {values['timeout']!r}; give seconds, more than 0")
    expected = values.get("expected", "").lower()
    if expected not in EXPECTED:
        raise DataError(f"{path}: line {line} expects {expected!r}; write sat, unsat or nothing")
    return Listed(values["onnx"], values["vnnlib"], timeout, expected)


def _task(folder: Path, row: Listed, timeout: float | None, digests: Digests) -> Task:
    model, spec = (_plain_or_gzipped(folder / name) for name in (row.onnx, row.vnnlib))
    family = folder.resolve().name
    name = f"{_stem(row.onnx)} {_stem(row.vnnlib)}"
    limit = row.timeout if timeout is None else timeout
    instance = Instance(family, name, str(folder / row.onnx), str(folder / row.vnnlib), MISSING, MISSING, row.expected, limit)
    try:
        hashed = replace(instance, network_hash=digests(model), spec_hash=digests(spec))
    except DataError as error:
        return Task(missing(instance), model, spec, broken=str(error))
    return Task(hashed, model, spec)


def _plain_or_gzipped(path: Path) -> Path:
    gzipped = path.with_name(path.name + ".gz")
    return gzipped if not path.exists() and gzipped.exists() else path


def _stem(name: str) -> str:
    return Path(name.removesuffix(".gz")).stem


def families(tasks: Sequence[Task], wanted: Sequence[str]) -> list[Task]:
    """The tasks of the wanted families; all of them where none is named.

    Raises:
        DataError: a wanted family is not there.
    """
    there = list(dict.fromkeys(task.instance.family for task in tasks))
    for name in wanted:
        if name not in there:
            raise DataError(f"no family {name!r}; there are {', '.join(there)}")
    return [task for task in tasks if not wanted or task.instance.family in wanted]


def spread(tasks: Sequence[Task], every: int) -> list[Task]:
    """Every so many-th task of each family, its first one included."""
    seen: Counter[str] = Counter()
    chosen = []
    for task in tasks:
        if seen[task.instance.family] % every == 0:
            chosen.append(task)
        seen[task.instance.family] += 1
    return chosen
