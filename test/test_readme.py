"""README.md and docs/: every command that they give runs, every link leads somewhere.

A command whose comment begins with `minutes:`, `hours:` or `needs:` is not run as it stands: KEPT_BACK names
the test that does the same on a smaller scale.
"""

from __future__ import annotations

import argparse
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
from evspec_ros.prompts import DEFAULT_PROMPT
from evspec_ros.simulation.recorded_scene import record_scene

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
INDEX = ROOT / "docs" / "README.md"
LISTED = re.findall(r"^\| \[[\w.]+\]\(([\w.]+)\)", INDEX.read_text(encoding="utf-8"), re.MULTILINE)
PAGES = [README, INDEX, *(INDEX.with_name(name) for name in LISTED)]
MARKS = ("minutes: ", "hours: ", "needs: ")
KEPT_BACK = {
    "evspec bench decode --device": "test/evaluation/test_decoding.py",
    "evspec bench builds": "test/engines/test_tensorrt.py",
    "evspec export --backend tensorrt --precision float16 --check": "test/engines/test_tensorrt.py",
    "evspec export --backend tensorrt --precision float16 --comp": "test/engines/test_tensorrt.py",
    "evspec export --backend tensorrt --precision float16 --int8": "test/engines/test_tensorrt.py",
    "evspec bench decode --scenes 20": "test/evaluation/test_decoding.py",
    "evspec bench decoder --shape 7b": "test/evaluation/test_decoder_speed.py",
    "evspec bench decoder --threads 2": "test/evaluation/test_decoder_speed.py",
    "evspec bench gpu --device": "test/evaluation/test_gpu_speed.py",
    "evspec bench gpu --json": "test/evaluation/test_gpu_speed.py",
    "evspec bench ingest --json": "test/evaluation/test_ingest_speed.py",
    "evspec bench learning --scenes 440": "test/evaluation/test_learning.py",
    "evspec bench lossless --scenes 500": "test/evaluation/test_lossless.py",
    "evspec bench lossless --scenes 1 --dtype float16": "test/evaluation/test_lossless.py",
    "evspec bench lossless --scenes 1 --dtype bfloat16": "test/evaluation/test_lossless.py",
    "evspec bench node --seconds 20": "test/ros/trials/test_node_speed.py",
    "evspec bench peers": "test/evaluation/test_peers.py",
    "evspec bench results": "test/evaluation/test_study.py",
    "evspec bench scenes --recording": "test/evaluation/test_scene_statistics.py",
    "evspec eval --compare": "test/evaluation/test_compare_runs.py",
    "evspec eval recording --live": "test/ros/trials/test_live_eval.py",
    "evspec eval --simulated 200": "test/evaluation/test_accuracy.py",
    "evspec soak --minutes 30": "test/ros/trials/test_soak.py",
    "evspec features extract chain": "test/training/test_chain.py",
    "evspec train eagle3": "test/training/test_chain.py",
    "evspec train tiny": "test/training/test_chain.py",
    "accelerate launch": "test/training/test_training_processes.py",
    "EVSPEC_DAMAGED_PACKETS": "test/events/test_damaged_packets.py",
}
SETTING_UP = {
    "python3 -m venv": "test/ros/test_robot.py",
    "pip install": "test/ros/test_robot.py",
    "rosdep install": "needs ROS",
    "colcon build": "test/test_package.py",
    "source install/setup.bash": "test/test_package.py",
    "ros2 launch": "test/ros/test_launch_file.py",
    "ros2 topic echo": "needs ROS",
    "ros2 action": "needs ROS",
    "ros2 security": "needs ROS",
    "ROS_SECURITY_KEYSTORE": "needs ROS",
    "pip-audit": "needs the internet",
}


