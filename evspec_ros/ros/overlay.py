"""The picture of ~/overlay: the newest frame, the window's events on it, the description below."""

from __future__ import annotations

import textwrap
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from evspec_ros.errors import RosError
from evspec_ros.events.types import Events

DARKER, BRIGHTER = (0, 0, 255), (255, 0, 0)  # RGB, the colours of EventGPT's event images
MIN_WIDTH = 480  # narrower frames are enlarged, or the caption could not be read
FONT, SCALE, LINE_HEIGHT, MARGIN = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 18, 8
CHARACTER_WIDTH = 8  # pixels, of the font at this scale


def draw_overlay(frame: NDArray[np.uint8], events: Events, caption: str) -> NDArray[np.uint8]:
    """RGB uint8 [height, width, 3]: frame, enlarged to at least 480 columns, with events and caption."""
    height, width = frame.shape[:2]
    if width < MIN_WIDTH:
        height, width = round(height * MIN_WIDTH / width), MIN_WIDTH
    picture = np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    _draw_events(picture, events)
    lines = textwrap.wrap(caption, (width - 2 * MARGIN) // CHARACTER_WIDTH) or [""]
    strip = np.zeros((len(lines) * LINE_HEIGHT + MARGIN, width, 3), np.uint8)
    for number, line in enumerate(lines, start=1):
        cv2.putText(strip, line, (MARGIN, number * LINE_HEIGHT), FONT, SCALE, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([picture, strip])


def write_overlay(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture as PNG; RosError where it cannot be written."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    try:
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise RosError(f"The picture cannot be written to {path} ({error.strerror}).") from error


def _draw_events(picture: NDArray[np.uint8], events: Events) -> None:
    """Colour the area of each event's pixel; both cameras are taken to see the same scene at their own
    resolution.
    """
    if not len(events):
        return
    height, width = picture.shape[:2]
    rows = events.y.astype(np.intp) * height // events.height
    columns = events.x.astype(np.intp) * width // events.width
    colours = np.array([DARKER, BRIGHTER], np.uint8)[events.p]
    for down, right in np.ndindex(-(-height // events.height), -(-width // events.width)):
        picture[np.minimum(rows + down, height - 1), np.minimum(columns + right, width - 1)] = colours
