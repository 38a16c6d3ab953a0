"""The two streams as the node receives them: decoded, kept for a moment, checked against what came before.

Event messages are taken serialised, images as objects with the fields of Image: nothing here needs ROS.
One thread adds, another cuts windows.
"""

from __future__ import annotations

import struct
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from evspec_ros.errors import EventDecodingError, EvspecError, FrameError
from evspec_ros.events import decoders, event_arrays, event_packets
from evspec_ros.events.buffer import EventBuffer
from evspec_ros.events.clock import SensorClock
from evspec_ros.events.decoders import PacketData
from evspec_ros.events.event_packets import EventPacket
from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.streams import StreamCounts
from evspec_ros.events.types import Events
from evspec_ros.events.window import WindowSize
from evspec_ros.frames.buffer import FrameBuffer
from evspec_ros.frames.encodings import message_to_rgb
from evspec_ros.frames.types import Frame

STILL_NS = 500_000_000  # a scene without events for this long stands still
LAST = 2**62  # nanoseconds; later than any stamp
REORDERING_NS = 100_000_000  # images may overtake each other by this much; beyond, time jumped back
_EMPTY_ARRAY = struct.pack("<4siII4xIII", b"\0\1\0\0", 0, 0, 1, 1, 1, 0)  # no name, 1 x 1 pixels, no events
SILENCE_S = 0.2  # after this long without the stream that is followed, another one takes its place


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


def warm_up() -> None:
    """Compile what the first packets would otherwise wait for."""
    decoders.warm_up()
    event_arrays.read_cdr(_EMPTY_ARRAY)
    EventBuffer(1, 1, seconds=1.0, max_bytes=1000)
    render_event_images(Events.empty(1, 1))


class _Sensor:
    """What belongs to one uninterrupted stream; a restart replaces it as a whole."""

    def __init__(self, source: Source, seconds: float, max_bytes: int) -> None:
        self.source = source
        self.buffer = EventBuffer(source.width, source.height, seconds, max_bytes)
        self.clock = SensorClock()
        self.seq = -1  # of the last packet
        self.counts = False  # whether numbers went up so far; some drivers send the same one for ever
        self.stamp_ns = 0  # of the last packet


class EventStream(ABC):
    """Keeps a sensor's events in a bounded buffer, in the sensor's time, and knows the offset to ROS time.

    One stream is followed at a time. A message of another one, told by its frame, size, encoding or by a
    sequence number that falls back or comes again, is refused as long as the one that is followed goes on:
    two cameras on one topic do not mix. Where frame, size and encoding are the same, the camera with the
    higher numbers wins. After SILENCE_S without the one that is followed (its driver was restarted, it was
    set to another size), the other one takes its place and begins anew.
    """

    def __init__(self, seconds: float, max_bytes: int, *, follow_sensor_clock: bool) -> None:
        self._seconds, self._max_bytes = seconds, max_bytes
        self._follow_sensor_clock = follow_sensor_clock
        self._sensor: _Sensor | None = None
        self.received_at = 0.0  # monotonic seconds of the last good packet
        self.reset_counts()

    def reset_counts(self) -> None:
        """Count from zero."""
        self._messages = self._refused = self._items = self._lost = 0
        self._corrupt = self._unplaced = self._restarts = 0
        self._problem = self._restart = ""

    @property
    def counts(self) -> StreamCounts:
        """What was received since the last reset of the counts."""
        return StreamCounts(
            self._messages,
            self._refused,
            self._items,
            self._lost,
            self._corrupt,
            self._unplaced,
            self._restarts,
            self._problem,
            self._restart,
        )

    @property
    def dropped(self) -> int:
        """Events that left the buffer before their time, since the stream last began anew."""
        return self._sensor.buffer.dropped if self._sensor else 0

    def add(self, message: PacketData) -> None:
        """Take in a serialised message; raises EventDecodingError for one that is refused, and counts it."""
        self._messages += 1
        try:
            self._take(message)
        except EvspecError as error:
            self._refused += 1
            self._problem = str(error)
            raise
        self.received_at = time.monotonic()

    @abstractmethod
    def _take(self, message: PacketData) -> None:
        """Decode one message and keep its events."""

    def restart(self, reason: str) -> None:
        """Forget events and clock; the counts stay."""
        if self._sensor is not None:
            self._begin(self._sensor.source, reason)

    def _begin(self, source: Source, reason: str) -> _Sensor:
        sensor = _Sensor(source, self._seconds, self._max_bytes)
        if self._sensor is not None:
            self._count_restart(reason)
        self._sensor = sensor
        return sensor

    def _count_restart(self, reason: str) -> None:
        self._restarts += 1
        self._restart = reason

    def _newcomer(self, source: Source, what: str) -> _Sensor:
        """A stream that is not the one followed; raises EventDecodingError while that one goes on."""
        if time.monotonic() - self.received_at < SILENCE_S:
            raise EventDecodingError(
                f"{what} in the middle of a stream; it is left out: let only one camera publish here."
            )
        return self._begin(source, f"{what}: the stream began anew.")

    def _keep(self, events: Events, stamp_ns: int, sensor: _Sensor) -> None:
        if not len(events):
            return
        self._items += len(events)
        first_ns = int(events.t[0])
        if sensor.clock.update(stamp_ns if self._follow_sensor_clock else first_ns, first_ns):
            self._count_restart("The sensor's clock or the stamps were set: the stream began anew.")
            sensor.buffer.clear()
        sensor.buffer.append(events)

    def newest(self) -> Newest | None:
        """The newest event; None while there is none."""
        sensor = self._sensor
        latest_ns = sensor.buffer.latest_ns if sensor else None
        if sensor is None or latest_ns is None:
            return None
        return Newest(sensor.clock.to_ros(latest_ns), latest_ns, sensor.buffer)


