"""Recordings of ROS 1: a .bag file, read without ROS by the message definitions that it carries."""

from __future__ import annotations

from functools import partial
from typing import Any

from rosbags.rosbag1 import Reader as Rosbag1Reader
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from evspec_ros.errors import EventDecodingError, RecordingError
from evspec_ros.events.decoders import PacketData
from evspec_ros.events.event_arrays import read_ros1
from evspec_ros.events.event_packets import EventPacket
from evspec_ros.recordings.bags import (
    EVENT_TYPES,
    FRAME_TYPES,
    UNREADABLE,
    BagRecording,
    Reader,
    Wire,
    reason_of,
    stamp_ns,
)


class Rosbag1Recording(BagRecording):
    """A bag of ROS 1; which topics are read, and on which clock, says BagRecording.

    Types have the names of ROS 2: `sensor_msgs/msg/Image`, not `sensor_msgs/Image`.
    """

    def _reader(self) -> Reader:
        return Rosbag1Reader(self.path)

    def _wire(self, reader: Reader) -> Wire:
        store = self._types(reader)
        return Wire(store.deserialize_ros1, partial(_event_packet, store), read_ros1)

    def _types(self, reader: Reader) -> Typestore:
        """The bag's own definitions of the messages that can be read."""
        store = get_typestore(Stores.EMPTY)
        for connection in reader.connections:
            if connection.msgtype not in EVENT_TYPES | FRAME_TYPES:
                continue
            try:
                store.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
            except (TypesysError, LookupError, ValueError) as error:
                raise RecordingError(
                    f"The bag {self.path} defines the message type {connection.msgtype} of "
                    f"{connection.topic} in a way that cannot be read; record or convert it again."
                ) from error
        return store


def _event_packet(store: Typestore, data: PacketData, kind: str) -> EventPacket:
    """An EventPacket as ROS 1 serialises it; raises EventDecodingError for what is none."""
    try:
        message: Any = store.deserialize_ros1(bytes(data), kind)
    except UNREADABLE as error:
        raise EventDecodingError(reason_of(error)) from error
    return EventPacket(
        stamp_ns(message), message.header.frame_id, message.height, message.width, message.seq,
        message.time_base, message.encoding, message.is_bigendian, message.events,
    )  # fmt: skip
