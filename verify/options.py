"""Options that several commands of `ringfence` have, as decorators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]

PATH = click.Path(path_type=Path)
_SECONDS, _NUMBER = click.FloatRange(min=0.0), click.IntRange(min=0)

MODEL = click.argument("model", metavar="NET.onnx", type=PATH, help="The network, plain or gzipped ONNX.")
DATASET = click.option("--dataset", required=True, help="The data set: mnist or cifar10.")
DATA_DIR = click.option("--data-dir", type=PATH, required=True, help="Folder of the data set's official files.")
INDEX = click.option("--index", default="0", help="Test images: one such as 7, a range such as 0:10, or a list such as 3,7,9.")
NORM = click.option("--norm", default="inf", help="Norm of the perturbation: inf, 2 or 1.")
CLIP = click.option("--clip/--no-clip", default=True, help="Whether perturbed pixels stay in [0, 1].")
SEMANTICS = click.option("--semantics", default="real", help="Arithmetic that verified covers: real or float32-any-order.")
CONFIRM = click.option("--confirm", is_flag=True, help="Let a second solver agree before a solver's proof counts as verified.")
THREADS = click.option("--threads", type=click.IntRange(min=1), default=1, help="Threads for bounds and attacks.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
DEVICE = click.option("--device", default="cpu", help="Where bounds and attacks run: cpu, cuda or cuda:N.")
MEMORY_LIMIT = click.option("--memory-limit", help="Memory for the work of one question, such as 4GB or 500MB; a bare number is MB.")
SEED = click.option("--seed", type=_NUMBER, default=0, help="Seed of everything random.")


def timeout(text: str, default: float | None = None) -> Callable[[Command], Command]:
    """The time limit; `text` says what of, and what happens then."""
    return click.option("--timeout", type=_SECONDS, default=default, help=text)


def unused(*names: str) -> Callable[[Command], Command]:
    """Options that every command takes and this one has no use for: checked, not shown, not passed on."""

    def add(command: Command) -> Command:
        given = (
            click.option(name, type={"--timeout": _SECONDS, "--seed": _NUMBER}.get(name, str), hidden=True, expose_value=False)
            for name in names
        )
        return functools.reduce(lambda wrapped, option: option(wrapped), given, command)

    return add
