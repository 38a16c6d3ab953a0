"""Image messages as RGB."""

from __future__ import annotations

import array
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from evspec_ros.errors import FrameError
from evspec_ros.frames.encodings import ENCODINGS, compressed_to_rgb, image_to_rgb, message_to_rgb

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
    encoding=st.sampled_from(list(CHANNELS)),
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
        ((bytes(100), 4, 3, "64FC3", 16), "'64FC3' is unknown: known ones are rgb8, bgr8, rgba8, bgra8"),
        ((bytes(100), 5, 2, "uyvy", 10), "uyvy image of 5 x 2 pixels .*: it must be even in width"),
        ((bytes(100), 4, 3, "nv12", 4), "nv12 image of 4 x 3 pixels .* even in width, even in height"),
        ((bytes(23), 4, 4, "nv21", 4), "nv21 image of 4 x 4 pixels has 23 bytes of data, but needs 24"),
        ((bytes(100), 2, 9, "bayer_rggb8", 2), "bayer_rggb8 image of 2 x 9 .* at least 3 pixels long"),
        ((bytes(100), 4, 4, "mono16", 7), "step of 7 bytes is impossible for an mono16 .* at least 8 bytes"),
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


# Encodings that cameras send, each against a plain reference


def random_bytes(seed: int, *shape: int) -> NDArray[np.uint8]:
    """Any values."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("bigendian", [False, True])
def test_sixteen_bits_become_eight_over_their_full_range(bigendian: bool) -> None:
    """mono16 is divided by 257 and rounded, in both byte orders and with padded rows."""
    values = np.arange(1 << 16).reshape(256, 256)
    data = np.pad(values.astype(">u2" if bigendian else "<u2").view(np.uint8), ((0, 0), (0, 6)))
    image = image_to_rgb(data.reshape(-1), 256, 256, "mono16", 518, bigendian=bigendian)
    np.testing.assert_array_equal(image, np.repeat(np.round(values / 257)[..., None], 3, axis=2))


PATTERNS = {
    "rggb": ((0, 1), (1, 2)),
    "bggr": ((2, 1), (1, 0)),
    "gbrg": ((1, 2), (0, 1)),
    "grbg": ((1, 0), (2, 1)),
}


def demosaiced(mosaic: NDArray[np.uint8], pattern: str) -> NDArray[np.float64]:
    """Bilinear: each colour is the mean of its nearest samples, 1, 2 or 4 of them."""
    height, width = mosaic.shape
    rows, columns = np.mgrid[:height, :width]
    colours = np.array(PATTERNS[pattern])[rows % 2, columns % 2]
    image = np.zeros((height, width, 3))
    for row in range(1, height - 1):
        for column in range(1, width - 1):
            around = np.s_[row - 1 : row + 2, column - 1 : column + 2]
            for colour in range(3):
                near = (colours[around] == colour) / np.array([[2, 1, 2], [1, 0.5, 1], [2, 1, 2]])
                near = near if colours[row, column] != colour else np.pad([[1.0]], 1)
                near = near * (near == near.max())
                image[row, column, colour] = (mosaic[around] * near).sum() / near.sum()
    return image


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bits", [8, 16])
def test_a_bayer_mosaic_is_interpolated(pattern: str, bits: int) -> None:
    """Inside the margin every value is the bilinear one to within rounding, for 8 bits and for 16."""
    mosaic = random_bytes(3, 9, 12)
    data = mosaic if bits == 8 else (mosaic.astype(np.uint16) * 257).view(np.uint8)
    image = image_to_rgb(data.reshape(-1), 12, 9, f"bayer_{pattern}{bits}", 12 * bits // 8)
    difference = image[1:-1, 1:-1] - demosaiced(mosaic, pattern)[1:-1, 1:-1]
    assert abs(difference).max() <= 0.5


def from_yuv(y: Any, u: Any, v: Any) -> NDArray[np.float64]:
    """BT.601, limited range; y below black is black."""
    y, u, v = (1.164383 * (np.maximum(y, 16) - 16.0), u - 128.0, v - 128.0)
    rgb = np.stack([y + 1.596027 * v, y - 0.391762 * u - 0.812968 * v, y + 2.017232 * u], axis=-1)
    return np.asarray(rgb.clip(0, 255))


@pytest.mark.parametrize(
    ("encoding", "places"),
    [("uyvy", "uyvy"), ("yuv422", "uyvy"), ("yuyv", "yuyv"), ("yuv422_yuy2", "yuyv")],
)
def test_packed_yuv_is_converted(encoding: str, places: str) -> None:
    """Two pixels share u and v; the order of the four bytes is that of the encoding's name."""
    packed = random_bytes(4, 5, 3, 4)  # rows, pairs of pixels, bytes
    y = packed[..., [place for place in range(4) if places[place] == "y"]].reshape(5, 6)
    u, v = (np.repeat(packed[..., places.index(name)], 2, axis=1) for name in "uv")
    padded = np.pad(packed.reshape(5, 12), ((0, 0), (0, 4)))
    image = image_to_rgb(padded.reshape(-1), 6, 5, encoding, 16)
    assert abs(image - from_yuv(y, u, v)).max() <= 1.5


