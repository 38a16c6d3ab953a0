"""Starts the node: `ros2 launch evspec_ros evspec.launch.py events:=/event_camera/events image:=/...`."""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory("evspec_ros"))
RESPAWN_DELAY_S = 2.0
ARGUMENTS = {
    "events": ("events", "topic of the event camera; below the namespace, unless it begins with /"),
    "image": ("image", "topic of the RGB camera, sensor_msgs/Image; without /compressed"),
    "name": ("evspec", "name of the node"),
    "namespace": ("", "namespace of the node and of its relative topics"),
    "params_file": (str(SHARE / "config" / "evspec.yaml"), "parameters of the node; see config/ for others"),
    "respawn": ("false", "start the node again when it ends"),
    "use_sim_time": ("false", "take the time from /clock, as when a bag is played with --clock"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}
# Parameters of the node that may be given here, too; what is not given is as params_file says.
PARAMETERS = {
    "target": "directory of the target, a Video-LLaVA checkpoint",
    "event_model": "directory of the event model, of EventGPT's kind",
    "draft_head": "directory of the draft head, or new",
    "device": "cpu, cuda or cuda:N",
    "drafter": "auto, or the name of a way of drafting",
    "prompt": "what the target is asked",
    "image_transport": "raw or compressed",
    "events_type": "message type of the events, such as event_camera_msgs/msg/EventPacket",
    "trigger": "when a window is described",
    "autostart": "configure and activate at once; false leaves that to a lifecycle manager",
}
BOOLEANS = {"autostart"}
NOT_GIVEN = ""


def generate_launch_description() -> LaunchDescription:
    """The lifecycle node with its arguments, its cameras' topics and a transport that holds whole images."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    parameters = [
        DeclareLaunchArgument(name, default_value=NOT_GIVEN, description=f"{description}; else params_file's")
        for name, description in PARAMETERS.items()
    ]
    profile = str(SHARE / "config" / "fastdds.xml")
    transport = [  # the name of Fast DDS before version 3, and after; what is set already is kept
        SetEnvironmentVariable(name, EnvironmentVariable(name, default_value=profile))
        for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    ]
    return LaunchDescription([*arguments, *parameters, *transport, OpaqueFunction(function=_node)])


def _node(context: LaunchContext) -> list[LifecycleNode]:
    given = {name: LaunchConfiguration(name).perform(context) for name in PARAMETERS}
    overrides = {  # as text, whatever YAML would make of it
        name: value.lower() == "true" if name in BOOLEANS else ParameterValue(value, value_type=str)
        for name, value in given.items()
        if value != NOT_GIVEN
    }
    node = LifecycleNode(
        package="evspec_ros",
        executable="evspec_node",
        name=LaunchConfiguration("name"),
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            LaunchConfiguration("params_file"),
            {"use_sim_time": LaunchConfiguration("use_sim_time"), **overrides},
        ],
        remappings=[("events", LaunchConfiguration("events")), ("image", LaunchConfiguration("image"))],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        respawn=LaunchConfiguration("respawn"),
        respawn_delay=RESPAWN_DELAY_S,
        output="screen",
        emulate_tty=True,
    )
    return [node]
