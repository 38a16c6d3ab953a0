"""Files of a run directory: written whole or not at all, and what a run is about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from evspec_ros.errors import TrainingError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it takes the place of `path` when all is written.

    Raises TrainingError where the disk is full or the place cannot be written; `path` is then as it was.
    """
    unfinished = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.chmod(0o644)
        unfinished.replace(path)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch's and safetensors' writers have their own
        unfinished.unlink(missing_ok=True)
        raise TrainingError(
            f"{path} cannot be written ({error}); free space or choose another directory, then go on with "
            "the same command."
        ) from error


def claim(path: Path, about: Mapping[str, Any]) -> None:
    """Write into a new directory what it is about; raises TrainingError where it was begun with something
    else.
    """
    if not path.exists():
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    found = read_claim(path)
    if found != about:
        names = sorted(name for name in {*found, *about} if found.get(name) != about.get(name))
        raise TrainingError(
            f"{path.parent} was begun with another plan or other models ({', '.join(names)} differ); remove "
            "it or give another directory."
        )


def read_claim(path: Path) -> dict[str, Any]:
    """What `claim` wrote; raises TrainingError where it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TrainingError(f"{path.parent} has no {path.name}; check the path.") from error
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} is damaged; remove its directory or give another one.") from error
    if not isinstance(found, dict):
        raise TrainingError(f"{path} is damaged; remove its directory or give another one.")
    return found
