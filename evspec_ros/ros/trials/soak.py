"""A recording played to the node for as long as is asked, something going wrong every few seconds."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from std_msgs.msg import String

from evspec_ros.errors import RosError
from evspec_ros.ros.trials.demo import SCENE_SEED, Listener
from evspec_ros.ros.trials.node_memory import SETTLED_AFTER_S, growth_per_10_min
from evspec_ros.ros.trials.processes import Child, as_parameter_file, isolated_ros
from evspec_ros.ros.trials.soak_faults import FAULT_TOPIC, FAULTS, Fault
from evspec_ros.simulation.recorded_scene import record_scene

RATE = 4.0
SCENE_S = 8.0
PARAMETERS = {"threads": 1, "stale_after_s": 1.0, "warn_after_s": 1.0, "error_after_s": 10.0, "relief_s": 1.0}
PAUSE_S = 1.0  # without a fault, between two
PATIENCE_S = 30.0  # for a fault to be recovered from
LONGER_S, TOLD_S = 4.0, 2.5  # a fault lasts so much longer until it is told, and may be told so late
FRESH_S = 2.0  # a window older than this, when it is described, is no recovery
AGE_SLACK_S = 0.5  # between the publishing of a result and its arrival here
SAMPLE_S = 1.0
SHORTEST_SLOPE_S = 30.0  # shorter than this, there is nothing but noise
RESTARTS = "sigterm"  # comes first and last, so that memory is measured of one process


@dataclass
class Soak:
    """What came of it. seen: faults told in /diagnostics; recovered_s: from the end of each fault until a
    fresh window was described whole; a fault that ended a process ends when the next one is active, or its
    cameras are known; restarted_s: from the end of the node until the next one is active; memory_mb: slope in
    ten minutes of the longest-lived node after settling, None where that was too short.
    """

    seed: int
    minutes: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    recovered_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    restarted_s: list[float] = field(default_factory=list)
    unrecovered: int = 0
    crashes: int = 0
    descriptions: int = 0
    wrong_ages: int = 0
    memory_mb: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """What `evspec soak --json` prints."""
        longest = {name: round(max(times), 2) for name, times in sorted(self.recovered_s.items())}
        return {
            "seed": self.seed,
            "minutes": round(self.minutes, 2),
            "faults": dict(sorted(self.faults.items())),
            "seen_in_diagnostics": dict(sorted(self.seen.items())),
            "recovered_within_s": {"max": max(longest.values(), default=None), **longest},
            "unrecovered": self.unrecovered,
            "restarted_within_s": {"max": round(max(self.restarted_s), 2) if self.restarted_s else None},
            "crashes": self.crashes,
            "descriptions": self.descriptions,
            "memory_slope_mb_per_10_min": None if self.memory_mb is None else round(self.memory_mb, 3),
            "wrong_ages": self.wrong_ages,
        }


def soak(
    minutes: float,
    seed: int,
    names: Sequence[str] = tuple(FAULTS),
    told: Callable[[str], None] = lambda _: None,
) -> Soak:
    """Soak the node in its own ROS domain. names: of the faults; told: hears of each. Raises RosError."""
    with isolated_ros("soak") as folder:
        os.environ["ROS_LOG_DIR"] = str(folder)
        record_scene(folder / "scene", SCENE_SEED, SCENE_S)
        with _Ordeal(folder, seed, told) as run:
            return run.soak(60 * minutes, names)


class _Watcher(Listener):
    """Keeps what the node said lately."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[float, str]] = []  # monotonic seconds, name and message of a status
        self.begin_faults = self._node.create_publisher(String, FAULT_TOPIC, 10).publish
        self.fresh: list[tuple[float, dict[str, Any]]] = []  # results since the last look
        self.descriptions = self.wrong_ages = 0

    def _on_result(self, message: String) -> None:
        result, now_s = json.loads(message.data), time.time()
        self.descriptions += 1
        self.wrong_ages += _is_wrong(result, now_s)
        self.fresh.append((now_s, result))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        super()._on_diagnostics(message)
        for status in message.status:
            if status.level != DiagnosticStatus.OK or "first window" in status.message:
                self.told.append((time.monotonic(), f"{status.name.rpartition(': ')[2]}: {status.message}"))

    def hears(self, name: str) -> bool:
        """Whether the node of that name hears of faults; of a killed one that is believed for a while."""
        found = self._node.get_subscriptions_info_by_topic(FAULT_TOPIC)
        return any(one.node_name == name for one in found)

    def forget(self) -> None:
        """What was said until now is of no interest."""
        self.told.clear()
        self.fresh.clear()
        self.health.clear()


def _is_wrong(result: dict[str, Any], now_s: float) -> bool:
    """Whether the age is not what stamp and clock make it, nor said to be unknown and why."""
    if result["age_ms"] is None:
        return not result["age_problem"]
    true_s = now_s - result["stamp"]
    return not (true_s - AGE_SLACK_S <= result["age_ms"] / 1e3 <= true_s)


