"""A line on the terminal that says what a long run is doing; nothing in a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(prefix: str) -> Iterator[Callable[[str], None] | None]:
    """A function to be told the name of each stage, shown with a spinner on stderr while it lasts; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{prefix}starting", spinner="line") as status:
        yield lambda stage: status.update(f"{prefix}{stage}")
