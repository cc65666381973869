"""What each part of the branch and bound over activations is worth: the proven bound after equal CPU seconds, with parts switched off.

    python -m benchmarks.branching_ablation --net NET.onnx --spec SPEC.vnnlib [--seconds 8]

IBP, CROWN and alpha-CROWN run first, in every variant alike; the last line narrows neurons by contradiction before it splits (`verify.refute`),
its seconds included. The clock is the process's CPU time, so that other processes do not count.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bounds.alpha import AlphaCrown, Ascent
from bounds.crown import Crown
from bounds.ibp import Ibp
from bounds.network import Network
from bounds.rowwise import Freedom
from verify import branch
from verify.refute import Refute
from verify.stages import Bound, Options, Query
from verify.vnnlib import load_property


class _CpuClock:
    """Stands in for the module `time` in the search: its deadline is in CPU seconds."""

    monotonic = staticmethod(time.process_time)


def _width(self: Freedom, alphas: Sequence[Tensor], coefficient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Score by the width of the pre-activation interval alone."""
    point = self.op.split_point(self.interval)
    return torch.where(self.op.unstable(self.interval), self.interval.width, 0.0), point


def _no_beta(steps: int, **_: Any) -> Ascent:
    return Ascent(steps, beta_lr=0.0)


def _no_alpha(steps: int, **_: Any) -> Ascent:
    return Ascent(steps, lr=0.0)


_LOSS = Freedom.loss

VARIANTS: dict[str, tuple[dict[str, Any], Callable[..., Ascent], Callable[..., Any]]] = {
    "everything": ({}, Ascent, Freedom.loss),
    "multipliers off": ({}, _no_beta, Freedom.loss),
    "slopes off": ({}, _no_alpha, Freedom.loss),
    "no ascent at all": ({"steps": 0}, Ascent, Freedom.loss),
    "split the widest": ({}, Ascent, _width),
    "look-ahead over 3": ({"tries": 3}, Ascent, Freedom.loss),
}


def main() -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", type=Path, required=True)
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = Network.from_onnx(options.net)
    query = Query.of(network, load_property(options.spec, network)[0], Options())
    for name, engine in (("ibp", Ibp), ("crown", Crown), ("alpha", AlphaCrown)):
        outcome = Bound(name, lambda dtype, _, engine=engine: engine(dtype))(query)  # type: ignore[misc]
        if not isinstance(outcome, Query):
            raise SystemExit(f"{name} decides the question; nothing is left to split")
        query = outcome
        sys.stdout.write(f"{name:18s} bound {query.bound:.4f}, {query.unstable} unstable\n")
    setattr(branch, "time", _CpuClock)  # noqa: B010 - a clock of our own
    for name, (settings, ascent, loss) in VARIANTS.items():
        setattr(branch, "Ascent", ascent)  # noqa: B010
        setattr(Freedom, "loss", loss)  # noqa: B010
        _report(name, query, branch.SplitNeurons(**settings), options.seconds)
    _restore()
    begin = time.process_time()
    refuted = Refute()(query)
    spent = time.process_time() - begin
    if isinstance(refuted, Query):
        _report(f"refute, {spent:.1f} s, then everything", refuted, branch.SplitNeurons(), options.seconds - spent)
    else:
        sys.stdout.write(f"refute: {type(refuted).__name__} in {spent:.1f} CPU s\n")


def _report(name: str, query: Query, stage: branch.SplitNeurons, seconds: float) -> None:
    search = branch._Search(query, stage, time.process_time() + seconds)
    search._trace(torch.float32).deadline = None
    begin = time.process_time()
    outcome = search.run()
    found = outcome.bound if isinstance(outcome, Query) else type(outcome).__name__
    sys.stdout.write(f"{name:18s} {found} after {search.bounded} sub-problems, {time.process_time() - begin:.1f} CPU s\n")
    sys.stdout.flush()


def _restore() -> None:
    """Everything switched on again."""
    setattr(branch, "Ascent", Ascent)  # noqa: B010
    setattr(Freedom, "loss", _LOSS)  # noqa: B010


if __name__ == "__main__":
    main()
