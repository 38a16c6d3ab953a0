"""A recording as its cameras sent it: packets of events and frames, in the order of their times."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

import numpy as np

from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.bag_writer import in_time_order
from evspec_ros.recordings.recording import Recording

PACKET_NS = 5_000_000  # events of this long share a packet, like a driver's


def event_packets(recording: Recording, period_ns: int = PACKET_NS) -> Iterator[Events]:
    """The recording's events in time order, cut at multiples of period_ns; none of the packets is empty."""
    carried: Events | None = None
    for piece in recording.events():
        joined = piece if carried is None else Events.concatenate((carried, piece), piece.width, piece.height)
        joined = in_time_order(joined)
        periods = joined.t // period_ns
        cuts = np.flatnonzero(np.diff(periods)) + 1
        bounds = [0, *cuts.tolist(), len(joined)]
        for first, last in itertools.pairwise(bounds[:-1]):
            yield joined[first:last]
        carried = joined[bounds[-2] :]
    if carried is not None:
        yield carried


def timeline(recording: Recording) -> Iterator[tuple[int, Events | Frame]]:
    """Everything in the recording with the time at which a camera would send it, in that order; a frame comes
    before the packet that ends with it, so that a window which ends there has it.
    """
    packets = ((int(events.t[-1]), events) for events in event_packets(recording))
    frames = ((frame.stamp_ns, frame) for frame in recording.frames())
    both: tuple[Iterator[tuple[int, Events | Frame]], ...] = (frames, packets)
    yield from heapq.merge(*both, key=lambda entry: entry[0])
