"""A Python that has only what some requirements install: `python bare.py REQUIREMENTS [--without NAME...]`.

Starts the node in this process, configures and activates it, and prints as JSON what it runs on. Modules of
distributions beyond the requirements, what those need in turn, ROS and Python itself are not found.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROSDEP = {
    "python3-aiohttp": "aiohttp",
    "python3-jinja2": "jinja2",
    "python3-matplotlib": "matplotlib",
    "python3-numba": "numba",
    "python3-numpy": "numpy",
    "python3-opencv": "opencv-python-headless",
    "python3-psutil": "psutil",
    "python3-rich": "rich",
}  # the distribution behind each key of package.xml
ROS = re.compile(r"(ros|ament|rosidl)[-_].*|.*_(msgs|srvs|interfaces)|rcl.*|rpyutils|rosidl_.*")


def installed(names: set[str]) -> set[str]:
    """These distributions and what they need in turn."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another platform or Python
        found.add(_canonical(name))
        required = map(Requirement, needed)
        waiting |= {
            one.name
            for one in required
            if (one.marker is None or one.marker.evaluate({"extra": ""}))
            and _canonical(one.name) not in found
        }
    return found


def required(file: Path) -> set[str]:
    """The distributions that a requirements file names, for this Python."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    found = [Requirement(line) for line in lines if line]
    return {one.name for one in found if one.marker is None or one.marker.evaluate()}


def hide_the_rest(allowed: set[str]) -> None:
    """From now on, import finds no module of any other distribution; Python's own and ROS's are found."""
    modules = metadata.packages_distributions()

    class Bare(PathFinder):
        """Finds what is allowed."""

        @classmethod
        def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
            top = name.partition(".")[0]
            owners = modules.get(top, [])
            foreign = owners and not any(
                _canonical(owner) in allowed or ROS.fullmatch(owner.lower()) for owner in owners
            )
            if foreign and top != "evspec_ros" and top not in sys.stdlib_module_names:
                return None
            return PathFinder.find_spec(name, path, target)

    sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Start the node and say what it runs on."""
    file, *without = sys.argv[1:]
    allowed = installed(required(Path(file)) | set(ROSDEP.values())) - {_canonical(name) for name in without}
    hide_the_rest(allowed)
    import rclpy

    from evspec_ros.ros.node import EvspecNode

    rclpy.init(args=["--ros-args", "-p", "autostart:=false", "-p", "max_new_tokens:=3"])
    node = EvspecNode()
    configured = node.trigger_configure()
    activated = node.trigger_activate()
    execution = node._describer.execution if node._describer else node._reports.problem
    loaded = {name.partition(".")[0] for name in sys.modules}
    node.destroy_node()
    rclpy.shutdown()
    print(
        json.dumps(
            {
                "states": [configured.name, activated.name],
                "execution": execution,
                "onnx": "onnx" in loaded,
                "extra": sorted(loaded & {"accelerate", "rosbags", "torchao"}),
            }
        )
    )


if __name__ == "__main__":
    main()
