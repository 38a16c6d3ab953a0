"""Events as text, a line each: t, x, y and p in the order that a header, an option or the numbers tell."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from evspec_ros.errors import RecordingError
from evspec_ros.events.bounds import common_sensor, inside_sensor
from evspec_ros.events.streams import StreamCounts
from evspec_ros.events.text_lines import BAD, BAD_LINE, BEYOND_LINE, LINES, decode_lines, new_counts
from evspec_ros.recordings.recording import DAMAGE, Piece, Recording, Topic
from evspec_ros.recordings.times import UNITS, beyond_range

TOPIC = "events"
BLOCK = 1 << 20  # bytes read at a time
HEAD = 1 << 16  # bytes from which columns and unit are told
MOST_LINE = 1 << 12  # bytes of a line
MOST_PIXELS = 1 << 16  # of a sensor's side
ZIP = b"PK\x03\x04"
BOM = b"\xef\xbb\xbf"  # what some editors put before UTF-8
UNIT_ADVICE = "name the unit with --time-unit"
COLUMNS_ADVICE = "name the columns in their order, with --columns t,x,y,p"
ORDERS = ("txyp", "xytp", "xypt", "tpxy", "ptxy")  # tried in turn where no header names the columns
NAMES = {
    "t": r"t|ts|time|times|stamp|timestamp|timestamps|time_?stamp",
    "x": r"x|xs|x_?pos|col|column|columns",
    "y": r"y|ys|y_?pos|row|rows",
    "p": r"p|ps|pol|pols|polarity|polarities|on|sign",
}
UNIT_NAMES = {
    "s": r"s|sec|secs|second|seconds", "ms": r"ms|msec|milliseconds", "us": r"us|µs|μs|usec|microseconds",
    "ns": r"ns|nsec|nanoseconds",
}  # fmt: skip
ZIP_DAMAGE = (*DAMAGE, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
_MOSTLY = 0.9  # of the first lines, so that a damaged one among them does not hide what the others are


@dataclass(frozen=True)
class Layout:
    """How the lines are to be read.

    places: which field is t, x, y, p. unit: one of UNITS. start: bytes before the first event's line, and
    lines: how many lines they are. size: width and height, None where the file does not tell them.
    """

    places: tuple[int, int, int, int]
    unit: str
    start: int
    lines: int
    size: tuple[int, int] | None

    @property
    def order(self) -> str:
        """The columns by name, in their order."""
        return " ".join(sorted("txyp", key=lambda name: self.places["txyp".index(name)]))


class TextRecording(Recording):
    """Events in a .txt or .csv file, or in one inside a .zip, a line each; no frames.

    Fields are separated by spaces, tabs, commas or semicolons. Which is t, x, y and p is told by `columns`
    ("t,x,y,p"), by a line of names above the numbers, or else by the numbers: the first of ORDERS in which p
    is 0 or 1 (or -1 or 1), x and y are pixels and t does not fall. p > 0 is brighter.

    Times are in `time_unit` or in the one that the column's name ends with ("t_us", "time [ns]"). Otherwise
    the first 64 kB tell it: seconds where a time has a fraction; of whole numbers, nanoseconds since 1970
    from 10^17 on, microseconds since 1970 from 10^14 on, nanoseconds from 10^11 on, and nanoseconds too where
    all are multiples of 1000 and, as microseconds, were fewer than 1000 events a second; else microseconds.

    A first line of two numbers is the sensor's width and height. Without it the sensor is the smallest common
    one that holds all events, for which the file is read once more. Comments (#, %, //) and empty lines are
    passed over; lines that are no event are left out and counted. Raises RecordingError where columns cannot
    be told and where the first time is beyond nanoseconds in 64 bits.
    """

    def __init__(self, path: Path, columns: str = "", time_unit: str = "") -> None:
        super().__init__(path)
        self._member = text_member(path) if _begins_with(path, ZIP) else ""
        with self._opened() as file:
            self._layout = _layout(file.read(HEAD), path, columns, time_unit)

    @property
    def topics(self) -> tuple[Topic, ...]:
        """The one stream with columns and unit as they are read; the first use reads the whole file."""
        kind = f"text: {self._layout.order}, t in {self._layout.unit}"
        return (Topic(TOPIC, kind, self.survey.samples[TOPIC]),)

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:  # noqa: ARG002
        """What BLOCK holds at a time."""
        if not events:
            return
        width, height = self._sensor
        for (t, x, y, p), read in self._columns():
            part, outside = inside_sensor(t, x, y, p, width, height)
            yield Piece(TOPIC, len(t), events=part, outside=outside, read=read)

    @cached_property
    def _sensor(self) -> tuple[int, int]:
        if self._layout.size is not None:
            return self._layout.size
        width = height = 1
        for (_, x, y, _), _ in self._columns():
            pixels = (x >= 0) & (y >= 0) & (x < MOST_PIXELS) & (y < MOST_PIXELS)
            width = max(width, int(x[pixels].max(initial=0)) + 1)
            height = max(height, int(y[pixels].max(initial=0)) + 1)
        return common_sensor(width, height)

    def _columns(self) -> Iterator[tuple[NDArray[np.int64], StreamCounts]]:
        """t in nanoseconds, x, y, p, int64 [4, N], and what became of the lines, block by block."""
        layout = self._layout
        places, power = np.array(layout.places), len(str(UNITS[layout.unit])) - 1
        counts = new_counts()
        counts[LINES] = layout.lines
        with self._opened() as file:
            for block in _whole_lines(file, layout.start, self.path):
                data = np.frombuffer(block, np.uint8)
                columns = np.empty((4, block.count(b"\n") + 1), np.int64)
                before = counts.copy()
                n = decode_lines(data, places, power, counts, *columns)
                if counts[BEYOND_LINE] == layout.lines + 1:
                    raise beyond_range(self._first_time(block), layout.unit, self.path, UNIT_ADVICE)
                yield columns[:, :n], self._read(block, before, counts)

    def _first_time(self, block: bytes) -> float:
        line = block.partition(b"\n")[0].decode("ascii", "replace")
        return float(_fields(line)[self._layout.places[0]])

    def _read(self, block: bytes, before: NDArray[np.int64], after: NDArray[np.int64]) -> StreamCounts:
        """What became of the lines of a block; the first that is no event is named, once."""
        bad = int(after[BAD] - before[BAD])
        problem = ""
        if bad and not before[BAD]:
            number = int(after[BAD_LINE])
            line = block.split(b"\n")[number - int(before[LINES]) - 1].decode("ascii", "replace").strip()
            beyond = number == after[BEYOND_LINE]
            reason = "has a time beyond 64 bits of nanoseconds" if beyond else "is no event"
            order = f"columns are read as {self._layout.order}, times in {self._layout.unit}"
            problem = f"Line {number} {reason}: {line[:60]!r}; {order}."
        return StreamCounts(refused=bad, problem=problem)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The text, unpacked on the way; what goes wrong with a .zip becomes one sentence."""
        if not self._member:
            with self.path.open("rb") as file:
                yield file
            return
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self._member) as member:
                yield cast("BinaryIO", member)
        except ZIP_DAMAGE as error:
            raise RecordingError(
                f"{self._member} in {self.path} cannot be unpacked ({error}); copy it again."
            ) from error


