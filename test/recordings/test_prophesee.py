"""Prophesee's .raw and .dat files, written by expelliarmus or word by word."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_files import equal, joined, refusals

from evspec_ros import cli
from evspec_ros.errors import RecordingError
from evspec_ros.evaluation.event_load import evt21
from evspec_ros.events.bounds import Outside
from evspec_ros.events.types import Events
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.recording import clipped

WIDTH, HEIGHT = 640, 480
RAW_HEADER = "% Date 2023-03-29 16:37:46\n% evt 3.0\n% format EVT3;height=480;width=640\n% end\n"
EVT21_HEADER = "% evt 2.1\n% format EVT21;height=480;width=640\n% end\n"
LEGACY_HEADER = EVT21_HEADER.replace("640", "640;endianness=legacy")
TRIGGERS = struct.pack("<2H", 0xA001, 0xA000)  # EXT_TRIGGER, up and down
DAT_HEADER = "% Data file containing CD events\n% Version 2\n% Width 640\n% Height 480\n"


def events_of(t_us: Any, seed: int = 0) -> Events:
    """Events at these times, microseconds, anywhere on the sensor."""
    random = np.random.default_rng(seed)
    t = np.asarray(t_us, np.int64) * 1000
    x, y, p = (random.integers(0, n, len(t)) for n in (WIDTH, HEIGHT, 2))
    return Events(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8), WIDTH, HEIGHT)


def some_events(count: int = 3000, seed: int = 0) -> Events:
    """Sorted events of half a minute."""
    return events_of(np.sort(np.random.default_rng(seed).integers(1000, 30_000_000, count)), seed)


def evt3(events: Events) -> bytes:
    """EVT 3.0 after the specification: what did not change is not sent again."""
    words, high, low, row = [], None, None, None
    for t, x, y, p in zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True):
        t_us = t // 1000
        if t_us >> 12 != high:
            high, low = t_us >> 12, None
            words.append(0x8000 | high & 0xFFF)
        if t_us & 0xFFF != low:
            low = t_us & 0xFFF
            words.append(0x6000 | low)
        if y != row:
            row = y
            words.append(y)
        words.append(0x2000 | p << 11 | x)
    return struct.pack(f"<{len(words)}H", *words)


def dat(events: Events) -> bytes:
    """Type and size, then the events as two words each."""
    words = np.empty((len(events), 2), "<u4")
    words[:, 0] = events.t // 1000 % 2**32
    words[:, 1] = events.x | events.y.astype(np.uint32) << 14 | events.p.astype(np.uint32) << 28
    return b"\x0c\x08" + words.tobytes()


def as_evt21(events: Events, *, legacy: bool = False) -> bytes:
    """EVT 2.1; legacy: as an IMX636 sends it."""
    return evt21(events.t // 1000, *(getattr(events, name).astype(np.int64) for name in "xyp"), legacy=legacy)


WRITERS = {
    "evt21": lambda events: EVT21_HEADER.encode() + as_evt21(events),
    "evt21_legacy": lambda events: LEGACY_HEADER.encode() + as_evt21(events, legacy=True),
    "evt3": lambda events: RAW_HEADER.encode() + evt3(events),
    "dat": lambda events: DAT_HEADER.encode() + dat(events),
}


def written(path: Path, kind: str, events: Events) -> Path:
    """A file of these events."""
    path.write_bytes(WRITERS[kind](events))
    return path


def structured(events: Events) -> np.ndarray:
    """As expelliarmus takes and gives events."""
    table = np.empty(len(events), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")])
    table["t"], table["x"], table["y"], table["p"] = events.t // 1000, events.x, events.y, events.p
    return table


# Against expelliarmus


@pytest.mark.parametrize(("encoding", "suffix"), [("evt2", "raw"), ("dat", "dat")])
def test_what_expelliarmus_writes_is_read(tmp_path: Path, encoding: str, suffix: str) -> None:
    """Its EVT 2 names a camera system instead of a size, its .dat names neither: that is told, and mended."""
    expelliarmus = pytest.importorskip("expelliarmus", reason="expelliarmus has no wheel for this machine")
    path, events = tmp_path / f"r.{suffix}", some_events()
    expelliarmus.Wizard(encoding=encoding).save(fpath=path, arr=structured(events))
    if encoding == "dat":
        with pytest.raises(RecordingError, match="does not tell the sensor's size; add it") as refusal:
            open_recording(path)
        subprocess.run(str(refusal.value).partition("with ")[2], shell=True, check=True)
    assert equal(joined(open_recording(path).events()), events)


def test_what_evlib_reads_is_read(tmp_path: Path) -> None:
    """It knows EVT 2.1 in the order of a GenX320 only: both find the same events in such a file."""
    evlib = pytest.importorskip("evlib", reason="evlib has no wheel for this machine")
    path, events = written(tmp_path / "r.raw", "evt21", some_events()), some_events()
    theirs = evlib.load_events(str(path)).collect().sort("t", "y", "x", maintain_order=True)
    recording = open_recording(path)
    ours = joined(recording.events())
    order = np.lexsort((ours.x, ours.y, ours.t))
    assert equal(ours, events)
    assert theirs["t"].dt.total_microseconds().to_list() == (ours.t[order] // 1000).tolist()
    for name in "xy":
        assert theirs[name].to_list() == getattr(ours, name)[order].tolist()
    assert (theirs["polarity"].to_numpy() > 0).astype(int).tolist() == ours.p[order].tolist()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("size", ["% geometry 640x480\n", "% format EVT21;height=480;width=640\n"])
def test_the_word_order_of_evt21_is_told_by_the_words_where_the_header_does_not(
    tmp_path: Path, legacy: bool, size: str
) -> None:
    """As older recordings are; triggers are counted, too."""
    trigger = struct.pack("<II", *((0xA << 28, 0) if legacy else (0, 0xA << 28)))
    header = f"% evt 2.1\n{size}% end\n".encode()
    (tmp_path / "r.raw").write_bytes(header + as_evt21(some_events(), legacy=legacy) + trigger)
    recording = open_recording(tmp_path / "r.raw")
    assert equal(joined(recording.events()), some_events())
    assert recording.info().triggers == 1


def test_what_the_package_evt3_reads_is_read(tmp_path: Path) -> None:
    """Both readers find the same events in a file written after the specification, and the same triggers."""
    evt3_package = pytest.importorskip("evt3", reason="evt3 has no wheel for this machine")
    path = written(tmp_path / "r.raw", "evt3", some_events())
    path.write_bytes(path.read_bytes() + TRIGGERS)
    theirs, triggers = evt3_package.decode_file_with_triggers(str(path))
    recording = open_recording(path)
    ours = joined(recording.events())
    assert equal(ours, some_events())
    assert recording.info().triggers == len(triggers) == 2
    for name, values in (("timestamp", ours.t // 1000), ("x", ours.x), ("y", ours.y), ("polarity", ours.p)):
        np.testing.assert_array_equal(getattr(theirs, name), values)


# Properties


@settings(deadline=None, max_examples=40)
@given(data=st.data(), kind=st.sampled_from(list(WRITERS)))
def test_events_come_back_and_a_slice_is_the_whole_filtered(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the times, also past the 16.8 s after which EVT 3's own clock rolls over."""
    steps = data.draw(st.lists(st.integers(0, 3_000_000), min_size=1, max_size=40))
    events = events_of(np.cumsum(steps), len(steps))
    recording = open_recording(written(tmp_path_factory.mktemp("prophesee") / "r", kind, events))
    assert equal(joined(recording.events()), events)
    bounds = st.none() | st.integers(-1, int(events.t[-1]) + 2)
    start, stop = data.draw(bounds), data.draw(bounds)
    part = Events.concatenate(recording.events(start, stop), WIDTH, HEIGHT)
    assert equal(part, clipped(events, start, stop))


