"""How cameras' drivers publish, so how their topics are read and played; and how users choose otherwise."""

from __future__ import annotations

from copy import copy
from typing import Any

from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

IMAGE_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
EVENT_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)


def reliable(profile: QoSProfile) -> QoSProfile:
    """Of whoever must lose nothing."""
    copied = copy(profile)
    copied.reliability = ReliabilityPolicy.RELIABLE
    return copied


def overridable(profile: QoSProfile | int) -> dict[str, Any]:
    """Arguments of a publisher or subscription whose profile start-up parameters may change, named
    qos_overrides.TOPIC.(publisher|subscription).(history|depth|reliability).
    """
    options = QoSOverridingOptions.with_default_policies()
    return {"qos_profile": copy(profile), "qos_overriding_options": options}
