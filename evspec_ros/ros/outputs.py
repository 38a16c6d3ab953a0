"""The topics that descriptions go out on."""

from __future__ import annotations

import json
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import String

from evspec_ros.description import Description
from evspec_ros.ros.diagnostics import Age
from evspec_ros.ros.messages import latency_message, overlay_message, stamped_message
from evspec_ros.ros.qos import overridable
from evspec_ros.ros.requirements import OWN_REMEDY, stamped_type
from evspec_ros.windows import Window


class Outputs:
    """The node's publishers, which exist while it is configured and publish while it is active."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._open: list[Any] = []

    def open(self) -> None:
        """Create the publishers; where one fails, `close` destroys the others."""
        self.description = self._publisher(String, "~/description", 10)
        kind = stamped_type()
        self.stamped = None if kind is None else self._publisher(kind, "~/description/stamped", 10)
        if self.stamped is None:
            self._node.get_logger().info(OWN_REMEDY.format("~/description/stamped is not published"))
        self.partial = self._publisher(String, "~/description/partial", 10)
        self.result = self._publisher(String, "~/result", 10)
        self.overlay = self._publisher(Image, "~/overlay", qos_profile_sensor_data)
        self.latency = self._publisher(DiagnosticArray, "~/latency", 10)

    def close(self) -> None:
        """Destroy those that were created."""
        while self._open:
            self._node.destroy_lifecycle_publisher(self._open.pop())

    def publish_partial(self, text: str) -> None:
        """The text so far, where somebody listens."""
        if self.partial.get_subscription_count():
            self.partial.publish(String(data=text))

    def publish(
        self,
        described: tuple[Description, ...],
        window: Window,
        age: Age,
        shared: dict[str, Any],
        *,
        stale: bool,
    ) -> None:
        """The answer to the prompt on every topic, those to further questions as results alone. Where the
        window was stale, results are all that is published. Where nobody listens, nothing costly is made.

        shared: what every result holds besides.
        """
        description = described[0]
        if not stale:
            self.description.publish(String(data=description.text))
            if self.stamped is not None and self.stamped.get_subscription_count():
                self.stamped.publish(stamped_message(self.stamped.msg_type, description, window))
        for answer in described:
            self.result.publish(String(data=json.dumps(answer.as_dict() | shared | {"stale": stale})))
        if stale:
            return
        if self.latency.get_subscription_count():
            self.latency.publish(latency_message(description, age, self._node.get_fully_qualified_name()))
        if self.overlay.get_subscription_count():
            self.overlay.publish(overlay_message(description, window))

    def _publisher(self, kind: type, topic: str, qos: Any) -> Any:
        self._open.append(self._node.create_lifecycle_publisher(kind, topic, **overridable(qos)))
        return self._open[-1]
