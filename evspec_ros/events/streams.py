"""One event stream followed through the messages of a topic, whether they arrive live or lie in a bag."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from evspec_ros.errors import EventDecodingError
from evspec_ros.events import decoders, event_arrays, event_packets
from evspec_ros.events.bounds import NONE_OUTSIDE, Outside
from evspec_ros.events.clock import LEAP_NS, SensorClock
from evspec_ros.events.decoders import Decoder, PacketData
from evspec_ros.events.event_arrays import EventArray
from evspec_ros.events.event_packets import EventPacket
from evspec_ros.events.types import Events

SILENCE_S = 0.2  # after this long without the stream that is followed, another one takes its place
SPARE_PACKETS = 100  # may be missing however short the time was
PACKETS_PER_S = 1000  # may be missing per second where the stream did not tell its own rate yet
RATE_FACTOR = 10  # a burst is at most so many times faster than the stream was on average

_Message = TypeVar("_Message", EventPacket, EventArray)


@dataclass(frozen=True)
class StreamCounts:
    """What became of the messages of one topic.

    messages: all that arrived; refused: those that could not be used; items: events or frames kept; lost:
    messages that never arrived, None where nothing tells; corrupt: unreadable words inside good packets;
    unplaced: events left out after a loss, for their time or place was not known; restarts: times the stream
    began anew (time or sequence went backwards, another size); problem: the last refusal, "" if none;
    restart: why the stream began anew the last time, "" if it never did.
    """

    messages: int = 0
    refused: int = 0
    items: int = 0
    lost: int | None = 0
    corrupt: int = 0
    unplaced: int = 0
    restarts: int = 0
    problem: str = ""
    restart: str = ""

    def plus(self, more: StreamCounts) -> StreamCounts:
        """The counts after further messages."""
        return StreamCounts(
            self.messages + more.messages,
            self.refused + more.refused,
            self.items + more.items,
            None if self.lost is None or more.lost is None else self.lost + more.lost,
            self.corrupt + more.corrupt,
            self.unplaced + more.unplaced,
            self.restarts + more.restarts,
            more.problem or self.problem,
            more.restart or self.restart,
        )


NO_MESSAGES = StreamCounts()


@dataclass(frozen=True)
class Source:
    """What stays the same within one event stream."""

    frame_id: str
    encoding: str
    width: int
    height: int

    def __str__(self) -> str:
        """For messages to users."""
        name = f" of {self.frame_id!r}" if self.frame_id else ""
        return f"{self.width} x {self.height} pixels in encoding {self.encoding!r}{name}"


@dataclass(frozen=True, eq=False)
class Taken:
    """One message after it was taken in.

    events: on the sensor's clock, None where the message was refused. read: what became of the message, its
    refusal among it. clock: brings its stream's events onto the clock of the stamps. begins: what came before
    belongs to another stream or another time. triggers: edges on the camera's external input.
    outside: its events at places that the sensor does not have, which were left out.
    """

    events: Events | None
    read: StreamCounts
    clock: SensorClock
    begins: bool = False
    triggers: int = 0
    outside: Outside = NONE_OUTSIDE


@dataclass
class _Stream:
    """What belongs to one uninterrupted stream; a restart replaces it as a whole.

    seq, stamp_ns: of the last packet, seq -1 before the first; counts: whether numbers went up so far, some
    drivers send the same one for ever; first_seq, first_s: of the first packet and when it arrived; gap:
    packets were lost since the last event.
    """

    source: Source
    decoder: Decoder | None = None
    clock: SensorClock = field(default_factory=SensorClock)
    seq: int = -1
    stamp_ns: int = 0
    counts: bool = False
    first_seq: int = 0
    first_s: float = 0.0
    gap: bool = False


@dataclass
class _Notes:
    """What is found out about one message until it is taken in or refused."""

    at_s: float
    lost: int = 0
    corrupt: int = 0
    unplaced: int = 0
    triggers: int = 0
    outside: Outside = NONE_OUTSIDE
    restarts: list[str] = field(default_factory=list)

    def counts(self, items: int, problem: str = "") -> StreamCounts:
        """What became of the message: `items` events kept, or refused for a problem."""
        return StreamCounts(
            1, 1 if problem else 0, items, self.lost, self.corrupt, self.unplaced, len(self.restarts),
            problem, self.restarts[-1] if self.restarts else "",
        )  # fmt: skip


class EventFollower(ABC, Generic[_Message]):
    """Takes in the messages of a topic, one after the other, and follows one stream among them.

    A message of another stream, told by its frame, size, encoding or by a sequence number that falls back,
    comes again or leaps further than the time since the last one allows, is refused as long as the one that
    is followed goes on: two cameras on one topic do not mix. After SILENCE_S without the one that is followed
    (its driver was restarted, it was set to another size), the other one takes its place and begins anew.

    read: serialised bytes to a message; it may raise EventDecodingError. follow_stamps: whether the sensor's
    clock is brought onto that of the header stamps; if not, events have ROS time already.
    """

    def __init__(self, read: Callable[[PacketData], _Message], *, follow_stamps: bool) -> None:
        self._read: Callable[[PacketData], _Message] = read
        self._follow_stamps = follow_stamps
        self._stream: _Stream | None = None
        self._heard_s = 0.0  # when the last good message arrived
        self._unread = 0  # messages since then that are nobody's, but may be missed in the sequence

    def take(self, message: PacketData, at_s: float) -> Taken:
        """Decode one message that arrived at at_s, seconds of any clock that runs evenly.

        One that cannot be used is refused, its reason is in `read.problem`.
        """
        notes = _Notes(at_s)
        try:
            return self._take(self._parsed(message), notes)
        except EventDecodingError as error:
            return Taken(None, notes.counts(0, str(error)), SensorClock())

    def restart(self) -> bool:
        """Forget time and sequence, for time was set; whether there was anything to forget."""
        if self._stream is None:
            return False
        self._stream = self._new_stream(self._stream.source)
        return True

    @abstractmethod
    def _take(self, message: _Message, notes: _Notes) -> Taken: ...

    @abstractmethod
    def _new_stream(self, source: Source) -> _Stream: ...

    def _parsed(self, message: PacketData) -> _Message:
        try:
            return self._read(message)
        except EventDecodingError:
            self._unread += 1
            raise

    def _newcomer(self, source: Source, what: str, notes: _Notes) -> _Stream:
        """A stream that is not the one followed; raises EventDecodingError while that one goes on."""
        if notes.at_s - self._heard_s < SILENCE_S:
            raise EventDecodingError(
                f"{what} in the middle of a stream; it is left out: let only one camera publish here."
            )
        notes.restarts.append(f"{what}: the stream began anew.")
        return self._new_stream(source)

    def _finished(self, stream: _Stream, events: Events, stamp_ns: int, notes: _Notes) -> Taken:
        """Follow this stream from now on; learn from when its events arrived what its clock says."""
        self._stream, self._heard_s, self._unread = stream, notes.at_s, 0
        if len(events):
            first_ns = int(events.t[0])
            if stream.clock.update(stamp_ns if self._follow_stamps else first_ns, first_ns):
                notes.restarts.append("The sensor's clock or the stamps were set: the stream began anew.")
        return Taken(
            events,
            notes.counts(len(events)),
            stream.clock,
            bool(notes.restarts),
            notes.triggers,
            notes.outside,
        )


class PacketFollower(EventFollower[EventPacket]):
    """Follows a stream of event_camera_msgs/EventPacket, in any encoding."""

    def __init__(
        self,
        read: Callable[[PacketData], EventPacket] = event_packets.read_cdr,
        *,
        follow_stamps: bool = True,
    ) -> None:
        super().__init__(read, follow_stamps=follow_stamps)

    def _new_stream(self, source: Source) -> _Stream:
        return _Stream(source, Decoder(source.encoding, source.width, source.height))

    def _take(self, packet: EventPacket, notes: _Notes) -> Taken:
        source = self._source_of(packet)
        if self._stream is None:
            stream = self._new_stream(source)
        elif source != self._stream.source:
            what = f"Packets of {source} follow those of {self._stream.source}"
            stream = self._newcomer(source, what, notes)
        else:
            stream = self._next_of(self._stream, packet, notes)
        events = self._decoded(packet, stream, notes)
        return self._finished(stream, events, packet.stamp_ns, notes)

    def _source_of(self, packet: EventPacket) -> Source:
        try:
            decoders.check(packet.encoding, packet.width, packet.height)
        except EventDecodingError:
            self._unread += 1
            raise
        return Source(packet.frame_id, packet.encoding, packet.width, packet.height)

    def _next_of(self, stream: _Stream, packet: EventPacket, notes: _Notes) -> _Stream:
        """The stream that this packet belongs to, judged by its number: the one followed or a new one."""
        if packet.seq < stream.seq:
            return self._newcomer(stream.source, f"Packet {packet.seq} follows packet {stream.seq}", notes)
        if packet.seq == stream.seq and packet.stamp_ns == stream.stamp_ns:
            raise EventDecodingError(f"Event packet {packet.seq} arrived twice; the second one is left out.")
        if packet.seq == stream.seq and stream.counts:
            what = f"Packet {packet.seq} with another stamp follows packet {stream.seq}"
            return self._newcomer(stream.source, what, notes)
        if stream.seq < 0:
            return stream
        missing = max(packet.seq - stream.seq - 1, 0)
        elapsed_s = max(notes.at_s - self._heard_s, (packet.stamp_ns - stream.stamp_ns) / 1e9)
        if missing > self._most_missing(stream, elapsed_s):
            what = f"Packet {packet.seq} follows packet {stream.seq} after {max(elapsed_s, 0.0):.3f} s"
            return self._newcomer(stream.source, what, notes)
        notes.lost = max(missing - self._unread, 0)
        if missing or (self._unread and packet.seq == stream.seq):
            _distrust(stream)
        return stream

    def _most_missing(self, stream: _Stream, elapsed_s: float) -> float:
        """How many packets can have been lost in this time."""
        lasted_s = self._heard_s - stream.first_s
        per_s = (stream.seq - stream.first_seq) / lasted_s if lasted_s > 0 else 0.0
        return SPARE_PACKETS + max(PACKETS_PER_S, RATE_FACTOR * per_s) * max(elapsed_s, 0.0)

    def _decoded(self, packet: EventPacket, stream: _Stream, notes: _Notes) -> Events:
        """The packet's events; one that cannot be decoded is a loss to its stream."""
        decoder = stream.decoder
        assert decoder is not None
        before = decoder.statistics
        try:
            events = decoder.decode(packet.events, packet.time_base, is_bigendian=packet.is_bigendian)
        except EventDecodingError:
            if stream is self._stream:
                _distrust(stream)
                stream.seq, stream.stamp_ns = packet.seq, packet.stamp_ns
            raise
        finally:
            after = decoder.statistics
            notes.corrupt = after.corrupt_words - before.corrupt_words
            notes.unplaced = after.unplaced - before.unplaced
            notes.triggers = after.triggers - before.triggers
            notes.outside = decoder.outside.since(before.outside_sensor)
        if stream.seq < 0:
            stream.first_seq, stream.first_s = packet.seq, notes.at_s
        stream.counts |= packet.seq > stream.seq >= 0
        stream.seq, stream.stamp_ns = packet.seq, packet.stamp_ns
        if stream.gap and len(events):
            stream.gap = False
            events = self._at_true_time(events, stream, packet.stamp_ns)
        return events

    def _at_true_time(self, events: Events, stream: _Stream, stamp_ns: int) -> Events:
        """The first events after a loss: where it hid that the encoding's clock began again, stamps tell."""
        assert stream.decoder is not None
        period_ns = stream.decoder.rollover_ns
        if not period_ns or not self._follow_stamps or not stream.clock.known:
            return events
        late_ns = stamp_ns - stream.clock.to_ros(int(events.t[0]))
        rollovers = round(late_ns / period_ns)
        if rollovers <= 0 or abs(late_ns - rollovers * period_ns) > LEAP_NS:
            return events
        stream.decoder.pass_rollovers(rollovers)
        t = events.t + rollovers * period_ns
        return Events(t, events.x, events.y, events.p, events.width, events.height)


def _distrust(stream: _Stream) -> None:
    """A packet of the stream is missing: nothing that earlier ones said of time and place is believed."""
    assert stream.decoder is not None
    stream.decoder.resynchronise()
    stream.gap = True


class ArrayFollower(EventFollower[EventArray]):
    """Follows a stream of dvs_msgs/EventArray or one alike; its events have ROS time."""

    def __init__(self, read: Callable[[PacketData], EventArray] = event_arrays.read_cdr) -> None:
        super().__init__(read, follow_stamps=False)

    def _new_stream(self, source: Source) -> _Stream:
        return _Stream(source)

    def _take(self, array: EventArray, notes: _Notes) -> Taken:
        source = Source("", "EventArray", array.events.width, array.events.height)
        if self._stream is None:
            stream = self._new_stream(source)
        elif source != self._stream.source:
            what = f"Events of {source} follow those of {self._stream.source}"
            stream = self._newcomer(source, what, notes)
        else:
            stream = self._stream
        notes.corrupt, notes.outside = array.corrupt, array.outside
        return self._finished(stream, array.events, array.stamp_ns, notes)
