"""Fast-Lin, interval propagation and the envelope against the thesis authors' published code, on its checkpoints and the same test images.

    python -m benchmarks.thesis_authors --models ../shared/models --data ../shared/data [--only cnn] [--write FILE]

Their figures were measured once, on one core of the same kind of machine, image by image. Each network runs in a fresh process here, image by
image too (`--batch 1`) or as `ringfence evaluate` does it (the default); CPU seconds, and the most memory the process ever held. Their l2 bounds
leave the pixel box out until the envelope; networks with that norm have a row more in which ours do the same.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verify.witness import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from bounds.linear import LinearBounds
    from bounds.region import LpBall


@dataclass(frozen=True)
class Theirs:
    """What the published code gave: images proven by Fast-Lin, by interval propagation and fully by the envelope, the mean certified radius,
    seconds of the three, peak megabytes."""

    file: str
    images: int
    fastlin: int
    ibp: int
    pec: int
    radius: float
    seconds: tuple[float, float, float]
    megabytes: int


THEIRS = (
    Theirs("mnist_fc1_relu_linf_kw", 200, 177, 58, 177, 0.09364, (0.75, 0.79, 3.7), 325),
    Theirs("mnist_fc1_relu_linf_l-per", 200, 177, 9, 177, 0.09471, (0.81, 0.89, 3.9), 322),
    Theirs("mnist_cnn_relu_linf_kw", 200, 195, 0, 195, 0.09876, (29, 46, 113), 1307),
    Theirs("mnist_cnn_relu_linf_plain", 200, 0, 0, 0, 0.0, (29, 47, 113), 1293),
    Theirs("mnist_cnn_relu_linf_l-per+at", 200, 189, 0, 189, 0.09662, (29, 44, 112), 1275),
    Theirs("mnist_cnn_relu_l2_kw", 100, 97, 0, 98, 0.29480, (16, 24, 56), 1277),
    Theirs("mnist_fc1_sigmoid_linf_l-per", 100, 86, 9, 86, 0.09283, (0.42, 0.44, 3.1), 331),
    Theirs("mnist_fc1_tanh_linf_l-per", 100, 89, 39, 90, 0.09466, (0.41, 0.44, 3.2), 325),
)
HEADS = ("network", "images", "by", "Fast-Lin", "IBP", "PEC full", "ACB PEC", "ms/image Lin", "IBP", "PEC", "peak MB")


def ours(name: str, count: int, batch: int, models: Path, data: Path, boxed: bool) -> dict[str, Any]:
    """The same figures by this package; runs in a process of its own. boxed: bounds respect the pixel box, too, as the envelope always does."""
    import torch

    torch.set_num_threads(1)
    from bounds.envelope import certified_radius
    from bounds.network import Network
    from bounds.region import LpBall
    from verify import provers
    from verify.datasets import load_dataset

    pixels = (0.0, 1.0)
    if not boxed:

        def boxed_radius(planes: LinearBounds, ball: LpBall, lower: Tensor) -> Tensor:
            return certified_radius(planes, LpBall(ball.center, ball.eps, ball.p, pixels), lower)

        setattr(provers, "certified_radius", boxed_radius)  # noqa: B010
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network, mnist = Network.from_onnx(models / f"{name}.onnx"), load_dataset("mnist", data / "mnist")
    eps, norm = (0.3, 2.0) if "_l2_" in name else (0.1, math.inf)
    x, labels = torch.from_numpy(mnist.pixels(slice(0, count), network.input_shape)), torch.from_numpy(mnist.labels[:count].astype("int64"))
    right = (network(x).flatten(1).argmax(1) == labels).nonzero().flatten()
    proven, total, seconds = {"fastlin": 0, "ibp": 0, "pec": 0}, 0.0, {"fastlin": 0.0, "ibp": 0.0, "pec": 0.0}
    for part in right.split(batch):
        for method in ("fastlin", "ibp"):
            prover = provers.Prover(method, clock=time.process_time)
            ball = LpBall(x[part], eps, norm, pixels if boxed else None)
            found = prover(network, ball, labels[part], radii=method == "fastlin")
            proven[method] += int((found.margins > 0).sum())
            seconds[method] += found.seconds
            if found.radii is not None:
                total += float(found.radii.sum())
                proven["pec"] += int((found.radii >= eps).sum())
                seconds["pec"] += found.seconds + found.radii_seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return proven | {"radius": total / count, "seconds": seconds, "megabytes": peak / 1024, "imports": start / 1024}


def line(theirs: Theirs, found: dict[str, Any], boxed: bool) -> str:
    """Our row of a network, and what it is in terms of theirs."""
    per_image = [1000 * s / theirs.images for s in theirs.seconds]
    spent = [1000 * found["seconds"][name] / theirs.images for name in ("fastlin", "ibp", "pec")]
    factors = [f"{mine:.2f} ({other / mine:.0f}x)" for mine, other in zip(spent, per_image, strict=True)]
    size = f"{found['megabytes']:.0f} ({found['imports']:.0f} of them imports)"
    proven = found["fastlin"], found["ibp"], found["pec"], f"{found['radius']:.5f}"
    return _row("", "", "ours" if boxed else "ours, bounds without the box", *proven, *factors, size)


def head(theirs: Theirs) -> str:
    """Their row."""
    per_image = (f"{1000 * s / theirs.images:.1f}" for s in theirs.seconds)
    proven = theirs.fastlin, theirs.ibp, theirs.pec, f"{theirs.radius:.5f}"
    return _row(theirs.file, theirs.images, "authors", *proven, *per_image, theirs.megabytes)


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="", help="part of the names to run")
    parser.add_argument("--batch", type=int, default=100, help="images handed over at once")
    parser.add_argument("--write", type=Path, help="also write the table here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--no-box", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        count = next(row.images for row in THEIRS if row.file == options.one)
        json.dump(ours(options.one, count, options.batch, options.models, options.data, not options.no_box), sys.stdout)
        return
    table = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    for theirs in THEIRS:
        if options.only in theirs.file:
            command = [sys.executable, "-m", "benchmarks.thesis_authors", "--one", theirs.file, "--batch", str(options.batch)]
            places = ["--models", str(options.models), "--data", str(options.data)]
            table.append(head(theirs))
            print(table[-1], flush=True)
            for switches in ([], ["--no-box"]) if "_l2_" in theirs.file else ([],):
                printed = subprocess.run(command + places + switches, capture_output=True, text=True, check=True).stdout
                table.append(line(theirs, json.loads(printed), not switches))
                print(table[-1], flush=True)
    if options.write:
        write_atomically(options.write, ("\n".join(table) + "\n").encode())


if __name__ == "__main__":
    main()
