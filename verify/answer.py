"""What a worker does with one instance: load what is not loaded yet, verify, and describe the outcome."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bounds.crown import Crown
from bounds.errors import DataError, MemoryLimitError, RingfenceError, TimeLimitError
from bounds.network import Network
from bounds.region import Box, LpBall
from verify.command import read_semantics
from verify.datasets import Dataset, load_dataset
from verify.questions import read_norm
from verify.radius import Search, certified_radii
from verify.records import Outcome
from verify.run import Result, verify
from verify.spec import Property, Specification, robustness
from verify.tasks import Answer, ImageQuestion, Normalisation, Order, Task, digest, network_digest
from verify.verdict import Falsified, Unknown, Verified, original_of
from verify.vnnlib import load_property

CACHE_BYTES = 128 * 2**20
"""Networks whose files hold at most this much together stay loaded."""


def make_answer() -> Answer:
    """The function that answers orders, with empty caches."""
    torch.set_num_threads(1)
    return Answerer()


class Answerer:
    """Answers orders one after the other; networks and data sets stay loaded in between."""

    def __init__(self) -> None:
        self._networks: OrderedDict[tuple[Path, str], tuple[Network, int]] = OrderedDict()
        self._datasets: dict[tuple[str, Path], Dataset] = {}

    def __call__(self, order: Order, started: Callable[[], None]) -> Outcome:
        """The outcome of an order. A limit that stopped the work gives "unknown", any other error of this project "error"."""
        begin = time.monotonic()
        settings = order.settings
        try:
            network = self._network(order.task)
            if isinstance(order.task.spec, ImageQuestion) and order.task.spec.eps is None:
                return self._radius(order, network, order.task.spec, begin, started)
            question = self._question(order.task, network)
            load = time.monotonic() - begin
            started()
            result = verify(
                network,
                question,
                timeout=order.limit_s,
                device=settings.device,
                memory_mb=settings.memory_mb,
                seed=settings.seed,
                semantics=read_semantics(settings.semantics),
                confirm=settings.confirm,
            )
        except RingfenceError as error:
            limited = isinstance(error, MemoryLimitError | TimeLimitError)
            spent = {"total": time.monotonic() - begin}
            return Outcome("unknown" if limited else "error", str(error), semantics=settings.semantics, seconds=spent)
        return describe(network, question, result, load, settings.semantics)

    def _network(self, task: Task) -> Network:
        key = (task.model, task.instance.network_hash)
        if key not in self._networks:
            if network_digest(digest(task.model), task.normalisation) != task.instance.network_hash:
                raise DataError(f"{task.model}: the file has changed since the sweep began; run the same command again")
            self._networks[key] = (load_network(task.model, task.normalisation), task.model.stat().st_size)
            while len(self._networks) > 1 and sum(size for _, size in self._networks.values()) > CACHE_BYTES:
                self._networks.popitem(last=False)
        self._networks.move_to_end(key)
        return self._networks[key][0]

    def _question(self, task: Task, network: Network) -> Property:
        if isinstance(task.spec, ImageQuestion):
            return self._robustness(task.spec, task.instance.spec_hash, network)
        if digest(task.spec) != task.instance.spec_hash:
            raise DataError(f"{task.spec}: the file has changed since the sweep began; run the same command again")
        return load_property(task.spec, network)

    def _robustness(self, asked: ImageQuestion, spec_hash: str, network: Network) -> Property:
        x = self._pixels(asked, spec_hash, network)
        return (robustness(x, asked.label, asked.eps or 0.0, norm=read_norm(asked.norm), outputs=network.outputs),)

    def _radius(self, order: Order, network: Network, asked: ImageQuestion, begin: float, started: Callable[[], None]) -> Outcome:
        """The certified radius of an image; within the time limit, as far as the search came."""
        x = torch.from_numpy(self._pixels(asked, order.task.instance.spec_hash, network))[None]
        loaded = time.monotonic()
        started()
        settings = order.settings
        semantics = read_semantics(settings.semantics)
        engine = Crown(device=settings.device, semantics=semantics, memory_mb=settings.memory_mb, both=False)
        search = Search(deadline=None if order.limit_s is None else loaded + order.limit_s)
        found = certified_radii(network, x, torch.tensor([asked.label]), norm=read_norm(asked.norm), engine=engine, search=search)
        spent = {"load": loaded - begin, "bounds": time.monotonic() - loaded, "total": time.monotonic() - begin}
        reason = None if bool(found.finished[0]) else "time limit: the search was not finished"
        return Outcome("measured", reason, None, "rigorous", semantics, "crown", radius_lower=float(found.lower[0]), seconds=spent)

    def _pixels(self, asked: ImageQuestion, spec_hash: str, network: Network) -> np.ndarray:
        key = (asked.dataset, asked.folder)
        if key not in self._datasets:
            self._datasets[key] = load_dataset(*key)
        x = self._datasets[key].pixels([asked.index], network.input_shape)[0]
        if asked.digest(self._datasets[key].images[asked.index].tobytes()) != spec_hash:
            raise DataError(f"{asked.folder}: {asked.dataset} has changed since the sweep began; run the same command again")
        return x


def load_network(model: Path, normalisation: Normalisation | None) -> Network:
    """A network from its file, with mean and std in front of it if they are given.

    Raises:
        ModelError: see `bounds.network.Network.from_onnx`.
    """
    if normalisation is None:
        return Network.from_onnx(model)
    from bounds.onnx_normalise import normalised

    return Network.from_onnx(normalised(model, normalisation.mean, normalisation.std))


def describe(network: Network, question: Property, result: Result, load: float, semantics: str) -> Outcome:
    """A result as it is stored. load: seconds spent on loading."""
    verdict = result.verdict
    seconds = {"load": load} | result.seconds | {"total": load + result.seconds["total"]}
    if isinstance(verdict, Verified):
        detail = verdict.detail or None
        return Outcome(
            "verified", None, verdict.bound, verdict.proof, verdict.semantics, verdict.decided_by, detail=detail, seconds=seconds
        )
    if isinstance(verdict, Unknown):
        return Outcome("unknown", verdict.reason, verdict.bound, semantics=semantics, seconds=seconds)
    arrays = _arrays(network, question, verdict)
    return Outcome("falsified", semantics=semantics, decided_by=verdict.decided_by, rounded=verdict.rounded, seconds=seconds, arrays=arrays)


def _arrays(network: Network, question: Property, found: Falsified) -> dict[str, np.ndarray]:
    """The counterexample, its output, and the middle of the region it lies in with the original model's output there."""
    arrays = {"input": found.x, "output": found.y}
    for specification in question:
        center = _center(specification)
        if center is not None and (len(question) == 1 or specification.contains(found.x.reshape(-1))):
            original = original_of(network)
            point = center.astype(original.input_dtype)
            output = np.asarray(original(point.reshape(1, *original.input_shape)))[0]
            return arrays | {"center": point, "center_output": output}
    return arrays


def _center(specification: Specification) -> np.ndarray | None:
    region = specification.region
    if isinstance(region, LpBall):
        return region.center[0].cpu().numpy()
    return ((region.lower[0] + region.upper[0]) / 2).cpu().numpy() if isinstance(region, Box) else None
