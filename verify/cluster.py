"""An engine that answers orders on a Ray cluster: one task an instance, with the CPU, GPU and memory it asks for.

Each process of the cluster that is given tasks keeps a resident worker of its own (`verify.workers`), so that limits hold as they do locally:
an instance that runs over or dies costs itself, the loss of a process or a node of the cluster costs nothing but time. The nodes need this
package and the files of the suite under the same absolute paths. Results come back to the driver, which stores them.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bounds.errors import ClusterError
from verify.records import Outcome
from verify.tasks import Done, MakeAnswer, Order, Settings
from verify.workers import Workers

BASE_MB = 1024.0
"""Memory that a task asks for beside its limit: the process, its libraries and the network."""
MOST_RETRIES = 3
"""How often Ray starts a task again after the loss of its process or node."""
_POLL_S = 0.2
_KNOCK_S = 5.0
_resident: dict[MakeAnswer, Workers] = {}


@dataclass
class RayEngine:
    """Answers orders on the cluster that `ray`, the module, is connected to, at most `count` at a time. make: see `verify.tasks`."""

    ray: Any
    count: int
    make: MakeAnswer
    _flying: dict[Any, tuple[Order, float]] = field(default_factory=dict)

    @classmethod
    def connect(cls, address: str | None, count: int | None, make: MakeAnswer) -> RayEngine:
        """Join the cluster at an address ("auto" or "HOST:6379"), or start one on this machine where there is none given.

        count: instances at a time; by default one for every CPU of the cluster.

        Raises:
            ClusterError: Ray is not installed, or the cluster cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise ClusterError("--engine ray needs Ray; run: pip install 'ringfence[cluster]'") from error
        try:
            _knock(address)
            if not ray.is_initialized():
                here: dict[str, Any] = {"num_cpus": count, "include_dashboard": False} if address is None else {}
                ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
            cpus = int(ray.cluster_resources().get("CPU", 1))
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = address or "this machine"
            raise ClusterError(f"no Ray cluster at {where}: {_line(error)}; start one with: ray start --head") from error
        return cls(ray, max(1, count or cpus), make)

    def run(self, orders: Sequence[Order]) -> Iterator[Done]:
        """Answer all orders, in the order in which they are finished.

        Raises:
            ClusterError: no node of the cluster has what an instance asks for, or the cluster is gone.
        """
        waiting = deque(orders)
        try:
            for settings in {order.settings for order in orders}:
                self._check_room(settings)
            while waiting or self._flying:
                while waiting and len(self._flying) < self.count:
                    self._launch(waiting.popleft())
                ready, _ = self.ray.wait(list(self._flying), num_returns=1, timeout=_POLL_S)
                yield from map(self._land, ready)
        except (ConnectionError, self.ray.exceptions.RaySystemError) as error:
            raise ClusterError(f"the Ray cluster is gone: {_line(error)}; results so far are kept, run the same command again") from error
        finally:
            self._cancel()

    def running(self) -> list[tuple[str, float]]:
        """The instances handed to the cluster, by name, and for how many seconds."""
        now = time.monotonic()
        return [(order.task.instance.name, now - since) for order, since in list(self._flying.values())]

    def _launch(self, order: Order) -> None:
        wanted = _request(order.settings)
        options = {"num_cpus": wanted["CPU"], "num_gpus": wanted["GPU"], "memory": wanted["memory"], "max_retries": MOST_RETRIES}
        reference = self.ray.remote(**options)(_answer).remote(_portable(order), self.make)
        self._flying[reference] = (order, time.monotonic())

    def _land(self, reference: Any) -> Done:
        order, since = self._flying.pop(reference)
        try:
            outcome: Outcome = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            outcome = Outcome("error", f"the task failed: {_line(error)}")
        except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.NodeDiedError, self.ray.exceptions.OutOfMemoryError) as error:
            outcome = Outcome("error", f"its process was lost {MOST_RETRIES + 1} times: {_line(error)}")
        return Done(order, replace(outcome, wall_s=time.monotonic() - since))

    def _check_room(self, settings: Settings) -> None:
        """An instance that fits on no node would wait for ever."""
        wanted = _request(settings)
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
            told = ", ".join(f"{amount / 2**20:.0f} MB" if name == "memory" else f"{amount:g} {name}" for name, amount in wanted.items())
            raise ClusterError(
                f"no node of the cluster has {told}, which each instance asks for; lower --memory-limit or use another --device"
            )

    def _cancel(self) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            for reference in self._flying:
                self.ray.cancel(reference, force=True)
        self._flying.clear()


def _knock(address: str | None) -> None:
    """Raises OSError where an address of the form HOST:PORT does not answer. Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


def _request(settings: Settings) -> dict[str, float]:
    """What an instance asks of a node, in Ray's units."""
    gpus = 1 if settings.device.startswith("cuda") else 0
    return {"CPU": 1, "GPU": gpus, "memory": math.ceil((settings.memory_mb + BASE_MB) * 2**20)}


def _portable(order: Order) -> Order:
    """The order with absolute paths: the cluster's processes have folders of their own."""
    task = order.task
    spec = task.spec.resolve() if isinstance(task.spec, Path) else replace(task.spec, folder=task.spec.folder.resolve())
    return replace(order, task=replace(task, model=task.model.resolve(), spec=spec))


def _answer(order: Order, make: MakeAnswer) -> Outcome:
    """In a process of the cluster: the outcome of an order, from this process's resident worker."""
    workers = _resident.setdefault(make, Workers(1, make, stay=True))
    (done,) = workers.run([order])
    return done.outcome


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
