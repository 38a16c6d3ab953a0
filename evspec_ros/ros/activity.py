"""Whether something happens before the event camera: cheap statistics of its newest events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evspec_ros.events.types import Events

SAMPLE = 20_000  # of a window's events, the newest ones, are looked at
COLUMNS, ROWS = 16, 12  # cells over the sensor
SPARSE = 0.25  # of the mean share: a cell was quiet that, with its neighbours, had less on average
SIGNIFICANT = 4.0  # standard errors; a drift of the events below this is chance
SMALL_DRIFT = 0.01  # of the sensor's width in a window; below this nothing moves
FEWEST = 16  # events that tell a direction


@dataclass(frozen=True)
class Activity:
    """rate: events a second, below which all is still; rate_factor: by how much the rate has to differ from
    that of the last described window; cluster: share of the events that lie where that one had none;
    turn_deg: change of the direction in which they drift.
    """

    rate: float
    rate_factor: float
    cluster: float
    turn_deg: float


@dataclass(frozen=True, eq=False)
class Glance:
    """One window's statistics. rate: events a second; cells: float64 [COLUMNS * ROWS], shares that sum to 1;
    drift: how far the events move in the window, in widths of the sensor, None where that may be chance.
    """

    rate: float
    cells: NDArray[np.float64]
    drift: tuple[float, float] | None

    @classmethod
    def at(cls, events: Events, duration_ns: int) -> Glance:
        """Of the newest events of a window of that length, SAMPLE at most."""
        span_ns = duration_ns if len(events) < SAMPLE else max(1, int(events.t[-1] - events.t[0]))
        x, y = events.x.astype(np.float64), events.y.astype(np.float64)
        columns = np.minimum((x * COLUMNS / events.width).astype(np.intp), COLUMNS - 1)
        rows = np.minimum((y * ROWS / events.height).astype(np.intp), ROWS - 1)
        cells = np.bincount(rows * COLUMNS + columns, minlength=COLUMNS * ROWS) / max(1, len(events))
        return cls(1e9 * len(events) / span_ns, cells, _drift(events.t, np.stack([x, y]) / events.width))

    def news(self, before: Glance | None, activity: Activity) -> str:
        """What makes this window worth a description after the one before, "" where nothing does."""
        if before is None:
            return "the first window"
        if max(self.rate, before.rate) < activity.rate:
            return ""
        quieter, louder = sorted((max(self.rate, 1.0), max(before.rate, 1.0)))
        if louder >= activity.rate_factor * quieter:
            return f"{before.rate:.0f} events a second have become {self.rate:.0f}"
        quiet = _around(before.cells) < SPARSE / len(before.cells)
        if (share := float(self.cells[quiet].sum())) >= activity.cluster:
            return f"{share:.0%} of the events are where none were"
        turned = _angle_deg(self.drift, before.drift)
        return f"the direction turned by {turned:.0f} degrees" if turned >= activity.turn_deg else ""


def _around(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """The means of each cell with its neighbours: where events are few, one alone is empty by chance."""
    grid = np.pad(cells.reshape(ROWS, COLUMNS), 1, mode="edge")
    means: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(grid, (3, 3)).mean((2, 3))
    return means.ravel()


def _drift(t: NDArray[np.int64], places: NDArray[np.float64]) -> tuple[float, float] | None:
    """The slopes of places [2, n] over the window's time by least squares, where one is significant."""
    if len(t) < FEWEST or t[-1] == t[0]:
        return None
    phase = (t - t[0]) / float(t[-1] - t[0])
    phase -= phase.mean()
    spread = phase @ phase
    centred = places - places.mean(1, keepdims=True)
    slopes = centred @ phase / spread
    errors = np.sqrt(((centred - slopes[:, None] * phase) ** 2).mean(1) / spread)
    if not (np.abs(slopes) > np.maximum(SMALL_DRIFT, SIGNIFICANT * errors)).any():
        return None
    return float(slopes[0]), float(slopes[1])


def _angle_deg(one: tuple[float, float] | None, other: tuple[float, float] | None) -> float:
    if one is None or other is None:
        return 0.0
    return abs(float(np.angle(complex(*one) * np.conj(complex(*other)), deg=True)))
