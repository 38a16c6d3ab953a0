"""`evspec bench scenes`: how alike the events of simulated scenes and those of real cameras are.

Every figure is of windows of 50 ms, the event model's, each looked at by itself, so that a recording of one
window and one of minutes are counted alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from evspec_ros.choices import CONDITIONS
from evspec_ros.errors import RecordingError
from evspec_ros.events.types import Events
from evspec_ros.recordings.opening import open_recording
from evspec_ros.simulation.samples import WINDOW_S, sample_scene

WINDOW_NS = round(WINDOW_S * 1e9)
SUPPORT_NS = (
    10_000_000  # how long an event counts as a neighbour of those that follow (Delbruck's filter, 2008)
)
LONGEST_NS = 2_000_000_000  # of a recording
WIDTH = 112  # characters that the table needs
INTERVAL_EDGES_MS = np.geomspace(0.01, 50, 38)  # ten to a decade


@dataclass(frozen=True)
class EventStatistics:
    """Figures of some windows.

    rate_hz: events of one pixel a second; on: share of "brighter" ones; active: share of the pixels with an
    event in a window; per_active: events of such a pixel; supported: share of the events with another at one
    of the eight neighbours in the 10 ms before, among those later than 10 ms in their window; intervals_ms:
    10th, 50th and 90th percentile of the time from one event of a pixel to its next, None without any;
    histogram: share of the intervals in each of INTERVAL_EDGES_MS.
    """

    name: str
    simulated: bool
    width: int
    height: int
    windows: int
    events: int
    rate_hz: float
    on: float
    active: float
    per_active: float
    supported: float
    intervals_ms: tuple[float, float, float] | None
    histogram: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return asdict(self)


def statistics(name: str, windows: Sequence[Events], seconds: float, *, simulated: bool) -> EventStatistics:
    """Figures of windows, each sorted by time, that last `seconds` together."""
    width, height = windows[0].width, windows[0].height
    pixels = width * height
    counted = [_count_window(w.t, w.x, w.y, width, height, SUPPORT_NS) for w in windows]
    count = sum(map(len, windows))
    active = sum(found[0] for found in counted)
    supported, judged = (sum(found[i] for found in counted) for i in (1, 2))
    intervals = np.concatenate([found[3] for found in counted]) / 1e6
    histogram, _ = np.histogram(np.maximum(intervals, INTERVAL_EDGES_MS[0]), INTERVAL_EDGES_MS)
    low, median, high = np.percentile(intervals, (10, 50, 90)) if len(intervals) else (0.0, 0.0, 0.0)
    return EventStatistics(
        name=name,
        simulated=simulated,
        width=width,
        height=height,
        windows=len(windows),
        events=count,
        rate_hz=count / pixels / seconds,
        on=sum(int(w.p.sum(dtype=np.int64)) for w in windows) / max(1, count),
        active=active / pixels / len(windows),
        per_active=count / max(1, active),
        supported=supported / max(1, judged),
        intervals_ms=(float(low), float(median), float(high)) if len(intervals) else None,
        histogram=tuple((histogram / max(1, len(intervals))).tolist()),
    )


@numba.njit(cache=True, nogil=True)
def _count_window(
    t: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    width: int,
    height: int,
    support_ns: int,
) -> tuple[int, int, int, NDArray[np.int64]]:  # fmt: skip
    """Of one window sorted by time: active pixels, events with a neighbour, events that were asked for one,
    and the intervals in ns.
    """
    never = np.iinfo(np.int64).min
    last = np.full((height + 2, width + 2), never)  # a border without events spares the comparisons
    intervals = np.empty(len(t), np.int64)
    active, supported, judged, found = 0, 0, 0, 0
    for i in range(len(t)):
        row, column = np.int64(y[i]) + 1, np.int64(x[i]) + 1
        if row > height or column > width:
            continue
        if t[i] - t[0] >= support_ns:
            judged += 1
            latest = never
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if dx != 0 or dy != 0:
                        latest = max(latest, last[row + dy, column + dx])
            supported += latest >= t[i] - support_ns
        if last[row, column] == never:
            active += 1
        else:
            intervals[found] = t[i] - last[row, column]
            found += 1
        last[row, column] = t[i]
    return active, supported, judged, intervals[:found]


def of_condition(condition: str, scenes: int, report: Callable[[], None] = lambda: None) -> EventStatistics:
    """Figures of the windows that the models see of the first held-out scenes of a condition."""
    windows = []
    for index in range(scenes):
        windows.append(sample_scene("held_out", index, condition)[1].events(0.0))
        report()
    return statistics(condition, windows, scenes * WINDOW_S, simulated=True)


def of_recording(path: Path) -> EventStatistics:
    """Figures of the first two seconds of a recording, in whole windows if it is longer than one. Raises
    RecordingError.
    """
    events = _first_events(path)
    start = int(events.t[0])
    duration = int(events.t[-1]) + 1 - start
    count = max(1, duration // WINDOW_NS)
    windows = [events.between(start + k * WINDOW_NS, start + (k + 1) * WINDOW_NS) for k in range(count)]
    return statistics(path.name, windows, min(duration, count * WINDOW_NS) / 1e9, simulated=False)


def _first_events(path: Path) -> Events:
    """Sorted by time: sensors send neighbouring times in no strict order."""
    pieces: list[Events] = []
    for piece in open_recording(path).events():
        pieces.append(piece)
        if piece.t[-1] - pieces[0].t[0] > LONGEST_NS:
            break
    if not pieces:
        raise RecordingError(f"There are no events in {path}; name a recording that has some.")
    events = Events.concatenate(pieces, pieces[0].width, pieces[0].height)
    order = np.argsort(events.t, kind="stable")
    return Events(
        events.t[order], events.x[order], events.y[order], events.p[order], events.width, events.height
    )


def compare_visibly(scenes: int, recordings: Sequence[Path]) -> list[EventStatistics]:
    """Figures of every condition and of recordings, with progress on stderr. Raises RecordingError."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("comparing events", total=len(CONDITIONS) * scenes + len(recordings))

        def rows() -> Iterator[EventStatistics]:
            for path in recordings:  # first, as they may not be there
                yield of_recording(path)
                progress.advance(task)
            for condition in CONDITIONS:
                yield of_condition(condition, scenes, lambda: progress.advance(task))

        return sorted(rows(), key=lambda row: not row.simulated)


def print_statistics(rows: Iterable[EventStatistics]) -> None:
    """A table."""
    table = Table(title="events in windows of 50 ms", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("events of", no_wrap=True)
    for name in (
        "win-\ndows", "a pixel,\nHz", "on,\n%", "active\npixels, %", "of such\na pixel",
        "with a\nneighbour, %", "10 % of\nintervals, ms", "50 %\n", "90 %\n",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    section = True
    for row in rows:
        if section and not row.simulated:
            table.add_section()
            section = False
        shares = f"{100 * row.on:.1f}", f"{100 * row.active:.2f}", f"{row.per_active:.2f}"
        intervals = [f"{value:.2f}" for value in row.intervals_ms or ()] or ["-"] * 3
        rate, supported = f"{row.rate_hz:.2f}", f"{100 * row.supported:.1f}"
        table.add_row(row.name, str(row.windows), rate, *shares, supported, *intervals)
    console = Console(highlight=False)
    console.width = max(WIDTH, console.width)
    console.print(table)
