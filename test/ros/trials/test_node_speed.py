"""`evspec bench node`: what is measured around a real node, and what comes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from evspec_ros.errors import RosError
from evspec_ros.ros.trials.measured_node import Watch
from evspec_ros.ros.trials.node_speed import ACTIVITY, CONTINUOUS, NodeSpeed, ScenePhase, Told, print_speed

TIMES = ("overhead_ms", "publish_ms", "pictures_ms", "callback_ms")
BUSY = {"cpu_percent", "descriptions", "descriptions_per_s"}
SECONDS = 1.0


class _Sleeper:
    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


def _speed(overhead_ms: float, described_still: int) -> NodeSpeed:
    """Two seconds of a hundred descriptions, each with two callbacks of 1 and 2 ms."""
    told = (Told(0.0, overhead_ms, 0.5, 0.2, [1.0, 2.0]),) * 100
    still = {CONTINUOUS: ScenePhase(2.0, 50.0, told), ACTIVITY: ScenePhase(2.0, 10.0, told[:described_still])}
    return NodeSpeed("a machine", ScenePhase(2.0, 60.0, told), still)


def test_a_watch_measures_what_it_is_put_around() -> None:
    """The result is the method's own; what does not count is called, too; what was read is not read again."""
    sleeper, counting = _Sleeper(), [True]
    watch = Watch(lambda: counting[0])
    watch.put_around(sleeper, "sleep")
    assert sleeper.sleep(0.02) == 0.02
    counting[0] = False
    assert sleeper.sleep(0.0) == 0.0
    (taken_ms,) = watch.read()
    assert taken_ms >= 20
    assert watch.read() == []


def test_goals_are_met_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    """Known answers."""
    assert [goal.met for goal in _speed(2.9, 0).goals()] == [True, True, True]
    assert [goal.met for goal in _speed(3.1, 1).goals()] == [False, True, False]
    assert _speed(1.0, 0).as_dict()["descriptions_per_s"] == 50.0
    print_speed(_speed(1.0, 0))
    assert "50.0 descriptions a second" in capsys.readouterr().out
    with pytest.raises(RosError, match="more seconds"):
        NodeSpeed("a machine", ScenePhase(2.0, 60.0, ()), {}).times_ms()


@pytest.mark.slow
def test_the_bench_measures_the_node(checkpoints: Path) -> None:
    """All keys are there and their figures can be; a still scene is described with trigger continuous, and
    with activity for less of a core.
    """
    command = [sys.executable, "-m", "evspec_ros", "bench", "node", "--seconds", str(SECONDS), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    speed = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    print(speed)
    assert set(speed) == {*TIMES, *BUSY, "machine", "seconds", "callbacks", "still", "goals"}
    assert SECONDS <= speed["seconds"] < SECONDS + 1
    assert all(0 < speed[name]["p50"] <= speed[name]["p95"] <= speed[name]["p99"] for name in TIMES)
    assert speed["publish_ms"]["mean"] < speed["overhead_ms"]["mean"]
    assert speed["callbacks"] > 5
    assert 0 < speed["descriptions_per_s"] <= 25  # at most once per 50 ms window
    still = speed["still"]
    assert set(still) == {CONTINUOUS, ACTIVITY}
    assert all(set(phase) == BUSY for phase in still.values())
    assert still[CONTINUOUS]["descriptions"] > 2 > still[ACTIVITY]["descriptions"]
    assert 0 < still[ACTIVITY]["cpu_percent"] < still[CONTINUOUS]["cpu_percent"]
    assert len(speed["goals"]) == 3
