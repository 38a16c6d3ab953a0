"""Events in .npy files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_files import joined, random_events, refusals

from evspec_ros import cli
from evspec_ros.errors import RecordingError
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.npy import PIECE
from evspec_ros.recordings.recording import Wanted


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


def test_places_that_are_no_pixels_are_left_out_and_counted(tmp_path: Path) -> None:
    """One below 0 and one above 65535 neither end the reading nor make the sensor larger."""
    sample = columns()
    x = sample["x"].astype(np.int32)
    x[[3, 7]] = -1, 70_000
    info = open_recording(save(tmp_path / "s.npy", sample | {"x": x})).info().events
    assert (info.count, info.width, info.height) == (98, 128, 128)
    assert (info.outside.count, info.outside.first) == (2, (-1, int(sample["y"][3])))


@pytest.mark.parametrize(
    ("t", "unit", "told"),
    [
        (
            np.int64(1_700_000_000_001_095_000),
            "",
            "of 1700000000001095000 microseconds, which are 53,871 years",
        ),
        (np.uint64(2**64 - 1), "", "of 18446744073709551615 microseconds"),
        (np.float64(1.7e18), "", r"of 1.7e\+18 seconds, which are 53,870"),
        (np.float64(-1.7e15), "", r"of -1700000000000000.0 seconds"),
        (np.int64(2**62), "ns", "of 4611686018427387904 nanoseconds, which are 146 years .* is damaged"),
    ],
)
def test_a_time_that_cannot_be_held_is_told_with_its_unit(
    tmp_path: Path, t: np.generic, unit: str, told: str
) -> None:
    """Whatever its type; the sentence names the file, the value, its unit and what to do."""
    path = save(tmp_path / "s.npy", columns(1) | {"t": np.array([t])})
    with pytest.raises(RecordingError, match=rf"s\.npy has a time {told}"):
        open_recording(path, Wanted(time_unit=unit)).info()


def test_nanoseconds_since_1970_are_read_where_they_are_named(
    shared_cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unnamed they are refused with the way out, by `info` and by `convert`."""
    path = shared_cases / "ns_since_1970.npy"
    for command in (["info", str(path)], ["convert", str(path), str(tmp_path / "bag")]):
        assert cli.main(command) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert "is it in nanoseconds? If so, name the unit with --time-unit." in said
        assert cli.main([*command, "--time-unit", "ns"]) == 0
    info = open_recording(path, Wanted(time_unit="ns")).info()
    first = info.events.t_first_ns
    assert first == 1_700_000_000_001_095_000
    assert open_recording(tmp_path / "bag").info().events.t_first_ns == first


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
