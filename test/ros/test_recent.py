"""What /diagnostics says of the last descriptions, against known answers."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from node_bench import MS, Bench, make_bench
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.time import Time
from std_msgs.msg import Header

from evspec_ros.description import Description
from evspec_ros.ros.ingest import ArrayStream
from evspec_ros.ros.recent import KEPT, RecentDescriptions
from evspec_ros.speculative.statistics import DecodingStatistics

STATISTICS = DecodingStatistics(
    generations=1, tokens=21, target_passes=5, drafted=40, accepted=15, decode_ms=50.0
)


def described(total_ms: float, statistics: DecodingStatistics = STATISTICS) -> Description:
    """A description that took so long, half of it in the prefill."""
    latency_ms = {"prefill": total_ms / 2, "total": total_ms}
    return Description(0, 50.0, "Why?", "", (), latency_ms, 1.0, 0, statistics, "none", lossless=True)


def test_percentiles_are_those_of_every_stage() -> None:
    """Of 0, 1, ..., 100 ms in any order the 95th is 95 ms."""
    recent = RecentDescriptions()
    for ms in np.random.default_rng(0).permutation(101):
        recent.add(described(float(ms)))
    assert recent.stages() == {
        "recent_descriptions": 101,
        "prefill_ms_p50": 25.0, "prefill_ms_p95": 47.5, "prefill_ms_p99": 49.5,
        "total_ms_p50": 50.0, "total_ms_p95": 95.0, "total_ms_p99": 99.0,
    }  # fmt: skip


def test_old_descriptions_are_forgotten() -> None:
    """What was slow before the last KEPT ones no longer counts."""
    recent = RecentDescriptions()
    for ms in [1e6] * 50 + [7.0] * KEPT:
        recent.add(described(ms))
    assert recent.stages()["recent_descriptions"] == KEPT
    assert recent.stages()["total_ms_p99"] == 7.0


def test_what_drafting_brings_is_summed_over_the_descriptions() -> None:
    """Twenty tokens in five passes and four in four: 24 / 9, and 24 steps of 10 ms against 90 ms."""
    recent = RecentDescriptions()
    recent.add(described(1.0))
    worse = replace(STATISTICS, tokens=5, target_passes=4, drafted=8, accepted=0, decode_ms=40.0)
    recent.add(described(1.0, worse))
    assert recent.decoding(10.0) == {
        "acceptance_rate": 0.312,
        "accepted_length": 2.667,
        "plain_step_ms": 10.0,
        "speed_up": 2.667,
    }


def test_what_is_not_known_is_not_told_as_a_number() -> None:
    """Without a measured step, and before the first description."""
    recent = RecentDescriptions()
    assert recent.stages() == {"recent_descriptions": 0}
    assert recent.decoding(10.0)["speed_up"] == "unknown"
    recent.add(described(1.0))
    assert recent.decoding(None)["speed_up"] == "unknown"


def test_events_in_ros_time_have_no_clock_offset_before_the_first() -> None:
    """It is not known, which is not the same as none."""
    assert ArrayStream(1.0, 1_000_000, follow_sensor_clock=False).clock_offset_s is None


@pytest.fixture
def active(spinner: Spinner, checkpoints: Path) -> Bench:
    """A node that describes on request."""
    bench = make_bench(spinner, autostart=False, trigger="on_request", max_new_tokens=12)
    assert bench.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    bench.activate()
    return bench


def test_the_node_tells_stages_decoding_and_the_clock_offset(active: Bench) -> None:
    """Each in its own line: the camera's clock an hour behind, what computes, and in which precision."""

    def offset() -> str:
        now_ns = time.time_ns()
        header = Header(stamp=Time(nanoseconds=now_ns).to_msg())
        active.send_events(now_ns - 3_600_000 * MS, header=header)
        return active.values("events").get("clock_offset_s", "unknown").removeprefix("unknown")

    assert float(active.until(offset, "the clock's offset")) == pytest.approx(3600, abs=1)
    assert active.set_parameter("trigger", "continuous") == ""
    active.node._inputs.restart("another camera")
    active.describe_now()
    stages = active.until(
        lambda: "total_ms_p99" in active.values("stages") and active.values("stages"), "percentiles"
    )
    assert float(stages["total_ms_p50"]) <= float(stages["total_ms_p95"]) <= float(stages["total_ms_p99"])
    decoding = active.values("decoding")
    assert {value for name, value in decoding.items() if name.endswith("_precision")} == {"float32"}
    assert decoding["target_runs_on"]
    assert float(decoding["plain_step_ms"]) > 0
    assert float(decoding["accepted_length"]) >= 1
