"""Counterexamples as files: NumPy arrays and the VNN-COMP text form. Nothing is left half-written."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bounds.errors import OutputError

if TYPE_CHECKING:
    from verify.verdict import Falsified


_DESCRIPTORS = ("/dev/fd", "/proc/self/fd")
"""Where a system keeps names of the descriptors that are open."""
_MOST_LINKS = 40


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file so that it appears complete or not at all.

    A link stays a link: the file it leads to is replaced. A device, a pipe or an open descriptor (/dev/stdout, /dev/fd/3) is written to
    as it is, and stays what it is.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full; the old file, if any, is unchanged.
    """
    path = Path(path)
    try:
        through = _descriptor(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    if through is not None:
        _write_through(path, through, data)
    else:
        _replace(path, Path(os.path.realpath(path)), data)


def check_place(path: Path) -> None:
    """See that a file can be put there before the work that fills it begins.

    Raises:
        OutputError: its folder is missing, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: no folder {path.parent}; create it or name another")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file")


def _descriptor(path: Path) -> int | None:
    """A descriptor of what is no regular file, so that it must not be replaced: a device, a pipe, or a descriptor that is open already.

    None for a regular file, a folder, or nothing there yet.
    """
    at = str(path)
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(os.path.abspath(at))
        if folder in _DESCRIPTORS and name.isdecimal():
            return os.dup(int(name))
        if not os.path.islink(at):
            break
        at = os.path.join(folder, os.readlink(at))
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    special = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    return os.open(path, os.O_WRONLY) if special else None


def _write_through(path: Path, descriptor: int, data: bytes) -> None:
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error


def _replace(path: Path, target: Path, data: bytes) -> None:
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); nothing was changed. Free space or choose another place"
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def vnncomp_text(x: np.ndarray, y: np.ndarray) -> str:
    """The point and its output as ((X_0 v) ... (Y_0 v) ...), every float printed so that it reads back as the same number."""
    names = [f"(X_{i} {v!r})" for i, v in enumerate(x.ravel().astype(np.float64).tolist())]
    names += [f"(Y_{j} {v!r})" for j, v in enumerate(y.ravel().astype(np.float64).tolist())]
    return "(" + "\n".join(names) + ")\n"


def write_counterexample(path: str | Path, found: Falsified) -> None:
    """Write the witness: the input alone as an array where the name ends in .npy, else input and output in VNN-COMP's text form.

    Raises:
        OutputError: see `write_atomically`.
    """
    if Path(path).suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, found.x, allow_pickle=False)
        write_atomically(path, buffer.getvalue())
    else:
        write_atomically(path, vnncomp_text(found.x, found.y).encode())
