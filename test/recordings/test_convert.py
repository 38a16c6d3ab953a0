"""Converting recordings to rosbag2, and that reading them takes no memory that grows with their length."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording_files import (
    HEIGHT,
    START_NS,
    WIDTH,
    equal,
    joined,
    mono_packet,
    random_events,
    random_frames,
    ros1_types,
    write_aedat4,
    write_rosbag1,
)

from evspec_ros import cli
from evspec_ros.errors import RecordingError
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.bag_writer import BagWriter
from evspec_ros.recordings.convert import convert, packets
from evspec_ros.recordings.rosbag2_types import EVENT_PACKET


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_converted_recording_is_the_same(tmp_path: Path, storage: str) -> None:
    """Every event and frame of an aedat4 file comes back from the bag, and progress reaches its end."""
    events, frames = random_events(2000, 0.3), random_frames(3, 0.3)
    stored = [(frame.stamp_ns, frame.image[:, :, ::-1]) for frame in frames]
    write_aedat4(tmp_path / "r.aedat4", [events[:900], events[900:]], stored)
    seconds: list[float] = []
    convert(tmp_path / "r.aedat4", tmp_path / "bag", storage, seconds.append)
    bag = open_recording(tmp_path / "bag")
    assert equal(joined(bag.events()), events)
    for made, frame in zip(bag.frames(), frames, strict=True):
        assert made.stamp_ns == frame.stamp_ns
        np.testing.assert_array_equal(made.image, frame.image)
    assert bag.info().events == open_recording(tmp_path / "r.aedat4").info().events
    assert seconds == sorted(seconds)
    assert 0.28 < seconds[-1] < 0.3
    counts = {topic.name: topic.count for topic in bag.topics}
    assert counts == {"/event_camera/events": 30, "/camera/image_raw": 3}


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    """A source that turns out unreadable midway leaves no bag behind."""
    late = random_events(50, start_ns=2**31 * 10**9)
    write_aedat4(tmp_path / "r.aedat4", [random_events(50), late])
    with pytest.raises(RecordingError, match="a time of 2147483648 seconds, and a ROS stamp holds"):
        convert(tmp_path / "r.aedat4", tmp_path / "bag")
    assert [path.name for path in tmp_path.iterdir()] == ["r.aedat4"]


def test_what_a_conversion_leaves_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each kind once: a packet that is damaged, events outside the sensor; the rest is carried over."""
    parts = [random_events(50, start_ns=START_NS + k * 10**8) for k in range(3)]
    parts[0].x[3] = parts[2].x[3] = 1000
    write_aedat4(tmp_path / "r.aedat4", parts, compression="none")
    data = bytearray((tmp_path / "r.aedat4").read_bytes())
    second = data.index(b"EVTS", data.index(b"EVTS", data.index(b"EVTS") + 4) + 4)  # the header names it, too
    data[second - 8 : second + 12] = b"\xff" * 20
    (tmp_path / "r.aedat4").write_bytes(data)
    convert(tmp_path / "r.aedat4", tmp_path / "bag")
    told = [record.getMessage() for record in caplog.records]
    assert sum("is not read as a whole: The packet at byte" in one for one in told) == 1
    assert (
        sum("outside the sensor of 64 x 48 pixels, the first of them at (1000," in one for one in told) == 1
    )
    assert open_recording(tmp_path / "bag").info().events.count == 98


def test_a_bag_is_not_converted_onto_itself(tmp_path: Path) -> None:
    """Source and destination may not be the same path."""
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_events(random_events(10), START_NS)
    with pytest.raises(RecordingError, match="already"):
        convert(tmp_path / "bag", tmp_path / "bag")
    assert open_recording(tmp_path / "bag").info().events.count == 10


