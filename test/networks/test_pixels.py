"""Images and events prepared by torch, as on a GPU, beside what the processor's own way gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evspec_ros.errors import FrameError
from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.types import Events
from evspec_ros.frames.clip import CLIP_STD, ClipPreprocessor
from evspec_ros.networks.pixels import PixelReader, drawn

CPU = torch.device("cpu")
LEVEL = 1 / 255 / min(CLIP_STD)  # one of 255, normalised


def noise(height: int, width: int) -> NDArray[np.uint8]:
    """Where every pixel overshoots somewhere."""
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def readers(size: int, device: torch.device = CPU) -> tuple[PixelReader, PixelReader]:
    """The processor's own way, and the one that a GPU takes."""
    preprocessor = ClipPreprocessor(size)
    host = PixelReader(preprocessor, torch.zeros(1))
    other = PixelReader(preprocessor, torch.zeros(1, device=device))
    other.on_device = True
    return host, other


def events_of(count: int, width: int, height: int, seed: int = 0) -> Events:
    """Events anywhere, some of them outside of the sensor, several at a pixel."""
    random = np.random.default_rng(seed)
    return Events(
        np.sort(random.integers(0, 50_000_000, count)),
        random.integers(0, width + 3, count).astype(np.uint16),
        random.integers(0, height + 3, count).astype(np.uint16),
        random.integers(0, 2, count).astype(np.uint8),
        width,
        height,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([7, 64, 224]))
def test_frames_prepared_on_a_device_are_the_processor_s(height: int, width: int, size: int) -> None:
    """Up and down, tall and wide, of any picture: within one level of 255, of a thousand values less than one
    within two, where a level that was rounded otherwise is weighed above one.
    """
    if max(height, width) > 60 * min(height, width):
        height = width
    host, other = readers(size)
    images = [noise(height, width), np.full((height, width, 3), 200, np.uint8)]
    expected, found = host.frames(images), other.frames(images)
    assert found.shape == expected.shape
    apart = (found - expected).abs()
    assert apart.max() <= 2 * LEVEL * 1.001
    assert (apart > LEVEL * 1.001).float().mean() < 1e-3


def test_of_usual_cameras_hardly_a_level_differs() -> None:
    """Of a million, where a sum lies between two; pictures of two sizes share a batch."""
    host, other = readers(336)
    images = [noise(480, 640), noise(720, 1280), noise(260, 346)]
    different = (other.frames(images) - host.frames(images)).abs() > LEVEL / 10
    assert different.float().mean() < 1e-4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(1, 20), st.integers(1, 20), st.integers(0, 100))
def test_events_drawn_on_a_device_are_drawn_as_on_the_processor(
    count: int, width: int, height: int, seed: int
) -> None:
    """Level for level: fewer events than pictures, none at all, many at a pixel, some outside."""
    events = events_of(count, width, height, seed)
    expected = render_event_images(events).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(drawn(events, CPU).numpy(), expected)


def test_coordinates_beyond_half_of_their_range_are_unsigned() -> None:
    """An event at 65,535 is outside, not at -1."""
    far = np.array([65_535, 40_000], np.uint16)
    events = Events(np.arange(2), far, far, np.ones(2, np.uint8), 8, 8)
    assert (drawn(events, CPU) == 255).all()


def test_event_pictures_are_within_a_level_of_the_processor_s() -> None:
    """From events to what the tower reads, of a sensor of VGA size."""
    events = events_of(60_000, 640, 480)
    host, other = readers(336)
    expected, found = (reader.events(reader.drawn(events)) for reader in (host, other))
    assert found.shape == expected.shape == (5, 3, 336, 336)
    apart = (found - expected).abs()
    assert apart.max() <= 2 * LEVEL * 1.001
    assert (apart > LEVEL * 1.001).float().mean() < 1e-3


def test_what_is_no_picture_is_refused_there_too() -> None:
    """With the same sentence."""
    _, other = readers(8)
    with pytest.raises(FrameError, match="must be uint8 RGB"):
        other.frames([np.zeros((4, 4), np.uint8)])


@pytest.mark.gpu
def test_a_gpu_s_pixels_are_the_processor_s() -> None:
    """Frames and events, in float32."""
    host, other = readers(336, torch.device("cuda"))
    images, events = [noise(480, 640) for _ in range(8)], events_of(200_000, 640, 480)
    assert (other.frames(images).cpu() - host.frames(images)).abs().max() <= LEVEL * 1.001
    np.testing.assert_array_equal(
        drawn(events, torch.device("cuda")).cpu().numpy(), render_event_images(events).transpose(0, 3, 1, 2)
    )
    expected, found = (reader.events(reader.drawn(events)).cpu() for reader in (host, other))
    assert (found - expected).abs().max() <= LEVEL * 1.001
