"""Parts of torch that wait until something touches them: what is asked in a process of its own, since torch is imported once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from verify.attack import seeded
from verify.deferred import PARTS


def told(code: str) -> str:
    """What a fresh interpreter prints that runs `code` after deferring."""
    start = "import sys\nfrom verify import deferred\ndeferred.defer()\nimport torch\n"
    ended = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


WAITING = "print(len(deferred._finder.waiting))"


def test_torch_comes_without_the_parts_and_computes() -> None:
    used = "x = torch.ones(2, 3, requires_grad=True)\ntorch.nn.functional.linear(x, torch.ones(4, 3)).relu().sum().backward()\nassert x.grad.sum() == 24\n"
    assert told(used + WAITING) == str(len(PARTS))


@pytest.mark.parametrize(
    "touch",
    [
        "torch.export.Dim('batch')",
        "import torch.export.graph_signature",
        "from torch.utils.data import DataLoader; assert DataLoader([1])",
        "assert torch.distributions.Normal(0.0, 1.0).mean == 0",
        "torch._meta_registrations.activate_meta",
    ],
)
def test_a_touch_loads_them_all(touch: str) -> None:
    assert told(f"{touch}\n{WAITING}\nprint(any(type(sys.modules[p]).__name__ == '_Deferred' for p in deferred.PARTS))") == "0\nFalse"


def test_looking_through_all_modules_loads_nothing() -> None:
    assert told("import inspect\ninspect.getmodule(inspect.currentframe())\n" + WAITING) == str(len(PARTS))


def test_a_module_is_exported_as_without() -> None:
    """Exporting traces: it needs what describes kernels."""
    code = (
        "from bounds.network import Network\n"
        "network = Network.from_torch(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), (3,))\n"
        "print(network.output_shape)\n" + WAITING
    )
    assert told(code) == "(2,)\n0"


def test_a_part_that_does_not_load_says_so_and_is_tried_again() -> None:
    code = (
        "def refuse(module): raise ImportError('broken')\n"
        "part = sys.modules['torch.export']\n"
        "kept, part.__loader__.exec_module = part.__loader__.exec_module, refuse\n"
        "for _ in range(2):\n"
        "    try: torch.export.Dim\n"
        "    except ImportError as error: print(error)\n"
        "part.__loader__.exec_module = kept\n"
        "print(torch.export.Dim.__name__)\n"
    )
    assert told(code) == "broken\nbroken\nDim"


def test_another_version_of_torch_is_loaded_whole() -> None:
    code = "import sys\nfrom verify import deferred\ndeferred.TESTED = ('0.',)\ndeferred.defer()\nimport torch\nprint(len(deferred._finder.waiting))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "0"


def test_generators_are_their_own_and_as_torch_makes_them() -> None:
    import torch

    before = torch.get_rng_state()
    ours, theirs = seeded(7), torch.Generator().manual_seed(7)
    assert torch.equal(torch.rand(5, generator=ours), torch.rand(5, generator=theirs))
    assert torch.equal(torch.get_rng_state(), before)
