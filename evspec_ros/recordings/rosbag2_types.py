"""The message types of bags, for reading and writing them without ROS."""

from __future__ import annotations

from functools import cache

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from evspec_ros.interfaces import message_texts

EVENT_PACKET = "event_camera_msgs/msg/EventPacket"
EVENT_ARRAY = "event_array_msgs/msg/EventArray"  # the former name of EventPacket, laid out alike
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"


@cache
def typestore() -> Typestore:
    """ROS 2's standard types and those that most installations lack."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in message_texts().items():
        store.register(get_types_from_msg(text, name))
    return store
