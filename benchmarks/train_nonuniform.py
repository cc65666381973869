"""Train the two networks of the like-for-like row of thesis Table 3.2: MNIST, three hidden layers of 100, pixels in [-1, 1].

    python -m benchmarks.train_nonuniform --data ../shared/data [--out results/nonuniform]

Writes vanilla.onnx (ordinary training) and robust.onnx (adversarial training by projected gradient descent, l-inf, eps 0.1 in units of the
[-1, 1] pixels) and prints test accuracies. A network that is there already is only tested. Seeded; two to six minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bounds.network import Network
from verify.datasets import load_dataset

EPS, STEPS = 0.1, 7
EPOCHS, BATCH, RATE, SEED = 20, 128, 1e-3, 0
KINDS = ("vanilla", "robust")
Model = Callable[[Tensor], Tensor]


def pixels(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images (count, 784) in [-1, 1] and labels."""
    data = load_dataset("mnist", folder, split)
    images = torch.from_numpy(data.images.reshape(len(data), -1).astype("float32")) / 255 * 2 - 1
    return images, torch.from_numpy(data.labels.astype("int64"))


def build() -> nn.Sequential:
    """784-100-100-100-10."""
    widths, layers = (784, 100, 100, 100, 10), list[nn.Module]()
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def attack(model: Model, x: Tensor, labels: Tensor, steps: int = STEPS) -> Tensor:
    """Projected gradient descent from a random point of the ball, clipped to [-1, 1]."""
    point = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(-1, 1)
    for _ in range(steps):
        point.requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(point), labels), point)
        moved = point.detach() + 2.5 * EPS / steps * gradient.sign()
        point = torch.minimum(torch.maximum(moved, x - EPS), x + EPS).clamp(-1, 1)
    return point


def accuracy(model: Model, x: Tensor, labels: Tensor) -> float:
    """Share of right answers, in percent."""
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == labels).float().mean())


def train(kind: str, x: Tensor, labels: Tensor) -> nn.Sequential:
    """One network."""
    torch.manual_seed(SEED)
    model = build()
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(BATCH):
            batch, wanted = x[chosen], labels[chosen]
            shown = attack(model, batch, wanted) if kind == "robust" else batch
            optimiser.zero_grad()
            functional.cross_entropy(model(shown), wanted).backward()
            optimiser.step()
        schedule.step()
    return model.eval()


def export(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write the network as an ONNX file."""
    program = torch.onnx.export(model, (example,), dynamo=True, verbose=False)
    if program is not None:
        program.save(str(path))


def main() -> None:
    """Train, test and write both networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("results/nonuniform"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    x, labels = pixels(options.data, "train")
    test, wanted = pixels(options.data, "test")
    for kind in KINDS:
        begin = time.process_time()
        path = options.out / f"{kind}.onnx"
        if not path.exists():
            export(train(kind, x, labels), test[:1], path)
        model = Network.from_onnx(path)
        clean = accuracy(model, test, wanted)
        robust = accuracy(model, attack(model, test, wanted, 20), wanted)
        print(f"{kind}: test accuracy {clean:.2f} %, under PGD {robust:.2f} %, {time.process_time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
