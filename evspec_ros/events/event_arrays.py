"""EventArray of dvs_msgs, prophesee_event_msgs and dv_ros2_msgs from serialised bytes, no object per event.

Each is a std_msgs/Header, uint32 height, uint32 width and a sequence of (uint16 x, uint16 y, Time ts, bool
polarity). ROS 1 packs an event into 13 bytes. CDR aligns each field: there events are 16 bytes apart, and x
and y of all but the first lie two bytes nearer to the polarity before them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from evspec_ros.errors import EventDecodingError
from evspec_ros.events.bounds import Outside, outside_in
from evspec_ros.events.cdr import little_endian_body
from evspec_ros.events.decoders import PacketData
from evspec_ros.events.state import SIZE, leave_out
from evspec_ros.events.types import Events

_EVENT_BYTES = 13
_CDR_STRIDE = 16
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, eq=False)
class EventArray:
    """What one message held.

    stamp_ns: its header stamp. events: those inside the sensor, with ROS time. corrupt: events whose time is
    none, outside: events at places that the sensor does not have; both were left out.
    """

    stamp_ns: int
    events: Events
    corrupt: int
    outside: Outside


def read_cdr(message: PacketData) -> EventArray:
    """An EventArray as ROS 2 serialises it: four bytes that name the encoding, then the message.

    Raises EventDecodingError for other encodings than little-endian CDR, for a sensor of no size and for
    fewer bytes than the message announces.
    """
    return _read(little_endian_body(message, "event array"), 0, _CDR_STRIDE, alignment=4)


def read_ros1(message: PacketData) -> EventArray:
    """An EventArray as ROS 1 serialises it; raises EventDecodingError as read_cdr does."""
    return _read(np.frombuffer(message, np.uint8), 4, _EVENT_BYTES, alignment=1)  # after the header's seq


def _read(body: NDArray[np.uint8], stamp_at: int, stride: int, alignment: int) -> EventArray:
    try:
        seconds, nanoseconds, name_bytes = struct.unpack_from("<iII", body.data, stamp_at)
        sizes_at = -(-(stamp_at + 12 + name_bytes) // alignment) * alignment
        height, width, count = struct.unpack_from("<III", body.data, sizes_at)
    except struct.error as error:
        raise EventDecodingError(
            f"An event array of {len(body)} bytes is cut short within its header."
        ) from error
    start = sizes_at + 12
    if count and start + stride * (count - 1) + _EVENT_BYTES > len(body):
        raise EventDecodingError(
            f"An event array announces {count} events, but only {len(body) - start} bytes of them are there."
        )
    if not (0 < width <= 1 << 16 and 0 < height <= 1 << 16):
        raise EventDecodingError(
            f"A sensor of {width} x {height} pixels is impossible: give each side as 1 to 65536 pixels."
        )
    t, x, y, p = np.empty(count, np.int64), *np.empty((2, count), np.uint16), np.empty(count, np.uint8)
    body = body.view()
    body.flags.writeable = False  # read-only whatever came in: one compiled kernel serves all
    state = np.zeros(SIZE, np.int64)  # of what lies outside; an array carries nothing over
    kept, corrupt = _unpack(body, start, stride, width, height, state, t, x, y, p)
    events = Events(t[:kept], x[:kept], y[:kept], p[:kept], width, height)
    return EventArray(seconds * _SECOND_NS + nanoseconds, events, corrupt, outside_in(state))


@njit(cache=True, nogil=True)
def _unpack(
    body: NDArray[np.uint8],
    start: int,
    stride: int,
    width: int,
    height: int,
    state: NDArray[np.int64],
    t: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
) -> tuple[int, int]:
    n = corrupt = 0
    for k in range(len(t)):
        event = start + stride * k
        pixel = event - 2 if k > 0 and stride == _CDR_STRIDE else event
        column, row = _uint16(body, pixel), _uint16(body, pixel + 2)
        seconds = _uint16(body, event + 4) | _uint16(body, event + 6) << 16
        nanoseconds = _uint16(body, event + 8) | _uint16(body, event + 10) << 16
        if seconds >= 1 << 31 or nanoseconds >= _SECOND_NS:
            corrupt += 1
        elif column < width and row < height:
            t[n] = seconds * _SECOND_NS + nanoseconds
            x[n], y[n], p[n] = column, row, body[event + 12] != 0
            n += 1
        else:
            leave_out(state, column, row)
    return n, corrupt


@njit(cache=True, nogil=True, inline="always")
def _uint16(body: NDArray[np.uint8], at: int) -> np.int64:
    return np.int64(body[at]) | np.int64(body[at + 1]) << 8
