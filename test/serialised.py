"""Event messages as rosbags, an independent implementation of CDR, serialises them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from evspec_ros.interfaces import message_texts


@cache
def typestore() -> Typestore:
    """ROS 2's messages and those of event cameras."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in message_texts().items():
        store.register(get_types_from_msg(text, name))
    return store


def _header(stamp_ns: int, frame_id: str) -> Any:
    types = typestore().types
    stamp = types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9))
    return types["std_msgs/msg/Header"](stamp, frame_id)


def serialised_packet(stamp_ns: int, *, frame_id: str = "", events: bytes, **fields: Any) -> bytes:
    """An event_camera_msgs/EventPacket with these fields."""
    kind = "event_camera_msgs/msg/EventPacket"
    data = np.frombuffer(events, np.uint8)
    message = typestore().types[kind](header=_header(stamp_ns, frame_id), events=data, **fields)
    return bytes(typestore().serialize_cdr(message, kind))


def serialised_array(
    events: Iterable[tuple[int, int, int, bool]], width: int, height: int, stamp_ns: int = 0
) -> bytes:
    """A dvs_msgs/EventArray with these events: x, y, nanoseconds, polarity."""
    kind, types = "dvs_msgs/msg/EventArray", typestore().types
    event, time = types["dvs_msgs/msg/Event"], types["builtin_interfaces/msg/Time"]
    objects = [event(x, y, time(*divmod(t, 10**9)), p) for x, y, t, p in events]
    message = types[kind](header=_header(stamp_ns, ""), height=height, width=width, events=objects)
    return bytes(typestore().serialize_cdr(message, kind))
