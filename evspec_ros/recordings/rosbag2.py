"""rosbag2 recordings, a folder or one storage file, read without ROS."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from rosbags.interfaces import Connection
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from evspec_ros.errors import RecordingError
from evspec_ros.events import event_arrays, event_packets
from evspec_ros.events.decoders import PacketData
from evspec_ros.events.event_packets import EventPacket
from evspec_ros.recordings.bags import BagRecording, Reader, Wire, damage_told
from evspec_ros.recordings.compression import zstd
from evspec_ros.recordings.rosbag2_storage import ZSTD, Storage, storage_of
from evspec_ros.recordings.rosbag2_types import typestore

METADATA = "metadata.yaml"
REINDEX = "'ros2 bag reindex {}' writes it anew"
_STORAGE = re.compile(r"(?P<bag>.*?)(_(?P<part>\d+))?\.(mcap|db3)(\.zstd)?")


class Rosbag2Recording(BagRecording):
    """A bag of ROS 2; which topics are read, and on which clock, says BagRecording."""

    def _reader(self) -> Reader:
        return StorageReader(self.path)

    def _wire(self, reader: Reader) -> Wire:  # noqa: ARG002 - ROS 2's types are known
        return Wire(typestore().deserialize_cdr, _event_packet, event_arrays.read_cdr)


def _event_packet(data: PacketData, kind: str) -> EventPacket:  # noqa: ARG001 - all are laid out alike
    return event_packets.read_cdr(data)


class StorageReader:
    """The files of a bag, one after the other.

    What the files say counts: which storage they are, which topics and how many messages they hold. Of
    metadata.yaml only the names of the files are used, and where it was never written, as a recorder that was
    killed leaves the folder, the files in it are read all the same. remarks: what is not as it should be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.remarks: list[str] = []
        self._storages: list[tuple[Path, Storage]] = []
        self._stack = ExitStack()

    def open(self) -> None:
        """Open all files and read their indexes. Raises RecordingError where there is none, or a bad one."""
        self.remarks.clear()
        with ExitStack() as stack:
            for path in self._files():
                with damage_told(path):
                    storage, remark = storage_of(path, stack)
                    storage.open()
                stack.callback(storage.close)
                self._storages.append((path, storage))
                self.remarks += [remark] if remark else []
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close all files."""
        self._storages.clear()
        self._stack.close()

    @property
    def connections(self) -> list[Connection]:
        """All topics, by file and publisher."""
        return [one for _, storage in self._storages for one in storage.connections]

    @property
    def span(self) -> tuple[int, int]:
        """Log time of the first message, and just after the last."""
        spans = [storage.metadata for _, storage in self._storages]
        return min(one.start_time for one in spans), max(one.end_time for one in spans)

    def messages(
        self, connections: Collection[Connection], start: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """The messages of some connections, by log time within a file, from a log time on."""
        for path, storage in self._storages:
            own = [one for one in connections if one.owner is storage]
            with damage_told(path):
                for connection, log_ns, data in storage.messages(own, start) if own else ():
                    # CDR begins with a zero: this is a message compressed by itself
                    yield connection, log_ns, zstd.decompress(data) if data[:4] == ZSTD else data

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        try:
            metadata = read_metadata(self.path)
        except RecordingError as error:
            found = storage_files(self.path)
            if not found:
                raise
            self.remarks.append(f"{str(error).rstrip('.')}; the files beside it are read")
            return found
        if metadata.compression not in ("", "zstd"):
            raise RecordingError(
                f"The bag {self.path} is compressed with {metadata.compression!r}, and only zstd is read; "
                f"convert it with 'ros2 bag convert'."
            )
        named = [self.path / name for name in metadata.files]
        missing = [path.name for path in named if not path.is_file()]
        if not missing:
            return named
        there = [path for path in named if path.is_file()] or storage_files(self.path)
        if not there:
            raise RecordingError(
                f"The bag {self.path} lacks {', '.join(missing)}, the storage that its {METADATA} names; "
                f"copy the whole folder again."
            )
        self.remarks.append(
            f"{', '.join(missing)}, named in {METADATA}, is not there, nor is what it held; copy it again"
        )
        return there


def storage_files(folder: Path) -> list[Path]:
    """The storage files in a folder that belong to one bag, in order; none where they are of several bags."""
    parts: dict[int, Path] = {}
    bags: Counter[str] = Counter()
    for path in folder.iterdir():
        match = _STORAGE.fullmatch(path.name)
        if match and path.is_file():
            bags[match["bag"]] += 1
            parts[int(match["part"] or 0)] = path
    return [parts[part] for part in sorted(parts)] if len(bags) == 1 else []


@dataclass(frozen=True)
class Metadata:
    """What counts of a metadata.yaml: the names of the storage files, and what compressed them."""

    files: tuple[str, ...]
    compression: str


def read_metadata(folder: Path) -> Metadata:
    """That of a bag. Raises RecordingError where it is missing or broken."""
    path = folder / METADATA
    remedy = REINDEX.format(folder)
    if not path.is_file():
        raise RecordingError(f"The bag {folder} has no {METADATA}; {remedy}.")
    try:
        bag: Any = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        bag = bag["rosbag2_bagfile_information"]
        files = tuple(PurePath(name).name for name in bag["relative_file_paths"])
        mode = (bag.get("compression_mode") or "none").lower()
        compression = (bag.get("compression_format") or "") if mode != "none" else ""
    except (YAMLError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise RecordingError(f"The file {path} cannot be read ({_first_line(error)}); {remedy}.") from error
    if not files:
        raise RecordingError(f"The file {path} names no storage; {remedy}.")
    return Metadata(files, compression)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