class PacketStream(EventStream):
    """A stream of event_camera_msgs/EventPacket, in any encoding."""

    def _begin(self, source: Source, reason: str) -> _Sensor:
        self._decoder = decoders.Decoder(source.encoding, source.width, source.height)
        return super()._begin(source, reason)

    def _take(self, message: PacketData) -> None:
        packet = event_packets.read_cdr(message)
        self._decode(packet, self._sensor_of(packet))

    def _sensor_of(self, packet: EventPacket) -> _Sensor:
        """The sensor that sent this packet, after a look at source and sequence number."""
        if packet.is_bigendian:
            raise EventDecodingError(
                "The event packet is marked big-endian; only little-endian ones are read."
            )
        source = Source(packet.frame_id, packet.encoding, packet.width, packet.height)
        sensor = self._sensor
        if sensor is None:
            return self._begin(source, "")
        if source != sensor.source:
            return self._newcomer(source, f"Packets of {source} follow those of {sensor.source}")
        if packet.seq < sensor.seq:
            return self._newcomer(source, f"Packet {packet.seq} follows packet {sensor.seq}")
        if packet.seq == sensor.seq and packet.stamp_ns == sensor.stamp_ns:
            raise EventDecodingError(f"Event packet {packet.seq} arrived twice; the second one is left out.")
        if packet.seq == sensor.seq and sensor.counts:
            return self._newcomer(
                source, f"Packet {packet.seq} with another stamp follows packet {sensor.seq}"
            )
        if packet.seq > sensor.seq + 1 and sensor.seq >= 0:
            self._lost += packet.seq - sensor.seq - 1
            self._decoder.resynchronise()
        return sensor

    def _decode(self, packet: EventPacket, sensor: _Sensor) -> None:
        before = self._decoder.statistics
        events = self._decoder.decode(packet.events, packet.time_base)
        after = self._decoder.statistics
        sensor.counts |= packet.seq > sensor.seq >= 0
        sensor.seq, sensor.stamp_ns = packet.seq, packet.stamp_ns
        self._corrupt += after.corrupt_words - before.corrupt_words
        self._unplaced += after.unplaced - before.unplaced
        self._keep(events, packet.stamp_ns, sensor)


class ArrayStream(EventStream):
    """A stream of dvs_msgs/EventArray, or another package's alike; their events have ROS time."""

    def __init__(self, seconds: float, max_bytes: int, *, follow_sensor_clock: bool) -> None:
        del follow_sensor_clock  # there is no other clock than ROS's
        super().__init__(seconds, max_bytes, follow_sensor_clock=False)

    def _take(self, message: PacketData) -> None:
        array = event_arrays.read_cdr(message)
        source = Source("", "EventArray", array.events.width, array.events.height)
        sensor = self._sensor
        if sensor is None:
            sensor = self._begin(source, "")
        elif source != sensor.source:
            sensor = self._newcomer(source, f"Events of {source} follow those of {sensor.source}")
        self._corrupt += array.corrupt
        self._keep(array.events, array.stamp_ns, sensor)


