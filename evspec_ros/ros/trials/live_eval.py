"""`evspec eval --live`: recordings played to the node over DDS; what it said is compared with offline."""

from __future__ import annotations

import json
import os
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.signals import SignalHandlerOptions

from evspec_ros.errors import EvspecError, RecordingError, RosError
from evspec_ros.evaluation.replay.live import ACCEPTABLE_LOSS, Arrival, Playing, live_figures, live_rows
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.run import judge
from evspec_ros.evaluation.replay.store import Finished, RecordingId, Row, RunFolder
from evspec_ros.evaluation.replay.sweep import MOST_FRAMES, replayed
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.recording import Recording, Wanted
from evspec_ros.ros.trials.demo import LATE_MS, Listener
from evspec_ros.ros.trials.player import Playback, Played
from evspec_ros.ros.trials.processes import Child, as_parameter_file, isolated_environment

SETTLE_S = 1.5  # without a result behind the last message: everything is described
RENEWAL_TIMEOUT_S = 60.0  # for a node that finishes nothing any more and begins anew
SLOWEST, FASTEST, NEAR = 0.1, 16.0, 0.1  # rates that are tried, and how narrowly the highest one is found
TRIED_S = 20.0  # each of them at most

# No window is stale: one that is late is described all the same, its age is what is measured. And no message
# is lost, so that a window has the frames that it has offline.
_NODE = {"stale_after_s": 0.0, "max_frames": MOST_FRAMES} | {
    f"qos_overrides./{topic}.subscription.{name}": value
    for topic in ("events", "image")
    for name, value in (("reliability", "reliable"), ("history", "keep_all"))
}


