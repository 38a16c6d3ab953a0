"""Small recordings of every kind, written by other means than the readers under test."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import flatbuffers
import lz4.frame
import numpy as np
from backports import zstd
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from evspec_ros.errors import RecordingError
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.interfaces import message_texts
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.rosbag2_types import COMPRESSED_IMAGE, EVENT_PACKET, IMAGE, typestore

WIDTH, HEIGHT = 64, 48
START_NS = 1_700_000_000_000_000_000
MAGIC = b"#!AER-DAT4.0\r\n"
COMPRESSORS = {"none": (0, bytes), "lz4": (1, lz4.frame.compress), "zstd": (3, zstd.compress)}


def random_events(count: int, seconds: float = 0.1, seed: int = 0, start_ns: int = START_NS) -> Events:
    """Sorted events with times in whole microseconds."""
    random = np.random.default_rng(seed)
    t = start_ns + np.sort(random.integers(0, int(seconds * 1e6), count)) * 1000
    x, y, p = (random.integers(0, n, count) for n in (WIDTH, HEIGHT, 2))
    return Events(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8), WIDTH, HEIGHT)


def random_frames(count: int, seconds: float = 0.1, seed: int = 0) -> list[Frame]:
    """RGB frames at even distances."""
    images = np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)
    step_ns = int(seconds * 1e9) // max(count, 1)
    return [Frame(START_NS + index * step_ns, image) for index, image in enumerate(images)]


def equal(left: Events, right: Events) -> bool:
    """Whether two streams are the same, sensor included."""
    return (left.width, left.height) == (right.width, right.height) and all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in "txyp"
    )


def joined(pieces: Iterable[Events]) -> Events:
    """All events of a recording, which has some."""
    pieces = list(pieces)
    return Events.concatenate(pieces, pieces[0].width, pieces[0].height)


def refusals(file: Path, count: int, *, first: int, most: int, recording: Path | None = None) -> int:
    """How often a recording is refused when fewer than `most` bytes of a file of it, from `first` on, change.

    Whatever is not refused with RecordingError has to read to its end, its events inside the sensor.
    """
    data = np.frombuffer(file.read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(count):
        damaged = data.copy()
        where = random.integers(first, len(data), random.integers(1, most))
        damaged[where] = random.integers(0, 256, len(where))
        file.write_bytes(damaged.tobytes())
        try:
            opened = open_recording(recording or file)
            opened.info()
            for piece in opened.events():
                assert piece.x.max() < piece.width
                assert piece.y.max() < piece.height
        except RecordingError:
            refused += 1
    return refused


# AEDAT 4.0, by the flatbuffers library itself


def write_aedat4(
    path: Path,
    events: Sequence[Events],
    frames: Sequence[tuple[int, np.ndarray]] = (),
    compression: str = "lz4",
    finished: bool = True,
) -> None:
    """Event packets on stream 0, then (stamp_ns, image) on stream 1: grey, BGR or BGRA of any type."""
    code, compress = COMPRESSORS[compression]
    packets = [(0, compress(_event_packet(piece))) for piece in events]
    packets += [(1, compress(_frame_packet(stamp, image))) for stamp, image in frames]
    body = b"".join(struct.pack("<ii", stream, len(data)) + data for stream, data in packets)
    if not finished:  # as a recorder leaves it that was killed
        path.write_bytes(MAGIC + _io_header(code, -1) + body)
        return
    end = len(MAGIC + _io_header(code, 1) + body)
    path.write_bytes(MAGIC + _io_header(code, end) + body + b"table of packets")


def _io_header(compression: int, table_position: int) -> bytes:
    builder = flatbuffers.Builder(1024)
    text = builder.CreateString(
        '<dv version="2.0"><node name="outInfo" path="/">'
        + "".join(
            f'<node name="{number}" path="/{number}/">'
            f'<attr key="originalOutputName" type="string">{name}</attr>'
            f'<attr key="typeIdentifier" type="string">{kind}</attr><node name="info" path="/{number}/info/">'
            f'<attr key="sizeX" type="int">{WIDTH}</attr><attr key="sizeY" type="int">{HEIGHT}</attr>'
            "</node></node>"
            for number, name, kind in ((0, "events", "EVTS"), (1, "frames", "FRME"))
        )
        + "</node></dv>"
    )
    builder.StartObject(3)
    builder.PrependInt32Slot(0, compression, 0)
    builder.PrependInt64Slot(1, table_position, -1)
    builder.PrependUOffsetTRelativeSlot(2, text, 0)
    builder.FinishSizePrefixed(builder.EndObject(), b"IOHE")
    return bytes(builder.Output())


def _event_packet(events: Events) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.StartVector(16, len(events), 8)
    for t, x, y, p in zip(events.t[::-1], events.x[::-1], events.y[::-1], events.p[::-1], strict=True):
        builder.Prep(8, 16)
        builder.Pad(3)
        builder.PrependBool(bool(p))
        builder.PrependInt16(int(y))
        builder.PrependInt16(int(x))
        builder.PrependInt64(int(t) // 1000)
    elements = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, elements, 0)
    builder.FinishSizePrefixed(builder.EndObject(), b"EVTS")
    return bytes(builder.Output())


def _frame_packet(stamp_ns: int, image: np.ndarray) -> bytes:
    height, width, channels = image.reshape(*image.shape[:2], -1).shape
    builder = flatbuffers.Builder(1024)
    pixels = builder.CreateByteVector(image.tobytes())
    builder.StartObject(11)
    builder.PrependInt64Slot(0, stamp_ns // 1000, 0)
    depth = ["u1", "i1", "u2", "i2", "i4", "f4", "f8"].index(image.dtype.str[1:])
    builder.PrependInt8Slot(5, 8 * (channels - 1) + depth, 0)
    builder.PrependInt16Slot(6, width, 0)
    builder.PrependInt16Slot(7, height, 0)
    builder.PrependUOffsetTRelativeSlot(10, pixels, 0)
    builder.FinishSizePrefixed(builder.EndObject(), b"FRME")
    return bytes(builder.Output())


# Bags, by the rosbags library itself


@cache
def ros1_types() -> Typestore:
    """ROS 1's standard types and those of event cameras."""
    store = get_typestore(Stores.ROS1_NOETIC)
    for name, text in message_texts().items():
        store.register(get_types_from_msg(text, name))
    return store


