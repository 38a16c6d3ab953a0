"""The size of a window: by time, by count, by both."""

from __future__ import annotations

import pytest

from evspec_ros.errors import EventDecodingError
from evspec_ros.events.window import MAX_DURATION_NS, WindowSize

MS = 1_000_000


def test_a_window_is_50_ms_with_all_its_events_unless_asked_otherwise() -> None:
    """EventGPT's task."""
    assert WindowSize() == WindowSize(50 * MS, 0)
    assert WindowSize().most is None
    assert WindowSize(MAX_DURATION_NS, 20_000).most == 20_000


@pytest.mark.parametrize(
    ("duration_ns", "events"), [(0, 0), (100 * MS + 1, 0), (100 * MS + 1, 10), (50 * MS, -1)]
)
def test_no_window_is_longer_than_100_ms(duration_ns: int, events: int) -> None:
    """Not by count either; nor empty by its size."""
    with pytest.raises(EventDecodingError, match="up to 100 ms"):
        WindowSize(duration_ns, events)
