"""Stand-ins for a verifier in worker processes: what an instance is called says what becomes of it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from verify.records import Instance, Outcome
from verify.tasks import Answer, Order, Settings, Task

SETTINGS = Settings(memory_mb=200.0)


def make_fake() -> Answer:
    return answer


def answer(order: Order, started: Callable[[], None]) -> Outcome:
    word, _, argument = order.task.instance.name.partition(" ")
    if word == "load":
        time.sleep(float(argument))
    started()
    return _DO.get(word, lambda argument: Outcome(word))(argument)


def _falsified(argument: str) -> Outcome:
    return Outcome("falsified", arrays={"input": np.full(int(argument or 1), 0.5)})


def _sleep(argument: str) -> Outcome:
    time.sleep(float(argument))
    return Outcome("verified", decided_by=str(os.getpid()))


def _kill(argument: str) -> Outcome:
    os.kill(os.getpid(), int(argument))
    time.sleep(10)
    return Outcome("verified")


def _kill_parent_once(argument: str) -> Outcome:
    marker = Path(argument)
    if not marker.exists():
        marker.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(10)
    return Outcome("verified")


def _say_and_exit(argument: str) -> Outcome:
    sys.stdout.write("a line on the way out\n")
    sys.stdout.flush()
    sys.stderr.write(argument + "\n")
    sys.stderr.flush()
    os._exit(7)


def _raise(argument: str) -> Outcome:
    raise {"memory": MemoryError, "value": ValueError}[argument]("on purpose")


def _hog(argument: str) -> Outcome:
    blocks = []
    for _ in range(int(argument)):
        blocks.append(np.ones(2**17))  # 1 MB
        time.sleep(0.0005)
    time.sleep(5)
    return Outcome("verified")


def _count(argument: str) -> Outcome:
    """How often this process was asked: grows only while the process lives."""
    _count.asked = getattr(_count, "asked", 0) + 1  # type: ignore[attr-defined]
    return Outcome("verified", detail=str(_count.asked), decided_by=str(os.getpid()))  # type: ignore[attr-defined]


def _log(argument: str) -> Outcome:
    """Works for a moment, then leaves a line in a file: what is asked can be counted even where its answer is lost."""
    verdict, _, path = argument.partition(" ")
    time.sleep(0.02)
    with open(path, "a") as file:
        file.write(verdict + "\n")
    return Outcome(verdict, bound=float(len(verdict)))


def _unpicklable(argument: str) -> Outcome:
    return Outcome("verified", detail=lambda: None)  # type: ignore[arg-type]


_DO: dict[str, Callable[[str], Outcome]] = {
    "falsified": _falsified,
    "sleep": _sleep,
    "load": lambda argument: Outcome("verified"),
    "kill": _kill,
    "kill_parent_once": _kill_parent_once,
    "exit": _say_and_exit,
    "raise": _raise,
    "hog": _hog,
    "count": _count,
    "log": _log,
    "unpicklable": _unpicklable,
}


def task(name: str, limit: float | None = 5.0, *, family: str = "fake", expected: str = "", number: int = 0) -> Task:
    """An instance with a name that says what becomes of it; number: makes it another instance."""
    instance = Instance(family, name, "net", "spec", f"{number:064x}", name, expected, limit)
    return Task(instance, Path("net"), Path("spec"))


def order(name: str, limit: float | None = 5.0, number: int = 0) -> Order:
    return Order(f"{name} {number}", task(name, limit, number=number), SETTINGS)


def make_broken() -> Answer:
    raise ImportError("no module named nonsense")
