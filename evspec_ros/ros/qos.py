"""How cameras' drivers publish, and so how their topics are read and played."""

from __future__ import annotations

from rclpy.qos import QoSProfile, ReliabilityPolicy

IMAGE_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
EVENT_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
