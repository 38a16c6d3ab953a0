"""`evspec bench peers`: every peer describes the same windows in turn, on one checkpoint, in one run."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from evspec_ros.errors import EvspecError, Failure
from evspec_ros.evaluation.peers import Peer, PeerModels, PeerText, all_peers
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.run import peak_mb
from evspec_ros.evaluation.replay.sweep import replayed
from evspec_ros.networks.devices import machine
from evspec_ros.recordings import open_recording
from evspec_ros.simulation.recorded_scene import record_scene
from evspec_ros.windows import Window

OURS, BASELINE = "evspec combined", "evspec none"
SCENE_S, FIRST_SEED = 1.2, 9000  # of simulated streams, which no training has seen
NO_WINDOWS_YET_S = 0.5  # of a stream before the first window that is described: frames of a second are there


@dataclass(frozen=True)
class PeerRow:
    """One peer over all windows.

    tokens_per_second: of whole windows; first_token_ms, window_ms: means; peak_mb: of a process that did
    nothing else, 0 where it was not measured; same_text: the share of the windows with plain decoding's text;
    slower_tokens, slower_window: how many times as many tokens a second `combined` writes, and how many times
    as long as with it a window takes; failed: why it wrote nothing, "" where it did.
    """

    peer: str
    about: str
    windows: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0
    first_token_ms: float = 0.0
    window_ms: float = 0.0
    window_ms_median: float = 0.0
    peak_mb: float = 0.0
    same_text: float = 0.0
    slower_tokens: float = 0.0
    slower_window: float = 0.0
    failed: str = ""


@dataclass(frozen=True)
class PeerReport:
    """All rows, and where they were measured."""

    rows: tuple[PeerRow, ...]
    streams: int
    machine: str

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass
class _Runner:
    peer: Peer
    texts: list[PeerText] = field(default_factory=list)
    failed: str = ""

    def attempt(self, work: Callable[[], object]) -> None:
        """Do it, unless the peer has failed."""
        if self.failed:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 - other packages raise anything; it is this peer's row
            self.failed = Failure.of(error).problem

    def describe(self, window: Window) -> None:
        """One more text."""
        self.texts.append(self.peer.describe(window))


def race_peers(
    peers: Sequence[Peer],
    streams: Sequence[Sequence[Window]],
    report: Callable[[int], None] = lambda *_: None,
) -> tuple[PeerRow, ...]:
    """Each stream is described by every peer before the next one is, in an order that turns; the first window
    is described once before it counts. A peer that raises anything has failed, with the reason.
    """
    runners = [_Runner(peer) for peer in peers]
    for runner in runners:
        runner.attempt(runner.peer.load)
        runner.attempt(lambda runner=runner: runner.peer.describe(streams[0][0]))  # type: ignore[misc]
    for index, stream in enumerate(streams):
        turn = index % len(runners)
        for runner in runners[turn:] + runners[:turn]:
            runner.attempt(runner.peer.begin_stream)
            for window in stream:
                runner.attempt(lambda runner=runner, window=window: runner.describe(window))  # type: ignore[misc]
        report(index + 1)
    by_name = {runner.peer.name: runner for runner in runners}
    return tuple(_row(runner, by_name.get(BASELINE), by_name.get(OURS)) for runner in runners)


def _row(runner: _Runner, plain: _Runner | None, ours: _Runner | None) -> PeerRow:
    peer, texts = runner.peer, runner.texts
    if runner.failed or not texts:
        return PeerRow(peer.name, peer.about, failed=runner.failed or "It described nothing.")
    window_ms = statistics.mean(one.total_ms for one in texts)
    same = [one.text == other.text for one, other in zip(texts, plain.texts, strict=False)] if plain else []
    ours_ms = statistics.mean(one.total_ms for one in ours.texts) if ours and ours.texts else window_ms
    ours_rate = _rate(ours.texts) if ours and ours.texts else _rate(texts)
    return PeerRow(
        peer=peer.name,
        about=peer.about,
        windows=len(texts),
        tokens=sum(len(one.tokens) for one in texts),
        tokens_per_second=_rate(texts),
        first_token_ms=statistics.mean(one.first_token_ms for one in texts),
        window_ms=window_ms,
        window_ms_median=statistics.median(one.total_ms for one in texts),
        same_text=sum(same) / max(len(same), 1),
        slower_tokens=ours_rate / _rate(texts),
        slower_window=window_ms / ours_ms,
    )


def _rate(texts: Sequence[PeerText]) -> float:
    return 1e3 * sum(len(one.tokens) for one in texts) / sum(one.total_ms for one in texts)


def simulated_streams(count: int) -> list[list[Window]]:
    """Windows of simulated scenes, each a stream."""
    plan = ReplayPlan("", "", "")
    streams = []
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        with TemporaryDirectory(prefix="evspec-peers-") as folder:
            record_scene(Path(folder) / "scene", seed, SCENE_S)
            windows = list(replayed(open_recording(Path(folder) / "scene"), plan))
        streams.append([one for one in windows if one.stamp_ns >= NO_WINDOWS_YET_S * 1e9])
    return streams


def race_visibly(
    models: PeerModels, streams: int, recordings: Sequence[Path], names: Sequence[str], *, memory: bool
) -> PeerReport:
    """`race_peers` on recordings, each a stream, or on simulated streams, with progress on stderr; names: of
    the peers that run, all without any. memory: measure what each peer takes in a process of its own, too.
    """
    peers = _named(all_peers(models), names)
    plan = ReplayPlan("", "", "")
    windows = [list(replayed(open_recording(path), plan)) for path in recordings]
    windows = [one for one in windows if one] or simulated_streams(streams)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("describing streams", total=len(windows))
        rows = race_peers(peers, windows, lambda done: progress.update(task, completed=done))
        if memory:
            progress.update(task, description="measuring memory", total=None)
            rows = tuple(_with_memory(row, models) for row in rows)
    return PeerReport(rows, len(windows), machine(torch.device("cpu")))


def _named(peers: Sequence[Peer], names: Sequence[str]) -> list[Peer]:
    known = {peer.name for peer in peers}
    for name in names:
        if name not in known:
            raise EvspecError(f"There is no peer {name!r}; there are {', '.join(sorted(known))}.")
    return [peer for peer in peers if not names or peer.name in names]


def _with_memory(row: PeerRow, models: PeerModels) -> PeerRow:
    if row.failed:
        return row
    heads = [f"{kind}={path}" for kind, path in models.heads.items()]
    given = [row.peer, models.target, models.event_model, models.max_new_tokens, *heads]
    result = subprocess.run(
        [sys.executable, "-m", __name__, *map(str, given)], capture_output=True, text=True, check=False
    )
    measured = float(result.stdout) if result.returncode == 0 else 0.0
    return PeerRow(**{**asdict(row), "peak_mb": measured})


def print_peers(report: PeerReport) -> None:
    """A table, and why those that failed did."""
    console = Console(highlight=False)
    table = Table(title=f"{report.streams} streams; {report.machine}", title_justify="left")
    names = ("tokens/s", "first ms", "window ms", "peak MB", "same", "combined: tokens/s", "window")
    table.add_column("peer")
    for name in names:
        table.add_column(name, justify="right")
    for row in report.rows:
        if row.failed:
            table.add_row(row.peer, *["failed"], *[""] * (len(names) - 1))
            continue
        table.add_row(
            row.peer,
            f"{row.tokens_per_second:.0f}",
            f"{row.first_token_ms:.1f}",
            f"{row.window_ms:.1f}",
            f"{row.peak_mb:.0f}" if row.peak_mb else "-",
            f"{row.same_text:.0%}",
            f"{row.slower_tokens:.2f}x",
            f"{row.slower_window:.2f}x",
        )
    console.print(table)
    for row in report.rows:
        if row.failed:
            console.print(f"{row.peer} failed: {row.failed}", soft_wrap=True, markup=False)


def main() -> None:
    """Print what a process that describes one window with one peer takes at most, megabytes."""
    name, target, event_model, most, *heads = sys.argv[1:]
    kinds = dict(one.split("=", 1) for one in heads)
    models = PeerModels(
        Path(target), Path(event_model), {kind: Path(path) for kind, path in kinds.items()}, int(most)
    )
    (peer,) = _named(all_peers(models), [name])
    peer.load()
    peer.describe(simulated_streams(1)[0][0])
    print(peak_mb())


if __name__ == "__main__":
    main()
