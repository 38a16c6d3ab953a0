"""One camera followed among the images of a topic, as `events.streams` follows one among event messages."""

from __future__ import annotations

import statistics
from collections import deque
from typing import NamedTuple

from evspec_ros.errors import FrameError
from evspec_ros.events.streams import SILENCE_S, Source

PERIODS = 3  # after this many of its periods without the camera that is followed, another takes its place
FIRST_SILENCE_S = 1.0  # and after this long, before its period is known
REORDERING_NS = 100_000_000  # images may overtake each other by this much; beyond, time jumped back
SPARE_IMAGES = 10  # may be missing however short the time was
IMAGES_PER_S = 1000  # may be missing per second: no camera is faster
_INTERVALS = 8  # between the latest arrivals, which tell the period


class _Image(NamedTuple):
    """What is known of one without its pixels; see `FrameFollower.take`."""

    source: Source
    stamp_ns: int
    number: int | None
    at_s: float


class FrameFollower:
    """Follows one camera: images of another one are refused as long as it goes on.

    Another one is told by its frame, size or encoding, by stamps that go back, and where the middleware
    numbers what a publisher sends, by numbers that fall back, come again or leap further than the time since
    the last one allows. After a silence of the one that is followed (its driver was restarted, it was set to
    another size) the other one takes its place and begins anew.
    """

    def __init__(self) -> None:
        self._last: _Image | None = None  # the last good one
        self._intervals: deque[float] = deque(maxlen=_INTERVALS)

    @property
    def frame_id(self) -> str:
        """Of the camera that is followed."""
        return self._last.source.frame_id if self._last else ""

    @property
    def silence_s(self) -> float:
        """How long the camera that is followed has to be silent before another takes its place."""
        if len(self._intervals) < _INTERVALS:
            return FIRST_SILENCE_S
        return max(SILENCE_S, PERIODS * statistics.median(self._intervals))

    def take(self, source: Source, stamp_ns: int, number: int | None, at_s: float) -> str:
        """Why the stream begins anew with this image, "" where it goes on; FrameError for one that is left
        out. number: the publisher's, None where nobody counts; at_s: when it arrived, on a clock that runs
        evenly.
        """
        image, last = _Image(source, stamp_ns, number, at_s), self._last
        what, jumped = ("", False) if last is None else _what_changed(last, image)
        if what and not jumped and last is not None and at_s - last.at_s < self.silence_s:
            raise FrameError(
                f"{what} in the middle of a stream; it is left out: let only one camera publish here."
            )
        if what:
            self._intervals.clear()
        elif last is not None:
            self._intervals.append(at_s - last.at_s)
        self._last = image
        return f"{what}: the stream began anew." if what else ""

    def restart(self) -> bool:
        """Forget camera and time, for time was set; whether there was anything to forget."""
        followed = self._last is not None
        self._last = None
        self._intervals.clear()
        return followed


def _what_changed(last: _Image, image: _Image) -> tuple[str, bool]:
    """What tells that an image is not the next of the camera that sent the last one, "" if nothing does; and
    whether it is that one's all the same, and its time jumped.
    """
    if image.source != last.source:
        return f"Images of {image.source} follow those of {last.source}", False
    step = None if image.number is None or last.number is None else image.number - last.number
    if step is not None and not 0 < step <= SPARE_IMAGES + IMAGES_PER_S * (image.at_s - last.at_s):
        return f"Image {image.number} of a publisher follows image {last.number}", False
    if image.stamp_ns < last.stamp_ns - REORDERING_NS:
        back_s = (last.stamp_ns - image.stamp_ns) / 1e9
        return f"An image is stamped {back_s:.3f} s before the last one", step is not None
    return "", False
