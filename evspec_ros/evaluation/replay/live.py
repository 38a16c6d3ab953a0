"""What a run through the node says: its rows, checked against offline, and ros2_benchmark's figures."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from evspec_ros.describer import SceneDescriber
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.run import described_rows
from evspec_ros.evaluation.replay.store import RecordingId, Row
from evspec_ros.evaluation.replay.sweep import windows_ending
from evspec_ros.recordings.recording import Recording

ACCEPTABLE_LOSS = 0.05  # of windows, as in ros2_benchmark's search for the highest rate


@dataclass(frozen=True)
class Arrival:
    """One result of the node: window's end on the recording's clock, when its last message was sent and when
    the result came, ROS nanoseconds.
    """

    stamp_ns: int
    sent_ns: int
    arrived_ns: int
    result: Mapping[str, Any]

    @property
    def age_ms(self) -> float:
        """From the newest message of the window being sent to its text being here."""
        return (self.arrived_ns - self.sent_ns) / 1e6


@dataclass(frozen=True)
class Playing:
    """One recording played once to the node.

    expected: windows that a node which is never late describes; cpu: per cent of all processors, sampled;
    node_cpu_s, node_mb: of the node's process; late_ms: by how much the latest message left too late.
    """

    rate: float
    expected: int
    arrivals: Sequence[Arrival]
    cpu: Sequence[float]
    idle_cpu: float
    node_cpu_s: float
    node_mb: float
    wall_s: float
    late_ms: float

    @property
    def missed(self) -> int:
        """Windows that were replaced by newer ones before they were described."""
        return max(self.expected - len(self.arrivals), 0)

    @property
    def loss(self) -> float:
        """The share of windows that were missed."""
        return self.missed / max(self.expected, 1)


def live_rows(
    recording: Recording,
    identity: RecordingId,
    plan: ReplayPlan,
    describer: SceneDescriber,
    arrivals: Sequence[Arrival],
) -> list[Row]:
    """A line for each window that the node described; offline_equal: the text is the one written offline."""
    by_end = {arrival.stamp_ns: arrival for arrival in arrivals}
    rows: list[Row] = []
    first_ns = min(by_end, default=0)
    describer.forget_stream()
    for window in windows_ending(recording, plan, by_end):
        arrival = by_end[window.stamp_ns]
        (offline,) = described_rows(describer, plan, identity, window, first_ns)
        result = arrival.result
        equal = result["text"] == offline["text"]
        rows.append(
            {
                **offline,
                "degraded": result["degraded"],
                "text": result["text"],
                "tokens": result["tokens"],
                "latency_ms": result["latency_ms"],
                "first_word_ms": result["latency_ms"]["first_word"],
                "accepted_length": result["mean_accepted_length"],
                "statistics": result["statistics"],
                "drafter": result["drafter"],
                "draft_problem": result["draft_problem"],
                "lossless": result["lossless"],
                "spans": offline["spans"] if equal else [(result["text"], "target")],
                "age_ms": round(arrival.age_ms, 3),
                "offline_equal": equal,
            }
        )
    return rows


def live_figures(
    playing: Playing, rows: Sequence[Row], identity: RecordingId, plan: ReplayPlan, highest: Row | None
) -> dict[str, Any]:
    """What summary.json says of a recording that was played, ros2_benchmark's keys among it."""
    return {
        "rate": playing.rate,
        "expected_windows": playing.expected,
        "missed_windows": playing.missed,
        "missed_percent": round(100 * playing.loss, 2),
        "texts_equal_offline": sum(row["offline_equal"] for row in rows),
        "node_cpu_percent": round(100 * playing.node_cpu_s / max(playing.wall_s, 1e-9), 1),
        "node_mb": round(playing.node_mb, 1),
        "player_late_ms": round(playing.late_ms, 1),
        **({"highest_rate": highest} if highest else {}),
        "ros2_benchmark": benchmark_keys(playing, identity, plan),
    }


def benchmark_keys(playing: Playing, identity: RecordingId, plan: ReplayPlan) -> dict[str, Any]:
    """The figures by the names that NVIDIA's ros2_benchmark gives them; a frame is a window here."""
    found: dict[str, Any] = {}
    arrived = np.array([one.arrived_ns for one in playing.arrivals]) / 1e6
    sent = np.array([one.sent_ns for one in playing.arrivals]) / 1e6
    basic: dict[str, float] = {"NUM_FRAMES_SENT": playing.expected, "NUM_MISSED_FRAMES": playing.missed}
    if len(arrived) > 1:
        duration = float(arrived[-1] - arrived[0])
        ages = arrived - sent
        basic |= {
            "RECEIVED_DURATION": duration,
            "MEAN_PLAYBACK_FRAME_RATE": 1000 * playing.rate / plan.window_ms,
            "MEAN_FRAME_RATE": 1000 * len(arrived) / duration,
            "FIRST_INPUT_LATENCY": float(ages[0]),
            "LAST_INPUT_LATENCY": float(ages[-1]),
            "MAX_LATENCY": float(ages.max()),
            "MIN_LATENCY": float(ages.min()),
            "MEAN_LATENCY": float(ages.mean()),
        }
    if len(arrived) > 2:
        jitter = np.abs(np.diff(arrived, 2))
        basic |= {
            "MAX_JITTER": float(jitter.max()),
            "MIN_JITTER": float(jitter.min()),
            "MEAN_JITTER": float(jitter.mean()),
            "STD_DEV_JITTER": float(jitter.std()),
        }
    found |= {f"BasicPerformanceMetrics.{name}": value for name, value in basic.items()}
    cpu = np.array(playing.cpu or [0.0])
    used = {"MAX": cpu.max(), "MIN": cpu.min(), "MEAN": cpu.mean(), "STDDEV": cpu.std()}
    used["BASELINE"] = playing.idle_cpu
    found |= {f"ResourceMetrics.{name}_OVERALL_CPU_UTILIZATION": float(of) for name, of in used.items()}
    system = platform.uname()
    metadata = {
        "NAME": "evspec scene descriptions",
        "TEST_DATETIME": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "DEVICE_HOSTNAME": system.node,
        "DEVICE_ARCH": system.machine,
        "DEVICE_OS": f"{system.system} {system.release} {system.version}",
        "IDLE_CPU_UTIL": playing.idle_cpu,
        "INPUT_DATA_PATH": identity.path,
        "INPUT_DATA_SIZE": identity.size,
        "INPUT_DATA_HASH": identity.hash,
    }
    found["metadata"] = {f"BenchmarkMetadata.{name}": value for name, value in metadata.items()}
    return found
