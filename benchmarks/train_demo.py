"""Train the network of the demo and write everything the demo reads.

    python -m benchmarks.train_demo DATA_DIR [DEMO_DIR]

DATA_DIR holds the MNIST training and test images and labels as gzipped IDX files. The network is a small convolutional one, trained with
the sum of the ordinary loss and the loss of the worst outputs that interval bounds allow (Gowal et al. 2018, "On the effectiveness of
interval bound propagation for training verifiably robust models", equation 9), so that it resists perturbations of about `EPS`.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 0.05
EPOCHS = 7
WARM_UP_EPOCHS = 4
BATCH = 128
SEED = 0
IMAGES = (0, 1, 2, 61, 359, 449, 149, 217)
"""Test images of the demo: easy ones first, one that an attack breaks last."""


def read_idx(path: Path, header: int) -> np.ndarray:
    """The bytes of a gzipped IDX file behind its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)


def read_split(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 28, 28) and labels (count,), both uint8."""
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    return images, read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 8)


def pixels(images: np.ndarray) -> Tensor:
    """Images as float32 tensors (count, 1, 28, 28) in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32) / np.float32(255)).unsqueeze(1)


def build() -> nn.Sequential:
    """Two strided convolutions and two dense layers, 53,090 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def worst_logits(model: nn.Sequential, x: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Logits whose label entry is the interval lower bound and whose other entries are upper bounds, over the eps ball clipped to [0, 1].

    For training only: nothing is rounded outward.
    """
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            center = functional.conv2d((lower + upper) / 2, layer.weight, layer.bias, layer.stride, layer.padding)
            radius = functional.conv2d((upper - lower) / 2, layer.weight.abs(), None, layer.stride, layer.padding)
            lower, upper = center - radius, center + radius
        elif isinstance(layer, nn.Linear):
            center = functional.linear((lower + upper) / 2, layer.weight, layer.bias)
            radius = functional.linear((upper - lower) / 2, layer.weight.abs())
            lower, upper = center - radius, center + radius
        else:
            lower, upper = layer(lower), layer(upper)
    true = functional.one_hot(labels, 10).bool()
    return torch.where(true, lower, upper)


def batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of one epoch in random order."""
    return iter(torch.randperm(count, generator=generator).split(BATCH))


def train(images: Tensor, labels: Tensor) -> nn.Sequential:
    """The trained network; the radius and the weight of the worst-case loss grow linearly during the warm-up."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    step, ramp = 0, WARM_UP_EPOCHS * len(images) // BATCH
    for epoch in range(EPOCHS):
        for batch in batches(len(images), generator):
            step += 1
            progress = min(1.0, step / ramp)
            x, y = images[batch], labels[batch]
            loss = functional.cross_entropy(model(x), y)
            worst = functional.cross_entropy(worst_logits(model, x, y, progress * EPS), y)
            loss = (1 - 0.4 * progress) * loss + 0.4 * progress * worst
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def vnnlib(image: np.ndarray, label: int, eps: float) -> str:
    """The question "is every image within eps (l-inf, pixels kept in [0, 1]) classified as `label`?" as VNNLIB 1.0 text."""
    x = image.astype(np.float64).ravel() / 255
    lines = [f"; l-inf robustness of a digit {label}, eps {eps}, pixels in [0, 1]", ""]
    lines += [f"(declare-const X_{i} Real)" for i in range(x.size)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(10)]
    for i, value in enumerate(x):
        lines += [f"(assert (>= X_{i} {max(0.0, value - eps):.8f}))", f"(assert (<= X_{i} {min(1.0, value + eps):.8f}))"]
    others = "".join(f"\n  (and (>= Y_{k} Y_{label}))" for k in range(10) if k != label)
    return "\n".join([*lines, f"(assert (or{others}\n))", ""])


def to_onnx(model: nn.Sequential) -> bytes:
    """The network as ONNX with a dynamic batch, without the exporter's notes on where each node came from."""
    shapes = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 1, 28, 28),),
            input_names=["image"],
            output_names=["scores"],
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=18,
            verbose=False,
        )
    if program is None:
        raise SystemExit("the exporter returned no program")
    proto = program.model_proto
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del part.metadata_props[:]
    return proto.SerializeToString()


def main() -> None:
    """Train, export and choose the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("demo", type=Path, nargs="?", default=Path("demo"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = read_split(arguments.data, "train")
    model = train(pixels(images), torch.from_numpy(labels.astype(np.int64)))
    test_images, test_labels = read_split(arguments.data, "t10k")
    accuracy = (model(pixels(test_images)).argmax(dim=1).numpy() == test_labels).mean()
    print(f"test accuracy {100 * accuracy:.2f} %")
    (arguments.demo / "network.onnx").write_bytes(to_onnx(model))
    chosen = list(IMAGES)
    np.savez_compressed(arguments.demo / "images.npz", images=test_images[chosen], labels=test_labels[chosen], indices=np.array(chosen))
    for name, index in (("robust", chosen[0]), ("fragile", chosen[-1])):
        (arguments.demo / f"{name}.vnnlib").write_text(vnnlib(test_images[index], int(test_labels[index]), EPS))


if __name__ == "__main__":
    main()
