"""Two nodes with two cameras on one machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String

from evspec_ros.ros.node import EvspecNode

SIZES = {"left": 32, "right": 64}


def test_two_nodes_in_two_namespaces_describe_a_camera_each(spinner: Spinner, checkpoints: Path) -> None:
    """By relative topics; neither hears the other's camera."""
    results: dict[str, list[Any]] = {name: [] for name in SIZES}
    nodes, publishers = {}, {}
    for name in SIZES:
        overrides = [Parameter("max_new_tokens", value=3), Parameter("trigger", value="period")]
        nodes[name] = EvspecNode(
            parameter_overrides=overrides, cli_args=["--ros-args", "-r", f"__ns:=/{name}"]
        )
        cameras = Node("cameras", namespace=f"/{name}")
        publishers[name] = cameras.create_publisher(Image, "image", 10)
        cameras.create_subscription(String, f"/{name}/evspec/result", results[name].append, 10)
        spinner.executor.add_node(nodes[name])
        spinner.executor.add_node(cameras)

    def both() -> bool:
        for name, size in SIZES.items():
            message = Image(width=size, height=size, encoding="mono8", step=size, data=bytes(size * size))
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
            publishers[name].publish(message)
        return all(results.values())

    spinner.until(both, "a description of each")
    for name, size in SIZES.items():
        images = nodes[name]._inputs.images
        assert {frame.image.shape[0] for frame in images.buffer.sample(2**62, 1.0)} == {size}
        assert images.counts.refused == 0
        assert json.loads(results[name][-1].data)["degraded"] == "no events"
