"""The storage files of rosbag2 as they are left behind: also by recorders that were killed."""

from __future__ import annotations

import io
import shutil
import struct
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Protocol
from urllib.parse import quote

import apsw
import lz4.frame
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)
from rosbags.rosbag2.metadata import ReaderMetadata
from rosbags.rosbag2.storage_mcap import McapReader

from evspec_ros.errors import RecordingError
from evspec_ros.recordings.compression import zstd

MCAP = b"\x89MCAP0\r\n"
SQLITE = b"SQLite format 3\x00"
ZSTD = b"\x28\xb5\x2f\xfd"
CUT = "{} was never closed, or is cut short: what is there is read; 'mcap recover {} -o whole.mcap' mends it"

_UNDEFINED = MessageDefinition(MessageDefinitionFormat.NONE, "")
_DEFINITIONS = {
    "ros2msg": MessageDefinitionFormat.MSG,
    "ros2idl": MessageDefinitionFormat.IDL,
    "": MessageDefinitionFormat.NONE,
    "unknown": MessageDefinitionFormat.NONE,
}
_LONGEST_PROFILE = 1000
_HEADER, _CHUNK, _DATA_END = 0x01, 0x06, 0x0F
_FOOTER = struct.pack("<BQQQI", 0x02, 20, 0, 0, 0) + MCAP  # says that there is no summary to read
_PARTIAL: dict[bytes, Callable[[bytes], bytes]] = {  # as much as is there, where the end is missing
    b"": bytes,
    b"zstd": lambda data: zstd.ZstdDecompressor().decompress(data),
    b"lz4": lambda data: bytes(lz4.frame.LZ4FrameDecompressor().decompress(data)),
}


