"""Shared memory that Fast DDS leaves behind where a process is killed: 70 MB with config/fastdds.xml."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 (where Linux keeps shared memory)
CLEAN = "`fastdds shm clean` removes them"
_LOCK = re.compile(r"fast(?:rtps|dds)_[0-9a-f]{16}_el")


def stale_segments(folder: Path = FOLDER) -> list[Path]:
    """The segments whose owner is gone: it holds an exclusive lock on the file beside its segment while it
    lives, which the system takes back from a process that is killed.
    """
    if not folder.is_dir():
        return []
    locks = (path for path in sorted(folder.iterdir()) if _LOCK.fullmatch(path.name))
    return [segment for lock in locks if not _held(lock) for segment in _existing(lock)]


def report(segments: list[Path]) -> str:
    """Name segments and what to do about them in one sentence, "" for none."""
    if not segments:
        return ""
    size = sum(path.stat().st_size for path in segments if path.exists())
    names = ", ".join(map(str, segments[:3])) + (", ..." if len(segments) > 3 else "")
    return (
        f"Processes that were killed left {len(segments)} segments of shared memory of {size / 1e6:.0f} MB "
        f"({names}): {CLEAN}."
    )


def _existing(lock: Path) -> Iterator[Path]:
    segment = lock.with_name(lock.name.removesuffix("_el"))
    if segment.exists():
        yield segment


def _held(lock: Path) -> bool:
    """Whether somebody holds it; also where that cannot be told, as it is another user's or gone."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
