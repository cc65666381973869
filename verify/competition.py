"""The door of VNN-COMP: one instance in, one result file out.

    python -m verify.competition prepare NET.onnx SPEC.vnnlib
    python -m verify.competition run NET.onnx SPEC.vnnlib RESULT SECONDS

The first line of the result file is sat, unsat, timeout or unknown; sat is followed by the counterexample, replayed on the original model,
as ((X_0 v) ... (Y_0 v) ...). The scripts of the folder `competition` call this.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bounds.errors import RingfenceError, SpecError
from verify.allocator import hold_freed
from verify.startup import quick_exit, quick_imports
from verify.witness import vnncomp_text, write_atomically

MARGIN_S = 1.0
"""Seconds kept of the limit, at most a tenth of it, for writing the result and ending the process."""


def result_of(model: Path, spec: Path, deadline: float) -> str:
    """The text of the result file. deadline: on time.monotonic().

    Raises:
        RingfenceError: the network or the question cannot be used.
    """
    hold_freed()
    with quick_imports():
        import torch

        from bounds.network import Network
        from verify.run import verify
        from verify.verdict import Falsified, Verified
        from verify.vnnlib import load_property

    torch.set_num_threads(1)
    network = Network.from_onnx(model)
    question = load_property(spec, network)
    verdict = verify(network, question, timeout=max(0.0, deadline - time.monotonic())).verdict
    if isinstance(verdict, Verified):
        return "unsat\n"
    if isinstance(verdict, Falsified):
        return "sat\n" + vnncomp_text(verdict.x, verdict.y)
    return "timeout\n" if time.monotonic() >= deadline or "time limit" in verdict.reason else "unknown\n"


def run(model: Path, spec: Path, result: Path, seconds: float, start: float) -> int:
    """Answer an instance and write its result file. start: when the process began, on time.monotonic().

    "timeout" is written first, so that a process that is killed at the limit leaves a result.
    """
    write_atomically(result, b"timeout\n")
    try:
        text = result_of(model, spec, start + seconds - min(MARGIN_S, seconds / 10))
    except RingfenceError as error:
        sys.stderr.write(f"ringfence: {' '.join(str(error).split())}\n")
        text = "unknown\n"
    except BaseException:
        write_atomically(result, b"unknown\n")
        raise
    write_atomically(result, text.encode())
    sys.stdout.write(text.splitlines()[0] + "\n")
    return 0


def prepare(model: Path, spec: Path) -> int:
    """Whether an instance can be asked: 0, or 1 with one line on stderr. Nothing is kept between this and the run."""
    with quick_imports():
        from bounds.network import Network
        from verify.vnnlib import load_property

    try:
        load_property(spec, Network.from_onnx(model))
    except RingfenceError as error:
        sys.stderr.write(f"ringfence: {' '.join(str(error).split())}\n")
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments and do what they say; the exit code."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="verify.competition", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("prepare", "run"):
        step = steps.add_parser(name)
        step.add_argument("model", type=Path)
        step.add_argument("spec", type=Path)
    step.add_argument("result", type=Path)
    step.add_argument("seconds", type=float)
    given = parser.parse_args(arguments)
    if given.step == "prepare":
        return prepare(given.model, given.spec)
    if not given.seconds > 0:
        raise SpecError(f"the time limit has to be more than 0 seconds, got {given.seconds}")
    return run(given.model, given.spec, given.result, given.seconds, start)


if __name__ == "__main__":
    try:
        status = main()
    except RingfenceError as error:
        sys.stderr.write(f"ringfence: {error}\n")
        status = 1
    quick_exit()
    sys.exit(status)
