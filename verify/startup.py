"""Starting and ending a process quickly."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

from verify.code_pages import release_code
from verify.deferred import defer


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Imports without garbage collection: what they make lives to the end, and looking through it again and again takes a quarter of the time.

    What is there afterwards is left out of later collections, too. Parts of torch that no question needs wait until they are touched.
    """
    defer()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
        release_code()


def quick_exit() -> None:
    """Let the interpreter end without looking through everything that is left, which takes longer than many a question. Nothing is skipped that
    `atexit` or `with` promised."""
    gc.freeze()
