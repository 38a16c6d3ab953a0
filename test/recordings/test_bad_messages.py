"""Bad messages in bags: skipped, counted, the first one named; the rest is read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from recording_files import (
    START_NS,
    compressed_image,
    event_array,
    image,
    mono_packet,
    random_events,
    random_frames,
    ros1_types,
    typestore,
    write_rosbag1,
)
from rosbags.rosbag2 import StoragePlugin, Writer

from evspec_ros import cli
from evspec_ros.errors import RecordingError
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.rosbag2_types import COMPRESSED_IMAGE, EVENT_PACKET, IMAGE

ARRAYS = "dvs_msgs/msg/EventArray"
COUNT = 10
STEP_NS = 20_000_000
PIXELS = [frame.image for frame in random_frames(COUNT)]
JPEGS = [cv2.imencode(".jpg", pixels)[1] for pixels in PIXELS]


def compressed(k: int, data: np.ndarray | None = None) -> Any:
    """The k-th image as a JPEG, or these bytes."""
    message = compressed_image(START_NS + k * STEP_NS, PIXELS[k], "jpeg")
    message.data = JPEGS[k] if data is None else data
    return message


def raw(k: int, **changes: Any) -> Any:
    """The k-th image with any field changed."""
    message = image(START_NS + k * STEP_NS, PIXELS[k])
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def events(k: int, **changes: Any) -> Any:
    """The k-th packet with any field changed."""
    message = mono_packet(random_events(50, 0.01, k, START_NS + k * STEP_NS), START_NS + k * STEP_NS)
    message.seq = k
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def array(k: int) -> Any:
    """The k-th event array."""
    return event_array(random_events(50, 0.01, k, START_NS + k * STEP_NS), 0, "dvs_msgs")


def serialised(kind: str, message: Any) -> bytes:
    """By rosbags."""
    return bytes(typestore().serialize_cdr(message, kind))


BAD: dict[str, tuple[str, Callable[[int], Any], Callable[[int], bytes], str]] = {
    "empty JPEG": (
        COMPRESSED_IMAGE, compressed,
        lambda k: serialised(COMPRESSED_IMAGE, compressed(k, np.zeros(0, np.uint8))), "no JPEG, PNG",
    ),
    "cut JPEG": (
        COMPRESSED_IMAGE, compressed,
        lambda k: serialised(COMPRESSED_IMAGE, compressed(k, JPEGS[k][:100])), "JPEG",
    ),
    "short image": (
        IMAGE, raw, lambda k: serialised(IMAGE, raw(k, data=np.zeros(100, np.uint8))), "100",
    ),
    "image of an unknown encoding": (
        IMAGE, raw, lambda k: serialised(IMAGE, raw(k, encoding="holographic")), "holographic",
    ),
    "cut image message": (IMAGE, raw, lambda k: serialised(IMAGE, raw(k))[:30], "damaged or cut short"),
    "empty image message": (IMAGE, raw, lambda k: b"", "damaged or cut short"),
    "packet of odd length": (
        EVENT_PACKET, events,
        lambda k: serialised(EVENT_PACKET, events(k, events=np.zeros(41, np.uint8))), "41 bytes is damaged",
    ),
    "packet of no pixels": (
        EVENT_PACKET, events,
        lambda k: serialised(EVENT_PACKET, events(k, width=0, height=0)), "0 x 0 pixels",
    ),
    "cut packet message": (
        EVENT_PACKET, events, lambda k: serialised(EVENT_PACKET, events(k))[:60], "cut short",
    ),
    "noise for a packet": (EVENT_PACKET, events, lambda k: b"\xff" * 100, "is not CDR"),
    "cut event array": (ARRAYS, array, lambda k: serialised(ARRAYS, array(k))[:200], "only"),
}  # fmt: skip


def write(path: Path, name: str, bad: set[int]) -> None:
    """A bag of ten messages, the bad ones among them, beside ten good ones of the other camera."""
    kind, good, spoil, _ = BAD[name]
    other, other_kind = (events, EVENT_PACKET) if kind in {IMAGE, COMPRESSED_IMAGE} else (raw, IMAGE)
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection("/topic", kind, typestore=typestore())
        beside = writer.add_connection("/beside", other_kind, typestore=typestore())
        for k in range(COUNT):
            data = spoil(k) if k in bad else serialised(kind, good(k))
            writer.write(topic, START_NS + k * STEP_NS, data)
            writer.write(beside, START_NS + k * STEP_NS, serialised(other_kind, other(k)))


@pytest.mark.parametrize("bad", [{0}, {5}, {0, 1, 2, 9}, {9}])
@pytest.mark.parametrize("name", BAD)
def test_bad_messages_are_skipped_counted_and_the_first_is_named(
    name: str, bad: set[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever in the topic they are; one warning, however often the bag is read."""
    write(tmp_path / "bag", name, bad)
    with caplog.at_level(logging.WARNING):
        recording = open_recording(tmp_path / "bag")
        info = recording.info()
        list(recording.events())
        list(recording.frames())
    kind, *_, told = BAD[name]
    frames = kind in {IMAGE, COMPRESSED_IMAGE}
    good = COUNT - len(bad)
    assert info.frames == (good if frames else COUNT)
    assert info.events.count == 50 * (COUNT if frames else good)
    topics = {topic.name: topic for topic in info.topics}
    assert not any(topic.left_out for topic in info.topics)
    assert (topics["/topic"].read.refused, topics["/beside"].read.refused) == (len(bad), 0)
    assert topics["/topic"].read.lost == 0
    first = topics["/topic"].first_refusal
    assert first is not None
    assert (first.number, first.log_ns) == (min(bad) + 1, START_NS + min(bad) * STEP_NS)
    assert told in first.reason
    assert first.reason.endswith(".")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "/topic" in warnings[0]
    assert told in warnings[0]


