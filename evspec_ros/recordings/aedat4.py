"""iniVation's AEDAT 4.0: "#!AER-DAT4.0", a header in flatbuffers, then compressed packets of flatbuffers.

Written after iniVation's format description and dv-processing's schemas. The file is read packet by packet;
nothing in it is trusted, each read is checked against the bytes there are.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree as ET

import cv2
import lz4.frame
import numpy as np
from backports import zstd

from evspec_ros.errors import EvspecError, FrameError, RecordingError
from evspec_ros.events.bounds import Outside, inside_sensor
from evspec_ros.events.streams import StreamCounts
from evspec_ros.events.types import Events
from evspec_ros.frames.encodings import BGR_TO_RGB, eight_bits
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.recording import Piece, Recording, Topic
from evspec_ros.recordings.times import nanoseconds

MAGIC = b"#!AER-DAT4.0\r\n"
EVENT = np.dtype(
    {
        "names": ["t", "x", "y", "p"],
        "formats": ["<i8", "<u2", "<u2", "u1"],
        "offsets": [0, 8, 10, 12],
        "itemsize": 16,
    }
)
DECOMPRESSORS: dict[int, Callable[[bytes], bytes]] = {
    0: bytes,
    1: lz4.frame.decompress,
    2: lz4.frame.decompress,
    3: zstd.decompress,
    4: zstd.decompress,
}
# What every packet has at a fixed distance behind its start, by which the next one is found after damage: the
# mark of compressed data; without compression, the name of a buffer of events.
MARKS: dict[int, tuple[bytes, int]] = {
    0: (b"EVTS", 16),
    1: (b"\x04\x22\x4d\x18", 8),
    2: (b"\x04\x22\x4d\x18", 8),
    3: (b"\x28\xb5\x2f\xfd", 8),
    4: (b"\x28\xb5\x2f\xfd", 8),
}
DEPTHS = ("u1", "i1", "<u2", "<i2", "<i4", "<f4", "<f8", "<f2")  # of a frame, by OpenCV's type code modulo 8
READ_DEPTHS = frozenset({"u1", "<u2", "<f4", "<f8"})
DAMAGE = (struct.error, ValueError, RuntimeError, EOFError, MemoryError, zstd.ZstdError, ET.ParseError)


@dataclass(frozen=True)
class Aedat4Stream:
    """One stream as the header announces it; width and height in pixels, 0 where it has no size."""

    name: str
    type: str
    width: int
    height: int


@dataclass(frozen=True)
class Packet:
    """Bytes from start to stop, with the stream that they belong to; None where they are no whole packet."""

    start: int
    number: int
    stream: Aedat4Stream | None
    stop: int


class Aedat4Recording(Recording):
    """An .aedat4 file: the first event stream and the first frame stream; IMU and triggers are counted.

    All streams share one clock, microseconds since 1970, so sensor time is the recording's time. Events come
    as uint16 coordinates; grey frames become RGB by repeating, 16 bits become 8 as in a mono16 image, and so
    do floating values from 0 to 1. Events outside the sensor and packets that cannot be read are left out and
    counted, and reading goes on behind them. Raises RecordingError where the header is damaged, and where
    nothing at all can be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self.path.open("rb") as file:
            try:
                compression, table_position, self._streams = _read_header(file)
            except DAMAGE as error:
                raise RecordingError(
                    f"The header of {path} is damaged or cut short at byte {file.tell()} ({error}); copy it "
                    f"again."
                ) from error
            self._packets_start = file.tell()
            size = file.seek(0, 2)
        self._decompress, self._mark = DECOMPRESSORS[compression], MARKS[compression]
        self._packets_stop, self._cut = size, ""
        if table_position is not None and self._packets_start <= table_position <= size:
            self._packets_stop = table_position
        elif table_position is not None:
            self._cut = f"The packets should end at byte {table_position} and the file ends at byte {size}."
        self._read = {_first(self._streams, "EVTS"), _first(self._streams, "FRME")}

    @property
    def topics(self) -> tuple[Topic, ...]:
        """The streams by the names of their outputs; the first use reads the whole file to count samples."""
        return tuple(
            Topic(stream.name, stream.type, self.survey.samples[stream.name], self._left_out(number, stream))
            for number, stream in sorted(self._streams.items())
        )

    def _left_out(self, number: int, stream: Aedat4Stream) -> str:
        if stream.type not in {"EVTS", "FRME", "TRIG"}:
            return "it holds neither events nor frames"
        return "" if stream.type == "TRIG" or number in self._read else "another stream of its kind is read"

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:
        """One piece per packet."""
        skipped = {kind for kind, wanted in (("EVTS", events), ("FRME", frames)) if not wanted}
        first_problem, good = "", 0
        name = next((stream.name for _, stream in sorted(self._streams.items())), "")
        with self.path.open("rb") as file:
            position = self._packets_start
            while position < self._packets_stop:
                packet = self._packet(file, position)
                if packet.stream is not None and packet.stream.type in skipped:
                    position = packet.stop
                    continue
                piece = self._piece(file, packet)
                yield piece if piece.topic else replace(piece, topic=name)
                good += not piece.read.refused
                first_problem = first_problem or piece.read.problem
                lost = packet.stream is None or (
                    piece.read.refused and not self._may_begin(file, packet.stop)
                )
                position = self._next_packet(file, position + 1) if lost else packet.stop
        if not first_problem and self._cut:
            first_problem = self._cut
            yield Piece(name, 0, read=StreamCounts(refused=1, problem=self._cut))
        if first_problem and not good:
            raise RecordingError(f"Nothing in {self.path} can be read: {first_problem}")

    def _packet(self, file: BinaryIO, position: int) -> Packet:
        """The packet that begins at a byte, as far as its own head and the file's length tell."""
        file.seek(position)
        head = file.read(8) if position + 8 <= self._packets_stop else b""
        number, size = struct.unpack("<ii", head) if head else (-1, -1)
        stop = position + 8 + size
        whole = size > 0 and stop <= self._packets_stop
        return Packet(position, number, self._streams.get(number) if whole else None, stop)

    def _may_begin(self, file: BinaryIO, position: int) -> bool:
        return position == self._packets_stop or self._packet(file, position).stream is not None

    def _next_packet(self, file: BinaryIO, start: int) -> int:
        """Where the next packet that can be read begins after damage; the end of all where there is none."""
        mark, before = self._mark
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = start + before - 1
            while (at := content.find(mark, at + 1, self._packets_stop)) >= 0:
                packet = self._packet(file, at - before)
                if packet.stream is not None and not self._piece(file, packet).read.refused:
                    return packet.start
        return self._packets_stop

    def _piece(self, file: BinaryIO, packet: Packet) -> Piece:
        """What a packet holds; one that cannot be read is told of."""
        if packet.stream is None:
            reason = "no packet begins there, or it is cut short"
            return Piece("", 0, read=StreamCounts(1, refused=1, problem=_problem(packet, reason)))
        try:
            file.seek(packet.start + 8)
            return self._content(packet, self._decompress(file.read(packet.stop - packet.start - 8)))
        except (EvspecError, *DAMAGE) as error:
            read = StreamCounts(1, refused=1, problem=_problem(packet, str(error)))
            return Piece(packet.stream.name, 0, read=read)

    def _content(self, packet: Packet, data: bytes) -> Piece:
        stream, table = packet.stream, Table.root(data)
        assert stream is not None
        if packet.number in self._read and stream.type == "EVTS":
            events, outside = _events(table, stream, self.path)
            return Piece(stream.name, len(events) + outside.count, events=events, outside=outside)
        if packet.number in self._read and stream.type == "FRME":
            return Piece(stream.name, 1, frame=_frame(table, self.path))
        samples = 1 if stream.type == "FRME" else table.vector(0)[1]
        return Piece(stream.name, samples, triggers=samples if stream.type == "TRIG" else 0)


