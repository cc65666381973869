"""The command `ringfence`. Nothing heavy is imported before a command runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from verify.allocator import hold_freed
from verify.exits import ERROR, INTERRUPTED, VERIFIED
from verify.startup import quick_exit, quick_imports

app = typer.Typer(
    name="ringfence",
    epilog="Exit codes: 0 verified, 1 falsified, 2 bad input or usage, 3 unknown; for several questions the worst in the order 2, 1, 3, 0.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds allowed for each question; then the answer is unknown.", min=0.0)]
Device = Annotated[str, typer.Option(help="Where bounds and attacks run: cpu, cuda or cuda:N.")]
MemoryLimit = Annotated[str | None, typer.Option(help="Memory for the work of one question, such as 4GB or 500MB; a bare number is MB.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
HiddenTimeout = Annotated[float | None, typer.Option("--timeout", hidden=True, min=0.0)]
HiddenDevice = Annotated[str, typer.Option("--device", hidden=True)]
HiddenMemoryLimit = Annotated[str | None, typer.Option("--memory-limit", hidden=True)]
HiddenSeed = Annotated[int, typer.Option("--seed", hidden=True, min=0)]
Model = Annotated[Path, typer.Argument(metavar="NET.onnx", help="The network, plain or gzipped ONNX.", show_default=False)]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. Every deliberate error is one line on stderr and exit code 2; a defect of ours is a traceback and 2."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    hold_freed()
    try:
        code = app(given, prog_name="ringfence", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever it is, it is shown
        message = _message(error)
        if message is None:
            # Python's own exit code for an exception is 1, which would read as "falsified".
            traceback.print_exc()
        else:
            _complain(message)
        code = ERROR
    quick_exit()
    sys.exit(code)


def _complain(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"ringfence: {' '.join(message.split())}\n")


def _message(error: Exception) -> str | None:
    """What to tell about a mistake of the user's, or None for one of ours, which keeps its traceback."""
    usage = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    if isinstance(error, usage):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "ringfence"
        return f"{error.format_message().rstrip(chr(46))} (see {command} --help)"  # type: ignore[attr-defined]
    errors = sys.modules.get("bounds.errors")
    return str(error) if errors is not None and isinstance(error, errors.RingfenceError) else None


def _print(text: str) -> None:
    """Text to stdout at once. A reader that has gone away changes no exit code; a full disk is an error."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        from bounds.errors import OutputError

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        _print(f"ringfence {version('ringfence')}")
        raise typer.Exit()


@app.callback()
def ringfence(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Prove what a neural network can and cannot output on a whole region of inputs."""


@app.command()
def verify(  # noqa: PLR0913 - one argument an option
    model: Model,
    spec: Annotated[
        Path | None, typer.Argument(metavar="SPEC.vnnlib", help="The question, plain or gzipped VNNLIB 1.0.", show_default=False)
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Ask about images of a data set instead: mnist or cifar10.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's official files.")] = None,
    index: Annotated[str, typer.Option(help="Test images to ask about: one such as 7, or a range such as 0:10.")] = "0",
    norm: Annotated[str, typer.Option(help="Norm of the perturbation: inf, 2 or 1.")] = "inf",
    eps: Annotated[float | None, typer.Option(help="Radius of the perturbation in units of pixels in [0, 1].")] = None,
    counterexample: Annotated[
        Path | None,
        typer.Option(
            help="Write the input that violates the question: .npy, else VNN-COMP's text form; NAME-INDEX.EXT for several images."
        ),
    ] = None,
    semantics: Annotated[str, typer.Option(help="Arithmetic that verified covers: real or float32-any-order.")] = "real",
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Let a second solver agree before a solver's proof counts as verified.")
    ] = False,
    effort: Annotated[
        str, typer.Option(help="quick (attack and bounds only), normal or thorough (longer attacks and ascents).")
    ] = "normal",
    explained: Annotated[bool, typer.Option("--explain", help="Tell what every stage did and why, on stderr or as a JSON field.")] = False,
    threads: Annotated[int, typer.Option(help="Threads for bounds and attacks.", min=1)] = 1,
    as_json: Json = False,
    timeout: Timeout = None,
    device: Device = "cpu",
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
) -> int:
    """Answer a question: verified, falsified or unknown."""
    start = time.monotonic()
    with quick_imports():
        from verify.command import Run, Settings, choose, read_effort, read_semantics, second_solver
        from verify.questions import read_memory

    source = choose(spec, dataset, data_dir, index, norm, eps)
    second = second_solver() if confirm else None
    meaning, memory = read_semantics(semantics), read_memory(memory_limit)
    settings = Settings(timeout, device, memory, seed, meaning, second, counterexample, threads, read_effort(effort), explained)
    return Run(settings.check(), _print, as_json).verify(model, source, start)


