"""The demo: the node in one process, a recording played to it over DDS from another, shown here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from std_msgs.msg import String

from evspec_ros.errors import RecordingError, RosError
from evspec_ros.evaluation.report import Moment, Report, Timing, write_report
from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.loading import load_describer
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.recording import WHATEVER, Recording, Wanted, clipped
from evspec_ros.ros.diagnostics import ACTIVE
from evspec_ros.ros.overlay import draw_overlay, write_overlay
from evspec_ros.ros.parameters import Settings, changed
from evspec_ros.ros.trials.player import Playback, Played
from evspec_ros.ros.trials.processes import Child, as_parameter_file, isolated_environment

SHORTEST_S = 10.0  # a recording shorter than this is played again, time running on
SCENE_SECONDS, SCENE_SEED = 12.0, 7  # the simulated recording where none is given
START_TIMEOUT_S = 180.0  # for loading checkpoints and compiling
FIRST_TIMEOUT_S = 60.0  # for a description that is still missing when the recording ended
THREADS = max(1, (os.cpu_count() or 1) // 2)  # of the networks; player, DDS and this process need the rest
MOMENTS = 8  # descriptions shown with pictures in the report
OVERLAY = "overlay.png"  # the picture beside the report
PLAIN_RUNS = 3  # windows timed without drafting
COMPARED = (
    "Speed-up: time per token after the prefill, compared with {plain_ms:.2f} ms without drafting, measured "
    "on three windows of the same recording before it was played, when nothing else ran."
)
AGE = "Age: from the newest event of the window to the moment its description was published."
LATE_MS = 100.0
LATE = (
    "This machine was too busy to play the recording in time: messages left up to {late_ms:.0f} ms late, "
    "which makes the descriptions older."
)
TAUGHT = (
    "The tiny checkpoints were trained on simulated scenes alone. Of any other recording they cannot say "
    "what is to be seen; latencies, rates and losses hold all the same."
)


def run_demo(
    recording: Path | None,
    *,
    as_json: bool = False,
    seconds: float | None = None,
    report: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    wanted: Wanted = WHATEVER,
) -> None:
    """Play a recording (None: a simulated scene) to the node, show its descriptions, write an HTML report.

    seconds: how long to play; the recording's own length, at least ten seconds, by default. report: where to
    write, runs/demo/report.html by default; overlay.png beside it is the picture of ~/overlay for the last
    description. parameters: of the node. wanted: the recording's topics. as_json: print one object on stdout,
    the progress on stderr. Raises RecordingError for a recording without frames, RosError where a process
    fails.
    """
    console = Console(stderr=as_json, highlight=False)
    settings = changed(Settings(), parameters or {})
    report = report or Path("runs") / "demo" / "report.html"
    with tempfile.TemporaryDirectory(prefix="evspec-demo-") as folder, _terminable():
        path = recording or _simulated_scene(Path(folder), console)
        opened = open_recording(path, wanted)
        if next(opened.frames(), None) is None:
            raise RecordingError(
                f"The recording {path} holds no RGB frames, and a description needs at least one; "
                "choose a recording of both cameras."
            )
        with console.status("Timing the target without drafting, to compare with ..."):
            plain_ms = plain_ms_per_token(opened, settings)
        length_s = (opened.stop_ns - opened.start_ns) / 1e9
        seconds = seconds or max(length_s, SHORTEST_S)
        playing = [str(path), "--seconds", str(seconds), "--events", wanted.events, "--image", wanted.image]
        run = _run(playing, parameters or {}, plain_ms, Path(folder), console)
        name = "a simulated scene" if recording is None else str(recording)
        remarks = _remarks(run, taught=recording is None or settings.target != Settings().target)
        shown = _shown(run, opened, settings)
        write_report(report, _report(name, run, shown, settings, remarks))
        for result, events, frame in shown[-1:]:
            write_overlay(report.with_name(OVERLAY), draw_overlay(frame.image, events, result["text"]))
    console.print(f"\n{len(run.results)} descriptions. Report: {report}", soft_wrap=True)
    if as_json:
        print(json.dumps({"recording": name, **run.as_dict()}))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM end the demo as Ctrl-C does, children included."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _simulated_scene(folder: Path, console: Console) -> Path:
    from evspec_ros.simulation.recorded_scene import record_scene

    with console.status("Simulating a scene ..."):
        record_scene(folder / "simulated_scene", SCENE_SEED, SCENE_SECONDS)
    return folder / "simulated_scene"


# Running


@dataclass(frozen=True)
class Run:
    """What came of playing a recording to the node."""

    results: Sequence[Mapping[str, Any]]  # what ~/result said
    schedule: Playback
    played: Played
    events_received: int
    frames_received: int
    messages_received: int
    plain_ms: float  # a token's decoding without drafting

    @property
    def dropped(self) -> int:
        """Messages that were sent and never arrived."""
        return self.played.packets + self.played.frames - self.messages_received

    def as_dict(self) -> dict[str, Any]:
        """What `evspec demo --json` prints; stamps in seconds of ROS time, tokens counted."""
        return {
            "descriptions": [
                {
                    "stamp": result["stamp"],
                    "text": result["text"],
                    "latency_ms": result["latency_ms"],
                    "tokens": result["tokens"],
                    "mean_accepted_length": result["mean_accepted_length"],
                    "lossless": result["lossless"],
                }
                for result in self.results
            ],
            "events_received": self.events_received,
            "frames_received": self.frames_received,
            "dropped": self.dropped,
        }


def _run(
    playing: Sequence[str], parameters: Mapping[str, Any], plain_ms: float, folder: Path, console: Console
) -> Run:
    os.environ.update(isolated_environment())
    parameter_file = folder / "parameters.yaml"
    parameter_file.write_text(as_parameter_file({"threads": THREADS, **parameters}), encoding="utf-8")
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        listener = Listener()
        arguments = ["--ros-args", "--params-file", str(parameter_file)]
        with Child("node", "evspec_ros.ros.main", arguments, folder) as node:
            with console.status("Starting the node ..."):
                listener.spin_until_describing(node)
            with Child("player", "evspec_ros.ros.trials.player", playing, folder) as player:
                _watch(listener, node, player, plain_ms, console)
                schedule, played = (json.loads(line) for line in player.output.splitlines())
        return listener.run(Playback(**schedule), Played(**played), plain_ms)
    finally:
        rclpy.shutdown()


def _active(status: DiagnosticStatus) -> bool:
    return ("state", ACTIVE) in ((pair.key, pair.value) for pair in status.values)


class Listener:
    """Collects what the node publishes."""

    def __init__(self) -> None:
        self._node = Node("evspec_demo")
        self.results: list[dict[str, Any]] = []
        self.reports = 0  # of /diagnostics
        self.health: dict[str, DiagnosticStatus] = {}
        self._node.create_subscription(String, "/evspec/result", self._on_result, 100)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 100)

    def _on_result(self, message: String) -> None:
        self.results.append(json.loads(message.data))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.reports += 1
        for status in message.status:
            self.health[status.name.rpartition(": ")[2]] = status

    def spin_once(self) -> None:
        """Take one message, waiting for it a little."""
        rclpy.spin_once(self._node, timeout_sec=0.1)

    def spin_until_describing(self, node: Child) -> None:
        """Return when the node is active; RosError with its own words where that fails."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while (status := self.health.get("descriptions")) is None or not _active(status):
            node.finished()
            if status is not None and status.level == DiagnosticStatus.ERROR:
                raise RosError(f"The node could not be configured: {status.message}")
            if time.monotonic() > deadline:
                raise RosError(
                    f"The node was not ready within {START_TIMEOUT_S:g} s; try smaller checkpoints."
                )
            self.spin_once()

    def run(self, schedule: Playback, played: Played, plain_ms: float) -> Run:
        """Everything collected."""
        events, frames = self._values("events"), self._values("frames")
        return Run(
            tuple(self.results),
            schedule,
            played,
            events_received=int(events["events"]),
            frames_received=int(frames["frames"]),
            messages_received=int(events["messages"]) + int(frames["messages"]),
            plain_ms=plain_ms,
        )

    def _values(self, name: str) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.health[name].values}


