"""What the node's messages are made of."""

from __future__ import annotations

import array
from typing import Any

from builtin_interfaces.msg import Time as TimeMessage
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.time import Time
from sensor_msgs.msg import Image

from evspec_ros.description import Description
from evspec_ros.ros.answers import Answer
from evspec_ros.ros.diagnostics import Age, Health
from evspec_ros.ros.overlay import draw_overlay
from evspec_ros.windows import Window


def nanoseconds(stamp: TimeMessage) -> int:
    """A stamp as one number."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def stamped_message(kind: type, description: Description, window: Window) -> Any:
    """What ~/description/stamped says, of the class `requirements.stamped_type`."""
    message = kind(prompt=description.prompt, text=description.text, lossless=description.lossless)
    message.degraded = window.degraded
    message.header.frame_id = window.frame_id
    message.header.stamp = Time(nanoseconds=description.stamp_ns).to_msg()
    return message


def answer_message(kind: type, answer: Answer) -> Any:
    """What came of a question, as the result of the action ~/ask, whose class is `kind`."""
    result = kind(problem=answer.problem, first_word_ms=answer.first_word_ms or 0.0)
    if answer.described is None:
        result.description.prompt, result.description.text = answer.prompt, answer.text
    else:
        result.description = stamped_message(type(result.description), *answer.described)
    return result


def overlay_message(description: Description, window: Window) -> Image:
    """The picture of ~/overlay."""
    picture = draw_overlay(window.frames[-1].image, window.events, description.text)
    height, width = picture.shape[:2]
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.header.stamp = Time(nanoseconds=description.stamp_ns).to_msg()
    message.data = array.array("B", picture.tobytes())
    return message


def latency_message(description: Description, age: Age, node: str) -> DiagnosticArray:
    """What ~/latency says of one description, under the node's full name."""
    values: dict[str, Any] = {f"{stage}_ms": round(ms, 3) for stage, ms in description.latency_ms.items()}
    values |= {
        "prefill_slowdown": round(description.prefill_slowdown, 3),
        "age_ms": age.shown,
        "tokens": len(description.tokens),
        "reused_frames": description.reused_frames,
        "reused_rows": description.statistics.reused_rows,
        "mean_accepted_length": round(description.statistics.mean_accepted_length, 3),
    }
    health = Health("latency", DiagnosticStatus.OK, "one description", values)
    message = DiagnosticArray(status=[health.as_message(node)])
    message.header.stamp = Time(nanoseconds=description.stamp_ns).to_msg()
    return message
