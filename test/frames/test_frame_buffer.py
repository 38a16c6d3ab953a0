"""The buffer of frames and the sampling of eight of them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evspec_ros.errors import FrameError
from evspec_ros.frames.buffer import FrameBuffer, kept_seconds
from evspec_ros.frames.types import Frame

MS = 1_000_000
IMAGE = np.zeros((1, 1, 3), np.uint8)


def filled(stamps: list[int], seconds: float = 10.0, max_frames: int = 100_000) -> FrameBuffer:
    """A buffer that saw frames with these stamps, in ms."""
    buffer = FrameBuffer(seconds, max_frames)
    for stamp in stamps:
        buffer.append(Frame(stamp * MS, IMAGE))
    return buffer


def sampled(buffer: FrameBuffer, stop: int, seconds: float) -> list[int]:
    """The stamps of a sample, in ms."""
    return [frame.stamp_ns // MS for frame in buffer.sample(stop * MS, seconds)]


def test_eight_frames_are_spread_evenly_over_the_last_seconds() -> None:
    """Of a 100 Hz camera, both ends included where the newest frame lies on the grid."""
    buffer = filled(list(range(0, 2000, 10)))
    assert sampled(buffer, 1400, 1.4) == [0, 200, 400, 600, 800, 1000, 1200, 1400]


def test_the_instants_stay_until_a_frame_of_the_next_one_has_come() -> None:
    """A window that ends later sees the same frames; at the next step of the grid the oldest one goes."""
    buffer = filled(list(range(0, 2000, 10)))
    first = sampled(buffer, 1400, 1.4)
    assert sampled(buffer, 1599, 1.4) == first
    assert sampled(buffer, 1600, 1.4) == [*first[1:], 1600]


def test_the_nearest_frame_stands_in() -> None:
    """Between two frames the nearer one; of few frames each serves several instants; never a later one."""
    assert sampled(filled([0, 30, 100]), 32, 0.07) == [0, 0, 0, 0, 0, 0, 30, 30]
    assert sampled(filled([50]), 1000, 1.0) == [50] * 8
    assert sampled(filled([50, 1001]), 1000, 1.0) == [50] * 8


def test_a_camera_that_stopped_shows_its_last_picture() -> None:
    """Events go on: a second later it is all that is seen."""
    buffer = filled(list(range(0, 1000, 10)))
    assert sampled(buffer, 1100, 0.7)[-1] == 990
    assert len(set(sampled(buffer, 1400, 0.7))) > 1
    assert sampled(buffer, 1800, 0.7) == [990] * 8


def test_nothing_seen_by_the_stop_gives_nothing() -> None:
    """An empty buffer, and one whose frames are all later."""
    assert sampled(filled([]), 100, 1.0) == []
    assert sampled(filled([101]), 100, 1.0) == []


@settings(deadline=None)
@given(
    stamps=st.lists(st.integers(0, 500), max_size=30).map(sorted),
    stop=st.integers(-10, 600),
    seconds=st.sampled_from([0.07, 0.21, 1.4]),
)
def test_a_sample_is_what_a_search_through_all_frames_finds(
    stamps: list[int], stop: int, seconds: float
) -> None:
    """For each multiple of a seventh, from the first frame on, up to the newest frame (up to a step before
    the stop, where none came since) the least distance of all frames seen by the stop; in ascending order.
    """
    seen = [stamp for stamp in stamps if stamp <= stop]
    sample = sampled(filled(stamps), stop, seconds)
    assert len(sample) == (8 if seen else 0)
    assert sample == sorted(sample)
    step = round(seconds * 1000) // 7
    for k, stamp in enumerate(sample):
        instant = stamps[0] + ((max(seen[-1], stop - step) - stamps[0]) // step - 7 + k) * step
        assert abs(stamp - instant) == min(abs(other - instant) for other in seen)


STEP = 20  # of the grid, ms; the eight are spread over 140
SPREAD = 7 * STEP / 1000


@settings(deadline=None)
@given(
    gaps=st.lists(st.integers(1, STEP - 2), min_size=80, max_size=120),
    stops=st.lists(st.integers(1, 3 * STEP), min_size=1, max_size=20),
)
def test_of_a_running_stream_a_window_has_a_new_frame_for_each_step_of_the_grid(
    gaps: list[int], stops: list[int]
) -> None:
    """Whatever the camera's rhythm, with a frame in every step: a window that ends up to a step later has
    seven of its eight from before at least, one that ends m steps later 8 - m.
    """
    stamps = np.cumsum(gaps).tolist()
    buffer = filled(stamps)
    stop = 10 * STEP
    before = sampled(buffer, stop, SPREAD)
    for ahead in stops:
        stop = stop + ahead
        if stop > stamps[-1]:
            return
        sample = sampled(buffer, stop, SPREAD)
        newest = [max(stamp for stamp in stamps if stamp <= end) for end in (stop - ahead, stop)]
        steps = (newest[1] - stamps[0]) // STEP - (newest[0] - stamps[0]) // STEP
        assert sample[: 8 - steps] == before[steps:]
        before = sample


@settings(deadline=None)
@given(
    offset=st.integers(0, 999),
    phase=st.integers(0, 32),
    steps=st.integers(1, 9),
    lost=st.sets(st.integers(0, 200), max_size=40),
)
def test_windows_whole_steps_apart_share_all_but_so_many(
    offset: int, phase: int, steps: int, lost: set[int]
) -> None:
    """Where on the grid they end, the camera's phase and which frames it drops are all one: an instant has
    one frame, whatever the window.
    """
    camera = [phase + 33 * k for k in range(201) if k not in lost]
    buffer, step = filled(camera, seconds=20.0), 143
    stops = [2000 + offset + steps * step * k for k in range(3)]
    seen: dict[int, int] = {}
    for stop in stops:
        sample = sampled(buffer, stop, 7 * step / 1000)
        newest = max(stamp for stamp in camera if stamp <= stop)
        if stop - newest >= step:  # the camera was silent for a whole step
            return
        last = (newest - camera[0]) // step
        for k, stamp in enumerate(sample):
            assert seen.setdefault(last - 7 + k, stamp) == stamp


@settings(deadline=None)
@given(
    stamps=st.lists(st.integers(0, 500), min_size=1, max_size=30).map(sorted),
    stop=st.integers(0, 600),
    shift=st.integers(-1000, 10**9),
)
def test_a_stream_with_other_stamps_is_seen_alike(stamps: list[int], stop: int, shift: int) -> None:
    """As a recording is that is played live: the grid begins with the stream's first frame."""
    there = sampled(filled([stamp + shift for stamp in stamps]), stop + shift, SPREAD)
    assert [stamp - shift for stamp in there] == sampled(filled(stamps), stop, SPREAD)