def text_member(path: Path) -> str:
    """The file with events in a .zip: events.txt, or the only .txt or .csv; else raises RecordingError."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
    except ZIP_DAMAGE as error:
        raise RecordingError(f"The archive {path} is damaged ({error}); copy it again.") from error
    texts = [name for name in names if name.lower().endswith((".txt", ".csv"))]
    events = [name for name in texts if Path(name).stem.lower() == "events"]
    if len(events or texts) == 1:
        return (events or texts)[0]
    held = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise RecordingError(
        f"The archive {path} is not supported, it holds {held or 'nothing'} and not one .txt or .csv file of "
        f"events; unpack it and name the recording in it."
    )


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def is_text(start: bytes) -> bool:
    """Whether a file that begins so is text."""
    start = start.removeprefix(BOM)
    return bool(start) and start.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in start)


def _layout(head: bytes, path: Path, columns: str, time_unit: str) -> Layout:
    """How to read a file that begins with `head`."""
    start = len(BOM) if head.startswith(BOM) else 0
    lines = head[start:].split(b"\n")
    if len(head) == HEAD:
        lines.pop()  # cut short
    names: list[str] = []
    size: tuple[int, int] | None = None
    for number, line in enumerate(lines):
        text = line.decode("utf-8", "replace").strip()
        comment = text.startswith(("#", "%", "/"))
        fields = _fields(text.lstrip("#%/ "))
        if not comment and _numbers(fields):
            if size is None and len(fields) == 2 and all(map(str.isdigit, fields)):
                size = (int(fields[0]), int(fields[1]))
            else:
                rows = [row for row in map(_row, lines[number:]) if row]
                return _told(rows, path, columns or ",".join(names), time_unit, start, number, size)
        elif fields and (not comment or _named(fields)):
            names = fields
        start += len(line) + 1
    raise RecordingError(
        f"The file {path} is no recording known here, it is text without a line of numbers; events are lines "
        f"of t x y p."
    )


def _told(
    rows: list[list[str]],
    path: Path,
    columns: str,
    time_unit: str,
    start: int,
    lines: int,
    size: tuple[int, int] | None,
) -> Layout:
    """The layout of rows of numbers under names of columns, or without."""
    if size is not None and not (0 < size[0] <= MOST_PIXELS and 0 < size[1] <= MOST_PIXELS):
        raise RecordingError(
            f"The first line of {path} names a sensor of {size[0]} x {size[1]} pixels, which is impossible; "
            f"give each side as 1 to {MOST_PIXELS} pixels."
        )
    names = [name.strip() for name in columns.split(",")] if columns else list(_order(rows, path))
    places = [next((k for k, name in enumerate(names) if _is(name, field)), -1) for field in "txyp"]
    if min(places) < 0:
        raise RecordingError(
            f"The columns of {path} are {', '.join(names)}, of which t, x, y and p cannot be told; "
            f"{COLUMNS_ADVICE}."
        )
    t, x, y, p = places
    unit = time_unit or _unit_of(names[t]) or _unit([row[t] for row in rows if len(row) > t])
    return Layout((t, x, y, p), unit, start, lines, size)


def _fields(text: str) -> list[str]:
    """The fields of a line; a unit in brackets belongs to the name before it."""
    text = re.sub(r"\s+(?=[\[(])", "", text)
    fields = re.split(r"[,;]", text) if re.search(r"[,;]", text) else text.split()
    return [field.strip("\"' \t") for field in fields]


def _row(line: bytes) -> list[str]:
    """A line's numbers, none where it has others."""
    fields = _fields(line.decode("ascii", "replace").strip())
    return fields if _numbers(fields) else []


