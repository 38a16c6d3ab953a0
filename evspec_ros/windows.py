"""Which window of two streams is the newest: the rule of the node, and of what replays a recording."""

from __future__ import annotations

from dataclasses import dataclass

from evspec_ros.events.buffer import EventBuffer
from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.types import Events
from evspec_ros.events.window import WindowSize
from evspec_ros.frames.buffer import FrameBuffer
from evspec_ros.frames.types import Frame
from evspec_ros.sizes import FRAMES, STILL_NS

NO_EVENTS, NO_FRAMES = "no events", "no frames"  # `degraded` of a window; both, joined by "and"


@dataclass(frozen=True, eq=False)
class Window:
    """What one description is made of: events and frames up to stamp_ns, ROS time.

    degraded: which input was missing, "" where none was; frame_id: the RGB camera's.
    """

    stamp_ns: int
    events: Events
    frames: tuple[Frame, ...]
    degraded: str = ""
    frame_id: str = ""


@dataclass(frozen=True, eq=False)
class Newest:
    """The newest event of a stream: its time by ROS's clock and by the sensor's, and where it lies."""

    ros_ns: int
    sensor_ns: int
    buffer: EventBuffer

    def window(self, size: WindowSize) -> Events:
        """A copy of the events of one window that ends at this one."""
        return self.buffer.window(self.sensor_ns, size.duration_ns, size.most)


def end_of_window_ns(newest: Newest | None, newest_frame_ns: int | None, *, events_alone: bool) -> int | None:
    """Where the newest window ends, ROS time; None while there is no frame, or nothing with events_alone.

    At the newest event; where frames went on without events for STILL_NS, at the newest frame: the scene
    stands still, or there is no event camera.
    """
    if newest_frame_ns is None and not events_alone:
        return None
    if newest is None:
        return newest_frame_ns
    if newest_frame_ns is not None and newest_frame_ns - newest.ros_ns > STILL_NS:
        return newest_frame_ns
    return newest.ros_ns


def cut_window(
    newest: Newest | None,
    frames: FrameBuffer,
    size: WindowSize,
    frames_seconds: float,
    stop_ns: int | None = None,
) -> Window | None:
    """The newest window of both streams, or, with stop_ns, the one that was the newest when it ended there;
    None while there is no frame. Frames that came since do not change it.
    """
    end_ns, first_ns = end_of_window_ns(newest, frames.latest_ns, events_alone=False), frames.oldest_ns
    if end_ns is None or first_ns is None:
        return None
    stamp_ns = end_ns if stop_ns is None else stop_ns
    sample = frames.sample(max(stamp_ns, first_ns), frames_seconds)  # before the first frame, that stands in
    if newest is not None and end_ns == newest.ros_ns:
        return Window(stamp_ns, newest.window(size), sample)
    height, width, _ = sample[-1].image.shape
    return Window(stamp_ns, Events.empty(width, height), sample)


def window_of_events(newest: Newest, size: WindowSize) -> Window:
    """The newest window where frames are missing: pictures of the events stand in for them, as many as the
    target takes.
    """
    events = newest.window(size)
    pictures = render_event_images(events, FRAMES)
    frames = tuple(Frame(newest.ros_ns, picture) for picture in pictures)
    return Window(newest.ros_ns, events, frames, degraded=NO_FRAMES)