def _problem(packet: Packet, reason: str) -> str:
    return f"The packet at byte {packet.start} is left out ({reason.rstrip('.')}); copy the file again."


def _first(streams: dict[int, Aedat4Stream], kind: str) -> int | None:
    return min((number for number, stream in streams.items() if stream.type == kind), default=None)


def _read_header(file: BinaryIO) -> tuple[int, int | None, dict[int, Aedat4Stream]]:
    """Compression, end of the packets (None: the file's end) and streams; leaves the file after them."""
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("no AEDAT 4.0 file")
    prefix = file.read(4)
    (size,) = struct.unpack("<I", prefix)
    header = Table.root(prefix + file.read(size))
    compression = header.scalar(0, "<i", 0)
    if compression not in DECOMPRESSORS:
        raise ValueError(f"unknown compression {compression}")
    table_position = header.scalar(1, "<q", -1)
    start, length = header.vector(2)
    streams = _streams(header.data[start : start + length].decode())
    return compression, None if table_position < 0 else table_position, streams


def _streams(xml: str) -> dict[int, Aedat4Stream]:
    """The streams by number, from the header's tree of nodes and attributes."""
    root = ET.fromstring(xml)  # noqa: S314 - expat bounds the growth of entities and loads nothing
    streams = {}
    for node in root.findall("./node[@name='outInfo']/node"):
        fields = {attribute.get("key"): attribute.text or "" for attribute in node.findall("attr")}
        sizes = {
            attribute.get("key"): attribute.text or ""
            for attribute in node.findall("node[@name='info']/attr")
        }
        number = int(node.get("name", ""))
        streams[number] = Aedat4Stream(
            name=fields.get("originalOutputName") or str(number),
            type=fields.get("typeIdentifier", ""),
            width=int(sizes.get("sizeX", 0)),
            height=int(sizes.get("sizeY", 0)),
        )
    return streams


