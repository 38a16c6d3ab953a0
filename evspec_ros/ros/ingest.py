"""The two streams as the node receives them: decoded, kept for a moment, checked against what came before.

Messages are taken as they are (any object with the fields of EventPacket or Image): nothing here needs ROS.
One thread adds, another cuts windows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from evspec_ros.errors import EventDecodingError, EvspecError, FrameError
from evspec_ros.events import decoders
from evspec_ros.events.buffer import EventBuffer
from evspec_ros.events.clock import SensorClock
from evspec_ros.events.types import Events
from evspec_ros.frames.buffer import FrameBuffer
from evspec_ros.frames.encodings import message_to_rgb
from evspec_ros.frames.types import Frame

STILL_NS = 500_000_000  # a scene without events for this long stands still
LAST = 2**62  # nanoseconds; later than any stamp
REORDERING_NS = 100_000_000  # images may overtake each other by this much; beyond, time jumped back
SILENCE_S = 1.0  # after this long without the known stream, one of another size or encoding takes its place


@dataclass(frozen=True)
class StreamCounts:
    """What became of the messages of one topic since the last reset.

    messages: all that arrived; refused: those that could not be used; items: events or frames kept; lost:
    messages that never arrived, by their sequence numbers; corrupt: unreadable words inside good packets;
    restarts: times the stream began anew (time or sequence went backwards, another size); problem: the last
    refusal, "" if none.
    """

    messages: int = 0
    refused: int = 0
    items: int = 0
    lost: int = 0
    corrupt: int = 0
    restarts: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Geometry:
    """What stays the same within one event stream."""

    encoding: str
    width: int
    height: int


def warm_up() -> None:
    """Compile what the first packets would otherwise wait for."""
    decoders.warm_up()
    buffer = EventBuffer(1, 1, seconds=1.0, max_bytes=1000)
    pixel, polarity = np.zeros(1, np.uint16), np.zeros(1, np.uint8)
    for t in (1, 0):  # in order, and late
        buffer.append(Events(np.array([t]), pixel, pixel, polarity, 1, 1))
    buffer.window(1, 1)


class _Sensor:
    """What belongs to one uninterrupted stream; a restart replaces it as a whole."""

    def __init__(self, geometry: Geometry, seconds: float, max_bytes: int, *, follow_clock: bool) -> None:
        self.geometry = geometry
        self.decoder = decoders.Decoder(geometry.encoding, geometry.width, geometry.height)
        self.buffer = EventBuffer(geometry.width, geometry.height, seconds, max_bytes)
        self.clock = SensorClock() if follow_clock else None
        self.seq = -1  # of the last packet

    def to_ros(self, sensor_ns: int) -> int:
        return self.clock.to_ros(sensor_ns) if self.clock else sensor_ns


class EventStream:
    """Decodes event packets into a bounded buffer, in sensor time, and knows the offset to ROS time."""

    def __init__(self, seconds: float, max_bytes: int, *, follow_sensor_clock: bool) -> None:
        self._seconds, self._max_bytes = seconds, max_bytes
        self._follow_sensor_clock = follow_sensor_clock
        self._sensor: _Sensor | None = None
        self.received_at = 0.0  # monotonic seconds of the last good packet
        self.reset_counts()

    def reset_counts(self) -> None:
        """Count from zero."""
        self._messages = self._refused = self._items = self._lost = self._corrupt = self._restarts = 0
        self._problem = ""

    @property
    def counts(self) -> StreamCounts:
        """What was received since the last reset of the counts."""
        return StreamCounts(
            self._messages,
            self._refused,
            self._items,
            self._lost,
            self._corrupt,
            self._restarts,
            self._problem,
        )

    @property
    def dropped(self) -> int:
        """Events that left the buffer before their time, since the stream last began anew."""
        return self._sensor.buffer.dropped if self._sensor else 0

    def add(self, packet: Any, stamp_ns: int) -> None:
        """Decode one EventPacket stamped stamp_ns; raises EventDecodingError for a bad one, and counts it."""
        self._messages += 1
        try:
            self._decode(packet, stamp_ns, self._sensor_of(packet))
        except EvspecError as error:
            self._refused += 1
            self._problem = str(error)
            raise
        self.received_at = time.monotonic()

    def restart(self) -> None:
        """Forget events and clock: the driver was restarted or time jumped back. The counts stay."""
        if self._sensor is not None:
            self._sensor = self._new_sensor(self._sensor.geometry)
            self._restarts += 1

    def _new_sensor(self, geometry: Geometry) -> _Sensor:
        return _Sensor(geometry, self._seconds, self._max_bytes, follow_clock=self._follow_sensor_clock)

    def _sensor_of(self, packet: Any) -> _Sensor:
        """The sensor that sent this packet, after a look at size, encoding and sequence number."""
        if packet.is_bigendian:
            raise EventDecodingError(
                "The event packet is marked big-endian; only little-endian ones are read."
            )
        geometry = Geometry(packet.encoding, packet.width, packet.height)
        if self._sensor is None or geometry != self._sensor.geometry:
            return self._changed_sensor(geometry)
        if packet.seq < self._sensor.seq:
            self.restart()
        elif packet.seq > self._sensor.seq >= 0:
            self._lost += packet.seq - self._sensor.seq - 1
        return self._sensor

    def _changed_sensor(self, geometry: Geometry) -> _Sensor:
        sensor = self._new_sensor(geometry)
        if self._sensor is not None:
            if time.monotonic() - self.received_at < SILENCE_S:
                raise EventDecodingError(
                    f"An event packet of {_described(geometry)} arrived in the middle of a stream of "
                    f"{_described(self._sensor.geometry)}; it is left out: let only one camera publish here."
                )
            self._restarts += 1
        self._sensor = sensor
        return sensor

    def _decode(self, packet: Any, stamp_ns: int, sensor: _Sensor) -> None:
        sensor.seq = packet.seq
        corrupt_before = sensor.decoder.statistics.corrupt_words
        events = sensor.decoder.decode(packet.events, packet.time_base)
        self._corrupt += sensor.decoder.statistics.corrupt_words - corrupt_before
        if not len(events):
            return
        self._items += len(events)
        if sensor.clock and sensor.clock.update(stamp_ns, int(events.t[0])):
            self._restarts += 1
            sensor.buffer.clear()
        sensor.buffer.append(events)

    def newest(self) -> Newest | None:
        """The newest event; None while there is none."""
        sensor = self._sensor
        latest_ns = sensor.buffer.latest_ns if sensor else None
        if sensor is None or latest_ns is None:
            return None
        return Newest(sensor.to_ros(latest_ns), latest_ns, sensor.buffer)


@dataclass(frozen=True, eq=False)
class Newest:
    """The newest event of a stream: its time by ROS's clock and by the sensor's, and where it lies."""

    ros_ns: int
    sensor_ns: int
    buffer: EventBuffer

    def window(self, duration_ns: int) -> Events:
        """A copy of the events of the last duration_ns up to this one."""
        return self.buffer.window(self.sensor_ns, duration_ns)


def _described(geometry: Geometry) -> str:
    return f"{geometry.width} x {geometry.height} pixels in encoding {geometry.encoding!r}"


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
    events: EventStream, images: ImageStream, duration_ns: int, frames_seconds: float
) -> Window | None:
    """The newest window of both streams; None while there is no frame."""
    newest = events.newest()
    stamp_ns = _end_ns(newest, images.buffer.latest_ns)
    if stamp_ns is None:
        return None
    # Before the first frame that is as old as the newest event, that frame stands in.
    frames = images.buffer.sample(stamp_ns, frames_seconds) or images.buffer.sample(LAST, frames_seconds)
    if newest is not None and stamp_ns == newest.ros_ns:
        return Window(stamp_ns, newest.window(duration_ns), frames)
    height, width, _ = frames[-1].image.shape
    return Window(stamp_ns, Events.empty(width, height), frames)
