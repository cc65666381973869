from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from verify.report_pictures import bounding_map, counterexample, image, png


def drawn(uri: str) -> np.ndarray:
    """The pixels (height, width, 3) of a data URI, by another library."""
    prefix, _, data = uri.partition(",")
    assert prefix == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_read_back_by_another_library(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, channels), np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels))).convert("RGB")), np.broadcast_to(pixels, (9, 13, 3)))


def test_png_with_palette() -> None:
    palette = np.array([[0, 0, 0], [250, 10, 20], [1, 2, 3]], np.uint8)
    pixels = np.array([[0, 1], [2, 1]], np.uint8)[:, :, None]
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(png(pixels, palette.tobytes()))).convert("RGB")), palette[pixels[:, :, 0]]
    )


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((1, 28, 28), (28, 28, 1)),
        ((1, 1, 28, 28), (28, 28, 1)),
        ((28, 28), (28, 28, 1)),
        ((1, 784), (28, 28, 1)),
        ((784,), (28, 28, 1)),
        ((3, 32, 32), (32, 32, 3)),
        ((1, 3, 32, 32), (32, 32, 3)),
        ((32, 32, 3), (32, 32, 3)),
        ((1, 32, 32, 3), (32, 32, 3)),
        ((28, 28, 1), (28, 28, 1)),
        ((3072,), (32, 32, 3)),
        ((5,), None),
        ((1, 5), None),
        ((1, 1, 1, 5), None),
        ((1, 28, 3), None),
        ((1, 3), None),
        ((2, 28, 28), None),
        ((792,), None),
        ((), None),
    ],
)
def test_what_is_an_image(shape: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    found = image(np.zeros(shape))
    assert (None if found is None else found.shape) == expected


def test_channels_go_where_they_belong() -> None:
    values = np.arange(3 * 32 * 32, dtype=np.float64).reshape(3, 32, 32)
    for array in (values, values.ravel(), values.transpose(1, 2, 0), values[None]):
        found = image(array)
        assert found is not None
        np.testing.assert_array_equal(found, values.transpose(1, 2, 0))


def test_counterexample_of_an_image() -> None:
    center = np.full((1, 28, 28), 0.5)
    x = center.copy()
    x[0, 3, 4], x[0, 5, 6], x[0, 7, 8] = 0.75, 0.25, 0.625
    scores = {"output": np.array([0.0, 1.0, 5.0]), "center_output": np.array([9.0, 1.0, 5.0])}
    found = counterexample({"center": center, "input": x} | scores, None)
    assert found is not None
    assert (found["linf"], found["l2"], found["range"], found["was"], found["now"]) == (0.25, pytest.approx(0.375), [0.0, 1.0], 0, 2)
    assert drawn(found["center"])[0, 0].tolist() == [128, 128, 128]
    assert drawn(found["input"])[3, 4].tolist() == [191, 191, 191]
    changes = drawn(found["difference"]).astype(int)
    more, less, half, same = changes[3, 4], changes[5, 6], changes[7, 8], changes[0, 0]
    assert same[0] == same[1] == same[2] > 200
    assert more[0] > more[2] + 100
    assert less[2] > less[0] + 100
    assert more.sum() < half.sum() < same.sum()
    labelled = counterexample({"center": center, "input": x} | scores, {"label": 7})
    assert labelled is not None
    assert labelled["was"] == 7


def test_values_beyond_pixels_keep_their_range() -> None:
    x = np.linspace(-2.0, 3.0, 784).reshape(1, 28, 28)
    found = counterexample({"input": x}, None)
    assert found is not None
    assert found["range"] == [-2.0, 3.0]
    assert drawn(found["input"])[0, 0, 0] == 0
    assert drawn(found["input"])[-1, -1, 0] == 255
    assert "difference" not in found
    assert found["was"] is None


def test_counterexample_of_a_vector() -> None:
    found = counterexample({"input": np.array([[1.0, 2.0]]), "center": np.array([0.0, 2.5]), "output": np.array([3.0])}, None)
    assert found == {"linf": 1.0, "l2": 1.11803, "output": [3.0], "values": [1.0, 2.0], "middle": [0.0, 2.5]}


def test_counterexample_without_pictures() -> None:
    assert counterexample({"center": np.zeros(3)}, None) is None
    assert counterexample({"input": np.zeros(1000)}, None) == {}
    other_size = counterexample({"input": np.zeros(2), "center": np.zeros(3)}, None)
    assert other_size == {"values": [0.0, 0.0]}
    constant = counterexample({"input": np.full((1, 28, 28), 7.0), "center": np.full((1, 28, 28), 7.0)}, None)
    assert constant is not None
    assert constant["linf"] == 0.0
    assert "center" in constant
    assert "difference" not in constant


def test_bounding_map() -> None:
    radii = np.full((1, 28, 28), 0.1)
    radii[0, 2, 3] = 0.4
    found = bounding_map({"radius_map": radii, "center": np.zeros((1, 28, 28))})
    assert found is not None
    assert found["range"] == [0.1, 0.4]
    assert found["mean"] == pytest.approx(0.1 * 4 ** (1 / 784))
    pixels = drawn(found["map"])
    assert pixels[2, 3].tolist() == [253, 231, 37]
    assert pixels[0, 0].tolist() == [68, 1, 84]
    assert drawn(found["center"]).max() == 0


def test_bounding_map_of_colours_lies_side_by_side() -> None:
    radii = np.stack([np.full((32, 32), value) for value in (0.0, 0.5, 1.0)])
    found = bounding_map({"radius_map": radii})
    assert found is not None
    assert (found["size"], found["mean"]) == ([96, 32], 0.0)
    brightness = drawn(found["map"]).sum(2)
    assert brightness[0, 0] < brightness[0, 40] < brightness[0, 80]


def test_no_map_of_what_is_no_image_or_not_finite() -> None:
    assert bounding_map({"radius_map": np.ones(5)}) is None
    assert bounding_map({"radius_map": np.full((28, 28), np.nan)}) is None
