"""A camera at full rate, as a process: `python -m evspec_ros.ros.event_source MEV_PER_S SECONDS`.

Publishes the same burst of evt3 again and again, each time 4.096 ms later, and a gray image ten times a
second; prints one JSON object: packets and events sent, begin and end by the monotonic clock.
"""

from __future__ import annotations

import array
import json
import struct
import sys
import time

import rclpy
from event_camera_msgs.msg import EventPacket
from rclpy.node import Node
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

from evspec_ros.evaluation.event_load import PACKET_US, line_bursts
from evspec_ros.events.decoders import Decoder
from evspec_ros.events.event_packets import read_cdr
from evspec_ros.events.line_kernels import EVT3
from evspec_ros.ros.qos import EVENT_QOS, IMAGE_QOS

SIZE = WIDTH, HEIGHT = 1280, 720
_STAMP_AT, _SEQ_AT = 4, 28  # in the serialised packet, whose frame_id is empty
_IMAGE_PERIOD_S = 0.1
_SUBSCRIBER_TIMEOUT_S = 30.0


class EventSource:
    """Publishes on `events` and `image`, best effort as drivers do."""

    def __init__(self, mev_per_s: float) -> None:
        self._node = Node("evspec_event_source")
        self._events = self._node.create_publisher(EventPacket, "events", EVENT_QOS)
        self._images = self._node.create_publisher(Image, "image", IMAGE_QOS)
        words = line_bursts(EVT3, round(mev_per_s * PACKET_US), WIDTH, HEIGHT)
        self.events_in_packet = len(Decoder("evt3", *SIZE).decode(words))
        message = EventPacket(width=WIDTH, height=HEIGHT, encoding="evt3", events=array.array("B", words))
        self._packet = bytearray(serialize_message(message))
        self._events_at = bytes(self._packet).index(words)
        assert read_cdr(self._packet).events.tobytes() == words
        self._image = Image(width=640, height=480, encoding="rgb8", step=3 * 640)
        self._image.data = array.array("B", bytes([128]) * (3 * 640 * 480))

    def wait_for_subscribers(self) -> None:
        """Return when both topics have a subscriber, or after half a minute."""
        deadline = time.monotonic() + _SUBSCRIBER_TIMEOUT_S
        while time.monotonic() < deadline and not (
            self._events.get_subscription_count() and self._images.get_subscription_count()
        ):
            time.sleep(0.05)

    def publish(self, seconds: float) -> int:
        """Publish for so long; the number of packets."""
        period, start, image_due = PACKET_US / 1e6, time.monotonic(), 0.0
        count = round(seconds / period)
        for seq in range(count):
            delay = start + seq * period - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            self._publish_packet(seq)
            if time.monotonic() >= image_due:
                image_due = time.monotonic() + _IMAGE_PERIOD_S
                self._publish_image()
        return count

    def _publish_packet(self, seq: int) -> None:
        struct.pack_into("<II", self._packet, _STAMP_AT, *divmod(time.time_ns(), 10**9))
        struct.pack_into("<Q", self._packet, _SEQ_AT, seq)
        struct.pack_into("<H", self._packet, self._events_at, int(EVT3.high) << 12 | seq & 0xFFF)
        self._events.publish(bytes(self._packet))

    def _publish_image(self) -> None:
        stamp = self._image.header.stamp
        stamp.sec, stamp.nanosec = divmod(time.time_ns(), 10**9)
        self._images.publish(self._image)


def main() -> None:
    """Publish as the command line says."""
    mev_per_s, seconds = map(float, sys.argv[1:3])
    rclpy.init(args=[])
    source = EventSource(mev_per_s)
    source.wait_for_subscribers()
    begin = time.monotonic()
    packets = source.publish(seconds)
    end = time.monotonic()
    time.sleep(1.0)  # until what is on its way has arrived
    events = packets * source.events_in_packet
    json.dump({"packets": packets, "events": events, "begin": begin, "end": end}, sys.stdout)
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
