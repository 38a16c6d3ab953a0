"""What the bags of ROS 1 and ROS 2 share: which topics are read, events and frames from messages."""

from __future__ import annotations

import logging
import struct
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import apsw
from backports import zstd
from rosbags.interfaces import Connection
from rosbags.rosbag1 import ReaderError as Rosbag1Error
from rosbags.rosbag2 import ReaderError as Rosbag2Error
from rosbags.serde import SerdeError

from evspec_ros.errors import EventDecodingError, FrameError, RecordingError
from evspec_ros.events.clock import SensorClock
from evspec_ros.events.decoders import Decoder
from evspec_ros.events.event_arrays import EventArray
from evspec_ros.events.types import Events
from evspec_ros.frames.encodings import message_to_rgb
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.recording import DAMAGE, Piece, Recording, Topic
from evspec_ros.recordings.rosbag2_types import COMPRESSED_IMAGE, EVENT_ARRAY, EVENT_PACKET, IMAGE

PACKET_TYPES = frozenset({EVENT_PACKET, EVENT_ARRAY})
ARRAY_TYPES = frozenset({"dvs_msgs/msg/EventArray", "prophesee_event_msgs/msg/EventArray"})
EVENT_TYPES = PACKET_TYPES | ARRAY_TYPES
FRAME_TYPES = frozenset({IMAGE, COMPRESSED_IMAGE})
BAG_DAMAGE = (
    *DAMAGE,
    Rosbag1Error,
    Rosbag2Error,
    SerdeError,
    apsw.Error,
    zstd.ZstdError,
    struct.error,
    AssertionError,
    EOFError,
)
UNREADABLE = (EventDecodingError, FrameError, SerdeError, struct.error)  # what a message's content may raise

logger = logging.getLogger(__name__)


class BagRecording(Recording):
    """The busiest readable event topic and the busiest readable image topic of a bag.

    Two clocks: the time of an event in an EventPacket is the sensor's, header.stamp is the host's. `events()`
    brings these events onto the clock of the header stamps, packet by packet, by the offset that SensorClock
    tracks, so that events and frames compare; `info().events` stays on the sensor's clock. Events in an
    EventArray have ROS time as they are. The bag's log time orders messages and is used for nothing else, it
    may be days away from the stamps.

    Topics that cannot be read are left out, with the reason in `topics` and one sentence in the log. Raises
    RecordingError where the bag is damaged, or where it has event or image topics and none can be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._opened() as bag:
            self._topics = _chosen(bag)

    @abstractmethod
    def _reader(self) -> Reader:
        """What reads this kind of bag, not open yet."""

    @abstractmethod
    def _wire(self, reader: Reader) -> Wire:
        """How the messages of an open bag are serialised."""

    @contextmanager
    def _opened(self) -> Iterator[OpenBag]:
        """The bag, open for reading; raises RecordingError if it is none."""
        with damage_told(self.path):
            reader = self._reader()
            reader.open()
        try:
            yield OpenBag(self.path, reader, self._wire(reader))
        finally:
            reader.close()

    @property
    def topics(self) -> tuple[Topic, ...]:
        """All topics of the bag, with counts of messages."""
        return self._topics

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:
        """One piece per message of the topics that are read."""
        types = (EVENT_TYPES if events else frozenset()) | (FRAME_TYPES if frames else frozenset())
        wanted = {(one.name, one.type) for one in self._topics if one.type in types and not one.left_out}
        packets = PacketReader()
        with self._opened() as bag:
            for connection, data in bag.messages(bag.connections_of(wanted)):
                try:
                    piece = bag.wire.read(connection.topic, connection.msgtype, data, packets)
                except UNREADABLE as error:
                    raise RecordingError(
                        f"A message on {connection.topic} in {self.path} is not read: {error}"
                    ) from error
                yield piece


@dataclass(frozen=True)
class Wire:
    """How the messages of a bag are serialised.

    deserialize: bytes and type to a message; event_array: bytes to the events in them.
    """

    deserialize: Callable[[bytes, str], Any]
    event_array: Callable[[bytes], EventArray]

    def read(self, topic: str, kind: str, data: bytes, packets: PacketReader) -> Piece:
        """The events or the frame in a serialised message; raises one of UNREADABLE."""
        if kind in ARRAY_TYPES:
            return Piece(topic, 1, events=self.event_array(data).events)
        message = self.deserialize(data, kind)
        if kind in FRAME_TYPES:
            return Piece(topic, 1, frame=Frame(_stamp_ns(message), message_to_rgb(message)))
        return packets.read(topic, message)


class Reader(Protocol):
    """What rosbags' readers of both kinds of bags have in common."""

    def open(self) -> None:
        """Open the bag and read its index."""

    def close(self) -> None:
        """Close the bag."""

    @property
    def connections(self) -> Collection[Connection]:
        """All topics, by publisher."""

    def messages(self, connections: Collection[Connection]) -> Iterator[tuple[Connection, int, bytes]]:
        """The messages of some connections, by log time."""


