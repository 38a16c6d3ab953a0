"""The package as pip and colcon install it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ("launch", "config", "models")
INSTALLED = ("evspec_ros", "resource", *SHARED, "package.xml", "setup.py", "setup.cfg", "pyproject.toml")
EXECUTABLES = {"evspec", "evspec_node"}
COLCON = ["colcon"] if find_spec("colcon_core") is None else [sys.executable, "-m", "colcon"]


def files(folder: Path) -> set[str]:
    """What lies below a folder, less what Python leaves behind."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts}


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command that has to succeed."""
    result = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, so that building leaves the real one as it was."""
    copy = tmp_path_factory.mktemp("source") / "evspec_ros"
    copy.mkdir()
    for name in INSTALLED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel that `pip install .` installs."""
    if find_spec("setuptools") is None or find_spec("wheel") is None:
        pytest.skip("needs setuptools and wheel")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip"]
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def workspace(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colcon workspace with the package built in it."""
    if shutil.which("colcon") is None and find_spec("colcon_core") is None:
        pytest.skip("needs colcon: pip install colcon-common-extensions")
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "src").mkdir()
    (folder / "src" / "evspec_ros").symlink_to(source)
    run(*COLCON, "build", "--base-paths", "src", cwd=folder)
    return folder


def test_a_wheel_holds_every_file_of_the_package(source: Path, wheel: zipfile.ZipFile) -> None:
    """Modules, message texts and templates: all that lies below evspec_ros/."""
    packed = {name.removeprefix("evspec_ros/") for name in wheel.namelist() if name.startswith("evspec_ros/")}
    assert packed == files(source / "evspec_ros")


def test_a_wheel_shares_launch_files_configuration_and_models(source: Path, wheel: zipfile.ZipFile) -> None:
    """share/evspec_ros of the environment gets the folders that the node reads at run time."""
    names = set(wheel.namelist())
    share = next(name for name in names if name.endswith(".data/data/share/evspec_ros/package.xml"))
    share = share.removesuffix("package.xml")
    shared = {f"{folder}/{name}" for folder in SHARED for name in files(source / folder)}
    assert {share + name for name in shared} <= names


def test_pip_puts_both_commands_into_bin(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """setup.cfg sends scripts to lib/evspec_ros for ROS, and pip is not led astray by it."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps",
        str(wheel.filename), cwd=tmp_path,
    )  # fmt: skip
    assert {path.name for path in python.parent.glob("evspec*")} == EXECUTABLES
    assert (tmp_path / "venv" / "share" / "evspec_ros" / "package.xml").is_file()


def test_colcon_puts_executables_where_ros_looks_for_them(workspace: Path) -> None:
    """`ros2 run` and launch files find a package's executables in lib/<package>."""
    assert files(workspace / "install" / "evspec_ros" / "lib" / "evspec_ros") == EXECUTABLES


def test_colcon_shares_launch_files_configuration_and_models(source: Path, workspace: Path) -> None:
    """share/evspec_ros of the workspace holds the manifest and all that the node reads at run time."""
    share = workspace / "install" / "evspec_ros" / "share" / "evspec_ros"
    assert (share / "package.xml").is_file()
    for folder in SHARED:
        assert files(share / folder) == files(source / folder)


def test_colcon_registers_the_package(workspace: Path) -> None:
    """The ament index knows the package, so that ROS tools find it."""
    index = workspace / "install" / "evspec_ros" / "share" / "ament_index" / "resource_index"
    assert (index / "packages" / "evspec_ros").is_file()


def test_colcon_installs_every_file_of_the_package(source: Path, workspace: Path) -> None:
    """As in the wheel: modules, message texts and templates."""
    installed = next((workspace / "install" / "evspec_ros" / "lib").glob("python*/site-packages/evspec_ros"))
    assert files(installed) == files(source / "evspec_ros")


def test_colcon_test_runs_the_tests_and_fails_where_one_does(source: Path, workspace: Path) -> None:
    """Of a package whose tests are two in the place of its own."""
    (source / "test").mkdir()
    passing = source / "test" / "test_scratch.py"
    passing.write_text(
        "def test_sum():\n    assert 1 + 1 == 2\n\n\ndef test_product():\n    assert 2 * 2 == 4\n"
    )
    command = (*COLCON, "test", "--base-paths", "src", "--return-code-on-test-failure")
    run(*command, cwd=workspace)
    report = workspace / "build" / "evspec_ros" / "pytest.xml"
    (suite,) = ElementTree.parse(report).iter("testsuite")  # noqa: S314 (pytest's own file)
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "0", "0")
    passing.write_text("def test_sum():\n    assert 1 + 1 == 3\n")
    failed = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    (suite,) = ElementTree.parse(report).iter("testsuite")  # noqa: S314 (pytest's own file)
    assert suite.get("failures") == "1"


