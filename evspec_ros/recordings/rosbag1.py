"""Recordings of ROS 1: a .bag file, read without ROS by the message definitions that it carries."""

from __future__ import annotations

from rosbags.rosbag1 import Reader as Rosbag1Reader
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from evspec_ros.errors import RecordingError
from evspec_ros.events.event_arrays import read_ros1
from evspec_ros.recordings.bags import EVENT_TYPES, FRAME_TYPES, BagRecording, Reader, Wire


class Rosbag1Recording(BagRecording):
    """A bag of ROS 1; which topics are read, and on which clock, says BagRecording.

    Types have the names of ROS 2: `sensor_msgs/msg/Image`, not `sensor_msgs/Image`.
    """

    def _reader(self) -> Reader:
        return Rosbag1Reader(self.path)

    def _wire(self, reader: Reader) -> Wire:
        return Wire(self._types(reader).deserialize_ros1, read_ros1)

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
