"""What the bags of ROS 1 and ROS 2 share: which topics are read, events and frames from messages."""

from __future__ import annotations

import logging
import struct
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import apsw
from rosbags.interfaces import Connection
from rosbags.rosbag1 import ReaderError as Rosbag1Error
from rosbags.rosbag2 import ReaderError as Rosbag2Error
from rosbags.serde import SerdeError

from evspec_ros.errors import EventDecodingError, EvspecError, FrameError, RecordingError
from evspec_ros.events.decoders import PacketData
from evspec_ros.events.event_arrays import EventArray
from evspec_ros.events.event_packets import EventPacket
from evspec_ros.events.streams import ArrayFollower, EventFollower, PacketFollower, StreamCounts, Taken
from evspec_ros.frames.encodings import Look, look_of, message_to_rgb
from evspec_ros.frames.losses import FrameLosses
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.compression import zstd
from evspec_ros.recordings.recording import DAMAGE, WHATEVER, Piece, Recording, Topic, Wanted
from evspec_ros.recordings.rosbag2_types import (
    ARRAY_TYPES,
    COMPRESSED_IMAGE,
    IMAGE,
    PACKET_TYPES,
    read_as,
)
from evspec_ros.recordings.stamps import Middle, Strays, header_stamp_ns
from evspec_ros.recordings.topics import NEITHER, Judgement, one_read, tell_left_out, the_named

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
REPAIRS = {  # by the end of a file's name
    ".bag": "rosbag reindex {}",
    ".active": "rosbag reindex {}",
    ".mcap": "mcap recover {} -o whole.mcap",
    ".db3": "sqlite3 {} .recover | sqlite3 whole.db3",
}
PLACES, AT_FIRST, ELSEWHERE = 8, 64, 8  # where in a bag stamps are compared, and how many there

logger = logging.getLogger(__name__)


class BagRecording(Recording):
    """One topic of events and one of images of a bag: those named, else the busiest that can be read, of
    images a colour camera's before all others.

    Messages are taken in as the live node takes them in, log times being when they arrive: one stream of a
    topic is followed, a bad message is left out and counted, losses and restarts are told by `info`.

    Two clocks: the time of an event in an EventPacket is the sensor's, header.stamp is the host's. `events()`
    brings these events onto the clock of the header stamps, packet by packet, by the offset that SensorClock
    tracks, so that events and frames compare; `info().events` stays on the sensor's clock. Events in an
    EventArray have ROS time as they are. The bag's log time orders messages and tells how long a stream was
    silent; it may be days away from the stamps. A message whose stamp is decades away from most others is
    told in `remarks`, and the stamp is not used.

    Topics that are not read are left out, with the reason in `topics` and one line in the log. Raises
    RecordingError where the bag is damaged, or where it has event or image topics and none can be read.
    """

    def __init__(self, path: Path, wanted: Wanted = WHATEVER) -> None:
        super().__init__(path)
        self._warned: set[str] = set()  # topics
        with self._opened() as bag:
            self._remarks = [f"{remark}." for remark in bag.reader.remarks]
            for remark in self._remarks:
                logger.warning("%s: %s", path, remark)
            self._topics = _chosen(bag, wanted)
            self._middle = _middle(bag, bag.connections_of(self._read(EVENT_TYPES | FRAME_TYPES, bag)))
        tell_left_out(path, self._topics)

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

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is not as it should be with the files, and after a pass over them with the stamps."""
        return tuple(self._remarks)

    @property
    def about_log_time(self) -> str:
        """A sentence where the log time is a day or more away from the stamps."""
        return self._middle.about_log_time() if self._middle else ""

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:
        """One piece per message of the topics that are read."""
        types = (EVENT_TYPES if events else frozenset()) | (FRAME_TYPES if frames else frozenset())
        strays = Strays(self._middle)
        with self._opened() as bag:
            connections = bag.connections_of(self._read(types, bag))
            readers = {one.topic: TopicReader(one.topic, read_as(one), bag.wire) for one in connections}
            for connection, log_ns, data in bag.messages(connections):
                placed = strays.placed(connection, log_ns, data)
                piece = readers[connection.topic].read(placed, log_ns)
                self._warn_once(piece)
                yield strays.cleared(piece)
        self._tell(strays)

    def _read(self, types: Collection[str], bag: OpenBag) -> set[tuple[str, str]]:
        """Name and type of the topics that are read, among those read as some types."""
        read = {(one.name, one.type) for one in self._topics if not one.left_out}
        return {
            (one.topic, one.msgtype)
            for one in bag.connections
            if (one.topic, one.msgtype) in read and read_as(one) in types
        }

    def _tell(self, strays: Strays) -> None:
        """Remark on stray stamps, once."""
        if strays.count and (remark := str(strays)) not in self._remarks:
            logger.warning("%s: %s", self.path, remark)
            self._remarks.append(remark)

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

    def time_ns(self, kind: str, data: bytes) -> int | None:
        """When a serialised message happened: its header stamp, an event array's first event; None where
        neither can be read.
        """
        try:
            if kind not in ARRAY_TYPES:
                return header_stamp_ns(data)
            events = self.event_array(data).events
        except UNREADABLE:
            return None
        return int(events.t[0]) if len(events) else None

    def follower(self, kind: str) -> EventFollower[Any]:
        """What takes in event messages of this type."""
        if kind in ARRAY_TYPES:
            return ArrayFollower(self.event_array)
        return PacketFollower(lambda data: self.event_packet(data, kind))

    def frame(self, data: bytes, kind: str) -> Frame:
        """The frame in a serialised image; raises one of UNREADABLE."""
        message = self.deserialize(data, kind)
        return Frame(stamp_ns(message), message_to_rgb(message))

    def look(self, data: bytes, kind: str) -> Look:
        """What sends such images as a serialised one that can be read."""
        return look_of(self.deserialize(data, kind))


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
            log_ns=log_ns, outside=taken.outside,
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

    @property
    def span(self) -> tuple[int, int]:
        """Log time of the first message, and just after the last."""

    @property
    def remarks(self) -> Collection[str]:
        """What is not as it should be, as far as reading the index tells."""

    def messages(
        self, connections: Collection[Connection], start: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """The messages of some connections, by log time, from a log time on."""


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

    def messages(
        self, connections: Collection[Connection], start_ns: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """The messages of some connections with their log time, in its order, from a log time on; their type
        is the one as which they are read.
        """
        if not connections:
            return
        messages = self.reader.messages(connections, start_ns)
        while True:
            with damage_told(self.path):
                message = next(messages, None)
            if message is None:
                return
            connection, log_ns, data = message
            yield connection._replace(msgtype=read_as(connection)), log_ns, data


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turns what rosbags raises on a damaged bag into RecordingError."""
    try:
        yield
    except BAG_DAMAGE as error:
        repair = REPAIRS.get(path.suffix, "").format(path)
        raise RecordingError(
            f"The bag {path} is damaged, cut short or of an unknown kind ({error}); copy it again"
            + (f" or repair it with '{repair}'." if repair else ".")
        ) from error


