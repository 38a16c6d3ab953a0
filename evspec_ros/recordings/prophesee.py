"""Prophesee's files: .raw, the camera's own stream (EVT 2, 2.1 and 3), and .dat, decoded events.

Written after Prophesee's format descriptions (docs.prophesee.ai, "RAW File Format", "DAT File Format"). Both
begin with lines of ASCII, "% keyword value".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from evspec_ros.errors import EventDecodingError, RecordingError
from evspec_ros.events.bounds import Outside, inside_sensor
from evspec_ros.events.decoders import Decoder
from evspec_ros.events.streams import StreamCounts
from evspec_ros.events.types import Events
from evspec_ros.recordings.recording import Piece, Recording, Topic
from evspec_ros.recordings.times import LAST_NS, beyond_range, nanoseconds

TOPIC = "events"
PIECE_BYTES = 1 << 18  # read at a time
MOST_HEADER_BYTES = 1 << 16
WORD_BYTES = {"evt2": 4, "evt21": 8, "evt3": 2}
VERSIONS = {"2.0": "evt2", "2.1": "evt21", "3.0": "evt3"}  # the keyword `evt` of older headers
# Sensors by the keyword system_ID, for headers that do not tell the size (OpenEB, psee_raw_file_header.cpp).
VGA_SYSTEMS = frozenset({0x15, 0x17, 0x19, 0x1C, 0x1D, 0x21, 0x22, 0x23, 0x28, 0x29, 0x97, 0x99, 0xA1, 0xA2})
HD_SYSTEMS = frozenset({0x1A, 0x1E, 0x1F, 0x27, 0x2E, 0x30, 0x31, 0x32})
SYSTEM_SIZES = dict.fromkeys(VGA_SYSTEMS, (640, 480)) | dict.fromkeys(HD_SYSTEMS, (1280, 720))
DAT_EVENT = np.dtype(
    [("t", "<u4"), ("pixel", "<u4")]
)  # microseconds; x in bits 0-13, y 14-27, polarity 28-31
DAT_TYPES = {0x00, 0x0C}  # Event2d and EventCD, which are laid out alike
DAT_ROLLOVER_US = 1 << 32


def open_prophesee(path: Path) -> Recording:
    """The .dat or .raw file at `path`, told apart by the line that every .dat file's header has."""
    with path.open("rb") as file:
        header = _read_header(file, path)
    return DatRecording(path) if "data" in header else RawRecording(path)


