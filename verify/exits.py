"""Exit codes of the command line."""

from __future__ import annotations

from collections.abc import Iterable

VERIFIED, FALSIFIED, ERROR, UNKNOWN, CONTRADICTED, INTERRUPTED = 0, 1, 2, 3, 4, 130
_WORST_FIRST = (ERROR, FALSIFIED, UNKNOWN, VERIFIED)


def worst(codes: Iterable[int]) -> int:
    """The exit code for several questions: the worst in the order 2, 1, 3, 0."""
    present = set(codes)
    return next((code for code in _WORST_FIRST if code in present), VERIFIED)
