"""What works from a checkout that is only on PYTHONPATH, and from the code without the files beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import pytest

from evspec_ros import files
from evspec_ros.errors import EvspecError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def code_alone(tmp_path: Path) -> Path:
    """A folder that holds the package's code and nothing that belongs to it."""
    (tmp_path / "evspec_ros").symlink_to(ROOT / "evspec_ros")
    return tmp_path


def _evspec(source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command from `source`, whose folder is taken as it lies there, links and all."""
    start = (
        "import pathlib, sys\n"
        "from evspec_ros import cli, files\n"
        f"files._SOURCE = pathlib.Path({str(source)!r})\n"
        "files._INSTALLED_AS = 'not_installed'\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(source), "AMENT_PREFIX_PATH": "", "COLUMNS": "200"}
    command = [sys.executable, "-c", start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_source_tree_tells_its_version_by_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version of a checkout is that of its package.xml, whatever is installed."""
    monkeypatch.setattr(metadata, "version", lambda _: "0.0.0.foreign")
    manifest = ElementTree.parse(ROOT / "package.xml")  # noqa: S314 (our own file)
    assert files.version() == manifest.findtext("version")


@pytest.mark.parametrize(
    "command",
    [
        "info --help",
        "doctor --machine desktop --json",
        "bench ingest --no-node --seconds 0.01 --json",
        "bench decoder --random-weights --repetitions 1 --threads 1 --json",
    ],
)
def test_verbs_that_need_no_files_run_without_them(code_alone: Path, command: str) -> None:
    """The code alone, not installed, runs every verb that reads no shipped checkpoint."""
    result = _evspec(code_alone, *command.split())
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", ["--version", "eval --simulated 1", "bench decoder"])
def test_what_needs_the_files_says_so_in_one_sentence(code_alone: Path, command: str) -> None:
    """Without the files beside the code, a verb that reads them names what is missing."""
    result = _evspec(code_alone, *command.split())
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("evspec: ")
    assert "install" in last


def test_missing_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folders that were looked in are told."""
    monkeypatch.setattr(files, "_SOURCE", tmp_path)
    monkeypatch.setenv("AMENT_PREFIX_PATH", "/somewhere")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(EvspecError, match="/somewhere/share/evspec_ros"):
        files.share_directory()