def _watch(listener: Listener, node: Child, player: Child, plain_ms: float, console: Console) -> None:
    """Show what the node says until the player is done and the node has reported on all of it."""
    with Live(console=console, auto_refresh=False) as live:
        shown = 0
        for _ in _until_reported(listener, node, player):
            if len(listener.results) > shown:
                shown = len(listener.results)
                result = listener.results[-1]
                live.update(_panel(result, plain_ms), refresh=True)
                if not console.is_terminal:  # where Live shows the last state alone
                    console.print(f"{_age(result)}  {result['text']}", soft_wrap=True, markup=False)


def _until_reported(listener: Listener, node: Child, player: Child) -> Iterator[None]:
    while not player.finished():
        _step(listener, node)
        yield
    reports, deadline = listener.reports, time.monotonic() + FIRST_TIMEOUT_S
    while listener.reports < reports + 2 or not (listener.results or time.monotonic() > deadline):
        _step(listener, node)
        yield


def _step(listener: Listener, node: Child) -> None:
    listener.spin_once()
    if node.finished():
        raise RosError("The node ended before the recording did; it was stopped from outside.")


# Figures


def tokens_per_second(result: Mapping[str, Any]) -> float:
    """Tokens written per second of decoding, the prefill and its token left out."""
    decode_ms = result["latency_ms"]["decode"]
    return 1000 * (result["tokens"] - 1) / decode_ms if decode_ms else 0.0


