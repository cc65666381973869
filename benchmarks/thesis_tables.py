"""Thesis Tables 3.6 to 3.8 again: every model over the whole test set, beside the printed figures.

    python -m benchmarks.thesis_tables --models ../shared/models --data ../shared/data --results results/thesis [--only mnist_fc1] [--write FILE]

Results are kept, image by image, in the results folder; a run that was stopped goes on where it was. `--report` works no further and tells
what is there; `--envelope` works on the column ACB PEC only; `--l2` prints CRE Lin and ACB PEC of the l2 rows by the thesis's own convention
instead. CRE Lin is the method `fastlin`, CRE IBP `ibp` with margins folded into the last layer. Sigmoid and tanh have a line for each of
`fastlin`, the planes of thesis (3.5), `crown` and `alpha`; their envelope takes the best planes of the three. The l2 rows appear with
perturbed pixels clipped to [0, 1] and without.

Reference: C. Liu, thesis on verifiable and robust neural networks, section 3.3, Tables 3.6, 3.7, 3.8.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.thesis_envelope import average_radius
from bounds.errors import RingfenceError
from verify.evaluate import Evaluation, Limits, Settings
from verify.evaluation_command import Job
from verify.witness import write_atomically

COLUMNS = ("CTE", "PGD", "CRE Lin", "CRE IBP", "ACB Lin", "ACB IBP", "ACB PEC")
TOLERANCES = {"CTE": 0.02, "CRE Lin": 0.15, "CRE IBP": 0.15, "ACB Lin": 0.0003, "ACB IBP": 0.0003, "ACB PEC": 0.0003}
"""How far a figure may be from the printed one: percentage points, and units of eps."""
LINEAR = {"relu": ("fastlin",), "sigmoid": ("fastlin", "crown", "alpha"), "tanh": ("fastlin", "crown", "alpha")}
"""Methods shown in the column CRE Lin, called CRE CRO for sigmoid and tanh."""
NON_RELU = {"CRE Lin": 0.3, "CRE IBP": 0.3, "ACB PEC": 0.0005}
"""Sigmoid and tanh: so far, or better."""
L2 = {"ACB PEC": 0.0005}

KNOWN_CTE = {"mnist_cnn_relu_linf_kw.onnx": 1.16, "mnist_cnn_relu_linf_l-per.onnx": 1.41, "mnist_cnn_relu_l2_kw.onnx": 1.04}
"""Files that are not quite the printed network: the clean error they are known to have."""

# (data set, architecture, activation, norm, row of the table): CTE, PGD, CRE Lin (CRO), CRE IBP, ACB Lin (CRO), ACB IBP, ACB PEC
PRINTED: dict[tuple[str, ...], tuple[float, ...]] = {
    ("mnist", "fc1", "relu", "linf", "plain"): (1.99, 98.37, 100.00, 100.00, 0.0000, 0.0000, 0.0000),
    ("mnist", "fc1", "relu", "linf", "KW"): (2.26, 8.59, 12.91, 69.20, 0.0871, 0.0308, 0.0928),
    ("mnist", "fc1", "relu", "linf", "IBP"): (1.65, 9.67, 87.27, 15.20, 0.0127, 0.0848, 0.0705),
    ("mnist", "fc1", "relu", "linf", "L-PER"): (1.60, 7.45, 11.71, 92.89, 0.0883, 0.0071, 0.0935),
    ("mnist", "cnn", "relu", "linf", "plain"): (1.28, 85.75, 100.00, 100.00, 0.0000, 0.0000, 0.0000),
    ("mnist", "cnn", "relu", "linf", "AT"): (1.02, 4.75, 91.91, 100.00, 0.0081, 0.0000, 0.0189),
    ("mnist", "cnn", "relu", "linf", "KW"): (1.21, 3.03, 4.44, 100.00, 0.0956, 0.0000, 0.0971),
    ("mnist", "cnn", "relu", "linf", "IBP"): (1.51, 4.43, 23.89, 8.13, 0.0761, 0.0919, 0.0872),
    ("mnist", "cnn", "relu", "linf", "CROWN-IBP"): (1.85, 4.28, 10.72, 6.91, 0.0893, 0.0931, 0.0928),
    ("mnist", "cnn", "relu", "linf", "MMR"): (1.65, 6.07, 11.56, 100.00, 0.0884, 0.0000, 0.0928),
    ("mnist", "cnn", "relu", "linf", "MMR+at"): (1.19, 3.35, 9.49, 100.00, 0.0905, 0.0000, 0.0939),
    ("mnist", "cnn", "relu", "linf", "L-PER"): (1.44, 3.44, 5.13, 100.00, 0.0949, 0.0000, 0.0965),
    ("mnist", "cnn", "relu", "linf", "L-PER+at"): (0.50, 2.02, 4.85, 100.00, 0.0952, 0.0000, 0.0969),
    ("mnist", "cnn", "relu", "linf", "I-PER"): (1.03, 2.40, 4.64, 99.55, 0.0954, 0.0004, 0.0967),
    ("mnist", "cnn", "relu", "linf", "I-PER+at"): (0.48, 1.29, 4.61, 99.94, 0.0954, 0.0001, 0.0971),
    ("cifar10", "cnn", "relu", "linf", "plain"): (24.62, 86.29, 100.00, 100.00, 0.0000, 0.0000, 0.0000),
    ("cifar10", "cnn", "relu", "linf", "AT"): (27.04, 48.53, 85.36, 100.00, 0.0011, 0.0000, 0.0015),
    ("cifar10", "cnn", "relu", "linf", "KW"): (39.27, 46.60, 53.81, 99.98, 0.0036, 0.0000, 0.0040),
    ("cifar10", "cnn", "relu", "linf", "IBP"): (46.74, 56.38, 61.81, 67.58, 0.0030, 0.0025, 0.0034),
    ("cifar10", "cnn", "relu", "linf", "MMR+at"): (35.36, 49.27, 59.91, 100.00, 0.0031, 0.0000, 0.0037),
    ("cifar10", "cnn", "relu", "linf", "L-PER+at"): (28.87, 43.55, 56.59, 100.00, 0.0034, 0.0000, 0.0040),
    ("mnist", "fc1", "relu", "l2", "L-PER+at"): (0.67, 1.40, 4.84, 64.79, 0.2855, 0.1056, 0.2910),
    ("mnist", "cnn", "relu", "l2", "KW"): (1.11, 2.05, 5.84, 100.00, 0.2825, 0.0000, 0.2861),
    ("mnist", "cnn", "relu", "l2", "L-PER"): (1.02, 1.87, 5.04, 100.00, 0.2849, 0.0000, 0.2882),
    ("mnist", "fc1", "sigmoid", "linf", "L-PER"): (1.97, 7.55, 12.15, 84.76, 0.0879, 0.0152, 0.0930),
    ("mnist", "fc1", "tanh", "linf", "L-PER"): (2.19, 7.71, 11.55, 57.81, 0.0885, 0.0422, 0.0934),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: a model file, what the thesis calls it, whether perturbed pixels stay in [0, 1], the method of CRE Lin."""

    file: str
    key: tuple[str, ...]
    eps: float
    clip: bool
    linear: str

    @property
    def name(self) -> str:
        """What the line's results are called."""
        return self.file.removesuffix(".onnx") + ("" if self.clip else "_unclipped")

    @property
    def settings(self) -> Settings:
        """The methods and the region of this line."""
        # The index holds eps to ten digits; 2/255 is meant.
        eps = 2 / 255 if math.isclose(self.eps, 2 / 255, rel_tol=1e-6) else self.eps
        return Settings(eps, 2.0 if self.key[3] == "l2" else math.inf, self.clip, ("ibp", *LINEAR[self.key[2]], "pgd"))

    def job(self, models: Path, data: Path, results: Path) -> Job:
        """The evaluation of this line over all images there are."""
        return Job(models / self.file, self.key[0], data / self.key[0], self.settings, out=results / f"{self.name}.jsonl")