class RawRecording(Recording):
    """A .raw file in EVT 2, 2.1 or 3, whose times are microseconds since the camera started streaming.

    The header has to name the encoding (`format` or `evt`) and the sensor's size (`format` or `geometry`);
    where it lacks the size, that of the camera system that it names is taken. Of the two word orders of EVT
    2.1 the header's `endianness` names one, or the first words tell it. Raises RecordingError where encoding
    or size is missing or is none that is read here. Events outside the sensor are left out and counted, and
    so is a last word that is cut.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            header = _read_header(file, path)
            self._start = file.tell()
        self._encoding, self._order, self._width, self._height = _stream_format(header, path)
        self._decoder()  # names an encoding or a size that cannot be

    @property
    def topics(self) -> tuple[Topic, ...]:
        """The one stream; the first use reads the whole file to count its events."""
        return (Topic(TOPIC, self._encoding, self.survey.samples[TOPIC]),)

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:  # noqa: ARG002
        """What PIECE_BYTES hold at a time."""
        if not events:
            return
        decoder = self._decoder()
        triggers = outside = 0
        with self.path.open("rb") as file:
            for data in _blocks(file, self._start, WORD_BYTES[self._encoding]):
                if isinstance(data, StreamCounts):
                    yield Piece(TOPIC, 0, read=data)
                    continue
                decoded = decoder.decode(data)
                if len(decoded) and decoded.t.max() > LAST_NS:
                    raise beyond_range(int(decoded.t.max()) // 1000, "us", self.path)
                seen, triggers = triggers, decoder.statistics.triggers
                left_out, outside = outside, decoder.outside.count
                yield Piece(
                    TOPIC,
                    len(decoded),
                    events=decoded,
                    triggers=triggers - seen,
                    outside=decoder.outside.since(left_out),
                )

    def _decoder(self) -> Decoder:
        try:
            return Decoder(self._encoding + self._order, self._width, self._height)
        except EventDecodingError as error:
            raise RecordingError(f"The recording {self.path} cannot be read: {error}") from error


class DatRecording(Recording):
    """A .dat file of version 2: microseconds and coordinates, as Metavision writes it.

    Events outside the sensor are left out and counted, and so is a last one that is cut. Raises
    RecordingError for other events than those of brightness and for a header without Width and Height.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            header = _read_header(file, path)
            kind = file.read(2)
            self._start = file.tell()
        if header.get("version", "2") != "2" or len(kind) < 2 or kind[0] not in DAT_TYPES or kind[1] != 8:
            raise RecordingError(
                f"The recording {path} holds events of type {kind.hex(' ') or 'none'} in version "
                f"{header.get('version', '2')}; only version 2 with events of type 00 08 and 0c 08 is read."
            )
        self._width, self._height = _whole(header.get("width")), _whole(header.get("height"))
        if not self._width or not self._height:
            raise RecordingError(
                f"The header of {path} does not tell the sensor's size; add it, your camera's instead of "
                f"640x480, with sed -i '1i % Width 640\\n% Height 480' {path}"
            )

    @property
    def topics(self) -> tuple[Topic, ...]:
        """The one stream."""
        size = self.path.stat().st_size - self._start
        return (Topic(TOPIC, "dat", size // DAT_EVENT.itemsize),)

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:  # noqa: ARG002
        """What PIECE_BYTES hold at a time."""
        if not events:
            return
        last_us = 0
        with self.path.open("rb") as file:
            for data in _blocks(file, self._start, DAT_EVENT.itemsize):
                if isinstance(data, StreamCounts):
                    yield Piece(TOPIC, 0, read=data)
                    continue
                part, outside, last_us = self._events(data, last_us)
                yield Piece(TOPIC, len(part), events=part, outside=outside)

    def _events(self, data: bytes, last_us: int) -> tuple[Events, Outside, int]:
        """The events in data, those outside the sensor, and the last time; last_us is the one before them."""
        raw = np.frombuffer(data, DAT_EVENT)
        t, pixel = raw["t"].astype(np.int64), raw["pixel"]
        steps = np.diff(t, prepend=last_us % DAT_ROLLOVER_US)
        rollovers = last_us // DAT_ROLLOVER_US + np.cumsum(steps < -DAT_ROLLOVER_US // 2)
        t += rollovers * DAT_ROLLOVER_US
        times = nanoseconds(t, "us", self.path)
        x, y, p = pixel & 0x3FFF, pixel >> 14 & 0x3FFF, pixel >> 28
        return *inside_sensor(times, x, y, p, self._width, self._height), int(t[-1])


def _read_header(file: BinaryIO, path: Path) -> dict[str, str]:
    """The header's keywords, in lower case, with their values; leaves the file behind it.

    It ends with the line "% end", or where the next line does not begin with "% ".
    """
    header: dict[str, str] = {}
    while file.tell() < MOST_HEADER_BYTES:
        start = file.tell()
        line = file.readline(MOST_HEADER_BYTES)
        if not line.startswith(b"% "):
            file.seek(start)
            return header
        keyword, _, value = line[2:].decode("ascii", "replace").strip().partition(" ")
        if keyword == "end":
            return header
        header[keyword.lower()] = value.strip()
    raise RecordingError(
        f"The header of {path} does not end within {MOST_HEADER_BYTES} bytes; copy the file again."
    )


def _stream_format(header: dict[str, str], path: Path) -> tuple[str, str, int, int]:
    """A .raw file's encoding, the word order as Decoder takes it ("" without), width and height."""
    name, _, rest = header.get("format", "").partition(";")
    options = dict(re.findall(r"(\w+)=(\w+)", rest))
    encoding = name.lower() or VERSIONS.get(header.get("evt", ""), header.get("evt", ""))
    if not encoding:
        raise RecordingError(
            f"The header of {path} does not name the encoding; add your camera's with "
            f"sed -i '1i % format EVT3;height=720;width=1280' {path}"
        )
    order = options.get("endianness") or header.get("endianness", "")
    if encoding not in WORD_BYTES or order == "big":
        raise RecordingError(
            f"The recording {path} is in encoding {header.get('format') or header['evt']!r}; only EVT2, "
            f"EVT2.1 and EVT3 with little-endian words are read, convert it with metavision_file_to_dat."
        )
    width, height = _whole(options.get("width")), _whole(options.get("height"))
    if not (width and height):
        geometry = re.fullmatch(r"(\d+)x(\d+)", header.get("geometry", ""))
        system = SYSTEM_SIZES.get(_whole(header.get("system_id")), (0, 0))
        width, height = map(int, geometry.groups()) if geometry else system
    if not (width and height):
        raise RecordingError(
            f"The header of {path} tells neither the sensor's size nor a system_ID whose size is known; add "
            f"your camera's with sed -i '1i % geometry 1280x720' {path}"
        )
    return encoding, f";endianness={order}" if order else "", width, height


def _whole(text: str | None) -> int:
    """The number in a header's value; 0 where there is none."""
    return int(text) if text and text.isascii() and text.isdigit() else 0


def _blocks(file: BinaryIO, start: int, word_bytes: int) -> Iterator[bytes | StreamCounts]:
    """Whole words from `start` to the end; where that lies within a word, what is to be told of it."""
    file.seek(start)
    while data := file.read(PIECE_BYTES):
        whole = len(data) // word_bytes * word_bytes
        if whole:
            yield data[:whole]
        if whole < len(data):
            problem = f"The file ends within an event at byte {file.tell()}; copy it again."
            yield StreamCounts(refused=1, problem=problem)
