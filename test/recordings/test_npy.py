"""Events in .npy files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_files import joined, random_events, refusals

from evspec_ros.errors import RecordingError
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.npy import PIECE


def columns(count: int = 100) -> dict[str, np.ndarray]:
    """An EventGPT sample: times in microseconds as uint16."""
    events = random_events(count, seconds=0.05, start_ns=0)
    return {"x": events.x, "y": events.y, "t": (events.t // 1000).astype(np.uint16), "p": events.p}


def save(path: Path, content: Any) -> Path:
    """The content as numpy pickles it."""
    np.save(path, content, allow_pickle=True)
    return path


def test_a_sample_of_eventgpt_is_read(tmp_path: Path) -> None:
    """A pickled dict gives its events, uint16 microseconds as nanoseconds."""
    sample = columns()
    events = joined(open_recording(save(tmp_path / "s.npy", sample)).events())
    np.testing.assert_array_equal(events.t, sample["t"].astype(np.int64) * 1000)
    np.testing.assert_array_equal(events.x, sample["x"])
    np.testing.assert_array_equal(events.p, sample["p"])
    assert (events.width, events.height) == (128, 128)


@pytest.mark.parametrize("seconds", [False, True])
def test_a_structured_array_is_read_in_pieces(tmp_path: Path, seconds: bool) -> None:
    """Integer t counts microseconds and floating t seconds; p of -1 and 1 means off and on."""
    events = random_events(PIECE + 5, start_ns=0)
    table = np.zeros(
        len(events), [("x", "<u2"), ("y", "<u2"), ("p", "i1"), ("t", "f8" if seconds else "<i8")]
    )
    table["x"], table["y"], table["p"] = events.x, events.y, np.where(events.p, 1, -1)
    table["t"] = events.t / 1e9 if seconds else events.t // 1000
    np.save(tmp_path / "s.npy", table)
    pieces = list(open_recording(tmp_path / "s.npy").events())
    assert [len(piece) for piece in pieces] == [PIECE, 5]
    for name in "txyp":
        np.testing.assert_array_equal(getattr(joined(pieces), name), getattr(events, name))


@pytest.mark.parametrize(
    ("x", "y", "sensor"),
    [(345, 259, (346, 260)), (346, 0, (640, 480)), (1279, 719, (1280, 720)), (1999, 3, (2000, 4))],
)
def test_the_sensor_is_the_smallest_common_one(
    tmp_path: Path, x: int, y: int, sensor: tuple[int, int]
) -> None:
    """The size is told by the events, and is their own extent where no common sensor holds them."""
    sample = columns(1) | {"x": np.array([x], np.uint16), "y": np.array([y], np.uint16)}
    info = open_recording(save(tmp_path / "s.npy", sample)).info().events
    assert (info.width, info.height) == sensor


class Malicious:
    """Runs a command when it is unpickled by pickle itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_named_and_does_nothing(tmp_path: Path) -> None:
    """A pickle that calls anything is refused before the call, and the sentence names what it asked for."""
    content = columns() | {"extra": Malicious(tmp_path / "owned")}
    path = save(tmp_path / "s.npy", content)
    with pytest.raises(RecordingError, match=r"posix\.mkdir"):
        open_recording(path)
    assert not (tmp_path / "owned").exists()
    np.load(path, allow_pickle=True).item()
    assert (tmp_path / "owned").exists(), "the pickle is malicious indeed"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({key: value for key, value in columns().items() if key != "p"}, "called p"),
        (columns() | {"x": columns(50)["x"]}, "x has 50 entries"),
        (columns() | {"x": columns()["x"].astype(object)}, "called x"),
        (columns() | {"x": -columns()["x"].astype(np.int32) - 1}, "are no pixels"),
        (columns() | {"x": columns()["x"] / 1.0}, "called x"),
        (columns() | {"t": np.full(100, np.nan)}, "no number"),
        (np.zeros((5, 4)), "called t"),
        (np.array(["a", None], object), "called t"),
        (np.array("text", object), "holds a str"),
    ],
)
def test_other_content_is_refused_with_the_reason(tmp_path: Path, content: Any, reason: str) -> None:
    """What holds no events is told apart by one sentence."""
    with pytest.raises(RecordingError, match=reason):
        open_recording(save(tmp_path / "s.npy", content)).info()


@pytest.mark.parametrize("structured", [False, True])
def test_every_truncation_is_refused(tmp_path: Path, structured: bool) -> None:
    """A file cut anywhere raises RecordingError."""
    content: Any = columns(20)
    if structured:
        content = np.zeros(20, [("x", "<u2"), ("y", "<u2"), ("p", "i1"), ("t", "<i8")])
    data = save(tmp_path / "s.npy", content).read_bytes()
    for size in range(0, len(data), 5):
        (tmp_path / "cut.npy").write_bytes(data[:size])
        with pytest.raises(RecordingError):
            open_recording(tmp_path / "cut.npy")


def test_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    """Random bytes in a pickled sample end in RecordingError or in events."""
    assert refusals(save(tmp_path / "s.npy", columns(30)), 300, first=8, most=20) > 100
