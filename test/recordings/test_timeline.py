"""A recording as its cameras sent it: cut into packets, in time order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.recording import Piece, Recording, Topic
from evspec_ros.recordings.timeline import event_packets, timeline

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


def test_a_frame_comes_before_the_events_that_end_with_it() -> None:
    """A window that ends there has it, whoever cuts it and when."""
    image = np.zeros((1, 1, 3), np.uint8)
    recording = Memory(
        [Piece("events", 1, events_at([3 * MS])), Piece("frames", 1, frame=Frame(3 * MS, image))]
    )
    assert [type(item) for _, item in timeline(recording)] == [Frame, Events]
