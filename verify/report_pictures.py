"""Pictures in a report: arrays as small PNG files inside the page, written here so that no imaging package is needed."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_FLAT = {784: (1, 28, 28), 3072: (3, 32, 32)}
"""Images that networks read as one long vector."""
_SMALLEST = 8
"""Least width and height of what is taken for an image."""
_FEW = 64
"""Vectors up to this length are shown as numbers."""
_DIFFERENCE_COLOURS, _MAP_COLOURS = 33, 64
"""Few, as a palette is not compressed."""
_VIRIDIS = (
    (68, 1, 84),
    (71, 45, 123),
    (59, 82, 139),
    (44, 114, 142),
    (33, 145, 140),
    (40, 174, 128),
    (94, 201, 98),
    (173, 220, 48),
    (253, 231, 37),
)
"""Colours of a map from small to large, evenly spaced; they differ in lightness too, so that they survive grey printing and colour blindness."""
_DIVERGING = ((5, 81, 140), (86, 160, 205), (244, 244, 244), (240, 150, 80), (170, 65, 0))
"""Negative, zero, positive."""


def image(array: np.ndarray) -> np.ndarray | None:
    """The array as an image (height, width, channels) with 1 or 3 channels, or None if it is none.

    Leading axes of size 1 are dropped. Channels may come first or last.
    """
    shape: tuple[int, ...] = array.shape
    while len(shape) > 1 and shape[0] == 1 and (len(shape) > 3 or shape[-1] not in (1, 3)):
        shape = shape[1:]
    if len(shape) == 1 and shape[0] in _FLAT:
        shape = _FLAT[shape[0]]
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3:
        return None
    found = array.reshape(shape)
    if shape[2] not in (1, 3) or shape[0] in (1, 3):
        found = found.transpose(1, 2, 0)
    height, width, channels = found.shape
    return found.astype(np.float64) if channels in (1, 3) and min(height, width) >= _SMALLEST else None


def counterexample(arrays: Mapping[str, np.ndarray], question: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the page shows of a counterexample, or None where there is none.

    Pictures `center`, `input` and, if they differ, `difference` as data URIs where the input is an image, else the vectors as numbers where
    they are short;
    `was` and `now`: classes; `linf`, `l2`: distances between center and input; `range`: the values that black and white stand for.
    """
    if "input" not in arrays:
        return None
    x, center = _finite(arrays["input"]), arrays.get("center")
    center = None if center is None or center.size != x.size else _finite(center).reshape(x.shape)
    shown: dict[str, Any] = {}
    if center is not None:
        step = np.abs(x - center)
        shown |= {"linf": _number(step.max()), "l2": _number(math.sqrt(float((step * step).sum())))}
    output = arrays.get("output")
    if output is not None and output.size <= _FEW:
        shown["output"] = [_number(v) for v in output.ravel()]
    picture = image(x)
    if picture is not None:
        shown |= _triple(picture, None if center is None else image(center))
        shown |= _classes(arrays, question)
    elif x.size <= _FEW:
        shown["values"] = [_number(v) for v in x.ravel()]
        if center is not None:
            shown["middle"] = [_number(v) for v in center.ravel()]
    return shown


def _classes(arrays: Mapping[str, np.ndarray], question: Mapping[str, Any] | None) -> dict[str, Any]:
    """The class before and after, as far as they are known; outputs are taken for scores."""
    label = (question or {}).get("label")
    before, after = arrays.get("center_output"), arrays.get("output")
    if label is None and before is not None and before.size > 1:
        label = int(before.argmax())
    return {"was": label, "now": int(after.argmax()) if after is not None and after.size > 1 else None}


def _triple(x: np.ndarray, center: np.ndarray | None) -> dict[str, Any]:
    both = x if center is None else np.stack([x, center])
    low, high = _span(both)
    shown: dict[str, Any] = {"input": _picture(x, low, high), "range": [low, high], "size": [x.shape[1], x.shape[0]]}
    if center is not None:
        shown["center"] = _picture(center, low, high)
        if np.any(x != center):
            shown["difference"] = _difference(x - center)
    return shown


def _span(x: np.ndarray) -> tuple[float, float]:
    """What black and white stand for: 0 and 1 for pixels within them, else the smallest and the largest value."""
    low, high = float(x.min()), float(x.max())
    return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high)


def _picture(x: np.ndarray, low: float, high: float) -> str:
    return _uri(np.rint((x - low) / max(high - low, 1e-30) * 255).astype(np.uint8))


def _difference(step: np.ndarray) -> str:
    """The signed change, scaled to its largest entry: orange more, blue less; for colour images every channel around grey."""
    share = (step / max(float(np.abs(step).max()), 1e-30) + 1) / 2
    if step.shape[2] == 3:
        return _uri(np.rint(share * 255).astype(np.uint8))
    return _uri(np.rint(share * (_DIFFERENCE_COLOURS - 1)).astype(np.uint8), _palette(_DIVERGING, _DIFFERENCE_COLOURS))


def bounding_map(arrays: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """The certified radius of every feature ("radius_map") as a map, its range and its geometric mean; None if the input is no image.

    Channels lie side by side. `center`: the image itself, if it is known.
    """
    radii, center = image(arrays["radius_map"]), image(arrays["center"]) if "center" in arrays else None
    if radii is None or not np.isfinite(radii).all():
        return None
    flat = np.concatenate([radii[:, :, channel] for channel in range(radii.shape[2])], axis=1)
    low, high = float(flat.min()), float(flat.max())
    level = np.rint((flat - low) / max(high - low, 1e-30) * (_MAP_COLOURS - 1)).astype(np.uint8)
    mean = math.exp(float(np.log(flat).mean())) if low > 0 else 0.0
    shown = {} if center is None else {"center": _picture(center, *_span(center))}
    return shown | {
        "map": _uri(level[:, :, None], _palette(_VIRIDIS, _MAP_COLOURS)),
        "range": [low, high],
        "mean": mean,
        "size": [flat.shape[1], flat.shape[0]],
    }


def colour_bar() -> list[str]:
    """The colours of bounding maps from small to large, as CSS colours."""
    return [f"rgb({r}, {g}, {b})" for r, g, b in _VIRIDIS]


def _palette(anchors: Sequence[tuple[int, int, int]], colours: int) -> bytes:
    table = np.array(anchors, np.float64)
    at = np.linspace(0, len(table) - 1, colours)
    return np.stack([np.rint(np.interp(at, np.arange(len(table)), table[:, c])) for c in range(3)], 1).astype(np.uint8).tobytes()


def _uri(pixels: np.ndarray, palette: bytes | None = None) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels, palette)).decode()


def png(pixels: np.ndarray, palette: bytes | None = None) -> bytes:
    """A PNG file of uint8 pixels (height, width, channels): 3 channels are colours, 1 is grey or, with a palette of RGB colours, an index into it.

    Reference: PNG specification, third edition, sections 5 and 11.
    """
    height, width, channels = pixels.shape
    kind = 2 if channels == 3 else 0 if palette is None else 3
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], axis=1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ]
    if palette is not None:
        chunks.insert(1, (b"PLTE", palette))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)


def _finite(array: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.asarray(array, np.float64), posinf=0.0, neginf=0.0)


def _number(value: float) -> float | None:
    """Six digits, which is what is shown; None for NaN and infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
