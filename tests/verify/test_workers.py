from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bounds.errors import WorkerError
from tests.verify.fake_answers import make_broken, make_fake, order
from verify.records import Outcome
from verify.resources import Meter, resident_mb
from verify.workers import Workers

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what is looked at is in /proc")


@pytest.fixture(scope="module")
def pool() -> Iterator[Workers]:
    """Two workers that stay, so that their start is paid once."""
    workers = Workers(2, make_fake, grace_s=0.3, load_s=1.5, stay=True)
    yield workers
    workers.close()


def ask(pool: Workers, *names: str, limit: float | None = 5.0) -> dict[str, Outcome]:
    return {done.order.task.instance.name: done.outcome for done in pool.run([order(name, limit) for name in names])}


def test_every_order_is_answered_once(pool: Workers) -> None:
    orders = [order("verified", number=i) for i in range(20)] + [order("falsified 3")]
    done = list(pool.run(orders))
    assert sorted(d.order.key for d in done) == sorted(o.key for o in orders)
    witness = next(d.outcome for d in done if d.outcome.verdict == "falsified")
    assert witness.arrays["input"].tolist() == [0.5, 0.5, 0.5]
    assert all(d.outcome.wall_s > 0 for d in done)
    assert all(d.outcome.cpu_s is not None and d.outcome.peak_mb for d in done)


def test_processes_are_resident(pool: Workers) -> None:
    found = list(pool.run([order("count", number=i) for i in range(10)]))
    processes = {done.outcome.decided_by for done in found}
    assert len(processes) <= 2
    assert max(int(done.outcome.detail or 0) for done in found) >= 5


@pytest.mark.parametrize(
    "name, told", [("kill 9", "SIGKILL"), ("kill 11", "SIGSEGV"), ("exit out of luck", "exit code 7; its last words: out of luck")]
)
def test_a_death_costs_its_instance_alone(pool: Workers, name: str, told: str) -> None:
    found = ask(pool, "verified", name, "sleep 0.01")
    assert found[name].verdict == "error"
    assert told in (found[name].reason or "")
    assert found["verified"].verdict == found["sleep 0.01"].verdict == "verified"


def test_an_exception_is_an_error_and_the_worker_stays(pool: Workers) -> None:
    found = ask(pool, "raise value")
    assert found["raise value"].verdict == "error"
    assert "ValueError: on purpose (fake_answers.py:" in (found["raise value"].reason or "")
    memory = ask(pool, "raise memory")["raise memory"]
    assert (memory.verdict, memory.reason) == ("unknown", "memory limit: the system refused more memory")


def test_an_answer_that_cannot_be_sent_is_an_error(pool: Workers) -> None:
    found = ask(pool, "unpicklable", "verified")
    assert (found["unpicklable"].verdict, found["verified"].verdict) == ("error", "verified")


def test_overrunning_time_is_unknown_and_killed(pool: Workers) -> None:
    begin = time.monotonic()
    found = ask(pool, "sleep 30", "verified", limit=0.2)
    assert found["sleep 30"].verdict == "unknown"
    assert found["sleep 30"].reason == "time limit: killed 0.3 s after the 0.2 s"
    assert found["verified"].verdict == "verified"
    assert time.monotonic() - begin < 20


def test_loading_does_not_count_but_ends(pool: Workers) -> None:
    assert ask(pool, "load 0.8", limit=0.1)["load 0.8"].verdict == "verified"
    late = ask(pool, "load 30", limit=0.1)["load 30"]
    assert (late.verdict, late.reason) == ("unknown", "time limit: loading took longer than 1.5 s")


def test_no_limit(pool: Workers) -> None:
    assert ask(pool, "sleep 2", limit=None)["sleep 2"].verdict == "verified"


@LINUX
def test_too_much_memory_is_unknown_and_killed(pool: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.workers.MEMORY_GRACE_MB", 50.0)
    found = ask(pool, "hog 600", "verified", limit=20.0)
    assert found["hog 600"].verdict == "unknown"
    assert (found["hog 600"].reason or "").startswith("memory limit: killed at")
    assert (found["hog 600"].peak_mb or 0) > 250
    assert found["verified"].verdict == "verified"


@LINUX
def test_a_worker_that_has_grown_is_replaced(pool: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ask(pool, "count")["count"].decided_by
    monkeypatch.setattr("verify.workers.RECYCLE_MB", -1000.0)
    ask(pool, "count")
    ask(pool, "count")
    assert all(slot.process.pid != int(before or 0) for slot in pool._slots if slot.process.is_alive()) or not pool._slots


def test_running_names_what_is_worked_on() -> None:
    workers, seen = Workers(1, make_fake), set()
    watched = threading.Thread(target=lambda: list(workers.run([order("sleep 0.5")])))
    watched.start()
    while watched.is_alive():
        seen |= {name for name, seconds in workers.running() if 0 <= seconds < 60}
        time.sleep(0.01)
    assert seen == {"sleep 0.5"}
    assert workers.running() == []


def test_workers_that_cannot_start_are_an_error() -> None:
    with pytest.raises(WorkerError, match=r"end before they are ready .*no module named nonsense"):
        list(Workers(1, make_broken).run([order("verified")]))


def test_a_worker_killed_while_idle_costs_nothing(pool: Workers) -> None:
    ask(pool, "verified")
    for slot in pool._slots:
        os.kill(slot.process.pid or 0, signal.SIGKILL)
    assert ask(pool, "verified")["verified"].verdict == "verified"


@LINUX
@pytest.mark.parametrize("busy", [True, False])
def test_workers_end_with_the_driver(busy: bool) -> None:
    script = f"""
import sys, time
from tests.verify.fake_answers import make_fake, order
from verify.workers import Workers
if __name__ == "__main__":
    workers = Workers(1, make_fake, stay=True)
    list(workers.run([order("verified")]))
    print(workers._slots[0].process.pid, flush=True)
    list(workers.run([order("sleep 60", 100)])) if {busy} else time.sleep(60)
"""
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 10
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@LINUX
def test_meter_forgets_earlier_peaks() -> None:
    import numpy as np

    block = np.ones(2**24)  # 128 MB
    peak = Meter().peak_mb
    del block
    meter = Meter()
    assert meter.peak_mb < peak - 100
    assert meter.cpu_s >= 0
    assert abs((resident_mb(os.getpid()) or 0) - meter.peak_mb) < 50


FIRST = """
import sys
from pathlib import Path
from verify.workers import _end, _start
slot = _start(print)
status = dict(line.split(":") for line in Path(f"/proc/{slot.process.pid}/status").read_text().splitlines())
_end(slot)
sys.stdout.write(str((int(status["SigBlk"], 16) | int(status["SigIgn"], 16)) & 2))
"""


@LINUX
def test_the_very_first_worker_is_deaf_to_interrupts_from_its_first_moment() -> None:
    """Starting multiprocessing's own resource tracker, which the first process needs, unblocks interrupts."""
    out = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True).stdout
    assert out == "2"  # the bit of SIGINT
