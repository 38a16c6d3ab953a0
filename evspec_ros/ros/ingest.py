"""The two streams as the node receives them: decoded, kept for a moment, checked against what came before.

Event messages are taken serialised, images as objects with the fields of Image: nothing here needs ROS.
One thread adds, another cuts windows.
"""

from __future__ import annotations

import struct
import time
from dataclasses import replace
from typing import Any

from evspec_ros.errors import EventDecodingError, FrameError
from evspec_ros.events import decoders, event_arrays
from evspec_ros.events.buffer import EventBuffer
from evspec_ros.events.clock import SensorClock
from evspec_ros.events.decoders import PacketData
from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.streams import (
    NO_MESSAGES,
    ArrayFollower,
    EventFollower,
    PacketFollower,
    Source,
    StreamCounts,
)
from evspec_ros.events.types import Events
from evspec_ros.events.window import WindowSize
from evspec_ros.frames.buffer import FrameBuffer, kept_seconds
from evspec_ros.frames.encodings import message_to_rgb
from evspec_ros.frames.losses import FrameLosses
from evspec_ros.frames.types import Frame
from evspec_ros.ros.frame_follower import FrameFollower
from evspec_ros.windows import Newest, Window, cut_window, end_of_window_ns

_EMPTY_ARRAY = struct.pack("<4siII4xIII", b"\0\1\0\0", 0, 0, 1, 1, 1, 0)  # no name, 1 x 1 pixels, no events


def warm_up() -> None:
    """Compile what the first packets would otherwise wait for."""
    decoders.warm_up()
    event_arrays.read_cdr(_EMPTY_ARRAY)
    EventBuffer(1, 1, seconds=1.0, max_bytes=1000)
    render_event_images(Events.empty(1, 1))


class EventStream:
    """Keeps a sensor's events in a bounded buffer, in the sensor's time, and knows the offset to ROS time.

    Which messages belong to it, says the follower.
    """

    def __init__(self, follower: EventFollower[Any], seconds: float, max_bytes: int) -> None:
        self._follower = follower
        self._seconds, self._max_bytes = seconds, max_bytes
        self._held: tuple[EventBuffer, SensorClock] | None = None  # of one stream, replaced as a whole
        self.received_at = 0.0  # monotonic seconds of the last good packet
        self.reset_counts()

    def reset_counts(self) -> None:
        """Count from zero."""
        self.counts = NO_MESSAGES

    @property
    def dropped(self) -> int:
        """Events that left the buffer before their time, since the stream last began anew."""
        return self._held[0].dropped if self._held else 0

    @property
    def clock_offset_s(self) -> float | None:
        """ROS time minus sensor time, 0 where events have ROS time; None while the stream has no events."""
        return self._held[1].offset_ns / 1e9 if self._held else None

    def add(self, message: PacketData) -> None:
        """Take in a serialised message; raises EventDecodingError for one that is refused, and counts it."""
        now_s = time.monotonic()
        taken = self._follower.take(message, now_s)
        self.counts = self.counts.plus(taken.read)
        if taken.events is None:
            raise EventDecodingError(taken.read.problem)
        self.received_at = now_s
        events = taken.events
        if self._held is None or taken.begins:
            buffer = EventBuffer(events.width, events.height, self._seconds, self._max_bytes)
            self._held = buffer, taken.clock
        self._held[0].append(events)

    def restart(self, reason: str) -> None:
        """Forget events and clock; the counts stay."""
        if self._follower.restart():
            self._held = None
            self.counts = self.counts.plus(StreamCounts(restarts=1, restart=reason))

    def newest(self) -> Newest | None:
        """The newest event; None while there is none."""
        if (held := self._held) is None or (latest_ns := held[0].latest_ns) is None:
            return None
        buffer, clock = held
        return Newest(clock.to_ros(latest_ns), latest_ns, buffer)