def speed_up(result: Mapping[str, Any], plain_ms: float) -> float:
    """How many times faster a token was decoded than without drafting."""
    return tokens_per_second(result) * plain_ms / 1000


def _age(result: Mapping[str, Any]) -> str:
    return f"{_age_ms(result)} old"


def _age_ms(result: Mapping[str, Any]) -> str:
    age_ms = result["age_ms"]
    return "unknown" if age_ms is None else f"{age_ms:.0f} ms"


def _figures(result: Mapping[str, Any], plain_ms: float) -> dict[str, str]:
    return {
        "age": _age_ms(result),
        "decoding": f"{tokens_per_second(result):.0f} tokens/s",
        "accepted length": f"{result['mean_accepted_length']:.2f}",
        "speed-up": f"{speed_up(result, plain_ms):.2f}x against plain decoding",
    }


def _panel(result: Mapping[str, Any], plain_ms: float) -> Panel:
    figures = "   ".join(f"{name} {value}" for name, value in _figures(result, plain_ms).items())
    return Panel(Text(result["text"]), title="evspec", subtitle=Text(figures, style="dim"))


def plain_ms_per_token(recording: Recording, settings: Settings) -> float:
    """Milliseconds that the target alone takes for a token after the prefill, on windows of this recording.

    The median of three, in this process, before anything else runs: the node's speed-up is compared with it.
    """
    torch.set_num_threads(THREADS)
    target, _, _ = settings.checkpoints
    describer = load_describer(
        target,
        None,
        None,
        drafter="none",
        device=settings.device,
        dtype=settings.dtype,
        kv_dtype=settings.kv_dtype,
    )
    describer.warm_up()
    span = recording.stop_ns - recording.start_ns
    stops = [recording.start_ns + span * part // PLAIN_RUNS for part in range(1, PLAIN_RUNS + 1)]
    plain = []
    for stop_ns, (events, frame) in zip(stops, windows(recording, stops, settings.window_ms), strict=True):
        description = describer.describe(
            events, [frame], prompt=settings.prompt, stamp_ns=stop_ns, limits=settings.limits
        )
        plain.append(description.latency_ms["decode"] / max(len(description.tokens) - 1, 1))
    return statistics.median(plain)


def windows(recording: Recording, stops: Sequence[int], window_ms: float) -> list[tuple[Events, Frame]]:
    """For each moment of the recording: the events of the window that ends there, and the newest frame.

    One sweep over the recording, which has to hold a frame; before the first, the first stands in.
    """
    parts: list[list[Events]] = [[] for _ in stops]
    width = height = 0
    for piece in recording.events():
        width, height = piece.width, piece.height
        for part, stop_ns in zip(parts, stops, strict=True):
            inside = clipped(piece, stop_ns - round(window_ms * 1e6), stop_ns)
            if len(inside):
                part.append(inside)
    frames: list[Frame | None] = [None for _ in stops]
    for frame in recording.frames():
        frames = [
            frame if held is None or frame.stamp_ns <= stop_ns else held
            for held, stop_ns in zip(frames, stops, strict=True)
        ]
    return [
        (Events.concatenate(part, width, height), frame)
        for part, frame in zip(parts, frames, strict=True)
        if frame is not None
    ]


# Report

Shown: TypeAlias = tuple[Mapping[str, Any], Events, Frame]  # a description with the window that it describes


def _report(
    name: str, run: Run, shown: Sequence[Shown], settings: Settings, remarks: Sequence[str]
) -> Report:
    return Report(
        title=f"evspec: descriptions of {name}",
        figures=_summary(run, settings),
        moments=[_moment(run, *one) for one in shown],
        timings=[
            Timing(_at_s(run, result), result["age_ms"], result["latency_ms"]) for result in run.results
        ],
        remarks=remarks,
    )


def _remarks(run: Run, *, taught: bool) -> list[str]:
    """How the figures are to be read; taught: the networks were trained on such scenes."""
    remarks = [COMPARED.format(plain_ms=run.plain_ms), AGE]
    if run.played.late_ms > LATE_MS:
        remarks.append(LATE.format(late_ms=run.played.late_ms))
    return remarks if taught else [*remarks, TAUGHT]


def _at_s(run: Run, result: Mapping[str, Any]) -> float:
    return result["stamp"] - run.schedule.begin_ns / 1e9


def _summary(run: Run, settings: Settings) -> dict[str, str]:
    figures = {
        "descriptions": str(len(run.results)),
        "drafter": run.results[-1]["drafter"] if run.results else settings.drafter,
        "events received": f"{run.events_received:,} of {run.played.events:,}",
        "frames received": f"{run.frames_received:,} of {run.played.frames:,}",
        "messages lost": str(run.dropped),
    }
    if not run.results:
        return figures
    medians = {
        "age when published": (
            "ms",
            [age for result in run.results if (age := result["age_ms"]) is not None],
        ),
        "latency": ("ms", [result["latency_ms"]["total"] for result in run.results]),
        "decoding": ("tokens/s", [tokens_per_second(result) for result in run.results]),
        "tokens per target pass": (
            "",
            [result["mean_accepted_length"] for result in run.results],
        ),
        "speed-up": ("times plain decoding", [speed_up(result, run.plain_ms) for result in run.results]),
    }
    figures |= {
        f"{name}, median": f"{statistics.median(values):.2f} {unit}"
        for name, (unit, values) in medians.items()
        if values
    }
    lossless = all(result["lossless"] for result in run.results)
    return figures | {"text as the target alone would write it": "yes" if lossless else "no"}


def _shown(run: Run, recording: Recording, settings: Settings) -> list[Shown]:
    """Up to eight descriptions, evenly spread, the last among them, with what the player sent then."""
    count = min(MOMENTS, len(run.results))
    chosen = [run.results[index * len(run.results) // count - 1] for index in range(1, count + 1)]
    stops = [run.schedule.to_recording(round(result["stamp"] * 1e9)) + 1 for result in chosen]
    found = windows(recording, stops, settings.window_ms)
    return [(result, *window) for result, window in zip(chosen, found, strict=True)]


def _moment(run: Run, result: Mapping[str, Any], events: Events, frame: Frame) -> Moment:
    return Moment(
        at_s=_at_s(run, result),
        text=result["text"],
        frame=frame.image,
        event_images=render_event_images(events) if len(events) else None,
        figures=_figures(result, run.plain_ms),
    )