@app.command()
def evaluate(  # noqa: PLR0913 - one argument an option
    model: Model,
    dataset: Annotated[str, typer.Option(help="The data set: mnist or cifar10.", show_default=False)],
    data_dir: Annotated[Path, typer.Option(help="Folder of the data set's official files.", show_default=False)],
    eps: Annotated[float, typer.Option(help="Radius of the perturbation in units of pixels in [0, 1].", show_default=False)],
    norm: Annotated[str, typer.Option(help="Norm of the perturbation: inf, 2 or 1.")] = "inf",
    methods: Annotated[
        str, typer.Option(help="Of ibp, ibp-planes, crown-ibp, fastlin, crown, alpha, pec and pgd, separated by commas.")
    ] = "ibp,crown,pgd",
    count: Annotated[int | None, typer.Option(help="How many test images, from the first on; all of them if not given.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Keep results in this file; the same command goes on where it stopped.")] = None,
    clip: Annotated[bool, typer.Option("--clip/--no-clip", help="Whether perturbed pixels stay in [0, 1].")] = True,
    semantics: Annotated[str, typer.Option(help="Arithmetic that certified covers: real or float32-any-order.")] = "real",
    threads: Annotated[int, typer.Option(help="Threads for bounds and attacks.", min=1)] = 1,
    as_json: Json = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds for the whole run; then the figures so far.", min=0.0)] = None,
    device: Device = "cpu",
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
) -> int:
    """Measure a model on a data set: clean, under attack, certified."""
    start = time.monotonic()
    with quick_imports():
        from verify.command import read_semantics
        from verify.evaluate import Limits, Settings
        from verify.evaluation_command import Command, Job
        from verify.questions import read_memory, read_norm

    chosen = tuple(name.strip() for name in methods.split(",") if name.strip())
    settings = Settings(eps, read_norm(norm), clip, chosen, seed=seed, semantics=read_semantics(semantics))
    limits = Limits(device, read_memory(memory_limit), None if timeout is None else start + timeout)
    return Command(Job(model, dataset, data_dir, settings, count, out), limits, _print, as_json, threads).run()


