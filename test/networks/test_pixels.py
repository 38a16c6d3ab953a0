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
from evspec_ros.frames.clip import LOWER_BITS, ClipPreprocessor, ResizeFilter
from evspec_ros.networks.pixels import PixelReader, drawn

CPU = torch.device("cpu")


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
    """Bit for bit, up and down, tall and wide, of any picture."""
    if max(height, width) > 60 * min(height, width):
        height = width
    host, other = readers(size)
    images = [noise(height, width), np.full((height, width, 3), 200, np.uint8)]
    assert torch.equal(other.frames(images), host.frames(images))


def test_pictures_of_usual_cameras_are_the_processor_s() -> None:
    """Bit for bit; pictures of several sizes share a batch, one of which is so large that each pixel is a sum
    of very many, of black and white at random: the largest sums there can be.
    """
    host, other = readers(64)
    large = (np.random.default_rng(5).integers(0, 2, (2000, 3000, 3)) * 255).astype(np.uint8)
    assert other.frames([noise(480, 640), large]).equal(host.frames([noise(480, 640), large]))
    host, other = readers(336)
    images = [noise(480, 640), noise(720, 1280), noise(260, 346)]
    assert torch.equal(other.frames(images), host.frames(images))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4000), st.sampled_from([7, 64, 224, 336]))
def test_no_sum_of_pixels_times_halves_of_weights_is_rounded(inputs: int, size: int) -> None:
    """Whatever its order: whole numbers of eleven bits, whose sums are below 2**24 or in float64; together
    they are the weight.
    """
    columns: ResizeFilter = ClipPreprocessor(size).filters(inputs, inputs)[0]
    halves = columns.halves(inputs)
    upper, lower = np.split(halves.astype(np.int64), 2)
    assert np.array_equal(halves, np.concatenate((upper, lower)))
    assert np.abs(halves).max() <= 2**11
    sums = [255 * np.where(sign * halves > 0, np.abs(halves), 0).sum(1).max() for sign in (1, -1)]
    assert max(sums) < 2 ** (24 if halves.dtype == np.float32 else 53)
    assert halves.dtype == np.float32 or inputs > 8 * size
    taps = columns.starts[:, None] + np.arange(columns.weights.shape[1])
    whole = np.pad((upper << LOWER_BITS) + lower, ((0, 0), (0, columns.weights.shape[1])))
    assert np.array_equal(np.take_along_axis(whole, taps, 1), columns.weights)


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


def test_event_pictures_are_the_processor_s() -> None:
    """Bit for bit from events to what the tower reads, of a sensor of VGA size."""
    events = events_of(60_000, 640, 480)
    host, other = readers(336)
    expected, found = (reader.events(reader.drawn(events)) for reader in (host, other))
    assert found.shape == (5, 3, 336, 336)
    assert torch.equal(found, expected)


def test_what_is_no_picture_is_refused_there_too() -> None:
    """With the same sentence."""
    _, other = readers(8)
    with pytest.raises(FrameError, match="must be uint8 RGB"):
        other.frames([np.zeros((4, 4), np.uint8)])


@pytest.mark.gpu
def test_a_gpu_s_pixels_are_the_processor_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames and events, in float32, bit for bit, also where products are allowed to be in TF32."""
    host, other = readers(336, torch.device("cuda"))
    images, events = [noise(480, 640) for _ in range(8)], events_of(200_000, 640, 480)
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", allowed)
        assert torch.equal(other.frames(images).cpu(), host.frames(images))
        expected, found = (reader.events(reader.drawn(events)).cpu() for reader in (host, other))
        assert torch.equal(found, expected)
    np.testing.assert_array_equal(
        drawn(events, torch.device("cuda")).cpu().numpy(), render_event_images(events).transpose(0, 3, 1, 2)
    )
