"""Every command that README.md tells a newcomer to run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from evspec_ros.cli import _parser
from evspec_ros.simulation.recorded_scene import record_scene

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOO_LONG = {
    "evspec train tiny": "test/training/test_chain.py",
    "evspec features extract chain": "test/training/test_chain.py",
    "evspec train eagle3": "test/training/test_chain.py",
    "evspec bench results": "test/evaluation/test_study.py",
}
ALL_COMMANDS = re.findall(r"^    (evspec .*?)(?:\s+#.*)?$", README, re.MULTILINE)
COMMANDS = [command for command in ALL_COMMANDS if not command.startswith(tuple(TOO_LONG))]
TARGETS = sorted(set(re.findall(r"^    make (\w+)", README, re.MULTILINE)))
COVERED_ELSEWHERE = {
    "pip install": "needs the network",
    "rosdep install": "needs ROS",
    "colcon build": "test_package.py",
    "source install/setup.bash": "test_package.py",
    "ros2 launch": "test/ros/test_launch_file.py",
    "ros2 topic echo": "needs ROS",
    "accelerate launch": "test/training/test_training_processes.py",
    "make ": "below",
    "evspec ": "below",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a newcomer works: the recording is there, `bag` comes of the commands."""
    folder = tmp_path_factory.mktemp("newcomer")
    record_scene(folder / "recording", seed=1, seconds=2.0)
    (folder / "models").symlink_to(ROOT / "models")
    return folder


def _run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_command_is_known_to_a_test() -> None:
    """A command added to README has to be added here, or to the test that runs it."""
    lines = re.findall(
        r"^    (\S.*?)(?:\s+#.*)?$", re.sub(r"```.*?```", "", README, flags=re.DOTALL), re.MULTILINE
    )
    assert len(lines) >= 12
    assert not [line for line in lines if not line.startswith(tuple(COVERED_ELSEWHERE))]


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_its_targets(target: str) -> None:
    """`make test` is what runs this; `make demo` runs the command that the next test runs."""
    _run(["make", "-n", target], ROOT)


@pytest.mark.parametrize("begins", TOO_LONG)
def test_a_long_command_is_understood(begins: str) -> None:
    """README has it once, in words that the parser knows; the test named beside it runs what it does."""
    (command,) = (command for command in ALL_COMMANDS if command.startswith(begins))
    assert (ROOT / TOO_LONG[begins]).exists()
    _parser().parse_args(shlex.split(command)[1:])


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(folder: Path) -> None:
    """In README's order: each succeeds, and --json prints one object."""
    if find_spec("rclpy") is None:
        pytest.skip("the demo needs rclpy, which is not installed")
    assert len(COMMANDS) == 13
    for command in COMMANDS:
        _, *arguments = shlex.split(command.replace("RECORDING", "recording"))
        printed = _run([sys.executable, "-m", "evspec_ros", *arguments], folder)
        if "--json" in arguments:
            assert json.loads(printed)["descriptions"]


@pytest.mark.slow
def test_the_python_example_describes_the_bag(folder: Path) -> None:
    """It prints one description."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    if not (folder / "bag").exists():
        record_scene(folder / "bag", seed=1, seconds=2.0)
    assert "background" in _run([sys.executable, "-c", example], folder)


@pytest.mark.parametrize("model", [path.parent.name for path in sorted(ROOT.glob("models/*/config.json"))])
def test_every_checkpoint_has_a_model_card(model: str) -> None:
    """As Hugging Face reads it, with its data, the command and the seed, its scores and its limits."""
    card = (ROOT / "models" / model / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    for part in (
        f"# {model}",
        "**Data.**",
        "**Made by** `evspec train",
        " seed",
        "**Scores**",
        "**Limits.**",
    ):
        assert part in card
