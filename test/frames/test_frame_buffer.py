"""The buffer of frames and the sampling of eight of them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evspec_ros.errors import FrameError
from evspec_ros.frames.buffer import FrameBuffer
from evspec_ros.frames.types import Frame

MS = 1_000_000
IMAGE = np.zeros((1, 1, 3), np.uint8)


def filled(stamps: list[int], seconds: float = 10.0, max_frames: int = 100_000) -> FrameBuffer:
    """A buffer that saw frames with these stamps, in ms."""
    buffer = FrameBuffer(seconds, max_frames)
    for stamp in stamps:
        buffer.append(Frame(stamp * MS, IMAGE))
    return buffer


def sampled(buffer: FrameBuffer, stop: int, seconds: float, count: int = 8) -> list[int]:
    """The stamps of a sample, in ms."""
    return [frame.stamp_ns // MS for frame in buffer.sample(stop * MS, seconds, count)]


def test_eight_frames_are_spread_evenly_over_the_last_seconds() -> None:
    """Of a 100 Hz camera, both ends included."""
    buffer = filled(list(range(0, 2000, 10)))
    assert sampled(buffer, 1400, 1.4) == [0, 200, 400, 600, 800, 1000, 1200, 1400]


def test_the_nearest_frame_stands_in() -> None:
    """Between two frames the nearer one; of few frames each serves several instants; never a later one."""
    assert sampled(filled([0, 30, 100]), 90, 0.09, 4) == [0, 30, 30, 30]
    assert sampled(filled([50]), 1000, 1.0) == [50] * 8
    assert sampled(filled([50, 1001]), 1000, 1.0) == [50] * 8


def test_one_frame_is_the_newest_before_the_stop() -> None:
    """A sample of one looks at the stop alone."""
    assert sampled(filled([0, 10, 20, 30]), 25, 1.0, 1) == [20]


def test_nothing_seen_by_the_stop_gives_nothing() -> None:
    """An empty buffer, and one whose frames are all later."""
    assert sampled(filled([]), 100, 1.0) == []
    assert sampled(filled([101]), 100, 1.0) == []


@settings(deadline=None)
@given(
    stamps=st.lists(st.integers(0, 500), max_size=30).map(sorted),
    stop=st.integers(-10, 600),
    seconds=st.sampled_from([0.05, 0.2, 1.0]),
    count=st.integers(1, 9),
)
def test_a_sample_is_what_a_search_through_all_frames_finds(
    stamps: list[int], stop: int, seconds: float, count: int
) -> None:
    """For each instant the least distance of all frames seen by the stop; in ascending order."""
    seen = [stamp for stamp in stamps if stamp <= stop]
    sample = sampled(filled(stamps), stop, seconds, count)
    assert len(sample) == (count if seen else 0)
    assert sample == sorted(sample)
    for k, stamp in enumerate(sample):
        instant = stop - seconds * 1000 * (1 - k / (count - 1) if count > 1 else 0)
        assert abs(stamp - instant) == pytest.approx(min(abs(other - instant) for other in seen), abs=1e-3)


@settings(deadline=None)
@given(steps=st.lists(st.integers(0, 400), max_size=60), max_frames=st.integers(1, 10))
def test_any_stream_keeps_the_buffer_bounded_and_its_newest_frame(steps: list[int], max_frames: int) -> None:
    """At most max_frames + 1 frames, none older than the span, the newest always there."""
    buffer = FrameBuffer(1.0, max_frames)
    stamp = 0
    for step in steps:
        stamp += step
        buffer.append(Frame(stamp * MS, IMAGE))
        stamps = [frame.stamp_ns // MS for frame in buffer._frames]
        assert stamps[-1] == stamp == (buffer.latest_ns or 0) // MS
        assert stamps[0] >= stamp - 1000
        assert len(buffer) <= max_frames + 1


def test_a_fast_camera_is_thinned_over_the_whole_span() -> None:
    """Ten places for a second of 100 Hz hold a frame every 100 ms, not the last 100 ms."""
    buffer = filled(list(range(0, 3000, 10)), seconds=1.0, max_frames=10)
    gaps = np.diff([frame.stamp_ns // MS for frame in buffer._frames])
    assert buffer._frames[0].stamp_ns <= 2100 * MS
    assert (gaps[:-1] == 100).all()


def test_a_slow_camera_is_not_thinned() -> None:
    """Every frame of a camera slower than max_frames / seconds is kept."""
    assert len(filled(list(range(0, 1000, 101)), seconds=1.0, max_frames=10)) == 10


def test_an_overtaken_frame_is_ignored_and_a_step_back_starts_anew() -> None:
    """Within the span a frame was overtaken; beyond it time stepped back."""
    buffer = filled([5000, 5100, 5050], seconds=1.0)
    assert len(buffer) == 2
    buffer.append(Frame(100 * MS, IMAGE))
    assert (len(buffer), buffer.latest_ns) == (1, 100 * MS)


def test_clearing_forgets_all_frames() -> None:
    """After clear() the buffer is as new."""
    buffer = filled([1, 2])
    buffer.clear()
    assert (len(buffer), buffer.latest_ns) == (0, None)


def test_samples_taken_beside_a_writer_are_in_order() -> None:
    """Sampling while another thread appends gives eight frames in ascending order."""
    buffer = filled([0], seconds=0.1, max_frames=10)
    writer = threading.Thread(target=lambda: [buffer.append(Frame(k * MS, IMAGE)) for k in range(1, 5000)])
    writer.start()
    while writer.is_alive():
        stamps = sampled(buffer, 5000, 0.05)
        assert len(stamps) == 8
        assert stamps == sorted(stamps)
    writer.join()


@pytest.mark.parametrize(("seconds", "max_frames"), [(0.0, 10), (1.0, 0)])
def test_a_buffer_that_can_hold_nothing_is_refused(seconds: float, max_frames: int) -> None:
    """It needs a positive span and room for one frame."""
    with pytest.raises(FrameError, match="can hold nothing"):
        FrameBuffer(seconds, max_frames)
