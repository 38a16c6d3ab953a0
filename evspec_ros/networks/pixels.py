"""Images and events as the pixels that a CLIP tower reads, made where it computes.

On a processor by `ClipPreprocessor`, to the bit as Pillow does it. On a GPU as two products with the same
filter's weights, of 22 bits behind the point, each of them parted into two whole numbers: sums of pixels and
these are exact in float32 in any order (in TF32 as well, which keeps eleven bits of a factor), so that the
pixels are the processor's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.types import Events
from evspec_ros.frames.clip import LOWER_BITS, PRECISION_BITS, ClipPreprocessor, require_rgb
from evspec_ros.networks.cuda_streams import has_streams
from evspec_ros.sizes import EVENT_IMAGES


class PixelReader:
    """Pixels [N, 3, size, size] of a tower's dtype on its device; on_device: made there."""

    def __init__(self, preprocessor: ClipPreprocessor, weight: Tensor) -> None:
        """weight: one of the tower's, which tells device and dtype."""
        self._preprocessor = preprocessor
        self._device, self._dtype = weight.device, weight.dtype
        self.on_device = has_streams(weight.device)

    def frames(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Of N >= 1 RGB images, uint8 [height, width, 3] of any sizes; FrameError for anything else."""
        if not self.on_device:
            return torch.from_numpy(self._preprocessor(images)).to(self._device, self._dtype)
        for image in images:
            require_rgb(image)
        if len({image.shape for image in images}) > 1:
            return torch.cat([self.frames([image]) for image in images])
        whole = _staging((len(images), *images[0].shape), np.uint8, self._device)
        for place, image in zip(whole.numpy(), images, strict=True):
            place[...] = image
        planes = whole.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        return prepared(planes, self._preprocessor).to(self._dtype)

    def drawn(self, events: Events) -> Tensor | NDArray[np.uint8]:
        """EVENT_IMAGES pictures of events, as `render_event_images` gives them or on the device."""
        return drawn(events, self._device) if self.on_device else render_event_images(events)

    def events(self, images: Tensor | NDArray[np.uint8]) -> Tensor:
        """Of what `drawn` gives."""
        if isinstance(images, Tensor):
            return prepared(images, self._preprocessor).to(self._dtype)
        return self.frames(list(images))


def prepared(planes: Tensor, preprocessor: ClipPreprocessor) -> Tensor:
    """uint8 [N, 3, height, width] -> float32 [N, 3, size, size]: resized, cropped and normalised."""
    columns, rows, normalised = _constants(preprocessor, *planes.shape[-2:], planes.device)
    narrow = _levels(planes.to(columns.dtype) @ columns.mT, -1)  # [N, 3, height, size]
    levels = _levels(rows @ narrow.to(rows.dtype), -2)
    channels = torch.arange(3, dtype=torch.int32, device=planes.device)[:, None, None] * 256
    return normalised.index_select(0, (channels + levels).flatten()).view(levels.shape)


def drawn(events: Events, device: torch.device) -> Tensor:
    """`render_event_images` as uint8 [EVENT_IMAGES, 3, height, width] on a device, level for level.

    The last event at a pixel is the one of the greatest number.
    """
    count, height, width = EVENT_IMAGES, events.height, events.width
    x, y = (_uploaded(values.view(np.int16), device).int() & 0xFFFF for values in (events.x, events.y))
    brighter = _uploaded(events.p, device) != 0
    order = torch.arange(len(events), device=device)
    share = len(events) // count
    image = (order // share).clamp(max=count - 1) if share else torch.full_like(order, count - 1)
    outside = (x >= width) | (y >= height)
    place = ((image * height + y) * width + x).masked_fill(outside, count * height * width)
    last = torch.full((count * height * width + 1,), -1, dtype=torch.int64, device=device)
    last.scatter_reduce_(0, place, 2 * order + brighter, "amax")
    last = last[:-1].view(count, height, width)
    white, red = last < 0, (last & 1).bool()
    return 255 * torch.stack((white | red, white, white | ~red), 1).to(torch.uint8)


@lru_cache(maxsize=32)
def _constants(
    preprocessor: ClipPreprocessor, height: int, width: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Weights of the columns [2 * size, width] and of the rows [2 * size, height], as `ResizeFilter.halves`
    gives them, and what levels become, float32 [3 * 256]; uploaded once for each size of image.
    """
    columns, rows = preprocessor.filters(height, width)
    arrays = columns.halves(width), rows.halves(height), preprocessor.normalised.flatten()
    return tuple(torch.from_numpy(one).to(device) for one in arrays)


def _levels(sums: Tensor, dim: int) -> Tensor:
    """The two halves of sums along `dim` as levels int32, 0 .. 255, rounded as Pillow rounds them."""
    upper, lower = sums.int().chunk(2, dim)
    whole = upper * (1 << LOWER_BITS) + lower + (1 << (PRECISION_BITS - 1))
    return (whole >> PRECISION_BITS).clamp_(0, 255)


def _uploaded(values: NDArray[Any], device: torch.device) -> Tensor:
    whole = _staging(values.shape, values.dtype, device)
    whole.numpy()[...] = values
    return whole.to(device, non_blocking=True)


def _staging(shape: tuple[int, ...], dtype: Any, device: torch.device) -> Tensor:
    """Memory to upload from; pinned, a copy to the GPU goes on beside what the host does next."""
    empty = torch.from_numpy(np.empty(0, dtype)).dtype
    return torch.empty(shape, dtype=empty, pin_memory=device.type == "cuda")
