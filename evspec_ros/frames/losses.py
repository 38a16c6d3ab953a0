"""Frames that never arrived, as far as the stamps of the others tell."""

from __future__ import annotations

import statistics
from collections import deque

_INTERVALS = 16  # the latest ones, which tell the camera's rate
_LEAST = 8  # before that many the rate is not known
_TOLERANCE = 0.25  # an interval that differs by no more from the period is one period
_STEADY = 0.75  # this share of the intervals are one period each, or the camera has no rate
_LONGEST_NS = 5_000_000_000  # a camera that sent nothing for so long was stopped


class FrameLosses:
    """Counts the frames that are missing between stamps, by the stream's own rate.

    Images carry no sequence number. A gap of n periods in a stream at a steady rate is n - 1 lost frames once
    frames come at that rate again; if they do not, the camera changed its rate and lost nothing.
    """

    def __init__(self) -> None:
        self._intervals: deque[int] = deque(maxlen=_INTERVALS)
        self._newest_ns: int | None = None
        self._gap = 0  # frames missing if the rate goes on

    @property
    def known(self) -> bool:
        """Whether the stream has a steady rate, so that a loss would be seen."""
        return self._period_ns() is not None

    def refused(self) -> None:
        """A frame arrived and cannot be used: the next gap is one shorter than it looks."""
        self._gap -= 1

    def after(self, stamp_ns: int) -> int:
        """How many frames are known to be lost, that were not before, after one with this stamp."""
        newest_ns = self._newest_ns
        if newest_ns is not None and stamp_ns <= newest_ns:  # overtaken, or a duplicate
            self._gap = max(self._gap - 1, 0)
            return 0
        self._newest_ns = stamp_ns
        if newest_ns is None:
            return 0
        interval_ns = stamp_ns - newest_ns
        period_ns = self._period_ns()
        self._intervals.append(interval_ns)
        if period_ns is None or interval_ns > _LONGEST_NS:
            self._gap = 0
            return 0
        if abs(interval_ns - period_ns) <= _TOLERANCE * period_ns:
            lost, self._gap = max(self._gap, 0), 0
            return lost
        self._gap += max(round(interval_ns / period_ns) - 1, 0)
        return 0

    def _period_ns(self) -> float | None:
        if len(self._intervals) < _LEAST:
            return None
        period_ns = statistics.median(self._intervals)
        alike = sum(abs(interval - period_ns) <= _TOLERANCE * period_ns for interval in self._intervals)
        return period_ns if alike >= _STEADY * len(self._intervals) else None
