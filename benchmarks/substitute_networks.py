"""The networks of the benchmark of local substitutes, trained on MNIST.

    fc, cnn          64 and 176 to 275 ReLUs: small enough that programs with all binaries end; most of their neurons are unstable on relevant balls
    fc_stable        768 ReLUs in two dense layers
    cnn_stable       4,804 ReLUs: the MNIST architecture of the paper (16 and 32 channels, a dense layer of 100)

"plain" is trained as usual, "at" against projected gradient steps, "stable" against them and for neurons that keep their state: with interval
bounds [l, u] of every pre-activation on a ball around each training image, the loss gains - weight * sum tanh(1 + l u), and an l1 norm of the
parameters. On such networks programs with all binaries are within reach although the networks are large.

Reference: Xiao et al., "Training for faster adversarial robustness verification via inducing ReLU stability", ICLR 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.train_demo import pixels, read_split, to_onnx

BATCH = 128


@dataclass(frozen=True)
class Training:
    """eps: radius of the attack in training (0: none), of `steps` steps of `stride` eps; stable: weight of the stability term on balls of radius `ball`,
    reached half-way; l1: weight of the parameters' absolute sum; rate: of Adam."""

    eps: float = 0.0
    steps: int = 4
    stride: float = 0.4
    stable: float = 0.0
    ball: float = 0.0
    l1: float = 0.0
    rate: float = 3e-3
    epochs: int = 3


def dense(*widths: int) -> nn.Sequential:
    """Dense layers with ReLUs between them, behind the pixels."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip((784, *widths), (*widths, 10), strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small_convolutional() -> nn.Sequential:
    """Two small convolutions and a hidden layer of 32."""
    convolutions = (nn.Conv2d(1, 3, 5, stride=4, padding=1), nn.ReLU(), nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*convolutions, nn.Linear(6 * 16, 32), nn.ReLU(), nn.Linear(32, 10))


def convolutional() -> nn.Sequential:
    """The MNIST architecture of the paper: 166,406 parameters."""
    first, second = nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.Conv2d(16, 32, 4, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10))


PLAIN, ADVERSARIAL = Training(), Training(eps=0.1)
NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], Training]] = {
    "fc_plain": (lambda: dense(32, 32), PLAIN),
    "fc_at": (lambda: dense(32, 32), ADVERSARIAL),
    "cnn_plain": (small_convolutional, PLAIN),
    "cnn_at": (small_convolutional, ADVERSARIAL),
    "fc_stable": (lambda: dense(512, 256), Training(0.1, 3, 0.5, stable=1e-2, ball=0.12, l1=3e-5, rate=2e-3, epochs=2)),
    "cnn_stable": (convolutional, Training(0.03, 3, 0.5, stable=1e-2, ball=0.08, l1=3e-5, rate=2e-3, epochs=2)),
}


def train(name: str, images: Tensor, labels: Tensor) -> nn.Sequential:
    """The network of that name."""
    build, settings = NETWORKS[name]
    torch.manual_seed(0)
    generator, model = torch.Generator().manual_seed(0), build()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    step, half = 0, settings.epochs * len(images) / BATCH / 2
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            x, y, step = images[batch], labels[batch], step + 1
            moved = attacked(model, x, y, settings)
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(moved), y)
            if settings.stable > 0:
                loss = loss + min(1.0, step / half) * settings.stable * instability(model, x, settings.ball)
                loss = loss + settings.l1 * torch.stack([p.abs().sum() for p in model.parameters()]).sum()
            loss.backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def attacked(model: nn.Module, x: Tensor, y: Tensor, settings: Training) -> Tensor:
    """Projected gradient steps in the l-inf ball of radius eps, inside the domain."""
    moved, eps = x, settings.eps
    for _ in range(settings.steps if eps > 0 else 0):
        start = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(start), y), start)
        moved = (x + (start + settings.stride * eps * gradient.sign() - x).clamp(-eps, eps)).clamp(0, 1).detach()
    return moved


def instability(model: nn.Sequential, x: Tensor, radius: float) -> Tensor:
    """- sum tanh(1 + l u) over the ReLUs, mean over the batch."""
    lower, upper = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
    total = torch.zeros(())
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            center, width = layer((lower + upper) / 2), (upper - lower) / 2
            if isinstance(layer, nn.Linear):
                width = functional.linear(width, layer.weight.abs())
            else:
                width = functional.conv2d(width, layer.weight.abs(), None, layer.stride, layer.padding)
            lower, upper = center - width, center + width
        else:
            if isinstance(layer, nn.ReLU):
                total = total - torch.tanh(1 + lower * upper).flatten(1).sum(1).mean()
            lower, upper = layer(lower), layer(upper)
    return total


def train_all(folder: Path, data: Path) -> None:
    """Every network that is not there yet, as ONNX files."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = read_split(data, "train")
    test_images, test_labels = read_split(data, "t10k")
    for name in NETWORKS:
        path = folder / f"{name}.onnx"
        if not path.exists():
            model = train(name, pixels(images), torch.from_numpy(labels.astype(np.int64)))
            accuracy = float((model(pixels(test_images)).argmax(1).numpy() == test_labels).mean())
            path.write_bytes(to_onnx(model))
            print(f"{name}: test accuracy {100 * accuracy:.2f} %", flush=True)
