"""`evspec eval --live`: the node over DDS writes what is written offline, and its figures are all there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evspec_ros.evaluation.replay.live import Arrival, Playing, benchmark_keys
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.store import RecordingId, RunFolder
from evspec_ros.evaluation.replay.sweep import replayed
from evspec_ros.recordings import open_recording
from evspec_ros.simulation.recorded_scene import record_scene

MS = 1_000_000


@pytest.mark.slow
def test_live_and_offline_write_the_same_texts(ros: None, checkpoints: Path, tmp_path: Path) -> None:
    """Slowly enough for every window to be described: windows as many as offline, and a text is the one that
    is written offline about the window of the same end; two may differ, where this machine was so busy that
    a frame came behind later events.
    """
    record_scene(tmp_path / "scene", seed=2, seconds=0.7)
    expected = len(list(replayed(open_recording(tmp_path / "scene"), ReplayPlan("", "", ""))))
    arguments = ["eval", str(tmp_path / "scene"), "--threads", "1", "--out", str(tmp_path / "run")]
    result = subprocess.run(
        [sys.executable, "-m", "evspec_ros", *arguments, "--live", "--rate", "0.25", "--json"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (one,) = json.loads(result.stdout)["recordings"]
    assert expected - 4 <= one["windows"] <= expected == one["expected_windows"]
    assert one["texts_equal_offline"] >= one["windows"] - 2
    assert len(RunFolder.opened(tmp_path / "run").all_rows()) == one["windows"]
    assert one["latency_ms"]["age"]["p50"] > 0


def test_the_benchmarks_keys_say_what_arrived() -> None:
    """Known answer: three of four windows, 50 ms apart, the last 10 ms late."""
    arrivals = [
        Arrival(k, 50 * MS * k, 50 * MS * k + 20 * MS + (10 * MS if k == 2 else 0), {}) for k in range(3)
    ]
    playing = Playing(1.0, 4, arrivals, [50.0, 70.0], 5.0, 1.0, 100.0, 2.0, 0.0)
    keys = benchmark_keys(playing, RecordingId("bag", "abc", 7), ReplayPlan("", "", ""))
    basic = {name.partition(".")[2]: value for name, value in keys.items() if name.startswith("Basic")}
    assert (basic["NUM_FRAMES_SENT"], basic["NUM_MISSED_FRAMES"]) == (4, 1)
    assert (basic["RECEIVED_DURATION"], basic["MEAN_JITTER"]) == (110.0, 10.0)
    assert (basic["MIN_LATENCY"], basic["LAST_INPUT_LATENCY"]) == (20.0, 30.0)
    assert keys["ResourceMetrics.MEAN_OVERALL_CPU_UTILIZATION"] == 60.0
    assert keys["metadata"]["BenchmarkMetadata.INPUT_DATA_HASH"] == "abc"


def test_a_node_that_is_never_late_describes_what_is_expected(tmp_path: Path) -> None:
    """What --live counts missed windows by: one for each window's worth of time."""
    record_scene(tmp_path / "scene", seed=2, seconds=0.7)
    assert 12 <= len(list(replayed(open_recording(tmp_path / "scene"), ReplayPlan("", "", "")))) <= 14
