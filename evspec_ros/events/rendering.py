"""The five pictures in which EventGPT sees a stream of events (arXiv 2412.00832)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from evspec_ros.events.types import Events
from evspec_ros.sizes import EVENT_IMAGES


def render_event_images(events: Events, count: int = EVENT_IMAGES) -> NDArray[np.uint8]:
    """Events in the order in which they happened, drawn as `count` consecutive RGB images.

    Returns uint8 [count, height, width, 3]. As EventGPT does it, the events are split by number, N // count
    for each image and the remainder to the last; an image is white, a darker event blue (0, 0, 255), a
    brighter one red (255, 0, 0), and the last event at a pixel wins. Images have the sensor's size (EventGPT
    itself cuts each one at its largest x and y); events outside the sensor are not drawn.
    """
    images = np.full((count, events.height, events.width, 3), 255, np.uint8)
    _draw(events.x, events.y, events.p, images)
    return images


@njit(cache=True, nogil=True)
def _draw(
    xs: NDArray[np.uint16], ys: NDArray[np.uint16], ps: NDArray[np.uint8], images: NDArray[np.uint8]
) -> None:
    count, height, width = images.shape[:3]
    share = len(xs) // count
    for i in range(count):
        stop = len(xs) if i == count - 1 else (i + 1) * share
        for k in range(i * share, stop):
            x, y = xs[k], ys[k]
            if x < width and y < height:
                brighter = ps[k] != 0
                images[i, y, x, 0] = 255 if brighter else 0
                images[i, y, x, 1] = 0
                images[i, y, x, 2] = 0 if brighter else 255
