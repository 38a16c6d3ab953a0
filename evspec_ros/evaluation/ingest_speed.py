"""How fast events are decoded, cut into windows and drawn on one core: `evspec bench ingest`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from evspec_ros.evaluation.event_load import EVENT_ARRAY, EventLoad, loads
from evspec_ros.events.buffer import EventBuffer
from evspec_ros.events.decoders import Decoder
from evspec_ros.events.event_arrays import read_cdr
from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.types import Events
from evspec_ros.networks.devices import processor

PACKET_EVENTS = 200_000  # 4 ms at 50 million events a second
WINDOW_NS = 50_000_000
VGA = 640, 480
WINDOW_EVENTS, MILLION = 250_000, 1_000_000  # at 5 and at 20 million events a second
PEER = "evt3"
_COPY_BYTES = 1 << 26  # more than caches hold


@dataclass(frozen=True)
class EncodingRow:
    """One encoding on one core.

    statistics: how the events lie, see event_load.EventLoad; mev_per_s: median, million events a second;
    peer: the package that decoded the same bytes in turn with ours, None where none is installed that can.
    """

    encoding: str
    statistics: str
    bytes_per_event: float
    mev_per_s: float
    peer: str | None
    peer_mev_per_s: float | None
    ratio: float | None


@dataclass(frozen=True)
class WindowTimes:
    """Median milliseconds of cutting 50 ms out of the buffer and of drawing its five images, at 640 x 480."""

    events: int
    window_ms: float
    render_ms: float


@dataclass(frozen=True)
class NodeLoad:
    """What the node took in under load: the last rate at which it lost nothing and did not fall behind.

    mev_per_s: million events a second that arrived; cpu_percent: of one core, descriptions included;
    dropped_packets: at that rate; steps: every rate that was tried.
    """

    mev_per_s: float
    cpu_percent: float
    dropped_packets: int
    steps: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class IngestSpeed:
    """Everything measured. copy_gb_per_s: at which one core copies memory, read and written bytes together;
    node: None where it was not.
    """

    machine: str
    copy_gb_per_s: float
    rows: tuple[EncodingRow, ...]
    window: WindowTimes
    million: WindowTimes
    node: NodeLoad | None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "machine": self.machine,
            "copy_gb_per_s": self.copy_gb_per_s,
            "rows": [asdict(row) for row in self.rows],
            "window_ms": self.window.window_ms,
            "render_ms": self.window.render_ms,
            "window_events": self.window.events,
            "million": asdict(self.million),
            "node": asdict(self.node) if self.node else None,
        }


def measure(seconds: float, node: NodeLoad | None) -> IngestSpeed:
    """Every encoding for `seconds`, then the windows; with what was measured of the node."""
    rows = tuple(_decoder_row(load, seconds) for load in loads(PACKET_EVENTS))
    return IngestSpeed(
        processor(), _copy_gb_per_s(), rows, _window_times(WINDOW_EVENTS), _window_times(MILLION), node
    )


def _copy_gb_per_s() -> float:
    source, target = np.ones((2, _COPY_BYTES), np.uint8)
    (duration,) = _durations([lambda: np.copyto(target, source)], seconds=0.5)
    return round(2 * _COPY_BYTES / duration / 1e9, 1)


def _decoder_row(load: EventLoad, seconds: float) -> EncodingRow:
    runs = [_ours(load)]
    peer = _peer(load)
    runs += [peer] if peer else []
    rates = [load.events / duration / 1e6 for duration in _durations(runs, seconds)]
    return EncodingRow(
        load.encoding,
        load.statistics,
        round(len(load.data) / load.events, 2),
        round(rates[0], 1),
        PEER if peer else None,
        round(rates[1], 1) if peer else None,
        round(rates[0] / rates[1], 2) if peer else None,
    )


def _ours(load: EventLoad) -> Callable[[], object]:
    if load.encoding == EVENT_ARRAY:
        return lambda: read_cdr(load.data)
    decoder = Decoder(load.encoding, load.width, load.height)
    return lambda: decoder.decode(load.data)


def _peer(load: EventLoad) -> Callable[[], object] | None:
    try:
        import evt3
    except ImportError:
        return None
    if load.encoding != "evt3":
        return None
    decoder = evt3.Decoder(load.width, load.height)
    return lambda: decoder.feed(load.data)


def _durations(runs: list[Callable[[], object]], seconds: float) -> list[float]:
    """Median seconds of each, all in turn for `seconds` together."""
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times[0]:
        for run, durations in zip(runs, times, strict=True):
            begin = time.perf_counter()
            run()
            durations.append(time.perf_counter() - begin)
    return [statistics.median(durations) for durations in times]


def _window_times(count: int) -> WindowTimes:
    rng = np.random.default_rng(4)
    width, height = VGA
    buffer = EventBuffer(width, height, 1.0, 64_000_000)
    t = np.sort(rng.integers(1, WINDOW_NS + 1, count))
    x, y = rng.integers(0, width, count, np.uint16), rng.integers(0, height, count, np.uint16)
    buffer.append(Events(t, x, y, rng.integers(0, 2, count, np.uint8), width, height))
    window = buffer.window(WINDOW_NS, WINDOW_NS)
    render_event_images(window)  # compiles
    cut, draw = _durations(
        [lambda: buffer.window(WINDOW_NS, WINDOW_NS), lambda: render_event_images(window)], seconds=1.0
    )
    return WindowTimes(len(window), round(cut * 1000, 2), round(draw * 1000, 2))


def print_speed(speed: IngestSpeed) -> None:
    """For people."""
    console = Console(highlight=False)
    table = Table("encoding", "events", "bytes/event", "Mev/s", f"{PEER} Mev/s", "ratio", box=SIMPLE)
    for row in speed.rows:
        table.add_row(
            row.encoding,
            row.statistics,
            str(row.bytes_per_event),
            str(row.mev_per_s),
            "" if row.peer_mev_per_s is None else str(row.peer_mev_per_s),
            "" if row.ratio is None else str(row.ratio),
        )
    console.print(f"{speed.machine}; one core copies memory at {speed.copy_gb_per_s} GB/s")
    console.print(table)
    for times in (speed.window, speed.million):
        console.print(
            f"{times.events} events in 50 ms at 640 x 480: window {times.window_ms} ms, "
            f"five images {times.render_ms} ms"
        )
    if speed.node:
        console.print(
            f"The node took in {speed.node.mev_per_s} million events a second without a loss, with "
            f"{speed.node.cpu_percent} % of a core."
        )
