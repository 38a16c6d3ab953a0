"""Recordings of ROS 1: a .bag file, read without ROS by the message definitions that it carries."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from rosbags.interfaces import Connection
from rosbags.rosbag1 import Reader as Rosbag1Reader
from rosbags.rosbag1 import ReaderError
from rosbags.rosbag1.reader import Chunk, ChunkInfo, Header, IndexData, RecordType, read_uint32
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from evspec_ros.errors import EventDecodingError, RecordingError
from evspec_ros.events.decoders import PacketData
from evspec_ros.events.event_arrays import read_ros1
from evspec_ros.events.event_packets import EventPacket
from evspec_ros.recordings.bags import (
    EVENT_TYPES,
    FRAME_TYPES,
    UNREADABLE,
    BagRecording,
    Reader,
    Wire,
    reason_of,
    stamp_ns,
)

UNINDEXED = (
    "{name} was never closed, or is cut short: what is there is read; 'rosbag reindex {path}' mends it"
)


class Rosbag1Recording(BagRecording):
    """A bag of ROS 1; which topics are read, and on which clock, says BagRecording.

    Types have the names of ROS 2: `sensor_msgs/msg/Image`, not `sensor_msgs/Image`.
    """

    def _reader(self) -> Reader:
        return BagReader(self.path)

    def _wire(self, reader: Reader) -> Wire:
        store = self._types(reader)
        return Wire(store.deserialize_ros1, partial(_event_packet, store), read_ros1)

    def _types(self, reader: Reader) -> Typestore:
        """The bag's own definitions of the messages that can be read."""
        store = get_typestore(Stores.EMPTY)
        for connection in reader.connections:
            if connection.msgtype not in EVENT_TYPES | FRAME_TYPES:
                continue
            try:
                store.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
            except (TypesysError, LookupError, ValueError) as error:
                raise RecordingError(
                    f"The bag {self.path} defines the message type {connection.msgtype} of "
                    f"{connection.topic} in a way that cannot be read; record or convert it again."
                ) from error
        return store


def _event_packet(store: Typestore, data: PacketData, kind: str) -> EventPacket:
    """An EventPacket as ROS 1 serialises it; raises EventDecodingError for what is none."""
    try:
        message: Any = store.deserialize_ros1(bytes(data), kind)
    except UNREADABLE as error:
        raise EventDecodingError(reason_of(error)) from error
    return EventPacket(
        stamp_ns(message), message.header.frame_id, message.height, message.width, message.seq,
        message.time_base, message.encoding, message.is_bigendian, message.events,
    )  # fmt: skip


class BagReader(Rosbag1Reader):
    """A .bag file, also one without its index, as a recorder leaves it that was killed (.bag.active).

    remarks: what is not as it should be.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = path
        self.remarks: tuple[str, ...] = ()

    @property
    def span(self) -> tuple[int, int]:
        """Log time of the first message, and just after the last."""
        return self.start_time, self.end_time

    def open(self) -> None:
        """Open the file and read its index, or make one. Raises rosbags' ReaderError."""
        with self._file.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            file.readline()
            index_at = Header.read(file, RecordType.BAGHEADER).get_uint64("index_pos")
            records_at = read_uint32(file) + file.tell()
        if 0 < index_at < size:
            super().open()
            return
        self.remarks = (UNINDEXED.format(name=self._file.name, path=self._file),)
        self.bio = self._file.open("rb")
        try:
            self._make_index(records_at, size)
        except BaseException:
            self.close()
            raise

    def _make_index(self, at: int, size: int) -> None:
        """What open() reads from the index, from the chunks themselves."""
        assert self.bio
        connections: dict[int, Connection] = {}
        indexes: dict[int, list[IndexData]] = defaultdict(list)
        for chunk_at, chunk in self._chunks_of(self.bio, at, size):
            self.bio.seek(chunk.datapos)
            try:
                content = chunk.decompressor(self.bio.read(chunk.datasize))
            except (ValueError, OSError, EOFError, RuntimeError):  # the last one, of which a part is missing
                break
            times = []
            for offset, header in _records(io.BytesIO(content)):
                number = header.get_uint32("conn")
                if header.get_uint8("op") == RecordType.CONNECTION:
                    connections[number] = self._connection(content, offset)
                else:
                    times.append(header.get_time("time"))
                    indexes[number].append(IndexData(times[-1], chunk_at, offset))
            self.chunks[chunk_at] = chunk
            if times:
                self.chunk_infos.append(ChunkInfo(chunk_at, min(times), max(times) + 1, {}))
        self.indexes = {number: sorted(indexes[number]) for number in connections}
        self.connections = [
            one._replace(msgcount=len(self.indexes[number])) for number, one in connections.items()
        ]

    def _chunks_of(self, file: BinaryIO, at: int, size: int) -> Iterator[tuple[int, Chunk]]:
        """The chunks with their places; the last one may be shorter than it says."""
        while at < size:
            file.seek(at)
            try:
                if Header.read(file).get_uint8("op") == RecordType.CHUNK:
                    file.seek(at)
                    chunk = self.read_chunk()
                    left = size - chunk.datapos
                    # a chunk under way says that it holds nothing
                    whole = 0 < chunk.datasize <= left
                    yield at, chunk if whole else chunk._replace(datasize=left)
                    at = chunk.datapos + chunk.datasize if whole else size
                else:
                    at = read_uint32(file) + file.tell()
            except ReaderError:  # cut within a header
                return

    def _connection(self, content: bytes, offset: int) -> Connection:
        """A record of a chunk as rosbags reads it from a file."""
        file, self.bio = self.bio, io.BytesIO(content[offset:])
        try:
            return self.read_connection()
        finally:
            self.bio = file


def _records(chunk: BinaryIO) -> Iterator[tuple[int, Header]]:
    """The records of a chunk that are there as a whole: place and header."""
    end = len(chunk.read())
    at = 0
    while at < end:
        chunk.seek(at)
        try:
            header = Header.read(chunk)
            next_at = read_uint32(chunk) + chunk.tell()
        except ReaderError:
            return
        if next_at > end or header.get_uint8("op") not in (RecordType.CONNECTION, RecordType.MSGDATA):
            return
        yield at, header
        at = next_at
