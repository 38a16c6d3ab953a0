"""Where the files lie that are installed beside the code: checkpoints, configuration, launch files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from evspec_ros.errors import RosError


def share_directory() -> Path:
    """The folder that holds `models/` and `config/`: the source tree, or share/evspec_ros once installed.

    Raises RosError where neither is found.
    """
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    installed = [Path(prefix) / "share" / "evspec_ros" for prefix in prefixes if prefix]
    for directory in [Path(__file__).resolve().parents[2], *installed]:
        if (directory / "config" / "evspec.yaml").is_file():
            return directory
    raise RosError(
        "The files installed beside evspec_ros (models, config) are missing: looked in "
        + ", ".join(str(directory) for directory in installed)
        + "; install the package again with pip or colcon."
    )