def test_times_of_a_dat_file_go_on_after_its_clock_rolled_over(tmp_path: Path) -> None:
    """32 bits of microseconds are 71 minutes; small steps back are no rollover."""
    t_us = [2**32 - 5, 2**32 + 3, 2**32 + 1, 2**32 + 2**31, 2**33 - 1, 2**33 + 7]
    recording = open_recording(written(tmp_path / "r.dat", "dat", events_of(t_us)))
    first = 2**32 - 5  # the first time is taken as it stands
    assert (joined(recording.events()).t // 1000 - first).tolist() == [t - t_us[0] for t in t_us]


def test_a_raw_file_tells_its_encoding_its_events_and_triggers(tmp_path: Path) -> None:
    """One topic, counted in events, and the edges on the external input."""
    path = written(tmp_path / "r.raw", "evt3", some_events(100))
    path.write_bytes(path.read_bytes() + TRIGGERS)
    info = open_recording(path).info()
    assert info.as_dict()["topics"] == [{"name": "events", "type": "evt3", "count": 100}]
    assert (info.triggers, info.frames, info.events.width, info.events.height) == (2, 0, 640, 480)


# Headers


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("% evt 3.0\n% geometry 1280x720\n% end\n", (1280, 720)),
        ("% format EVT3;height=320;width=320\n% geometry 320x320\n% end\n", (320, 320)),
        ("% format EVT3\n% geometry 640x480\n", (640, 480)),
        ("% Date 2020-01-01\n% evt 3.0 \n% integrator_name Prophesee \n% system_ID 49 \n", (1280, 720)),
        ("% evt 3.0\n% system_ID 40\n", (640, 480)),
    ],
)
def test_headers_new_and_old_tell_the_size(tmp_path: Path, header: str, size: tuple[int, int]) -> None:
    """By `format`, by `geometry`, or by the camera system; with and without the line that ends the header."""
    events = some_events(50)[:0] if size == (320, 320) else some_events(50)
    (tmp_path / "r").write_bytes(header.encode() + evt3(events))
    recording = open_recording(tmp_path / "r")
    assert recording.info().events.count == len(events)
    assert [(piece.width, piece.height) for piece in recording.events()][:1] == [size] * bool(len(events))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("% Date 2020-01-01\n% end\n", "does not name the encoding; add your camera's with sed"),
        ("% evt 3.0\n% end\n", "tells neither the sensor's size nor a system_ID whose size is known"),
        ("% evt 3.0\n% system_ID 9999\n% end\n", "tells neither the sensor's size"),
        ("% evt 4.0\n% geometry 640x480\n% end\n", "is in encoding '4.0'; only EVT2, EVT2.1 and EVT3"),
        ("% format EVT21;endianness=big;height=9;width=9\n", "in encoding 'EVT21;endianness=big;height=9;"),
        ("% format EVT3;endianness=big;height=9;width=9\n", "and EVT3 with little-endian words are read"),
        ("% format EVT3;height=70000;width=9\n", "9 x 70000 pixels is impossible"),
        ("% x " + "y" * 70_000, "does not end within 65536 bytes"),
        ("% x y\n" * 20_000, "does not end within 65536 bytes"),
        (DAT_HEADER + "\x0e\x08", "events of type 0e 08 in version 2; only version 2 with"),
        (DAT_HEADER + "\x0c\x10", "events of type 0c 10"),
        (DAT_HEADER, "events of type none"),
        (DAT_HEADER.replace("sion 2", "sion 1") + "\x0c\x08", "in version 1; only version 2"),
    ],
)
def test_a_header_that_does_not_tell_enough_is_named(tmp_path: Path, header: str, told: str) -> None:
    """One sentence: what is missing, or what is not read here."""
    (tmp_path / "r").write_bytes(header.encode())
    with pytest.raises(RecordingError, match=told):
        open_recording(tmp_path / "r")


