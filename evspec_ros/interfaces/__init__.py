"""Definitions of the event-camera messages that ROS installations often lack, and a builder for them."""

from __future__ import annotations

from pathlib import Path

DEFINITIONS = Path(__file__).parent

__all__ = ["DEFINITIONS", "message_texts"]


def message_texts() -> dict[str, str]:
    """The text of every message defined here, by full name: 'event_camera_msgs/msg/EventPacket'."""
    return {
        f"{path.parts[-3]}/msg/{path.stem}": path.read_text(encoding="utf-8")
        for path in sorted(DEFINITIONS.glob("*/msg/*.msg"))
    }