@pytest.mark.parametrize("name", BAD)
def test_a_topic_of_bad_messages_alone_is_left_out(name: str, tmp_path: Path) -> None:
    """With its reason; the other camera is read."""
    write(tmp_path / "bag", name, set(range(COUNT)))
    info = open_recording(tmp_path / "bag").info()
    left_out = {topic.name: topic.left_out for topic in info.topics}
    assert left_out["/beside"] == ""
    assert BAD[name][3] in left_out["/topic"]


@pytest.mark.parametrize("position", [0, 1])
def test_bad_messages_of_ros1_are_skipped_too(position: int, tmp_path: Path) -> None:
    """A JPEG that is empty, a packet whose length is odd."""
    store = ros1_types()
    messages = []
    for k in range(4):
        stamp_ns = START_NS + k * STEP_NS
        part = mono_packet(random_events(50, 0.01, k, stamp_ns), stamp_ns, store=store)
        picture = compressed_image(stamp_ns, PIXELS[k], "jpeg", store)
        part.seq = k
        if k == position:
            part.events, picture.data = np.zeros(41, np.uint8), np.zeros(0, np.uint8)
        messages += [
            ("/events", EVENT_PACKET, stamp_ns, part),
            ("/image", COMPRESSED_IMAGE, stamp_ns, picture),
        ]
    write_rosbag1(tmp_path / "r.bag", messages)
    info = open_recording(tmp_path / "r.bag").info()
    assert (info.events.count, info.frames) == (150, 3)
    assert [topic.read.refused for topic in info.topics] == [1, 1]


def test_the_sample_with_an_empty_jpeg_has_nine_frames(
    shared_cases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One left out and counted, told as JSON and for people, the events whole."""
    path = str(shared_cases / "one_empty_jpeg_mid")
    assert cli.main(["info", "--json", path]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["frames"], told["events"]["count"]) == (9, 2000)
    frames, others = told["topics"]
    assert frames["messages_left_out"] == 1
    assert frames["first_left_out"]["number"] == 6
    assert "The 0 bytes" in frames["first_left_out"]["reason"]
    assert "messages_left_out" not in others
    assert cli.main(["info", path]) == 0
    assert "1 of the messages were left out, the first of them number 6" in capsys.readouterr().out


def test_a_loss_is_told_as_json_and_for_people(
    shared_cases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two packets are missing, nine events are left out for it."""
    path = str(shared_cases / "lost_packets_evt3")
    assert cli.main(["info", "--json", path]) == 0
    (topic,) = json.loads(capsys.readouterr().out)["topics"]
    assert (topic["lost_messages"], topic["unplaced_events"]) == (2, 9)
    assert cli.main(["info", path]) == 0
    said = capsys.readouterr().out
    assert "/event_camera/events: 2 messages are missing." in said
    assert "9 events were left out" in said


def test_a_bag_of_bad_messages_alone_is_refused(tmp_path: Path) -> None:
    """With the reason of the first one."""
    with Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection("/events", EVENT_PACKET, typestore=typestore())
        for k in range(3):
            writer.write(topic, START_NS + k, b"")
    with pytest.raises(RecordingError, match=r"no topic that can be read .*/events"):
        open_recording(tmp_path / "bag")
