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
from evspec_ros.events.types import Events
from evspec_ros.recordings.recording import DAMAGE, Piece, Recording, Topic

TOPIC = "events"
PIECE = 1 << 18  # events read at a time
SENSORS = ((128, 128), (240, 180), (304, 240), (346, 260), (640, 480), (1280, 720))  # common sizes, ascending
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

    t is in microseconds where its type is an integer and in seconds where it is floating; p > 0 is brighter.
    The file does not say how large the sensor is: it is taken for the smallest common one that holds all
    events (EventGPT's samples: 640x480). A structured array is mapped into memory and read piece by piece; a
    dict, which holds a sample of 100 ms at most, is read whole. Its pickle may hold numpy arrays, scalars and
    plain containers and nothing else. Raises RecordingError for anything else, naming it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._columns = _columns(path)
            self._width, self._height = _sensor(self._columns)
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
            part = self._events(slice(start, start + PIECE))
            yield Piece(TOPIC, len(part), events=part)

    def _events(self, part: slice) -> Events:
        t, x, y, p = (self._columns[name][part] for name in KINDS)
        return Events(
            _nanoseconds(t),
            x.astype(np.uint16),
            y.astype(np.uint16),
            (p > 0).astype(np.uint8),
            self._width,
            self._height,
        )


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


def _nanoseconds(t: NDArray[Any]) -> NDArray[np.int64]:
    if t.dtype.kind != "f":
        return t.astype(np.int64) * 1000
    if not np.isfinite(t).all():
        raise RecordingError("A time among the events is no number; repair the recording's t.")
    return np.round(t.astype(np.float64) * 1e9).astype(np.int64)


def _sensor(columns: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    """The smallest common sensor that holds every event; the events' own extent where none does."""
    x, y = columns["x"], columns["y"]
    if not len(x):
        return SENSORS[0]
    if min(x.min(), y.min()) < 0 or max(x.max(), y.max()) > np.iinfo(np.uint16).max:
        raise ValueError(f"x {x.min()} to {x.max()} and y {y.min()} to {y.max()} are no pixels")
    width, height = int(x.max()) + 1, int(y.max()) + 1
    return next(((w, h) for w, h in SENSORS if width <= w and height <= h), (width, height))