class PacketStream(EventStream):
    """A stream of event_camera_msgs/EventPacket, in any encoding."""

    def __init__(self, seconds: float, max_bytes: int, *, follow_sensor_clock: bool) -> None:
        super().__init__(PacketFollower(follow_stamps=follow_sensor_clock), seconds, max_bytes)


class ArrayStream(EventStream):
    """A stream of dvs_msgs/EventArray, or another package's alike; their events have ROS time."""

    def __init__(self, seconds: float, max_bytes: int, *, follow_sensor_clock: bool) -> None:
        del follow_sensor_clock  # there is no other clock than ROS's
        super().__init__(ArrayFollower(), seconds, max_bytes)


EVENT_STREAMS: dict[str, type[PacketStream | ArrayStream]] = {
    "event_camera_msgs/msg/EventPacket": PacketStream,
    "dvs_msgs/msg/EventArray": ArrayStream,
    "prophesee_event_msgs/msg/EventArray": ArrayStream,
    "dv_ros2_msgs/msg/EventArray": ArrayStream,
}  # by the type of their messages


class ImageStream:
    """Turns image messages into RGB frames in a bounded buffer, from which samples of `seconds` are taken.
    Which belong to it, says `FrameFollower`.
    """

    def __init__(self, seconds: float, max_frames: int) -> None:
        self.buffer = FrameBuffer(kept_seconds(seconds), max_frames)
        self._follower = FrameFollower()
        self._losses = FrameLosses()
        self.received_at = 0.0  # monotonic seconds of the last good image
        self.reset_counts()

    def reset_counts(self) -> None:
        """Count from zero."""
        self._counts = NO_MESSAGES

    @property
    def frame_id(self) -> str:
        """The frame of the camera that is followed, "" before the first image."""
        return self._follower.frame_id

    @property
    def counts(self) -> StreamCounts:
        """What was received since the last reset of the counts; lost is None while the stream has no steady
        rate that would tell.
        """
        return self._counts if self._losses.known else replace(self._counts, lost=None)

    def add(self, image: Any, stamp_ns: int, number: int | None = None, frame_id: str = "") -> None:
        """Keep one image, raw or compressed. Raises FrameError, after counting it, for an unusable one and
        one of another camera than the one that is followed.

        number: its publisher's, None where the middleware does not count; frame_id: of its header.
        """
        now_s = time.monotonic()
        try:
            rgb = message_to_rgb(image)
        except FrameError as error:
            self._losses.refused()
            self._refuse(error)
            raise
        height, width, _ = rgb.shape
        encoding = getattr(image, "encoding", "") or image.format
        try:
            anew = self._follower.take(Source(frame_id, encoding, width, height), stamp_ns, number, now_s)
        except FrameError as error:
            self._refuse(error)
            raise
        if anew:
            self._begin(anew)
        self.buffer.append(Frame(stamp_ns, rgb))
        self._count(StreamCounts(messages=1, items=1, lost=self._losses.after(stamp_ns)))
        self.received_at = now_s

    def restart(self, reason: str) -> None:
        """Forget the frames; the counts stay."""
        if self._follower.restart():
            self._begin(reason)

    def _begin(self, reason: str) -> None:
        self.buffer.clear()
        self._losses = FrameLosses()
        self._count(StreamCounts(restarts=1, restart=reason))

    def _refuse(self, error: FrameError) -> None:
        self._count(StreamCounts(messages=1, refused=1, problem=str(error)))

    def _count(self, more: StreamCounts) -> None:
        self._counts = self._counts.plus(more)


def newest_end_ns(events: EventStream, images: ImageStream, *, events_alone: bool = False) -> int | None:
    """Where the newest window ends, ROS time; None while there is no frame, or nothing with events_alone."""
    return end_of_window_ns(events.newest(), images.buffer.latest_ns, events_alone=events_alone)


def newest_window(
    events: EventStream, images: ImageStream, size: WindowSize, frames_seconds: float
) -> Window | None:
    """The newest window of both streams; None while there is no frame."""
    return cut_window(events.newest(), images.buffer, size, frames_seconds)
