"""Fixtures and settings that every test shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Tests run in parallel processes: one thread each. Set before torch and ONNX Runtime start their pools.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)
# A shell lets what it starts in the background ignore Ctrl-C, and children inherit that; tests of interrupts need the usual handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of benchmark networks and data sets beside the repository; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "vnncomp").is_dir():
        pytest.skip(f"the benchmark networks and data sets are not at {folder}")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
