"""A node's process that is managed from outside, cleaned up and killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import String

from evspec_ros.ros.shared_memory import stale_segments
from evspec_ros.ros.trials.processes import Child

CYCLES = 3
GIVEN_BACK_MB = 100.0  # of 170: caches and arrays of the tiny networks, which are 35 MB themselves
ASK_AGAIN_S = 2.0  # a service may answer before it knows where to
KEPT_MB = 8.0  # what a cycle may leave; one that kept the networks would leave four times as much


GOALS = {
    Transition.TRANSITION_CONFIGURE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_ACTIVATE: State.PRIMARY_STATE_ACTIVE,
    Transition.TRANSITION_DEACTIVATE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_CLEANUP: State.PRIMARY_STATE_UNCONFIGURED,
}


class Manager:
    """Beside the node: a camera, a listener and whoever changes its state."""

    def __init__(self, spinner: Spinner) -> None:
        self._spinner = spinner
        self._node = Node("manager")
        self._images = self._node.create_publisher(Image, "image", 10)
        self._change = self._node.create_client(ChangeState, "/evspec/change_state")
        self._state = self._node.create_client(GetState, "/evspec/get_state")
        self.results: list[Any] = []
        self.partials: list[Any] = []
        self._node.create_subscription(String, "/evspec/result", self.results.append, 10)
        self._node.create_subscription(String, "/evspec/description/partial", self.partials.append, 100)
        spinner.executor.add_node(self._node)

    def change(self, transition: int) -> None:
        """Have the node make a transition, which succeeds."""
        self._spinner.until(self._change.service_is_ready, "the node")
        self._change.call_async(ChangeState.Request(transition=Transition(id=transition)))
        asked, asked_at = None, 0.0

        def there() -> bool:
            nonlocal asked, asked_at
            if asked is None or asked.done() or time.monotonic() - asked_at > ASK_AGAIN_S:
                if (
                    asked is not None
                    and asked.done()
                    and asked.result().current_state.id == GOALS[transition]
                ):
                    return True
                asked, asked_at = self._state.call_async(GetState.Request()), time.monotonic()
            return False

        self._spinner.until(there, f"the end of transition {transition}")

    def film_until(self, condition: Callable[[], Any], what: str) -> Any:
        """Send images until condition is true."""

        def met() -> Any:
            message = Image(width=8, height=8, encoding="mono8", step=8, data=bytes(64))
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
            self._images.publish(message)
            return condition()

        return self._spinner.until(met, what)

    def film_until_described(self) -> None:
        """Send images until there is another result."""
        self.results.clear()
        self.film_until(lambda: self.results, "a description")


def _node(tmp_path: Path, *arguments: str) -> Child:
    return Child("node", "evspec_ros.ros.main", ["--ros-args", *arguments], tmp_path)


def test_cleaning_up_frees_the_memory(
    spinner: Spinner, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What configuring and describing took falls back, and does not grow from one time to the next."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    manager = Manager(spinner)
    in_use, left = [], []
    with _node(tmp_path, "-p", "autostart:=false", "-p", "max_new_tokens:=8") as node:
        for _ in range(CYCLES):
            manager.change(Transition.TRANSITION_CONFIGURE)
            manager.change(Transition.TRANSITION_ACTIVATE)
            manager.film_until_described()
            in_use.append(node.resident_mb())
            manager.change(Transition.TRANSITION_DEACTIVATE)
            manager.change(Transition.TRANSITION_CLEANUP)
            left.append(node.resident_mb())
    print(f"In use {in_use}, left {left} MB")
    for used, kept in zip(in_use, left, strict=True):
        assert used - kept > GIVEN_BACK_MB
    assert max(left[1:]) - left[0] < KEPT_MB


def test_a_node_that_is_killed_in_mid_description_describes_again(
    spinner: Spinner, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started anew, with what the first one left behind, and nothing is said of a file that is broken."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    manager = Manager(spinner)
    arguments = "-p", "draft_head:=new", "-p", f"draft_head_dir:={tmp_path / 'head'}"
    took_s, stale_before = [], set(stale_segments())
    for _ in range(2):
        began = time.monotonic()
        with _node(tmp_path, *arguments) as node:
            manager.film_until_described()
            took_s.append(time.monotonic() - began)
            manager.partials.clear()
            manager.film_until(lambda: manager.partials, "a text that is being written")
            node.kill()
        said = (tmp_path / "node.err").read_text(encoding="utf-8")
        assert "Traceback" not in said
        warnings = [line for line in said.splitlines() if "[WARN" in line]
        assert all("shared memory" in line for line in warnings), warnings
        for segment in set(stale_segments()) - stale_before:
            segment.unlink(missing_ok=True)
    print(f"The first description came after {took_s} s")
    assert took_s[1] < 2 * took_s[0] + 5
