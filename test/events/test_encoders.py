"""Writing libcaer packets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evspec_ros.errors import EventDecodingError
from evspec_ros.events.decoders import Decoder
from evspec_ros.events.encoders import encode_libcaer
from evspec_ros.events.types import Events


def events_at(times: list[int], x: int = 1, y: int = 2) -> Events:
    """Brighter events at one pixel."""
    n = len(times)
    fields = (
        np.array(times, np.int64),
        np.full(n, x, np.uint16),
        np.full(n, y, np.uint16),
        np.ones(n, np.uint8),
    )
    return Events(*fields, 1 << 15, 1 << 15)


@settings(deadline=None)
@given(
    steps=st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**31 // 30)), max_size=30),
    time_base=st.integers(0, 2**61),
    seed=st.integers(0, 1000),
)
def test_decoding_gives_back_what_was_encoded(steps: list[int], time_base: int, seed: int) -> None:
    """Whole microseconds from the time base on, up to 36 minutes, with any pixel and polarity."""
    rng = np.random.default_rng(seed)
    n = len(steps)
    events = Events(
        time_base + np.cumsum(np.array(steps, np.int64)) * 1000,
        rng.integers(0, 1 << 15, n, np.uint16),
        rng.integers(0, 1 << 15, n, np.uint16),
        rng.integers(0, 2, n, np.uint8),
        1 << 15,
        1 << 15,
    )
    data = encode_libcaer(events, time_base)
    assert len(data) == 8 * n
    decoded = Decoder("libcaer", 1 << 15, 1 << 15).decode(data, time_base)
    for field in ("t", "x", "y", "p"):
        np.testing.assert_array_equal(getattr(decoded, field), getattr(events, field))


def test_times_are_rounded_down_to_microseconds_after_the_time_base() -> None:
    """1,999 ns after the time base is read back as 1,000 ns."""
    decoded = Decoder("libcaer", 10, 10).decode(encode_libcaer(events_at([10_999, 11_999]), 10_000), 10_000)
    assert decoded.t.tolist() == [10_000, 11_000]


@pytest.mark.parametrize(
    "events",
    [events_at([999]), events_at([5000, 4000]), events_at([1000 + 2**31 * 1000]),
     events_at([1000, 1000 + 2**31 * 1000]), events_at([1000], x=1 << 15), events_at([1000], y=1 << 15)],
)  # fmt: skip
def test_what_the_format_cannot_hold_is_refused(events: Events) -> None:
    """Before the time base, out of order, 2^31 us after it, coordinates of 16 bits."""
    with pytest.raises(EventDecodingError, match="do not fit into a libcaer packet"):
        encode_libcaer(events, 1000)