def test_executables_run_on_the_python_that_is_first_on_the_path(workspace: Path) -> None:
    """A venv's that is active, though colcon may run on the system's."""
    for name in EXECUTABLES:
        file = workspace / "install" / "evspec_ros" / "lib" / "evspec_ros" / name
        assert file.read_text().startswith("#!/usr/bin/env python3\n")


def test_the_installed_command_runs(workspace: Path) -> None:
    """`evspec --version`, started as `ros2 run` starts it, prints the manifest's version."""
    install = workspace / "install" / "evspec_ros"
    site = next((install / "lib").glob("python*/site-packages"))
    result = subprocess.run(
        [install / "lib" / "evspec_ros" / "evspec", "--version"],
        env={
            **os.environ,
            "PYTHONPATH": str(site),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")  # noqa: S314 (our own file)
    assert result.stdout == f"evspec {version}\n"


def required() -> list[Any]:
    """The requirements of setup.py's install_requires and of its extras but ROS."""
    packaging = pytest.importorskip("packaging.requirements", reason="packaging is not installed")
    setup = (ROOT / "setup.py").read_text()
    lists = r"(?:install_requires=|\"(?:quantised|dsec|fleet|peer|scores|tensorrt|watch)\": )\[(.*?)\]"
    texts = re.findall(lists, setup, re.DOTALL)
    assert len(texts) == 8
    return [packaging.Requirement(text) for text in re.findall(r'"([^"]+)"', "".join(texts))]


def test_pins_lie_within_the_ranges_that_the_package_accepts() -> None:
    """Every requirement of setup.py is pinned in a requirements file, and the pin satisfies the range."""
    files = "".join((ROOT / f"requirements{part}.txt").read_text() for part in ("", "-dev"))
    pins = re.findall(r"^([\w.-]+)==([^;\s]+)", files, re.MULTILINE)
    for requirement in required():
        versions = [version for name, version in pins if name == requirement.name]
        assert versions, f"{requirement.name} is not pinned"
        assert all(version in requirement.specifier for version in versions), requirement


def test_every_package_that_the_code_imports_is_required() -> None:
    """What evspec_ros imports is in setup.py's install_requires or extras, or comes with Python (compression
    with 3.14) or ROS.
    """
    distributions = {"backports": "backports.zstd", "cv2": "opencv-python-headless", "llvmlite": "numba"}
    distributions |= {"google": "protobuf", "ruamel": "ruamel.yaml", "tensorrt": "tensorrt-rtx"}
    distributions |= {"rouge_score": "rouge-score"}
    names = {requirement.name for requirement in required()}
    for path in (ROOT / "evspec_ros").rglob("*.py"):
        for module in imported_modules(path) - {*sys.stdlib_module_names, "evspec_ros"}:
            if not re.search(r"^ament_|^rosidl_|^rclpy$|_msgs$|_srvs$|_interfaces$|^compression$", module):
                assert distributions.get(module, module) in names, f"{path.name} imports {module}"


def imported_modules(path: Path) -> set[str]:
    """The top-level names of the modules that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[0] for name in names}
