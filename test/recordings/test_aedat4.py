"""AEDAT 4.0 files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recording_files import (
    COMPRESSORS,
    HEIGHT,
    START_NS,
    WIDTH,
    equal,
    joined,
    random_events,
    refusals,
    write_aedat4,
)

from evspec_ros.errors import RecordingError
from evspec_ros.events.types import Events
from evspec_ros.recordings import open_recording


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_what_flatbuffers_wrote_is_read_back(tmp_path: Path, compression: str) -> None:
    """Events come back exactly, packet by packet, under every compression."""
    events = random_events(500)
    write_aedat4(tmp_path / "r.aedat4", [events[:200], events[200:]], compression=compression)
    recording = open_recording(tmp_path / "r.aedat4")
    assert [len(piece) for piece in recording.events()] == [200, 300]
    assert equal(joined(recording.events()), events)
    assert [(topic.name, topic.type, topic.count) for topic in recording.topics] == [
        ("events", "EVTS", 500),
        ("frames", "FRME", 0),
    ]


@pytest.mark.parametrize(("channels", "order"), [(1, [0, 0, 0]), (3, [2, 1, 0]), (4, [2, 1, 0])])
def test_frames_become_rgb(tmp_path: Path, channels: int, order: list[int]) -> None:
    """Grey is repeated; BGR and BGRA change their order."""
    pixels = np.random.default_rng(1).integers(0, 256, (30, 20, channels), np.uint8)
    write_aedat4(tmp_path / "r.aedat4", [], [(START_NS, pixels)])
    (frame,) = open_recording(tmp_path / "r.aedat4").frames()
    assert frame.stamp_ns == START_NS
    np.testing.assert_array_equal(frame.image, pixels[:, :, order])


def test_every_truncation_is_one_sentence(tmp_path: Path) -> None:
    """A file cut anywhere before the end of its packets raises RecordingError and nothing else."""
    whole, cut = tmp_path / "whole.aedat4", tmp_path / "cut.aedat4"
    events = random_events(60)
    grey = np.zeros((8, 8, 1), np.uint8)
    write_aedat4(whole, [events[:30], events[30:]], [(START_NS, grey)])
    data = whole.read_bytes()
    end = len(data) - len(b"table of packets")
    for size in [*range(0, end, 17), *range(end - 20, end)]:
        cut.write_bytes(data[:size])
        with pytest.raises(RecordingError, match=r"cut short|empty|no recording"):
            open_recording(cut).info()


def test_an_unfinished_file_is_read_to_its_last_whole_packet(tmp_path: Path) -> None:
    """It needs no final table; an end within a packet is told, also where that packet is skipped."""
    path = tmp_path / "r.aedat4"
    events = random_events(60)
    write_aedat4(path, [events[:30], events[30:]], finished=False)
    assert equal(joined(open_recording(path).events()), events)
    path.write_bytes(path.read_bytes()[:-5])
    pieces = open_recording(path).events()
    assert equal(next(pieces), events[:30])
    with pytest.raises(RecordingError, match="cut short at byte"):
        next(pieces)
    with pytest.raises(RecordingError, match="cut short at byte"):
        list(open_recording(path).frames())


def test_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    """Random bytes anywhere in the file end in RecordingError or in events inside the sensor."""
    path = tmp_path / "r.aedat4"
    events = random_events(200)
    write_aedat4(path, [events], [(START_NS, np.zeros((8, 8, 3), np.uint8))], compression="none")
    assert refusals(path, 300, first=14, most=20) > 100


def test_an_event_outside_the_sensor_is_damage(tmp_path: Path) -> None:
    """Coordinates that the header's sensor does not have are refused, the message says which."""
    outside = Events(
        np.array([START_NS]), np.array([WIDTH], np.uint16), np.array([0], np.uint16), np.array([1], np.uint8),
        WIDTH, HEIGHT,
    )  # fmt: skip
    write_aedat4(tmp_path / "r.aedat4", [outside])
    with pytest.raises(RecordingError, match=r"\(64, 0\) of 64x48"):
        list(open_recording(tmp_path / "r.aedat4").events())
