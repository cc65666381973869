"""Resident worker processes: imports and networks are paid once, limits hold from outside, a worker that dies costs its instance alone.

Every slot has a process of its own, started afresh (spawn), with one thread. The driver tells it an order and waits; a worker that runs
past its limit, takes too much memory or dies is replaced, and its instance is answered in its place. Workers end when the driver does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import IO, Any

from bounds.errors import WorkerError
from verify.records import Outcome
from verify.resources import resident_mb
from verify.tasks import Done, MakeAnswer, Order
from verify.worker import READY, STARTED, TAKEN, serve

GRACE_S = 1.0
"""Seconds beyond its limit after which a worker is killed."""
START_S = 120.0
"""Seconds a worker process may take until it is ready for its first order."""
LOAD_S = 120.0
"""Seconds a worker may take to load a network and a question, which do not count towards the limit."""
MEMORY_GRACE_MB = 512.0
"""How far resident memory may grow beyond the memory limit during an instance before the worker is killed."""
RECYCLE_MB = 1024.0
"""An idle worker that has grown by this much since it started is replaced."""
_POLL_S = 0.1
_MOST_FAILED_STARTS = 3
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Slot:
    """A place for one worker process. `since`: when it was started, then when its order was handed out; `grown_from`: its resident memory
    then, in MB."""

    process: SpawnProcess
    connection: Connection
    log: IO[bytes]
    ready: bool = False
    fresh_mb: float = 0.0
    order: Order | None = None
    since: float = 0.0
    deadline: float | None = None
    grown_from: float = 0.0
    taken: bool = False
    started: bool = False


@dataclass
class Workers:
    """An engine that answers orders in `count` local processes. make: makes the answering function in each of them.

    stay: whether the processes wait for further runs, until `close`.
    """

    count: int
    make: MakeAnswer
    grace_s: float = GRACE_S
    load_s: float = LOAD_S
    stay: bool = False
    _slots: list[_Slot] = field(default_factory=list)
    _waiting: deque[Order] = field(default_factory=deque)
    _failed_starts: int = 0

    def run(self, orders: Sequence[Order]) -> Iterator[Done]:
        """Answer all orders, in the order in which they are finished.

        Raises:
            WorkerError: workers die before they are ready.
        """
        self._waiting = deque(orders)
        try:
            while self._waiting or any(slot.order for slot in self._slots):
                self._feed()
                yield from self._collect()
        finally:
            if not self.stay or any(slot.order for slot in self._slots):
                self.close()

    def running(self) -> list[tuple[str, float]]:
        """The instances being worked on, by name, and for how many seconds."""
        now = time.monotonic()
        return [(slot.order.task.instance.name, now - slot.since) for slot in list(self._slots) if slot.order is not None]

    def close(self) -> None:
        """Kill all workers."""
        for slot in self._slots:
            _end(slot)
        self._slots.clear()

    def _feed(self) -> None:
        """Start missing workers and give every idle one an order."""
        busy = sum(slot.order is not None for slot in self._slots)
        while len(self._slots) < min(self.count, busy + len(self._waiting)):
            self._slots.append(_start(self.make))
        for slot in self._slots:
            if self._waiting and slot.ready and slot.order is None:
                self._hand_out(slot)

    def _hand_out(self, slot: _Slot) -> None:
        since = time.monotonic()  # before it is sent: the worker may begin, and this process be put off, at once
        try:
            slot.connection.send(self._waiting[0])
        except OSError:  # it died while idle; `_collect` will find it dead
            return
        slot.order, slot.since = self._waiting.popleft(), since
        slot.taken = slot.started = False
        slot.deadline = slot.since + self.load_s
        slot.grown_from = resident_mb(slot.process.pid or 0) or 0.0

    def _collect(self) -> Iterator[Done]:
        """Wait a moment; what has been finished in the meantime."""
        signs = [sign for slot in self._slots for sign in (slot.connection, slot.process.sentinel)]
        seen = wait(signs, self._patience())
        found = [slot for slot in self._slots if slot.connection in seen or slot.process.sentinel in seen]
        for slot in list(self._slots):
            done = self._hear(slot) if slot in found else None
            done = done or self._overrun(slot)
            if done is not None:
                yield done
                self._feed()  # not before the answer is stored: a slot has one answer to lose at most

    def _patience(self) -> float:
        """Seconds until a deadline, at most the interval at which memory is looked at."""
        deadlines = [slot.deadline for slot in self._slots if slot.order is not None and slot.deadline is not None]
        return max(0.0, min([_POLL_S, *(deadline - time.monotonic() for deadline in deadlines)]))

    def _hear(self, slot: _Slot) -> Done | None:
        """What a worker says: that it is ready, that the time limit begins, its outcome, or nothing any more."""
        try:
            while slot.connection.poll():
                said = slot.connection.recv()
                if isinstance(said, Outcome):
                    return self._finish(slot, said)
                self._note(slot, said)
        except (EOFError, OSError):
            return self._died(slot)
        return None if slot.process.is_alive() else self._died(slot)

    def _note(self, slot: _Slot, said: Any) -> None:
        if said == READY:
            slot.ready = True
            slot.fresh_mb = resident_mb(slot.process.pid or 0) or 0.0
            with contextlib.suppress(OSError):
                os.unlink(slot.log.name)
        elif said == TAKEN:
            slot.taken, self._failed_starts = True, 0
        elif said == STARTED and slot.order is not None:
            slot.started = True
            limit = slot.order.limit_s
            slot.deadline = None if limit is None else time.monotonic() + limit + self.grace_s

    def _finish(self, slot: _Slot, outcome: Outcome) -> Done:
        order, slot.order, slot.deadline = slot.order, None, None
        if order is None:
            raise WorkerError("a worker answered an order that it was not given")
        if (resident_mb(slot.process.pid or 0) or 0.0) > slot.fresh_mb + RECYCLE_MB:
            self._drop(slot)
        return Done(order, _timed(outcome, time.monotonic() - slot.since))

    def _died(self, slot: _Slot) -> Done | None:
        order = slot.order
        slot.process.join(1.0)
        words = _last_words(slot)
        how = _how(slot.process.exitcode)
        self._drop(slot)
        if not slot.taken:
            self._failed_starts += 1
            if self._failed_starts >= _MOST_FAILED_STARTS:
                raise WorkerError(
                    f"worker processes end before they are ready ({how}){words}; see that `python -c 'import verify.answer'` works"
                )
        if order is None or not slot.taken:  # an order it had not begun is for another worker
            self._waiting.extendleft([] if order is None else [order])
            return None
        return Done(order, _timed(Outcome("error", f"the worker died: {how}{words}"), time.monotonic() - slot.since))

    def _overrun(self, slot: _Slot) -> Done | None:
        """Kill a worker that is past a limit."""
        order = slot.order
        if slot in self._slots and not slot.ready and time.monotonic() - slot.since > START_S:
            slot.process.kill()
            return self._died(slot)
        if order is None or slot not in self._slots:
            return None
        spent = time.monotonic() - slot.since
        used = resident_mb(slot.process.pid or 0) or 0.0
        most = order.settings.memory_mb + MEMORY_GRACE_MB
        if slot.deadline is not None and time.monotonic() > slot.deadline:
            limit = f"time limit: killed {self.grace_s:g} s after the {order.limit_s:g} s"
            reason = limit if slot.started and order.limit_s is not None else f"time limit: loading took longer than {self.load_s:g} s"
        elif used - slot.grown_from > most:
            reason = f"memory limit: killed at {used - slot.grown_from:.0f} MB, {MEMORY_GRACE_MB:g} MB beyond the limit"
        else:
            return None
        self._drop(slot)
        return Done(order, _timed(Outcome("unknown", reason, semantics=order.settings.semantics, peak_mb=used or None), spent))

    def _drop(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        _end(slot)


def _start(make: MakeAnswer) -> _Slot:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    log = tempfile.NamedTemporaryFile(prefix="ringfence-worker-", delete=False)  # noqa: SIM115 - the slot closes it
    process = context.Process(target=serve, args=(theirs, make, log.name, os.getpid()), daemon=True)
    resource_tracker.ensure_running()  # the first process would start it, which ends with interrupts unblocked
    with _one_thread(), _no_interrupt():
        process.start()
    theirs.close()
    return _Slot(process, ours, log, since=time.monotonic())


def _end(slot: _Slot) -> None:
    slot.process.kill()
    slot.process.join(5.0)
    slot.connection.close()
    slot.log.close()
    with contextlib.suppress(OSError):
        os.unlink(slot.log.name)


def _timed(outcome: Outcome, wall_s: float) -> Outcome:
    return replace(outcome, wall_s=wall_s)


def _last_words(slot: _Slot) -> str:
    """The last line that the worker wrote, if there is one."""
    slot.log.seek(0)
    lines = slot.log.read().decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"; its last words: {said[:200]}" if said else ""


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in {int(s) for s in signal.Signals} else str(-code)
        return f"killed by signal {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
    return f"exit code {code}"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Libraries that read these variables when they are loaded start with one thread in the processes started meanwhile."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """A process started meanwhile is deaf to Ctrl-C, which a terminal sends to it as well, until it has said that it ignores it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