@given(st.lists(st.lists(st.integers(0, 100), max_size=30), max_size=10), st.integers(1, 40))
def test_packets_cut_the_stream_at_multiples_of_their_length(times: list[list[int]], length: int) -> None:
    """No event is lost, every packet is sorted, not empty, and within one interval."""
    pieces = [
        Events(np.array(t, np.int64), *np.zeros((2, len(t)), np.uint16), np.zeros(len(t), np.uint8), 64, 48)
        for t in times
        if t
    ]
    made = [packet.t for packet in packets(pieces, length)]
    for packet in made:
        assert len(packet)
        assert (np.diff(packet) >= 0).all()
        assert packet[0] // length == packet[-1] // length
    assert sorted(t for packet in made for t in packet.tolist()) == sorted(t for part in times for t in part)


def test_packets_of_a_sorted_stream_are_as_few_as_can_be() -> None:
    """Small pieces are joined: one packet for each interval that has events."""
    events = random_events(5000, 0.2)
    pieces = [events[index : index + 7] for index in range(0, 5000, 7)]
    made = list(packets(pieces, 10_000_000))
    assert len(made) == len(np.unique(events.t // 10_000_000))
    assert equal(joined(made), events)


def bag_of(storage: str) -> Callable[[Path, int], None]:
    """Writes seconds of bag: 100 packets and 10 frames each."""

    def write(path: Path, seconds: int) -> None:
        picture = random_frames(1)[0].image
        with BagWriter(path, storage) as bag:
            for index in range(seconds * 100):
                stamp = START_NS + index * 10_000_000
                bag.write_events(random_events(2000, 0.01, index, stamp), stamp)
                if index % 10 == 0:
                    bag.write_frame(Frame(stamp, picture))

    return write


def aedat4_of(path: Path, seconds: int) -> None:
    """An aedat4 file of seconds, 100 packets each."""
    packet = random_events(200, 0.01)
    shifted = (
        Events(packet.t + index * 10_000_000, packet.x, packet.y, packet.p, WIDTH, HEIGHT)
        for index in range(seconds * 100)
    )
    write_aedat4(path, list(shifted), compression="none")


def npy_of(path: Path, seconds: int) -> None:
    """A structured array of 500,000 events a second."""
    events = random_events(500_000 * seconds, seconds)
    table = np.zeros(len(events), [("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "u1")])
    for name in "xyp":
        table[name] = getattr(events, name)
    table["t"] = events.t // 1000
    with path.open("wb") as file:
        np.save(file, table)


@pytest.mark.parametrize("seconds", [2**31, 4_000_000_000, -1])
def test_times_that_no_ros_stamp_holds_are_told_by_the_sources_name(tmp_path: Path, seconds: int) -> None:
    """A stamp counts seconds from 1970 to January 2038; nothing is left at the destination."""
    events = random_events(100, start_ns=seconds * 10**9)
    with (tmp_path / "r.npy").open("wb") as file:
        np.save(file, np.rec.fromarrays([events.t // 1000, events.x, events.y, events.p], names="t,x,y,p"))
    with pytest.raises(RecordingError, match=rf"r\.npy has a time of {seconds} seconds, .* another unit"):
        convert(tmp_path / "r.npy", tmp_path / "bag")
    assert [path.name for path in tmp_path.iterdir()] == ["r.npy"]
    assert any("no ROS stamp holds" in one for one in open_recording(tmp_path / "r.npy").info().remarks) == (
        seconds > 0
    )


@pytest.mark.parametrize("seconds", [2**31, -1])
def test_a_writer_takes_no_stamp_that_ros_cannot_hold(tmp_path: Path, seconds: int) -> None:
    """Neither for events nor for frames."""
    events, (frame,) = random_events(10), random_frames(1)
    for write in (
        lambda bag: bag.write_events(events, seconds * 10**9),
        lambda bag: bag.write_frame(Frame(seconds * 10**9, frame.image)),
    ):
        with (
            pytest.raises(RecordingError, match=f"a time of {seconds} seconds"),
            BagWriter(tmp_path / "b") as bag,
        ):
            write(bag)


def rosbag1_of(path: Path, seconds: int) -> None:
    """A .bag file of 100 packets a second."""
    store = ros1_types()
    stamps = (START_NS + index * 10_000_000 for index in range(seconds * 100))
    write_rosbag1(
        path,
        (
            (
                "/events",
                EVENT_PACKET,
                stamp,
                mono_packet(random_events(2000, 0.01, 0, stamp), stamp, store=store),
            )
            for stamp in stamps
        ),
    )


def dat_of(path: Path, seconds: int) -> None:
    """A .dat file of 500,000 events a second."""
    events = random_events(500_000 * seconds, seconds, start_ns=0)
    words = np.zeros((len(events), 2), "<u4")
    words[:, 0], words[:, 1] = events.t // 1000, events.x | events.y.astype(np.uint32) << 14
    header = f"% Data file containing CD events\n% Width {WIDTH}\n% Height {HEIGHT}\n"
    path.write_bytes(header.encode() + b"\x0c\x08" + words.tobytes())


def raw_of(path: Path, seconds: int) -> None:
    """A .raw file in EVT 3 of 500,000 events a second, one word each but for the times."""
    words = np.full(512_000 * seconds, 0x2005, "<u2")
    words[::512] = 0x6000 | np.arange(len(words) // 512) % 4096
    path.write_bytes(b"% format EVT3;height=48;width=64\n% end\n\x00\x80\x05\x00" + words.tobytes())


def text_of(path: Path, seconds: int) -> None:
    """Lines of t x y p, 200,000 events a second."""
    events = random_events(200_000 * seconds, seconds)
    rows = zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True)
    path.write_text("".join(f"{t // 1000} {x} {y} {p}\n" for t, x, y, p in rows))


def zip_of(path: Path, seconds: int) -> None:
    """The same in an archive."""
    text_of(path.with_suffix(".txt"), seconds)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path.with_suffix(".txt"), "events.txt")


def dsec_of(path: Path, seconds: int) -> None:
    """An HDF5 file in DSEC's layout of 500,000 events a second."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    events = random_events(500_000 * seconds, seconds, start_ns=0)
    t_us = events.t // 1000
    with h5py.File(path, "w") as file:
        for name, column in (("t", t_us), ("x", events.x), ("y", events.y), ("p", events.p)):
            file.create_dataset(f"events/{name}", data=column, chunks=(1 << 15,))
        file["ms_to_idx"] = np.searchsorted(t_us, np.arange(seconds * 1000) * 1000)


@pytest.mark.parametrize(
    ("write", "lengths"),
    [
        (bag_of("mcap"), (5, 12)), (bag_of("sqlite3"), (5, 12)), (rosbag1_of, (2, 8)), (aedat4_of, (1, 4)),
        (npy_of, (1, 5)), (text_of, (1, 5)), (zip_of, (1, 5)), (raw_of, (1, 5)), (dat_of, (1, 5)),
        (dsec_of, (1, 5)),
    ],
)  # fmt: skip
def test_memory_does_not_grow_with_length(
    tmp_path: Path, write: Callable[[Path, int], None], lengths: tuple[int, int]
) -> None:
    """Reading a recording several times as long takes no more than a fifth more memory."""
    peaks = []
    for seconds in lengths:
        path = tmp_path / str(seconds)
        write(path, seconds)
        open_recording(path).info()  # compiles and caches what is needed once
        tracemalloc.start()
        recording = open_recording(path)
        total = sum(len(events) for events in recording.events())
        assert total == recording.info().events.count > 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("write", [rosbag1_of, raw_of, dat_of, dsec_of])
def test_the_command_line_converts_every_kind(
    tmp_path: Path, write: Callable[[Path, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """`evspec info --json` tells the same of a recording and of the bag that `evspec convert` makes of it."""
    write(tmp_path / "source", 1)
    assert cli.main(["convert", str(tmp_path / "source"), str(tmp_path / "bag")]) == 0
    told = []
    for name in ("source", "bag"):
        capsys.readouterr()
        assert cli.main(["info", "--json", str(tmp_path / name)]) == 0
        told.append(json.loads(capsys.readouterr().out)["events"])
    if write is not rosbag1_of:  # there the sensor's clock becomes that of the stamps
        assert told[0] == told[1]
    for name in ("count", "on", "sum_x", "sum_y", "width", "height"):
        assert told[0][name] == told[1][name]
    assert told[0]["count"] > 100_000
