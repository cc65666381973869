"""The commands of `ringfence`: what they are asked, read and handed to the module that answers.

Nothing heavy is imported before a command runs, so that `--help` is quick.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from verify import options
from verify.exits import ERROR, VERIFIED
from verify.startup import quick_imports
from verify.terminal import complain, put


@click.command()
@options.MODEL
@click.argument("spec", metavar="[SPEC.vnnlib]", type=options.PATH, required=False, help="The question, plain or gzipped VNNLIB 1.0.")
@click.option("--dataset", help="Ask about images of a data set instead: mnist or cifar10.")
@click.option("--data-dir", type=options.PATH, help="Folder of the data set's official files.")
@click.option("--index", default="0", help="Test images to ask about: one such as 7, or a range such as 0:10.")
@options.NORM
@click.option("--eps", type=float, help="Radius of the perturbation in units of pixels in [0, 1].")
@click.option(
    "--counterexample",
    type=options.PATH,
    help="Write the input that violates the question: .npy, else VNN-COMP's text form; NAME-INDEX.EXT for several images.",
)
@options.SEMANTICS
@options.CONFIRM
@click.option("--effort", default="normal", help="quick (attack and bounds only), normal or thorough (longer attacks and ascents).")
@click.option("--explain", "explained", is_flag=True, help="Tell what every stage did and why, on stderr or as a JSON field.")
@options.THREADS
@options.JSON
@options.timeout("Seconds allowed for each question; then the answer is unknown.")
@options.DEVICE
@options.MEMORY_LIMIT
@options.SEED
def verify(  # noqa: PLR0913 - one argument an option
    model: Path,
    spec: Path | None,
    dataset: str | None,
    data_dir: Path | None,
    index: str,
    norm: str,
    eps: float | None,
    counterexample: Path | None,
    semantics: str,
    confirm: bool,
    effort: str,
    explained: bool,
    threads: int,
    as_json: bool,
    timeout: float | None,
    device: str,
    memory_limit: str | None,
    seed: int,
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
    return Run(settings.check(), put, as_json).verify(model, source, start)


@click.command()
@options.MODEL
@options.DATASET
@options.DATA_DIR
@click.option("--eps", type=float, required=True, help="Radius of the perturbation in units of pixels in [0, 1].")
@options.NORM
@click.option(
    "--methods", default="ibp,crown,pgd", help="Of ibp, ibp-planes, crown-ibp, fastlin, crown, alpha, pec and pgd, separated by commas."
)
@click.option("--count", type=click.IntRange(min=1), help="How many test images, from the first on; all of them if not given.")
@click.option("--out", type=options.PATH, help="Keep results in this file; the same command goes on where it stopped.")
@options.CLIP
@click.option("--semantics", default="real", help="Arithmetic that certified covers: real or float32-any-order.")
@options.THREADS
@options.JSON
@options.timeout("Seconds for the whole run; then the figures so far.")
@options.DEVICE
@options.MEMORY_LIMIT
@options.SEED
def evaluate(  # noqa: PLR0913 - one argument an option
    model: Path,
    dataset: str,
    data_dir: Path,
    eps: float,
    norm: str,
    methods: str,
    count: int | None,
    out: Path | None,
    clip: bool,
    semantics: str,
    threads: int,
    as_json: bool,
    timeout: float | None,
    device: str,
    memory_limit: str | None,
    seed: int,
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
    return Command(Job(model, dataset, data_dir, settings, count, out), limits, put, as_json, threads).run()


@click.command()
@click.argument("suite", metavar="SUITE", help="mnist or cifar10; or an instances.csv, a folder of such, or the name of one in --data-dir.")
@click.option("--data-dir", type=options.PATH, help="Folder of the data set's official files, or of families of instances.")
@click.option("--download", is_flag=True, help="Fetch the data set's files if they are not in the cache yet.")
@click.option(
    "--model", type=options.PATH, multiple=True, help="For mnist and cifar10: a network, or a folder of networks; may be repeated."
)
@click.option("--eps", help="For mnist and cifar10: radii in units of pixels in [0, 1], separated by commas.")
@click.option("--radius", is_flag=True, help="For mnist and cifar10: measure the certified radius of every image.")
@click.option("--norm", default="inf", help="For mnist and cifar10: norm of the perturbation, inf, 2 or 1.")
@click.option("--mean", help="Mean the network's inputs were normalised with: one number, or one a channel.")
@click.option("--std", help="Standard deviation they were normalised with.")
@click.option("--count", type=click.IntRange(min=1), help="The first N images that are classified correctly, or the first N instances.")
@click.option("--family", multiple=True, help="Only this family of instances; may be repeated.")
@click.option("--every", type=click.IntRange(min=1), default=1, help="Only every N-th instance of each family, from its first on.")
@click.option("--out", type=options.PATH, help="Results file; the same command goes on where it stopped. [default: SUITE.sqlite]")
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes, one thread each. [default: one a core]")
@click.option("--retry", help="Ask stored instances again that are unknown, error, or unknown,error.")
@click.option("--engine", default="local", help="Where instances run: local, or ray.")
@click.option("--address", help="With --engine ray: the cluster to join, auto or HOST:6379.")
@click.option("--report", type=options.PATH, help="The page of results at the end. [default: the results file's name, .html]")
@click.option("--no-report", is_flag=True, help="Write no page at the end.")
@options.SEMANTICS
@options.CONFIRM
@options.JSON
@options.timeout("Seconds for each instance. [default: the suite's own; 60 for images]")
@options.DEVICE
@options.MEMORY_LIMIT
@options.SEED
def bench(  # noqa: PLR0913 - one argument an option
    suite: str,
    data_dir: Path | None,
    download: bool,
    model: tuple[Path, ...],
    eps: str | None,
    radius: bool,
    norm: str,
    mean: str | None,
    std: str | None,
    count: int | None,
    family: tuple[str, ...],
    every: int,
    out: Path | None,
    workers: int | None,
    retry: str | None,
    engine: str,
    address: str | None,
    report: Path | None,
    no_report: bool,
    semantics: str,
    confirm: bool,
    as_json: bool,
    timeout: float | None,
    device: str,
    memory_limit: str | None,
    seed: int,
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
    sweep = Sweep(suite, wanted.tasks(lambda line: None if as_json else put(line)), settings, timeout, read_retry(retry))
    return Bench(sweep, chosen, place, put, as_json, None if no_report else report or place.with_suffix(".html")).run()


def _second_solver() -> str:
    from verify.command import second_solver

    return second_solver()


@click.command()
@click.argument("results", metavar="RESULTS.sqlite", type=options.PATH, help="What ringfence bench wrote.")
@click.option("--html", type=options.PATH, help="Write one page that needs nothing else: charts, pictures, all instances.")
@click.option("--csv", type=options.PATH, help="Write every instance as one line of a table.")
@click.option("--against", type=options.PATH, help="Compare with the configurations of another results file.")
@click.option("--configuration", type=int, help="Number of the configuration to report. [default: our latest]")
@options.JSON
@options.unused("--timeout", "--device", "--memory-limit", "--seed")
def report(
    results: Path,
    html: Path | None,
    csv: Path | None,
    against: Path | None,
    configuration: int | None,
    as_json: bool,
) -> int:
    """Show the results of a sweep: as text, as a page, as a table."""
    with quick_imports():
        from verify.report_command import Report

    return Report(results, against, configuration, put, as_json, html, csv).run()


@click.command()
@options.MODEL
@options.DATASET
@options.DATA_DIR
@options.INDEX
@click.option("--norm", default="inf", help="Boxes (inf), ellipsoids (2) or cross-polytopes (1).")
@click.option("--out", type=options.PATH, help="Write the regions to this .npz file: eps, center, index and more.")
@click.option("--plot", type=options.PATH, help="Draw the bounding map beside the image; NAME-INDEX.EXT for several images.")
@click.option("--engine", default="crown", help="Bounds that certify: crown, fastlin, crown-ibp or ibp.")
@click.option("--method", default="convex", help="Search: convex, or lagrangian as in the thesis.")
@click.option("--free", type=options.PATH, help=".npy array of the input's shape, non-zero for features that may move.")
@click.option("--least", type=click.FloatRange(min=0.0), default=0.0, help="Every eps is at least this.")
@click.option("--most", type=click.FloatRange(min=0.0), help="Every eps is at most this.")
@click.option("--learn", is_flag=True, help="Start in the mean direction of the images so far.")
@options.CLIP
@click.option("--threads", type=click.IntRange(min=1), default=1, help="Threads for bounds.")
@options.JSON
@options.timeout("Seconds for each image; then the best so far.")
@options.DEVICE
@options.MEMORY_LIMIT
@options.unused("--seed")
def region(  # noqa: PLR0913 - one argument an option
    model: Path,
    dataset: str,
    data_dir: Path,
    index: str,
    norm: str,
    out: Path | None,
    plot: Path | None,
    engine: str,
    method: str,
    free: Path | None,
    least: float,
    most: float | None,
    learn: bool,
    clip: bool,
    threads: int,
    as_json: bool,
    timeout: float | None,
    device: str,
    memory_limit: str | None,
) -> int:
    """Find the largest region around an image, one eps a pixel, in which its class is proven."""
    with quick_imports():
        from verify.questions import read_memory, read_norm
        from verify.region_command import Command, Question, Settings

    question = Question(dataset, data_dir, index, read_norm(norm), clip, free, least, most)
    settings = Settings(engine, method, learn, timeout, device, read_memory(memory_limit), threads)
    return Command(model, question, settings, put, as_json, out, plot).run()


@click.command()
@options.MODEL
@options.DATASET
@options.DATA_DIR
@click.option("--index", help="Test images: one such as 7, a range such as 0:10, or a list such as 3,7,9. [default: 0]")
@options.NORM
@click.option("--method", default="crown", help="What certifies: fastlin, pec, crown, alpha or exact.")
@click.option("--tol", type=float, default=0.0001, help="How exactly the best radius of the method is searched, in units of the input.")
@click.option("--eps-max", type=float, help="The largest radius of interest. [default: the nearest adversary's, or all of [0, 1]]")
@click.option("--curve", type=int, help="This image's radius against the eps of the bounds, for --plot or --json.")
@click.option("--eps-min", type=click.FloatRange(min=0.0), default=0.0, help="Where the curve starts.")
@click.option("--histogram", is_flag=True, help="Draw how the radii are distributed, to the file of --plot.")
@click.option("--target", type=float, help="Mark this radius in the histogram.")
@click.option("--plot", type=options.PATH, help="Picture of the curve or the histogram: .png, .pdf or .svg.")
@click.option("--attack/--no-attack", default=True, help="Whether to look for near adversaries, the upper ends.")
@options.CLIP
@options.THREADS
@options.JSON
@options.timeout("Seconds for the whole run; then the best ends so far.")
@options.DEVICE
@options.MEMORY_LIMIT
@options.SEED
def radius(  # noqa: PLR0913 - one argument an option
    model: Path,
    dataset: str,
    data_dir: Path,
    index: str | None,
    norm: str,
    method: str,
    tol: float,
    eps_max: float | None,
    curve: int | None,
    eps_min: float,
    histogram: bool,
    target: float | None,
    plot: Path | None,
    attack: bool,
    clip: bool,
    threads: int,
    as_json: bool,
    timeout: float | None,
    device: str,
    memory_limit: str | None,
    seed: int,
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
    return Command(model, question, limits, put, as_json, picture, threads).run()


@click.command()
@options.MODEL
@click.option("--dataset", help="Images of a data set: mnist or cifar10.")
@click.option("--data-dir", type=options.PATH, help="Folder of the data set's official files.")
@options.INDEX
@click.option("--at", help="One point instead of images: its numbers separated by commas.")
@options.NORM
@click.option("--type", "kind", default="linear", help="What replaces a neuron's activation: constant, linear or activation.")
@click.option("--ratio", type=float, default=0.99, help="Share of the neurons that is replaced.")
@click.option("--step", type=float, default=0.1, help="Share of the remaining ones that goes before bounds are computed again.")
@click.option("--first-layer/--no-first-layer", default=True, help="Whether neurons that read the input directly may go.")
@click.option("--stable-first", is_flag=True, help="Replace neurons that are stable on the ball before all others.")
@click.option("--order", default="width", help="Neurons that go first: of the smallest width or effect on the margin.")
@click.option("--bounds", default="fastlin-ibp", help="Bounds that choose the neurons: fastlin-ibp, crown or ibp.")
@click.option("--exact", is_flag=True, help="Search the network's own distance too, and compare.")
@click.option(
    "--certify", type=click.FloatRange(min=0.0), default=5.0, help="Seconds an image for a better certified end than bounds give; 0: none."
)
@click.option("--save", type=options.PATH, help="Write the substitute to this .onnx file; NAME-INDEX.onnx for several images.")
@click.option("--plot", type=options.PATH, help="Draw classes before and after, for networks with two inputs.")
@click.option("--clip/--no-clip", default=True, help="Whether perturbed inputs stay in [0, 1].")
@options.THREADS
@options.JSON
@options.timeout("Seconds for each image; then the ends so far.", 60.0)
@options.DEVICE
@options.MEMORY_LIMIT
@options.SEED
def substitute(  # noqa: PLR0913 - one argument an option
    model: Path,
    dataset: str | None,
    data_dir: Path | None,
    index: str,
    at: str | None,
    norm: str,
    kind: str,
    ratio: float,
    step: float,
    first_layer: bool,
    stable_first: bool,
    order: str,
    bounds: str,
    exact: bool,
    certify: float,
    save: Path | None,
    plot: Path | None,
    clip: bool,
    threads: int,
    as_json: bool,
    timeout: float | None,
    device: str,
    memory_limit: str | None,
    seed: int,
) -> int:
    """Estimate how far the nearest adversary is, on a network with few activations left; certified ends beside it."""
    with quick_imports():
        from verify.pruning import read_pruning
        from verify.questions import read_memory, read_norm
        from verify.substitute_command import Command, Question, Settings

    question = Question(dataset, data_dir, index, at, read_norm(norm), clip)
    pruning = read_pruning(kind, ratio, step, bounds, first_layer=first_layer, stable_first=stable_first, order=order)
    settings = Settings(pruning, exact, certify, timeout, save, plot, device, read_memory(memory_limit), seed, threads)
    return Command(model, question, settings, put, as_json).run()


@click.command()
@options.MODEL
@options.JSON
@options.unused("--timeout", "--device", "--memory-limit", "--seed")
def inspect(
    model: Path,
    as_json: bool,
) -> int:
    """Show what a network is made of and how it is handled."""
    with quick_imports():
        from verify.document import to_json
        from verify.layers import inventory

    found = inventory(model)
    put(to_json(found.document()) if as_json else str(found))
    if found.error is not None:
        complain(found.error)
        return ERROR
    return VERIFIED


@click.command()
@click.argument("spec", metavar="SPEC.vnnlib", type=options.PATH, help="The question, plain or gzipped VNNLIB 1.0.")
@options.JSON
@options.unused("--timeout", "--device", "--memory-limit", "--seed")
def explain(
    spec: Path,
    as_json: bool,
) -> int:
    """Say a question in plain English, and what verified would mean."""
    from verify.document import SCHEMA, to_json
    from verify.explain import explain as explanation
    from verify.vnnlib import read_vnnlib

    found = explanation(read_vnnlib(spec))
    put(to_json({"schema": SCHEMA} | found.to_dict()) if as_json else str(found))
    return VERIFIED


COMMANDS = (verify, evaluate, bench, report, region, radius, substitute, inspect, explain)
