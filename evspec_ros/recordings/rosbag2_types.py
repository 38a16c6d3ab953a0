"""The message types of bags, for reading and writing them without ROS."""

from __future__ import annotations

from functools import cache

from rosbags.interfaces import Connection, MessageDefinition, MessageDefinitionFormat
from rosbags.typesys import Stores, TypesysError, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from evspec_ros.interfaces import message_texts

EVENT_PACKET = "event_camera_msgs/msg/EventPacket"
EVENT_ARRAY = "event_array_msgs/msg/EventArray"  # the former name of EventPacket, laid out alike
PACKET_TYPES = frozenset({EVENT_PACKET, EVENT_ARRAY})
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
DVS_ARRAY = "dvs_msgs/msg/EventArray"
ARRAY_TYPES = frozenset({DVS_ARRAY, "prophesee_event_msgs/msg/EventArray", "dv_ros2_msgs/msg/EventArray"})

_DVS_ARRAY_MD5 = "5e8beee5a6c107e504c2e78903c224b8"  # of its fields in ROS 1, whatever their types are called


@cache
def typestore() -> Typestore:
    """ROS 2's standard types and those that most installations lack."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in message_texts().items():
        store.register(get_types_from_msg(text, name))
    return store


def read_as(connection: Connection) -> str:
    """The type of a topic's messages; for those that a bag defines with the fields of dvs_msgs' EventArray,
    whatever their name, that one.
    """
    kind = connection.msgtype
    if kind in ARRAY_TYPES or kind in typestore().types:
        return kind
    if connection.digest == _DVS_ARRAY_MD5 or _fields(kind, connection.msgdef) == _dvs_array_fields():
        return DVS_ARRAY
    return kind


@cache
def _dvs_array_fields() -> str:
    return typestore().generate_msgdef(DVS_ARRAY, ros_version=1)[1]


@cache
def _fields(kind: str, definition: MessageDefinition) -> str:
    """A sum that is the same for types of the same fields, "" where the definition cannot be read."""
    readers = {
        MessageDefinitionFormat.MSG: lambda: get_types_from_msg(definition.data, kind),
        MessageDefinitionFormat.IDL: lambda: get_types_from_idl(definition.data),
    }
    if definition.format not in readers:
        return ""
    store = get_typestore(Stores.EMPTY)
    try:
        store.register(readers[definition.format]())
        return store.generate_msgdef(kind, ros_version=1)[1]
    except (TypesysError, LookupError, ValueError):
        return ""
