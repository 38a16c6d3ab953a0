"""The launch files describe what they promise, and run; needs launch_ros, which a ROS installation has."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evspec_ros.files import share_directory
from evspec_ros.ros.parameters import ROWS, Settings, changed
from evspec_ros.simulation.recorded_scene import record_scene

FILES = ("evspec", "replay", "demo")
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """A launch file as a module, its share folder being this source tree's."""
    pytest.importorskip("launch_ros", reason="needs launch_ros, which comes with a ROS installation")
    packages = pytest.importorskip("ament_index_python.packages")
    monkeypatch.setattr(packages, "get_package_share_directory", lambda _: str(share_directory()))

    def loaded(name: str) -> ModuleType:
        path = Path(share_directory()) / "launch" / f"{name}.launch.py"
        specification = importlib.util.spec_from_file_location(f"{name}_launch", path)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, f"{name}_launch", module)
        specification.loader.exec_module(module)
        return module

    return loaded


@pytest.mark.parametrize("name", FILES)
def test_every_argument_is_explained(load: Load, name: str) -> None:
    """What a launch file declares are the arguments of its table, each with a description."""
    from launch.actions import DeclareLaunchArgument

    module = load(name)
    entities = module.generate_launch_description().entities
    declared = {one.name: one.description for one in entities if isinstance(one, DeclareLaunchArgument)}
    assert set(declared) == set(module.ARGUMENTS) | set(getattr(module, "PARAMETERS", {}))
    assert all(declared.values())


def test_parameters_that_are_given_override_the_file(load: Load) -> None:
    """All of them are the node's; those that are not given are left to the file, and topics are relative."""
    from launch import LaunchContext

    module = load("evspec")
    assert set(module.PARAMETERS) < set(ROWS)
    assert Path(module.ARGUMENTS["params_file"][0]).is_file()
    assert (module.SHARE / "config" / "fastdds.xml").is_file()
    context = LaunchContext()
    given = dict.fromkeys(module.PARAMETERS, "") | {"device": "cuda:1", "autostart": "false"}
    given |= {name: default for name, (default, _) in module.ARGUMENTS.items()}
    context.launch_configurations.update(given)
    (node,) = module._node(context)
    (_, overrides) = node._Node__parameters
    text = {str(key[0].text if hasattr(key[0], "text") else key): value for key, value in overrides.items()}
    assert set(text) == {"use_sim_time", "device", "autostart"}
    assert not any(given[topic].startswith("/") for topic in ("events", "image"))


def test_a_replay_records_the_results_of_its_namespace(load: Load) -> None:
    """The recorder is told the node's topics by their whole names."""
    from launch import LaunchContext
    from launch.actions import ExecuteProcess

    module, context = load("replay"), LaunchContext()
    given = {name: default or "" for name, (default, _) in module.ARGUMENTS.items()}
    context.launch_configurations.update(given | {"bag": "drive", "namespace": "left"})
    actions = module._player_and_recorder(context)
    (record,) = (action for action in actions if isinstance(action, ExecuteProcess))
    words = ["".join(part.perform(context) for part in word) for word in record.cmd]
    assert words[:5] == ["ros2", "bag", "record", "--output", "evspec_results"]
    assert "/left/evspec/result" in words


