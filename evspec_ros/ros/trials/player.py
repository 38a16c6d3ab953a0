"""Plays a recording over DDS at real speed, as a driver would:
`python -m evspec_ros.ros.trials.player RECORDING`.

Events go out as libcaer packets and frames as rgb8 images, whatever the recording's format, because times are
shifted to now and run on when the recording is played again; a stateful encoding could not say that.
"""

from __future__ import annotations

import argparse
import array
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evspec_ros.errors import EvspecError, RecordingError, RosError
from evspec_ros.events.encoders import encode_libcaer
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.recording import Recording, Wanted
from evspec_ros.recordings.timeline import timeline
from evspec_ros.ros.requirements import require_ros

if TYPE_CHECKING:
    from event_camera_msgs.msg import EventPacket
    from sensor_msgs.msg import Image

HELD_NS = 20_000_000_000  # a recording up to this long is read once and held, so that reading delays nothing
LEAD_S = 0.2  # between the subscribers being there and the first message
LINGER_S = 0.5  # after the last message, for DDS to deliver it
RECEIPT_TIMEOUT_S = 30.0  # for a node that is busy to receive an image


@dataclass(frozen=True)
class Playback:
    """Which ROS time a moment of the recording gets, and when it goes out, lap after lap.

    begin_ns: ROS time of the recording's first moment; lap_ns: length of the recording; rate: how many times
    faster than their stamps say messages are sent, as `ros2 bag play --rate` does.
    """

    begin_ns: int
    start_ns: int
    lap_ns: int
    rate: float

    def to_ros(self, t: Any, lap: int) -> Any:
        """ROS nanoseconds of recording time t, an integer or an int64 array, in the given lap."""
        return self.begin_ns + t - self.start_ns + lap * self.lap_ns

    def due_ns(self, ros_ns: int) -> int:
        """When, by the clock, a message of that ROS time leaves."""
        return self.begin_ns + round((ros_ns - self.begin_ns) / self.rate)

    def to_recording(self, ros_ns: int) -> int:
        """The moment of the recording that has the ROS time ros_ns."""
        return self.start_ns + (ros_ns - self.begin_ns) % self.lap_ns


@dataclass
class Played:
    """What was sent. late_ms: by how much the latest message missed its time."""

    packets: int = 0
    events: int = 0
    frames: int = 0
    late_ms: float = 0.0


