"""rosbag2 recordings, a folder or one .mcap or .db3 file, read without ROS."""

from __future__ import annotations

from pathlib import Path

from rosbags.rosbag2 import Reader as Rosbag2Reader

from evspec_ros.errors import RecordingError
from evspec_ros.events import event_arrays, event_packets
from evspec_ros.events.decoders import PacketData
from evspec_ros.events.event_packets import EventPacket
from evspec_ros.recordings.bags import BagRecording, Reader, Wire
from evspec_ros.recordings.rosbag2_types import typestore

SUFFIXES = frozenset({".mcap", ".db3"})


class Rosbag2Recording(BagRecording):
    """A bag of ROS 2; which topics are read, and on which clock, says BagRecording."""

    def __init__(self, path: Path) -> None:
        if path.is_file() and path.suffix not in SUFFIXES:
            raise RecordingError(f"The bag file {path} has to end in .mcap or .db3; rename it.")
        super().__init__(path)

    def _reader(self) -> Reader:
        return Rosbag2Reader(self.path)

    def _wire(self, reader: Reader) -> Wire:  # noqa: ARG002 - ROS 2's types are known
        return Wire(typestore().deserialize_cdr, _event_packet, event_arrays.read_cdr)


def _event_packet(data: PacketData, kind: str) -> EventPacket:  # noqa: ARG001 - all are laid out alike
    return event_packets.read_cdr(data)