# Damage


@pytest.mark.parametrize("kind", WRITERS)
def test_a_last_event_that_is_cut_is_left_out_and_told(tmp_path: Path, kind: str) -> None:
    """All whole events are there, the byte at which the file ends is named."""
    path, events = written(tmp_path / "r", kind, some_events(100)), some_events(100)
    size = path.stat().st_size - 1
    path.write_bytes(path.read_bytes()[:-1])
    recording = open_recording(path)
    assert equal(joined(recording.events()), events[:99])
    (topic,) = recording.info().topics
    assert topic.read.refused == 1
    assert topic.first_refusal is not None
    assert topic.first_refusal.reason == f"The file ends within an event at byte {size}; copy it again."


@pytest.mark.parametrize("kind", WRITERS)
def test_events_outside_the_sensor_are_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    """The first is named, and the size that would hold all where they are more than one in a thousand."""
    events, few = some_events(3000), 3
    for k in range(few):
        events.x[500 + k], events.y[500 + k] = 1000, 700 - k
    inside = (events.x < WIDTH) & (events.y < HEIGHT)
    info = open_recording(written(tmp_path / "r", kind, events)).info().events
    assert info.outside == Outside(few, (1000, 700), 1001, 701)
    assert (info.count, info.sum_t_ns) == (2997, events.t[inside].sum())
    assert info.size_that_holds_all is None
    events.x[:10] = 1001
    info = open_recording(written(tmp_path / "r", kind, events)).info().events
    assert (info.count, info.outside.count) == (2987, 13)
    assert info.as_dict()["size_that_holds_all"] == [1280, 720]


def test_a_header_that_names_too_small_a_sensor_is_told(
    shared_cases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a sensor of 1280x720 pixels under a header of 640x480, 682 of 2,000 events are left."""
    path = shared_cases / "geometry_too_small.raw"
    info = open_recording(path).info().events
    assert (info.count, info.outside.count, info.size_that_holds_all) == (682, 1318, (1280, 720))
    assert cli.main(["info", str(path)]) == 0
    assert "1,318 of 2,000 events lie outside the sensor of 640 x 480 pixels" in capsys.readouterr().out


def test_times_beyond_64_bits_of_nanoseconds_are_told(tmp_path: Path) -> None:
    """A clock that rolls over more often than any camera ran."""
    turns = struct.pack("<2I", 0x8FFFFFFF, 0x80000000) * 300_000
    (tmp_path / "r").write_bytes(b"% evt 2.0\n% geometry 640x480\n" + turns + bytes(4))
    with pytest.raises(
        RecordingError, match=r"/r has a time of .* microseconds, which are 1.. years and more"
    ):
        open_recording(tmp_path / "r").info()


@pytest.mark.parametrize("kind", WRITERS)
def test_damage_never_escapes_as_another_error(tmp_path: Path, kind: str) -> None:
    """Random bytes anywhere behind the first line end in RecordingError or in events inside the sensor."""
    assert refusals(written(tmp_path / "r", kind, some_events(200)), 200, first=30, most=20) < 200
