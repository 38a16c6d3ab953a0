"""Where the files lie that belong to the code and are no code: checkpoints, configuration, the manifest."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from evspec_ros.errors import EvspecError

_INSTALLED_AS = "evspec_ros"
_SOURCE = Path(__file__).resolve().parents[1]  # of a checkout; of an installed package, where packages lie


def share_directory() -> Path:
    """The folder that holds `models/` and `config/`: the source tree, or share/evspec_ros once installed.

    Raises EvspecError where neither is found.
    """
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    installed = [Path(prefix) / "share" / _INSTALLED_AS for prefix in prefixes if prefix]
    for directory in [_SOURCE, *installed]:
        if (directory / "config" / "evspec.yaml").is_file():
            return directory
    raise EvspecError(
        "The files installed beside evspec_ros (models, config) are missing: looked in "
        + ", ".join(str(directory) for directory in installed)
        + "; install the package again with pip or colcon."
    )


def state_directory() -> Path:
    """The user's folder for what the package learns, as freedesktop.org has it; it may not exist
    yet. Raises EvspecError for a user without a home.
    """
    named = os.environ.get("XDG_STATE_HOME")
    try:
        home = Path(named) if named else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise EvspecError(
            "There is no home directory to keep what is learnt in; name a directory, or set XDG_STATE_HOME."
        ) from error
    return home / _INSTALLED_AS


def version() -> str:
    """The package's version: of a source tree by its manifest, else as it was installed.

    Raises EvspecError for a copy of the code without either.
    """
    manifest = _SOURCE / "package.xml"
    if manifest.is_file():
        return ElementTree.parse(manifest).findtext("version", "")  # noqa: S314 (our own file)
    try:
        return metadata.version(_INSTALLED_AS)
    except metadata.PackageNotFoundError as error:
        raise EvspecError(
            "This copy of evspec_ros was not installed and lacks package.xml, which tells its version; "
            "install it, or use a whole checkout."
        ) from error