class Player:
    """Publishes a recording on `events` and `image`. Whoever subscribes reliably loses nothing; whoever does
    as to a driver hears it like one.

    in_step: nothing leaves before the last image was received, so that a reliable subscriber has each image
    before the events that follow it.
    """

    def __init__(self, recording: Recording, *, in_step: bool = False) -> None:
        from event_camera_msgs.msg import EventPacket
        from rclpy.node import Node
        from sensor_msgs.msg import Image

        from evspec_ros.ros.qos import EVENT_QOS, IMAGE_QOS, reliable

        if recording.stop_ns <= recording.start_ns:
            raise RecordingError(
                f"The recording {recording.path} holds neither events nor frames; nothing to play."
            )
        self.recording = recording
        self.node = Node("evspec_player")
        self._event_packet, self._image = EventPacket, Image
        self._in_step = in_step
        self._events = self.node.create_publisher(EventPacket, "events", reliable(EVENT_QOS))
        images = reliable(IMAGE_QOS)
        if in_step:
            images.depth = 1  # that is full with each image, so that Fast DDS asks at once whether it arrived
        self._frames = self.node.create_publisher(Image, "image", images)
        self._seq = 0
        short = recording.stop_ns - recording.start_ns <= HELD_NS
        self._held = list(timeline(recording)) if short else None

    def wait_for_subscribers(self, timeout_s: float) -> None:
        """Return when both topics have a subscriber; RosError after timeout_s."""
        deadline = time.monotonic() + timeout_s
        while not (self._events.get_subscription_count() and self._frames.get_subscription_count()):
            if time.monotonic() > deadline:
                raise RosError(
                    f"Nobody subscribed to {self._events.topic_name} and {self._frames.topic_name} within "
                    f"{timeout_s:g} s; start the node in the same ROS domain first."
                )
            time.sleep(0.02)

    def schedule(self, rate: float) -> Playback:
        """A schedule that begins a moment from now."""
        start_ns, stop_ns = self.recording.start_ns, self.recording.stop_ns
        return Playback(time.time_ns() + round(LEAD_S * 1e9), start_ns, stop_ns - start_ns, rate)

    def play(self, schedule: Playback, seconds: float, *, once: bool = False) -> Played:
        """Send everything due in the first `seconds` of the schedule, each at its time, lap after lap; once:
        one lap, however long.
        """
        played, lap = Played(), 0
        while True:
            for t, item in self._held or timeline(self.recording):
                due_ns = schedule.due_ns(schedule.to_ros(t, lap))
                if not once and due_ns - schedule.begin_ns > seconds * 1e9:
                    time.sleep(LINGER_S)
                    return played
                message = self._message(item, schedule, lap)
                _sleep_until(due_ns)
                if self._in_step:
                    self._await_receipt()
                self._send(message, item, played)
                played.late_ms = max(played.late_ms, (time.time_ns() - due_ns) / 1e6)
            if once:
                time.sleep(LINGER_S)
                return played
            lap += 1

    def _message(self, item: Events | Frame, schedule: Playback, lap: int) -> EventPacket | Image:
        if isinstance(item, Events):
            return self._packet_message(item, schedule.to_ros(item.t, lap))
        return self._frame_message(item, schedule.to_ros(item.stamp_ns, lap))

    def _send(self, message: EventPacket | Image, item: Events | Frame, played: Played) -> None:
        if isinstance(item, Events):
            self._events.publish(message)
            played.packets += 1
            played.events += len(item)
        else:
            self._frames.publish(message)
            played.frames += 1

    def _await_receipt(self) -> None:
        from rclpy.duration import Duration

        if not self._frames.wait_for_all_acked(Duration(seconds=RECEIPT_TIMEOUT_S)):
            raise RosError(
                f"Nobody received an image on {self._frames.topic_name} within {RECEIPT_TIMEOUT_S:g} s; "
                "the node may have been stopped."
            )

    def _packet_message(self, events: Events, t: np.ndarray[Any, np.dtype[np.int64]]) -> EventPacket:
        base = int(t[0])
        shifted = Events(t, events.x, events.y, events.p, events.width, events.height)
        message = self._event_packet(
            width=events.width, height=events.height, seq=self._seq, time_base=base, encoding="libcaer"
        )
        _stamp(message, base)
        message.events = array.array("B", encode_libcaer(shifted, base))
        self._seq += 1
        return message

    def _frame_message(self, frame: Frame, stamp_ns: int) -> Image:
        height, width, _ = frame.image.shape
        message = self._image(width=width, height=height, encoding="rgb8", step=3 * width)
        _stamp(message, stamp_ns)
        message.data = array.array("B", frame.image.tobytes())
        return message


def _stamp(message: Any, stamp_ns: int) -> None:
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)


def _sleep_until(ros_ns: int) -> None:
    wait_ns = ros_ns - time.time_ns()
    if wait_ns > 0:
        time.sleep(wait_ns / 1e9)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play one recording; prints a JSON line with the schedule before and one with what was sent after."""
    parser = argparse.ArgumentParser(prog="python -m evspec_ros.ros.trials.player", description=__doc__)
    parser.add_argument("recording", type=Path)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="play this long, over and over if need be"
    )
    parser.add_argument("--once", action="store_true", help="play it once, to its end, instead")
    parser.add_argument("--events", default="", help="topic of a bag; default: the busiest one")
    parser.add_argument("--image", default="", help="topic of a bag; default: a colour camera's")
    parser.add_argument("--rate", type=float, default=1.0, help="speed, 1 is real time")
    parser.add_argument(
        "--in-step", action="store_true", help="send nothing before the last image was received"
    )
    parser.add_argument("--wait", type=float, default=30.0, help="seconds to wait for subscribers")
    parser.add_argument(
        "--ros-args", nargs=argparse.REMAINDER, default=[], help="remappings, as of any ROS node"
    )
    options = parser.parse_args(arguments)
    try:
        require_ros()
        _play(options)
    except EvspecError as error:
        print(f"evspec player: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _play(options: argparse.Namespace) -> None:
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    recording = open_recording(options.recording, Wanted(options.events, options.image))
    rclpy.init(args=["--ros-args", *options.ros_args], signal_handler_options=SignalHandlerOptions.NO)
    try:
        player = Player(recording, in_step=options.in_step)
        player.wait_for_subscribers(options.wait)
        schedule = player.schedule(options.rate)
        _say(vars(schedule))
        _say(vars(player.play(schedule, options.seconds, once=options.once)))
    finally:
        rclpy.shutdown()


def _say(fields: dict[str, Any]) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    sys.exit(main())
