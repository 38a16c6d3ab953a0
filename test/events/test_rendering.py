"""EventGPT's pictures of events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.types import Events

WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


def events_from(rows: list[tuple[int, int, int]], width: int = 4, height: int = 3) -> Events:
    """Events (x, y, p), one nanosecond apart."""
    x, y, p = np.array(rows, np.uint16).reshape(-1, 3).T
    return Events(np.arange(len(rows)), x.copy(), y.copy(), p.astype(np.uint8), width, height)


def plain_loop(events: Events, count: int) -> NDArray[np.uint8]:
    """The recipe in its plainest words."""
    images = np.full((count, events.height, events.width, 3), 255, np.uint8)
    share = len(events) // count
    for i in range(count):
        part = events[i * share : (i + 1) * share if i < count - 1 else len(events)]
        for x, y, p in zip(part.x, part.y, part.p, strict=True):
            images[i, y, x] = BLUE if p == 0 else RED
    return images


def test_images_of_the_recorded_sample_equal_a_plain_loop_pixel_for_pixel(shared_data: Path) -> None:
    """EventGPT's own sample is drawn as a plain loop over its events draws it."""
    fields = np.load(shared_data / "EventGPT/sample1.npy", allow_pickle=True).item()
    events = Events(
        fields["t"].astype(np.int64) * 1000,
        fields["x"].astype(np.uint16),
        fields["y"].astype(np.uint16),
        fields["p"].astype(np.uint8),
        640,
        480,
    )
    assert len(events) == 132_268
    images = render_event_images(events)
    assert images.shape == (5, 480, 640, 3)
    np.testing.assert_array_equal(images, plain_loop(events, 5))


@pytest.mark.parametrize("number", [0, 1, 4, 5, 6, 9, 14])
def test_the_remainder_of_the_split_goes_to_the_last_image(number: int) -> None:
    """N // 5 events fall to each of the first four images, the rest to the fifth, also where N < 5."""
    events = events_from([(k % 4, k // 4, 1) for k in range(number)], width=4, height=4)
    drawn = (render_event_images(events) == RED).all(axis=-1).sum(axis=(1, 2))
    assert drawn.tolist() == [number // 5] * 4 + [number - 4 * (number // 5)]


def test_the_last_event_at_a_pixel_wins() -> None:
    """A pixel that brightened and then darkened is blue, the other way round red, an untouched one white."""
    image = render_event_images(events_from([(0, 0, 1), (0, 0, 0), (1, 0, 0), (1, 0, 1)]), count=1)[0]
    assert [tuple(pixel) for pixel in image[0, :3].tolist()] == [BLUE, RED, WHITE]


def test_events_outside_the_sensor_are_not_drawn() -> None:
    """Coordinates beyond the sensor touch no pixel and no foreign memory."""
    image = render_event_images(events_from([(4, 0, 1), (0, 3, 1), (65535, 65535, 0)]), count=1)
    assert (image == 255).all()
