"""Both cameras as the node hears them: their subscriptions, their streams, and who publishes there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from evspec_ros.choices import DESCRIBE
from evspec_ros.errors import EvspecError
from evspec_ros.ros.diagnostics import Health, StreamMonitor
from evspec_ros.ros.guard import LOG_PERIOD_S, Guard
from evspec_ros.ros.ingest import EVENT_STREAMS, ImageStream, newest_end_ns
from evspec_ros.ros.live_settings import LiveSettings
from evspec_ros.ros.messages import nanoseconds
from evspec_ros.ros.publishers import PublisherWatch
from evspec_ros.ros.qos import EVENT_QOS, IMAGE_QOS, overridable
from evspec_ros.windows import Window

MOST_AT_ONCE = 100  # event packets, or images, between two looks at everything else


class Inputs:
    """Stores what arrives on `events` and `image`, in the executor's thread, while it is open."""

    def __init__(
        self, node: Node, settings: LiveSettings, guard: Guard, arrived: Callable[[], object]
    ) -> None:
        """arrived: called after messages were stored, or refused."""
        self._node = node
        self._settings = settings
        self._guard = guard
        self._arrived = arrived
        self.subscriptions: list[Any] = []
        self.renew()

    def renew(self) -> None:
        """Begin with empty streams, as the settings ask for."""
        settings = self._settings.current
        self.events = EVENT_STREAMS[settings.events_type](
            settings.event_buffer_s,
            settings.event_buffer_mb * 1_000_000,
            follow_sensor_clock=settings.event_time == "sensor",
        )
        self.images = ImageStream(settings.frames_seconds, settings.max_frames)
        events_topic, image_topic = self.topics()
        self._monitors = StreamMonitor("events", events_topic), StreamMonitor("frames", image_topic)

    def topics(self) -> tuple[str, str]:
        """Where events and images come from; like image_transport's, the compressed topic follows a remapped
        `image`.
        """
        events: str = self._node.resolve_topic_name("events")
        image: str = self._node.resolve_topic_name("image")
        compressed = self._settings.current.image_transport == "compressed"
        return events, f"{image}/compressed" if compressed else image

    def open(self, events_type: type) -> None:
        """Subscribe both; where that fails, `close` ends what was begun. events_type: of the messages."""
        self._events_type = events_type
        events = self._guard("An event message could not be stored", self._on_events)
        image = self._guard("An image could not be stored", self._on_image)
        subscribe = self._node.create_subscription
        self._event_subscription = subscribe(
            events_type, "events", events, raw=True, **overridable(EVENT_QOS)
        )
        self.subscriptions.append(self._event_subscription)
        compressed = self._settings.current.image_transport == "compressed"
        self._image_type = CompressedImage if compressed else Image
        self._image_subscription = subscribe(
            self._image_type, self.topics()[1], image, **overridable(IMAGE_QOS)
        )
        self.subscriptions.append(self._image_subscription)
        self._watches = [PublisherWatch(self._node, subscription) for subscription in self.subscriptions]

    def close(self) -> None:
        """Hear nothing more."""
        while self.subscriptions:
            self._node.destroy_subscription(self.subscriptions.pop())

    def restart(self, reason: str) -> None:
        """Forget what both buffers hold."""
        for stream in (self.events, self.images):
            stream.restart(reason)

    def reset_counts(self) -> None:
        """Count from zero."""
        self.events.reset_counts()
        self.images.reset_counts()

    def newest_end_ns(self) -> int | None:
        """Where the newest window ends, ROS time; None while there is none."""
        events_alone = self._settings.current.without_frames == DESCRIBE
        return newest_end_ns(self.events, self.images, events_alone=events_alone)

    def window(self) -> Window:
        """The newest window, as `Degrading.window`."""
        settings = self._settings.current
        return settings.degrading.window(
            self.events, self.images, self.topics(), settings.window, settings.frames_seconds
        )

    def silent_s(self) -> float:
        """Seconds since either camera sent anything good."""
        return time.monotonic() - max(self.events.received_at, self.images.received_at)

    def health(self) -> list[Health]:
        """How both cameras are heard, since the last call."""
        healths = []
        watched = zip(self._monitors, self._watches, (self.events, self.images), strict=True)
        for monitor, watch, stream in watched:
            more = self._of_events() if stream is self.events else {}
            misfit = watch.look()
            healths.append(monitor.report(stream.counts, stream.received_at, more, misfit, watch.names))
        return healths

    def _of_events(self) -> dict[str, Any]:
        """What only the event camera's stream has."""
        offset_s = self.events.clock_offset_s
        return {
            "dropped_events": self.events.dropped,
            "clock_offset_s": "unknown" if offset_s is None else round(offset_s, 6),
        }

    def _on_events(self, message: bytes) -> None:
        """Store this message and those waiting behind it: a turn of the executor costs more than decoding.
        An image that was here before a message is stored before it: a window lacks no frame that has come.
        """
        handle = self._event_subscription.handle
        self._store_events(message)
        for _ in range(MOST_AT_ONCE):
            taken = handle.take_message(self._events_type, True)
            if taken is None:
                break
            self._store_events(taken[0])
        self._arrived()

    def _store_events(self, message: bytes) -> None:
        self._store_images()
        try:
            self.events.add(message)
        except EvspecError as error:
            self._warn(error)

    def _on_image(self, image: Image | CompressedImage, info: Mapping[str, Any]) -> None:
        self._store_image(image, info)
        self._arrived()

    def _store_images(self) -> None:
        """Those that wait."""
        handle = self._image_subscription.handle
        for _ in range(MOST_AT_ONCE):
            taken = handle.take_message(self._image_type, False)
            if taken is None:
                break
            self._store_image(*taken)

    def _store_image(self, image: Image | CompressedImage, info: Mapping[str, Any]) -> None:
        number = info.get("publication_sequence_number")  # Humble does not tell
        try:
            self.images.add(image, nanoseconds(image.header.stamp), number, image.header.frame_id)
        except EvspecError as error:
            self._warn(error)

    def _warn(self, error: EvspecError) -> None:
        self._node.get_logger().warning(str(error), throttle_duration_sec=LOG_PERIOD_S)
