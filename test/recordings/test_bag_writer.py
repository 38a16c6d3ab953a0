"""Bags that this package writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_files import HEIGHT, START_NS, WIDTH, equal, joined, random_events, random_frames
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.rosbag2 import Reader
from ruamel.yaml import YAML

from evspec_ros.errors import RecordingError
from evspec_ros.events.types import Events
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.bag_writer import BagWriter
from evspec_ros.recordings.rosbag2_types import typestore

STORAGES = ("mcap", "sqlite3")


def messages(path: Path) -> list[tuple[str, int, Any]]:
    """Topic, log time and message, by rosbags alone."""
    with Reader(path) as reader:
        return [
            (connection.topic, log_ns, typestore().deserialize_cdr(data, connection.msgtype))
            for connection, log_ns, data in reader.messages(reader.connections)
        ]


@pytest.mark.parametrize("storage", STORAGES)
def test_messages_are_stamped_and_counted(tmp_path: Path, storage: str) -> None:
    """Header stamp equals log time, seq counts packets, images are rgb8 with their step."""
    frame = random_frames(1)[0]
    with BagWriter(tmp_path / "bag", storage) as bag:
        for index in range(3):
            bag.write_events(random_events(10, seed=index), START_NS + index)
        bag.write_frame(frame)
    written = messages(tmp_path / "bag")
    for _, log_ns, message in written:
        assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == log_ns
    packets = [message for topic, _, message in written if topic == "/event_camera/events"]
    assert [packet.seq for packet in packets] == [0, 1, 2]
    assert {(packet.encoding, packet.width, packet.height) for packet in packets} == {
        ("libcaer", WIDTH, HEIGHT)
    }
    (image,) = [message for topic, _, message in written if topic == "/camera/image_raw"]
    assert (image.encoding, image.width, image.height, image.step) == ("rgb8", WIDTH, HEIGHT, 3 * WIDTH)
    np.testing.assert_array_equal(image.data, frame.image.reshape(-1))


def test_metadata_is_what_players_of_every_distribution_read(tmp_path: Path) -> None:
    """metadata.yaml names the file beside it, the types with their hashes, the counts and the offered QoS."""
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_events(random_events(10), START_NS)
        bag.write_events(random_events(10), START_NS + 50)
    content = YAML(typ="safe").load((tmp_path / "bag" / "metadata.yaml").read_text())
    content = content["rosbag2_bagfile_information"]
    assert content["version"] == 8
    assert content["storage_identifier"] == "mcap"
    assert [(tmp_path / "bag" / name).is_file() for name in content["relative_file_paths"]] == [True]
    assert content["starting_time"]["nanoseconds_since_epoch"] == START_NS
    assert content["duration"]["nanoseconds"] == 50
    (topic,) = content["topics_with_message_count"]
    assert topic["message_count"] == 2
    assert isinstance(topic["topic_metadata"]["offered_qos_profiles"], str)
    assert topic["topic_metadata"]["type_description_hash"] == (
        "RIHS01_d6fa176260b1f37e5a40845305315e150a0f18191241eb64f407442aa29844aa"  # event_camera_msgs' own
    )
    with Reader(tmp_path / "bag") as reader:
        (offered,) = reader.connections[0].ext.offered_qos_profiles
    assert (offered.reliability, offered.durability) == (QosReliability.RELIABLE, QosDurability.VOLATILE)


def test_events_come_back_sorted_and_to_the_microsecond(tmp_path: Path) -> None:
    """Times lose what lies between microseconds since the packet's first; a packet in disorder is sorted."""
    order = np.random.default_rng(0).permutation(100)
    t = START_NS + np.arange(100) * 1500 + 7
    events = random_events(100)
    shuffled = Events(t[order], events.x[order], events.y[order], events.p[order], WIDTH, HEIGHT)
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_events(shuffled, int(t[0]))
    expected = Events(t[0] + (t - t[0]) // 1000 * 1000, events.x, events.y, events.p, WIDTH, HEIGHT)
    assert equal(joined(open_recording(tmp_path / "bag").events()), expected)


@pytest.mark.parametrize("storage", STORAGES)
def test_nothing_is_left_of_a_bag_that_failed(tmp_path: Path, storage: str) -> None:
    """Until the end there is nothing at the path; after an error nothing at all remains."""
    path = tmp_path / "bag"

    def interrupted() -> None:
        with BagWriter(path, storage) as bag:
            bag.write_events(random_events(10), START_NS)
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_exists_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    """A file or folder at the destination stays as it is, and the sentence says what to do."""
    path = tmp_path / "bag"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
    with pytest.raises(RecordingError, match=r"already; remove it or write elsewhere\.$"), BagWriter(path):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_bag_is_not_written(tmp_path: Path) -> None:
    """Nothing written means no bag, and an empty packet is refused."""
    with pytest.raises(RecordingError, match="no events and no frames"), BagWriter(tmp_path / "bag"):
        pass
    with pytest.raises(RecordingError, match="at least one event"), BagWriter(tmp_path / "bag") as bag:
        bag.write_events(Events.empty(WIDTH, HEIGHT), START_NS)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_storage_is_refused(tmp_path: Path) -> None:
    """The sentence lists the storages that there are."""
    with pytest.raises(RecordingError, match="mcap, sqlite3"):
        BagWriter(tmp_path / "bag", "zip")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A destination below a file raises RecordingError."""
    (tmp_path / "file").touch()
    with pytest.raises(RecordingError, match="cannot be written"), BagWriter(tmp_path / "file" / "bag"):
        pass
