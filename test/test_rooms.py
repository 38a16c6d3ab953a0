"""The rooms: which may import which, what they may not import at all, and how large they are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "evspec_ros"
LARGEST = 450  # lines of a file

BASE = {"errors", "cancellation", "choices", "sizes", "files", "prompts", "interfaces"}
SENSES = {"events", "frames"}
CHAIN = (
    "windows", "networks", "engines", "speculative", "description", "reading", "describer", "heads",
    "loading", "training", "evaluation", "ros", "doctor", "cli", "__main__",
)  # fmt: skip
WORLD = {"recordings", "simulation"}  # what training and those above it read


def _may_import(room: str) -> set[str]:
    """The rooms that a room stands on."""
    if room in BASE:
        return BASE
    if room in SENSES:
        return BASE
    if room == "recordings":
        return BASE | SENSES
    if room == "simulation":
        return BASE | SENSES | {"recordings"}
    place = CHAIN.index(room)
    world = WORLD if place >= CHAIN.index("training") else set()
    return BASE | SENSES | world | set(CHAIN[:place])


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    """A file imports its own room and those that it stands on."""
    room = _room(path)
    modules = (name.split(".") for name in _imports(path) if name.startswith("evspec_ros."))
    assert {parts[1] for parts in modules} <= _may_import(room) | {room}


def test_only_the_node_needs_ros() -> None:
    """Nothing below ros/ imports rclpy or a message."""
    ros = ("rclpy", "sensor_msgs", "std_msgs", "std_srvs", "diagnostic_msgs", "event_camera_msgs")
    below = [path for path in FILES if _room(path) not in {"ros", "cli", "doctor", "interfaces"}]
    assert not [path for path in below if any(name.split(".")[0] in ros for name in _imports(path))]


def test_the_node_does_not_know_its_trials() -> None:
    """What runs on a robot imports nothing of what plays to the node, measures or breaks it."""
    node = [path for path in FILES if path.parent == PACKAGE / "ros"]
    assert not [path for path in node if any("ros.trials" in name for name in _imports(path))]


@pytest.mark.parametrize("room", sorted(SENSES | WORLD - {"simulation"}))
def test_events_and_frames_are_read_without_torch(room: str) -> None:
    """No file of a room that handles data alone imports torch."""
    files = [path for path in FILES if _room(path) == room]
    assert not [path for path in files if any(name.split(".")[0] == "torch" for name in _imports(path))]


def test_no_file_is_too_long_to_read() -> None:
    """No file of the package is above LARGEST lines."""
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert not {str(path): length for path, length in lengths.items() if length > LARGEST}


def test_the_pipeline_is_readable_in_one_sitting() -> None:
    """describer.py is under 300 lines, training/ under 3,300."""
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert lengths[PACKAGE / "describer.py"] < 300
    assert sum(length for path, length in lengths.items() if _room(path) == "training") < 3300


def test_a_class_name_exists_once() -> None:
    """No two classes of the package have one name."""
    names: dict[str, list[Path]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names.setdefault(node.name.lstrip("_"), []).append(path)
    assert not {name: paths for name, paths in names.items() if len(paths) > 1}
