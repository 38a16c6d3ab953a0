"""The launch file describes the node; needs launch_ros, which comes with a ROS installation."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from evspec_ros.files import share_directory


@pytest.fixture
def launch_file(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The launch file as a module, its share folder being this source tree's."""
    pytest.importorskip("launch_ros", reason="needs launch_ros, which comes with a ROS installation")
    packages = pytest.importorskip("ament_index_python.packages")
    monkeypatch.setattr(packages, "get_package_share_directory", lambda _: str(share_directory()))
    path = Path(share_directory()) / "launch" / "evspec.launch.py"
    specification = importlib.util.spec_from_file_location("evspec_launch", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "evspec_launch", module)
    specification.loader.exec_module(module)
    return module


def test_the_launch_file_starts_one_lifecycle_node_with_existing_files(launch_file: ModuleType) -> None:
    """It declares its arguments, and the parameter file and transport profile that it names exist."""
    from launch.actions import DeclareLaunchArgument
    from launch_ros.actions import LifecycleNode

    entities = launch_file.generate_launch_description().entities
    arguments = {entity.name for entity in entities if isinstance(entity, DeclareLaunchArgument)}
    assert arguments == set(launch_file.ARGUMENTS)
    assert sum(isinstance(entity, LifecycleNode) for entity in entities) == 1
    assert Path(launch_file.ARGUMENTS["params_file"][0]).is_file()
    assert (launch_file.SHARE / "config" / "fastdds.xml").is_file()