@dataclass(frozen=True)
class Table:
    """A flatbuffers table: `data` is the whole buffer, `position` where the table begins."""

    data: bytes
    position: int

    @staticmethod
    def root(data: bytes) -> Table:
        """The root table of a buffer that begins with its own size."""
        size, root = struct.unpack_from("<II", data)
        if size + 4 > len(data):
            raise EOFError(f"{size + 4} bytes expected, {len(data)} found")
        return Table(data, 4 + root)

    def _field(self, index: int) -> int | None:
        """Where field `index` lies, None if it has its default value."""
        (distance,) = struct.unpack_from("<i", self.data, self.position)
        vtable = self.position - distance
        if vtable < 0:
            raise ValueError("a table points before the buffer")
        (vtable_size,) = struct.unpack_from("<H", self.data, vtable)
        entry = 4 + 2 * index
        if entry + 2 > vtable_size:
            return None
        (offset,) = struct.unpack_from("<H", self.data, vtable + entry)
        return self.position + offset if offset else None

    def scalar(self, index: int, layout: str, default: int) -> int:
        """An integer field."""
        where = self._field(index)
        return default if where is None else int(struct.unpack_from(layout, self.data, where)[0])

    def vector(self, index: int) -> tuple[int, int]:
        """Where the elements of a vector field begin, and how many there are."""
        where = self._field(index)
        if where is None:
            return 0, 0
        start = where + struct.unpack_from("<I", self.data, where)[0]
        return start + 4, struct.unpack_from("<I", self.data, start)[0]


def _events(packet: Table, stream: Aedat4Stream, path: Path) -> tuple[Events, Outside]:
    start, count = packet.vector(0)
    raw = np.frombuffer(packet.data, EVENT, count, start)
    times = nanoseconds(raw["t"], "us", path)
    return inside_sensor(times, raw["x"], raw["y"], raw["p"], stream.width, stream.height)


def _frame(frame: Table, path: Path) -> Frame:
    code, width, height = frame.scalar(5, "<b", 0), frame.scalar(6, "<h", 0), frame.scalar(7, "<h", 0)
    start, count = frame.vector(10)
    depth, channels = np.dtype(DEPTHS[code & 7]), (code >> 3) + 1
    if DEPTHS[code & 7] not in READ_DEPTHS or channels not in BGR_TO_RGB:
        raise FrameError(f"frames of {channels} channels of {depth.name} are not supported")
    if min(width, height) < 1 or count != width * height * channels * depth.itemsize:
        raise ValueError(f"a frame of {width}x{height} pixels, format {code}, with {count} bytes")
    values = np.frombuffer(frame.data, depth, count // depth.itemsize, start).reshape(height, width, channels)
    if depth.kind == "f":
        values = np.nan_to_num(values.clip(0, 1) * 65535, nan=0.0).round().astype(np.uint16)
    pixels = values if values.dtype == np.uint8 else eight_bits(np.ascontiguousarray(values, np.uint16))
    stamp_ns = int(nanoseconds(np.array([frame.scalar(0, "<q", 0)]), "us", path)[0])
    image = cv2.cvtColor(pixels.reshape(height, width, channels), BGR_TO_RGB[channels])
    return Frame(stamp_ns, np.asarray(image, np.uint8))
