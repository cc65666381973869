"""The demo: a small network, eight handwritten digits, one question each: does every image within eps get the same class?

python -m demo.run
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from bounds.network import Network
from verify.run import verify
from verify.spec import robustness
from verify.verdict import Falsified, Unknown, Verdict, Verified

FOLDER = Path(__file__).resolve().parent
EPS = 0.05
TIMEOUT = 10.0
SHADES = " .:-=+*#%@"


def main() -> None:
    """Answer every question and show a counterexample."""
    torch.set_num_threads(1)
    network = Network.from_onnx(FOLDER / "network.onnx")
    stored = np.load(FOLDER / "images.npz")
    images = (stored["images"].astype(np.float32) / np.float32(255)).reshape(-1, *network.input_shape)
    print(
        f"A network that reads 28 x 28 pixels in [0, 1], {sum(p.numel() for n in network.nodes for p in n.op.parameters()):,} parameters."
    )
    print(f"Does every image within {EPS} (each pixel) of a digit get the digit's label?\n")
    found: tuple[np.ndarray, int, Falsified] | None = None
    for x, label, index in zip(images, stored["labels"].tolist(), stored["indices"].tolist(), strict=True):
        begin = time.monotonic()
        question = robustness(x, label, EPS, norm=np.inf, outputs=network.outputs)
        verdict = verify(network, question, timeout=TIMEOUT).verdict
        print(f"  test image {index:3d}, a {label}:  {describe(verdict)}  [{time.monotonic() - begin:.2f} s]")
        found = (x, label, verdict) if isinstance(verdict, Falsified) else found
    if found is not None:
        print(f"\n{show(network, *found)}")


def describe(verdict: Verdict) -> str:
    """A verdict in a few words."""
    if isinstance(verdict, Verified):
        margin = "" if verdict.bound is None else f", the label leads by at least {verdict.bound:.3f}"
        return f"verified   by {verdict.decided_by} ({verdict.proof} proof){margin}"
    if isinstance(verdict, Unknown):
        return f"unknown    {verdict.reason}"
    return f"falsified  by {verdict.decided_by}: an image in the region is classified as {int(verdict.y.argmax())}"


def show(network: Network, x: np.ndarray, label: int, verdict: Falsified) -> str:
    """The image and what changes in its counterexample, and what the original model makes of both."""
    if network.original is None:
        raise SystemExit("the network has no original model to replay on")
    before, after = (network.original(point[None].astype(np.float32))[0] for point in (x, verdict.x))
    distance = float(np.abs(verdict.x.astype(np.float64) - x.astype(np.float64)).max())
    seen, now = int(before.argmax()), int(after.argmax())
    lines = [f"{left}   {right}" for left, right in zip(picture(x), changes(x, verdict.x), strict=True)]
    lines.append(f"{f'the image, classified as {seen}':28}   the change: + brighter, - darker")
    lines.append("")
    lines.append(f"Replayed in ONNX Runtime: no pixel moves by more than {distance:.6f}, and the network sees a {now}.")
    lines.append(
        f"The score of {label} goes from {before[label]:.3f} to {after[label]:.3f}, that of {now} from {before[now]:.3f} to {after[now]:.3f}."
    )
    return "\n".join(lines)


def picture(image: np.ndarray) -> list[str]:
    """Pixels as characters, two rows of pixels a line."""
    rows = image.reshape(14, 2, 28).mean(axis=1)
    return ["".join(SHADES[min(int(value * len(SHADES)), len(SHADES) - 1)] for value in row) for row in rows]


def changes(before: np.ndarray, after: np.ndarray) -> list[str]:
    """Where pixels grew (+) and shrank (-) by more than a third of eps; two rows of pixels a line, the larger change of both."""
    pairs = (after.astype(np.float64) - before).reshape(14, 2, 28)
    rows = np.where(np.abs(pairs[:, 0]) > np.abs(pairs[:, 1]), pairs[:, 0], pairs[:, 1])
    return ["".join("+" if value > EPS / 3 else "-" if value < -EPS / 3 else " " for value in row) for row in rows]


if __name__ == "__main__":
    main()
