"""Image messages as RGB."""

from __future__ import annotations

import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evspec_ros.errors import FrameError
from evspec_ros.frames.encodings import ENCODINGS, image_to_rgb

CHANNELS = {"rgb8": "rgb", "bgr8": "bgr", "rgba8": "rgba", "bgra8": "bgra", "mono8": "m"}


def message(rgb: NDArray[np.uint8], encoding: str, padding: int) -> tuple[bytes, int]:
    """The data and step of an image; padding and alpha hold bytes that must not be seen."""
    planes = {
        "r": rgb[..., 0],
        "g": rgb[..., 1],
        "b": rgb[..., 2],
        "m": rgb[..., 0],
        "a": np.full(rgb.shape[:2], 99),
    }
    pixels = np.stack([planes[name] for name in CHANNELS[encoding]], axis=-1).astype(np.uint8)
    rows = pixels.reshape(len(rgb), -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return padded.tobytes(), padded.shape[1]


@settings(deadline=None)
@given(
    width=st.integers(1, 9),
    height=st.integers(1, 7),
    padding=st.integers(0, 5),
    encoding=st.sampled_from(ENCODINGS),
    kind=st.sampled_from([bytes, bytearray, memoryview, "array", "numpy"]),
)
def test_every_encoding_step_and_buffer_gives_the_picture(
    width: int, height: int, padding: int, encoding: str, kind: object
) -> None:
    """The pixels written are the pixels read, with padded rows and in whatever the data arrive."""
    rgb = np.random.default_rng(width * 10 + height).integers(0, 256, (height, width, 3), np.uint8)
    if encoding == "mono8":
        rgb[..., 1:] = rgb[..., :1]
    data, step = message(rgb, encoding, padding)
    buffer = {"array": lambda: array.array("B", data), "numpy": lambda: np.frombuffer(data, np.uint8)}.get(
        kind,
        lambda: kind(data),  # type: ignore[arg-type, operator]
    )()
    image = image_to_rgb(buffer, width, height, encoding, step)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, rgb)


@pytest.mark.parametrize("padding", [0, 6])
def test_rgb_is_not_copied(padding: int) -> None:
    """An rgb8 image is the message's own memory."""
    data = np.zeros(2 * (9 + padding), np.uint8)
    image = image_to_rgb(data, 3, 2, "rgb8", 9 + padding)
    assert np.shares_memory(image, data)
    data[9 + padding] = 5
    assert image[1, 0].tolist() == [5, 0, 0]


def test_the_last_row_may_come_without_its_padding() -> None:
    """Some drivers cut the padding behind the last pixel, some send more than the picture: both are read."""
    data = bytes(range(20))
    assert image_to_rgb(data[:11], 3, 2, "mono8", 8)[1, :, 0].tolist() == [8, 9, 10]
    assert image_to_rgb(data, 3, 2, "mono8", 8).shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((bytes(100), 4, 3, "yuv422", 8), "'yuv422' is unknown: known ones are rgb8, bgr8, rgba8, bgra8"),
        ((bytes(35), 4, 3, "rgb8", 12), "rgb8 image of 4 x 3 pixels has 35 bytes .* needs 36 at a step"),
        ((b"", 4, 3, "mono8", 4), r"has 0 bytes"),
        ((bytes(100), 4, 3, "bgra8", 15), r"step of 15 bytes is impossible for an bgra8 image 4 pixels wide"),
        ((bytes(100), 4, 3, "rgb8", 0), r"step of 0 bytes is impossible"),
        ((bytes(100), 0, 3, "rgb8", 12), r"0 x 3 pixels is empty"),
        ((bytes(100), 2**32 - 1, 2**32 - 1, "mono8", 2**32 - 1), r"but needs"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_one_sentence(
    arguments: tuple[bytes, int, int, str, int], message: str
) -> None:
    """Unknown encoding, too little data, impossible step, no pixels."""
    with pytest.raises(FrameError, match=message):
        image_to_rgb(*arguments)