@app.command()
def bench(  # noqa: PLR0913 - one argument an option
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help="mnist or cifar10; or an instances.csv, a folder of such, or the name of one in --data-dir.",
            show_default=False,
        ),
    ],
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's official files, or of families of instances.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the data set's files if they are not in the cache yet.")] = False,
    model: Annotated[
        list[Path] | None, typer.Option(help="For mnist and cifar10: a network, or a folder of networks; may be repeated.")
    ] = None,
    eps: Annotated[str | None, typer.Option(help="For mnist and cifar10: radii in units of pixels in [0, 1], separated by commas.")] = None,
    radius: Annotated[bool, typer.Option("--radius", help="For mnist and cifar10: measure the certified radius of every image.")] = False,
    norm: Annotated[str, typer.Option(help="For mnist and cifar10: norm of the perturbation, inf, 2 or 1.")] = "inf",
    mean: Annotated[str | None, typer.Option(help="Mean the network's inputs were normalised with: one number, or one a channel.")] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation they were normalised with.")] = None,
    count: Annotated[
        int | None, typer.Option(help="The first N images that are classified correctly, or the first N instances.", min=1)
    ] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only this family of instances; may be repeated.")] = None,
    every: Annotated[int, typer.Option(help="Only every N-th instance of each family, from its first on.", min=1)] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Results file; the same command goes on where it stopped. [default: SUITE.sqlite]")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes, one thread each. [default: one a core]", min=1)] = None,
    retry: Annotated[str | None, typer.Option(help="Ask stored instances again that are unknown, error, or unknown,error.")] = None,
    engine: Annotated[str, typer.Option(help="Where instances run: local, or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="With --engine ray: the cluster to join, auto or HOST:6379.")] = None,
    report: Annotated[Path | None, typer.Option(help="The page of results at the end. [default: the results file's name, .html]")] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no page at the end.")] = False,
    semantics: Annotated[str, typer.Option(help="Arithmetic that verified covers: real or float32-any-order.")] = "real",
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Let a second solver agree before a solver's proof counts as verified.")
    ] = False,
    as_json: Json = False,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for each instance. [default: the suite's own; 60 for images]", min=0.0)
    ] = None,
    device: Device = "cpu",
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
) -> int:
    """Ask many questions: durable results, several workers. Exit code 4: a verdict contradicts what is expected."""
    with quick_imports():
        from verify.bench_command import Bench, Wanted, choose_engine, choose_out, read_normalisation, read_numbers, read_retry
        from verify.command import read_semantics
        from verify.questions import read_memory
        from verify.sweep import Sweep
        from verify.tasks import Settings

    normalisation, radii = read_normalisation(mean, std), read_numbers(eps, "--eps")
    chosen_families, models = tuple(family or ()), tuple(model or ())
    wanted = Wanted(suite, data_dir, timeout, chosen_families, models, radii, radius, norm, count, normalisation, download, every)
    settings = Settings(read_memory(memory_limit), device, seed, read_semantics(semantics), _second_solver() if confirm else None)
    chosen, place = choose_engine(engine, workers, address, device), choose_out(out, suite)
    sweep = Sweep(suite, wanted.tasks(lambda line: None if as_json else _print(line)), settings, timeout, read_retry(retry))
    return Bench(sweep, chosen, place, _print, as_json, None if no_report else report or place.with_suffix(".html")).run()


def _second_solver() -> str:
    from verify.command import second_solver

    return second_solver()


@app.command()
def report(  # noqa: PLR0913 - one argument an option
    results: Annotated[Path, typer.Argument(metavar="RESULTS.sqlite", help="What ringfence bench wrote.", show_default=False)],
    html: Annotated[Path | None, typer.Option(help="Write one page that needs nothing else: charts, pictures, all instances.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every instance as one line of a table.")] = None,
    against: Annotated[Path | None, typer.Option(help="Compare with the configurations of another results file.")] = None,
    configuration: Annotated[int | None, typer.Option(help="Number of the configuration to report. [default: our latest]")] = None,
    as_json: Json = False,
    timeout: HiddenTimeout = None,
    device: HiddenDevice = "cpu",
    memory_limit: HiddenMemoryLimit = None,
    seed: HiddenSeed = 0,
) -> int:
    """Show the results of a sweep: as text, as a page, as a table."""
    with quick_imports():
        from verify.report_command import Report

    return Report(results, against, configuration, _print, as_json, html, csv).run()