def _numbers(fields: list[str]) -> bool:
    """Whether these are numbers, two or more."""
    return len(fields) > 1 and all(
        re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", one) for one in fields
    )


def _is(name: str, field: str) -> bool:
    """Whether a column of this name is the field t, x, y or p; a time's name may end with its unit."""
    unit = rf"([ _\[(]+({'|'.join(UNIT_NAMES.values())})[\])]?)?" if field == "t" else ""
    return re.fullmatch(rf"({NAMES[field]}){unit}", name.strip(), re.IGNORECASE) is not None


def _named(fields: list[str]) -> bool:
    """Whether these are names of all four columns."""
    return all(any(_is(name, field) for name in fields) for field in "txyp")


def _unit_of(name: str) -> str:
    """The unit that a time's name ends with; "" without."""
    for unit, units in UNIT_NAMES.items():
        if re.fullmatch(rf"({NAMES['t']})[ _\[(]+({units})[\])]?", name, re.IGNORECASE):
            return unit
    return ""


def _order(rows: list[list[str]], path: Path) -> str:
    """The first of ORDERS in which the rows are events."""
    columns = np.array([row[:4] for row in rows if len(row) >= 4], np.float64).reshape(-1, 4).T
    for order in ORDERS if columns.size else ():
        t, x, y, p = (columns[order.index(name)] for name in "txyp")
        pixels = (
            (x == np.floor(x))
            & (y == np.floor(y))
            & (np.minimum(x, y) >= 0)
            & (np.maximum(x, y) < MOST_PIXELS)
        )
        events = pixels & np.isin(p, (-1, 0, 1)) & (np.diff(t, prepend=t[0]) >= 0)
        if events.mean() >= _MOSTLY:
            return order
    raise RecordingError(
        f"The columns of {path} cannot be told by their numbers, {' '.join(rows[0])}; {COLUMNS_ADVICE}."
    )


def _unit(times: list[str]) -> str:
    """The unit of times whose column does not name it; the rule stands at TextRecording."""
    values = np.array(times, np.float64)
    if (values != np.floor(values)).any():
        return "s"
    largest, span = float(np.abs(values).max()), float(np.ptp(values))
    for least, unit in ((1e17, "ns"), (1e14, "us"), (1e11, "ns")):
        if largest >= least:
            return unit
    coarse = len(values) > 1 and not (values % 1000).any() and span > 0
    return "ns" if coarse and len(values) / span * 1e6 < 1000 else "us"


def _whole_lines(file: BinaryIO, start: int, path: Path) -> Iterator[bytes]:
    """Blocks that end with a line's end, from byte `start` to the file's end."""
    file.read(start)  # a member of a .zip cannot seek cheaply either
    rest = b""
    while data := file.read(BLOCK):
        lines, newline, last = (rest + data).rpartition(b"\n")
        if len(last) > MOST_LINE:
            raise RecordingError(
                f"The recording {path} is damaged, it has a line of more than {MOST_LINE} bytes; copy it "
                f"again."
            )
        rest = last
        if newline:
            yield lines + newline
    if rest:
        yield rest
