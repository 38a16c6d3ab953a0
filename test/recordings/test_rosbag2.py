"""rosbag2 recordings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_files import (
    HEIGHT,
    START_NS,
    WIDTH,
    equal,
    header,
    image,
    joined,
    mono_packet,
    random_events,
    random_frames,
    refusals,
    write_bag,
)

from evspec_ros.errors import RecordingError
from evspec_ros.events.types import Events
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.rosbag2_types import EVENT_PACKET, IMAGE, typestore

DAY_NS = 86_400_000_000_000
BOOT_NS = 7_000_000_000  # the sensor's time at START_NS
EVENTS, FRAMES = "/camera/events", "/camera/image"
FILES = {"sqlite3": "bag.db3", "mcap": "bag.mcap"}

Message = tuple[str, str, int, Any]


def event_messages(count: int, topic: str = EVENTS, encoding: str = "mono") -> list[Message]:
    """Packets of 0.1 s each, on a sensor's clock since its boot, logged a day after their stamps."""
    messages = []
    for index in range(count):
        events = random_events(300, 0.1, index, BOOT_NS + index * 100_000_000)
        stamp = START_NS + int(events.t[0]) - BOOT_NS
        messages.append((topic, EVENT_PACKET, stamp + DAY_NS, mono_packet(events, stamp, encoding)))
    return messages


def frame_messages(count: int, topic: str = FRAMES, encoding: str = "rgb8") -> list[Message]:
    """Images at 30 Hz, logged a day after their stamps."""
    return [
        (topic, IMAGE, frame.stamp_ns + DAY_NS, image(frame.stamp_ns, frame.image, encoding))
        for frame in random_frames(count, count / 30)
    ]


def sent_events(count: int) -> Events:
    """The events in event_messages(count), on the sensor's clock."""
    return joined(random_events(300, 0.1, index, BOOT_NS + index * 100_000_000) for index in range(count))


@pytest.mark.parametrize("storage", FILES)
def test_events_come_on_the_header_stamps_clock(tmp_path: Path, storage: str) -> None:
    """events() is sensor time shifted to the stamps, info() is sensor time; log time plays no part."""
    write_bag(tmp_path / "bag", event_messages(5) + frame_messages(3), storage)
    recording = open_recording(tmp_path / "bag")
    sent = sent_events(5)
    on_stamps = Events(sent.t + START_NS - BOOT_NS, sent.x, sent.y, sent.p, WIDTH, HEIGHT)
    assert equal(joined(recording.events()), on_stamps)
    assert recording.info().events.sum_t_ns == int(sent.t.sum())
    assert [frame.stamp_ns for frame in recording.frames()] == [f.stamp_ns for f in random_frames(3, 0.1)]
    assert recording.start_ns == min(START_NS, int(on_stamps.t[0]))


@pytest.mark.parametrize("storage", FILES)
def test_a_lone_file_reads_like_its_folder(tmp_path: Path, storage: str) -> None:
    """An .mcap or .db3 without metadata.yaml gives the same answers."""
    write_bag(tmp_path / "bag", event_messages(2) + frame_messages(1), storage)
    folder, file = open_recording(tmp_path / "bag"), open_recording(tmp_path / "bag" / FILES[storage])
    assert folder.info() == file.info()


def test_the_busiest_readable_topics_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is left out is told with its reason, in the topics and in the log, and nothing fails."""
    pose = typestore().types["geometry_msgs/msg/PointStamped"](
        header=header(START_NS), point=typestore().types["geometry_msgs/msg/Point"](x=0.0, y=0.0, z=0.0)
    )
    messages = event_messages(1, "/left") + event_messages(2, "/right") + frame_messages(2)
    messages += frame_messages(9, "/depth", "32FC1")
    messages.append(("/pose", "geometry_msgs/msg/PointStamped", 0, pose))
    write_bag(tmp_path / "bag", messages)
    with caplog.at_level(logging.WARNING):
        recording = open_recording(tmp_path / "bag")
    told = {topic.name: (topic.count, topic.left_out) for topic in recording.topics}
    assert told[FRAMES] == (2, "")
    assert told["/right"] == (2, "")
    assert told["/left"] == (1, "/right is read instead")
    assert told["/pose"] == (1, "it holds neither events nor images")
    assert told["/depth"][0] == 9
    assert "32FC1" in told["/depth"][1]
    (line,) = caplog.messages
    for part in ("/left (/right is read instead)", "/pose (it holds neither", "/depth (An image of encoding"):
        assert part in line
    assert len(joined(recording.events())) == 600
    assert len(list(recording.frames())) == 2


def test_an_unknown_encoding_is_named(tmp_path: Path) -> None:
    """A bag whose only events are in an encoding that nobody knows is refused, naming topic and encoding."""
    write_bag(tmp_path / "bag", event_messages(1, encoding="evt9"))
    with pytest.raises(RecordingError, match=r"/camera/events: .*'evt9'"):
        open_recording(tmp_path / "bag")


def test_a_packet_of_an_unknown_encoding_midway_is_left_out_and_named(tmp_path: Path) -> None:
    """The others are read."""
    odd = event_messages(4)
    odd[2][3].encoding = "evt9"
    write_bag(tmp_path / "bag", odd)
    info = open_recording(tmp_path / "bag").info()
    assert info.events.count == 900
    (topic,) = info.topics
    assert topic.first_refusal is not None
    assert (topic.read.refused, topic.first_refusal.number) == (1, 3)
    assert "'evt9'" in topic.first_refusal.reason


def test_truncated_storage_is_refused(tmp_path: Path) -> None:
    """An SQLite file cut anywhere raises RecordingError, when opened or where the damage shows."""
    write_bag(tmp_path / "bag", event_messages(8) + frame_messages(4))
    file = tmp_path / "bag" / "bag.db3"
    data = file.read_bytes()
    for size in np.linspace(0, len(data) - 10, 30).astype(int):
        file.write_bytes(data[:size])
        for path in (tmp_path / "bag", file):
            with pytest.raises(RecordingError):
                open_recording(path).info()


@pytest.mark.parametrize("storage", FILES)
def test_damage_never_escapes_as_another_error(tmp_path: Path, storage: str) -> None:
    """Random bytes in the storage end in RecordingError or in a recording that reads to its end."""
    write_bag(tmp_path / "bag", event_messages(2) + frame_messages(1), storage)
    file = tmp_path / "bag" / FILES[storage]
    assert refusals(file, 80, first=0, most=200, recording=tmp_path / "bag") > 10


@pytest.mark.parametrize(
    "text",
    ["", "rosbag2_bagfile_information: 5", "[1, 2", "rosbag2_bagfile_information: {version: 99}", "\x00\x01"],
)
def test_broken_metadata_is_refused(tmp_path: Path, text: str) -> None:
    """A metadata.yaml that is no bag's metadata raises RecordingError."""
    (tmp_path / "metadata.yaml").write_text(text)
    with pytest.raises(RecordingError):
        open_recording(tmp_path)


def test_a_missing_storage_file_is_named(tmp_path: Path) -> None:
    """metadata.yaml without its storage raises RecordingError naming the file."""
    write_bag(tmp_path / "bag", event_messages(1))
    (tmp_path / "bag" / "bag.db3").unlink()
    with pytest.raises(RecordingError, match=r"bag\.db3"):
        open_recording(tmp_path / "bag")
