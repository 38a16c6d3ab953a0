"""The node under faults, on real DDS, for as long as the command is given."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from evspec_ros.cli import main
from evspec_ros.errors import RosError
from evspec_ros.ros.trials.soak import Soak, require_well
from evspec_ros.ros.trials.soak_faults import FAULTS

SOAK = """
import json
from evspec_ros.ros.trials.soak import soak
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


def test_the_command_tells_when_each_fault_began(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, with the seconds gone by; the report alone is on stdout."""

    def suffer(minutes: float, seed: int, *, told: Callable[[str], None]) -> Soak:
        told("no_events")
        return Soak(seed, minutes)

    monkeypatch.setattr("evspec_ros.ros.trials.soak.soak", suffer)
    assert main(["soak", "--minutes", "2", "--seed", "3", "--json"]) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(r" +0\.\d s  no_events\n", printed.err)
    report = json.loads(printed.out)
    assert (report["seed"], report["minutes"]) == (3, 2)
