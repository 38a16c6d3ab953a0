"""What is described where one camera sends nothing: the other's window, marked, or nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from evspec_ros.choices import DESCRIBE, WAIT
from evspec_ros.errors import RosError
from evspec_ros.events.window import WindowSize
from evspec_ros.ros.ingest import EventStream, ImageStream, newest_window
from evspec_ros.windows import NO_EVENTS, NO_FRAMES, Window, window_of_events


class NothingToDescribeError(RosError):
    """There is no window to describe now: nothing went wrong."""


@dataclass(frozen=True)
class Degrading:
    """Whether a window is described without events, and without frames: DESCRIBE or WAIT.

    silent_after_s: a camera that sent nothing good for so long is missing; 0: one that never did.
    """

    without_events: str
    without_frames: str
    silent_after_s: float

    def missing(self, stream: EventStream | ImageStream) -> bool:
        """Whether nothing good comes from this camera."""
        silent_s = time.monotonic() - stream.received_at
        return not stream.received_at or 0 < self.silent_after_s < silent_s

    def window(
        self,
        events: EventStream,
        images: ImageStream,
        topics: tuple[str, str],
        size: WindowSize,
        frames_seconds: float,
    ) -> Window:
        """The newest window, marked with what is missing in it; where frames alone are missing and it is
        described all the same, pictures of the events stand in for them.

        Raises NothingToDescribeError, which says on which of the topics, the events' and the images', what is
        waited for. Where both cameras stopped, the window is the last one.
        """
        lost = {NO_EVENTS: self.missing(events), NO_FRAMES: self.missing(images)}
        degraded = " and ".join(name for name, gone in lost.items() if gone)
        if degraded == NO_EVENTS and self.without_events == WAIT:
            raise NothingToDescribeError(
                f"No events arrive on {topics[0]}, so nothing is described (without_events: wait)."
            )
        if degraded == NO_FRAMES:
            if self.without_frames == WAIT and images.received_at:
                raise NothingToDescribeError(
                    f"No image arrives on {topics[1]}, so nothing is described (without_frames: wait)."
                )
            if self.without_frames == DESCRIBE and (newest := events.newest()) is not None:
                return window_of_events(newest, size)
        window = newest_window(events, images, size, frames_seconds)
        if window is None:
            raise NothingToDescribeError(
                f"No image has arrived on {topics[1]} yet, so nothing can be described."
            )
        return replace(window, degraded=degraded, frame_id=images.frame_id)


def last_arrivals(images: ImageStream, events: EventStream) -> str:
    """When the newest messages of both cameras arrived, in half a sentence."""
    inputs = ("image", images.received_at), ("events", events.received_at)
    told = (
        f"the newest {name} arrived {time.monotonic() - at:.1f} s ago" if at else f"no {name} arrived yet"
        for name, at in inputs
    )
    return ", ".join(told)
