"""Inside a worker process: take an order, answer it, take the next."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from verify.allocator import hold_freed, return_freed
from verify.records import Outcome
from verify.resources import Meter
from verify.startup import quick_imports
from verify.tasks import Answer, MakeAnswer, Order

READY, TAKEN, STARTED = "ready", "taken", "started"
"""What a worker says: it waits for orders, it has one, everything is loaded and the time limit begins."""
_PR_SET_PDEATHSIG = 1


def serve(connection: Connection, make: MakeAnswer, log: str, driver: int) -> None:
    """Answer orders until the driver hangs up. log: the file that takes whatever is printed here; driver: the driver's process id."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(driver)
    _redirect(log)
    hold_freed()
    with quick_imports():
        answer = make()
    connection.send(READY)
    with contextlib.suppress(EOFError, OSError):
        while True:
            order = connection.recv()
            connection.send(TAKEN)
            with contextlib.suppress(OSError):
                os.ftruncate(sys.stderr.fileno(), 0)
            connection.send(_answer(answer, order, connection))


def _answer(answer: Answer, order: Order, connection: Connection) -> Outcome:
    return_freed()  # of the order before
    meter = Meter()
    try:
        outcome = answer(order, lambda: connection.send(STARTED))
    except MemoryError:
        outcome = Outcome("unknown", "memory limit: the system refused more memory", semantics=order.settings.semantics)
    except Exception as error:  # noqa: BLE001 - a defect costs its instance, not the sweep
        outcome = Outcome("error", f"{type(error).__name__}: {error} ({_where(error)})")
    return replace(outcome, cpu_s=meter.cpu_s, peak_mb=meter.peak_mb)


def _where(error: BaseException) -> str:
    """File and line where an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def _end_with(driver: int) -> None:
    """See that this process does not outlive the driver, however that ends: by the kernel on Linux, by a thread elsewhere as well."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:
        os._exit(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _redirect(log: str) -> None:
    """Whatever libraries print goes to the log, whose last line is told if this process dies."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for standard in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(descriptor, standard.fileno())
    os.close(descriptor)
