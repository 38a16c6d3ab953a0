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

from evspec_ros.errors import RecordingError
from evspec_ros.events.types import Events
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.recording import clipped

WIDTH, HEIGHT = 640, 480
RAW_HEADER = "% Date 2023-03-29 16:37:46\n% evt 3.0\n% format EVT3;height=480;width=640\n% end\n"
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


WRITERS = {
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
        ("% evt 2.1\n% geometry 640x480\n% end\n", "is in encoding '2.1'; only EVT2 and EVT3"),
        ("% format EVT21;height=720;width=1280\n", "is in encoding 'EVT21;height=720;width=1280'; only EVT2"),
        ("% format EVT3;endianness=big;height=9;width=9\n", "only EVT2 and EVT3 with little-endian words"),
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
def test_an_end_within_an_event_is_told_after_what_comes_before(tmp_path: Path, kind: str) -> None:
    """Whole events are handed out, then one sentence names the byte."""
    path, events = written(tmp_path / "r", kind, some_events(100)), some_events(100)
    size = path.stat().st_size - 1
    path.write_bytes(path.read_bytes()[:-1])
    read = open_recording(path).events()
    assert len(next(read)) >= len(events) - 1
    with pytest.raises(RecordingError, match=f"cut short, it ends within an event at byte {size}; copy it"):
        next(read)


def test_an_event_outside_the_sensor_of_a_dat_file_is_damage(tmp_path: Path) -> None:
    """The sentence says where the event and how large the sensor is."""
    events = some_events(9)
    events.x[5], events.y[5] = 640, 0
    path = written(tmp_path / "r", "dat", events)
    with pytest.raises(RecordingError, match=r"an event at \(640, \d+\) of 640x480 pixels"):
        open_recording(path).info()


@pytest.mark.parametrize("kind", WRITERS)
def test_damage_never_escapes_as_another_error(tmp_path: Path, kind: str) -> None:
    """Random bytes anywhere behind the first line end in RecordingError or in events inside the sensor."""
    refused = refusals(written(tmp_path / "r", kind, some_events(200)), 200, first=30, most=20)
    assert refused < 200
    assert refused > 50 or kind == "evt3"  # where hardly anything is impossible
