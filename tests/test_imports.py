"""The dependency direction bounds <- milp <- verify <- benchmarks, read from the imports, and where outside packages may be used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ORDER = ("bounds", "milp", "verify", "benchmarks")
OURS = (*ORDER, "demo", "tests")
SOLVERS = {"clarabel", "cplex", "cvxpy", "gurobipy", "highspy", "mip", "mosek", "ortools", "osqp", "pulp", "pyscipopt", "scs"}
ONNX = {"onnx", "onnx_ir", "onnxruntime", "onnxscript"}
PLOTTING = {"matplotlib", "pandas", "plotly", "seaborn"}
PICTURES = ("verify/pictures.py", "verify/radius_pictures.py", "verify/substitute_pictures.py")
ALONE = {"networkx", "numpy", "torch"}
"""What `bounds` may use at module level."""
QUICK = {"click", "rich"}
"""What the command line may load before it knows what it is asked for, beside the others of `ENTRANCE`."""
ENTRANCE = (
    "verify/__init__.py",
    "verify/allocator.py",
    "verify/cli.py",
    "verify/code_pages.py",
    "verify/commands.py",
    "verify/deferred.py",
    "verify/exits.py",
    "verify/options.py",
    "verify/startup.py",
    "verify/terminal.py",
)


@dataclass(frozen=True)
class Import:
    """One imported module: its full dotted name and where it happens."""

    module: str
    line: int
    lazy: bool
    typing_only: bool

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


def imports(source: str, package: str) -> list[Import]:
    """All imports of a module, nested ones and `import_module("...")` included. `package`: what relative imports start from."""
    return list(_imports(ast.parse(source), package, lazy=False, typing_only=False))


def _imports(node: ast.AST, package: str, *, lazy: bool, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for module in _modules(child, package):
            yield Import(module, child.lineno, lazy, typing_only)  # type: ignore[attr-defined]
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from _imports(ast.Module(child.body, []), package, lazy=lazy, typing_only=True)
            yield from _imports(ast.Module(child.orelse, []), package, lazy=lazy, typing_only=typing_only)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, package, lazy=lazy or inside, typing_only=typing_only)


def _modules(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            return [node.args[0].value]
    return []


def violations(path: str, source: str) -> list[str]:
    """What the module at `path` (relative to the repository, with forward slashes) imports against the rules."""
    package = path.rpartition("/")[0].replace("/", ".")
    return [f"{path}:{i.line} imports {i.module}: {why}" for i in imports(source, package) for why in _reasons(path, i)]


def _reasons(path: str, found: Import) -> Iterator[str]:
    top, loads = path.split("/")[0], not (found.lazy or found.typing_only)
    importer = path.startswith("bounds/onnx_") or path == "benchmarks/sweep_overhead.py"  # which writes a model to ask about
    if found.package in OURS and top in ORDER and found.package not in ORDER[: ORDER.index(top) + 1]:
        yield f"{top} must not know {found.package}"
    if found.package in SOLVERS and not path.startswith("milp/solvers/"):
        yield "a solver package belongs in milp/solvers/<name>.py"
    if found.package in ONNX and not importer:
        yield "onnx belongs in bounds/onnx_*.py"
    if found.package in PLOTTING and (path not in PICTURES or loads):
        yield f"plotting belongs in {' and '.join(PICTURES)}, imported when a picture is drawn"
    if found.module.startswith("bounds.onnx_") and loads and not importer:
        yield "the importer is loaded when a model is read, not before"
    if top == "bounds" and loads and not importer and not _known(found.package, ALONE | {"bounds"}):
        yield "import bounds must work with torch, numpy and networkx alone"
    if found.package == "torch" and (path.startswith("milp/solvers/") or path == "milp/program.py"):
        yield "solvers see arrays, not tensors"
    quick = any(f"{found.module}.".startswith(f"{entry.removesuffix('.py').replace('/', '.')}.") for entry in ENTRANCE)
    if path in ENTRANCE and loads and not quick and not _known(found.package, QUICK):
        yield "the command line starts without it; import it in the command that needs it"


def _known(package: str, allowed: set[str]) -> bool:
    return package in sys.stdlib_module_names or package in allowed


def sources(root: Path) -> list[Path]:
    return sorted(path for top in (*ORDER, "demo") for path in (root / top).rglob("*.py"))


def test_tree_obeys(root: Path) -> None:
    files = sources(root)
    found = [v for path in files for v in violations(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))]
    assert len(files) > 10
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "path, source",
    [
        ("bounds/crown.py", "import milp"),
        ("bounds/crown.py", "def f():\n    from verify.spec import Specification"),
        ("bounds/crown.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from milp.program import Program"),
        ("bounds/crown.py", "import highspy"),
        ("bounds/crown.py", "from scipy import sparse"),
        ("bounds/crown.py", "try:\n    import onnx\nexcept ImportError:\n    pass"),
        ("bounds/network.py", "from bounds.onnx_import import import_onnx"),
        ("bounds/network.py", "from bounds import onnx_import"),
        ("bounds/ops/affine.py", "from ... import verify"),
        ("bounds/network.py", "from . import onnx_import"),
        ("milp/encode.py", "import verify.verdict"),
        ("milp/tighten.py", "def f():\n    import pyscipopt"),
        ("milp/tighten.py", "import importlib\nimportlib.import_module('pyscipopt')"),
        ("milp/solvers/scip.py", "import torch"),
        ("milp/program.py", "from torch import Tensor"),
        ("verify/run.py", "from benchmarks import compare"),
        ("verify/run.py", "def f():\n    import onnxruntime as ort"),
        ("verify/run.py", "class A:\n    import pulp"),
        ("verify/evaluate.py", "def f():\n    import matplotlib.pyplot as plt"),
        ("verify/pictures.py", "import matplotlib"),
        ("verify/cli.py", "import torch"),
        ("verify/cli.py", "from bounds.errors import RingfenceError"),
        ("verify/__init__.py", "import numpy"),
        ("benchmarks/compare.py", "import tests.zoo"),
        ("demo/run.py", "import onnx"),
    ],
)
def test_planted_violation_is_found(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    "path, source",
    [
        ("bounds/crown.py", "import math\nimport torch\nfrom bounds.region import Region\nfrom . import ibp"),
        ("bounds/network.py", "def f():\n    from bounds.onnx_import import import_onnx"),
        ("bounds/onnx_import.py", "import onnx\nimport onnxruntime"),
        ("milp/encode.py", "import scipy.sparse\nimport torch\nfrom bounds.network import Network"),
        ("milp/solvers/scip.py", "import pyscipopt\nfrom milp.program import Program"),
        ("verify/cli.py", "import click\nfrom verify.exits import worst\ndef f():\n    import torch\n    from verify.run import verify"),
        ("verify/cli.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("verify/pictures.py", "def f():\n    from matplotlib.figure import Figure"),
        ("benchmarks/compare.py", "import verify.run\nimport milp\nimport bounds"),
    ],
)
def test_allowed_import_is_not_flagged(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_bounds_imports_with_torch_and_numpy_alone(root: Path) -> None:
    """In a fresh interpreter every other package is refused; all modules of `bounds` but the importer still load."""
    refused = SOLVERS | ONNX | PLOTTING | QUICK | {"scipy", "milp", "verify", "benchmarks"}
    modules = [p.relative_to(root).with_suffix("").as_posix().replace("/", ".") for p in (root / "bounds").rglob("*.py")]
    wanted = [m.removesuffix(".__init__") for m in modules if not m.startswith("bounds.onnx_")]
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(refused)!r}:
            raise ModuleNotFoundError("refused: " + name, name=name)
sys.meta_path.insert(0, Refuse())
import importlib
for module in {wanted!r}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
