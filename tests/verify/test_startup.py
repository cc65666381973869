"""Imports without garbage collection, and the end of a process."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from verify.startup import quick_exit, quick_imports


def test_collection_is_off_inside_and_on_again_outside() -> None:
    assert gc.isenabled()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_collection_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_import_that_fails_leaves_collection_on() -> None:
    with pytest.raises(ImportError), quick_imports():
        raise ImportError("not there")
    assert gc.isenabled()


def test_what_is_imported_is_left_out_of_collections() -> None:
    with quick_imports():
        made = [[] for _ in range(10)]
    assert gc.get_freeze_count() >= len(made)
    gc.unfreeze()


def test_promises_are_kept_at_a_quick_exit() -> None:
    code = "import atexit; from verify.startup import quick_exit; atexit.register(print, 'kept'); quick_exit(); raise SystemExit(3)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (3, "kept\n")
    assert callable(quick_exit)
