"""The node under faults, on real DDS, for as long as the command is given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from evspec_ros.errors import RosError
from evspec_ros.ros.soak import Soak, require_well
from evspec_ros.ros.soak_faults import FAULTS

SOAK = """
import json
from evspec_ros.ros.soak import soak
names = ["out_of_memory", "drafter_crashes", "malformed_packets", "dds_restart", "disk_full"]
print(json.dumps(soak(20 / 60, seed=0, names=names).as_dict()))
"""


def test_the_faults_are_those_that_robots_have() -> None:
    """Each has a pattern by which /diagnostics tells of it."""
    assert len(FAULTS) == 13
    assert FAULTS["no_events"].is_told("events: Nothing was received on /events for 2.1 s.")
    assert not FAULTS["malformed_packets"].is_told("frames: Nothing was received on /image yet.")


@pytest.mark.slow
def test_twenty_seconds_of_faults_are_survived(checkpoints: Path) -> None:
    """Each is told in /diagnostics and recovered from within five seconds; no age is wrong."""
    result = subprocess.run([sys.executable, "-c", SOAK], stdout=subprocess.PIPE, check=True)
    report = json.loads(result.stdout)
    print(report)
    assert report["crashes"] == report["unrecovered"] == report["wrong_ages"] == 0
    assert sum(report["faults"].values()) >= 3
    assert report["seen_in_diagnostics"] == report["faults"]
    assert report["recovered_within_s"]["max"] < 5
    assert report["descriptions"] > 20


def test_a_soak_that_went_ill_is_an_error() -> None:
    """Of one sentence."""
    require_well(Soak(0))
    with pytest.raises(RosError, match="did not recover from 1 faults"):
        require_well(Soak(0, unrecovered=1))
