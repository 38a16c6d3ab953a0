"""From the pixels of a sensor_msgs/Image to RGB."""

from __future__ import annotations

import array
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from evspec_ros.errors import FrameError

ImageData: TypeAlias = "bytes | bytearray | memoryview | array.array[int] | NDArray[np.uint8]"

# encoding -> (channels, OpenCV's conversion to RGB; None where it is RGB already)
_ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}
ENCODINGS: tuple[str, ...] = tuple(_ENCODINGS)


def image_to_rgb(data: ImageData, width: int, height: int, encoding: str, step: int) -> NDArray[np.uint8]:
    """The picture in an image message as uint8 [height, width, 3], R, G, B.

    step: bytes from one row to the next, padding included. For rgb8 the result is a view of `data`, otherwise
    a new array. Raises FrameError for an unknown encoding, an empty picture, a step shorter than a row and
    too little data; what follows the last row is ignored.
    """
    if encoding not in _ENCODINGS:
        raise FrameError(
            f"The image encoding {encoding!r} is unknown: known ones are {', '.join(ENCODINGS)}."
        )
    channels, conversion = _ENCODINGS[encoding]
    row = width * channels
    if width < 1 or height < 1:
        raise FrameError(f"An image of {width} x {height} pixels is empty: both sides must be at least 1.")
    if step < row:
        raise FrameError(
            f"The step of {step} bytes is impossible for an {encoding} image {width} pixels wide: "
            f"its rows take at least {row} bytes."
        )
    pixels = np.frombuffer(data, np.uint8)
    needed = (height - 1) * step + row  # the last row may come without its padding
    if len(pixels) < needed:
        raise FrameError(
            f"The {encoding} image of {width} x {height} pixels has {len(pixels)} bytes of data, "
            f"but needs {needed} at a step of {step}."
        )
    image = np.lib.stride_tricks.as_strided(pixels, (height, width, channels), (step, channels, 1))
    return image if conversion is None else np.asarray(cv2.cvtColor(image, conversion), np.uint8)
