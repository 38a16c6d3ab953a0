"""`evspec eval --live`: the node over DDS writes what is written offline, and its figures are all there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from evspec_ros.evaluation.replay.live import Arrival, Playing, benchmark_keys
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.store import RecordingId, RunFolder
from evspec_ros.evaluation.replay.sweep import replayed
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.recording import Recording, Wanted
from evspec_ros.simulation.recorded_scene import record_scene

MS = 1_000_000


def disturb(evaluation: subprocess.Popen[str]) -> None:
    """While a player of the evaluation lives, two processes compute without end, so that node, player and DDS
    wait for their turn.
    """
    busy: list[subprocess.Popen[bytes]] = []
    while evaluation.poll() is None or busy:
        playing = False
        with suppress(psutil.Error):  # one may end meanwhile
            children = psutil.Process(evaluation.pid).children(recursive=True)
            playing = any("evspec_ros.ros.trials.player" in child.cmdline() for child in children)
        if playing and not busy:
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        while busy and not playing:
            busy[-1].kill()
            busy.pop().wait()
        time.sleep(0.05)


@pytest.mark.slow
def test_live_and_offline_write_the_same_texts(ros: None, checkpoints: Path, tmp_path: Path) -> None:
    """Two recordings, one after the other, on a machine that is busy with something else: windows may be
    missed, and the text of each that was described is the one that is written offline about the same window.
    """
    paths = [tmp_path / "first", tmp_path / "second"]
    for seed, path in enumerate(paths):
        record_scene(path, seed=seed + 2, seconds=0.5)
    plan = ReplayPlan("", "", "")
    expected = [len(list(replayed(open_recording(path), plan))) for path in paths]
    arguments = ["eval", *map(str, paths), "--threads", "1", "--out", str(tmp_path / "run")]
    evaluation = subprocess.Popen(
        [sys.executable, "-m", "evspec_ros", *arguments, "--live", "--rate", "0.5", "--json"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    disturbance = threading.Thread(target=disturb, args=(evaluation,))
    disturbance.start()
    stdout, stderr = evaluation.communicate()
    disturbance.join()
    assert evaluation.returncode == 0, stderr
    found = json.loads(stdout)["recordings"]
    assert [one["expected_windows"] for one in found] == expected
    for one in found:
        assert 2 <= one["windows"] <= one["expected_windows"]
        assert one["texts_equal_offline"] == one["windows"]
        assert one["latency_ms"]["age"]["p50"] > 0
    assert len(RunFolder.opened(tmp_path / "run").all_rows()) == sum(one["windows"] for one in found)


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


@pytest.mark.parametrize(
    ("bound", "late_ms", "expected"), [(1.5, 0.0, 1.5), (0.3, 0.0, 0.3), (9.0, 500.0, None)]
)
def test_the_highest_rate_is_found_among_a_few(
    bound: float, late_ms: float, expected: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a node that misses windows from some rate on: that rate, at most a tenth below it. A player that is
    late reaches none.
    """
    live_eval = pytest.importorskip("evspec_ros.ros.trials.live_eval", reason="needs rclpy")

    def play(_: object, recording: Recording, wanted: Wanted, rate: float, *rest: object) -> Playing:
        arrivals = [Arrival(k, k, k, {}) for k in range(20 if rate <= bound else 10)]
        return Playing(rate, 20, arrivals, [], 0.0, 0.0, 0.0, 1.0, late_ms)

    monkeypatch.setattr(live_eval._Stage, "play", play)
    record_scene(tmp_path / "scene", seed=2, seconds=0.1)
    stage, told = live_eval._Stage(None, None, tmp_path), []
    recording = open_recording(tmp_path / "scene")
    found = stage.highest_rate(recording, Wanted(), list(range(20)), told.append)
    assert len(told) == len(found["tried"]) <= 9
    if expected is None:
        assert found["rate"] is None
    else:
        assert expected / 1.1 <= found["rate"] <= expected


def test_a_node_that_is_never_late_describes_what_is_expected(tmp_path: Path) -> None:
    """What --live counts missed windows by: one for each window's worth of time."""
    record_scene(tmp_path / "scene", seed=2, seconds=0.7)
    assert 12 <= len(list(replayed(open_recording(tmp_path / "scene"), ReplayPlan("", "", "")))) <= 14
