"""The last few seconds of frames, and the eight of them that the target looks at.

Which eight is one rule for the node, for windows of recordings and for training: they are looked for at
instants that lie on a grid of the stream's own time and so do not move with every window. A frame that one
window took for an instant is the one that the next window takes for it, and need not be encoded again.
"""

from __future__ import annotations

import bisect
import threading

from evspec_ros.errors import FrameError
from evspec_ros.frames.types import Frame
from evspec_ros.sizes import FRAMES, STILL_NS

_STEPS = FRAMES - 1  # of the grid, between the oldest frame of a sample and the newest


class FrameBuffer:
    """The frames of the last `seconds` and the one before these, in the order of their stamps; at most
    `max_frames` + 2 of them.

    A camera faster than max_frames / seconds is thinned out evenly instead of losing its oldest frames: while
    the newest frame is less than seconds / max_frames later than the one before it, the next frame takes its
    place. So the newest frame is always held. One thread may append while another samples.

    A frame overtaken by a newer one is ignored. One that is older than anything that the buffer may hold
    (newest stamp - seconds) means that time stepped back (a replay from the start): all others are forgotten.
    """

    def __init__(self, seconds: float, max_frames: int) -> None:
        if seconds <= 0 or max_frames < 1:
            raise FrameError(
                f"A frame buffer of {seconds} s and {max_frames} frames can hold nothing: "
                "give it more than 0 s and at least one frame."
            )
        self._span_ns = round(seconds * 1e9)
        self._spacing_ns = self._span_ns // max_frames
        self._frames: list[Frame] = []
        self._origin_ns = 0  # the stamp of the stream's first frame
        self._lock = threading.Lock()

    @property
    def latest_ns(self) -> int | None:
        """The stamp of the newest frame, None if there is none."""
        with self._lock:
            return self._frames[-1].stamp_ns if self._frames else None

    @property
    def oldest_ns(self) -> int | None:
        """The stamp of the oldest frame that is held, None if there is none."""
        with self._lock:
            return self._frames[0].stamp_ns if self._frames else None

    def __len__(self) -> int:
        return len(self._frames)

    def clear(self) -> None:
        """Forgets all frames."""
        with self._lock:
            self._frames.clear()

    def append(self, frame: Frame) -> None:
        """Takes in the next frame; the image is kept, not copied."""
        with self._lock:
            frames = self._frames
            if frames and frame.stamp_ns < frames[-1].stamp_ns - self._span_ns:
                frames.clear()
            if frames and frame.stamp_ns < frames[-1].stamp_ns:
                return
            if not frames:
                self._origin_ns = frame.stamp_ns
            if len(frames) > 1 and frames[-1].stamp_ns - frames[-2].stamp_ns < self._spacing_ns:
                frames.pop()
            frames.append(frame)
            older = bisect.bisect_left(frames, frame.stamp_ns - self._span_ns, key=_stamp)
            del frames[: max(older - 1, 0)]  # the last of them may be the nearest one to what follows it

    def sample(self, stop_ns: int, seconds: float) -> tuple[Frame, ...]:
        """FRAMES frames of the last `seconds`, oldest first, as the target expects them; () if none was seen
        by stop_ns.

        For each of `grid_instants` the frame nearest to it among those that are not later than stop_ns. Where
        fewer frames were seen the nearest one stands in, more than once if need be.
        """
        with self._lock:
            frames = self._frames[: bisect.bisect_right(self._frames, stop_ns, key=_stamp)]
            origin_ns = self._origin_ns
        if not frames:
            return ()
        newest_ns = frames[-1].stamp_ns
        instants = grid_instants(newest_ns - origin_ns, stop_ns - origin_ns, round(seconds * 1e9))
        return tuple(_nearest(frames, origin_ns + instant) for instant in instants)


def grid_instants(newest_ns: int, stop_ns: int, span_ns: int) -> list[int]:
    """Where a window that ends at stop_ns looks for its FRAMES frames: at the last multiples of span_ns /
    (FRAMES - 1) that are not later than the newest frame. Which frame is nearest to such an instant is known,
    and stays so. Once no frame has come for a whole step of the grid the instants go on without: a camera
    that stopped shows its last picture in the end, not its last second. Times count from the stream's first
    frame, so that a recording played live is seen as it is offline, whatever its stamps are shifted by.
    """
    last = max(newest_ns, stop_ns - span_ns // _STEPS) * _STEPS // span_ns
    return [(last - back) * span_ns // _STEPS for back in reversed(range(FRAMES))]


def kept_seconds(seconds: float) -> float:
    """How long frames have to be kept for a sample of `seconds`: its oldest instant is up to two steps
    older than that, and a window may end STILL_NS before the newest frame, where events come later.
    """
    return seconds * (1 + 2 / _STEPS) + STILL_NS / 1e9


def _stamp(frame: Frame) -> int:
    return frame.stamp_ns


def _nearest(frames: list[Frame], instant_ns: int) -> Frame:
    after = bisect.bisect_left(frames, instant_ns, key=_stamp)
    return min(frames[max(after - 1, 0) : after + 1], key=lambda frame: abs(frame.stamp_ns - instant_ns))
