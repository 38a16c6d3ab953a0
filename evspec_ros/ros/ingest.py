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
from evspec_ros.frames.encodings import image_to_rgb
from evspec_ros.frames.types import Frame

STILL_NS = 500_000_000
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


class EventStream:
    """Decodes event packets into a bounded buffer, in sensor time, and knows the offset to ROS time."""

    def __init__(self, seconds: float, max_bytes: int, *, follow_sensor_clock: bool) -> None:
        self._seconds, self._max_bytes = seconds, max_bytes
        self._follow_sensor_clock = follow_sensor_clock
        self._geometry: Geometry | None = None
        self._last_seq = -1
        self.received_at = 0.0  # monotonic seconds of the last good packet
        self.reset_counts()

    def reset_counts(self) -> None:
        """Count from zero."""
        self._messages = self._refused = self._items = self._lost = self._restarts = self._corrupt = 0
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
        """Events that left the buffer because it was full, not because they were old."""
        return self._buffer.dropped if self._geometry else 0

    def add(self, packet: Any, stamp_ns: int) -> None:
        """Decode one EventPacket stamped stamp_ns. Raises EventDecodingError for a bad one, and counts it."""
        self._messages += 1
        try:
            self._accept(Geometry(packet.encoding, packet.width, packet.height))
            if packet.is_bigendian:
                raise EventDecodingError(
                    "The event packet says it is big-endian; only little-endian ones are read."
                )
            self._check_sequence(packet.seq)
            self._decode(packet, stamp_ns)
        except EvspecError as error:
            self._refused += 1
            self._problem = str(error)
            raise
        self.received_at = time.monotonic()

    def _accept(self, geometry: Geometry) -> None:
        if geometry == self._geometry:
            return
        decoder = decoders.Decoder(geometry.encoding, geometry.width, geometry.height)
        if self._geometry is not None and time.monotonic() - self.received_at < SILENCE_S:
            raise EventDecodingError(
                f"An event packet of {_described(geometry)} arrived in the middle of a stream of "
                f"{_described(self._geometry)}; it is left out: let only one camera publish on this topic."
            )
        buffer = EventBuffer(geometry.width, geometry.height, self._seconds, self._max_bytes)
        self._restarts += self._geometry is not None
        self._decoder, self._buffer, self._clock = decoder, buffer, SensorClock()
        self._geometry, self._last_seq = geometry, -1

    def _check_sequence(self, seq: int) -> None:
        if seq < self._last_seq:
            self.restart()
        elif self._last_seq >= 0 and seq > self._last_seq:
            self._lost += seq - self._last_seq - 1
        self._last_seq = seq

    def _decode(self, packet: Any, stamp_ns: int) -> None:
        corrupt_before = self._decoder.statistics.corrupt_words
        events = self._decoder.decode(packet.events, packet.time_base)
        self._corrupt += self._decoder.statistics.corrupt_words - corrupt_before
        self._items += len(events)
        if not len(events):
            return
        if self._follow_sensor_clock and self._clock.update(stamp_ns, int(events.t[0])):
            self._buffer.clear()
            self._restarts += 1
        self._buffer.append(events)

    def restart(self) -> None:
        """Forget events and clock: the driver was restarted or time jumped back. The counts stay."""
        if self._geometry is not None:
            geometry = self._geometry
            self._decoder = decoders.Decoder(geometry.encoding, geometry.width, geometry.height)
            self._buffer.clear()
            self._clock = SensorClock()
            self._last_seq = -1
            self._restarts += 1

    def newest_ns(self) -> int | None:
        """ROS time of the newest event in the buffer, nanoseconds; None while there is none."""
        newest = self._buffer.latest_ns if self._geometry else None
        if newest is None or not self._follow_sensor_clock:
            return newest
        return self._clock.to_ros(newest)

    def newest_window(self, duration_ns: int) -> Events:
        """A copy of the last duration_ns of events, the newest one included; empty while there is none."""
        newest = self._buffer.latest_ns if self._geometry else None
        if newest is None:
            return self.no_events()
        return self._buffer.window(newest, duration_ns)

    def no_events(self) -> Events:
        """An empty window of this sensor; of no size while no sensor is known."""
        return (
            Events.empty(self._geometry.width, self._geometry.height)
            if self._geometry
            else Events.empty(0, 0)
        )


def _described(geometry: Geometry) -> str:
    return f"{geometry.width} x {geometry.height} pixels in encoding {geometry.encoding!r}"


class ImageStream:
    """Turns image messages into RGB frames in a bounded buffer."""

    def __init__(self, seconds: float, max_frames: int) -> None:
        self.buffer = FrameBuffer(seconds, max_frames)
        self._size: tuple[int, int] | None = None
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
        """Keep one Image stamped stamp_ns. Raises FrameError, after counting it, for an unusable one."""
        self._messages += 1
        try:
            rgb = image_to_rgb(image.data, image.width, image.height, image.encoding, image.step)
        except FrameError as error:
            self._refused += 1
            self._problem = str(error)
            raise
        size = (image.width, image.height)
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
    """Where the newest window ends, ROS time: at the newest event; None while there is no frame.

    Where frames went on without events for STILL_NS, it ends at the newest frame: the scene stands still, or
    there is no event camera.
    """
    newest_frame, newest_event = images.buffer.latest_ns, events.newest_ns()
    if newest_frame is None or newest_event is None:
        return newest_frame
    return newest_frame if newest_frame - newest_event > STILL_NS else newest_event


def newest_window(
    events: EventStream, images: ImageStream, duration_ns: int, frames_seconds: float
) -> Window | None:
    """The newest window of both streams; None while there is no frame."""
    stamp_ns = newest_end_ns(events, images)
    if stamp_ns is None:
        return None
    still = stamp_ns != events.newest_ns()
    window = events.no_events() if still else events.newest_window(duration_ns)
    frames = images.buffer.sample(stamp_ns, frames_seconds)
    if not frames:  # the first frame is newer than the newest event; it stands in
        frames = images.buffer.sample(stamp_ns + STILL_NS, frames_seconds)
    return Window(stamp_ns, window, frames)
