"""Code that only loading runs does not stay resident."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/smaps")
_DONTNEED = 4
"""Linux's MADV_DONTNEED."""
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r-.p \S+ \S+ [1-9]\d* +/.*\n((?:[A-Z].*\n)+)", re.MULTILINE)
"""A private mapping of a file that cannot be written to, and the lines of what is counted in it."""
_OWN = re.compile(r"^(?:Private_Dirty|Anonymous|Swap): +[1-9]", re.MULTILINE)
"""Pages that differ from the file."""


def release_code() -> bool:
    """Let go of the pages of libraries' code and constants; whether that was possible.

    Loading torch and onnxruntime registers thousands of operators, which touches 60 MB of code that never runs again. The pages stay in the system's
    cache of files, and one that is needed after all is mapped again at its next use. Only mappings that no page of the process's own
    is part of are touched, so that nothing can be lost. Linux alone; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return False
    try:
        mapped = _MAPS.read_text(errors="surrogateescape")
    except OSError:
        return False
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    results = [advise(start, end - start, _DONTNEED) for start, end in _clean(mapped)]
    return bool(results) and not any(results)


def _clean(mapped: str) -> Iterator[tuple[int, int]]:
    """First and last address (exclusive) of the read-only mappings of files whose every page is the file's."""
    for mapping in _MAPPING.finditer(mapped):
        start, end, counts = mapping.groups()
        if not _OWN.search(counts):
            yield int(start, 16), int(end, 16)
