"""Ages that can be, and what is said of others."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("diagnostic_msgs.msg", reason="needs rclpy")

from evspec_ros.events.streams import StreamCounts
from evspec_ros.ros.diagnostics import Age, StreamMonitor

S = 10**9
NOW = 1_700_000_000 * S


@pytest.mark.parametrize(
    ("stamp_ns", "begun_ns", "now_ns", "silent_s", "age"),
    [
        (NOW - S, NOW - S, NOW, 0.1, Age(1000.0)),
        (NOW, NOW, NOW, 0.1, Age(0.0)),
        (NOW - 3000 * S, NOW - S, NOW, 0.1, Age(3_000_000.0)),
        (NOW - 9000 * S, NOW - S, NOW, 9000.0, Age(9_000_000.0)),
    ],
)
def test_an_age_that_can_be_is_a_number(
    stamp_ns: int, begun_ns: int, now_ns: int, silent_s: float, age: Age
) -> None:
    """From now on, delayed by transport, and of a scene that nobody has filmed for hours."""
    assert Age.between(stamp_ns, begun_ns, now_ns, silent_s) == age


@pytest.mark.parametrize(
    ("stamp_ns", "begun_ns", "now_ns", "told"),
    [
        (NOW - S, NOW, NOW - 9 * S, "The clock stepped back by 9.0 s"),
        (NOW - 900 * S, NOW, NOW - S, "The clock stepped back by 1.0 s"),
        (NOW + 3600 * S, NOW, NOW + S, "stamped 3599.000 s after now"),
        (NOW + 1, NOW - S, NOW, "stamped 0.000 s after now"),
        (0, NOW, NOW, "stamped 1700000000 s before now"),
        (NOW - 302 * 86_400 * S, NOW, NOW, "use_sim_time"),
    ],
)
def test_an_age_that_cannot_be_is_none(stamp_ns: int, begun_ns: int, now_ns: int, told: str) -> None:
    """A clock that was set, a stamp of the future, of 1970, of another year; what happened is said."""
    age = Age.between(stamp_ns, begun_ns, now_ns, 0.1)
    assert age.ms is None
    assert age.shown == "unknown"
    assert told in age.problem


def test_losses_that_are_not_known_are_not_told_as_a_number() -> None:
    """Nor do they raise an alarm, until they are known."""
    monitor = StreamMonitor("frames", "/image")
    unknown = monitor.report(StreamCounts(5, items=5, lost=None), 1.0, {})
    assert unknown.values["lost_messages"] == "unknown"
    known = monitor.report(StreamCounts(50, items=50, lost=3), 1.0, {})
    assert known.values["lost_messages"] == 3


def test_silence_is_told_beside_what_is_wrong_with_the_publishers() -> None:
    """A camera that was killed stays in DDS's graph for a while, and that hides no silence."""
    monitor, heard = StreamMonitor("frames", "/image"), StreamCounts(5, items=5)
    lively = monitor.report(heard, time.monotonic(), {}, misfit="2 publishers share /image.")
    assert lively.message == "2 publishers share /image."
    silent = monitor.report(heard, time.monotonic() - 60, {}, misfit="2 publishers share /image.")
    assert silent.message.startswith("Nothing was received on /image for 60")
    assert silent.message.endswith("2 publishers share /image.")