class Storage(Protocol):
    """What rosbags' readers of one storage file have in common."""

    connections: list[Connection]
    metadata: ReaderMetadata

    def open(self) -> None:
        """Open the file and read its index."""

    def close(self) -> None:
        """Close the file."""

    def messages(
        self, connections: Collection[Connection], start: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """The messages of some connections that were logged from `start` on."""


def storage_of(path: Path, stack: ExitStack) -> tuple[Storage, str]:
    """What reads a file, which says itself what it is, and a remark on its state, "" if it is whole.

    `stack` holds what is to be cleaned up when the file is closed. Raises RecordingError for other files.
    """
    with path.open("rb") as file:
        start = file.read(len(SQLITE))
        if start.startswith(MCAP):
            remark = "" if _is_closed(file) else CUT.format(path.name, path)
            return Mcap(path), remark
    if start.startswith(ZSTD):
        return storage_of(_unpacked(path, stack), stack)
    if start == SQLITE:
        return Sqlite(path), ""
    raise RecordingError(
        f"The file {path} is neither MCAP nor SQLite, the storages of rosbag2 that are read; copy it again."
    )


def _unpacked(path: Path, stack: ExitStack) -> Path:
    """A file that was compressed as a whole, as `ros2 bag record --compression-mode file` does."""
    folder = stack.enter_context(TemporaryDirectory(prefix="evspec-bag-"))
    unpacked = Path(folder, path.stem)
    with zstd.open(path, "rb") as packed, unpacked.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return unpacked


class Sqlite:
    """A .db3 together with the write-ahead log beside it, which holds what was recorded last.

    rosbags reads the .db3 alone. Neither file is changed and nothing is written beside them: SQLite would
    need shared memory there to use the log together with other processes, so both are read without locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections: list[Connection] = []
        self.metadata = ReaderMetadata(0, 2**63 - 1, 0, 0, None, None, None, None)

    def open(self) -> None:
        """Open the file and read its topics. Raises apsw.Error."""
        log = Path(f"{self.path}-wal")
        state = "mode=ro" if log.is_file() and log.stat().st_size else "immutable=1"
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        self._database = apsw.Connection(f"file:{quote(str(self.path))}?{state}", flags, "unix-none")
        try:
            self._database.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._database.pragma("locking_mode", "EXCLUSIVE")
            self._read_topics()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def messages(
        self, connections: Collection[Connection], start: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """By log time."""
        by_id = {one.id: one for one in connections}
        rows = self._database.execute(
            "SELECT topic_id, timestamp, data FROM messages "
            f"WHERE topic_id IN ({','.join('?' * len(by_id))}) AND timestamp >= ? ORDER BY timestamp",
            (*by_id, -(2**63) if start is None else start),
        )
        for topic, log_ns, data in rows:
            yield by_id[topic], log_ns, data

    def _read_topics(self) -> None:
        definitions = {}
        if self._database.table_exists("main", "message_definitions"):  # since Iron
            definitions = {
                kind: MessageDefinition(_DEFINITIONS[encoding], text)
                for kind, encoding, text in self._database.execute(
                    "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
                )
            }
        self.connections = [
            Connection(
                number,
                name,
                kind,
                definitions.get(kind, _UNDEFINED),
                "",
                count,
                ConnectionExtRosbag2(form, []),
                self,
            )
            for number, name, kind, form, count in self._database.execute(
                "SELECT topics.id, name, type, serialization_format, count(messages.id) FROM topics "
                "LEFT JOIN messages ON topics.id = messages.topic_id GROUP BY topics.id ORDER BY topics.id"
            )
        ]
        ((first_ns, last_ns),) = self._database.execute("SELECT min(timestamp), max(timestamp) FROM messages")
        if first_ns is not None:
            self.metadata = self.metadata._replace(start_time=first_ns, end_time=last_ns + 1)


class Mcap(McapReader):
    """An MCAP file, also one whose end is missing, as a recorder leaves it that was killed."""

    def _open(self) -> None:
        assert self.bio
        if not _is_closed(self.bio):
            self.bio = _closed(self.bio)
        self.bio.seek(len(MCAP))
        opcode, _, size = struct.unpack("<BQI", self.bio.read(13))
        profile = self.bio.read(min(size, _LONGEST_PROFILE)).decode(errors="replace")
        if opcode == _HEADER and profile != "ros2":
            raise RecordingError(
                f"The MCAP file {self.path} has the profile {profile!r}, and only those of ROS 2 (ros2) are "
                f"read; convert it to rosbag2."
            )
        self.bio.seek(0)
        try:
            super()._open()
        except KeyError as error:  # rosbags looks the languages up in which messages are defined
            raise RecordingError(
                f"The MCAP file {self.path} has topics defined in {error}, and only those of ROS 2 (ros2msg, "
                f"ros2idl) are read; leave them out with 'mcap filter'."
            ) from error

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Generator[tuple[Connection, int, bytes], None, None]:
        """By log time; without an index in the order of the file, as players do."""
        if self.chunks:
            return super().messages(connections, start, stop)
        return self.messages_scan(connections, start, stop)


def _is_closed(file: BinaryIO) -> bool:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - len(MCAP)))
    return file.read() == MCAP and size > len(MCAP)


def _closed(file: BinaryIO) -> BinaryIO:
    """The file as if its recorder had closed it after the last message that is there as a whole."""
    end, rest = len(MCAP), b""
    for opcode, start, size in _records(file, end):
        if opcode in (0, _DATA_END):  # no record: a file system may fill up with zeros after a crash
            break
        content = start + size
        if content > file.seek(0, io.SEEK_END):
            rest = _whole_records(file, start, size) if opcode == _CHUNK else b""
            break
        end = content
    return io.BufferedReader(_Joined(file, end, rest + _FOOTER))


def _records(file: BinaryIO, at: int) -> Iterator[tuple[int, int, int]]:
    """Opcode, where the content starts and its size, of records one after the other."""
    while True:
        file.seek(at)
        head = file.read(9)
        if len(head) < 9:
            return
        opcode, size = struct.unpack("<BQ", head)
        yield opcode, at + 9, size
        at += 9 + size


def _whole_records(file: BinaryIO, start: int, size: int) -> bytes:
    """What can be read of a chunk whose end is missing."""
    file.seek(start)
    chunk = file.read()[:size]
    try:
        (name_size,) = struct.unpack_from("<I", chunk, 28)  # after two times, the size and the checksum
        content = _PARTIAL[chunk[32 : 32 + name_size]](chunk[40 + name_size :])
    except (struct.error, KeyError, RuntimeError, zstd.ZstdError):
        return b""
    end = 0
    for _, at, length in _records(io.BytesIO(content), 0):
        if at + length > len(content):
            break
        end = at + length
    return content[:end]


class _Joined(io.RawIOBase):
    """The first `end` bytes of a file, and `rest` after them."""

    def __init__(self, file: BinaryIO, end: int, rest: bytes) -> None:
        self._file, self._end, self._rest = file, end, rest
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place and return it."""
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end + len(self._rest)}
        self._at = origins[whence] + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what io.BufferedReader gives
        """Fill a buffer from the current place on; the number of bytes."""
        if self._at < self._end:
            self._file.seek(self._at)
            data = self._file.read(min(len(buffer), self._end - self._at))
        else:
            first = self._at - self._end
            data = self._rest[first : first + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file, too."""
        self._file.close()
        super().close()