@dataclass(frozen=True)
class OpenBag:
    """A bag being read; whatever its reader trips over becomes one sentence."""

    path: Path
    reader: Reader
    wire: Wire

    @property
    def connections(self) -> Collection[Connection]:
        """One for each topic, or more where several publishers differ."""
        return self.reader.connections

    def connections_of(self, topics: Collection[tuple[str, str]]) -> list[Connection]:
        """Those of some topics, given by name and type."""
        return [one for one in self.connections if (one.topic, one.msgtype) in topics]

    def messages(self, connections: Collection[Connection]) -> Iterator[tuple[Connection, bytes]]:
        """The messages of some connections, by log time."""
        if not connections:
            return
        messages = self.reader.messages(connections)
        while True:
            with damage_told(self.path):
                message = next(messages, None)
            if message is None:
                return
            connection, _, data = message
            yield connection, data


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turns what rosbags raises on a damaged bag into RecordingError."""
    repair = "rosbag reindex" if path.suffix == ".bag" else "ros2 bag reindex"
    try:
        yield
    except BAG_DAMAGE as error:
        raise RecordingError(
            f"The bag {path} is damaged, cut short or of an unknown kind ({error}); copy it again or repair "
            f"it with '{repair}'."
        ) from error


@dataclass
class PacketReader:
    """Turns the packets of one topic into pieces; carries the decoder's state and the clock."""

    decoder: Decoder | None = None
    layout: tuple[str, int, int] = ("", 0, 0)
    clock: SensorClock = field(default_factory=SensorClock)

    def read(self, topic: str, message: Any) -> Piece:
        """The events of one packet; raises EventDecodingError for an encoding that is not known."""
        layout = (message.encoding, message.width, message.height)
        if self.decoder is None or layout != self.layout:
            self.decoder, self.layout = Decoder(*layout), layout
        triggers = self.decoder.statistics.triggers
        events = self.decoder.decode(message.events, message.time_base)
        triggers = self.decoder.statistics.triggers - triggers
        return Piece(topic, 1, events=events, offset_ns=self._offset_ns(message, events), triggers=triggers)

    def _offset_ns(self, message: Any, events: Events) -> int:
        """What brings this packet's events onto the clock of the header stamps."""
        if not len(events):
            return 0
        first = int(events.t[0])
        self.clock.update(_stamp_ns(message), first)
        return self.clock.to_ros(first) - first


def _stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)


def _chosen(bag: OpenBag) -> tuple[Topic, ...]:
    """All topics of the bag, those that are not read with the reason; logs the reasons."""
    counts: Counter[tuple[str, str]] = Counter()
    for connection in bag.connections:
        counts[connection.topic, connection.msgtype] += connection.msgcount
    busiest_first = [
        Topic(name, kind, count) for (name, kind), count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    streams = [*_one_read(bag, busiest_first, EVENT_TYPES), *_one_read(bag, busiest_first, FRAME_TYPES)]
    if streams and all(topic.left_out for topic in streams):
        reasons = "; ".join(f"{topic.name}: {topic.left_out}" for topic in streams)
        raise RecordingError(f"The bag {bag.path} has no topic that can be read ({reasons}).")
    others = [
        replace(topic, left_out="it holds neither events nor images")
        for topic in busiest_first
        if topic.type not in EVENT_TYPES | FRAME_TYPES
    ]
    topics = tuple(sorted([*streams, *others], key=lambda topic: topic.name))
    for topic in topics:
        if topic.left_out:
            logger.info("Topic %s of %s is not read: %s.", topic.name, bag.path, topic.left_out)
    return topics


def _one_read(bag: OpenBag, busiest_first: list[Topic], types: frozenset[str]) -> list[Topic]:
    """The topics of some types; the first that can be read is read, the others say why they are not."""
    topics: list[Topic] = []
    read = ""
    for topic in busiest_first:
        if topic.type in types:
            left_out = f"{read} is read instead" if read else _problem(bag, topic)
            read = read or ("" if left_out else topic.name)
            topics.append(replace(topic, left_out=left_out))
    return topics


def _problem(bag: OpenBag, topic: Topic) -> str:
    """Why a topic cannot be read, judged by its first message; "" if it can."""
    _, data = next(bag.messages(bag.connections_of({(topic.name, topic.type)})), (None, b""))
    if not data:
        return f"{topic.count} messages are announced and none is there"
    try:
        bag.wire.read(topic.name, topic.type, data, PacketReader())
    except UNREADABLE as error:
        return str(error).rstrip(".")
    return ""
