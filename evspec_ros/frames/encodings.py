"""From the pixels of a sensor_msgs/Image, or the file in a sensor_msgs/CompressedImage, to RGB."""

from __future__ import annotations

import array
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from evspec_ros.errors import FrameError

ImageData: TypeAlias = "bytes | bytearray | memoryview | array.array[int] | NDArray[np.uint8]"


@dataclass(frozen=True)
class _PixelLayout:
    """How an encoding lays out its pixels.

    channels: values per pixel; conversion: OpenCV's to RGB, None where it is RGB already; depth: bytes per
    value; width_of, height_of: what the sides must be multiples of; least: their least length; rows: rows of
    data per two rows of the picture.
    """

    channels: int
    conversion: int | None
    depth: int = 1
    width_of: int = 1
    height_of: int = 1
    least: int = 1
    rows: int = 2


def _bayer(conversion: int, depth: int) -> _PixelLayout:
    return _PixelLayout(1, conversion, depth, least=3)  # OpenCV interpolates from 3 x 3 pixels on


# The names are those of sensor_msgs' image_encodings. OpenCV calls a Bayer pattern by the second and third
# pixel of its second row. YUV is BT.601 of limited range, as cameras send it.
_LAYOUTS: dict[str, _PixelLayout] = {
    "rgb8": _PixelLayout(3, None),
    "bgr8": _PixelLayout(3, cv2.COLOR_BGR2RGB),
    "rgba8": _PixelLayout(4, cv2.COLOR_RGBA2RGB),
    "bgra8": _PixelLayout(4, cv2.COLOR_BGRA2RGB),
    "mono8": _PixelLayout(1, cv2.COLOR_GRAY2RGB),
    "mono16": _PixelLayout(1, cv2.COLOR_GRAY2RGB, depth=2),
    "bayer_rggb8": _bayer(cv2.COLOR_BayerBG2RGB, 1),
    "bayer_bggr8": _bayer(cv2.COLOR_BayerRG2RGB, 1),
    "bayer_gbrg8": _bayer(cv2.COLOR_BayerGR2RGB, 1),
    "bayer_grbg8": _bayer(cv2.COLOR_BayerGB2RGB, 1),
    "bayer_rggb16": _bayer(cv2.COLOR_BayerBG2RGB, 2),
    "bayer_bggr16": _bayer(cv2.COLOR_BayerRG2RGB, 2),
    "bayer_gbrg16": _bayer(cv2.COLOR_BayerGR2RGB, 2),
    "bayer_grbg16": _bayer(cv2.COLOR_BayerGB2RGB, 2),
    "uyvy": _PixelLayout(2, cv2.COLOR_YUV2RGB_UYVY, width_of=2),
    "yuv422": _PixelLayout(2, cv2.COLOR_YUV2RGB_UYVY, width_of=2),
    "yuyv": _PixelLayout(2, cv2.COLOR_YUV2RGB_YUY2, width_of=2),
    "yuv422_yuy2": _PixelLayout(2, cv2.COLOR_YUV2RGB_YUY2, width_of=2),
    "nv12": _PixelLayout(1, cv2.COLOR_YUV2RGB_NV12, width_of=2, height_of=2, rows=3),
    "nv21": _PixelLayout(1, cv2.COLOR_YUV2RGB_NV21, width_of=2, height_of=2, rows=3),
}
ENCODINGS: tuple[str, ...] = tuple(_LAYOUTS)
_DISTANCES = re.compile(r"(16|32|64)[USF]C1")  # what depth cameras send, under OpenCV's names
_LABELS = "8UC1"  # a segmentation's, or a mask; a camera's grey is mono8
BGR_TO_RGB = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}  # OpenCV's, by channels


def message_to_rgb(message: Any) -> NDArray[np.uint8]:
    """The picture in a sensor_msgs/Image or CompressedImage as the functions below read it."""
    if hasattr(message, "format"):
        return compressed_to_rgb(message.data, message.format)
    return image_to_rgb(
        message.data,
        message.width,
        message.height,
        message.encoding,
        message.step,
        bigendian=bool(message.is_bigendian),
    )


class Look(IntEnum):
    """What sends such pictures, the higher the more it is a colour camera."""

    HARDLY_A_CAMERA = 0  # 16 bits of grey (distances, heat) or labels
    GREY = 1
    COLOUR = 2


def look_of(message: Any) -> Look:
    """What sends an image message that message_to_rgb can read, by its encoding and a file's content."""
    if hasattr(message, "format"):
        encoding = _encoding_of(message.format)
        picture: Any = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
        grey, deep = picture.ndim == 2, picture.dtype == np.uint16
    else:
        encoding = message.encoding
        grey, deep = encoding in ("mono8", "mono16"), encoding == "mono16"
    if not grey or encoding.startswith("bayer_"):
        return Look.COLOUR
    return Look.HARDLY_A_CAMERA if deep or encoding in ("mono16", _LABELS) else Look.GREY


