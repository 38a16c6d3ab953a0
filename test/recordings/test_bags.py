"""Bags of ROS 1 and ROS 2: the same messages give the same events and frames."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_files import (
    HEIGHT,
    START_NS,
    WIDTH,
    compressed_image,
    equal,
    event_array,
    header,
    image,
    joined,
    mono_packet,
    random_events,
    random_frames,
    refusals,
    ros1_types,
    write_bag,
    write_rosbag1,
)
from rosbags.typesys.store import Typestore

from evspec_ros.errors import RecordingError
from evspec_ros.events.bounds import Outside
from evspec_ros.events.types import Events
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.recording import Recording, clipped
from evspec_ros.recordings.rosbag2_types import COMPRESSED_IMAGE, EVENT_PACKET, IMAGE, typestore

ARRAYS = ("dvs_msgs", "prophesee_event_msgs", "dv_ros2_msgs")
DAY_NS = 86_400_000_000_000
BOOT_NS = 7_000_000_000  # the sensor's time at START_NS
STORES = {"ros1": ros1_types, "ros2": typestore}

Message = tuple[str, str, int, Any]
ROS = pytest.mark.parametrize("ros", STORES)


def written(ros: str, folder: Path, messages: Iterable[Message]) -> Recording:
    """A bag of these messages, opened."""
    path = folder / "recording.bag"
    (write_rosbag1 if ros == "ros1" else write_bag)(path, messages)
    return open_recording(path)


def arrays(store: Typestore, package: str, count: int) -> list[Message]:
    """Event arrays of 0.1 s each, stamped and logged long after their events."""
    kind = f"{package}/msg/EventArray"
    sent = [random_events(50, 0.1, index, START_NS + index * 100_000_000) for index in range(count)]
    return [
        ("/dvs/events", kind, START_NS + DAY_NS + index, event_array(events, START_NS, package, store))
        for index, events in enumerate(sent)
    ]


@ROS
@pytest.mark.parametrize("package", ARRAYS)
def test_events_of_arrays_have_ros_time_as_they_are(ros: str, package: str, tmp_path: Path) -> None:
    """Every event comes back exactly, neither the header's stamp nor the log's time shifts it."""
    sent = joined(random_events(50, 0.1, index, START_NS + index * 100_000_000) for index in range(4))
    recording = written(ros, tmp_path, arrays(STORES[ros](), package, 4))
    assert equal(joined(recording.events()), sent)
    assert recording.info().events.sum_t_ns == sum(sent.t.tolist())
    assert [(topic.name, topic.type, topic.count) for topic in recording.topics] == [
        ("/dvs/events", f"{package}/msg/EventArray", 4)
    ]


@ROS
def test_packets_come_on_the_header_stamps_clock(ros: str, tmp_path: Path) -> None:
    """A camera's own time becomes that of the stamps, in both kinds of bags."""
    store = STORES[ros]()
    events = random_events(300, 0.1, 0, BOOT_NS)
    stamp = START_NS + int(events.t[0]) - BOOT_NS
    messages = [("/events", EVENT_PACKET, START_NS + DAY_NS, mono_packet(events, stamp, store=store))]
    recording = written(ros, tmp_path, messages)
    shifted = Events(events.t + START_NS - BOOT_NS, events.x, events.y, events.p, WIDTH, HEIGHT)
    assert equal(joined(recording.events()), shifted)
    assert recording.info().events.sum_t_ns == int(events.t.sum())


@ROS
@pytest.mark.parametrize("compressed", [False, True])
def test_images_are_read_raw_and_compressed(ros: str, compressed: bool, tmp_path: Path) -> None:
    """Both give the pixels and stamps that were written."""
    store, frames = STORES[ros](), random_frames(3)
    kind, write = (COMPRESSED_IMAGE, compressed_image) if compressed else (IMAGE, image)
    messages = [
        ("/camera/image", kind, frame.stamp_ns, write(frame.stamp_ns, frame.image, store=store))
        for frame in frames
    ]
    for made, frame in zip(written(ros, tmp_path, messages).frames(), frames, strict=True):
        assert made.stamp_ns == frame.stamp_ns
        np.testing.assert_array_equal(made.image, frame.image)


@ROS
def test_what_is_no_picture_is_left_out_with_its_reason(ros: str, tmp_path: Path) -> None:
    """A compressed depth topic, though the busiest, gives way to one that can be read."""
    store, (frame, *_) = STORES[ros](), random_frames(2)
    depth = compressed_image(frame.stamp_ns, frame.image, "16UC1; compressedDepth png", store)
    colour = compressed_image(frame.stamp_ns, frame.image, "rgb8; png compressed bgr8", store)
    messages = [("/depth", COMPRESSED_IMAGE, START_NS + index, depth) for index in range(3)]
    recording = written(ros, tmp_path, [*messages, ("/colour", COMPRESSED_IMAGE, START_NS, colour)])
    left_out = {topic.name: topic.left_out for topic in recording.topics}
    assert left_out["/colour"] == ""
    assert "holds distances" in left_out["/depth"]
    assert len(list(recording.frames())) == 1