def time(stamp_ns: int, store: Typestore) -> Any:
    """A builtin_interfaces/Time."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return store.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)


def header(stamp_ns: int, store: Typestore | None = None) -> Any:
    """A std_msgs/Header."""
    store = store or typestore()
    sequence = {"seq": 0} if store is ros1_types() else {}
    return store.types["std_msgs/msg/Header"](stamp=time(stamp_ns, store), frame_id="camera", **sequence)


def mono_packet(events: Events, stamp_ns: int, encoding: str = "mono", store: Typestore | None = None) -> Any:
    """An EventPacket in the mono encoding, under any encoding's name."""
    store = store or typestore()
    time_base = int(events.t[0])
    words = (
        (events.t - time_base).astype(np.uint64)
        | events.x.astype(np.uint64) << np.uint64(32)
        | events.y.astype(np.uint64) << np.uint64(48)
        | events.p.astype(np.uint64) << np.uint64(63)
    )
    return store.types[EVENT_PACKET](
        header=header(stamp_ns, store), height=HEIGHT, width=WIDTH, seq=0, time_base=time_base,
        encoding=encoding, is_bigendian=False, events=words.view(np.uint8),
    )  # fmt: skip


def event_array(events: Events, stamp_ns: int, package: str, store: Typestore | None = None) -> Any:
    """An EventArray of dvs_msgs or prophesee_event_msgs."""
    store = store or typestore()
    event = store.types[f"{package}/msg/Event"]
    return store.types[f"{package}/msg/EventArray"](
        header=header(stamp_ns, store), height=HEIGHT, width=WIDTH,
        events=[
            event(x=x, y=y, ts=time(t, store), polarity=bool(p))
            for t, x, y, p in zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True)
        ],
    )  # fmt: skip


def image(stamp_ns: int, pixels: np.ndarray, encoding: str = "rgb8", store: Typestore | None = None) -> Any:
    """A sensor_msgs/Image."""
    store = store or typestore()
    height, width = pixels.shape[:2]
    return store.types[IMAGE](
        header=header(stamp_ns, store), height=height, width=width, encoding=encoding, is_bigendian=0,
        step=pixels.nbytes // height, data=pixels.reshape(-1).view(np.uint8),
    )  # fmt: skip


def compressed_image(
    stamp_ns: int, rgb: np.ndarray, image_format: str = "png", store: Typestore | None = None
) -> Any:
    """A sensor_msgs/CompressedImage that holds a PNG, whatever its format says."""
    store = store or typestore()
    return store.types[COMPRESSED_IMAGE](
        header=header(stamp_ns, store), format=image_format, data=cv2.imencode(".png", rgb[:, :, ::-1])[1]
    )


def write_bag(path: Path, messages: Iterable[tuple[str, str, int, Any]], storage: str = "sqlite3") -> None:
    """A rosbag2 folder of (topic, type, log time in ns, message)."""
    plugin = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}[storage]
    store, connections = typestore(), {}
    with Writer(path, version=8, storage_plugin=plugin) as writer:
        for topic, kind, log_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(connections[topic], log_ns, store.serialize_cdr(message, kind))


def write_rosbag1(
    path: Path, messages: Iterable[tuple[str, str, int, Any]], compression: str = "none"
) -> None:
    """A .bag file of (topic, type, log time in ns, message of ros1_types)."""
    store, connections = ros1_types(), {}
    writer = Rosbag1Writer(path)
    if compression != "none":
        writer.set_compression(Rosbag1Writer.CompressionFormat[compression.upper()])
    with writer:
        for topic, kind, log_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(connections[topic], log_ns, store.serialize_ros1(message, kind))
