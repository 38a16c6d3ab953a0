"""The published values of real recordings, reproduced exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evspec_ros import cli
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.convert import convert

CODECS = "event_camera_codecs/test_data_"
PACKET, FORMER_PACKET = "event_camera_msgs/msg/EventPacket", "event_array_msgs/msg/EventArray"
NO_STREAM = "it holds neither events nor frames"
FIELDS = (
    "count", "on", "off", "sum_t_ns", "sum_x", "sum_y", "t_first_ns", "t_last_ns", "width", "height",
)  # fmt: skip
# Of bags: upstream's published counts and sums. Of aedat4: what the package aedat 2.3.0 reads; of npy: numpy.
EVENTS = {
    CODECS + "evt3_trigger": (
        82469, 41439, 41030, 1222326831810000, 42078718, 31656267, 14224870000, 15476187000, 1280, 720,
    ),
    CODECS + "libcaer_rollover": (
        334331, 181908, 152423, 569134710988659288685958, 111651612, 82801007, 1702309120762236018,
        1702309122762222018, 640, 480,
    ),
    CODECS + "mono_cd": (100, 50, 50, 4950000, 34450, 26450, 0, 99000, 640, 480),
    "cuke-emlb/demo-01.aedat4": (
        319512, 166736, 152776, 525036058391144081901000, 52911189, 50906193, 1643243628737093000,
        1643243629248083000, 346, 260,
    ),
    "event-vision-library/sample.aedat4": (
        6676, 3563, 3113, 10609253172398195298000, 721626, 1424056, 1589163147368868000,
        1589163147538809000, 346, 260,
    ),
    "EventGPT/sample1.npy": (
        132268, 64714, 67554, 3285984637000, 40228180, 28830439, 0, 49595000, 640, 480,
    ),
}  # fmt: skip
Stream = tuple[str, str, int, str]  # name, type, count, why it is left out
REST: dict[str, tuple[int, int, float, list[Stream]]] = {  # triggers, frames, seconds, streams
    CODECS + "evt3_trigger": (2, 0, 1.247946428, [("/event_camera/events", PACKET, 105, "")]),
    CODECS + "libcaer_rollover": (0, 0, 2.000137237, [("/event_camera/events", PACKET, 201, "")]),
    CODECS + "mono_cd": (0, 0, 9.9e-05, [("/event_camera/events", FORMER_PACKET, 2, "")]),
    "cuke-emlb/demo-01.aedat4": (52, 13, 0.51099, [
        ("events", "EVTS", 319512, ""), ("frames", "FRME", 13, ""), ("imu", "IMUS", 510, NO_STREAM),
        ("triggers", "TRIG", 52, ""),
    ]),
    "event-vision-library/sample.aedat4": (17, 4, 0.173594, [
        ("events", "EVTS", 6676, ""), ("frames", "FRME", 4, ""), ("imu", "IMUS", 160, NO_STREAM),
        ("triggers", "TRIG", 17, ""),
    ]),
    "EventGPT/sample1.npy": (0, 0, 0.049595, [("events", "npy", 132268, "")]),
}  # fmt: skip
LIBCAER_SUM_OF_T = 15762826572202229126  # as published, for upstream adds in 64 bits


@pytest.mark.parametrize("name", EVENTS)
def test_evspec_info_tells_every_recording_exactly(
    shared_data: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts, sums and times of the sensor's clock as whole numbers, triggers, frames, length and topics."""
    triggers, frames, seconds, streams = REST[name]
    assert cli.main(["info", str(shared_data / name), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "events": dict(zip(FIELDS, EVENTS[name], strict=True)),
        "triggers": triggers,
        "frames": frames,
        "duration_s": seconds,
        "topics": [
            {"name": stream, "type": kind, "count": count} | ({"left_out": left_out} if left_out else {})
            for stream, kind, count, left_out in streams
        ],
    }


def test_no_recording_is_left_out(shared_data: Path) -> None:
    """Every bag and every file that lies there is told of above."""
    found = {path.parent for path in shared_data.rglob("metadata.yaml")}
    found |= {
        path
        for path in shared_data.rglob("*")
        if path.suffix in {".aedat4", ".npy", ".raw", ".dat", ".h5", ".bag"}
    }
    assert {str(path.relative_to(shared_data)) for path in found} == set(EVENTS)


def test_the_sum_of_times_is_upstreams_modulo_its_word() -> None:
    """The published sum of libcaer_rollover is the exact one's remainder by 2^64."""
    assert EVENTS[CODECS + "libcaer_rollover"][3] % 2**64 == LIBCAER_SUM_OF_T


def test_grey_frames_become_rgb(shared_data: Path) -> None:
    """The DAVIS346's frames are 346x260, grey in all three channels, and within the events' time."""
    recording = open_recording(shared_data / "cuke-emlb/demo-01.aedat4")
    for frame in recording.frames():
        assert frame.image.shape == (260, 346, 3)
        assert (frame.image == frame.image[:, :, :1]).all()
        assert recording.start_ns <= frame.stamp_ns < recording.stop_ns


def test_a_bag_is_timed_by_its_header_stamps(shared_data: Path) -> None:
    """A bag whose log time is 302 days after its stamps is read at its stamps."""
    recording = open_recording(shared_data / (CODECS + "evt3_trigger"))
    logged_ns = 1691878988653097653
    assert (logged_ns - recording.start_ns) / 86_400e9 == pytest.approx(301.1, abs=1)


@pytest.mark.parametrize(
    "name", [name for name in EVENTS if name not in {CODECS + "evt3_trigger", CODECS + "mono_cd"}]
)
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_conversion_keeps_every_event(shared_data: Path, tmp_path: Path, name: str, storage: str) -> None:
    """A recording made with microseconds comes back from rosbag2 with the same counts and sums."""
    source = open_recording(shared_data / name)
    convert(source.path, tmp_path / "bag", storage)
    made = open_recording(tmp_path / "bag").info()
    before, after = source.info().events, made.events
    assert (after.count, after.on, after.sum_x, after.sum_y) == (
        before.count, before.on, before.sum_x, before.sum_y,
    )  # fmt: skip
    assert made.frames == source.info().frames
    if not name.startswith(CODECS):  # there the sensor's clock becomes that of the stamps
        assert after == before
        assert (made.start_ns, made.stop_ns) == (source.start_ns, source.stop_ns)
