"""The node with image_transport compressed."""

from __future__ import annotations

import array
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from node_bench import BEST_EFFORT, SIZE, Bench, at_least
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage

from evspec_ros.ros.node import EvspecNode


def test_compressed_images_are_taken_beside_a_remapped_topic(spinner: Spinner, checkpoints: Path) -> None:
    """JPEGs come from .../compressed below `image`; one that is none is refused, counted and survived."""
    node = EvspecNode(
        parameter_overrides=[
            Parameter("autostart", value=False),
            Parameter("image_transport", value="compressed"),
            Parameter("trigger", value="on_request"),
        ],
        cli_args=["--ros-args", "-r", "image:=/front/image_raw"],
    )
    bench = Bench(spinner, node, Node("cameras"))
    spinner.executor.add_node(bench.node)
    spinner.executor.add_node(bench.cameras)
    publisher = bench.cameras.create_publisher(CompressedImage, "/front/image_raw/compressed", BEST_EFFORT)
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    bench.until(publisher.get_subscription_count, "the subscription")

    def send(data: bytes) -> None:
        message = CompressedImage(format="rgb8; jpeg compressed bgr8")
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
        message.data = array.array("B", data)
        publisher.publish(message)

    jpeg = cv2.imencode(".jpg", np.full((SIZE, SIZE, 3), 200, np.uint8))[1].tobytes()
    send(b"no picture")
    bench.until(lambda: (send(jpeg), at_least(bench.values("frames"), "frames", 1))[1], "frames")
    assert at_least(bench.values("frames"), "refused_messages", 1)
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
