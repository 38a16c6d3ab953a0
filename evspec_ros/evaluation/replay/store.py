"""What a run leaves in its folder: its plan, a line for each window, a line for each finished recording."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evspec_ros.errors import EvspecError

PLAN, FINISHED, WINDOWS = "plan.json", "recordings.jsonl", "windows"
SUMMARY, REPORT_HTML, REPORT_MARKDOWN = "summary.json", "report.html", "report.md"
_BLOCK = 1 << 20

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RecordingId:
    """A recording by its path and its content; size: bytes; hash: MD5 of its files, in their names' order."""

    path: str
    hash: str
    size: int

    @classmethod
    def of(cls, path: Path) -> RecordingId:
        """That of a file or a folder; one that is not there has no bytes."""
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        digest, size = hashlib.md5(usedforsecurity=False), 0
        with suppress(OSError):  # opening the recording says why
            for file in files:
                with file.open("rb") as opened:
                    while block := opened.read(_BLOCK):
                        digest.update(block)
                        size += len(block)
        return cls(str(path), digest.hexdigest(), size)

    @property
    def key(self) -> str:
        """What its file of windows is called."""
        return f"{Path(self.path).stem}-{self.hash[:12]}"


@dataclass(frozen=True)
class Finished:
    """What became of one recording.

    windows: described; problem: why it, or the rest of it, was not evaluated, "" where all went well;
    remarks: what is not as it should be, a sentence each; taught: the checkpoints know such scenes; cpu_s,
    wall_s, peak_mb: of the process while it described; live: what a run through the node says besides.
    """

    path: str
    hash: str
    size: int
    windows: int
    duration_s: float
    problem: str = ""
    remarks: tuple[str, ...] = ()
    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_mb: float = 0.0
    live: Row = field(default_factory=dict)


class RunFolder:
    """The folder of a run, which goes on where it was interrupted."""

    def __init__(self, folder: Path, plan: Row) -> None:
        """Raises EvspecError where the folder holds a run of another plan, or cannot be written."""
        self.path = folder
        try:
            (folder / WINDOWS).mkdir(parents=True, exist_ok=True)
            self._take_up(dict(plan))
        except OSError as error:
            raise EvspecError(f"The run cannot be kept in {folder} ({error.strerror}).") from error

    @classmethod
    def opened(cls, folder: Path) -> RunFolder:
        """One that is there; raises EvspecError where none is."""
        try:
            plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EvspecError(
                f"The folder {folder} holds no run of `evspec eval`: it has no {PLAN} that can be read."
            ) from error
        return cls(folder, plan)

    def _take_up(self, plan: dict[str, Any]) -> None:
        path = self.path / PLAN
        if not path.exists():
            path.write_text(json.dumps(plan, indent=1), encoding="utf-8")
        self.plan: Row = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in {*self.plan, *plan} if self.plan.get(name) != plan.get(name)]
        if other:
            told = ", ".join(
                f"{name} {self.plan.get(name)!r} and not {plan.get(name)!r}" for name in sorted(other)
            )
            raise EvspecError(
                f"The folder {self.path} holds a run with {told}: choose another --out, or the same options."
            )

    def finished(self) -> dict[str, Finished]:
        """The recordings that are done, by key."""
        found = {}
        for line in _lines(self.path / FINISHED):
            one = Finished(**{**line, "remarks": tuple(line["remarks"])})
            found[RecordingId(one.path, one.hash, one.size).key] = one
        return found

    def finish(self, one: Finished) -> None:
        """Note that a recording is done."""
        _append(self.path / FINISHED, asdict(one))

    def rows(self, key: str) -> list[Row]:
        """The lines of one recording's windows, in their order, each once."""
        lines = _lines(self.path / WINDOWS / f"{key}.jsonl")
        once = {(row["stamp_ns"], row["question"]): row for row in lines}
        return [once[name] for name in sorted(once)]

    def append(self, key: str, rows: Sequence[Row]) -> None:
        """Keep what was said of one window."""
        for row in rows:
            _append(self.path / WINDOWS / f"{key}.jsonl", row)

    def all_rows(self) -> list[Row]:
        """The lines of all recordings that are done."""
        return [row for key in self.finished() for row in self.rows(key)]


def _append(path: Path, line: Row) -> None:
    with path.open("a+b") as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            if file.read(1) != b"\n":  # what a killed run left unfinished
                file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Those that were written as a whole."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            yield json.loads(line)
