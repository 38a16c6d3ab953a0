"""The interface that all recordings share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from recording_files import START_NS, equal, joined, random_events, random_frames

from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.recording import Piece, Recording, Topic, clipped, exact_sum

OFFSET_NS = 5_000


class MemoryRecording(Recording):
    """Pieces from memory, the sensor's clock OFFSET_NS behind the recording's."""

    def __init__(self, events: list[Events], frames: list[Frame]) -> None:
        super().__init__(Path("memory"))
        self.read = 0
        self._pieces = [Piece("/events", 1, events=piece, offset_ns=OFFSET_NS) for piece in events]
        self._pieces += [Piece("/frames", 1, frame=frame) for frame in frames]

    @property
    def topics(self) -> tuple[Topic, ...]:
        """One topic."""
        return (Topic("/events", "memory", 1),)

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:
        """What was given, counting what is read."""
        for piece in self._pieces:
            self.read += 1
            yield piece


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_sums_are_exact_where_int64_overflows(values: list[int]) -> None:
    """exact_sum agrees with Python's integers over the whole range of int64."""
    assert exact_sum(np.array(values, np.int64)) == sum(values)


@given(
    st.lists(st.integers(0, 100), max_size=50),
    st.one_of(st.none(), st.integers(0, 100)),
    st.one_of(st.none(), st.integers(0, 100)),
)
def test_clipping_keeps_what_lies_inside(times: list[int], start: int | None, stop: int | None) -> None:
    """clipped keeps start <= t < stop, in order, also where t steps back."""
    events = random_events(len(times))
    unsorted = Events(np.array(times, np.int64), events.x, events.y, events.p, 64, 48)
    inside = [t for t in times if (start is None or t >= start) and (stop is None or t < stop)]
    assert clipped(unsorted, start, stop).t.tolist() == inside


def test_info_is_on_the_sensor_clock_and_the_span_on_the_recordings() -> None:
    """Sums, first and last times keep sensor time; start_ns and stop_ns enclose shifted events and frames."""
    events = random_events(1000)
    recording = MemoryRecording([events[:400], events[400:]], random_frames(2))
    info = recording.info()
    assert info.events.as_dict() == {
        "count": 1000,
        "on": int(events.p.sum()),
        "off": 1000 - int(events.p.sum()),
        "sum_t_ns": sum(events.t.tolist()),
        "sum_x": int(events.x.sum()),
        "sum_y": int(events.y.sum()),
        "t_first_ns": int(events.t[0]),
        "t_last_ns": int(events.t[-1]),
        "width": 64,
        "height": 48,
    }
    assert info.frames == 2
    assert recording.start_ns == START_NS  # the first frame
    assert recording.stop_ns == int(events.t[-1]) + OFFSET_NS + 1
    assert info.duration_s == (recording.stop_ns - 1 - START_NS) / 1e9


def test_events_and_frames_come_on_the_recordings_clock() -> None:
    """events() shifts sensor time by the piece's offset, and the span cuts nothing off."""
    events = random_events(1000)
    recording = MemoryRecording([events[:400], events[400:]], random_frames(3))
    shifted = Events(events.t + OFFSET_NS, events.x, events.y, events.p, 64, 48)
    assert equal(joined(recording.events()), shifted)
    assert equal(joined(recording.events(recording.start_ns, recording.stop_ns)), shifted)
    middle = int(shifted.t[500])
    assert equal(joined(recording.events(middle)), clipped(shifted, middle, None))
    assert equal(joined(recording.events(None, middle)), clipped(shifted, None, middle))
    stamps = [frame.stamp_ns for frame in recording.frames()]
    assert [frame.stamp_ns for frame in recording.frames(stamps[1], stamps[2])] == [stamps[1]]


def test_reading_stops_soon_after_the_wanted_end() -> None:
    """A window at the beginning does not read the whole recording."""
    pieces = [random_events(10, start_ns=START_NS + second * 1_000_000_000) for second in range(60)]
    recording = MemoryRecording(pieces, [])
    assert len(joined(recording.events(None, START_NS + 1_000_000_000))) == 10
    assert recording.read <= 4


def test_an_empty_recording_has_no_span() -> None:
    """Without events and frames everything is zero and nothing is raised."""
    info = MemoryRecording([Events.empty(64, 48)], []).info()
    assert (info.start_ns, info.stop_ns, info.duration_s) == (0, 0, 0.0)
    assert info.as_dict()["events"]["t_first_ns"] is None