@app.command()
def region(  # noqa: PLR0913 - one argument an option
    model: Model,
    dataset: Annotated[str, typer.Option(help="The data set: mnist or cifar10.", show_default=False)],
    data_dir: Annotated[Path, typer.Option(help="Folder of the data set's official files.", show_default=False)],
    index: Annotated[str, typer.Option(help="Test images: one such as 7, a range such as 0:10, or a list such as 3,7,9.")] = "0",
    norm: Annotated[str, typer.Option(help="Boxes (inf), ellipsoids (2) or cross-polytopes (1).")] = "inf",
    out: Annotated[Path | None, typer.Option(help="Write the regions to this .npz file: eps, center, index and more.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the bounding map beside the image; NAME-INDEX.EXT for several images.")] = None,
    engine: Annotated[str, typer.Option(help="Bounds that certify: crown, fastlin, crown-ibp or ibp.")] = "crown",
    method: Annotated[str, typer.Option(help="Search: convex, or lagrangian as in the thesis.")] = "convex",
    free: Annotated[Path | None, typer.Option(help=".npy array of the input's shape, non-zero for features that may move.")] = None,
    least: Annotated[float, typer.Option(help="Every eps is at least this.", min=0.0)] = 0.0,
    most: Annotated[float | None, typer.Option(help="Every eps is at most this.", min=0.0)] = None,
    learn: Annotated[bool, typer.Option("--learn", help="Start in the mean direction of the images so far.")] = False,
    clip: Annotated[bool, typer.Option("--clip/--no-clip", help="Whether perturbed pixels stay in [0, 1].")] = True,
    threads: Annotated[int, typer.Option(help="Threads for bounds.", min=1)] = 1,
    as_json: Json = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds for each image; then the best so far.", min=0.0)] = None,
    device: Device = "cpu",
    memory_limit: MemoryLimit = None,
    seed: HiddenSeed = 0,
) -> int:
    """Find the largest region around an image, one eps a pixel, in which its class is proven."""
    with quick_imports():
        from verify.questions import read_memory, read_norm
        from verify.region_command import Command, Question, Settings

    question = Question(dataset, data_dir, index, read_norm(norm), clip, free, least, most)
    settings = Settings(engine, method, learn, timeout, device, read_memory(memory_limit), threads)
    return Command(model, question, settings, _print, as_json, out, plot).run()


@app.command()
def radius(  # noqa: PLR0913 - one argument an option
    model: Model,
    dataset: Annotated[str, typer.Option(help="The data set: mnist or cifar10.", show_default=False)],
    data_dir: Annotated[Path, typer.Option(help="Folder of the data set's official files.", show_default=False)],
    index: Annotated[
        str | None, typer.Option(help="Test images: one such as 7, a range such as 0:10, or a list such as 3,7,9. [default: 0]")
    ] = None,
    norm: Annotated[str, typer.Option(help="Norm of the perturbation: inf, 2 or 1.")] = "inf",
    method: Annotated[str, typer.Option(help="What certifies: fastlin, pec, crown, alpha or exact.")] = "crown",
    tol: Annotated[float, typer.Option(help="How exactly the best radius of the method is searched, in units of the input.")] = 1e-4,
    eps_max: Annotated[
        float | None, typer.Option(help="The largest radius of interest. [default: the nearest adversary's, or all of [0, 1]]")
    ] = None,
    curve: Annotated[int | None, typer.Option(help="This image's radius against the eps of the bounds, for --plot or --json.")] = None,
    eps_min: Annotated[float, typer.Option(help="Where the curve starts.", min=0.0)] = 0.0,
    histogram: Annotated[bool, typer.Option("--histogram", help="Draw how the radii are distributed, to the file of --plot.")] = False,
    target: Annotated[float | None, typer.Option(help="Mark this radius in the histogram.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the curve or the histogram: .png, .pdf or .svg.")] = None,
    attack: Annotated[bool, typer.Option("--attack/--no-attack", help="Whether to look for near adversaries, the upper ends.")] = True,
    clip: Annotated[bool, typer.Option("--clip/--no-clip", help="Whether perturbed pixels stay in [0, 1].")] = True,
    threads: Annotated[int, typer.Option(help="Threads for bounds and attacks.", min=1)] = 1,
    as_json: Json = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds for the whole run; then the best ends so far.", min=0.0)] = None,
    device: Device = "cpu",
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
) -> int:
    """Measure how far images can move before their class may change: a certified end and an adversary's."""
    with quick_imports():
        from verify.minimal import MinimalNorm
        from verify.questions import choose_index, read_memory, read_norm
        from verify.radius import Limits
        from verify.radius_command import Command, Picture, Question

    chosen = choose_index(index, curve)
    question = Question(dataset, data_dir, chosen, read_norm(norm), method, tol, eps_max, clip)
    limits = Limits(eps_max, timeout, device, read_memory(memory_limit), seed, MinimalNorm() if attack else None)
    picture = Picture(plot, curve is not None, histogram, eps_min, target)
    return Command(model, question, limits, _print, as_json, picture, threads).run()


