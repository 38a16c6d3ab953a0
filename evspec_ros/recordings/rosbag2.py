"""rosbag2 recordings, a folder or one .mcap or .db3 file, read without ROS."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
from backports import zstd
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.serde import SerdeError

from evspec_ros.errors import EventDecodingError, FrameError, RecordingError
from evspec_ros.events.clock import SensorClock
from evspec_ros.events.decoders import Decoder
from evspec_ros.events.types import Events
from evspec_ros.frames.encodings import image_to_rgb
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.recording import Piece, Recording, Topic
from evspec_ros.recordings.rosbag2_types import EVENT_ARRAY, EVENT_PACKET, IMAGE, typestore

EVENT_TYPES = frozenset({EVENT_PACKET, EVENT_ARRAY})
FRAME_TYPES = frozenset({IMAGE})
SUFFIXES = frozenset({".mcap", ".db3"})
DAMAGE = (  # what the reader and its storages raise on bytes that are not what they should be
    ReaderError,
    SerdeError,
    apsw.Error,
    zstd.ZstdError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
UNREADABLE = (EventDecodingError, FrameError, SerdeError, struct.error)  # what a message's content may raise

logger = logging.getLogger(__name__)


class Rosbag2Recording(Recording):
    """The busiest readable event topic and the busiest readable image topic of a bag.

    Two clocks: an event's time is the sensor's, header.stamp is the host's. `events()` brings events onto the
    clock of the header stamps, packet by packet, by the offset that SensorClock tracks, so that events and
    frames compare; `info().events` stays on the sensor's clock. The bag's log time orders messages and is
    used for nothing else, it may be days away from the stamps.

    Topics that cannot be read are left out, with the reason in `topics` and one sentence in the log. Raises
    RecordingError where the bag is damaged, or where it has event or image topics and none can be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if path.is_file() and path.suffix not in SUFFIXES:
            raise RecordingError(f"The bag file {path} has to end in .mcap or .db3; rename it.")
        with self._open() as reader:
            self._topics = _chosen(path, reader)

    @property
    def topics(self) -> tuple[Topic, ...]:
        """All topics of the bag, with counts of messages."""
        return self._topics

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:
        """One piece per message of the topics that are read."""
        types = (EVENT_TYPES if events else frozenset()) | (FRAME_TYPES if frames else frozenset())
        packets = PacketReader()
        for topic, kind, _, data in self._messages(types):
            try:
                piece = read_message(topic, kind, data, packets)
            except UNREADABLE as error:
                raise RecordingError(f"A message on {topic} in {self.path} is not read: {error}") from error
            yield piece

    def messages(self) -> Iterator[tuple[str, str, int, bytes]]:
        """The messages of the topics that are read, unchanged: topic, type, header.stamp in ns, CDR bytes."""
        return self._messages(EVENT_TYPES | FRAME_TYPES)

    def _messages(self, types: frozenset[str]) -> Iterator[tuple[str, str, int, bytes]]:
        wanted = {topic.name for topic in self._topics if topic.type in types and not topic.left_out}
        with self._open() as reader:
            connections = [connection for connection in reader.connections if connection.topic in wanted]
            if not connections:
                return
            for connection, _, data in reader.messages(connections):
                yield connection.topic, connection.msgtype, header_stamp_ns(data), data

    @contextmanager
    def _open(self) -> Iterator[Reader]:
        """The bag opened; whatever its reader trips over becomes one sentence."""
        try:
            with Reader(self.path) as reader:
                yield reader
        except DAMAGE as error:
            raise RecordingError(
                f"The bag {self.path} is damaged, cut short or of an unknown kind ({error}); copy it again "
                f"or repair it with 'ros2 bag reindex'."
            ) from error