def rows(models: Path, only: str) -> Iterator[Row]:
    """The lines of all tables whose name contains `only`: MNIST first, small networks first, those that keep the attack busy last."""
    with (models / "index.csv").open() as file:
        entries = list(csv.DictReader(file))
    long = ("plain", "AT")
    entries.sort(key=lambda e: (e["dataset"] != "mnist", e["norm"] == "l2", e["architecture"] != "fc1", e["thesis_row"] in long))
    for entry in entries:
        key = tuple(entry[name] for name in ("dataset", "architecture", "activation", "norm", "thesis_row"))
        for clip, linear in itertools.product((True, False) if entry["norm"] == "l2" else (True,), LINEAR[entry["activation"]]):
            row = Row(entry["file"], key, float(entry["eps"]), clip, linear)
            if only in row.name:
                yield row


@dataclass(frozen=True)
class Line:
    """What was found for a row: its evaluation, and ACB PEC where that has been worked out."""

    row: Row
    found: Evaluation
    radius: float | None


def figures(line: Line) -> dict[str, float | None]:
    """The columns of a line."""
    found, linear = line.found, line.row.linear
    errors, bounds = found.certified_error, found.average_certified_bound
    values = (found.clean_error, found.pgd_error, errors[linear], errors["ibp"], bounds[linear], bounds["ibp"], line.radius)
    return dict(zip(COLUMNS, values, strict=True))


