"""What README.md has one install on a robot is what the node starts with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")
pytest.importorskip("packaging.requirements", reason="needs packaging")

from bare import ROSDEP, required
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILE = ROOT / "requirements-robot.txt"
PIP_KEYS = {
    "python3-onnxruntime-pip": "onnxruntime",
    "python3-rosbags-pip": "rosbags",
    "python3-tensorboard-pip": "tensorboard",
    "python3-transformers-pip": "transformers",
}  # rosdep's, that would have pip install something


def started(*without: str) -> dict[str, Any]:
    """What the node says that is started where only the robot's requirements are, less some."""
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("bare.py"), FILE, *without],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_the_node_starts_with_what_a_robot_is_given(ros: None, checkpoints: Path) -> None:
    """Nothing beyond requirements-robot.txt, rosdep's keys and ROS is imported."""
    said = started()
    assert said["states"] == ["SUCCESS", "SUCCESS"]
    assert "ONNX Runtime" in said["execution"]


@pytest.mark.parametrize("missing", [("onnx", "onnxruntime"), ("onnx",), ("onnxruntime",)])
def test_the_node_starts_on_torch_where_an_engine_is_missing(
    ros: None, checkpoints: Path, missing: tuple[str, ...]
) -> None:
    """It says what is missing, and what to install."""
    said = started(
        *missing, "rosbags", "accelerate", "tensorboard", "rich", "matplotlib", "jinja2", "torchao"
    )
    assert said["states"] == ["SUCCESS", "SUCCESS"]
    assert said["execution"].startswith("torch")
    assert f"pip install {' '.join(missing)}" in said["execution"]
    assert said["onnx"] is ("onnx" not in missing)
    assert not said["extra"]


def test_the_robot_s_requirements_are_the_package_s() -> None:
    """What setup.py requires comes from requirements-robot.txt, in the same range, from rosdep's keys in
    package.xml, or with rosbags; numpy alone is bounded, by ROS's messages.
    """
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    block = re.search(r"install_requires=\[(.*?)\n    \]", setup, re.DOTALL)
    assert block is not None
    wanted = [Requirement(text[1:-1]) for text in re.findall(r'"[^"\n]+"', block[1])]
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    given = {one.name: one for one in map(Requirement, lines)}
    keys = {key.text for key in ElementTree.parse(ROOT / "package.xml").iter("exec_depend")}  # noqa: S314
    by_apt = {ROSDEP[key] for key in keys & ROSDEP.keys()}
    with_rosbags = {"apsw", "backports.zstd", "lz4", "ruamel.yaml"}
    for one in wanted:
        assert one.name in given.keys() | by_apt | with_rosbags, one
        if one.name in given and one.name != "numpy":
            assert given[one.name].specifier == one.specifier, one


def test_rosdep_finds_what_pip_would_install_already_installed() -> None:
    """Every key of package.xml that has pip install something is in requirements-robot.txt too."""
    keys = {key.text for key in ElementTree.parse(ROOT / "package.xml").iter("exec_depend")}  # noqa: S314
    assert {key for key in keys if key and key.endswith("-pip")} == PIP_KEYS.keys()
    assert set(PIP_KEYS.values()) <= required(FILE)
    assert {key for key in keys if key and key.startswith("python3-")} == PIP_KEYS.keys() | ROSDEP.keys()


@pytest.mark.parametrize("where", ["README.md", "docker/desktop.Dockerfile", "docker/jetson.Dockerfile"])
def test_instructions_and_images_install_that_file_into_a_venv(where: str) -> None:
    """Python that is externally managed (PEP 668) refuses everything else."""
    text = (ROOT / where).read_text(encoding="utf-8")
    venv, install = text.index("-m venv --system-site-packages"), text.index("requirements-robot.txt")
    assert venv < text.index("pip install", venv)
    assert install < text.rindex("colcon build")
    assert "--break-system-packages" not in text
