"""event_camera_msgs/EventPacket from its serialised bytes; the events stay where they lie."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evspec_ros.errors import EventDecodingError
from evspec_ros.events.cdr import HEAD_BYTES, body_and_order
from evspec_ros.events.decoders import PacketData


@dataclass(frozen=True, eq=False)
class EventPacket:
    """The message's fields under their own names, beside them those of its header.

    stamp_ns: nanoseconds; events: uint8 [N], a view of the serialised message.
    """

    stamp_ns: int
    frame_id: str
    height: int
    width: int
    seq: int
    time_base: int
    encoding: str
    is_bigendian: bool
    events: NDArray[np.uint8]


def read_cdr(message: PacketData) -> EventPacket:
    """An EventPacket as ROS 2 serialises it: four bytes that name the encoding, then the message.

    Raises EventDecodingError for other encodings than CDR and for fewer bytes than announced.
    """
    data, order = body_and_order(message, "event packet")
    body = data.data
    try:
        seconds, nanoseconds = struct.unpack_from(order + "iI", body)
        frame_id, end = _string(body, 8, order)
        height, width = struct.unpack_from(order + "II", body, end := _aligned(end, 4))
        seq, time_base = struct.unpack_from(order + "QQ", body, end := _aligned(end + 8, 8))
        encoding, end = _string(body, end + 16, order)
        (is_bigendian,) = struct.unpack_from("?", body, end)
        (count,) = struct.unpack_from(order + "I", body, end := _aligned(end + 1, 4))
    except struct.error as error:
        raise EventDecodingError(
            f"An event packet of {len(data) + HEAD_BYTES} bytes is cut short."
        ) from error
    events = data[end + 4 : end + 4 + count]
    if len(events) < count:
        raise EventDecodingError(
            f"An event packet announces {count} bytes of events, but only {len(events)} are there."
        )
    stamp_ns = seconds * 1_000_000_000 + nanoseconds
    return EventPacket(stamp_ns, frame_id, height, width, seq, time_base, encoding, is_bigendian, events)


def _string(body: memoryview, at: int, order: str) -> tuple[str, int]:
    """The string whose 4-aligned length is at or after `at`, and where it ends; its bytes end with a zero."""
    at = _aligned(at, 4)
    (size,) = struct.unpack_from(order + "I", body, at)
    text = body[at + 4 : at + 4 + size].tobytes()
    return text.rstrip(b"\0").decode(errors="replace"), at + 4 + size


def _aligned(at: int, size: int) -> int:
    return -(-at // size) * size