def beyond(row: Row, column: str, difference: float) -> bool:
    """Whether a figure is further from the printed one than allowed; bounds that exploit more than the thesis's may only be better."""
    tolerance = (TOLERANCES | (L2 if row.key[3] == "l2" else {}) | (NON_RELU if row.key[2] != "relu" else {})).get(column)
    if tolerance is None:
        return False
    better = difference < 0 if column.startswith("CRE") else difference > 0
    stronger = row.key[2] != "relu" or (row.key[3] == "l2" and row.clip)
    if better and stronger and column != "CTE":
        return False
    return abs(difference) > tolerance + 1e-9


CIFAR10_IMAGES = 1000
"""As many of CIFAR-10's test images are at hand."""


def cell(row: Row, column: str, value: float | None, printed: float, images: int, test_size: int) -> str:
    """A figure, its difference from the printed one, and a flag where that is too large; no comparison over a part of the images at hand."""
    if value is None:
        return "-"
    digits = 4 if column.startswith("ACB") else 2
    sample = row.key[0] == "cifar10" and images == CIFAR10_IMAGES
    if images != test_size and not sample:
        return f"{value:.{digits}f}"
    difference = round(value - printed, digits) + 0.0  # no minus zero
    flag = " **!**" if beyond(row, column, difference) and not sample else ""
    if flag and column == "CTE" and abs(value - KNOWN_CTE.get(row.file, math.inf)) <= TOLERANCES["CTE"]:
        flag = " (known)"
    return f"{value:.{digits}f} ({difference:+.{digits}f}){flag}"


HEADS = (
    "model",
    "images",
    "CTE %",
    "PGD %",
    "CRE Lin/CRO %",
    "CRE IBP %",
    "ACB Lin/CRO",
    "ACB IBP",
    "ACB PEC",
    "ms/image Lin",
    "ms/image IBP",
)