def image_to_rgb(
    data: ImageData, width: int, height: int, encoding: str, step: int, *, bigendian: bool = False
) -> NDArray[np.uint8]:
    """The picture in an image message as uint8 [height, width, 3], R, G, B.

    step: bytes from one row to the next, padding included; bigendian: byte order of 16-bit encodings. Their
    full range becomes 8 bits, v / 257 rounded, as cv_bridge does it: a camera of 12 bits has to send them as
    the upper ones, or its pictures are dark. For rgb8 the result is a view of `data`, otherwise a new array.

    Raises FrameError for distances, an unknown encoding, sides that it cannot have, a step shorter than a row
    and too little data; what follows the last row is ignored.
    """
    if _DISTANCES.fullmatch(encoding):
        raise FrameError(f"An image of encoding {encoding!r} holds distances; take a colour camera's topic.")
    if encoding not in _LAYOUTS:
        raise FrameError(
            f"The image encoding {encoding!r} is unknown: known ones are {', '.join(ENCODINGS)}."
        )
    layout = _LAYOUTS[encoding]
    _check_sides(layout, width, height, encoding)
    row = width * layout.channels * layout.depth
    if step < row:
        raise FrameError(
            f"The step of {step} bytes is impossible for an {encoding} image {width} pixels wide: "
            f"its rows take at least {row} bytes."
        )
    content = np.frombuffer(data, np.uint8)
    rows = height * layout.rows // 2
    needed = (rows - 1) * step + row  # the last row may come without its padding
    if len(content) < needed:
        raise FrameError(
            f"The {encoding} image of {width} x {height} pixels has {len(content)} bytes of data, "
            f"but needs {needed} at a step of {step}."
        )
    pixels = np.lib.stride_tricks.as_strided(content, (rows, row), (step, 1))
    if layout.depth == 2:
        values = np.ascontiguousarray(pixels).view(">u2" if bigendian else "<u2")
        pixels = eight_bits(values.astype(np.uint16, copy=False))
    image = pixels.reshape(rows, width, layout.channels)
    return (
        image if layout.conversion is None else np.asarray(cv2.cvtColor(image, layout.conversion), np.uint8)
    )


def compressed_to_rgb(data: ImageData, image_format: str) -> NDArray[np.uint8]:
    """The picture in a CompressedImage (JPEG, PNG or what else OpenCV reads) as uint8 [height, width, 3].

    image_format: the message's field `format`, as image_transport writes it: "jpeg", "png" or "ENCODING; jpeg
    compressed bgr8". The file itself tells its kind and colours; of the format counts the encoding, where it
    is a Bayer pattern, which is stored as grey. 16 bits become 8 as in image_to_rgb. Raises FrameError for
    distances ("16UC1; png compressed") and for bytes that are no picture.
    """
    encoding = _encoding_of(image_format)
    if "compresseddepth" in image_format.lower() or _DISTANCES.fullmatch(encoding):
        raise FrameError(
            f"A compressed image of format {image_format!r} holds distances; take a colour camera's topic."
        )
    content = np.frombuffer(data, np.uint8)
    try:
        picture: Any = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if len(content) else None
    except cv2.error as error:
        raise FrameError(
            f"A compressed image of format {image_format!r} is damaged ({error.err})."
        ) from error
    if picture is None:
        raise FrameError(
            f"The {len(content)} bytes of a compressed image of format {image_format!r} are no JPEG, PNG or "
            f"other picture that OpenCV reads."
        )
    if picture.dtype == np.uint16:
        picture = eight_bits(picture)
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    if picture.dtype != np.uint8 or channels not in BGR_TO_RGB:
        raise FrameError(
            f"A compressed image of format {image_format!r} holds {picture.dtype} values in {channels} "
            f"channels; give 8 or 16 bits of grey, RGB or RGBA."
        )
    if channels == 1 and encoding.startswith("bayer_") and encoding in _LAYOUTS:
        height, width = picture.shape[:2]
        return image_to_rgb(picture.reshape(-1), width, height, encoding.replace("16", "8"), width)
    return np.asarray(cv2.cvtColor(picture, BGR_TO_RGB[channels]), np.uint8)


def _encoding_of(image_format: str) -> str:
    """What the pictures were before they were compressed, where the format tells."""
    return image_format.partition(";")[0].strip()


def _check_sides(layout: _PixelLayout, width: int, height: int, encoding: str) -> None:
    if width < 1 or height < 1:
        raise FrameError(f"An image of {width} x {height} pixels is empty: both sides must be at least 1.")
    if min(width, height) < layout.least or width % layout.width_of or height % layout.height_of:
        wanted = [f"at least {layout.least} pixels long"] * (layout.least > 1)
        wanted += ["even in width"] * (layout.width_of > 1) + ["even in height"] * (layout.height_of > 1)
        raise FrameError(
            f"An {encoding} image of {width} x {height} pixels is impossible: it must be {', '.join(wanted)}."
        )


def eight_bits(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """0 to 65535 as 0 to 255."""
    return np.asarray(cv2.convertScaleAbs(values, alpha=1 / 257), np.uint8)