def header_stamp_ns(data: bytes) -> int:
    """The stamp of a serialised message whose first field is a std_msgs/Header."""
    little_endian = data[1] & 1  # the second byte of CDR's encapsulation
    seconds, nanoseconds = struct.unpack_from("<iI" if little_endian else ">iI", data, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def read_message(topic: str, kind: str, data: bytes, packets: PacketReader) -> Piece:
    """The events or the frame in a serialised message; raises one of UNREADABLE."""
    message: Any = typestore().deserialize_cdr(data, kind)
    if kind in FRAME_TYPES:
        return Piece(topic, 1, frame=read_image(message))
    return packets.read(topic, message)


def read_image(message: Any) -> Frame:
    """The frame in a sensor_msgs/Image; raises FrameError for an encoding that is not known."""
    image = image_to_rgb(message.data, message.width, message.height, message.encoding, message.step)
    return Frame(message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec, image)


@dataclass
class PacketReader:
    """Turns the packets of one topic into pieces; carries the decoder's state and the clock."""

    decoder: Decoder | None = None
    layout: tuple[str, int, int] = ("", 0, 0)

    def __post_init__(self) -> None:
        self.clock = SensorClock()

    def read(self, topic: str, message: Any) -> Piece:
        """The events of one packet; raises EventDecodingError for an encoding that is not known."""
        layout = (message.encoding, message.width, message.height)
        if self.decoder is None or layout != self.layout:
            self.decoder, self.layout = Decoder(*layout), layout
        triggers = self.decoder.statistics.triggers
        events = self.decoder.decode(message.data, message.time_base)
        triggers = self.decoder.statistics.triggers - triggers
        return Piece(topic, 1, events=events, offset_ns=self._offset_ns(message, events), triggers=triggers)

    def _offset_ns(self, message: Any, events: Events) -> int:
        """What brings this packet's events onto the clock of the header stamps."""
        if not len(events):
            return 0
        first = int(events.t[0])
        stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        self.clock.update(stamp, first)
        return self.clock.to_ros(first) - first


def _chosen(path: Path, reader: Reader) -> tuple[Topic, ...]:
    """All topics of the bag, those that are not read with the reason; logs the reasons."""
    by_count = sorted(reader.connections, key=lambda connection: (-connection.msgcount, connection.topic))
    topics: list[Topic] = []
    for types in (EVENT_TYPES, FRAME_TYPES):
        topics += _one_read(reader, [connection for connection in by_count if connection.msgtype in types])
    if topics and all(topic.left_out for topic in topics):
        reasons = "; ".join(f"{topic.name}: {topic.left_out}" for topic in topics)
        raise RecordingError(f"The bag {path} has no topic that can be read: {reasons}")
    topics += [
        Topic(connection.topic, connection.msgtype, connection.msgcount, "it holds neither events nor images")
        for connection in by_count
        if connection.msgtype not in EVENT_TYPES | FRAME_TYPES
    ]
    for topic in topics:
        if topic.left_out:
            logger.info("Topic %s (%s) of %s is not read: %s.", topic.name, topic.type, path, topic.left_out)
    return tuple(sorted(topics, key=lambda topic: topic.name))


def _one_read(reader: Reader, connections: list[Connection]) -> list[Topic]:
    """The topics of one kind, busiest first; the first that can be read is read."""
    topics: list[Topic] = []
    read = ""
    for connection in connections:
        left_out = f"{read} is read instead" if read else _problem(reader, connection)
        read = read or ("" if left_out else connection.topic)
        topics.append(Topic(connection.topic, connection.msgtype, connection.msgcount, left_out))
    return topics


def _problem(reader: Reader, connection: Connection) -> str:
    """Why a topic cannot be read, judged by its first message; "" if it can."""
    _, _, data = next(reader.messages([connection]), (None, 0, b""))
    if not data:
        return "it is announced and has no message" if connection.msgcount else "it has no message"
    try:
        read_message(connection.topic, connection.msgtype, data, PacketReader())
    except UNREADABLE as error:
        return str(error)
    return ""
