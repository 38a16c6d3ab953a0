"""A node under test and, beside it, cameras and a listener."""

from __future__ import annotations

import array
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from event_camera_msgs.msg import EventPacket
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from spinner import Spinner
from std_msgs.msg import String
from std_srvs.srv import Empty

from evspec_ros.events.encoders import encode_libcaer
from evspec_ros.events.types import Events
from evspec_ros.ros.node import EvspecNode

MS = 1_000_000
SIZE = 64
BEST_EFFORT = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass
class Bench:
    """A node under test and, beside it, cameras and a listener that reach it through DDS alone."""

    spinner: Spinner
    node: EvspecNode
    cameras: Node
    received: dict[str, list[Any]] = field(default_factory=dict)
    seq: int = 0

    def __post_init__(self) -> None:
        self.events = self.cameras.create_publisher(EventPacket, "events", BEST_EFFORT)
        self.images = self.cameras.create_publisher(Image, "image", BEST_EFFORT)
        self.listen(String, "/evspec/description")
        self.listen(String, "/evspec/result")
        self.listen(DiagnosticArray, "/evspec/latency")
        self.listen(DiagnosticArray, "/diagnostics")

    def listen(self, kind: type, topic: str) -> None:
        """Collect what is published on a topic."""
        self.received[topic] = []
        qos = BEST_EFFORT if kind is Image else 100
        self.cameras.create_subscription(kind, topic, self.received[topic].append, qos)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Spin until condition is true."""
        return self.spinner.until(condition, what)

    def wait_until_connected(self) -> None:
        """Wait until cameras, node and listener know each other."""
        self.until(
            lambda: self.events.get_subscription_count() and self.images.get_subscription_count(), "cameras"
        )
        self.until(lambda: self.node.count_subscribers("/evspec/description"), "listener")

    def activate(self) -> None:
        """Activate the node and connect to it, as if nothing had happened before."""
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        self.wait_until_connected()
        self.call(Empty, "/evspec/reset_statistics")
        for messages in self.received.values():
            messages.clear()

    def send_events(self, at_ns: int, **changes: Any) -> None:
        """One packet of 200 events of the last 5 ms before at_ns, with any field changed."""
        t = at_ns - 5 * MS + np.arange(200) * 25_000
        places = np.arange(200, dtype=np.uint16) % SIZE
        events = Events(t, places, places, (places % 2).astype(np.uint8), SIZE, SIZE)
        base = int(t[0])
        message = EventPacket(width=SIZE, height=SIZE, seq=self.seq, time_base=base, encoding="libcaer")
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(base, 10**9)
        message.events = array.array("B", encode_libcaer(events, base))
        for name, value in changes.items():
            setattr(message, name, value)
        self.seq += 1
        self.events.publish(message)

    def send_image(self, at_ns: int, **changes: Any) -> None:
        """One image stamped at_ns, with any field changed."""
        message = Image(width=SIZE, height=SIZE, encoding="rgb8", step=3 * SIZE)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(at_ns, 10**9)
        message.data = array.array("B", bytes(3 * SIZE * SIZE))
        for name, value in changes.items():
            setattr(message, name, value)
        self.images.publish(message)

    def describe_now(self, at_ns: int | None = None) -> dict[str, Any]:
        """Send a frame and events until the node has described them; what ~/result said of that."""
        before = len(self.received["/evspec/result"])
        sent_at = 0.0

        def described() -> list[Any]:
            nonlocal sent_at
            if time.monotonic() - sent_at > 0.02:
                sent_at = time.monotonic()
                now_ns = at_ns or time.time_ns()
                self.send_image(now_ns - 10 * MS)
                self.send_events(now_ns)
            return self.received["/evspec/result"][before:]

        return dict(json.loads(self.until(described, "a description")[-1].data))

    def last_result(self) -> dict[str, Any]:
        """What ~/result said last."""
        return dict(json.loads(self.received["/evspec/result"][-1].data))

    def health(self, name: str) -> DiagnosticStatus | None:
        """The latest status of that name on /diagnostics."""
        for message in reversed(self.received["/diagnostics"]):
            for status in message.status:
                if status.name == f"/evspec: {name}":
                    return status
        return None

    def values(self, name: str) -> dict[str, str]:
        """The latest figures of that name on /diagnostics; {} before the first."""
        status = self.health(name)
        return {pair.key: pair.value for pair in status.values} if status else {}

    def set_parameter(self, name: str, value: Any) -> str:
        """Set a parameter of the node; why it was refused, "" if it was not."""
        result = self.node.set_parameters([Parameter(name, value=value)])[0]
        assert result.successful or result.reason.endswith(".")
        return "" if result.successful else result.reason

    def call(self, kind: type, service: str) -> Any:
        """The answer of one of the node's services."""
        client = self.cameras.create_client(kind, service)
        self.until(client.service_is_ready, service)
        future = client.call_async(kind.Request())
        return self.until(lambda: future.done() and future.result(), f"the answer of {service}")


def make_bench(spinner: Spinner, **parameters: Any) -> Bench:
    """A node with these parameters, and cameras beside it."""
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    bench = Bench(spinner, EvspecNode(parameter_overrides=overrides), Node("cameras"))
    spinner.executor.add_node(bench.node)
    spinner.executor.add_node(bench.cameras)
    return bench


def at_least(values: dict[str, str], name: str, count: int) -> dict[str, str] | None:
    """The figures, if the one of that name has reached count."""
    return values if int(values.get(name, "0")) >= count else None
