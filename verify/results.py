"""The results of sweeps: one SQLite file, one row for every key, on the disk before the next instance starts.

    runs            one row for every time a sweep was started: when, on which machine, from which revision
    configurations  a tool, its version and its options; two configurations are what a report compares
    results         one row for every (network, specification, options, version, limit): the verdict and what it cost
    arrays          counterexamples and other arrays of a result, as .npy bytes

The key of a result is the SHA-256 of what its answer depends on, so that a sweep started again finds what it has already answered. A commit
is synced to the disk (write-ahead log, synchronous=FULL): whatever kills the process, only rows that were not yet committed are lost. One
process writes at a time; readers may look at any moment.
"""

from __future__ import annotations

import datetime
import io
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bounds.errors import OutputError, ResultsError
from verify.document import to_json
from verify.records import SECONDS, VERDICTS, Configuration, Instance, Outcome, Row, Run, RunInfo
from verify.witness import check_place

APPLICATION = 0x52464E43
"""What SQLite's header says the file is ("RFNC")."""
VERSION = 1
"""Version of the schema, kept in SQLite's user_version; a change that breaks a reader raises it."""

_SCHEMA = f"""
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    started TEXT NOT NULL,
    finished TEXT,
    status TEXT CHECK (status IN ('finished', 'interrupted', 'failed')),
    suite TEXT NOT NULL,
    engine TEXT NOT NULL,
    workers INTEGER NOT NULL,
    revision TEXT,
    machine TEXT NOT NULL
);
CREATE TABLE configurations (
    id INTEGER PRIMARY KEY,
    tool TEXT NOT NULL,
    version TEXT NOT NULL,
    options TEXT NOT NULL,
    UNIQUE (tool, version, options)
);
CREATE TABLE results (
    key TEXT PRIMARY KEY,
    configuration INTEGER NOT NULL REFERENCES configurations (id),
    run INTEGER NOT NULL REFERENCES runs (id),
    attempts INTEGER NOT NULL DEFAULT 1,
    finished TEXT NOT NULL,
    family TEXT NOT NULL,
    name TEXT NOT NULL,
    network TEXT NOT NULL,
    spec TEXT NOT NULL,
    network_hash TEXT NOT NULL,
    spec_hash TEXT NOT NULL,
    question TEXT,
    expected TEXT NOT NULL CHECK (expected IN ('', 'sat', 'unsat')),
    limit_s REAL,
    verdict TEXT NOT NULL CHECK (verdict IN {VERDICTS!r}),
    reason TEXT,
    bound REAL,
    proof TEXT,
    semantics TEXT,
    decided_by TEXT,
    detail TEXT,
    rounded TEXT,
    radius_lower REAL,
    radius_upper REAL,
    {"".join(f"{kind}_s REAL, " for kind in SECONDS)}
    wall_s REAL NOT NULL,
    cpu_s REAL,
    peak_mb REAL
);
CREATE INDEX results_configuration ON results (configuration);
CREATE TABLE arrays (
    key TEXT NOT NULL REFERENCES results (key) ON DELETE CASCADE,
    name TEXT NOT NULL,
    npy BLOB NOT NULL,
    PRIMARY KEY (key, name)
);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""


class Results:
    """An open results file; a context manager.

    Open it with `Results.write` or `Results.read`.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: sqlite3.Connection | None) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        connection.row_factory = sqlite3.Row

    @classmethod
    def write(cls, path: str | Path) -> Results:
        """Open a file for writing; it is made if there is none.

        Raises:
            ResultsError: another process writes to it, it is no results file, or one of another version. OutputError: it cannot be made.
        """
        path = Path(path)
        check_place(path)
        if path.exists() and not path.is_file():
            raise OutputError(f"cannot write {path}: it is a device; name a file")
        lock = _lock(path)
        try:
            connection = _connect(path, f"{path.absolute().as_uri()}?mode=rwc")
            with _complaining(path):
                if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    connection.executescript(f"PRAGMA journal_mode = WAL; BEGIN; {_SCHEMA} COMMIT;")
                _check(path, connection)
                connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        except BaseException:
            lock.close()
            raise
        return cls(path, connection, lock)

    @classmethod
    def read(cls, path: str | Path) -> Results:
        """Open a file for reading; a sweep may be writing to it.

        Raises:
            ResultsError: there is no such file, it is no results file, or one of another version.
        """
        path = Path(path)
        if not path.is_file():
            raise ResultsError(f"{path}: no such results file; make one with: ringfence bench SUITE --out {path}")
        connection = _connect(path, f"{path.absolute().as_uri()}?mode=ro")
        with _complaining(path):
            _check(path, connection)
        return cls(path, connection, None)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let others write. Unless somebody is reading, all of it is then in one plain file again."""
        if self._lock is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()
        if self._lock is not None:
            self._lock.close()

    def configuration(self, configuration: Configuration) -> int:
        """The number of a configuration, which is added if it is new."""
        values = (configuration.tool, configuration.version, configuration.text())
        with _complaining(self.path), self._connection as c:
            c.execute("INSERT OR IGNORE INTO configurations (tool, version, options) VALUES (?, ?, ?)", values)
            found = c.execute("SELECT id FROM configurations WHERE (tool, version, options) = (?, ?, ?)", values).fetchone()
        return int(found[0])

    def begin(self, info: RunInfo) -> int:
        """Record that a run starts; its number."""
        values = (now(), info.suite, info.engine, info.workers, info.revision, to_json(info.machine))
        with _complaining(self.path), self._connection as c:
            added = c.execute(
                "INSERT INTO runs (started, suite, engine, workers, revision, machine) VALUES (?, ?, ?, ?, ?, ?)", values
            ).lastrowid
        return int(added or 0)

    def end(self, run: int, status: str) -> None:
        """Record that a run ended: "finished", "interrupted" or "failed"."""
        with _complaining(self.path), self._connection as c:
            c.execute("UPDATE runs SET finished = ?, status = ? WHERE id = ?", (now(), status, run))

    def record(self, run: int, configuration: int, key: str, instance: Instance, outcome: Outcome) -> None:
        """Store a result, in the place of the one with the same key if there is one. It is on the disk when this returns.

        Raises:
            OutputError: it cannot be written; what was there before is unchanged.
        """
        values = _values(instance, outcome) | {"key": key, "configuration": configuration, "run": run, "finished": now()}
        columns = ", ".join(values)
        changes = ", ".join(f"{name} = excluded.{name}" for name in values if name != "key")
        insert = (
            f"INSERT INTO results ({columns}) VALUES ({', '.join('?' * len(values))}) "
            f"ON CONFLICT (key) DO UPDATE SET {changes}, attempts = attempts + 1"
        )
        with _complaining(self.path), self._connection as c:
            c.execute(insert, tuple(values.values()))
            c.execute("DELETE FROM arrays WHERE key = ?", (key,))
            c.executemany("INSERT INTO arrays VALUES (?, ?, ?)", [(key, name, _npy(a)) for name, a in outcome.arrays.items()])

    def rename(self, key: str, instance: Instance) -> None:
        """Bring what the suite says about a stored result (family, name, paths, expected) up to date."""
        values = (instance.family, instance.name, instance.network, instance.spec, instance.expected, key)
        with _complaining(self.path), self._connection as c:
            c.execute("UPDATE results SET family = ?, name = ?, network = ?, spec = ?, expected = ? WHERE key = ?", values)

    def forget(self, keys: Iterable[str]) -> None:
        """Remove results and their arrays."""
        with _complaining(self.path), self._connection as c:
            c.executemany("DELETE FROM results WHERE key = ?", [(key,) for key in keys])

    def configurations(self) -> dict[int, Configuration]:
        """All configurations by number."""
        rows = self._select("SELECT id, tool, version, options FROM configurations ORDER BY id")
        return {row["id"]: Configuration(row["tool"], row["version"], json.loads(row["options"])) for row in rows}

    def runs(self) -> list[Run]:
        """All runs, the oldest first."""
        return [
            Run(
                row["id"],
                row["started"],
                row["finished"],
                row["status"],
                RunInfo(row["suite"], row["engine"], row["workers"], row["revision"], json.loads(row["machine"])),
            )
            for row in self._select("SELECT * FROM runs ORDER BY id")
        ]

    def rows(self, configuration: int | None = None) -> Iterator[Row]:
        """The results of a configuration, or all, in the order in which they first came."""
        where, values = ("", ()) if configuration is None else ("WHERE configuration = ?", (configuration,))
        yield from map(_row, self._select(f"SELECT * FROM results {where} ORDER BY rowid", *values))

    def arrays(self, key: str) -> dict[str, np.ndarray]:
        """The arrays of a result by name."""
        rows = self._select("SELECT name, npy FROM arrays WHERE key = ? ORDER BY name", key)
        return {row["name"]: np.load(io.BytesIO(row["npy"]), allow_pickle=False) for row in rows}

    def _select(self, query: str, *values: object) -> Iterator[sqlite3.Row]:
        with _complaining(self.path):
            yield from self._connection.execute(query, values)


def now() -> str:
    """The moment as ISO 8601 text in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _connect(path: Path, uri: str) -> sqlite3.Connection:
    with _complaining(path):
        return sqlite3.connect(uri, uri=True, timeout=30.0)


