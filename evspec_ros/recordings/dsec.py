"""DSEC: events in HDF5 with an index of milliseconds, beside them a folder of images with a list of times.

After the data set's description (dsec.ifi.uzh.ch, "Data format") and its makers' reader (uzh-rpg/DSEC).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evspec_ros.errors import FrameError, RecordingError
from evspec_ros.events.bounds import Outside, common_sensor, inside_sensor
from evspec_ros.events.streams import StreamCounts
from evspec_ros.events.types import Events
from evspec_ros.frames.encodings import compressed_to_rgb
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.recording import DAMAGE, Piece, Recording, Topic, clipped, shifted
from evspec_ros.recordings.times import LAST_NS, beyond_range, nanoseconds
from evspec_ros.recordings.unsupported import unsupported_layout

if TYPE_CHECKING:
    import h5py

EVENT_FILES = ("events.h5", "events/events.h5", "events/left/events.h5")
IMAGE_FOLDERS = (
    "images/left/rectified",
    "images/left/distorted",
    "images/left",
    "images/rectified",
    "images",
)
TIME_FILES = ("images/timestamps.txt", "image_timestamps.txt", "images/left/timestamps.txt", "timestamps.txt")
RECTIFY_MAP = "rectify_map.h5"  # beside the events
EVENTS, FRAMES = "events", "images"
SENSOR = (640, 480)  # DSEC's
PIECE = 1 << 18  # events read at a time
UNIT_ADVICE = "divide its times by 1000, for DSEC counts microseconds"


def event_file(folder: Path) -> Path | None:
    """Where a DSEC folder has its events; None if it is no such folder."""
    return _first(folder, EVENT_FILES)


class DsecRecording(Recording):
    """A DSEC folder, or its HDF5 file alone: the left camera's events and images.

    Events are read from `events/{t,x,y,p}`, t in microseconds after `t_offset`, and `ms_to_idx`, which tells
    the first event of each millisecond, so that a slice is read without what comes before it. Sensor time is
    t; the recording's clock, on which the images are stamped, is t + t_offset. The sensor has as many pixels
    as `events/width` and `events/height` say, or else 640x480. Where others use this layout (TUM-VIE) there
    is no t_offset: then the sensor is the smallest common one that holds all events. A rectify_map.h5 is left
    aside: events stay in the sensor's own pixels.

    Events outside the sensor and images that cannot be read are left out and counted. Raises RecordingError
    where something else is missing, damaged or out of order, and for times that nanoseconds in 64 bits do not
    hold; h5py and hdf5plugin are needed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = event_file(path) or path
        self._images, self._stamps_ns = _images(path)
        with self._opened() as file:
            if "ms_to_idx" not in file and "t_offset" not in file:
                raise RecordingError(f"The recording {self._file} is {unsupported_layout(file)}.")
            self._count = _count(file)
            self._milliseconds = _milliseconds(file, self._count)
            self._width, self._height = _sensor(file)
            self._offset_ns = _offset_ns(file, self._file)

    @property
    def topics(self) -> tuple[Topic, ...]:
        """Events, images where there are some, and the map that is not applied."""
        topics = [Topic(EVENTS, "hdf5", self._count)]
        if self._images:
            topics.append(Topic(FRAMES, "png", len(self._images)))
        if (self._file.parent / RECTIFY_MAP).is_file():
            topics.append(Topic("rectify_map", "hdf5", 1, "events stay in the sensor's own pixels"))
        return tuple(topics)

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:
        """All events, then all images."""
        if events:
            yield from self._event_pieces(0, self._count)
        if frames:
            for index in range(len(self._images)):
                yield self._image(index)

    def events(self, start_ns: int | None = None, stop_ns: int | None = None) -> Iterator[Events]:
        """Consecutive pieces of the events with start_ns <= t < stop_ns; nothing long before them is read."""
        with self._opened() as file:
            first = 0 if start_ns is None else self._index(file, (start_ns - self._offset_ns) // 1_000_000)
            last = self._count
            if stop_ns is not None:
                last = self._index(file, -((self._offset_ns - stop_ns) // 1_000_000), beyond=last)
        for piece in self._event_pieces(first, last):
            assert piece.events is not None
            self._warn_once(piece)
            events = clipped(shifted(piece.events, piece.offset_ns), start_ns, stop_ns)
            if len(events):
                yield events

    def frames(self, start_ns: int | None = None, stop_ns: int | None = None) -> Iterator[Frame]:
        """The frames with start_ns <= stamp < stop_ns; no other image is read."""
        first = 0 if start_ns is None else int(np.searchsorted(self._stamps_ns, start_ns))
        last = len(self._images) if stop_ns is None else int(np.searchsorted(self._stamps_ns, stop_ns))
        for index in range(first, last):
            piece = self._image(index)
            self._warn_once(piece)
            if piece.frame is not None:
                yield piece.frame

    def _index(self, file: h5py.File, millisecond: int, beyond: int | None = None) -> int:
        """The number of the first event of a millisecond of sensor time or of those after it.

        beyond: the answer for a millisecond after the index's last; by default it is that of the last.
        """
        if millisecond <= 0 or not self._milliseconds:
            return 0
        if millisecond >= self._milliseconds:
            if beyond is not None:
                return beyond
            millisecond = self._milliseconds - 1
        index, t, since_us = int(file["ms_to_idx"][millisecond]), file["events/t"], millisecond * 1000
        if (index > 0 and t[index - 1] >= since_us) or (index < self._count and t[index] < since_us):
            raise ValueError(f"ms_to_idx names event {index} as the first of millisecond {millisecond}")
        return index

    def _event_pieces(self, first: int, last: int) -> Iterator[Piece]:
        with self._opened() as file:
            columns = [file["events"][name] for name in "txyp"]
            for start in range(first, last, PIECE):
                part = slice(start, min(start + PIECE, last))
                events, outside = self._events(*(column[part] for column in columns))
                offset_ns = self._offset_ns
                yield Piece(EVENTS, len(events), events=events, offset_ns=offset_ns, outside=outside)

    def _events(
        self, t: NDArray[Any], x: NDArray[Any], y: NDArray[Any], p: NDArray[Any]
    ) -> tuple[Events, Outside]:
        t_ns = nanoseconds(t, "us", self._file, UNIT_ADVICE)
        if (t_ns[1:] < t_ns[:-1]).any():
            raise ValueError("events/t steps back")
        if int(t_ns[-1]) + self._offset_ns > LAST_NS:
            raise beyond_range(int(t[-1]) + self._offset_ns // 1000, "us", self._file, UNIT_ADVICE)
        return inside_sensor(t_ns, x, y, p, self._width, self._height)

    def _image(self, index: int) -> Piece:
        """An image as a frame; one that cannot be read is told of."""
        path, stamp_ns = self._images[index], int(self._stamps_ns[index])
        try:
            frame = Frame(stamp_ns, compressed_to_rgb(path.read_bytes(), path.suffix))
        except (OSError, FrameError) as error:
            problem = f"The image {path} cannot be read ({error}); copy it again."
            return Piece(FRAMES, 1, read=StreamCounts(1, refused=1, problem=problem), log_ns=stamp_ns)
        return Piece(FRAMES, 1, frame=frame)

    @contextmanager
    def _opened(self) -> Iterator[h5py.File]:
        """The HDF5 file; what goes wrong while it is open becomes one sentence."""
        try:
            import h5py
            import hdf5plugin  # noqa: F401 - registers Blosc
        except ImportError as error:
            raise RecordingError(
                f"Reading {self._file} needs h5py and hdf5plugin: pip install h5py hdf5plugin."
            ) from error
        try:
            with h5py.File(self._file, "r") as file:
                yield file
        except DAMAGE as error:
            reason = " ".join(str(error).split()).strip("'\"")
            raise RecordingError(
                f"The recording {self._file} is no DSEC event file, damaged or cut short ({reason}); copy it "
                f"again."
            ) from error


def _count(file: h5py.File) -> int:
    """How many events there are, after a look at all four fields of them."""
    lengths = {}
    for name in "txyp":
        if f"events/{name}" not in file:
            raise LookupError(f"it has no dataset events/{name}")
        dataset = file[f"events/{name}"]
        if dataset.ndim != 1 or dataset.dtype.kind not in "iub":
            raise ValueError(f"events/{name} is no list of whole numbers")
        lengths[name] = len(dataset)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its fields differ in length: {lengths}")
    return lengths["t"]


def _milliseconds(file: h5py.File, count: int) -> int:
    """The length of ms_to_idx, after a look whether it ascends and names events that there are."""
    if "ms_to_idx" not in file:
        raise LookupError("it has no dataset ms_to_idx")
    index, last = file["ms_to_idx"], 0
    for start in range(0, len(index), PIECE):
        part = index[start : start + PIECE].astype(np.int64)
        if (np.diff(part, prepend=last) < 0).any() or part[-1] > count:
            raise ValueError("ms_to_idx does not ascend from 0 to the number of events")
        last = part[-1]
    return len(index)


def _offset_ns(file: h5py.File, path: Path) -> int:
    """What is added to events/t for the clock of the images; 0 where the file does not tell it."""
    if "t_offset" not in file:
        return 0
    return int(nanoseconds(np.array([int(file["t_offset"][()])]), "us", path, UNIT_ADVICE)[0])


def _sensor(file: h5py.File) -> tuple[int, int]:
    if "events/width" not in file or "events/height" not in file:
        return SENSOR if "t_offset" in file else _sensor_of_all(file)
    width, height = int(file["events/width"][()]), int(file["events/height"][()])
    if not (0 < width <= 1 << 16 and 0 < height <= 1 << 16):
        raise ValueError(f"a sensor of {width}x{height} pixels")
    return width, height


def _sensor_of_all(file: h5py.File) -> tuple[int, int]:
    width, height = SENSOR
    for start in range(0, len(file["events/x"]), PIECE):
        x, y = (file[f"events/{name}"][start : start + PIECE] for name in "xy")
        width, height = max(width, int(x.max()) + 1), max(height, int(y.max()) + 1)
    return common_sensor(width, height)


def _images(folder: Path) -> tuple[list[Path], NDArray[np.int64]]:
    """The images of a DSEC folder in order and their times in ns; none where it has no list of times."""
    times = _first(folder, TIME_FILES)
    if times is None:
        return [], np.empty(0, np.int64)
    try:
        stamps_us = np.loadtxt(times, np.int64, ndmin=1)
    except (OSError, ValueError) as error:
        raise RecordingError(
            f"The times of the images in {times} cannot be read; it must hold one whole number of "
            f"microseconds a line."
        ) from error
    candidates = (sorted((folder / name).glob("*.png")) for name in IMAGE_FOLDERS)
    images = next((files for files in candidates if files), [])
    if len(images) != len(stamps_us) or (np.diff(stamps_us) < 0).any():
        where = images[0].parent if images else folder / IMAGE_FOLDERS[0]
        raise RecordingError(
            f"There are {len(images)} images in {where} and {len(stamps_us)} times in {times}, which have to "
            f"be as many and ascend; copy the images again."
        )
    return images, nanoseconds(stamps_us, "us", times, UNIT_ADVICE)


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
