"""The windows of a recording, cut as a node cuts them that is never late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from evspec_ros.choices import DESCRIBE
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.events.buffer import EventBuffer
from evspec_ros.events.types import Events
from evspec_ros.frames.buffer import FrameBuffer, kept_seconds
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.recording import Recording
from evspec_ros.recordings.timeline import timeline
from evspec_ros.windows import (
    NO_EVENTS,
    Newest,
    Window,
    cut_window,
    end_of_window_ns,
    window_of_events,
)

# As the node's parameters have it by default: event_buffer_s, event_buffer_mb, stale_after_s.
EVENTS_S, EVENTS_BYTES, SILENT_NS = 1.0, 256_000_000, 5_000_000_000
MOST_FRAMES = 4096  # its max_frames at the most: no camera is thinned, which goes by what has come already
TICK_NS = 1_000  # a recording's times may be cut to the microsecond where it is played


def replayed(recording: Recording, plan: ReplayPlan) -> Iterator[Window]:
    """A window for each window's worth of time that has passed, as the node's trigger `continuous` asks for
    them: the first as soon as there is a frame. Lazily, in one sweep; raises RecordingError where the
    recording is damaged, behind the windows before that place.
    """
    held = _Held(plan)
    offered_ns: int | None = None
    for _, item in timeline(recording):
        held.add(item)
        end_ns = held.end_ns()
        if end_ns is None:
            continue
        if offered_ns is None or abs(end_ns - offered_ns) >= plan.size.duration_ns:
            offered_ns = end_ns
            yield held.window()


def windows_ending(recording: Recording, plan: ReplayPlan, stops_ns: Iterable[int]) -> Iterator[Window]:
    """The windows that end at these times of the recording, ascending, each once; of events a tick later is
    as well.
    """
    held = _Held(plan)
    waiting = iter(sorted(stops_ns))
    stop_ns = next(waiting, None)
    for now_ns, item in timeline(recording):
        while stop_ns is not None and now_ns >= stop_ns + TICK_NS and held.end_ns() is not None:
            yield held.window(stop_ns)
            stop_ns = next(waiting, None)
        if stop_ns is None:
            return
        held.add(item)
    while stop_ns is not None and held.end_ns() is not None:
        yield held.window(stop_ns)
        stop_ns = next(waiting, None)


class _Held:
    """What has been read of both streams so far, as the node holds it."""

    def __init__(self, plan: ReplayPlan) -> None:
        self._plan = plan
        self._events: EventBuffer | None = None
        self._frames = FrameBuffer(kept_seconds(plan.frames_seconds), MOST_FRAMES)

    def add(self, item: Events | Frame) -> None:
        """One more packet or frame."""
        if isinstance(item, Frame):
            self._frames.append(item)
            return
        buffer = self._events
        if buffer is None or (item.width, item.height) != (buffer.width, buffer.height):
            buffer = EventBuffer(item.width, item.height, EVENTS_S, EVENTS_BYTES)
            self._events = buffer
        buffer.append(item)

    def end_ns(self) -> int | None:
        """Where the newest window ends; None while there is none."""
        alone = self._plan.without_frames == DESCRIBE
        return end_of_window_ns(self._newest(), self._frames.latest_ns, events_alone=alone)

    def window(self, stop_ns: int | None = None) -> Window:
        """The newest window, or the one that ended at stop_ns; there has to be one."""
        newest, plan = self._newest(), self._plan
        window = cut_window(newest, self._frames, plan.size, plan.frames_seconds, stop_ns)
        if window is None:
            assert newest is not None
            window = window_of_events(newest, plan.size)
            return window if stop_ns is None else replace(window, stamp_ns=stop_ns)
        silent = newest is None or window.stamp_ns - newest.ros_ns > SILENT_NS
        return replace(window, degraded=NO_EVENTS) if silent else window

    def _newest(self) -> Newest | None:
        if self._events is None or (latest_ns := self._events.latest_ns) is None:
            return None
        return Newest(latest_ns, latest_ns, self._events)
