"""Parts of torch that no question needs, loaded when something touches them.

`import torch` runs a thousand modules. A quarter of its time and a tenth of its memory go to what traces, exports and quantises models and to what
describes kernels to those tools; bounds, attacks and gradients use none of it. Such a module gets an empty one in its place whose first missing
attribute loads it, together with all others, in the order in which torch asked for them: from then on nothing differs from a plain import.
"""

from __future__ import annotations

import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PARTS = (
    "torch._meta_registrations",
    "torch.distributions",
    "torch.export",
    "torch.masked",
    "torch.quantization",
    "torch.utils.data",
)
"""Modules that add nothing to what the rest of torch computes."""
TESTED = ("2.13.",)
"""How the versions of torch begin that were tested without `PARTS`; any other is loaded whole."""


class _Deferred(ModuleType):
    """A module that has not run yet."""

    def __getattr__(self, name: str) -> Any:
        # inspect and importlib look through all modules for names of this form, which are no use of the module.
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        _finder.load()
        return self.__getattribute__(name)


class _Nothing(Loader):
    """Puts an unrun module where `loader` would put one that has run."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module looks like any other to whoever asks where it comes from.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        _finder.waiting.append(module)


class _Finder(MetaPathFinder):
    """Finds the modules of `names` and defers them; finding a module inside one of them loads them all."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self.waiting: list[ModuleType] = []
        self.lock = threading.RLock()

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if isinstance(sys.modules.get(fullname.rpartition(".")[0]), _Deferred):
            self.load()
            return None
        if fullname not in self.names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Nothing(spec.loader)
        return spec

    def load(self) -> None:
        """Run every module that waits. Nothing is deferred any more."""
        with self.lock:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            while self.waiting:
                self._run(self.waiting.pop(0))

    def _run(self, module: ModuleType) -> None:
        module.__class__ = ModuleType
        try:
            module.__loader__.exec_module(module)  # type: ignore[union-attr]
        except BaseException:
            # Like an import that failed: the next touch tries again.
            module.__class__ = _Deferred
            self.waiting.insert(0, module)
            raise


_finder = _Finder(PARTS)


def defer() -> None:
    """Defer the modules of `PARTS` from here on. Without effect once torch is imported, and with versions of torch that are not in `TESTED`."""
    if "torch" not in sys.modules and _finder not in sys.meta_path and _tested():
        sys.meta_path.insert(0, _finder)


def _tested() -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch").startswith(TESTED)
    except PackageNotFoundError:
        return False
