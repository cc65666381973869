from __future__ import annotations

import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bounds.errors import ClusterError
from tests.verify.fake_answers import SETTINGS, make_fake, order, task
from verify.cluster import RayEngine, _request
from verify.records import Outcome
from verify.results import Results
from verify.sweep import Sweep
from verify.tasks import Settings


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """A Ray instance on this machine with two CPUs."""
    ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ringfence[cluster]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        yield RayEngine.connect(None, 2, make_fake)
        ray.shutdown()


pytestmark = pytest.mark.filterwarnings("ignore")


def ask(engine: RayEngine, *names: str, limit: float | None = 5.0) -> dict[str, Outcome]:
    return {done.order.task.instance.name: done.outcome for done in engine.run([order(name, limit) for name in names])}


def test_a_sweep_on_a_cluster(engine: RayEngine, tmp_path: Path) -> None:
    tasks = [task("verified", number=i) for i in range(6)] + [task("falsified 3"), task("kill 9")]
    with Results.write(tmp_path / "r.sqlite") as results:
        tally = Sweep("cluster", tasks, SETTINGS).run(results, engine)
        assert tally.all.verdicts == {"verified": 6, "falsified": 1, "error": 1}
        (known,) = results.runs()
        assert (known.info.engine, known.status) == ("rayengine", "finished")
        stored = {row.instance.name: row for row in results.rows()}
        assert "SIGKILL" in (stored["kill 9"].outcome.reason or "")
        assert results.arrays(stored["falsified 3"].key)["input"].tolist() == [0.5, 0.5, 0.5]
    assert engine.running() == []


def test_limits_hold_on_a_cluster(engine: RayEngine) -> None:
    found = ask(engine, "sleep 60", limit=0.2)["sleep 60"]
    assert (found.verdict, found.reason) == ("unknown", "time limit: killed 1 s after the 0.2 s")


def test_a_lost_process_of_the_cluster_costs_nothing(engine: RayEngine, tmp_path: Path) -> None:
    """The instance kills the cluster's process that it runs under, the first time that it is asked."""
    marker = tmp_path / "killed"
    found = ask(engine, f"kill_parent_once {marker}", "verified", limit=60.0)
    assert marker.exists()
    assert [outcome.verdict for outcome in found.values()] == ["verified", "verified"]


def test_an_instance_that_fits_nowhere_is_told_at_once(engine: RayEngine) -> None:
    large = replace(order("verified"), settings=Settings(memory_mb=1e9))
    with pytest.raises(ClusterError, match=r"no node of the cluster has 1 CPU, 0 GPU, \d+ MB"):
        list(engine.run([large]))
    with pytest.raises(ClusterError, match="1 GPU"):
        list(engine.run([replace(order("verified"), settings=Settings(memory_mb=100.0, device="cuda"))]))


def test_what_is_asked_of_a_node() -> None:
    assert _request(Settings(memory_mb=1024.0)) == {"CPU": 1, "GPU": 0, "memory": 2048 * 2**20}
    assert _request(Settings(memory_mb=1024.0, device="cuda:0"))["GPU"] == 1


class Unreachable:
    """Ray where there is no cluster."""

    @staticmethod
    def is_initialized() -> bool:
        return False

    @staticmethod
    def init(**settings: object) -> None:
        raise ConnectionError("Could not find any running Ray instance")


def test_an_unreachable_cluster_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", Unreachable)
    with pytest.raises(
        ClusterError, match="no Ray cluster at auto: Could not find any running Ray instance; start one with: ray start --head"
    ):
        RayEngine.connect("auto", None, make_fake)


def test_an_address_where_nothing_listens_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", Unreachable)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(ClusterError, match=f"no Ray cluster at {address}: .*refused"):
        RayEngine.connect(address, None, make_fake)
