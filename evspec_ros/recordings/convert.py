"""Any recording as rosbag2."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.bag_writer import BagWriter, in_time_order
from evspec_ros.recordings.opening import open_recording
from evspec_ros.recordings.recording import WHATEVER, Recording, Wanted
from evspec_ros.recordings.times import ros_stamp

PACKET_NS = 10_000_000


def convert(
    source: Path,
    destination: Path,
    storage: str = "mcap",
    progress: Callable[[float], None] | None = None,
    wanted: Wanted = WHATEVER,
) -> None:
    """Write the recording at `source` as a rosbag2 folder at `destination`; storage: "mcap" or "sqlite3".

    Events become EventPackets of up to 10 ms, frames rgb8 images, all stamped with the time of their first
    datum on the source's clock. Times are kept to the microsecond: events of finer resolution lose what lies
    between, see BagWriter.write_events. Topics that the source's reader leaves out are not carried over.
    `progress` is called with the seconds of the recording that are written so far; `wanted` names the topics
    to carry over.

    Raises RecordingError where the source cannot be read, is empty or has times that a ROS stamp cannot hold,
    or the destination exists.
    """
    recording = open_recording(source, wanted)
    with BagWriter(destination, storage) as bag:
        start_ns: int | None = None
        for stamp_ns, datum in _in_stamp_order(recording):
            ros_stamp(stamp_ns, source)  # tells of a time that no stamp holds by the source's name
            if isinstance(datum, Frame):
                bag.write_frame(datum)
            else:
                bag.write_events(datum, stamp_ns)
            start_ns = stamp_ns if start_ns is None else start_ns
            if progress is not None:
                progress((stamp_ns - start_ns) / 1e9)


def _in_stamp_order(recording: Recording) -> Iterator[tuple[int, Events | Frame]]:
    """Packets and frames, each with its stamp."""
    events = ((int(packet.t[0]), packet) for packet in packets(recording.events(), PACKET_NS))
    frames = ((frame.stamp_ns, frame) for frame in recording.frames())
    streams: tuple[Iterator[tuple[int, Events | Frame]], ...] = (events, frames)
    return heapq.merge(*streams, key=lambda item: item[0])


def packets(pieces: Iterable[Events], duration_ns: int) -> Iterator[Events]:
    """The events in sorted packets, each within one interval [k duration_ns, (k + 1) duration_ns).

    A new packet begins wherever the interval changes, also where time jumps back.
    """
    pending: list[Events] = []
    current = 0
    for unsorted in pieces:
        piece = in_time_order(unsorted)
        intervals = piece.t // duration_ns
        edges = [0, *(np.flatnonzero(np.diff(intervals)) + 1).tolist(), len(piece)]
        for first, last in pairwise(edges):
            if pending and intervals[first] != current:
                yield in_time_order(Events.concatenate(pending, piece.width, piece.height))
                pending = []
            current = int(intervals[first])
            pending.append(piece[first:last])
    if pending:
        yield in_time_order(Events.concatenate(pending, pending[0].width, pending[0].height))
