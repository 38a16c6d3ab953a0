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
from sensor_msgs.msg import Image

from evspec_ros.ros import main


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
            spinner.until(
                lambda: heard and heard[-1].status[0].message == "waiting for the first window",
                "an active node",
            )
        else:
            spinner.until(lambda: listener.get_node_names().count("evspec"), "the node")
            time.sleep(0.2)  # somewhere amid its configuring
        node.send_signal(told_by)
        assert node.wait(timeout=120) == 0
    finally:
        node.kill()
        node.wait()
    assert "Traceback" not in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("after_s", [0.3, 1.5, 3.0, 5.0])
def test_ctrl_c_at_any_moment_and_twice_is_quiet(
    ros: None, checkpoints: Path, tmp_path: Path, after_s: float
) -> None:
    """While modules are imported, networks loaded, the node spins: status zero and no traceback."""
    log = tmp_path / "node.err"
    with log.open("wb") as errors:
        node = subprocess.Popen(
            [sys.executable, "-m", "evspec_ros.ros.main"],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
    try:
        time.sleep(after_s)
        node.send_signal(signal.SIGINT)
        time.sleep(0.05)
        if node.poll() is None:
            node.send_signal(signal.SIGINT)
        assert node.wait(timeout=60) == 0
    finally:
        node.kill()
        node.wait()
    said = log.read_text(encoding="utf-8")
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said


STUCK = """
import sys, time
from evspec_ros.ros import configuring, main
from evspec_ros.describer import SceneDescriber

def stuck(*_, **__):
    print("stuck", flush=True)
    while True:
        time.sleep(60)

if sys.argv.pop(1) == "building":
    configuring.load_describer = stuck
else:
    SceneDescriber.warm_up = lambda self: None
    SceneDescriber.describe_all = stuck
sys.exit(main.main())
"""


@pytest.mark.parametrize("told_by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", ["building", "describing"])
def test_the_node_is_gone_within_a_second(
    ros: None, checkpoints: Path, tmp_path: Path, what: str, told_by: signal.Signals
) -> None:
    """While an engine is built and in mid-prefill, which both take a minute here."""
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    arguments = ["--ros-args", "-p", "trigger:=period", "-p", "period_s:=0.1"]
    node = subprocess.Popen(
        [sys.executable, str(script), what, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    camera = Node("camera")
    images = camera.create_publisher(Image, "image", 10)
    message = Image(width=2, height=2, encoding="mono8", step=2, data=bytes(4))
    try:
        assert node.stdout is not None
        os.set_blocking(node.stdout.fileno(), False)
        deadline = time.monotonic() + 60
        while not node.stdout.read():
            assert time.monotonic() < deadline
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
            images.publish(message)
            time.sleep(0.02)
        began = time.monotonic()
        node.send_signal(told_by)
        assert node.wait(timeout=30) == 0
        assert time.monotonic() - began < 10  # a second, but for a machine that is busy with other things
    finally:
        node.kill()
        node.wait()
        camera.destroy_node()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--log-level", "loud"], "'--log-level loud'"),
        (["-r", "broken"], "'-r broken'"),
        (["-p", "window_ms:=1000"], "window_ms is 1000"),
        (["-p", "temperature:=warm"], "temperature is 'warm'"),
    ],
)
def test_arguments_that_cannot_be_are_one_sentence(ros: None, arguments: list[str], told: str) -> None:
    """On stderr, with status 1."""
    result = subprocess.run(
        [sys.executable, "-m", "evspec_ros.ros.main", "--ros-args", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("evspec: ")]
    assert told in sentence
    assert sentence.endswith(".")
    assert "Traceback" not in result.stderr


def test_shared_memory_that_a_killed_process_left_is_told(
    ros: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """When the node starts, as a warning."""
    monkeypatch.setattr(main.shared_memory, "stale_segments", lambda: [Path("/dev/shm/fastrtps_0")])  # noqa: S108
    main.tell_of_stale_memory()
    assert "fastrtps_0" in capfd.readouterr().err
