"""Playing a recording: cut into packets, in time order, at the right time, lap after lap."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.bag_writer import BagWriter
from evspec_ros.recordings.recording import Piece, Recording, Topic
from evspec_ros.ros import player
from evspec_ros.ros.player import Playback, event_packets, timeline

MS = 1_000_000


class Memory(Recording):
    """A recording of given pieces."""

    def __init__(self, pieces: list[Piece]) -> None:
        super().__init__(Path("memory"))
        self._pieces = pieces

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:
        """The pieces as they are."""
        yield from self._pieces

    @property
    def topics(self) -> tuple[Topic, ...]:
        """None."""
        return ()


def events_at(times: list[int]) -> Events:
    """One event for each time, its x its number within the piece."""
    t = np.array(times, np.int64)
    x = np.arange(len(t), dtype=np.uint16)
    return Events(t, x, x, np.zeros(len(t), np.uint8), 1000, 1000)


@given(st.lists(st.lists(st.integers(0, 40 * MS), max_size=20), max_size=6))
def test_packets_hold_every_event_once_and_none_spans_two_periods(steps: list[list[int]]) -> None:
    """Cut at multiples of the period, nothing is lost; ascending pieces come out in ascending packets."""
    times = list(itertools.accumulate(itertools.chain.from_iterable(steps)))
    ends = itertools.accumulate(len(piece) for piece in steps)
    pieces = [times[end - len(piece) : end] for piece, end in zip(steps, ends, strict=True)]
    recording = Memory([Piece("events", len(p), events_at(p)) for p in pieces])
    packets = list(event_packets(recording, 5 * MS))
    assert all(len(packet) for packet in packets)
    assert [t for packet in packets for t in packet.t.tolist()] == times
    assert all(packet.t[0] // (5 * MS) == packet.t[-1] // (5 * MS) for packet in packets)
    starts = [int(packet.t[0]) // (5 * MS) for packet in packets]
    assert len(set(starts)) == len(starts)


def test_events_that_step_back_are_sorted_within_what_is_at_hand() -> None:
    """The libcaer encoding takes ascending times alone."""
    recording = Memory([Piece("events", 3, events_at([2 * MS, MS, 3 * MS]))])
    (packet,) = event_packets(recording)
    assert packet.t.tolist() == [MS, 2 * MS, 3 * MS]


def test_events_and_frames_come_in_the_order_in_which_cameras_send_them() -> None:
    """A packet is sent at its last event, a frame at its stamp."""
    image = np.zeros((1, 1, 3), np.uint8)
    frames = [Piece("frames", 1, frame=Frame(stamp * MS, image)) for stamp in (3, 12)]
    recording = Memory([Piece("events", 4, events_at([MS, 4 * MS, 6 * MS, 11 * MS])), *frames])
    kinds = [(t // MS, type(item)) for t, item in timeline(recording)]
    assert kinds == [(3, Frame), (4, Events), (6, Events), (11, Events), (12, Frame)]


@pytest.mark.parametrize("rate", [1.0, 0.5, 2.0])
def test_time_runs_on_from_lap_to_lap_and_can_be_traced_back(rate: float) -> None:
    """The end of one lap is the beginning of the next, and a stamp tells which moment it was."""
    schedule = Playback(begin_ns=10**18, start_ns=500 * MS, lap_ns=100 * MS, rate=rate)
    assert schedule.to_ros(500 * MS, 0) == 10**18
    assert schedule.to_ros(600 * MS, 0) == schedule.to_ros(500 * MS, 1) == 10**18 + round(100 * MS / rate)
    for lap in range(3):
        assert schedule.to_recording(schedule.to_ros(540 * MS, lap)) == 540 * MS
    times = np.array([500 * MS, 540 * MS])
    assert schedule.to_ros(times, 2).tolist() == [schedule.to_ros(int(t), 2) for t in times]


def test_the_player_plays_the_topics_that_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is not in the bag ends it with status 1 and the names that are."""
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_frame(Frame(MS, np.zeros((4, 4, 3), np.uint8)))
    assert player.main([str(tmp_path / "bag"), "--image", "/centre"]) == 1
    assert "no topic /centre for --image; those that would do: /camera/image_raw." in capsys.readouterr().err
