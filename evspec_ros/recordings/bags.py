"""What the bags of ROS 1 and ROS 2 share: which topics are read, events and frames from messages."""

from __future__ import annotations

import logging
import struct
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import apsw
from backports import zstd
from rosbags.interfaces import Connection
from rosbags.rosbag1 import ReaderError as Rosbag1Error
from rosbags.rosbag2 import ReaderError as Rosbag2Error
from rosbags.serde import SerdeError

from evspec_ros.errors import EventDecodingError, EvspecError, FrameError, RecordingError
from evspec_ros.events.decoders import PacketData
from evspec_ros.events.event_arrays import EventArray
from evspec_ros.events.event_packets import EventPacket
from evspec_ros.events.streams import ArrayFollower, EventFollower, PacketFollower, StreamCounts, Taken
from evspec_ros.frames.encodings import message_to_rgb
from evspec_ros.frames.losses import FrameLosses
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
UNREADABLE = (  # what a message's content may raise
    *DAMAGE,
    EventDecodingError,
    FrameError,
    SerdeError,
    struct.error,
    AssertionError,
)

logger = logging.getLogger(__name__)


class BagRecording(Recording):
    """The busiest readable event topic and the busiest readable image topic of a bag.

    Messages are taken in as the live node takes them in, log times being when they arrive: one stream of a
    topic is followed, a bad message is left out and counted, losses and restarts are told by `info`.

    Two clocks: the time of an event in an EventPacket is the sensor's, header.stamp is the host's. `events()`
    brings these events onto the clock of the header stamps, packet by packet, by the offset that SensorClock
    tracks, so that events and frames compare; `info().events` stays on the sensor's clock. Events in an
    EventArray have ROS time as they are. The bag's log time orders messages and tells how long a stream was
    silent; it may be days away from the stamps.

    Topics that cannot be read are left out, with the reason in `topics` and one sentence in the log. Raises
    RecordingError where the bag is damaged, or where it has event or image topics and none can be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._warned: set[str] = set()  # topics
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
        with self._opened() as bag:
            readers = {name: TopicReader(name, kind, bag.wire) for name, kind in wanted}
            for connection, log_ns, data in bag.messages(bag.connections_of(wanted)):
                piece = readers[connection.topic].read(data, log_ns)
                self._warn_once(piece)
                yield piece

    def _warn_once(self, piece: Piece) -> None:
        """Log the first message of a topic that is left out."""
        if piece.read.refused and piece.topic not in self._warned:
            self._warned.add(piece.topic)
            logger.warning(
                "A message on %s in %s is left out, as further ones of the kind will be: %s",
                piece.topic,
                self.path,
                piece.read.problem,
            )


@dataclass(frozen=True)
class Wire:
    """How the messages of a bag are serialised.

    deserialize, event_packet: bytes and type to a message; event_array: bytes to the events in them. The
    latter two raise EventDecodingError for what is no such message.
    """

    deserialize: Callable[[bytes, str], Any]
    event_packet: Callable[[PacketData, str], EventPacket]
    event_array: Callable[[PacketData], EventArray]

    def follower(self, kind: str) -> EventFollower[Any]:
        """What takes in event messages of this type."""
        if kind in ARRAY_TYPES:
            return ArrayFollower(self.event_array)
        return PacketFollower(lambda data: self.event_packet(data, kind))

    def frame(self, data: bytes, kind: str) -> Frame:
        """The frame in a serialised image; raises one of UNREADABLE."""
        message = self.deserialize(data, kind)
        return Frame(stamp_ns(message), message_to_rgb(message))


class TopicReader:
    """Turns the messages of one topic, in their order, into pieces; those of bad ones are without content."""

    def __init__(self, topic: str, kind: str, wire: Wire) -> None:
        self._topic, self._kind, self._wire = topic, kind, wire
        self._follower = wire.follower(kind) if kind in EVENT_TYPES else None
        self._frame_losses = FrameLosses()

    def read(self, data: bytes, log_ns: int) -> Piece:
        """The piece of one message that was recorded at log_ns."""
        if self._follower is None:
            return self._frame(data, log_ns)
        return self._events(self._follower.take(data, log_ns / 1e9), log_ns)

    def _events(self, taken: Taken, log_ns: int) -> Piece:
        events, offset_ns = taken.events, 0
        if events is not None and len(events):
            first_ns = int(events.t[0])
            offset_ns = taken.clock.to_ros(first_ns) - first_ns
        return Piece(
            self._topic, 1, events=events, offset_ns=offset_ns, triggers=taken.triggers, read=taken.read,
            log_ns=log_ns,
        )  # fmt: skip

    def _frame(self, data: bytes, log_ns: int) -> Piece:
        try:
            frame = self._wire.frame(data, self._kind)
        except UNREADABLE as error:
            self._frame_losses.refused()
            read = StreamCounts(messages=1, refused=1, problem=reason_of(error))
            return Piece(self._topic, 1, read=read, log_ns=log_ns)
        lost = self._frame_losses.after(frame.stamp_ns)
        return Piece(self._topic, 1, frame=frame, read=StreamCounts(1, items=1, lost=lost), log_ns=log_ns)


def reason_of(error: Exception) -> str:
    """A sentence about a message that cannot be read; what libraries say is none."""
    if isinstance(error, EvspecError):
        return str(error)
    return f"It is damaged or cut short ({str(error) or type(error).__name__})."


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

    def messages(self, connections: Collection[Connection]) -> Iterator[tuple[Connection, int, bytes]]:
        """The messages of some connections with their log times, in that order."""
        if not connections:
            return
        messages = self.reader.messages(connections)
        while True:
            with damage_told(self.path):
                message = next(messages, None)
            if message is None:
                return
            yield message


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


def stamp_ns(message: Any) -> int:
    """A message's header stamp, nanoseconds."""
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
    """Why a topic cannot be read, which is so where none of its messages can; "" if it can."""
    reader = TopicReader(topic.name, topic.type, bag.wire)
    problem = f"{topic.count} messages are announced and none is there"
    first = True
    for _, log_ns, data in bag.messages(bag.connections_of({(topic.name, topic.type)})):
        read = reader.read(data, log_ns).read
        if not read.refused:
            return ""
        if first:
            problem, first = read.problem.rstrip("."), False
    return problem
