"""The event stream in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Events:
    """Events in the order in which the sensor sent them, one contiguous array per field, each of shape [N].

    t: int64, nanoseconds; x, y: uint16, pixels from the top left; p: uint8, 1 = brighter, 0 = darker.
    width, height: the sensor's size in pixels.
    """

    t: NDArray[np.int64]
    x: NDArray[np.uint16]
    y: NDArray[np.uint16]
    p: NDArray[np.uint8]
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, part: slice) -> Events:
        """The events of a slice, as views."""
        return Events(self.t[part], self.x[part], self.y[part], self.p[part], self.width, self.height)

    def between(self, start_ns: int, stop_ns: int) -> Events:
        """Events with start_ns <= t < stop_ns, as views; needs t in ascending order."""
        first, last = np.searchsorted(self.t, (start_ns, stop_ns))
        return self[first:last]

    @staticmethod
    def empty(width: int, height: int) -> Events:
        """No events from a sensor of width x height pixels."""
        return Events(
            np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.uint16), np.empty(0, np.uint8),
            width, height,
        )  # fmt: skip

    @staticmethod
    def concatenate(parts: Iterable[Events], width: int, height: int) -> Events:
        """One stream from consecutive pieces of it; empty if there are none."""
        parts = list(parts)
        if not parts:
            return Events.empty(width, height)
        return Events(
            np.concatenate([part.t for part in parts]),
            np.concatenate([part.x for part in parts]),
            np.concatenate([part.y for part in parts]),
            np.concatenate([part.p for part in parts]),
            width,
            height,
        )
