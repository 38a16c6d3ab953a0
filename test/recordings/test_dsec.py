"""DSEC's folders and files, written by h5py with Blosc as the data set's makers did."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_files import equal, joined, refusals

from evspec_ros.errors import RecordingError
from evspec_ros.events.types import Events
from evspec_ros.recordings import dsec, open_recording
from evspec_ros.recordings.convert import convert
from evspec_ros.recordings.recording import clipped

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
hdf5plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")

WIDTH, HEIGHT = 640, 480
OFFSET_US = 49_599_200_523


def some_events(times_us: Any = None, seed: int = 0) -> Events:
    """Sorted events, on the recording's clock; by default 2000 within 80 ms."""
    random = np.random.default_rng(seed)
    times_us = np.sort(random.integers(0, 80_000, 2000)) if times_us is None else np.asarray(times_us)
    x, y, p = (random.integers(0, n, len(times_us)) for n in (WIDTH, HEIGHT, 2))
    t = (times_us.astype(np.int64) + OFFSET_US) * 1000
    return Events(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8), WIDTH, HEIGHT)


def write_events(path: Path, events: Events, **changes: Any) -> Path:
    """A file in DSEC's layout, with any dataset changed or, by None, left out."""
    t_us = events.t // 1000 - OFFSET_US
    milliseconds = np.arange(t_us[-1] // 1000 + 1 if len(t_us) else 0)
    datasets = {
        "events/t": t_us.astype(np.uint32), "events/x": events.x, "events/y": events.y, "events/p": events.p,
        "ms_to_idx": np.searchsorted(t_us, milliseconds * 1000).astype(np.uint64), "t_offset": OFFSET_US,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, content in (datasets | changes).items():
            if content is None:
                continue
            options = hdf5plugin.Blosc(cname="zstd") if np.ndim(content) and len(content) else {}
            file.create_dataset(name, data=content, **options)
    return path


def write_images(
    folder: Path, stamps_us: list[int], times: str = "images/timestamps.txt"
) -> list[np.ndarray]:
    """PNGs as DSEC names them, and the list of their times."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [np.random.default_rng(k).integers(0, 256, (12, 16, 3), np.uint8) for k in range(len(stamps_us))]
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / f"{number:06}.png"), image[:, :, ::-1])
    root = next(parent for parent in folder.parents if parent.name == "sequence")
    (root / times).write_text("".join(f"{stamp}\n" for stamp in stamps_us))
    return images


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """A folder with events and three images."""
    folder = tmp_path / "sequence"
    write_events(folder / "events/left/events.h5", some_events())
    write_images(folder / "images/left/rectified", [OFFSET_US + k * 30_000 for k in range(3)])
    return folder


def test_a_sequence_is_read_on_its_absolute_clock(sequence: Path) -> None:
    """Events and images come on t + t_offset, info() keeps the sensor's t."""
    recording = open_recording(sequence)
    events = some_events()
    assert equal(joined(recording.events()), events)
    assert [frame.stamp_ns // 1000 - OFFSET_US for frame in recording.frames()] == [0, 30_000, 60_000]
    info = recording.info()
    assert info.events.sum_t_ns == sum((events.t - OFFSET_US * 1000).tolist())
    assert (info.start_ns, info.stop_ns) == (min(OFFSET_US * 1000, int(events.t[0])), int(events.t[-1]) + 1)
    assert [topic.as_dict() for topic in recording.topics] == [
        {"name": "events", "type": "hdf5", "count": 2000},
        {"name": "images", "type": "png", "count": 3},
    ]


@pytest.mark.parametrize(
    ("events", "images", "times"),
    [
        ("events.h5", "images/left/distorted", "images/left/timestamps.txt"),
        ("events/events.h5", "images/rectified", "image_timestamps.txt"),
        ("events/left/events.h5", "images", "timestamps.txt"),
    ],
)
def test_places_of_the_parts_may_differ(tmp_path: Path, events: str, images: str, times: str) -> None:
    """As DSEC and DSEC-Detection unpack; the pixels are those of the PNGs, in RGB."""
    write_events(tmp_path / "sequence" / events, some_events())
    written = write_images(tmp_path / "sequence" / images, [OFFSET_US, OFFSET_US + 50_000], times)
    recording = open_recording(tmp_path / "sequence")
    assert recording.info().events.count == 2000
    for frame, image in zip(recording.frames(), written, strict=True):
        np.testing.assert_array_equal(frame.image, image)


def test_a_file_alone_is_read(tmp_path: Path) -> None:
    """Under any name, without t_offset, for a sensor that it names."""
    events = some_events()
    size = {"events/width": 1280, "events/height": 720, "t_offset": None}
    recording = open_recording(write_events(tmp_path / "some.hdf5", events, **size))
    assert joined(recording.events()).t.tolist() == (events.t - OFFSET_US * 1000).tolist()
    assert (recording.info().events.width, recording.info().events.height) == (1280, 720)
    assert list(recording.frames()) == []


def test_a_rectify_map_is_told_and_left_aside(sequence: Path) -> None:
    """Events stay where the sensor saw them."""
    write_events(sequence / "events/left/rectify_map.h5", some_events([]))
    recording = open_recording(sequence)
    assert recording.topics[-1].left_out == "events stay in the sensor's own pixels"
    assert equal(joined(recording.events()), some_events())


def test_it_is_converted_to_a_bag(sequence: Path, tmp_path: Path) -> None:
    """Every event and image arrives, on the absolute clock."""
    convert(sequence, tmp_path / "bag")
    bag = open_recording(tmp_path / "bag")
    assert equal(joined(bag.events()), some_events())
    assert [frame.stamp_ns for frame in bag.frames()] == [
        frame.stamp_ns for frame in open_recording(sequence).frames()
    ]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_slice_is_the_whole_filtered(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Through the index of milliseconds, at its edges and beyond it; images alike."""
    steps = data.draw(st.lists(st.integers(0, 1500), min_size=1, max_size=60))
    events = some_events(np.cumsum(steps), len(steps))
    folder = tmp_path_factory.mktemp("dsec") / "sequence"
    write_events(folder / "events.h5", events)
    write_images(folder / "images", [OFFSET_US + k * 700 for k in range(3)])
    recording = open_recording(folder)
    origin = OFFSET_US * 1000
    bounds = st.none() | st.integers(origin - 2_000_000, int(events.t[-1]) + 3_000_000)
    start, stop = data.draw(bounds), data.draw(bounds)
    part = Events.concatenate(recording.events(start, stop), WIDTH, HEIGHT)
    assert equal(part, clipped(events, start, stop))
    stamps = [frame.stamp_ns for frame in recording.frames()]
    assert [frame.stamp_ns for frame in recording.frames(start, stop)] == [
        stamp for stamp in stamps if (start is None or stamp >= start) and (stop is None or stamp < stop)
    ]


def test_a_slice_reads_little_of_what_comes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index leads to the right piece of a long recording."""
    monkeypatch.setattr(dsec, "PIECE", 100)
    events = some_events()
    recording = open_recording(write_events(tmp_path / "events.h5", events))
    decoded = []
    original = recording._events  # type: ignore[attr-defined]
    monkeypatch.setattr(
        recording, "_events", lambda *fields: decoded.append(len(fields[0])) or original(*fields)
    )
    middle = int(events.t[1000])
    assert equal(
        joined(recording.events(middle, middle + 2_000_000)), clipped(events, middle, middle + 2_000_000)
    )
    assert sum(decoded) < 150


# What is wrong with a recording


SHUFFLED = np.arange(80, dtype=np.uint64)[::-1].copy()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"events/x": None}, "it has no dataset events/x"),
        ({"ms_to_idx": None}, "it has no dataset ms_to_idx"),
        ({"events/t": np.zeros(2000)}, "events/t is no list of whole numbers"),
        ({"events/p": np.zeros((2000, 1), np.uint8)}, "events/p is no list of whole numbers"),
        ({"events/y": np.zeros(1999, np.uint16)}, "its fields differ in length"),
        ({"ms_to_idx": SHUFFLED}, "ms_to_idx does not ascend from 0 to the number of events"),
        ({"ms_to_idx": np.array([0, 5, 2001])}, "ms_to_idx does not ascend"),
        ({"events/t": np.arange(2000, dtype=np.uint32)[::-1]}, "events/t steps back"),
        ({"events/width": 0, "events/height": 9}, "a sensor of 0x9 pixels"),
        ({"t_offset": "noon"}, "damaged or cut short .*noon"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """One sentence with the file and the dataset."""
    path = write_events(tmp_path / "events.h5", some_events(), **changes)
    with pytest.raises(RecordingError, match=rf"events\.h5 is no DSEC event file.*{told}"):
        open_recording(path).info()


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"events/t": np.arange(2000) * 10**15}, "1999000000000000000"),
        ({"events/t": np.full(2000, 2**64 - 1, np.uint64)}, "18446744073709551615"),
        ({"t_offset": 2**60}, "1152921504606846976"),
        ({"t_offset": 4_611_686_018_400_000}, r"4611686018\d+"),
    ],
)
def test_times_that_64_bits_of_nanoseconds_do_not_hold_are_told(
    tmp_path: Path, changes: dict[str, Any], value: str
) -> None:
    """In t, in t_offset and in their sum: the file, the value, its unit and what to do."""
    path = write_events(tmp_path / "events.h5", some_events(), **changes)
    with pytest.raises(
        RecordingError,
        match=rf"events\.h5 has a time of {value} microseconds, .* (divide its times|copy it again)",
    ):
        open_recording(path).info()


