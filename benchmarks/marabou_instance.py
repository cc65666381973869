"""One instance through Marabou: python benchmarks/marabou_instance.py NET.onnx SPEC.vnnlib RESULT SECONDS

Needs maraboupy, onnx and onnxruntime in the Python that runs it (pip install 'ringfence[marabou]'), and nothing of this project. The result
file is as in VNN-COMP.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path


def main(model: str, spec: str, result: str, seconds: str) -> None:
    """Solve and write the result file."""
    warnings.simplefilter("ignore")
    from maraboupy import Marabou

    network = Marabou.read_onnx(model)
    options = Marabou.createOptions(timeoutInSeconds=max(1, int(float(seconds))), verbosity=0)
    code, values, _ = network.solve("", False, options, spec)
    text = {"sat": "sat", "unsat": "unsat", "TIMEOUT": "timeout"}.get(code, "unknown")
    if text == "sat":
        inputs = [v for variables in network.inputVars for v in variables.ravel().tolist()]
        outputs = [v for variables in network.outputVars for v in variables.ravel().tolist()]
        pairs = [f"(X_{i} {values[v]!r})" for i, v in enumerate(inputs)] + [f"(Y_{j} {values[v]!r})" for j, v in enumerate(outputs)]
        text += "\n(" + "\n".join(pairs) + ")"
    Path(result).write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
