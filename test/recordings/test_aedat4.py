"""AEDAT 4.0 files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recording_files import (
    COMPRESSORS,
    START_NS,
    equal,
    joined,
    random_events,
    refusals,
    write_aedat4,
)

from evspec_ros.errors import RecordingError
from evspec_ros.events.bounds import Outside
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


@pytest.mark.parametrize(("channels", "order"), [(1, [0, 0, 0]), (3, [2, 1, 0]), (4, [2, 1, 0])])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
def test_frames_of_more_than_eight_bits_are_scaled(
    tmp_path: Path, channels: int, order: list[int], dtype: type[np.generic]
) -> None:
    """The full range of 16 bits, or 0 to 1, becomes 0 to 255; what lies beyond is cut off."""
    values = np.random.default_rng(1).integers(0, 65536, (30, 20, channels)).astype(np.uint16)
    eight = np.round(values / 257)
    pixels = values if dtype == np.uint16 else (values / 65535).astype(dtype)
    if dtype != np.uint16:
        pixels[0, 0], pixels[0, 1], pixels[0, 2] = -1, 2, np.nan
        eight[0, 0], eight[0, 1], eight[0, 2] = 0, 255, 0
    write_aedat4(tmp_path / "r.aedat4", [], [(START_NS, pixels)])
    (frame,) = open_recording(tmp_path / "r.aedat4").frames()
    assert np.abs(frame.image - eight[:, :, order]).max() <= (dtype != np.uint16)


def test_a_grey_frame_of_16_bits_is_read_beside_its_events(shared_cases: Path) -> None:
    """500 events and one frame, as the package aedat finds them."""
    path = shared_cases / "gray16_frame.aedat4"
    info = open_recording(path).info()
    assert (info.events.count, info.frames) == (500, 1)
    aedat = pytest.importorskip("aedat", reason="aedat has no wheel for this machine")
    theirs = next(packet["frame"]["pixels"] for packet in aedat.Decoder(str(path)) if "frame" in packet)
    (frame,) = open_recording(path).frames()
    np.testing.assert_array_equal(frame.image[:, :, 0], np.round(theirs / 257))


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 1), np.int16), np.zeros((4, 4, 2), np.uint8)])
def test_a_frame_that_is_not_supported_is_called_so(tmp_path: Path, pixels: np.ndarray) -> None:
    """It is left out alone; events and other frames are there."""
    events = random_events(50)
    grey = np.zeros((8, 8, 1), np.uint8)
    write_aedat4(tmp_path / "r.aedat4", [events], [(START_NS, pixels), (START_NS, grey)])
    info = open_recording(tmp_path / "r.aedat4").info()
    assert (info.events.count, info.frames) == (50, 1)
    refusal = info.topics[1].first_refusal
    assert refusal is not None
    assert "are not supported" in refusal.reason


def test_every_truncation_is_told_and_what_comes_before_is_read(tmp_path: Path) -> None:
    """A file cut anywhere before the end of its packets is read up to there, or refused in one sentence."""
    whole, cut = tmp_path / "whole.aedat4", tmp_path / "cut.aedat4"
    events = random_events(60)
    grey = np.zeros((8, 8, 1), np.uint8)
    write_aedat4(whole, [events[:30], events[30:]], [(START_NS, grey)])
    data = whole.read_bytes()
    end = len(data) - len(b"table of packets")
    counts = []
    for size in [*range(0, end, 17), *range(end - 20, end)]:
        cut.write_bytes(data[:size])
        try:
            info = open_recording(cut).info()
        except RecordingError as error:
            told, count = str(error), 0
        else:
            told, count = info.topics[0].read.problem, info.events.count
        assert re.search(r"cut short|is empty|no recording|should end at byte", told), told
        counts.append(count)
    assert set(counts) == {0, 30, 60}
    assert counts == sorted(counts)


def test_an_unfinished_file_is_read_to_its_last_whole_packet(tmp_path: Path) -> None:
    """It needs no final table; an end within a packet is told."""
    path = tmp_path / "r.aedat4"
    events = random_events(60)
    write_aedat4(path, [events[:30], events[30:]], finished=False)
    recording = open_recording(path)
    assert equal(joined(recording.events()), events)
    assert recording.info().topics[0].read.refused == 0
    path.write_bytes(path.read_bytes()[:-5])
    recording = open_recording(path)
    assert equal(joined(recording.events()), events[:30])
    assert recording.info().topics[0].read.refused == 1


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("damage", ["content", "stream", "size", "shorter", "zeros"])
def test_a_damaged_packet_in_the_middle_is_left_out_alone(
    tmp_path: Path, compression: str, damage: str
) -> None:
    """Whether its content, its head or both are damaged; the byte where it begins is told."""
    path, parts = tmp_path / "r.aedat4", [random_events(100, seed=seed) for seed in range(5)]
    write_aedat4(path, parts, [(START_NS, np.zeros((8, 8, 3), np.uint8))], compression=compression)
    (tmp_path / "less").mkdir()
    write_aedat4(tmp_path / "less/r.aedat4", parts[:2], compression=compression)
    data = bytearray(path.read_bytes())
    start = len((tmp_path / "less/r.aedat4").read_bytes()) - len(b"table of packets")
    size = int.from_bytes(data[start + 4 : start + 8], "little")
    changes = {
        "content": (start + 12, b"\xff" * 40), "stream": (start, b"\x77"), "zeros": (start, bytes(size // 2)),
        "size": (start + 4, b"\xff\xff\xff\x7f"), "shorter": (start + 4, (size // 2).to_bytes(4, "little")),
    }  # fmt: skip
    at, content = changes[damage]
    data[at : at + len(content)] = content
    path.write_bytes(data)
    info = open_recording(path).info()
    expected = joined([*parts[:2], *parts[3:]])
    assert (info.events.count, info.frames) == (400, 1)
    assert info.events.sum_t_ns == sum(expected.t.tolist())
    (topic, _) = info.topics
    assert topic.read.refused == 1
    assert topic.first_refusal is not None
    assert topic.first_refusal.reason.startswith(f"The packet at byte {start} is left out (")


def test_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    """Random bytes anywhere in the file end in RecordingError or in events inside the sensor."""
    path = tmp_path / "r.aedat4"
    events = random_events(200)
    write_aedat4(path, [events], [(START_NS, np.zeros((8, 8, 3), np.uint8))], compression="none")
    assert 0 < refusals(path, 300, first=14, most=20) < 300


def test_events_outside_the_sensor_are_left_out_and_counted(tmp_path: Path) -> None:
    """Places that the header's sensor does not have; the first is named, with the size that holds all."""
    events = random_events(500)
    events.x[7], events.y[7] = 300, 200
    write_aedat4(tmp_path / "r.aedat4", [events])
    info = open_recording(tmp_path / "r.aedat4").info().events
    assert (info.count, info.outside) == (499, Outside(1, (300, 200), 301, 201))
    assert info.size_that_holds_all == (304, 240)


def test_a_time_beyond_64_bits_of_nanoseconds_costs_its_packet_alone(tmp_path: Path) -> None:
    """Where all are beyond, the sentence is the recording's."""
    far = replace(random_events(10), t=np.array([2**62 * 1000] * 10, object))
    path = tmp_path / "r.aedat4"
    write_aedat4(path, [random_events(20), far, random_events(30)])
    assert open_recording(path).info().events.count == 50
    write_aedat4(path, [far])
    with pytest.raises(RecordingError, match="has a time of 4611686018427387904 microseconds"):
        open_recording(path).info()
