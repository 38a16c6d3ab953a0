"""Which topics of a bag are read, and which were named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from recording_files import (
    START_NS,
    compressed_image,
    event_array,
    header,
    image,
    joined,
    mono_packet,
    random_events,
    random_frames,
    ros1_types,
    write_aedat4,
    write_bag,
    write_rosbag1,
)
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from evspec_ros import cli
from evspec_ros.errors import RecordingError
from evspec_ros.interfaces import message_texts
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.recording import Wanted
from evspec_ros.recordings.rosbag2_types import COMPRESSED_IMAGE, EVENT_PACKET, IMAGE, typestore

Message = tuple[str, str, int, Any]


def pictures(topic: str, count: int, encoding: str) -> list[Message]:
    """Images of noise; of 16 bits where the encoding has them."""
    shape = (48, 64, 3) if encoding in ("rgb8", "bgr8") else (48, 64)
    kind = np.uint16 if "16" in encoding else np.float32 if "32F" in encoding else np.uint8
    pixels = np.random.default_rng(0).integers(0, 255, shape).astype(kind)
    return [
        (topic, IMAGE, START_NS + index, image(START_NS + index, pixels, encoding)) for index in range(count)
    ]


def compressed(topic: str, count: int, image_format: str, pixels: np.ndarray, suffix: str) -> list[Message]:
    """Compressed images; pixels as OpenCV holds them."""
    data = cv2.imencode(suffix, pixels)[1].reshape(-1)
    message = typestore().types[COMPRESSED_IMAGE]
    return [
        (topic, COMPRESSED_IMAGE, START_NS + index, message(header(START_NS + index), image_format, data))
        for index in range(count)
    ]


def packets(topic: str, count: int) -> list[Message]:
    """Event packets of 100 events."""
    return [
        (
            topic,
            EVENT_PACKET,
            START_NS + index,
            mono_packet(random_events(100, 0.01, index), START_NS + index),
        )
        for index in range(count)
    ]


def written(folder: Path, messages: Iterable[Message]) -> Path:
    """A bag of these messages."""
    write_bag(folder / "bag", sorted(messages, key=lambda message: message[2]), "mcap")
    return folder / "bag"


def read(path: Path) -> list[str]:
    """The topics that are read."""
    return [topic.name for topic in open_recording(path).topics if not topic.left_out]


GREY, DEEP = np.full((48, 64), 99, np.uint8), np.full((48, 64), 1500, np.uint16)
COLOUR = np.dstack([GREY, GREY + 1, GREY + 2])
NO_COLOUR_CAMERA = {
    "distances as PNG": compressed("/other", 9, "16UC1; png compressed ", DEEP, ".png"),
    "compressedDepth": compressed("/other", 9, "16UC1; compressedDepth png", DEEP, ".png"),
    "floats": compressed("/other", 9, "32FC1; png compressed", DEEP, ".png"),
    "a PNG of 16 bits that tells nothing": compressed("/other", 9, "png", DEEP, ".png"),
    "mono16 as PNG": compressed("/other", 9, "mono16; png compressed mono16", DEEP, ".png"),
    "labels as PNG": compressed("/other", 9, "8UC1; png compressed", GREY, ".png"),
    "infrared as JPEG": compressed("/other", 9, "mono8; jpeg compressed mono8", GREY, ".jpg"),
    "raw 16UC1": pictures("/other", 9, "16UC1"),
    "raw 32FC1": pictures("/other", 9, "32FC1"),
    "raw mono16": pictures("/other", 9, "mono16"),
    "raw mono8": pictures("/other", 9, "mono8"),
}
COLOUR_CAMERA = {
    "raw": pictures("/z/colour", 2, "rgb8"),
    "Bayer": pictures("/z/colour", 2, "bayer_rggb8"),
    "Bayer as PNG": compressed("/z/colour", 2, "bayer_rggb8; png compressed bayer_rggb8", GREY, ".png"),
    "JPEG": compressed("/z/colour", 2, "rgb8; jpeg compressed bgr8", COLOUR, ".jpg"),
    "a JPEG that tells nothing": compressed("/z/colour", 2, "jpeg", COLOUR, ".jpg"),
}


def test_the_sample_with_depth_gives_the_colour_camera(shared_cases: Path) -> None:
    """Distances as PNG are not taken, and the reason is told."""
    recording = open_recording(shared_cases / "depth_png_taken_for_colour")
    told = {topic.name: topic.left_out for topic in recording.topics}
    assert told["/camera/color/image_raw/compressed"] == ""
    assert "holds distances" in told["/camera/aligned_depth_to_color/image_raw/compressed"]
    assert len(list(recording.frames())) == 10


@pytest.mark.parametrize("other", NO_COLOUR_CAMERA)
@pytest.mark.parametrize("colour", COLOUR_CAMERA)
def test_a_colour_camera_goes_before_all_others(tmp_path: Path, other: str, colour: str) -> None:
    """However busy the others are: what an encoding can be decides."""
    path = written(tmp_path, [*NO_COLOUR_CAMERA[other], *COLOUR_CAMERA[colour]])
    assert read(path) == ["/z/colour"]
    assert [topic.left_out for topic in open_recording(path).topics if topic.name == "/other"] != [""]


@pytest.mark.parametrize("other", ["mono16 as PNG", "labels as PNG", "raw mono16"])
def test_a_grey_camera_goes_before_what_may_be_none(tmp_path: Path, other: str) -> None:
    """And where there is nothing else, that is read."""
    messages = NO_COLOUR_CAMERA[other]
    assert read(written(tmp_path, [*messages, *pictures("/z/grey", 2, "mono8")])) == ["/z/grey"]
    (tmp_path / "alone").mkdir()
    assert read(written(tmp_path / "alone", messages)) == ["/other"]


def test_distances_alone_are_no_camera(tmp_path: Path) -> None:
    """A bag whose only images are distances is read for its events; with nothing else it is refused."""
    depth = NO_COLOUR_CAMERA["distances as PNG"]
    assert read(written(tmp_path, [*depth, *packets("/events", 2)])) == ["/events"]
    (tmp_path / "alone").mkdir()
    with pytest.raises(RecordingError, match=r"no topic that can be read \(/other: .* holds distances"):
        open_recording(written(tmp_path / "alone", depth))


@pytest.mark.parametrize("bad", [1, 30])
def test_bad_first_messages_do_not_lose_the_topic(tmp_path: Path, bad: int) -> None:
    """A topic is judged by its first message that can be read; here the first are empty."""
    messages = [*packets("/events", 1), *compressed("/camera", bad + 3, "jpeg", COLOUR, ".jpg")]
    for _, _, _, message in messages[1 : bad + 1]:
        message.data = np.zeros(0, np.uint8)
    assert read(written(tmp_path, messages)) == ["/camera", "/events"]


SEVERAL = [
    *packets("/left/events", 1), *packets("/right/events", 2), *pictures("/left/image", 2, "rgb8"),
    *pictures("/right/image", 3, "rgb8"), *pictures("/grey/image", 9, "mono8"),
    *pictures("/depth", 9, "16UC1"),
]  # fmt: skip


def test_topics_can_be_named(tmp_path: Path) -> None:
    """Those named are read, of the other kind the one that would be read anyway."""
    path = written(tmp_path, SEVERAL)
    assert read(path) == ["/right/events", "/right/image"]
    recording = open_recording(path, Wanted(events="/left/events"))
    assert [t.name for t in recording.topics if not t.left_out] == ["/left/events", "/right/image"]
    assert len(joined(recording.events())) == 100
    recording = open_recording(path, Wanted("/left/events", "/grey/image"))
    assert [t.name for t in recording.topics if not t.left_out] == ["/grey/image", "/left/events"]
    assert {t.left_out for t in recording.topics} == {"", "/left/events was chosen", "/grey/image was chosen"}
    assert len(list(recording.frames())) == 9


def test_a_wrong_name_lists_those_there_are(tmp_path: Path) -> None:
    """Also the name of a topic of the other kind; one that cannot be read is told why."""
    path = written(tmp_path, SEVERAL)
    with pytest.raises(
        RecordingError, match=r"/centre for --events; .* would do: /left/events, /right/events\.$"
    ):
        open_recording(path, Wanted(events="/centre"))
    with pytest.raises(RecordingError, match=r"/left/events for --image; .*: .*/right/image"):
        open_recording(path, Wanted(image="/left/events"))
    with pytest.raises(RecordingError, match=r"topic /depth of .* cannot be read: .*'16UC1' holds distances"):
        open_recording(path, Wanted(image="/depth"))


def test_topics_of_other_files_are_not_chosen(tmp_path: Path) -> None:
    """A file with one stream of each kind accepts their names and no others."""
    frames = [(frame.stamp_ns, frame.image) for frame in random_frames(2)]
    write_aedat4(tmp_path / "r.aedat4", [random_events(10)], frames)
    names = [topic.name for topic in open_recording(tmp_path / "r.aedat4").topics]
    assert open_recording(tmp_path / "r.aedat4", Wanted(*names)).info().events.count == 10
    with pytest.raises(RecordingError, match=rf"no topic /a; it is no bag, .* is {', '.join(names)}\.$"):
        open_recording(tmp_path / "r.aedat4", Wanted(events="/a"))


def test_info_and_convert_take_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--events` and `--image` choose on the command line; a wrong name ends with status 1."""
    path = str(written(tmp_path, SEVERAL))
    assert cli.main(["info", "--json", "--image", "/left/image", "--events", "/left/events", path]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["events"]["count"], told["frames"]) == (100, 2)
    assert cli.main(["convert", "--json", "--image", "/left/image", path, str(tmp_path / "made")]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 2
    assert cli.main(["info", "--image", "/centre", path]) == 1
    assert "/centre for --image" in capsys.readouterr().err


# Event arrays under other names


def test_the_sample_of_dv_ros2_is_read(shared_cases: Path) -> None:
    """All 400 events of a dv_ros2_msgs/EventArray."""
    assert open_recording(shared_cases / "dv_ros2_eventarray").info().events.count == 400


@pytest.mark.parametrize("storage", list(StoragePlugin))
def test_an_event_array_of_any_package_is_read_by_its_definition(
    tmp_path: Path, storage: StoragePlugin
) -> None:
    """A type with the fields of dvs_msgs' that the bag itself defines, whatever its name; no other one."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in message_texts().items():
        if name.startswith("dvs_msgs"):
            ours = text.replace("uint16 x ", "uint16 x_before_y ")
            store.register(get_types_from_msg(text, name.replace("dvs_msgs", "nobodys_msgs")))
            store.register(get_types_from_msg(ours, name.replace("dvs_msgs", "other_msgs")))
    sent = random_events(50)
    with Writer(tmp_path / "bag", version=8, storage_plugin=storage) as writer:
        for package in ("nobodys_msgs", "other_msgs"):
            connection = writer.add_connection(f"/{package}", f"{package}/msg/EventArray", typestore=store)
            array = event_array(sent, START_NS, "dvs_msgs")
            data = typestore().serialize_cdr(array, "dvs_msgs/msg/EventArray")
            writer.write(connection, START_NS, data)
    recording = open_recording(tmp_path / "bag")
    assert [(t.type, t.left_out) for t in recording.topics] == [
        ("nobodys_msgs/msg/EventArray", ""),
        ("other_msgs/msg/EventArray", "it holds neither events nor images"),
    ]
    assert joined(recording.events()).t.tolist() == sent.t.tolist()


def test_an_event_array_of_any_package_is_read_in_ros1(tmp_path: Path) -> None:
    """dv_ros_msgs and whatever else has the fields, by the sum that ROS 1 makes of them."""
    store = get_typestore(Stores.ROS1_NOETIC)
    for name, text in message_texts().items():
        if name.startswith("dvs_msgs"):
            store.register(get_types_from_msg(text, name.replace("dvs_msgs", "dv_ros_msgs")))
    sent = random_events(50)
    array = event_array(sent, START_NS, "dvs_msgs", ros1_types())
    with Rosbag1Writer(tmp_path / "r.bag") as writer:
        connection = writer.add_connection("/events", "dv_ros_msgs/msg/EventArray", typestore=store)
        writer.write(connection, START_NS, ros1_types().serialize_ros1(array, "dvs_msgs/msg/EventArray"))
    assert joined(open_recording(tmp_path / "r.bag").events()).t.tolist() == sent.t.tolist()


# Little or nothing in it


def empty_topics(folder: Path, *topics: tuple[str, str]) -> Path:
    """A bag with topics and not a message."""
    with Writer(folder / "bag", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        for name, kind in topics:
            writer.add_connection(name, kind, typestore=typestore())
    return folder / "bag"


def test_a_bag_without_messages_is_one_sentence(tmp_path: Path) -> None:
    """Topics that nobody sent anything on are named."""
    path = empty_topics(tmp_path, ("/events", EVENT_PACKET), ("/image", IMAGE))
    with pytest.raises(RecordingError) as error:
        open_recording(path)
    assert str(error.value).endswith(
        "no topic that can be read (/events: no message was recorded; /image: no message was recorded)."
    )


def test_a_bag_without_topics_is_one_sentence(tmp_path: Path) -> None:
    """There is nothing in it at all."""
    with pytest.raises(RecordingError, match=r"is empty: there is no topic in it"):
        open_recording(empty_topics(tmp_path))


def test_a_bag_without_events_and_images_tells_its_topics(tmp_path: Path) -> None:
    """It is a bag all the same; there is nothing to convert."""
    path = empty_topics(tmp_path, ("/pose", "geometry_msgs/msg/PointStamped"))
    info = open_recording(path).info()
    assert (info.events.count, info.frames, info.duration_s) == (0, 0, 0.0)
    assert [topic.left_out for topic in info.topics] == ["it holds neither events nor images"]
    assert cli.main(["convert", str(path), str(tmp_path / "made")]) == 1


def test_a_bag_of_one_camera_is_read(tmp_path: Path) -> None:
    """Events alone, frames alone, each beside a topic of the other kind without a message."""
    image_only = compressed_image(START_NS, random_frames(1)[0].image, "png")
    for number, messages in enumerate(
        ([("/image", COMPRESSED_IMAGE, START_NS, image_only)], packets("/events", 1))
    ):
        (tmp_path / str(number)).mkdir()
        path = written(tmp_path / str(number), messages)
        assert read(path) == [messages[0][0]]
    store = ros1_types()
    array = event_array(random_events(50), START_NS, "dvs_msgs", store)
    write_rosbag1(tmp_path / "r.bag", [("/events", "dvs_msgs/msg/EventArray", START_NS, array)])
    assert read(tmp_path / "r.bag") == ["/events"]
