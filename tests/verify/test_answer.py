from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bounds.errors import MemoryLimitError, RegionError, RingfenceError, TimeLimitError
from tests.mnist_files import write_mnist
from tests.verify.test_cli import dense, question
from verify import answer as module
from verify.answer import Answerer
from verify.image_suites import ImageSuite
from verify.records import Outcome
from verify.suites import read_suite
from verify.tasks import Order, Settings, Task

SETTINGS = Settings(memory_mb=1000.0)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """relu(x) <= 1 < 2 on the box: verified."""
    dense(tmp_path / "net.onnx")
    question(tmp_path / "p.vnnlib", "(>= Y_0 2.0)")
    (tmp_path / "instances.csv").write_text("net.onnx,p.vnnlib,20")
    return read_suite([tmp_path / "instances.csv"], None)[0]


def ask(task: Task, answerer: Answerer | None = None, settings: Settings = SETTINGS) -> tuple[Outcome, int]:
    started: list[int] = []
    outcome = (answerer or Answerer())(Order("key", task, settings), lambda: started.append(1))
    return outcome, len(started)


def test_the_clock_starts_once_after_loading(task: Task) -> None:
    outcome, started = ask(task)
    assert (outcome.verdict, started) == ("verified", 1)
    assert outcome.seconds["load"] > 0


def test_networks_are_loaded_once(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = module.load_network
    monkeypatch.setattr(module, "load_network", lambda *arguments: (loads.append(1), load(*arguments))[1])
    answerer = Answerer()
    assert [ask(task, answerer)[0].verdict for _ in range(3)] == ["verified"] * 3
    assert len(loads) == 1


def test_networks_are_forgotten_when_they_are_too_large_together(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense(tmp_path / "other.onnx", weight=[[2.0, 0.0], [0.0, 1.0]])
    (tmp_path / "instances.csv").write_text("net.onnx,p.vnnlib,20\nother.onnx,p.vnnlib,20")
    monkeypatch.setattr(module, "CACHE_BYTES", 10)
    answerer = Answerer()
    for one in read_suite([tmp_path / "instances.csv"], None):
        ask(one, answerer)
        assert [path for path, _ in answerer._networks] == [one.model]


@pytest.mark.parametrize("which", ["model", "spec"])
def test_a_file_that_changes_under_a_sweep_is_an_error(task: Task, which: str) -> None:
    path = getattr(task, which)
    path.write_bytes(path.read_bytes() + b"\n")
    outcome, started = ask(task)
    assert (outcome.verdict, started) == ("error", 0)
    assert "the file has changed since the sweep began" in (outcome.reason or "")


def test_a_missing_file_is_an_error(task: Task) -> None:
    task.model.unlink()
    outcome, _ = ask(task)
    assert (outcome.verdict, "cannot be read" in (outcome.reason or "")) == ("error", True)


@pytest.mark.parametrize("error, verdict", [(MemoryLimitError, "unknown"), (TimeLimitError, "unknown"), (RegionError, "error")])
def test_limits_are_unknown_and_other_errors_are_errors(
    task: Task, monkeypatch: pytest.MonkeyPatch, error: type[RingfenceError], verdict: str
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise error("told")

    monkeypatch.setattr(module, "verify", fail)
    outcome, started = ask(task)
    assert (outcome.verdict, outcome.reason, started) == (verdict, "told", 1)


def test_settings_reach_the_verifier(task: Task) -> None:
    outcome, _ = ask(task, settings=dataclasses.replace(SETTINGS, semantics="float32-any-order"))
    assert (outcome.verdict, outcome.semantics) == ("verified", "float32-any-order")
    limited = dataclasses.replace(task, instance=dataclasses.replace(task.instance, limit_s=0.0))
    outcome, _ = ask(limited)
    assert (outcome.verdict, "time limit" in (outcome.reason or "")) == ("unknown", True)


@pytest.fixture
def digits(root: Path, tmp_path: Path) -> tuple[Path, np.ndarray]:
    stored = np.load(root / "demo" / "images.npz")
    write_mnist(tmp_path, stored["images"], stored["labels"])
    return tmp_path, stored["images"]


def suite(folder: Path, root: Path, **changes: object) -> ImageSuite:
    plain = ImageSuite("mnist", folder, (root / "demo" / "network.onnx",), "linf", (0.01,), 2, 30.0)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_image_tasks(digits: tuple[Path, np.ndarray], root: Path) -> None:
    told: list[str] = []
    tasks = suite(digits[0], root, eps=(0.01, 0.02)).tasks(told.append)
    assert told == ["network.onnx: 2 of the first 2 test images of mnist are classified correctly"]
    assert [(t.instance.family, t.instance.name) for t in tasks] == [
        (f"network linf {eps}", f"mnist image {i}") for eps in (0.01, 0.02) for i in (0, 1)
    ]
    assert len({t.instance.spec_hash for t in tasks}) == 4
    assert len({t.instance.network_hash for t in tasks}) == 1
    assert ask(tasks[0])[0].verdict == "verified"


def test_all_images_when_no_count_is_given(digits: tuple[Path, np.ndarray], root: Path) -> None:
    assert len(suite(digits[0], root, count=None).tasks()) == len(digits[1])


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_certified_radii(digits: tuple[Path, np.ndarray], root: Path, norm: str) -> None:
    """The radius is verified as a question of its own, and the search ended with one a little larger that is not certified by CROWN."""
    (one,) = suite(digits[0], root, eps=(None,), count=1, norm=norm).tasks()
    assert one.instance.family == f"network l{norm} radius"
    assert (one.instance.question or {})["eps"] is None
    outcome, started = ask(one)
    assert (outcome.verdict, outcome.reason, outcome.proof, started) == ("measured", None, "rigorous", 1)
    assert outcome.radius_lower is not None
    assert outcome.radius_lower > 0.001
    (within,) = suite(digits[0], root, eps=(outcome.radius_lower,), count=1, norm=norm).tasks()
    assert ask(within)[0].verdict == "verified"
    late, _ = ask(dataclasses.replace(one, instance=dataclasses.replace(one.instance, limit_s=0.0)))
    assert (late.verdict, late.radius_lower, late.reason) == ("measured", 0.0, "time limit: the search was not finished")


def test_images_that_change_under_a_sweep_are_an_error(digits: tuple[Path, np.ndarray], root: Path) -> None:
    folder, images = digits
    tasks = suite(folder, root).tasks()
    write_mnist(folder, 255 - images, np.load(root / "demo" / "images.npz")["labels"])
    outcome, _ = ask(tasks[0])
    assert (outcome.verdict, "mnist has changed since the sweep began" in (outcome.reason or "")) == ("error", True)


def test_other_images_norms_and_normalisations_are_other_questions(digits: tuple[Path, np.ndarray], root: Path) -> None:
    from verify.tasks import Normalisation

    folder, images = digits
    one = suite(folder, root, count=1)
    base = one.tasks()[0].instance
    assert suite(folder, root, count=1, norm="2").tasks()[0].instance.spec_hash != base.spec_hash
    scaled = dataclasses.replace(one, normalisation=Normalisation((0.0,), (1.0,))).tasks()[0].instance
    assert scaled.network_hash != base.network_hash
    assert scaled.spec_hash == base.spec_hash
    changed = images.copy()
    changed[0, 0, 0] ^= 1
    write_mnist(folder, changed, np.load(root / "demo" / "images.npz")["labels"])
    assert one.tasks()[0].instance.spec_hash != base.spec_hash
