"""CLIP's image preprocessing, equal to the bit to what Pillow and transformers compute, without either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from evspec_ros.errors import CheckpointError, FrameError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Pillow resamples 8-bit images in fixed point (libImaging/Resample.c) with Keys' bicubic kernel, a = -0.5.
PRECISION_BITS = 32 - 8 - 2
LOWER_BITS = 12  # of a weight, as `ResizeFilter.halves` parts it
_SUPPORT = 2.0
_PIL_BICUBIC = 3
_RESCALE_FACTOR = 1 / 255


class ClipPreprocessor:
    """Shortest side to `size` (bicubic, antialiased), centre crop to size x size, 1/255, mean and std.

    Pixels are those of Pillow resizing the width first and then the height, as every Pillow before 13 does;
    Pillow 13 turns the order round for some images that are taller than wide.
    """

    def __init__(
        self,
        size: int,
        mean: tuple[float, float, float] = CLIP_MEAN,
        std: tuple[float, float, float] = CLIP_STD,
    ) -> None:
        self.size = size
        self.mean = mean
        self.std = std
        levels = (np.arange(256) * _RESCALE_FACTOR).astype(
            np.float32
        )  # float32 from here on, as in transformers
        mean_column, std_column = np.array([mean, std], np.float32)[:, :, None]  # [3, 1] each
        self.normalised = (levels - mean_column) / std_column  # [3, 256], what each level becomes

    @classmethod
    def from_config(cls, preprocessor_config: Mapping[str, Any]) -> ClipPreprocessor:
        """The preprocessor that a Hugging Face preprocessor_config.json describes.

        Raises CheckpointError, naming the key, if the recipe is not CLIP's or a value cannot be used.
        """
        for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if preprocessor_config.get(step, True) is not True:
                raise _unusable(step, preprocessor_config[step], "true")
        resample = preprocessor_config.get("resample", _PIL_BICUBIC)
        if resample != _PIL_BICUBIC:
            raise _unusable("resample", resample, "3 (bicubic)")
        factor = preprocessor_config.get("rescale_factor", _RESCALE_FACTOR)
        if not isinstance(factor, float) or abs(factor - _RESCALE_FACTOR) > 1e-9:
            raise _unusable("rescale_factor", factor, "1/255")

        size = _edge(preprocessor_config, "size", "shortest_edge")
        crop = preprocessor_config.get("crop_size", size)
        if crop not in (size, {"height": size, "width": size}):
            raise _unusable("crop_size", crop, f"{size}, as size")
        return cls(
            size,
            _channels(preprocessor_config, "image_mean", CLIP_MEAN),
            _channels(preprocessor_config, "image_std", CLIP_STD),
        )

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Float32 [N, 3, size, size] from N RGB images, uint8 [height, width, 3] of any sizes.

        Raises FrameError for an array of another shape or dtype.
        """
        pixels = np.empty((len(images), 3, self.size, self.size), np.float32)
        for image, out in zip(images, pixels, strict=True):
            _normalise(self.resize(image), self.normalised, out)
        return pixels

    def resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The centre of an RGB image [height, width, 3] as uint8 [size, size, 3], before normalisation."""
        require_rgb(image)
        height, width = image.shape[:2]
        columns, rows = self.filters(height, width)

        # Width first, then height. Both passes run along the first axis, whose inner loop is contiguous.
        needed = np.ascontiguousarray(image[rows.first : rows.last])
        turned = cv2.transpose(needed).reshape(width, -1)  # [W, needed H * 3]
        narrow = np.empty((self.size, turned.shape[1]), np.uint8)
        _resample(turned, columns.starts, columns.weights, 0, narrow)
        upright = cv2.transpose(narrow.reshape(self.size, -1, 3)).reshape(
            len(needed), -1
        )  # [needed H, size * 3]
        resized = np.empty((self.size, self.size * 3), np.uint8)
        _resample(upright, rows.starts, rows.weights, rows.first, resized)
        return resized.reshape(self.size, self.size, 3)

    def filters(self, height: int, width: int) -> tuple[ResizeFilter, ResizeFilter]:
        """Those that resize and crop an image: along its width, then along its height."""
        shortest = min(height, width)
        return (
            _filter(width, self.size * width // shortest, self.size),
            _filter(height, self.size * height // shortest, self.size),
        )


def require_rgb(image: NDArray[Any]) -> None:
    """Raise FrameError for what is no uint8 RGB image [height, width, 3]."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise FrameError(
            f"An image of shape {image.shape} and type {image.dtype} cannot be preprocessed: "
            "it must be uint8 RGB [height, width, 3]."
        )