def _commands() -> list[tuple[str, str]]:
    """The indented lines of all pages, page after page, each once, with its comment."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        joined = re.sub(r"\s*\\\n\s*", " ", text)
        for command, comment in re.findall(r"^    (\S.*?)(?:\s+# *(.*))?$", joined, re.MULTILINE):
            found.setdefault(command, comment)
    return list(found.items())


COMMANDS = _commands()
KEPT = [command for command, comment in COMMANDS if comment.startswith(MARKS)]
RUN = [command for command, _ in COMMANDS if command.startswith("evspec ") and command not in KEPT]
TARGETS = sorted({command.split()[1] for command, _ in COMMANDS if command.startswith("make ")})
INLINE = sorted(
    {
        command
        for page in PAGES
        for command in re.findall(r"`(evspec [^`]+)`", page.read_text(encoding="utf-8"))
    }
)


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


def _understood(command: str) -> bool:
    """Whether a command, which may be cut short, has verbs and options that the parser knows."""
    parser = _parser()
    for word in shlex.split(command)[1:]:
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if word.startswith("--"):
            if word not in parser._option_string_actions:
                return False
        elif groups and word != "VERB":
            if word not in groups[0].choices:
                return False
            parser = groups[0].choices[word]
    return True


def test_every_command_is_known_to_a_test() -> None:
    """A command added to a page is run here, or named in one of the tables above."""
    others = ("evspec ", "make ", *SETTING_UP, *KEPT_BACK)
    assert not [command for command, _ in COMMANDS if not command.startswith(others)]
    assert not [start for start in SETTING_UP if not any(line.startswith(start) for line, _ in COMMANDS)]


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_its_targets(target: str) -> None:
    """`make test` is what runs this; `make demo` runs the command that is run below."""
    _run(["make", "-n", target], ROOT)


def test_what_is_marked_is_what_is_kept_back() -> None:
    """A mark in a page and an entry in KEPT_BACK go together, one to one."""
    starts = [next((start for start in KEPT_BACK if command.startswith(start)), "") for command in KEPT]
    assert sorted(starts) == sorted(KEPT_BACK)


@pytest.mark.parametrize("start", KEPT_BACK)
def test_a_command_that_is_kept_back_is_understood(start: str) -> None:
    """The parser takes it as it stands; the test named for it is there."""
    (command,) = (command for command in KEPT if command.startswith(start))
    assert (ROOT / KEPT_BACK[start]).is_file()
    if command.startswith("evspec "):
        _parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", INLINE)
def test_a_command_within_a_sentence_is_understood(command: str) -> None:
    """Its verbs and options are those of today."""
    assert _understood(command)


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(folder: Path) -> None:
    """In the pages' order: each succeeds, and --json prints one object."""
    if find_spec("rclpy") is None:
        pytest.skip("the demo needs rclpy, which is not installed")
    assert len(RUN) == 19
    for command in RUN:
        _, *arguments = shlex.split(command)
        printed = _run([sys.executable, "-m", "evspec_ros", *arguments], folder)
        if "--json" in arguments:
            assert json.loads(printed)["descriptions"]


@pytest.mark.slow
def test_the_python_example_describes_the_bag(folder: Path) -> None:
    """It prints one description."""
    text = (ROOT / "docs" / "recordings.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    if not (folder / "bag").exists():
        record_scene(folder / "bag", seed=1, seconds=2.0)
    assert "background" in _run([sys.executable, "-c", example], folder)


def test_the_index_lists_every_page() -> None:
    """docs/README.md has one line for each other page in docs/."""
    assert sorted(LISTED) == sorted({page.name for page in INDEX.parent.glob("*.md")} - {INDEX.name})


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "models" / "README.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    """Links are relative to their page, paths in backticks to the project; NAME stands for what is added."""
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    paths = re.findall(r"`((?:config|docs|evspec_ros|launch|models|test)/[\w./]*)`", text)
    assert not [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]


def test_readme_is_one_page() -> None:
    """It has 130 lines at most, and pictures that load at once."""
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    pictures = re.findall(r"!\[[^]]*\]\((.*?)\)", text)
    assert pictures
    assert all((ROOT / picture).stat().st_size < 150_000 for picture in pictures)


def test_the_parameters_have_the_defaults_that_readme_gives() -> None:
    """They are those of config/evspec.yaml, and * marks the same ones."""
    text = (ROOT / "config" / "evspec.yaml").read_text(encoding="utf-8")
    found = re.findall(r"^ +(\w+): (.*?)(?: +# (.*))?$", text, re.MULTILINE)
    config = {name: (value, comment.startswith("*")) for name, value, comment in found}
    config["prompt"] = DEFAULT_PROMPT, True  # a comment there
    rows = re.findall(r"^\| `(\w+)`( \*)? \| `(.*?)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 10
    assert not [name for name, live, default in rows if config[name] != (default, bool(live))]


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
