"""Saying in one sentence what to install where ROS or one of its message packages is missing."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from evspec_ros.errors import RosError

CLIENT_LIBRARY = (
    "source a ROS 2 installation (Humble or Jazzy), or install the client library's wheels with "
    "`pip install '.[ros]'` in a checkout of this package"
)
EVENT_MESSAGES = (
    "install it with `apt install ros-$ROS_DISTRO-{}`, or build it into this Python environment with "
    "`python -m evspec_ros.interfaces.build {}`"
)
STAMPED, ASK = "evspec_msgs/msg/Description", "evspec_msgs/action/Ask"
OWN_REMEDY = (
    "{}, for evspec_msgs is not built, or an earlier version of it: add "
    "src/evspec_ros/evspec_ros/interfaces/evspec_msgs to colcon's --base-paths, or run "
    "`python -m evspec_ros.interfaces.build evspec_msgs`."
)
PACKAGES = {
    "rclpy": CLIENT_LIBRARY,
    "std_msgs.msg": CLIENT_LIBRARY,
    "std_srvs.srv": CLIENT_LIBRARY,
    "sensor_msgs.msg": CLIENT_LIBRARY,
    "diagnostic_msgs.msg": CLIENT_LIBRARY,
    "event_camera_msgs.msg": EVENT_MESSAGES.format("event-camera-msgs", "event_camera_msgs"),
}


def require_ros() -> None:
    """Raise RosError with what to install unless rclpy and the node's message packages can be imported."""
    for module, remedy in PACKAGES.items():
        _require(module, remedy)


def require_package(name: str, purpose: str) -> None:
    """Raise RosError with what to install where a Python package that serves one purpose is missing."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise RosError(
            f"{name}, which {purpose}, cannot be imported ({error}): pip install {name}."
        ) from error


def message_type(name: str) -> type:
    """The class of an event message, named package/msg/Type, or of an action of the package's own; RosError
    says what to install for it.
    """
    package, folder, kind = name.split("/")
    remedy = EVENT_MESSAGES.format(package.replace("_", "-"), package)
    found: type = getattr(_require(f"{package}.{folder}", remedy), kind)
    return found


def stamped_type() -> type | None:
    """The class of the stamped description, of the package's own; None where it was not built."""
    return _own_type(STAMPED)


def ask_type() -> Any:
    """The class of the action ~/ask, likewise."""
    return _own_type(ASK)


def _own_type(name: str) -> type | None:
    try:
        return message_type(name)
    except RosError:
        return None


def _require(module: str, remedy: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise RosError(f"The ROS package {package} cannot be imported ({error}): {remedy}.") from error
