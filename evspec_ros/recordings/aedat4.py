"""iniVation's AEDAT 4.0: "#!AER-DAT4.0", a header in flatbuffers, then compressed packets of flatbuffers.

Written after iniVation's format description and dv-processing's schemas. The file is read packet by packet;
nothing in it is trusted, each read is checked against the bytes there are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn
from xml.etree import ElementTree as ET

import cv2
import lz4.frame
import numpy as np
from backports import zstd
from numpy.typing import NDArray

from evspec_ros.errors import RecordingError
from evspec_ros.events.types import Events
from evspec_ros.frames.encodings import BGR_TO_RGB
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.recording import Piece, Recording, Topic

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
CHANNELS = {0: 1, 16: 3, 24: 4}  # by OpenCV's type codes of 8-bit images
DAMAGE = (struct.error, ValueError, RuntimeError, EOFError, MemoryError, zstd.ZstdError, ET.ParseError)


@dataclass(frozen=True)
class Stream:
    """One stream as the header announces it; width and height in pixels, 0 where it has no size."""

    name: str
    type: str
    width: int
    height: int


class Aedat4Recording(Recording):
    """An .aedat4 file: the first event stream and the first frame stream; IMU and triggers are counted.

    All streams share one clock, microseconds since 1970, so sensor time is the recording's time. Events come
    as uint16 coordinates; grey frames become RGB by repeating. Raises RecordingError where the file is
    damaged, with the byte at which that shows.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self.path.open("rb") as file:
            try:
                self._decompress, table_position, self._streams = _read_header(file)
            except DAMAGE as error:
                self._damaged(file, error)
            self._packets_start = file.tell()
            size = file.seek(0, 2)
        self._packets_stop = size if table_position is None else table_position
        if not self._packets_start <= self._packets_stop <= size:
            raise RecordingError(
                f"The recording {path} is cut short, its packets should end at byte {self._packets_stop} and "
                f"the file ends at byte {size}; copy it again."
            )
        self._read = {_first(self._streams, "EVTS"), _first(self._streams, "FRME")}

    @property
    def topics(self) -> tuple[Topic, ...]:
        """The streams by the names of their outputs; the first use reads the whole file to count samples."""
        return tuple(
            Topic(stream.name, stream.type, self.survey.samples[stream.name], self._left_out(number, stream))
            for number, stream in sorted(self._streams.items())
        )

    def _left_out(self, number: int, stream: Stream) -> str:
        if stream.type not in {"EVTS", "FRME", "TRIG"}:
            return "it holds neither events nor frames"
        return "" if stream.type == "TRIG" or number in self._read else "another stream of its kind is read"

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:
        """One piece per packet."""
        skipped = {kind for kind, wanted in (("EVTS", events), ("FRME", frames)) if not wanted}
        with self.path.open("rb") as file:
            file.seek(self._packets_start)
            while (position := file.tell()) < self._packets_stop:
                try:
                    number, size = struct.unpack("<ii", file.read(8))
                    stream = self._streams.get(number)
                    if size < 0 or stream is None or position + 8 + size > self._packets_stop:
                        raise ValueError(f"stream {number} of {size} bytes")
                    if stream.type in skipped:
                        file.seek(size, 1)
                        continue
                    piece = self._piece(number, stream, self._decompress(file.read(size)))
                except DAMAGE as error:
                    file.seek(position)
                    self._damaged(file, error)
                yield piece

    def _piece(self, number: int, stream: Stream, packet: bytes) -> Piece:
        table = Table.root(packet)
        if number in self._read and stream.type == "EVTS":
            events = _events(table, stream)
            return Piece(stream.name, len(events), events=events)
        if number in self._read and stream.type == "FRME":
            return Piece(stream.name, 1, frame=_frame(table))
        samples = 1 if stream.type == "FRME" else table.vector(0)[1]
        return Piece(stream.name, samples, triggers=samples if stream.type == "TRIG" else 0)

    def _damaged(self, file: BinaryIO, error: BaseException) -> NoReturn:
        raise RecordingError(
            f"The recording {self.path} is damaged or cut short at byte {file.tell()} ({error}); "
            f"copy it again."
        ) from error


def _first(streams: dict[int, Stream], kind: str) -> int | None:
    return min((number for number, stream in streams.items() if stream.type == kind), default=None)


def _read_header(file: BinaryIO) -> tuple[Callable[[bytes], bytes], int | None, dict[int, Stream]]:
    """Decompressor, end of the packets (None: the file's end) and streams; leaves the file after them."""
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
    return DECOMPRESSORS[compression], None if table_position < 0 else table_position, streams


def _streams(xml: str) -> dict[int, Stream]:
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
        streams[number] = Stream(
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


def _events(packet: Table, stream: Stream) -> Events:
    start, count = packet.vector(0)
    raw = np.frombuffer(packet.data, EVENT, count, start)
    x, y = raw["x"].copy(), raw["y"].copy()
    if count and (x.max() >= stream.width or y.max() >= stream.height):
        raise ValueError(f"an event at ({x.max()}, {y.max()}) of {stream.width}x{stream.height} pixels")
    return Events(raw["t"] * 1000, x, y, (raw["p"] != 0).astype(np.uint8), stream.width, stream.height)


def _frame(frame: Table) -> Frame:
    code, width, height = frame.scalar(5, "<b", 0), frame.scalar(6, "<h", 0), frame.scalar(7, "<h", 0)
    start, count = frame.vector(10)
    channels = CHANNELS.get(code)
    if channels is None or min(width, height) < 1 or count != width * height * channels:
        raise ValueError(f"a frame of {width}x{height} pixels, format {code}, with {count} bytes")
    pixels: NDArray[np.uint8] = np.frombuffer(frame.data, np.uint8, count, start)
    image = cv2.cvtColor(pixels.reshape(height, width, channels), BGR_TO_RGB[channels])
    return Frame(frame.scalar(0, "<q", 0) * 1000, np.asarray(image, np.uint8))