@app.command()
def substitute(  # noqa: PLR0913 - one argument an option
    model: Model,
    dataset: Annotated[str | None, typer.Option(help="Images of a data set: mnist or cifar10.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's official files.")] = None,
    index: Annotated[str, typer.Option(help="Test images: one such as 7, a range such as 0:10, or a list such as 3,7,9.")] = "0",
    at: Annotated[str | None, typer.Option(help="One point instead of images: its numbers separated by commas.")] = None,
    norm: Annotated[str, typer.Option(help="Norm of the perturbation: inf, 2 or 1.")] = "inf",
    kind: Annotated[str, typer.Option("--type", help="What replaces a neuron's activation: constant, linear or activation.")] = "linear",
    ratio: Annotated[float, typer.Option(help="Share of the neurons that is replaced.")] = 0.99,
    step: Annotated[float, typer.Option(help="Share of the remaining ones that goes before bounds are computed again.")] = 0.1,
    first_layer: Annotated[
        bool, typer.Option("--first-layer/--no-first-layer", help="Whether neurons that read the input directly may go.")
    ] = True,
    stable_first: Annotated[
        bool, typer.Option("--stable-first", help="Replace neurons that are stable on the ball before all others.")
    ] = False,
    order: Annotated[str, typer.Option(help="Neurons that go first: of the smallest width or effect on the margin.")] = "width",
    bounds: Annotated[str, typer.Option(help="Bounds that choose the neurons: fastlin-ibp, crown or ibp.")] = "fastlin-ibp",
    exact: Annotated[bool, typer.Option("--exact", help="Search the network's own distance too, and compare.")] = False,
    certify: Annotated[float, typer.Option(help="Seconds an image for a better certified end than bounds give; 0: none.", min=0.0)] = 5.0,
    save: Annotated[Path | None, typer.Option(help="Write the substitute to this .onnx file; NAME-INDEX.onnx for several images.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw classes before and after, for networks with two inputs.")] = None,
    clip: Annotated[bool, typer.Option("--clip/--no-clip", help="Whether perturbed inputs stay in [0, 1].")] = True,
    threads: Annotated[int, typer.Option(help="Threads for bounds and attacks.", min=1)] = 1,
    as_json: Json = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds for each image; then the ends so far.", min=0.0)] = 60.0,
    device: Device = "cpu",
    memory_limit: MemoryLimit = None,
    seed: Seed = 0,
) -> int:
    """Estimate how far the nearest adversary is, on a network with few activations left; certified ends beside it."""
    with quick_imports():
        from verify.pruning import read_pruning
        from verify.questions import read_memory, read_norm
        from verify.substitute_command import Command, Question, Settings

    question = Question(dataset, data_dir, index, at, read_norm(norm), clip)
    pruning = read_pruning(kind, ratio, step, bounds, first_layer=first_layer, stable_first=stable_first, order=order)
    settings = Settings(pruning, exact, certify, timeout, save, plot, device, read_memory(memory_limit), seed, threads)
    return Command(model, question, settings, _print, as_json).run()


@app.command()
def inspect(
    model: Model,
    as_json: Json = False,
    timeout: HiddenTimeout = None,
    device: HiddenDevice = "cpu",
    memory_limit: HiddenMemoryLimit = None,
    seed: HiddenSeed = 0,
) -> int:
    """Show what a network is made of and how it is handled."""
    with quick_imports():
        from verify.document import to_json
        from verify.layers import inventory

    found = inventory(model)
    _print(to_json(found.document()) if as_json else str(found))
    if found.error is not None:
        _complain(found.error)
        return ERROR
    return VERIFIED


@app.command()
def explain(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.vnnlib", help="The question, plain or gzipped VNNLIB 1.0.", show_default=False)],
    as_json: Json = False,
    timeout: HiddenTimeout = None,
    device: HiddenDevice = "cpu",
    memory_limit: HiddenMemoryLimit = None,
    seed: HiddenSeed = 0,
) -> int:
    """Say a question in plain English, and what verified would mean."""
    from verify.document import SCHEMA, to_json
    from verify.explain import explain as explanation
    from verify.vnnlib import read_vnnlib

    found = explanation(read_vnnlib(spec))
    _print(to_json({"schema": SCHEMA} | found.to_dict()) if as_json else str(found))
    return VERIFIED
