"""Writing rosbag2 recordings that this package, and any ROS tool, can read and play."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

from evspec_ros.errors import RecordingError
from evspec_ros.events.encoders import encode_libcaer
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.rosbag2_types import EVENT_PACKET, IMAGE, typestore
from evspec_ros.recordings.times import ros_stamp

EVENTS_TOPIC = "/event_camera/events"
FRAMES_TOPIC = "/camera/image_raw"
FRAME_ID = "event_camera"
METADATA_VERSION: Literal[8] = 8  # the newest that Humble's and Jazzy's players both read
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}

_FOREVER = QosTime(9223372036, 854775807)
# As a recorder writes what a publisher offers: history unknown. Reliable, for it serves every subscriber.
_OFFERED = Qos(
    QosHistory.UNKNOWN, 0, QosReliability.RELIABLE, QosDurability.VOLATILE, _FOREVER, _FOREVER,
    QosLiveliness.AUTOMATIC, _FOREVER, avoid_ros_namespace_conventions=False,
)  # fmt: skip


class BagWriter:
    """Writes events and frames as a rosbag2 folder; use it in a `with` statement.

    The folder appears at `path` when the block ends well, complete; until then, and after an error, there is
    nothing at `path`. Header stamps and log time are equal. Raises RecordingError where something is there
    already, where it cannot be written, for a time that a ROS stamp cannot hold, or where nothing was written
    at all.
    """

    def __init__(self, path: Path, storage: str = "mcap") -> None:
        if storage not in STORAGES:
            raise RecordingError(
                f"Bags cannot be stored as '{storage}'; choose one of {', '.join(STORAGES)}."
            )
        self.path = Path(path)
        self._storage = STORAGES[storage]
        self._connections: dict[str, Connection] = {}
        self._sequence = 0

    def __enter__(self) -> BagWriter:
        self._refuse_existing()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.partial-", dir=self.path.parent))
            # The files inside a bag carry its name, so it is written under its own name, one folder down.
            self._writer = Writer(
                self._folder / self.path.name, version=METADATA_VERSION, storage_plugin=self._storage
            )
            self._writer.open()
        except (OSError, WriterError) as error:
            raise RecordingError(f"The bag {self.path} cannot be written ({error}).") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._writer.abort()
            else:
                self._finish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self) -> None:
        if not self._connections:
            self._writer.abort()
            raise RecordingError(
                f"No bag was written to {self.path}, for there were no events and no frames."
            )
        self._guarded(self._writer.close)
        self._refuse_existing()
        self._guarded(lambda: (self._folder / self.path.name).rename(self.path))

    def write_events(self, events: Events, stamp_ns: int) -> None:
        """One EventPacket, encoding libcaer, on /event_camera/events; stamp_ns is its header stamp.

        The encoding counts whole microseconds from the packet's earliest event and demands ascending times:
        what lies between (a sensor of finer resolution) is cut off, and events that step back are sorted.
        Microsecond sources come back exactly. Raises RecordingError for an empty packet.
        """
        if not len(events):
            raise RecordingError("An event packet needs at least one event.")
        events = in_time_order(events)
        base = int(events.t[0])
        types = typestore().types
        message = types[EVENT_PACKET](
            header=self._header(stamp_ns),
            height=events.height,
            width=events.width,
            seq=self._sequence,
            time_base=base,
            encoding="libcaer",
            is_bigendian=False,
            events=np.frombuffer(encode_libcaer(events, base), np.uint8),
        )
        self._sequence += 1
        self._write(EVENTS_TOPIC, EVENT_PACKET, message, stamp_ns)

    def write_frame(self, frame: Frame) -> None:
        """One sensor_msgs/Image, encoding rgb8, on /camera/image_raw."""
        height, width, _ = frame.image.shape
        message = typestore().types[IMAGE](
            header=self._header(frame.stamp_ns),
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * width,
            data=np.ascontiguousarray(frame.image).reshape(-1),
        )
        self._write(FRAMES_TOPIC, IMAGE, message, frame.stamp_ns)

    def _header(self, stamp_ns: int) -> Any:
        types = typestore().types
        seconds, nanoseconds = ros_stamp(stamp_ns, self.path)
        stamp = types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
        return types["std_msgs/msg/Header"](stamp=stamp, frame_id=FRAME_ID)

    def _write(self, topic: str, kind: str, message: Any, stamp_ns: int) -> None:
        store = typestore()
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=store, offered_qos_profiles=[_OFFERED]
            )
        data = store.serialize_cdr(message, kind)
        self._guarded(lambda: self._writer.write(self._connections[topic], stamp_ns, data))

    def _guarded(self, write: Callable[[], object]) -> None:
        try:
            write()
        except (OSError, WriterError) as error:
            raise RecordingError(f"The bag {self.path} cannot be written ({error}).") from error

    def _refuse_existing(self) -> None:
        if self.path.exists():
            raise RecordingError(f"There is something at {self.path} already; remove it or write elsewhere.")


def in_time_order(events: Events) -> Events:
    """The events by ascending time, equal times as the sensor sent them; the same object if already so."""
    if (events.t[1:] >= events.t[:-1]).all():
        return events
    order = np.argsort(events.t, kind="stable")
    return Events(
        events.t[order], events.x[order], events.y[order], events.p[order], events.width, events.height
    )
