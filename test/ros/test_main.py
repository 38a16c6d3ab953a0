"""The node's executable ends cleanly whenever it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node


@pytest.mark.parametrize(("told_by", "when"), [(signal.SIGTERM, "describing"), (signal.SIGINT, "starting")])
def test_a_signal_ends_the_node_with_status_zero(
    spinner: Spinner, checkpoints: Path, tmp_path: Path, told_by: signal.Signals, when: str
) -> None:
    """While it loads its networks as well as when it is active: no traceback, no process left."""
    heard: list[DiagnosticArray] = []
    listener = Node("listener")
    listener.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)
    spinner.executor.add_node(listener)
    log = tmp_path / "node.err"
    with log.open("wb") as errors:
        node = subprocess.Popen(
            [sys.executable, "-m", "evspec_ros.ros.main", "--ros-args", "-p", "max_new_tokens:=3"],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
    try:
        if when == "describing":
            spinner.until(lambda: heard and heard[-1].status[0].message == "describing", "an active node")
        else:
            spinner.until(lambda: listener.get_node_names().count("evspec"), "the node")
            time.sleep(0.2)  # somewhere amid its configuring
        node.send_signal(told_by)
        assert node.wait(timeout=120) == 0
    finally:
        node.kill()
        node.wait()
    assert "Traceback" not in log.read_text(encoding="utf-8")