EVENT_STREAMS: dict[str, type[EventStream]] = {
    "event_camera_msgs/msg/EventPacket": PacketStream,
    "dvs_msgs/msg/EventArray": ArrayStream,
    "prophesee_event_msgs/msg/EventArray": ArrayStream,
    "dv_ros2_msgs/msg/EventArray": ArrayStream,
}  # by the type of their messages


@dataclass(frozen=True, eq=False)
class Newest:
    """The newest event of a stream: its time by ROS's clock and by the sensor's, and where it lies."""

    ros_ns: int
    sensor_ns: int
    buffer: EventBuffer

    def window(self, size: WindowSize) -> Events:
        """A copy of the events of one window that ends at this one."""
        return self.buffer.window(self.sensor_ns, size.duration_ns, size.most)


class ImageStream:
    """Turns image messages into RGB frames in a bounded buffer."""

    def __init__(self, seconds: float, max_frames: int) -> None:
        self.buffer = FrameBuffer(seconds, max_frames)
        self._size: tuple[int, ...] | None = None
        self.received_at = 0.0  # monotonic seconds of the last good image
        self.reset_counts()

    def reset_counts(self) -> None:
        """Count from zero."""
        self._messages = self._refused = self._items = self._restarts = 0
        self._problem = ""

    @property
    def counts(self) -> StreamCounts:
        """What was received since the last reset of the counts."""
        return StreamCounts(
            self._messages, self._refused, self._items, restarts=self._restarts, problem=self._problem
        )

    def add(self, image: Any, stamp_ns: int) -> None:
        """Keep one image, raw or compressed. Raises FrameError, after counting it, for an unusable one."""
        self._messages += 1
        try:
            rgb = message_to_rgb(image)
        except FrameError as error:
            self._refused += 1
            self._problem = str(error)
            raise
        size = rgb.shape
        newest = self.buffer.latest_ns
        if (self._size is not None and size != self._size) or (
            newest is not None and stamp_ns < newest - REORDERING_NS
        ):
            self.restart()
        self._size = size
        self.buffer.append(Frame(stamp_ns, rgb))
        self._items += 1
        self.received_at = time.monotonic()

    def restart(self) -> None:
        """Forget the frames: their size changed or time jumped back. The counts stay."""
        if self._size is not None:
            self.buffer.clear()
            self._restarts += 1


@dataclass(frozen=True, eq=False)
class Window:
    """What one description is made of: events and frames up to stamp_ns, ROS time."""

    stamp_ns: int
    events: Events
    frames: tuple[Frame, ...]


def newest_end_ns(events: EventStream, images: ImageStream) -> int | None:
    """Where the newest window ends, ROS time; None while there is no frame."""
    return _end_ns(events.newest(), images.buffer.latest_ns)


def _end_ns(newest: Newest | None, newest_frame_ns: int | None) -> int | None:
    """At the newest event; where frames went on without events for STILL_NS, at the newest frame: the scene
    stands still, or there is no event camera.
    """
    if newest_frame_ns is None or newest is None or newest_frame_ns - newest.ros_ns > STILL_NS:
        return newest_frame_ns
    return newest.ros_ns


def newest_window(
    events: EventStream, images: ImageStream, size: WindowSize, frames_seconds: float
) -> Window | None:
    """The newest window of both streams; None while there is no frame."""
    newest = events.newest()
    stamp_ns = _end_ns(newest, images.buffer.latest_ns)
    if stamp_ns is None:
        return None
    # Before the first frame that is as old as the newest event, that frame stands in.
    frames = images.buffer.sample(stamp_ns, frames_seconds) or images.buffer.sample(LAST, frames_seconds)
    if newest is not None and stamp_ns == newest.ros_ns:
        return Window(stamp_ns, newest.window(size), frames)
    height, width, _ = frames[-1].image.shape
    return Window(stamp_ns, Events.empty(width, height), frames)
