"""Starts the node: `ros2 launch evspec_ros evspec.launch.py events:=/event_camera/events image:=/...`."""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import LifecycleNode

SHARE = Path(get_package_share_directory("evspec_ros"))
ARGUMENTS = {
    "events": ("/event_camera/events", "topic of the event camera, event_camera_msgs/EventPacket"),
    "image": ("/camera/image_raw", "topic of the RGB camera, sensor_msgs/Image; without /compressed"),
    "namespace": ("", "namespace of the node"),
    "params_file": (str(SHARE / "config" / "evspec.yaml"), "parameters of the node"),
    "autostart": ("true", "configure and activate at once; false leaves that to a lifecycle manager"),
    "use_sim_time": ("false", "take the time from /clock, as when a bag is played with --clock"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}


def generate_launch_description() -> LaunchDescription:
    """The lifecycle node with its arguments, its cameras' topics and a transport that holds whole images."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    profile = str(SHARE / "config" / "fastdds.xml")
    transport = [  # the name of Fast DDS before version 3, and after; what is set already is kept
        SetEnvironmentVariable(name, EnvironmentVariable(name, default_value=profile))
        for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    ]
    node = LifecycleNode(
        package="evspec_ros",
        executable="evspec_node",
        name="evspec",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            LaunchConfiguration("params_file"),
            {
                "autostart": LaunchConfiguration("autostart"),
                "use_sim_time": LaunchConfiguration("use_sim_time"),
            },
        ],
        remappings=[("events", LaunchConfiguration("events")), ("image", LaunchConfiguration("image"))],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        emulate_tty=True,
    )
    return LaunchDescription([*arguments, *transport, node])
