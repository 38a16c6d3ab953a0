"""The overlay: frame, events, caption."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from evspec_ros.errors import RosError
from evspec_ros.events.types import Events
from evspec_ros.ros.overlay import BRIGHTER, DARKER, draw_overlay, write_overlay


@pytest.mark.parametrize(("width", "height"), [(64, 48), (640, 480)])
def test_events_are_coloured_where_they_happened_and_the_caption_is_below(width: int, height: int) -> None:
    """An event of a sensor half the picture's size appears at twice its coordinates; the strip has ink."""
    frame = np.full((height, width, 3), 90, np.uint8)
    x, y = np.array([4, 10], np.uint16), np.array([6, 11], np.uint16)
    events = Events(np.zeros(2, np.int64), x, y, np.array([0, 1], np.uint8), width // 2, height // 2)
    picture = draw_overlay(frame, events, "a ball and a box " * 20)
    scale = picture.shape[1] / (width // 2)
    assert picture[int(6 * scale), int(4 * scale)].tolist() == list(DARKER)
    assert picture[int(11 * scale), int(10 * scale)].tolist() == list(BRIGHTER)
    strip = picture[round(scale * (height // 2)) :]
    assert strip.max() == 255
    assert picture[0, 0].tolist() == [90, 90, 90]


def test_nothing_is_drawn_without_events_and_the_frame_is_left_alone() -> None:
    """The camera's frame is not written into."""
    frame = np.full((480, 640, 3), 90, np.uint8)
    picture = draw_overlay(frame, Events.empty(0, 0), "")
    assert (picture[:480] == 90).all()
    draw_overlay(frame, Events.empty(0, 0), "text")
    assert (frame == 90).all()


@pytest.mark.parametrize("side", [120, 128, 480, 960])
def test_an_event_of_every_pixel_covers_the_picture(side: int) -> None:
    """Whatever the sensor's size, no gap is left between neighbouring events, and none is drawn outside."""
    x, y = (axis.ravel().astype(np.uint16) for axis in np.meshgrid(np.arange(side), np.arange(side)))
    events = Events(np.zeros(side**2, np.int64), x, y, np.ones(side**2, np.uint8), side, side)
    picture = draw_overlay(np.zeros((480, 480, 3), np.uint8), events, "")
    assert (picture[:480] == BRIGHTER).all()


def test_the_written_picture_is_the_drawn_one(tmp_path: Path) -> None:
    """PNG loses nothing; a folder that is not there is one sentence."""
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    write_overlay(tmp_path / "overlay.png", picture)
    read = cv2.imread(str(tmp_path / "overlay.png"))
    assert (read[:, :, ::-1] == picture).all()
    with pytest.raises(RosError, match="cannot be written"):
        write_overlay(tmp_path / "nowhere" / "overlay.png", picture)