@pytest.fixture
def launched(load: Load, tmp_path: Path) -> Callable[[str], str]:
    """What a script prints that launches files of this source tree, as `ros2 launch` finds an installed
    package's; the script knows their folder as SHARE.
    """
    prefix = tmp_path / "prefix"
    for folder in ("share/ament_index/resource_index/packages", "share/evspec_ros", "lib"):
        (prefix / folder).mkdir(parents=True)
    (prefix / "share/ament_index/resource_index/packages/evspec_ros").touch()
    for folder in ("launch", "config", "models"):
        (prefix / "share/evspec_ros" / folder).symlink_to(share_directory() / folder)
    (prefix / "lib/evspec_ros").symlink_to(Path(sys.prefix) / "lib" / "evspec_ros")
    environment = {
        **os.environ,
        "AMENT_PREFIX_PATH": os.pathsep.join([str(prefix), os.environ.get("AMENT_PREFIX_PATH", "")]),
        "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]),
        "ROS_DOMAIN_ID": "77",
    }

    def run(script: str) -> str:
        path = tmp_path / "run.py"
        path.write_text(f"SHARE = {str(prefix / 'share/evspec_ros')!r}\n{script}")
        done = subprocess.run(
            [sys.executable, str(path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout + done.stderr[-2000:]

    return run


def test_the_demo_describes(launched: Callable[[str], str]) -> None:
    """Launched as `ros2 launch` does, the node in a namespace describes what the player shows it."""
    said = launched(_LAUNCH + _DEMO)
    assert "HEARD /robot/evspec/description" in said, said


def test_a_replay_describes_and_ends_with_its_bag(launched: Callable[[str], str], tmp_path: Path) -> None:
    """What the node writes by the bag's clock reaches the recorder; `ros2 bag` is a stand-in here, as no
    package brings it.
    """
    bag, results = tmp_path / "bag", tmp_path / "results"
    record_scene(bag, 5, 2.0)
    (tmp_path / "bin").mkdir()
    ros2 = tmp_path / "bin" / "ros2"
    ros2.write_text(f"#!{sys.executable}\n{_ROS2_BAG}")
    ros2.chmod(0o755)
    said = launched(_LAUNCH + _REPLAY.format(bag=str(bag), out=str(results)))
    heard = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    assert "ENDED 0" in said, said
    assert len(heard) > 3, said
    assert all(0.0 <= result["age_ms"] < 10_000.0 for result in heard)


_LAUNCH = """
import threading, time
import rclpy
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from std_msgs.msg import String

service = LaunchService(argv=[])

def include(name, **arguments):
    source = PythonLaunchDescriptionSource(f"{SHARE}/launch/{name}.launch.py")
    included = IncludeLaunchDescription(source, launch_arguments=arguments.items())
    service.include_launch_description(LaunchDescription([included]))
"""

_DEMO = """
include("demo", namespace="robot", seconds="60")

def listen():
    rclpy.init(domain_id=77)
    node = rclpy.create_node("listener")
    heard = []
    topic = "/robot/evspec/description"
    node.create_subscription(String, topic, heard.append, 10)
    deadline = time.monotonic() + 80
    while not heard and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.2)
    if heard:
        print("HEARD", topic, heard[0].data, flush=True)
    service.shutdown()

threading.Thread(target=listen).start()
service.run()
"""

_REPLAY = """
include("replay", bag={bag!r}, events="/events", image="/image", out={out!r}, start_after="10.0")
print("ENDED", service.run(), flush=True)
"""

_ROS2_BAG = """
import sys, threading, time
import rclpy
from rclpy.executors import ExternalShutdownException
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
from evspec_ros.recordings import open_recording
from evspec_ros.ros.trials.player import Player

verb, arguments = sys.argv[2], sys.argv[3:]
rclpy.init()

def play(bag, clock, frequency, rate, value):
    assert (clock, rate) == ("--clock", "--rate")
    player = Player(open_recording(bag))
    ticks = player.node.create_publisher(Clock, "/clock", 10)
    threading.Thread(target=tick, args=(ticks, float(frequency)), daemon=True).start()
    player.wait_for_subscribers(30.0)
    player.play(player.schedule(float(value)), 0.0, once=True)

def tick(ticks, frequency):
    while True:
        now, message = time.time_ns(), Clock()
        message.clock.sec, message.clock.nanosec = divmod(now, 10**9)
        ticks.publish(message)
        time.sleep(1 / frequency)

def record(output, path, *topics):
    assert output == "--output"
    node = rclpy.create_node("recorder")
    (topic,) = [one for one in topics if one.endswith("/result")]
    with open(path, "w") as file:
        write = lambda message: print(message.data, file=file, flush=True)
        node.create_subscription(String, topic, write, 10)
        try:
            rclpy.spin(node)
        except (KeyboardInterrupt, ExternalShutdownException):
            pass

{"play": play, "record": record}[verb](*arguments)
"""


@pytest.mark.parametrize(
    "path", sorted((share_directory() / "config").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_parameter_file_suits_the_node(path: Path) -> None:
    """It names parameters that there are, with values that they take."""
    from ruamel.yaml import YAML

    rows: dict[str, Any] = YAML(typ="safe").load(path)["/**"]["ros__parameters"]
    changed(Settings(), rows)
