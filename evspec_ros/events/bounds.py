"""Events at places that the sensor does not have: they are left out, counted, and said to be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evspec_ros.events.state import OUTSIDE, OUTSIDE_X, OUTSIDE_Y, REACH_X, REACH_Y
from evspec_ros.events.types import Events

SENSORS = ((128, 128), (240, 180), (304, 240), (346, 260), (640, 480), (1280, 720))  # common, ascending
_MOST_PIXELS = 1 << 16  # of a sensor's side; places beyond are no reason for a larger one
_MANY = 1000  # one event in so many outside is no chance: the size is another


@dataclass(frozen=True)
class Outside:
    """The events that were left out since the sensor does not have their place.

    first: x and y of the first of them. width, height: a sensor that has all their places.
    """

    count: int = 0
    first: tuple[int, int] | None = None
    width: int = 0
    height: int = 0

    def plus(self, more: Outside) -> Outside:
        """These, then more of them."""
        if not more.count:
            return self
        return Outside(
            self.count + more.count,
            more.first if self.first is None else self.first,
            max(self.width, more.width),
            max(self.height, more.height),
        )

    def since(self, count: int) -> Outside:
        """Those that came after the first `count` of them; first, width and height stay those of all."""
        return replace(self, count=self.count - count)

    def size_that_holds_all(self, inside: int, width: int, height: int) -> tuple[int, int] | None:
        """Width and height to give instead, where more than one event in a thousand lies outside.

        inside: how many lie on the sensor of width x height pixels. The size is the smallest common one.
        """
        if self.count * _MANY <= self.count + inside:
            return None
        return common_sensor(max(width, self.width), max(height, self.height))


NONE_OUTSIDE = Outside()


def outside_in(state: NDArray[np.int64]) -> Outside:
    """Those that kernels counted in a state, see state.leave_out."""
    if not state[OUTSIDE]:
        return NONE_OUTSIDE
    count, x, y, width, height = state[[OUTSIDE, OUTSIDE_X, OUTSIDE_Y, REACH_X, REACH_Y]].tolist()
    return Outside(count, (x, y), width + 1, height + 1)


def common_sensor(width: int, height: int) -> tuple[int, int]:
    """The smallest common sensor of at least width x height pixels; these themselves where there is none."""
    return next(((w, h) for w, h in SENSORS if width <= w and height <= h), (width, height))


def inside_sensor(
    t_ns: NDArray[np.int64], x: NDArray[Any], y: NDArray[Any], p: NDArray[Any], width: int, height: int
) -> tuple[Events, Outside]:
    """The events on the sensor, and what is told of the others; x and y are any integers, p > 0 is on."""
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    on = (p > 0).astype(np.uint8)
    if inside.all():
        return Events(t_ns, x.astype(np.uint16), y.astype(np.uint16), on, width, height), NONE_OUTSIDE
    column, row = x[~inside], y[~inside]
    outside = Outside(len(column), (int(column[0]), int(row[0])), _reach(column), _reach(row))
    kept = x[inside].astype(np.uint16), y[inside].astype(np.uint16)
    return Events(t_ns[inside], *kept, on[inside], width, height), outside


def _reach(places: NDArray[Any]) -> int:
    """How many pixels a side must have for these places, those that are no pixels left aside; at least 1."""
    return int(places[(places >= 0) & (places < _MOST_PIXELS)].max(initial=0)) + 1