@pytest.mark.parametrize(("encoding", "order"), [("nv12", "uv"), ("nv21", "vu")])
def test_planar_yuv_is_converted(encoding: str, order: str) -> None:
    """Four pixels share u and v, which follow the plane of y in rows of the same step."""
    y, chroma = random_bytes(5, 4, 6), random_bytes(6, 2, 3, 2)
    u, v = (chroma[..., order.index(name)].repeat(2, axis=0).repeat(2, axis=1) for name in "uv")
    padded = np.pad(np.concatenate([y, chroma.reshape(2, 6)]), ((0, 0), (0, 2)))
    image = image_to_rgb(padded.reshape(-1), 6, 4, encoding, 8)
    assert abs(image - from_yuv(y, u, v)).max() <= 1.5


@given(
    st.sampled_from(ENCODINGS), st.integers(0, 9), st.integers(0, 9), st.integers(0, 40), st.integers(0, 200),
    st.booleans(),
)  # fmt: skip
@settings(deadline=None)
def test_every_message_is_a_picture_of_its_size_or_refused(
    encoding: str, width: int, height: int, step: int, size: int, bigendian: bool
) -> None:
    """Whatever sides, step and length come together, no other error than FrameError arises."""
    try:
        image = image_to_rgb(bytes(size), width, height, encoding, step, bigendian=bigendian)
    except FrameError:
        return
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8


# Compressed images, written by Pillow


def picture_file(pixels: NDArray[Any], kind: str) -> bytes:
    """A file as Pillow writes it, from grey, 16-bit grey, RGB or RGBA."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(
        buffer, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {})
    )
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["png", "rgb8; png compressed ", "bgr8; png compressed bgr8", ""])
def test_a_png_is_read_exactly(image_format: str) -> None:
    """Grey is repeated, alpha is dropped, colours are those of the file, whatever the format says."""
    for channels in (1, 3, 4):
        pixels = random_bytes(channels, 7, 9, channels)
        image = compressed_to_rgb(picture_file(pixels.squeeze(), "PNG"), image_format)
        np.testing.assert_array_equal(image, pixels[..., [0, 0, 0] if channels == 1 else [0, 1, 2]])


@pytest.mark.parametrize("image_format", ["jpeg", "bgr8; jpeg compressed bgr8", "rgb8; jpeg compressed bgr8"])
def test_a_jpeg_is_read_as_another_decoder_reads_it(image_format: str) -> None:
    """Pillow and this agree to within a rounding of the colour conversion, in colour and in grey."""
    ramps = np.stack(np.meshgrid(np.arange(0, 256, 4), np.arange(0, 256, 8)), axis=-1).astype(np.uint8)
    for pixels in (np.concatenate([ramps, ramps[..., :1] // 2], axis=-1), ramps[..., 0]):
        file = picture_file(pixels, "JPEG")
        expected = np.array(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)
        assert abs(compressed_to_rgb(file, image_format) - expected).max() <= 2


def test_sixteen_bits_in_a_png_become_eight() -> None:
    """A mono16 topic compressed without loss."""
    values = np.arange(0, 1 << 16, 97, dtype=np.uint16)[:660].reshape(22, 30)
    image = compressed_to_rgb(picture_file(values, "PNG"), "mono16; png compressed ")
    np.testing.assert_array_equal(image[..., 1], np.round(values / 257))


def test_a_compressed_mosaic_is_interpolated() -> None:
    """A Bayer pattern is stored as grey: it becomes what the uncompressed one becomes."""
    mosaic = random_bytes(9, 8, 10)
    for bits, stored in ((8, mosaic), (16, mosaic.astype(np.uint16) * 257)):
        image = compressed_to_rgb(picture_file(stored, "PNG"), f"bayer_gbrg{bits}; png compressed ")
        np.testing.assert_array_equal(image, image_to_rgb(mosaic.reshape(-1), 10, 8, "bayer_gbrg8", 10))


@pytest.mark.parametrize(
    ("data", "image_format", "told"),
    [
        (b"", "jpeg", "The 0 bytes of a compressed image of format 'jpeg' are no JPEG, PNG"),
        (b"no picture at all", "png", "The 17 bytes .* are no JPEG"),
        (picture_file(np.zeros((9, 9), np.uint8), "PNG")[:40], "png", "are no JPEG|is damaged"),
        (bytes(99), "16UC1; compressedDepth png", "holds distances; take a colour camera's topic"),
        (picture_file(np.zeros((9, 9), np.float32), "TIFF"), "tiff", "holds float32 values"),
    ],
)
def test_what_is_no_compressed_picture_is_refused_in_one_sentence(
    data: bytes, image_format: str, told: str
) -> None:
    """Nothing, anything else, cut short, depth, real numbers."""
    with pytest.raises(FrameError, match=told):
        compressed_to_rgb(data, image_format)


@given(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["PNG", "JPEG"]))
@settings(deadline=None)
def test_a_damaged_file_is_a_picture_or_refused(at: int, value: int, kind: str) -> None:
    """One wrong byte anywhere raises FrameError or nothing."""
    file = bytearray(picture_file(random_bytes(1, 16, 16, 3), kind))
    file[at % len(file)] = value
    try:
        assert compressed_to_rgb(bytes(file), "").shape[2] == 3
    except FrameError:
        return


def test_both_kinds_of_message_are_told_apart_by_their_fields() -> None:
    """An Image has an encoding and a byte order, a CompressedImage a format."""
    raw = SimpleNamespace(width=2, height=1, encoding="mono16", step=4, is_bigendian=1, data=b"\xff\xff\0\0")
    assert message_to_rgb(raw)[0, :, 0].tolist() == [255, 0]
    file = picture_file(np.array([[255, 0]], np.uint8), "PNG")
    assert message_to_rgb(SimpleNamespace(format="png", data=file))[0, :, 0].tolist() == [255, 0]
