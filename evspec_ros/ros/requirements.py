"""Saying in one sentence what to install where ROS or one of its message packages is missing."""

from __future__ import annotations

import importlib

from evspec_ros.errors import RosError

CLIENT_LIBRARY = (
    "source a ROS 2 installation (Humble or Jazzy), or install the client library's wheels with "
    "`pip install '.[ros]'` in a checkout of this package"
)
EVENT_MESSAGES = (
    "install it with `apt install ros-$ROS_DISTRO-event-camera-msgs`, or build it into this Python "
    "environment with `python -m evspec_ros.interfaces.build event_camera_msgs`"
)
PACKAGES = {
    "rclpy": CLIENT_LIBRARY,
    "std_msgs.msg": CLIENT_LIBRARY,
    "std_srvs.srv": CLIENT_LIBRARY,
    "sensor_msgs.msg": CLIENT_LIBRARY,
    "diagnostic_msgs.msg": CLIENT_LIBRARY,
    "event_camera_msgs.msg": EVENT_MESSAGES,
}


def require_ros() -> None:
    """Raise RosError with what to install unless rclpy and the node's message packages can be imported."""
    for module, remedy in PACKAGES.items():
        _require(module, remedy)


def _require(module: str, remedy: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise RosError(f"The ROS package {package} cannot be imported ({error}): {remedy}.") from error
