"""Freed memory stays with processes of ours, and is handed back when asked."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from verify import allocator

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")

# Each of 100 rounds touches all 4096-byte pages of 8 MB anew; what is freed in between has to be faulted in again unless it is held.
ROUNDS = """
import os, resource
import numpy as np
from verify.allocator import hold_freed, return_freed
from verify.resources import resident_mb
assert hold_freed()
np.ones(2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    np.ones(2**20), np.ones(2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
held = resident_mb(os.getpid())
return_freed()
print(held - resident_mb(os.getpid()))
"""


def rounds() -> tuple[int, float]:
    """Page faults of the rounds, and the MB handed back afterwards."""
    out = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True).stdout.split()
    return int(out[0]), float(out[1])


@pytest.mark.skipif(not GLIBC, reason="only glibc's allocator can be told")
def test_freed_memory_is_held_and_handed_back_when_asked() -> None:
    faults, back = rounds()
    assert faults < 10_000
    assert back > 7


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    assert not allocator.hold_freed()
    allocator.return_freed()