def table(done: Sequence[Line], test_size: int = 10000) -> str:
    """The Markdown table. Figures over fewer than `test_size` images are not compared, but for CIFAR-10."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    for line in done:
        row, found = line.row, line.found
        name = row.file.removesuffix(".onnx") + ("" if row.key[3] != "l2" else ", clipped" if row.clip else ", not clipped")
        name += f", by `{row.linear}`" if row.key[2] != "relu" else ""
        pairs = zip(figures(line).items(), PRINTED[row.key], strict=True)
        cells = [cell(row, column, value, printed, found.images, test_size) for (column, value), printed in pairs]
        times = [f"{1000 * found.seconds[method] / found.images:.2f}" for method in (row.linear, "ibp")]
        lines.append("| " + " | ".join([name, str(found.images), *cells, *times]) + " |")
    return "\n".join(lines)


INTRODUCTION = """# Thesis Tables 3.6 to 3.8

Made by

    python -m benchmarks.thesis_tables --models ../shared/models --data ../shared/data --results results/thesis --write docs/thesis_tables.md

Every figure is followed by its difference from the printed one (ours minus theirs). CTE: clean error. PGD: error under attack, a lower bound of
the robust error, every hit replayed on the original model; the attack is ours, so the column need not agree. CRE: certified robust error, the
share of images that are not both correctly classified and proven. ACB: average certified bound of the one-shot certifier; PEC: with the
polyhedral envelope ([envelope.md](envelope.md)). eps is 0.1 (l-inf), 0.3 (l2), 2/255 (CIFAR-10). **!** marks what is further off than 0.02
(CTE), 0.15 points (CRE; 0.3 for sigmoid and tanh) or 0.0003 (ACB; PEC of sigmoid, tanh and l2 0.0005); better is never too far where our bounds
use more than the thesis's (l2 clipped, sigmoid and tanh). (known): three files are not quite the printed network. Of CIFAR-10 there are 1,000
images here: differences from the printed figures, over 10,000, carry a sampling error of about 1.5 points (CRE) or 0.0001 (ACB) and are not
marked. Times are wall time on one core of a shared, busy machine, bounds only.

- `ibp` folds the margins into the last layer before it bounds them. Without that CRE IBP is far from the tables (first 1,000 images, folded
  against not: fc1 KW 76.6 / 99.7, fc1 IBP 19.1 / 97.5, CNN IBP 9.7 / 61.6, CNN CROWN-IBP 7.5 / 25.6), so this is what `evaluate` does.
- `fastlin` is Fast-Lin alone: hidden intervals are not cut with interval propagation's.
- Float32 rounding is inside every bound; margins that it leaves within rounding of zero are proven again in float64. Without that step
  CRE IBP of fc1 KW is 69.32 instead of 69.20.
- l2: "clipped" rows use the exact intersection of ball and [0, 1] for every layer, "not clipped" rows the ball alone. The printed figures
  agree with neither but with a mixture: hidden intervals on the ball alone, and only the margins' planes minimised over ball and [0, 1], as in
  the polyhedral envelope. `--l2` computes that: fc1 L-PER+at CRE Lin 4.84 (printed 4.84), ACB PEC 0.2910 (0.2910); CNN KW, whose file is not
  the printed network, CRE Lin 4.63 (5.84). CNN L-PER: 9.35 (5.04), ACB PEC 0.2776 (0.2882), although the clean error agrees: this file, too, seems to
  be another network than the printed one. With the exact intersection it is 4.15.
- tanh: thesis (3.5), the planes of the printed CRE CRO, gives 12.94 in place of 11.55. The published code adds 1e-6 to the numerator and the
  denominator of t1 in Table 3.1; with secant slopes d below 1e-3 that moves the point: at d = 1e-4 to -2.3 from -5.3, where the line is above
  tanh by 0.02 and bounds nothing. The code as published sets slopes below 1e-2 to zero, which hides this and gives 13.10 (float32, 10,000
  images); without that step it "certifies" all but 3.60, fewer errors than the attack finds, and with the step at 1e-5 all but 11.62. For the
  sigmoid the same constants do no harm, and (3.5) gives the printed figure. Slopes optimised for every image and margin (`alpha`, 20 steps) reach
  11.19 soundly.
