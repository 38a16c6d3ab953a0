"""The node on a simulated scene, with nothing plugged in: `ros2 launch evspec_ros demo.launch.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

SHARE = Path(get_package_share_directory("evspec_ros"))
ARGUMENTS = {
    "recording": ("", "what `evspec info` reads, to be played; empty for a simulated scene"),
    "seconds": ("3600.0", "how long it is played, again and again"),
    "namespace": ("", "namespace of the node and its topics"),
}


def generate_launch_description() -> LaunchDescription:
    """The node as in evspec.launch.py, and a player of the package's own."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    node = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(SHARE / "launch" / "evspec.launch.py")))
    return LaunchDescription([*arguments, node, OpaqueFunction(function=_player)])


def _player(context: LaunchContext) -> list[ExecuteProcess]:
    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    recording = given("recording") or _simulated_scene()
    command = [sys.executable, "-m", "evspec_ros.ros.trials.player", recording, "--seconds", given("seconds")]
    if given("namespace"):
        command += ["--ros-args", "-r", f"__ns:=/{given('namespace').strip('/')}"]
    return [ExecuteProcess(cmd=command, output="screen")]


def _simulated_scene() -> str:
    from evspec_ros.ros.trials.demo import SCENE_SECONDS, SCENE_SEED
    from evspec_ros.simulation.recorded_scene import record_scene

    place = Path(mkdtemp(prefix="evspec_")) / "simulated_scene"
    record_scene(place, SCENE_SEED, SCENE_SECONDS)
    return str(place)
