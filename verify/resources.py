"""Seconds and memory of worker processes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

_RESET = "5"
"""What Linux's clear_refs takes to forget the peak of resident memory."""


def resident_mb(pid: int) -> float | None:
    """Resident memory of a process in units of 2^20 bytes; None where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError, IndexError):
        return None


class Meter:
    """CPU seconds and peak resident memory of this process from the moment the meter is made.

    Where the system cannot forget an earlier peak, the peak is that of the process.
    """

    def __init__(self) -> None:
        self._cpu = time.process_time()
        try:
            Path("/proc/self/clear_refs").write_text(_RESET)
        except OSError:
            self._resettable = False
        else:
            self._resettable = True

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all threads."""
        return time.process_time() - self._cpu

    @property
    def peak_mb(self) -> float:
        """Peak of resident memory in units of 2^20 bytes."""
        if self._resettable:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