- `crown` on sigmoid and tanh: CROWN's own planes, tangents from the far end of an interval around 0, give 14.46 (tanh) and 12.93 (sigmoid). Here
  such a plane gives way to the tangent 0.7 of the way up where its point of contact comes before that.

"""


def by_thesis_convention(row: Row, models: Path, data: Path) -> tuple[float, float]:
    """CRE Lin in percent and ACB PEC over all images: hidden intervals on the ball alone, margins on ball and [0, 1], float64."""
    import torch

    from bounds.crown import FastLin
    from bounds.envelope import certified_radius
    from bounds.network import Network
    from bounds.region import LpBall
    from verify.datasets import load_dataset
    from verify.spec import class_margins

    network, images = Network.from_onnx(models / row.file), load_dataset(row.key[0], data / row.key[0])
    certified, total = 0, 0.0
    for start in range(0, len(images), 32):
        part = slice(start, min(start + 32, len(images)))
        x = torch.from_numpy(images.pixels(part, network.input_shape))
        labels = torch.from_numpy(images.labels[part].astype("int64"))
        right = network(x).flatten(1).argmax(1) == labels
        x, goal = x[right], class_margins(labels[right], network.outputs)
        found = FastLin(dtype=torch.float64)(network, LpBall(x, row.eps, 2.0), goal.C)
        if found.linear is not None:
            clipped = LpBall(x, row.eps, 2.0, (0.0, 1.0))
            lower = found.linear.concretize(clipped).lower
            certified += int(goal.impossible(lower).all(-1).sum())
            total += float(certified_radius(found.linear, clipped, lower).sum())
    return 100.0 - 100.0 * certified / len(images), total / len(images)


def print_l2(models: Path, data: Path, only: str) -> None:
    """The l2 rows by the thesis's convention."""
    for row in rows(models, only):
        if row.key[3] == "l2" and not row.clip:
            error, radius = by_thesis_convention(row, models, data)
            printed = PRINTED[row.key]
            print(f"{row.file}: CRE Lin {error:.2f} (printed {printed[2]:.2f}), ACB PEC {radius:.4f} ({printed[6]:.4f})", flush=True)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--results", type=Path, default=Path("results/thesis"))
    parser.add_argument("--only", default="", help="part of the names to run")
    parser.add_argument("--report", action="store_true", help="print what is there without working further")
    parser.add_argument("--envelope", action="store_true", help="work on ACB PEC only, as far as the other columns go")
    parser.add_argument("--l2", action="store_true", help="CRE Lin and ACB PEC of the l2 rows by the thesis's convention")
    parser.add_argument("--write", type=Path, help="also write the page with the table here")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)

    import torch

    torch.set_num_threads(1)
    if options.l2:
        print_l2(options.models, options.data, options.only)
        return
    done = []
    for row in rows(options.models, options.only):
        job = row.job(options.models, options.data, options.results)
        try:
            found = job.finished() if options.report or options.envelope else job.run(Limits(options.device), _tell(row))
            radius = average_radius(job, LINEAR[row.key[2]], None if options.report else _tell_radii(row))
        except RingfenceError as error:
            sys.exit(str(error))
        if found.images:
            done.append(Line(row, found, radius))
    print(table(done))
    if options.write:
        write_atomically(options.write, f"{INTRODUCTION}{table(done)}\n".encode())


def _tell(row: Row):  # type: ignore[no-untyped-def]
    """Progress as one line now and then."""

    def show(found: Evaluation) -> None:
        if found.images % 1000 == 0 or found.complete:
            sys.stderr.write(f"{row.file} clip={row.clip}: {found.images} of {found.requested}, {dict(found.certified_error)}\n")

    return show


def _tell_radii(row: Row):  # type: ignore[no-untyped-def]
    """The same for radii."""

    def show(done: int) -> None:
        if done % 1000 == 0:
            sys.stderr.write(f"{row.file} clip={row.clip}: radii of {done} images\n")

    return show


if __name__ == "__main__":
    main()
