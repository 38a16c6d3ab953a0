"""The published values of real recordings, reproduced exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from evspec_ros.recordings import open_recording
from evspec_ros.recordings.convert import convert

CODECS = "event_camera_codecs/test_data_"
# Upstream adds times in 64 bits, so its sums are remainders by 2^64.
SUMS = {  # recording: events, on, sum of t in ns modulo 2^64, of x, of y, triggers, sensor
    CODECS + "evt3_trigger": (82469, 41439, 1222326831810000, 42078718, 31656267, 2, (1280, 720)),
    CODECS + "libcaer_rollover": (334331, 181908, 15762826572202229126, 111651612, 82801007, 0, (640, 480)),
    CODECS + "mono_cd": (100, 50, 4950000, 34450, 26450, 0, (640, 480)),
}
CONTENTS = {  # recording: events, on, frames, IMU samples, seconds, sensor
    "cuke-emlb/demo-01.aedat4": (319512, 166736, 13, 510, 0.511, (346, 260)),
    "event-vision-library/sample.aedat4": (6676, 3563, 4, 160, 0.17, (346, 260)),
    "EventGPT/sample1.npy": (132268, 64714, 0, None, 0.0496, (640, 480)),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_over_bags_are_upstreams(shared_data: Path, name: str) -> None:
    """Counts and sums of all fields are the published ones, times on the sensor's clock."""
    info = open_recording(shared_data / name).info()
    events = info.events
    assert (
        events.count, events.on, events.sum_t_ns % 2**64, events.sum_x, events.sum_y, info.triggers,
        (events.width, events.height),
    ) == SUMS[name]  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_of_files_are_as_published(shared_data: Path, name: str) -> None:
    """Events, frames, IMU samples and duration are those of the recordings' makers."""
    events, on, frames, imu, seconds, sensor = CONTENTS[name]
    info = open_recording(shared_data / name).info()
    assert (info.events.count, info.events.on, info.frames) == (events, on, frames)
    assert (info.events.width, info.events.height) == sensor
    assert info.duration_s == pytest.approx(seconds, abs=0.005)
    assert next((topic.count for topic in info.topics if topic.type == "IMUS"), None) == imu


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


@pytest.mark.parametrize("name", [*CONTENTS, CODECS + "libcaer_rollover"])
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
