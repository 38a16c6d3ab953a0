"""The message texts define what the drivers send."""

from __future__ import annotations

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from evspec_ros.interfaces import message_texts

EVENT_PACKET_HASH = "RIHS01_d6fa176260b1f37e5a40845305315e150a0f18191241eb64f407442aa29844aa"


def registered() -> Typestore:
    """A store of types that knows every message defined here."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in message_texts().items():
        store.register(get_types_from_msg(text, name))
    return store


def test_every_package_is_there() -> None:
    """The drivers' packages, and one of our own."""
    assert sorted(message_texts()) == [
        "dv_ros2_msgs/msg/Event",
        "dv_ros2_msgs/msg/EventArray",
        "dvs_msgs/msg/Event",
        "dvs_msgs/msg/EventArray",
        "event_array_msgs/msg/EventArray",
        "event_camera_msgs/msg/EventPacket",
        "evspec_msgs/msg/Description",
        "prophesee_event_msgs/msg/Event",
        "prophesee_event_msgs/msg/EventArray",
    ]


def test_event_packet_has_the_hash_of_the_drivers() -> None:
    """The REP-2016 type hash, computed by rosbags, is the one that the drivers' EventPacket announces."""
    assert registered().hash_rihs01("event_camera_msgs/msg/EventPacket") == EVENT_PACKET_HASH


def test_the_older_event_array_has_the_fields_of_the_event_packet() -> None:
    """event_array_msgs/EventArray is EventPacket under its former name."""
    fields = registered().fielddefs
    assert fields["event_array_msgs/msg/EventArray"] == fields["event_camera_msgs/msg/EventPacket"]
