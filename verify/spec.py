"""Specification: the question that is asked about a network."""

from __future__ import annotations

from dataclasses import dataclass

from bounds.linear import Halfspaces
from bounds.region import Region


@dataclass(frozen=True, eq=False)
class Specification:
    """Violated iff some x of `region` has f(x) in some set of `unsafe`.

    `region` has batch size 1. A `Property` read from a file is a tuple of specifications, violated iff one of them is.
    """

    region: Region
    unsafe: tuple[Halfspaces, ...]
    description: str = ""


Property = tuple[Specification, ...]
