"""Which times a recording may have, and which are asked about."""

from __future__ import annotations

import pytest

from evspec_ros.recordings.times import doubts

SECOND_NS = 1_000_000_000


@pytest.mark.parametrize(
    ("events", "seconds", "asked"),
    [
        (2_000, 0.5, ""), (10_000_000, 0.5, ""), (50, 10_000, ""), (300_000, 3_000, ""), (0, 0, ""),
        (5_000, 0, ""),
        (2_000, 500, "finer"), (10_000_000, 500_000, "finer"), (132_268, 49_595, "finer"),
        (1_000_000, 0.0002, "coarser"),
    ],
)  # fmt: skip
def test_an_unlikely_length_or_rate_is_asked_about(events: int, seconds: float, asked: str) -> None:
    """A thousand or a million times too long, by reading a unit as a coarser one."""
    start_ns = 1_700_000_000 * SECOND_NS
    told = doubts(events, start_ns, start_ns + int(seconds * SECOND_NS))
    assert len(told) == bool(asked)
    assert not asked or f"a thousand or a million times {asked}" in told[0]


def test_what_lies_beyond_2038_is_asked_about() -> None:
    """It can be read, and it cannot be converted."""
    start_ns = 2**31 * SECOND_NS
    (told,) = doubts(100_000, start_ns, start_ns + SECOND_NS)
    assert "which no ROS stamp holds" in told
