"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""glibc's numbers for `mallopt`."""
_MIB = 2**20
_LIMITS = {_MMAP_THRESHOLD: 32 * _MIB, _TRIM_THRESHOLD: 256 * _MIB, _TOP_PAD: 16 * _MIB}


def hold_freed() -> bool:
    """Keep memory that is freed for the next tensors, up to 256 MB, instead of handing it back to the system; whether that was possible.

    A walk makes and drops tensors of a megabyte hundreds of times a second. Pages that were handed back are cleared anew each time, a sixth
    of the time of bisection. For processes of our own: it holds for all of them. glibc alone; elsewhere nothing happens.
    """
    mallopt = getattr(_glibc(), "mallopt", None)
    if mallopt is None:
        return False
    accepted = [mallopt(name, value) for name, value in _LIMITS.items()]
    return all(accepted)


def return_freed() -> None:
    """Hand freed memory back to the system after all: before memory is measured, or when a process is going to wait."""
    trim = getattr(_glibc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _glibc() -> Any:
    """The C library on Linux (without these functions where it is not glibc), None elsewhere."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None
