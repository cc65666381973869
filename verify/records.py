"""What a sweep keeps of every instance, whatever keeps it: the instance, its outcome, the configuration and the run it belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

VERDICTS = ("verified", "falsified", "unknown", "error", "measured")
SECONDS = ("load", "attack", "bounds", "milp", "total")


@dataclass(frozen=True)
class Configuration:
    """A tool, its version and the options it ran with; `options` holds JSON values only."""

    tool: str
    version: str
    options: Mapping[str, Any]

    def text(self) -> str:
        """The options as JSON with sorted keys: equal options, equal text."""
        return json.dumps(dict(self.options), sort_keys=True)


@dataclass(frozen=True)
class Instance:
    """One instance. `network`, `spec`: as the suite names them; the hashes are those of what is inside.

    question: for an image of a data set, what is asked about it (dataset, index, label, norm, eps); None for a specification file.
    expected: "sat" (a counterexample exists), "unsat" (the property holds) or "". limit_s: seconds allowed, None for no limit.
    """

    family: str
    name: str
    network: str
    spec: str
    network_hash: str
    spec_hash: str
    expected: str = ""
    limit_s: float | None = None
    question: Mapping[str, Any] | None = None

    def key(self, configuration: Configuration) -> str:
        """SHA-256 of what the answer depends on, as 64 hexadecimal digits."""
        limit = None if self.limit_s is None else float(self.limit_s)
        parts = (self.network_hash, self.spec_hash, limit, configuration.tool, configuration.version, configuration.text())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of an instance.

    verdict: one of VERDICTS; "measured" is the answer to a question for a radius, certified (radius_lower) and attacked (radius_upper).
    reason: why it is unknown or an error. bound: proven lower bound of the worst margin. seconds: as the tool tells them, with the keys of
    SECONDS. wall_s: from the moment the instance was handed out until its answer was there. cpu_s, peak_mb: of the worker, for this instance;
    peak_mb is its resident memory in units of 2^20 bytes. arrays: "input" and "output" of a counterexample, "center" of the region.
    """

    verdict: str
    reason: str | None = None
    bound: float | None = None
    proof: str | None = None
    semantics: str | None = None
    decided_by: str | None = None
    detail: str | None = None
    rounded: tuple[int, ...] = ()
    radius_lower: float | None = None
    radius_upper: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    cpu_s: float | None = None
    peak_mb: float | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def contradicts(self, expected: str) -> bool:
        """Whether the verdict is the opposite of the expected one."""
        return (self.verdict, expected) in (("verified", "sat"), ("falsified", "unsat"))


@dataclass(frozen=True, eq=False)
class Row:
    """A stored result; `outcome.arrays` is left empty, see `verify.results.Results.arrays`."""

    key: str
    instance: Instance
    outcome: Outcome
    configuration: int
    run: int
    attempts: int
    finished: str


@dataclass(frozen=True)
class RunInfo:
    """What a run is recorded with. machine: JSON values only."""

    suite: str
    engine: str
    workers: int
    revision: str | None
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A stored run. status: "finished", "interrupted", "failed", or None while it runs or where it was killed."""

    id: int
    started: str
    finished: str | None
    status: str | None
    info: RunInfo