@dataclass(frozen=True, eq=False)
class ResizeFilter:
    """Which inputs make each output pixel along one axis."""

    starts: NDArray[np.int64]  # [out], the first input of each output
    weights: NDArray[np.int32]  # [out, taps], fixed point
    first: int  # the inputs that the outputs need: first <= i < last
    last: int

    def halves(self, inputs: int) -> NDArray[np.floating[Any]]:
        """The weight of each of `inputs` in each output as 2**LOWER_BITS * upper + lower: [2 * out, inputs],
        all upper halves, then the lower ones.

        Both are whole numbers of at most eleven bits, and their type is one in which no sum of products with
        pixels, in whatever order, is rounded: float32 unless an output has very many inputs.
        """
        dense = np.zeros((len(self.starts), inputs + self.weights.shape[1]), np.int32)
        np.put_along_axis(dense, self.starts[:, None] + np.arange(self.weights.shape[1]), self.weights, 1)
        dense = dense[:, :inputs]  # those beyond the last weigh nothing
        upper = (dense + (1 << (LOWER_BITS - 1))) >> LOWER_BITS
        both = np.concatenate((upper, dense - (upper << LOWER_BITS)))
        largest = 255 * max(both.clip(0).sum(1).max(), (-both).clip(0).sum(1).max())
        return both.astype(np.float32 if largest < 1 << 24 else np.float64)


@lru_cache(maxsize=64)
def _filter(inputs: int, outputs: int, crop: int) -> ResizeFilter:
    """Pillow's bicubic filter from `inputs` to `outputs` pixels, for the `crop` outputs in the middle."""
    scale = inputs / outputs
    widening = max(scale, 1.0)  # antialiasing: when shrinking, the kernel covers as much as a new pixel does
    support = _SUPPORT * widening
    centres = ((outputs - crop) // 2 + np.arange(crop) + 0.5) * scale
    starts = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    stops = np.minimum((centres + support + 0.5).astype(np.int64), inputs)

    taps = int((stops - starts).max())
    taps += taps % 2  # `_resample` takes two at a time
    index = starts[:, None] + np.arange(taps)  # [crop, taps]
    weights = _keys_kernel((index - centres[:, None] + 0.5) * (1.0 / widening))
    weights[index >= stops[:, None]] = 0.0
    weights *= 1.0 / np.cumsum(weights, axis=1)[:, -1:]  # cumsum adds one after the other, as Pillow does
    fixed = np.trunc(weights * (1 << PRECISION_BITS) + np.copysign(0.5, weights)).astype(np.int32)
    return ResizeFilter(starts, fixed, int(starts.min()), int(stops.max()))


def _keys_kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a, x = -0.5, np.abs(x)
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    outer = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _resample(
    lines: NDArray[np.uint8],
    starts: NDArray[np.int64],
    weights: NDArray[np.int32],
    offset: int,
    out: NDArray[np.uint8],
) -> None:
    """out[i] = sum over k of weights[i, k] * lines[starts[i] - offset + k], rounded and clipped to uint8."""
    sums = np.empty(out.shape[1], np.int32)
    last = len(lines) - 1  # lines beyond it weigh nothing
    for i in range(out.shape[0]):
        sums[:] = 1 << (PRECISION_BITS - 1)
        start = starts[i] - offset
        for k in range(0, weights.shape[1], 2):  # two at a time: half the traffic between sums and memory
            one, other = weights[i, k], weights[i, k + 1]
            line, below = lines[min(start + k, last)], lines[min(start + k + 1, last)]
            for j in range(len(sums)):
                sums[j] += one * np.int32(line[j]) + other * np.int32(below[j])
        for j in range(len(sums)):
            out[i, j] = min(max(sums[j] >> PRECISION_BITS, 0), 255)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _normalise(image: NDArray[np.uint8], table: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """out[c, y, x] = table[c, image[y, x, c]]."""
    for channel in range(3):
        for y in range(image.shape[0]):
            for x in range(image.shape[1]):
                out[channel, y, x] = table[channel, image[y, x, channel]]


def _edge(config: Mapping[str, Any], key: str, edge: str) -> int:
    value = config.get(key)
    number = value.get(edge) if isinstance(value, Mapping) else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise _unusable(key, value, f'a number of pixels or {{"{edge}": pixels}}')
    return number


def _channels(
    config: Mapping[str, Any], key: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    value = config.get(key, default)
    try:
        red, green, blue = (float(number) for number in value)
    except (TypeError, ValueError) as error:
        raise _unusable(key, value, "three numbers") from error
    if key == "image_std" and min(red, green, blue) <= 0:
        raise _unusable(key, value, "three numbers above 0")
    return red, green, blue


def _unusable(key: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"The preprocessor configuration's key {key!r} is {value!r}, but must be {expected}: "
        "use the preprocessor_config.json that was published with the checkpoint."
    )