def stamp_ns(message: Any) -> int:
    """A message's header stamp, nanoseconds."""
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)


def _chosen(bag: OpenBag, wanted: Wanted) -> tuple[Topic, ...]:
    """All topics of the bag, those that are not read with the reason."""
    counts: Counter[tuple[str, str]] = Counter()
    kinds: dict[tuple[str, str], str] = {}
    for connection in bag.connections:
        counts[connection.topic, connection.msgtype] += connection.msgcount
        kinds[connection.topic, connection.msgtype] = read_as(connection)

    if not counts:
        raise RecordingError(f"The bag {bag.path} is empty: there is no topic in it; record it again.")

    def judge(topic: Topic) -> Judgement:
        return _judged(bag, topic)

    streams: list[Topic] = []
    for types, name, option in (
        (EVENT_TYPES, wanted.events, "--events"),
        (FRAME_TYPES, wanted.image, "--image"),
    ):
        topics = [Topic(*kind, count) for kind, count in counts.items() if kinds[kind] in types]
        streams += the_named(bag.path, topics, judge, name, option) if name else one_read(topics, judge)
    if streams and all(topic.left_out for topic in streams):
        reasons = "; ".join(f"{topic.name}: {topic.left_out}" for topic in streams)
        raise RecordingError(f"The bag {bag.path} has no topic that can be read ({reasons}).")
    others = [
        Topic(*kind, count, left_out=NEITHER)
        for kind, count in counts.items()
        if kinds[kind] not in EVENT_TYPES | FRAME_TYPES
    ]
    return tuple(sorted([*streams, *others], key=lambda topic: topic.name))


def _judged(bag: OpenBag, topic: Topic) -> Judgement:
    """Why a topic cannot be read, which is so where none of its messages can, and what its images show."""
    problem = f"none of {topic.count} messages is there" if topic.count else "no message was recorded"
    reader, first = None, True
    for connection, log_ns, data in bag.messages(bag.connections_of({(topic.name, topic.type)})):
        reader = reader or TopicReader(topic.name, connection.msgtype, bag.wire)
        read = reader.read(data, log_ns).read
        if not read.refused:
            is_image = connection.msgtype in FRAME_TYPES
            return Judgement(look=bag.wire.look(data, connection.msgtype) if is_image else Look.COLOUR)
        if first:
            problem, first = read.problem.rstrip("."), False
    return Judgement(problem)


def _middle(bag: OpenBag, connections: Collection[Connection]) -> Middle | None:
    """What most stamps say, at a few places all over the bag; a stamp that is repeated counts once."""
    first_ns, end_ns = bag.reader.span
    stamps: dict[tuple[str, int], int] = {}
    for place in range(PLACES if first_ns < end_ns else 0):
        messages = bag.messages(connections, first_ns + (end_ns - first_ns) * place // PLACES)
        for connection, log_ns, data in islice(messages, ELSEWHERE if place else AT_FIRST):
            stamp_ns = bag.wire.time_ns(connection.msgtype, data)
            if stamp_ns is not None:
                stamps.setdefault((connection.topic, stamp_ns), log_ns)
    return Middle.of([(stamp_ns, log_ns) for (_, stamp_ns), log_ns in stamps.items()])