def test_the_start_of_a_stream_repeats_its_first_frames() -> None:
    """The first frame stands in for what was before it, one instant less with each step."""
    buffer = filled([])
    repeated = []
    for stamp in range(1005, 1205, 10):
        buffer.append(Frame(stamp * MS, IMAGE))
        repeated.append(sampled(buffer, stamp, SPREAD).count(1005))
    assert repeated[0] == 8
    assert repeated == sorted(repeated, reverse=True)
    assert repeated[-1] == 0


def test_a_buffer_that_keeps_long_enough_gives_what_one_that_keeps_all_gives() -> None:
    """`kept_seconds` of a 30 Hz camera: each sample of the stream is that of the whole stream."""
    camera = [round(k * 1000 / 30) for k in range(150)]
    short, whole = FrameBuffer(kept_seconds(1.0), 256), filled(camera)
    for stamp in camera:
        short.append(Frame(stamp * MS, IMAGE))
        assert sampled(short, stamp, 1.0) == sampled(whole, stamp, 1.0)


@settings(deadline=None)
@given(
    gaps=st.lists(st.integers(5, 800), min_size=20, max_size=60),
    late=st.lists(st.integers(0, 500), min_size=60, max_size=60),
)
def test_frames_that_came_since_a_windows_end_change_nothing(gaps: list[int], late: list[int]) -> None:
    """Whatever the camera's rhythm: a window that is cut up to half a second late has the frames that it had
    at its end.
    """
    camera = np.cumsum(gaps).tolist()
    held = FrameBuffer(kept_seconds(1.0), 4096)
    for stamp, delay in zip(camera, late, strict=False):
        held.append(Frame(stamp * MS, IMAGE))
        if stamp - delay >= camera[0]:
            seen = [frame for frame in camera if frame <= stamp - delay]
            assert sampled(held, stamp - delay, 1.0) == sampled(filled(seen, 100.0), stamp - delay, 1.0)


@settings(deadline=None)
@given(steps=st.lists(st.integers(0, 400), max_size=60), max_frames=st.integers(1, 10))
def test_any_stream_keeps_the_buffer_bounded_and_its_newest_frame(steps: list[int], max_frames: int) -> None:
    """At most max_frames + 2 frames, one of them older than the span, the newest always there."""
    buffer = FrameBuffer(1.0, max_frames)
    stamp = 0
    for step in steps:
        stamp += step
        buffer.append(Frame(stamp * MS, IMAGE))
        stamps = [frame.stamp_ns // MS for frame in buffer._frames]
        assert stamps[-1] == stamp == (buffer.latest_ns or 0) // MS
        assert sum(held < stamp - 1000 for held in stamps) <= 1
        assert len(buffer) <= max_frames + 2


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