def _lock(path: Path) -> sqlite3.Connection:
    """An exclusive lock on a file beside the results, which the system lets go when this process ends, however it ends.

    SQLite's own file locks are used because they exist on every system that SQLite runs on.
    """
    real = path.resolve()  # one lock for a file, whatever links lead to it
    beside = real.with_name(real.name + ".lock")
    try:
        lock = sqlite3.connect(beside, timeout=0.0, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            raise ResultsError(f"{path}: another process is writing to it; wait for it to end or name another file with --out") from error
        raise OutputError(f"cannot write {beside}: {error}; name another file with --out") from error
    return lock


def _check(path: Path, connection: sqlite3.Connection) -> None:
    application, version = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if application != APPLICATION:
        raise ResultsError(f"{path}: not a results file of ringfence; name another")
    if version != VERSION:
        raise ResultsError(f"{path}: schema version {version}, this ringfence reads and writes version {VERSION}; name another file")


@contextmanager
def _complaining(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            raise ResultsError(f"{path}: not a results file of ringfence, or a damaged one ({error}); name another") from error
        raise OutputError(
            f"{path}: cannot be used ({error}); finished results in it are kept. Free space or name another file, then run the same command again"
        ) from error


def _values(instance: Instance, outcome: Outcome) -> dict[str, Any]:
    """The columns of an instance and its outcome."""
    return {
        "family": instance.family,
        "name": instance.name,
        "network": instance.network,
        "spec": instance.spec,
        "network_hash": instance.network_hash,
        "spec_hash": instance.spec_hash,
        "question": None if instance.question is None else to_json(instance.question),
        "expected": instance.expected,
        "limit_s": instance.limit_s,
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "bound": outcome.bound,
        "proof": outcome.proof,
        "semantics": outcome.semantics,
        "decided_by": outcome.decided_by,
        "detail": outcome.detail or None,
        "rounded": to_json(list(outcome.rounded)) if outcome.rounded else None,
        "radius_lower": outcome.radius_lower,
        "radius_upper": outcome.radius_upper,
        **{f"{kind}_s": outcome.seconds.get(kind) for kind in SECONDS},
        "wall_s": outcome.wall_s,
        "cpu_s": outcome.cpu_s,
        "peak_mb": outcome.peak_mb,
    }


def _row(row: sqlite3.Row) -> Row:
    question = None if row["question"] is None else json.loads(row["question"])
    names = ("family", "name", "network", "spec", "network_hash", "spec_hash", "expected", "limit_s")
    instance = replace(Instance(*(row[name] for name in names)), question=question)
    plain = ("verdict", "reason", "bound", "proof", "semantics", "decided_by", "detail", "radius_lower", "radius_upper")
    outcome = Outcome(
        **{name: row[name] for name in (*plain, "wall_s", "cpu_s", "peak_mb")},
        rounded=tuple(json.loads(row["rounded"] or "[]")),
        seconds={kind: row[f"{kind}_s"] for kind in SECONDS if row[f"{kind}_s"] is not None},
    )
    return Row(row["key"], instance, outcome, row["configuration"], row["run"], row["attempts"], row["finished"])


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()