def test_events_outside_the_sensor_are_left_out_and_counted(tmp_path: Path) -> None:
    """640 columns do not hold x = 1279; without t_offset the sensor is as large as the events ask for."""
    events = some_events()
    x = np.where(np.arange(2000) < 4, 1279, events.x).astype(np.uint16)
    info = open_recording(write_events(tmp_path / "a.h5", events, **{"events/x": x})).info().events
    assert (info.count, info.outside.count, info.outside.first) == (1996, 4, (1279, int(events.y[0])))
    assert info.size_that_holds_all == (1280, 720)
    others = {"events/x": x, "t_offset": None}
    info = open_recording(write_events(tmp_path / "b.h5", events, **others)).info().events
    assert (info.count, info.outside.count, info.width, info.height) == (2000, 0, 1280, 720)


CD_EVENT = np.dtype([("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])


@pytest.mark.parametrize(
    ("datasets", "told"),
    [
        (
            {"CD/events": np.zeros(5, CD_EVENT), "CD/indexes": np.zeros(2)},
            r"Metavision's own layout \(CD/events",
        ),
        ({"prophesee/left/t": np.zeros(5), "prophesee/left/ms_map_idx": np.zeros(5)}, "M3ED's layout"),
        ({"events/xs": np.zeros(5), "events/ts": np.zeros(5)}, "E-VID and rpg_e2vid's tools"),
        ({"events/t": np.zeros(5), "events/x": np.zeros(5), "events/height": 720}, "RVT's layout"),
        ({"davis/left/events": np.zeros((5, 4))}, "MVSEC's layout"),
        ({"events": np.zeros((5, 4), np.uint32)}, "v2e's layout"),
        ({"a/b": np.zeros(5), "c": 3}, "a layout that is not supported, only DSEC's is; it holds a/b, c;"),
        ({}, "it holds nothing"),
    ],
)
def test_other_layouts_are_named_and_not_called_damaged(
    tmp_path: Path, datasets: dict[str, Any], told: str
) -> None:
    """The sentence tells the layout, that it is not supported, and what to do."""
    path = tmp_path / "r.h5"
    with h5py.File(path, "w") as file:
        for name, content in datasets.items():
            file[name] = content
    with pytest.raises(RecordingError, match=told) as refusal:
        open_recording(path)
    assert "not supported" in str(refusal.value)
    assert "damaged" not in str(refusal.value)


def test_metavisions_codec_is_named(tmp_path: Path) -> None:
    """A dataset under a filter that nobody has here is no damage."""
    path = tmp_path / "r.hdf5"
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((100,))
        properties.set_filter(0x8ECF, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((100,))
        group = file.create_group("CD")
        h5py.h5d.create(group.id, b"events", h5py.h5t.py_create(CD_EVENT), space, properties)
    with pytest.raises(
        RecordingError, match=r"compressed with Metavision's ECF codec.*metavision_file_to_dat"
    ):
        open_recording(path)


def test_an_index_that_ascends_but_lies_is_told_by_the_slice_that_needs_it(tmp_path: Path) -> None:
    """No event is lost in silence."""
    index = np.linspace(0, 2000, 81).astype(np.uint64) // 2
    path = write_events(tmp_path / "events.h5", some_events(), ms_to_idx=index)
    assert open_recording(path).info().events.count == 2000
    with pytest.raises(RecordingError, match=r"ms_to_idx names event \d+ as the first of millisecond 40"):
        list(open_recording(path).events((OFFSET_US + 40_000) * 1000))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """Cut anywhere, it is one sentence."""
    path = write_events(tmp_path / "events.h5", some_events())
    data = path.read_bytes()
    for size in [*np.linspace(8, len(data) - 1, 30).astype(int)]:
        path.write_bytes(data[:size])
        with pytest.raises(RecordingError, match=r"events\.h5"):
            open_recording(path).info()


@pytest.mark.parametrize("victim", ["events", "ms_to_idx"])
def test_a_damaged_chunk_is_told(tmp_path: Path, victim: str) -> None:
    """Bytes that Blosc cannot unpack end in one sentence."""
    path = write_events(tmp_path / "events.h5", some_events())
    with h5py.File(path) as file:
        chunk = file["events/t" if victim == "events" else "ms_to_idx"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(data)
    with pytest.raises(RecordingError, match="is no DSEC event file, damaged or cut short"):
        open_recording(path).info()


def test_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    """Random bytes anywhere end in RecordingError or in events inside the sensor."""
    assert refusals(write_events(tmp_path / "events.h5", some_events()), 100, first=8, most=30) > 50


def test_images_that_are_missing_or_damaged_are_told(sequence: Path) -> None:
    """A picture that is none is left out; fewer images than times, a list that is none or steps back."""
    image = sequence / "images/left/rectified/000001.png"
    content = image.read_bytes()
    image.write_bytes(content[:30])
    recording, absent = open_recording(sequence), open_recording(sequence)
    assert recording.info().frames == 2
    image.unlink()
    for opened in (recording, absent):
        assert opened.info().frames == len(list(opened.frames())) == 2
        refusal = opened.info().topics[1].first_refusal
        assert refusal is not None
        assert refusal.number == 2
        assert re.search(r"The image .*000001\.png cannot be read .*; copy it again", refusal.reason)
    with pytest.raises(RecordingError, match=r"There are 2 images in .* and 3 times in .*timestamps\.txt"):
        open_recording(sequence)
    image.write_bytes(content)
    times = sequence / "images/timestamps.txt"
    times.write_text("3\n2\n1\n")
    with pytest.raises(RecordingError, match="as many and ascend"):
        open_recording(sequence)
    times.write_text("noon\n")
    with pytest.raises(RecordingError, match="one whole number of microseconds a line"):
        open_recording(sequence)


def test_what_has_to_be_installed_is_told(sequence: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without h5py the sentence says how to get it."""
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(RecordingError, match=r"needs h5py and hdf5plugin: pip install h5py hdf5plugin\."):
        open_recording(sequence)
