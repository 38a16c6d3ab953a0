"""The node's memory stands still under a recording that is played over and over.

EVSPEC_MEMORY_SECONDS says for how long; ten minutes (600) show what ten minutes are to show.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from evspec_ros.errors import RosError
from evspec_ros.ros.trials.node_memory import SETTLED_AFTER_S, growth_per_10_min

SECONDS = float(os.environ.get("EVSPEC_MEMORY_SECONDS", "30"))
MOST_MB = 1.0  # in ten minutes
UNSETTLED_MB = 200.0  # likewise, in the first half minute: what a leak of every window's events would exceed


def test_growth_is_the_slope_of_the_samples() -> None:
    """A kilobyte a second is 0.6 MB in ten minutes, wherever the clock starts; noise averages out."""
    samples = [(5000.0 + k, 900 + 0.001 * k + (-1) ** k) for k in range(1000)]
    assert growth_per_10_min(samples) == pytest.approx(0.6, abs=0.02)
    with pytest.raises(RosError, match="Too short"):
        growth_per_10_min(samples[:1])


@pytest.mark.slow
def test_memory_stands_still_under_looped_replay(checkpoints: Path) -> None:
    """With the default settings; after the second minute by at most a megabyte in ten minutes."""
    settled = SECONDS > SETTLED_AFTER_S + 60
    command = [sys.executable, "-m", "evspec_ros.ros.trials.node_memory", "--seconds", str(SECONDS)]
    command += [] if settled else ["--settle", str(SECONDS / 2)]
    memory = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    print(memory)
    assert memory["descriptions"] > SECONDS / 10
    assert memory["growth_mb_per_10_min"] <= (MOST_MB if settled else UNSETTLED_MB)
