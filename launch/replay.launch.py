"""Plays a bag into the node and records what it says: `ros2 launch evspec_ros replay.launch.py bag:=...`.

The bag's own time goes out as /clock, by which the node and its stamps run. The launch ends with the bag.
"""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

SHARE = Path(get_package_share_directory("evspec_ros"))
ARGUMENTS = {
    "bag": (None, "the bag's folder or file"),
    "events": ("/event_camera/events", "topic of the events in the bag"),
    "image": ("/camera/image_raw", "topic of the images in the bag, without /compressed"),
    "namespace": ("", "namespace of the node"),
    "name": ("evspec", "name of the node"),
    "rate": ("1.0", "how many times as fast as it was recorded"),
    "start_after": ("15.0", "seconds that the node is given to load its models before the bag begins"),
    "out": ("evspec_results", "folder of the new bag with the results; empty for none"),
}
RESULTS = ("result", "description", "description/stamped", "latency")
LINGER_S = 3.0  # for the last description, once the bag has ended


def generate_launch_description() -> LaunchDescription:
    """The node as in evspec.launch.py, whose other arguments may be given too, a player and a recorder."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "evspec.launch.py")),
        launch_arguments={"use_sim_time": "true"}.items(),
    )
    return LaunchDescription([*arguments, node, OpaqueFunction(function=_player_and_recorder)])


def _player_and_recorder(context: LaunchContext) -> list[TimerAction | ExecuteProcess | RegisterEventHandler]:
    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    play = ExecuteProcess(
        cmd=["ros2", "bag", "play", given("bag"), "--clock", "100", "--rate", given("rate")], output="screen"
    )
    ended = OnProcessExit(
        target_action=play,
        on_exit=[
            TimerAction(period=LINGER_S, actions=[EmitEvent(event=Shutdown(reason="the bag has ended"))])
        ],
    )
    started = TimerAction(period=float(given("start_after")), actions=[play])
    if not given("out"):
        return [started, RegisterEventHandler(ended)]
    node = "/".join(["", *filter(None, given("namespace").strip("/").split("/")), given("name")])
    topics = [f"{node}/{topic}" for topic in RESULTS]
    record = ExecuteProcess(cmd=["ros2", "bag", "record", "--output", given("out"), *topics], output="screen")
    return [record, started, RegisterEventHandler(ended)]
