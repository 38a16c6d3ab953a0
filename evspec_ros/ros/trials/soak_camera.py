"""The cameras of `evspec soak`: a recording played over and over, with faults as they are asked for:
`python -m evspec_ros.ros.trials.soak_camera RECORDING RATE NAME`.
"""

from __future__ import annotations

import array
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String

from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.recording import WHATEVER, Recording
from evspec_ros.ros.trials.player import Playback, Played, Player
from evspec_ros.ros.trials.soak_faults import FAULT_TOPIC

if TYPE_CHECKING:
    from event_camera_msgs.msg import EventPacket
    from sensor_msgs.msg import Image

JUMP_NS = -100_000_000_000  # what stamps are wrong by in a time jump
FOREVER_S = 1e7
SILENT_EVENTS, SILENT_FRAMES = {"no_events", "frames_only"}, {"no_frames", "events_only"}


class FastPlayback(Playback):
    """Stamps run as the clock does, so that the cameras see everything `rate` times as fast."""

    def to_ros(self, t: Any, lap: int) -> Any:
        """See Playback."""
        elapsed = (t - self.start_ns + lap * self.lap_ns) / self.rate
        return self.begin_ns + (
            elapsed.astype(np.int64) if isinstance(elapsed, np.ndarray) else round(elapsed)
        )

    def due_ns(self, ros_ns: int) -> int:
        """At its stamp."""
        return ros_ns


class FaultyPlayer(Player):
    """A player with a fault, changed from another thread; "" for none."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording)
        self.fault = ""

    def _message(self, item: Events | Frame, schedule: Playback, lap: int) -> EventPacket | Image:
        if self.fault == "time_jumps":
            schedule = replace(schedule, begin_ns=schedule.begin_ns + JUMP_NS)
        if self.fault == "resolution_changes":
            item = _doubled(item)
        return super()._message(item, schedule, lap)

    def _send(self, message: EventPacket | Image, item: Events | Frame, played: Played) -> None:
        events = isinstance(item, Events)
        if self.fault in (SILENT_EVENTS if events else SILENT_FRAMES):
            return
        if self.fault == "malformed_packets":
            message.encoding = "evt3" if events else "holographic"
            if events:
                message.events = array.array("B", message.events[:7])
        super()._send(message, item, played)


def _doubled(item: Events | Frame) -> Events | Frame:
    """The same from a camera of twice the size."""
    if isinstance(item, Events):
        return Events(item.t, item.x * 2, item.y * 2, item.p, item.width * 2, item.height * 2)
    return Frame(item.stamp_ns, item.image.repeat(2, axis=0).repeat(2, axis=1))


def main() -> None:
    """Play as the command line says until the process is ended."""
    path, rate, name = sys.argv[1:4]
    rclpy.init(args=[])
    player = FaultyPlayer(open_recording(Path(path), WHATEVER))
    control = Node(name)

    def change(message: String) -> None:
        player.fault = message.data

    control.create_subscription(String, FAULT_TOPIC, change, 10)
    executor = SingleThreadedExecutor()
    executor.add_node(control)
    threading.Thread(target=executor.spin, daemon=True).start()
    player.wait_for_subscribers(60.0)
    player.play(FastPlayback(**vars(player.schedule(float(rate)))), FOREVER_S)


if __name__ == "__main__":
    main()
