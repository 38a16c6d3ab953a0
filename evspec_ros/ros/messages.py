"""What the node's messages are made of."""

from __future__ import annotations

import array

from builtin_interfaces.msg import Time as TimeMessage
from rclpy.time import Time
from sensor_msgs.msg import Image

from evspec_ros.description import Description
from evspec_ros.ros.ingest import Window
from evspec_ros.ros.overlay import draw_overlay


def nanoseconds(stamp: TimeMessage) -> int:
    """A stamp as one number."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def overlay_message(description: Description, window: Window) -> Image:
    """The picture of ~/overlay."""
    picture = draw_overlay(window.frames[-1].image, window.events, description.text)
    height, width = picture.shape[:2]
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.header.stamp = Time(nanoseconds=description.stamp_ns).to_msg()
    message.data = array.array("B", picture.tobytes())
    return message