def evaluate_live(
    paths: Sequence[Path],
    plan: ReplayPlan,
    folder: RunFolder,
    wanted: Wanted,
    *,
    rate: float = 1.0,
    search: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> None:
    """Play each recording that the folder does not hold yet to one node, `rate` times as fast as it was
    recorded, and keep a line for each window that it described. search: look for the highest rate at which
    under ACCEPTABLE_LOSS of the windows are missed. told: hears what is done. Raises RosError where a process
    fails.
    """
    done = folder.finished()
    waiting = {one.key: one for one in map(RecordingId.of, paths) if one.key not in done}
    if not waiting:
        return
    describer = plan.load()
    with _stage(plan) as stage:
        for identity in waiting.values():
            windows, began, problem = 0, time.perf_counter(), ""
            figures: dict[str, Any] = {}
            rows: list[Row] = []
            recording: Recording | None = None
            playing: Playing | None = None
            try:
                recording = open_recording(Path(identity.path), wanted)
                told(f"{recording.path.name}: its windows are cut ...")
                ends_ns = [window.stamp_ns for window in replayed(recording, plan)]
                if ends_ns:
                    told(f"{recording.path.name}: played at {rate:g} times real speed ...")
                    playing = stage.play(recording, wanted, rate, ends_ns)
                    highest = stage.highest_rate(recording, wanted, ends_ns, told) if search else None
                    told(f"{recording.path.name}: {len(playing.arrivals)} windows are described offline ...")
                    rows = live_rows(recording, identity, plan, describer, playing.arrivals)
                    figures = live_figures(playing, rows, identity, plan, highest)
                    windows = len(rows)
            except RecordingError as error:
                problem = str(error)
            remarks: tuple[str, ...] = ()
            if recording is not None:
                problem, remarks = judge(recording, windows, problem)
            folder.append(identity.key, rows)
            folder.finish(
                Finished(
                    **asdict(identity),
                    windows=windows,
                    duration_s=rows[-1]["at_s"] if rows else 0.0,
                    problem=problem,
                    remarks=remarks,
                    cpu_s=playing.node_cpu_s if playing else 0.0,
                    wall_s=playing.wall_s if playing else time.perf_counter() - began,
                    peak_mb=playing.node_mb if playing else 0.0,
                    live=figures,
                )
            )


@contextmanager
def _stage(plan: ReplayPlan) -> Iterator[_Stage]:
    """A node that is describing, and somebody who listens to it."""
    os.environ.update(isolated_environment())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        with tempfile.TemporaryDirectory(prefix="evspec-eval-") as name:
            file = Path(name) / "parameters.yaml"
            file.write_text(as_parameter_file({**plan.as_dict(), **_NODE}), encoding="utf-8")
            listener = _RenewingListener()
            arguments = ["--ros-args", "--params-file", str(file)]
            with Child("node", "evspec_ros.ros.main", arguments, Path(name)) as node:
                listener.spin_until_describing(node)
                yield _Stage(listener, node, Path(name))
    finally:
        rclpy.shutdown()


class _RenewingListener(Listener):
    """Listens, and has the node begin anew."""

    def __init__(self) -> None:
        super().__init__()
        self._lifecycle = self._node.create_client(ChangeState, "/evspec/change_state")

    def renew(self) -> None:
        """Let the node forget what it saw: a window under way is not described. Raises RosError."""
        if not self._lifecycle.wait_for_service(RENEWAL_TIMEOUT_S):
            raise RosError("The node offers no /evspec/change_state; its log says why.")
        for number in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            answer = self._lifecycle.call_async(ChangeState.Request(transition=Transition(id=number)))
            rclpy.spin_until_future_complete(self._node, answer, timeout_sec=RENEWAL_TIMEOUT_S)
            if not answer.done() or not answer.result().success:
                raise RosError("The node could not be activated anew; its log says why.")
        self.results.clear()


class _Stage:
    """Plays recordings to one node, one after the other."""

    def __init__(self, listener: _RenewingListener, node: Child, folder: Path) -> None:
        self._listener, self._node, self._folder = listener, node, folder

    def play(
        self, recording: Recording, wanted: Wanted, rate: float, ends_ns: Sequence[int], most_s: float = 0.0
    ) -> Playing:
        """Play a recording to empty streams, once and in step; with most_s, no longer than so many seconds,
        and not in step, which takes its time. ends_ns: of the windows that are expected.
        """
        listener = self._listener
        listener.renew()
        arrived: list[int] = []
        cpu: list[float] = []
        idle = psutil.cpu_percent(interval=0.2)
        began_cpu_s, began_s = self._node.cpu_s(), time.monotonic()
        until_ns = recording.start_ns + most_s * rate * 1e9
        whole = not most_s or until_ns >= recording.stop_ns
        arguments = [str(recording.path), "--rate", str(rate), "--events", wanted.events]
        arguments += ["--image", wanted.image, *([] if most_s else ["--in-step"])]
        arguments += ["--once"] if whole else ["--seconds", str(most_s)]
        with Child("player", "evspec_ros.ros.trials.player", arguments, self._folder) as player:
            last_s = time.monotonic()
            while not player.finished() or time.monotonic() - last_s < SETTLE_S:
                before = len(listener.results)
                listener.spin_once()
                if self._node.finished():
                    raise EvspecError("The node ended before the recording did; it was stopped from outside.")
                if len(listener.results) > before:
                    arrived.append(time.time_ns())
                if len(listener.results) > before or not player.finished():
                    last_s = time.monotonic()
                    cpu.append(psutil.cpu_percent(interval=None))
            schedule, played = (json.loads(line) for line in player.output.splitlines())
        return Playing(
            rate=rate,
            expected=len(ends_ns) if whole else bisect_right(ends_ns, until_ns),
            arrivals=_arrivals(listener.results, arrived, Playback(**schedule)),
            cpu=cpu,
            idle_cpu=idle,
            node_cpu_s=self._node.cpu_s() - began_cpu_s,
            node_mb=self._node.resident_mb(),
            wall_s=time.monotonic() - began_s,
            late_ms=Played(**played).late_ms,
        )

    def highest_rate(
        self, recording: Recording, wanted: Wanted, ends_ns: Sequence[int], told: Callable[[str], None]
    ) -> Row:
        """The highest rate with an acceptable loss at which the player sends in time, found by halving, None
        where there is none; every rate that was tried, too, each for TRIED_S at most.
        """
        low, high, rate = SLOWEST, FASTEST, 1.0
        tried: list[dict[str, float]] = []
        highest: float | None = None
        while high / low > 1 + NEAR:
            told(f"{recording.path.name}: tried at {rate:.2f} times real speed ...")
            played = self.play(recording, wanted, rate, ends_ns, TRIED_S)
            missed, late_ms = round(100 * played.loss, 2), round(played.late_ms, 1)
            tried.append({"rate": round(rate, 3), "missed_percent": missed, "player_late_ms": late_ms})
            if played.loss < ACCEPTABLE_LOSS and late_ms <= LATE_MS:
                low, highest = rate, round(rate, 3)
            else:
                high = rate
            rate = (low * high) ** 0.5
        return {"rate": highest, "tried": tried}


def _arrivals(results: Sequence[Row], arrived: Sequence[int], schedule: Playback) -> list[Arrival]:
    """Each result with its window's end on the recording's clock, by that, each once."""
    found: dict[int, Arrival] = {}
    for result, arrived_ns in zip(results, arrived, strict=True):
        ros_ns = result["stamp_ns"]
        stamp_ns = ros_ns - schedule.to_ros(0, lap=0)  # the only lap
        found.setdefault(stamp_ns, Arrival(stamp_ns, schedule.due_ns(ros_ns), arrived_ns, result))
    return [found[stamp_ns] for stamp_ns in sorted(found)]