@ROS
def test_topics_without_events_or_images_are_named_and_not_read(ros: str, tmp_path: Path) -> None:
    """Their types need not even be known."""
    store = STORES[ros]()
    point = store.types["geometry_msgs/msg/Point"](x=0.0, y=0.0, z=0.0)
    pose = store.types["geometry_msgs/msg/PointStamped"](header=header(START_NS, store), point=point)
    messages = [*arrays(store, "dvs_msgs", 1), ("/pose", "geometry_msgs/msg/PointStamped", START_NS, pose)]
    recording = written(ros, tmp_path, messages)
    assert [topic.left_out for topic in recording.topics] == ["", "it holds neither events nor images"]


@settings(deadline=None, max_examples=20)
@given(data=st.data(), ros=st.sampled_from(list(STORES)))
def test_a_slice_is_the_whole_filtered(
    data: st.DataObject, ros: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """events(start, stop) gives what lies between, whatever the times."""
    recording = written(ros, tmp_path_factory.mktemp("bag"), arrays(STORES[ros](), "dvs_msgs", 3))
    whole = joined(recording.events())
    bounds = st.none() | st.integers(START_NS - 10**6, START_NS + 310_000_000)
    start, stop = data.draw(bounds), data.draw(bounds)
    part = Events.concatenate(recording.events(start, stop), WIDTH, HEIGHT)
    assert equal(part, clipped(whole, start, stop))


def test_the_definitions_in_the_bag_are_what_counts(tmp_path: Path) -> None:
    """A .bag is read by its own message definitions; one that is damaged is named."""
    path = tmp_path / "r.bag"
    write_rosbag1(path, arrays(ros1_types(), "dvs_msgs", 1))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Event[] events", b"Event<] events"))
    with pytest.raises(
        RecordingError, match="defines the message type dvs_msgs/msg/EventArray of /dvs/events"
    ):
        open_recording(path)


@pytest.mark.parametrize("compression", ["none", "bz2", "lz4"])
def test_every_compression_of_ros1_is_read(tmp_path: Path, compression: str) -> None:
    """What rosbag record offers: none, bz2, lz4."""
    write_rosbag1(tmp_path / "r.bag", arrays(ros1_types(), "dvs_msgs", 2), compression)
    assert open_recording(tmp_path / "r.bag").info().events.count == 100


def test_a_bag_of_ros1_cut_anywhere_is_told(tmp_path: Path) -> None:
    """What is there is read and the cut is told, or there is one sentence why not."""
    path = tmp_path / "r.bag"
    write_rosbag1(path, arrays(ros1_types(), "dvs_msgs", 4))
    data = path.read_bytes()
    most, reasons = 0, []
    for size in np.linspace(1, len(data) - 1, 40).astype(int):
        path.write_bytes(data[:size])
        try:
            recording = open_recording(path)
            most = max(most, recording.info().events.count)
            assert "cut short" in recording.remarks[0]
        except RecordingError as error:
            reasons.append(str(error))
    assert most == 200
    assert all(re.search("damaged, cut|no recording known|is empty|no message", told) for told in reasons)


def test_damage_of_ros1_never_escapes_as_another_error(tmp_path: Path) -> None:
    """Random bytes anywhere end in RecordingError or in a recording that reads to its end."""
    path = tmp_path / "r.bag"
    store, (frame, *_) = ros1_types(), random_frames(1)
    picture = ("/image", IMAGE, START_NS, image(frame.stamp_ns, frame.image[:8, :8], store=store))
    write_rosbag1(path, [*arrays(store, "dvs_msgs", 2), picture])
    assert refusals(path, 150, first=13, most=100) > 20


@ROS
@pytest.mark.parametrize("kind", [EVENT_PACKET, "dvs_msgs/msg/EventArray"])
def test_events_outside_the_sensor_are_counted_over_all_messages(ros: str, kind: str, tmp_path: Path) -> None:
    """The first of them is named, with a size that holds all."""
    store, messages = STORES[ros](), []
    for index in range(3):
        events = random_events(50, 0.1, index, START_NS + index * 100_000_000)
        events.x[[10, 20]], events.y[[10, 20]] = (200 + index, 90), 100
        stamp = START_NS + index * 100_000_000
        message = (
            mono_packet(events, stamp, store=store)
            if kind == EVENT_PACKET
            else event_array(events, stamp, "dvs_msgs", store)
        )
        messages.append(("/events", kind, stamp, message))
    info = written(ros, tmp_path, messages).info().events
    assert (info.count, info.outside) == (144, Outside(6, (200, 100), 203, 101))
    assert info.size_that_holds_all == (240, 180)
