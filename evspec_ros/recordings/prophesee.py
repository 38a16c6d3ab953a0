"""Prophesee's files: .raw, the camera's own stream (EVT 2 and EVT 3), and .dat, decoded events.

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
from evspec_ros.events.decoders import Decoder
from evspec_ros.events.types import Events
from evspec_ros.recordings.recording import Piece, Recording, Topic

TOPIC = "events"
PIECE_BYTES = 1 << 18  # read at a time
MOST_HEADER_BYTES = 1 << 16
WORD_BYTES = {"evt2": 4, "evt3": 2}
VERSIONS = {"2.0": "evt2", "3.0": "evt3"}  # the keyword `evt` of older headers
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
    """A .raw file in EVT 2 or EVT 3, whose times are microseconds since the camera started streaming.

    The header has to name the encoding (`format` or `evt`) and the sensor's size (`format` or `geometry`);
    where it lacks the size, that of the camera system that it names is taken. Raises RecordingError where
    either is missing or is none that is read here, and where the file ends within a word.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            header = _read_header(file, path)
            self._start = file.tell()
        self._encoding, self._width, self._height = _stream_format(header, path)
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
        triggers = 0
        with self.path.open("rb") as file:
            for data in _blocks(file, self._start, WORD_BYTES[self._encoding]):
                decoded = decoder.decode(data)
                seen, triggers = triggers, decoder.statistics.triggers
                yield Piece(TOPIC, len(decoded), events=decoded, triggers=triggers - seen)

    def _decoder(self) -> Decoder:
        try:
            return Decoder(self._encoding, self._width, self._height)
        except EventDecodingError as error:
            raise RecordingError(f"The recording {self.path} cannot be read: {error}") from error


class DatRecording(Recording):
    """A .dat file of version 2: microseconds and coordinates, as Metavision writes it.

    Raises RecordingError for other events than those of brightness, a header without Width and Height, an
    event outside the sensor and where the file ends within an event.
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
                part, last_us = self._events(data, last_us)
                yield Piece(TOPIC, len(part), events=part)

    def _events(self, data: bytes, last_us: int) -> tuple[Events, int]:
        """The events in data, and the time of the last one; last_us is that of the last one before them."""
        raw = np.frombuffer(data, DAT_EVENT)
        t, pixel = raw["t"].astype(np.int64), raw["pixel"]
        steps = np.diff(t, prepend=last_us % DAT_ROLLOVER_US)
        rollovers = last_us // DAT_ROLLOVER_US + np.cumsum(steps < -DAT_ROLLOVER_US // 2)
        t += rollovers * DAT_ROLLOVER_US
        x, y = (pixel & 0x3FFF).astype(np.uint16), (pixel >> 14 & 0x3FFF).astype(np.uint16)
        if x.max() >= self._width or y.max() >= self._height:
            raise RecordingError(
                f"The recording {self.path} is damaged or its header names another sensor: there is an event "
                f"at ({x.max()}, {y.max()}) of {self._width}x{self._height} pixels."
            )
        polarity = (pixel >> 28 != 0).astype(np.uint8)
        return Events(t * 1000, x, y, polarity, self._width, self._height), int(t[-1])


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


def _stream_format(header: dict[str, str], path: Path) -> tuple[str, int, int]:
    """Encoding, width and height of a .raw file."""
    name, _, rest = header.get("format", "").partition(";")
    options = dict(re.findall(r"(\w+)=(\w+)", rest))
    encoding = name.lower() or VERSIONS.get(header.get("evt", ""), header.get("evt", ""))
    if not encoding:
        raise RecordingError(
            f"The header of {path} does not name the encoding; add your camera's with "
            f"sed -i '1i % format EVT3;height=720;width=1280' {path}"
        )
    if encoding not in WORD_BYTES or "big" in (options.get("endianness"), header.get("endianness")):
        raise RecordingError(
            f"The recording {path} is in encoding {header.get('format') or header['evt']!r}; only EVT2 and "
            f"EVT3 with little-endian words are read, convert it with metavision_file_to_dat."
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
    return encoding, width, height


def _whole(text: str | None) -> int:
    """The number in a header's value; 0 where there is none."""
    return int(text) if text and text.isascii() and text.isdigit() else 0


def _blocks(file: BinaryIO, start: int, word_bytes: int) -> Iterator[bytes]:
    """Whole words from `start` to the end; raises RecordingError where that lies within one."""
    file.seek(start)
    while data := file.read(PIECE_BYTES):
        whole = len(data) // word_bytes * word_bytes
        if whole:
            yield data[:whole]
        if whole < len(data):
            raise RecordingError(
                f"The recording {file.name} is cut short, it ends within an event at byte {file.tell()}; "
                f"copy it again."
            )