class _Ordeal:
    """The two processes, and what happens to them."""

    def __init__(self, folder: Path, seed: int, told: Callable[[str], None]) -> None:
        self._folder = folder
        self._report = Soak(seed)
        self._random = random.Random(seed)
        self._told = told
        self._watcher = _Watcher()
        self._numbers = itertools.count()
        self._memory: list[list[tuple[float, float]]] = []  # of each node: seconds, megabytes
        parameters = folder / "parameters.yaml"
        parameters.write_text(as_parameter_file(PARAMETERS), encoding="utf-8")
        self._node_arguments = ["--ros-args", "--params-file", str(parameters)]

    def __enter__(self) -> _Ordeal:
        self._node = self._start_node()
        self._camera = self._start_camera()
        return self

    def __exit__(self, *_: object) -> None:
        self._camera.kill()
        self._node.stop()

    def soak(self, seconds: float, names: Sequence[str]) -> Soak:
        """Fault after fault for so long."""
        self._watcher.spin_until_describing(self._node)
        self._until(lambda: self._watcher.fresh, PATIENCE_S)
        began = time.monotonic()
        for name in self._order(names, began + seconds):
            self._told(name)
            self._suffer(name, FAULTS[name])
            self._spin(PAUSE_S)
        report = self._report
        report.minutes = (time.monotonic() - began) / 60
        report.descriptions = self._watcher.descriptions
        report.wrong_ages = self._watcher.wrong_ages
        report.memory_mb = self._slope()
        return report

    def _order(self, names: Sequence[str], end: float) -> Iterator[str]:
        """Each in turn, in another order every time; restarts of the node first and last."""
        others = [name for name in names if name != RESTARTS]
        if RESTARTS in names:
            yield RESTARTS
        while others and time.monotonic() < end:
            for name in self._random.sample(others, len(others)):
                if time.monotonic() < end:
                    yield name
        if RESTARTS in names and others:
            yield RESTARTS

    def _suffer(self, name: str, fault: Fault) -> None:
        """One fault from its begin until its end is forgotten."""
        self._report.faults[name] += 1
        self._watcher.forget()
        self._begin(name, fault)
        self._spin(fault.seconds)
        if not fault.process:
            self._until(lambda: self._is_seen(fault), LONGER_S)
        self._end(fault)
        ended, began_s = time.monotonic(), time.time()
        recovered_at = self._until(lambda: self._recovered(began_s), PATIENCE_S)
        if recovered_at is None:
            self._report.unrecovered += 1
        else:
            self._report.recovered_s[name].append(recovered_at - ended)
        self._report.seen[name] += self._until(lambda: self._is_seen(fault), TOLD_S) is not None

    def _begin(self, name: str, fault: Fault) -> None:
        if fault.process == "camera":
            self._camera.kill()
        elif fault.process == "node":
            self._node.terminate()
        else:
            both = "evspec", self._camera.name
            self._until(lambda: all(map(self._watcher.hears, both)), PATIENCE_S)
            self._watcher.begin_faults(String(data=name))

    def _end(self, fault: Fault) -> None:
        if fault.process == "camera":
            self._camera = self._start_camera()
            self._until(lambda: self._watcher.hears(self._camera.name), PATIENCE_S)
        elif fault.process == "node":
            self._restart_node()
        else:
            self._watcher.begin_faults(String(data=""))

    def _restart_node(self) -> None:
        began = time.monotonic()
        self._node.stop()
        self._watcher.forget()
        self._node = self._start_node()
        self._watcher.spin_until_describing(self._node)
        self._report.restarted_s.append(time.monotonic() - began)

    def _recovered(self, began_s: float) -> bool:
        return any(
            now_s > began_s
            and not (result["stale"] or result["degraded"] or result["draft_problem"] or result["relief"])
            and result["age_ms"] is not None
            and result["age_ms"] < 1e3 * FRESH_S
            and result["stamp"] > began_s
            for now_s, result in self._watcher.fresh
        )

    def _is_seen(self, fault: Fault) -> bool:
        """Whether /diagnostics told of it, and a result said what was degraded."""
        watcher = self._watcher
        marked = not fault.degraded or any(r["degraded"] == fault.degraded for _, r in watcher.fresh)
        return marked and any(fault.is_told(text) for _, text in watcher.told)

    def _spin(self, seconds: float) -> None:
        """Go on for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._turn()

    def _until(self, condition: Callable[[], object], timeout_s: float) -> float | None:
        """When condition was first met, monotonic seconds; None where it never was."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return None
            self._turn()
        return time.monotonic()

    def _turn(self) -> None:
        self._watcher.spin_once()
        samples, now = self._memory[-1], time.monotonic()
        if self._has_crashed():
            self._restart_node()
        elif not samples or now > samples[-1][0] + SAMPLE_S:
            samples.append((now, self._node.resident_mb()))

    def _has_crashed(self) -> bool:
        """Whether the node ended though nobody ended it."""
        if not self._node.ended():
            return False
        self._report.crashes += 1
        self._told(f"crash: {self._node.last_words()}")
        return True

    def _start_node(self) -> Child:
        self._memory.append([])
        name = f"node{next(self._numbers)}"
        return Child(name, "evspec_ros.ros.trials.soak_node", self._node_arguments, self._folder)

    def _start_camera(self) -> Child:
        name = f"camera{next(self._numbers)}"
        arguments = [str(self._folder / "scene"), str(RATE), name]
        return Child(name, "evspec_ros.ros.trials.soak_camera", arguments, self._folder)

    def _slope(self) -> float | None:
        longest = max(self._memory, key=len)
        begin, end = longest[0][0], longest[-1][0]
        settled = begin + min(SETTLED_AFTER_S, (end - begin) / 2)
        later = [sample for sample in longest if sample[0] >= settled]
        return growth_per_10_min(later) if end - settled > SHORTEST_SLOPE_S else None


def require_well(report: Soak) -> None:
    """Raise RosError where the node crashed or did not recover."""
    if report.crashes or report.unrecovered:
        raise RosError(
            f"The node crashed {report.crashes} times and did not recover from {report.unrecovered} faults."
        )
