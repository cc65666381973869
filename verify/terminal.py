"""Lines for whoever runs a command: results on stdout, complaints on stderr."""

from __future__ import annotations

import os
import sys


def put(text: str) -> None:
    """Text to stdout at once. A reader that has gone away changes no exit code; a full disk is an error."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        from bounds.errors import OutputError

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def complain(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"ringfence: {' '.join(message.split())}\n")
