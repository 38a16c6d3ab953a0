"""Writing events as packets."""

from __future__ import annotations

import numpy as np

from evspec_ros.errors import EventDecodingError
from evspec_ros.events.types import Events

_STAMPS = 1 << 31  # a libcaer stamp is a non-negative int32, microseconds


def encode_libcaer(events: Events, time_base: int) -> bytes:
    """The `events` field of an EventPacket with encoding libcaer and this time base: 8 bytes an event.

    The format counts microseconds from time_base (nanoseconds), so decoding gives the same events back with
    each time rounded down to a whole microsecond after time_base. Raises EventDecodingError for what it
    cannot hold: events before time_base or 2^31 us after it, events out of order, coordinates above 32767.
    """
    stamps = (events.t - time_base) // 1000
    steps = np.diff(stamps, prepend=0)  # the first one counts from time_base
    if len(steps) and (steps.min() < 0 or stamps[-1] >= _STAMPS):
        raise EventDecodingError(
            f"Events from {events.t.min()} to {events.t.max()} ns do not fit into a libcaer packet with time "
            f"base {time_base}: they must be in order, none before the time base or 2^31 us after it."
        )
    if len(events) and max(events.x.max(), events.y.max()) > 0x7FFF:
        raise EventDecodingError(
            f"Events at x {events.x.max()}, y {events.y.max()} do not fit into a libcaer packet: "
            "coordinates must be at most 32767."
        )
    words = np.empty((len(events), 2), "<u4")
    words[:, 0] = events.x
    words[:, 0] <<= 17
    words[:, 0] |= events.y.astype(np.uint32) << 2 | events.p.astype(np.uint32) << 1 | 1  # bit 0: valid
    words[:, 1] = stamps
    return words.tobytes()
