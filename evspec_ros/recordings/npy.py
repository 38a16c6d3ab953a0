"""Events in one .npy file: EventGPT's samples (a pickled dict of arrays) and structured arrays."""

from __future__ import annotations

import pickle
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evspec_ros.errors import RecordingError
from evspec_ros.events.bounds import common_sensor, inside_sensor
from evspec_ros.recordings.recording import DAMAGE, Piece, Recording, Topic
from evspec_ros.recordings.times import nanoseconds

TOPIC = "events"
PIECE = 1 << 18  # events read at a time
MOST_PIXELS = 1 << 16  # of a sensor's side
UNIT_ADVICE = "name the unit with --time-unit"
KINDS = {"t": "iuf", "x": "iu", "y": "iu", "p": "iufb"}  # numpy's letters for the types of each field
PICKLE_DAMAGE = (
    *DAMAGE,
    pickle.UnpicklingError,
    tokenize.TokenError,
    EOFError,
    SyntaxError,
    SystemError,  # a pickle that stores an item where no dict is
)

_RECONSTRUCT: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_SCALAR: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
}


class NpyRecording(Recording):
    """Events from an .npy file: a dict or a structured array with t, x, y, p of one length; no frames.

    t is in microseconds where its type is an integer and in seconds where it is floating, unless `time_unit`
    names another; p > 0 is brighter. The file does not say how large the sensor is: it is taken for the
    smallest common one that holds all events (EventGPT's samples: 640x480); places below 0 or above 65535 are
    left out and counted. A structured array is mapped into memory and read piece by piece; a
    dict, which holds a sample of 100 ms at most, is read whole. Its pickle may hold numpy arrays, scalars and
    plain containers and nothing else. Raises RecordingError for anything else, naming it.
    """

    def __init__(self, path: Path, time_unit: str = "") -> None:
        super().__init__(path)
        try:
            self._columns = _columns(path)
            self._width, self._height = _sensor(self._columns)
            self._unit = time_unit or ("s" if self._columns["t"].dtype.kind == "f" else "us")
        except PICKLE_DAMAGE as error:
            raise RecordingError(
                f"The recording {path} cannot be read as events ({error}); give t, x, y and p as a dict or a "
                f"structured array."
            ) from error

    @property
    def topics(self) -> tuple[Topic, ...]:
        """The one stream of events."""
        return (Topic(TOPIC, "npy", len(self._columns["t"])),)

    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:  # noqa: ARG002
        """Up to PIECE events at a time."""
        if not events:
            return
        for start in range(0, len(self._columns["t"]), PIECE):
            t, x, y, p = (self._columns[name][start : start + PIECE] for name in KINDS)
            times = nanoseconds(t, self._unit, self.path, UNIT_ADVICE)
            part, outside = inside_sensor(times, x, y, p, self._width, self._height)
            yield Piece(TOPIC, len(t), events=part, outside=outside)


class ArrayUnpickler(pickle.Unpickler):
    """Loads numpy arrays in plain containers and refuses whatever else a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        """The few constructors that arrays need."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which arrays do not need")
        return ALLOWED[module, name]


def _columns(path: Path) -> Mapping[str, NDArray[Any]]:
    """The arrays t, x, y, p, checked for type and length."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        _, _, dtype = read_header(file)
        content: Any = ArrayUnpickler(file).load() if dtype.hasobject else np.load(path, mmap_mode="r")
    if isinstance(content, np.ndarray) and content.shape == ():
        content = content.item()
    if isinstance(content, np.ndarray):
        content = {name: content[name] for name in content.dtype.names or ()}
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    for name, kinds in KINDS.items():
        column = content.get(name)
        if not isinstance(column, np.ndarray) or column.dtype.kind not in kinds or column.ndim != 1:
            raise ValueError(f"it has no list of numbers called {name}")
        if len(column) != len(content["t"]):
            raise ValueError(f"{name} has {len(column)} entries and t {len(content['t'])}")
    return content


def _sensor(columns: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    """The smallest common sensor that holds every event; the events' own extent where none does."""
    width = height = 0
    for start in range(0, len(columns["t"]), PIECE):
        x, y = (columns[name][start : start + PIECE] for name in "xy")
        pixels = (x >= 0) & (y >= 0) & (x < MOST_PIXELS) & (y < MOST_PIXELS)
        width, height = (
            max(size, int(places[pixels].max(initial=0)) + 1) for size, places in ((width, x), (height, y))
        )
    return common_sensor(width, height)
