"""The buffer of the last few seconds of events, against a sorted list."""

from __future__ import annotations

import resource
import threading
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evspec_ros.errors import EventDecodingError
from evspec_ros.events import buffer as buffer_module
from evspec_ros.events.buffer import BYTES_PER_EVENT, EventBuffer
from evspec_ros.events.types import Events

SIDE = 1 << 16


def packet(times: list[int], first: int = 0) -> Events:
    """Events numbered from `first` on: x and y carry the number, p its lowest bit."""
    numbers = np.arange(first, first + len(times))
    fields = np.array(times, np.int64), numbers.astype(np.uint16), numbers.astype(np.uint16) ^ 0xFFFF
    return Events(fields[0], fields[1], fields[2], (numbers & 1).astype(np.uint8), SIDE, SIDE)


def buffer_of(events: int, span_ns: int = 1_000_000_000) -> EventBuffer:
    """A buffer with room for this many events."""
    return EventBuffer(SIDE, SIDE, span_ns / 1e9, events * BYTES_PER_EVENT)


def content(events: Events) -> list[tuple[int, int]]:
    """(time, number) of each event, having checked that its other fields belong to it."""
    np.testing.assert_array_equal(events.y, events.x ^ 0xFFFF)
    np.testing.assert_array_equal(events.p, events.x & 1)
    return list(zip(events.t.tolist(), events.x.tolist(), strict=True))


class Model:
    """What the buffer promises, in lists."""

    def __init__(self, capacity: int, span: int) -> None:
        self.capacity, self.span = capacity, span
        self.held: list[tuple[int, int]] = []
        self.dropped = 0

    def append(self, new: list[tuple[int, int]]) -> None:
        """One packet."""
        if not new:
            return
        last = max(time for time, _ in new)
        if self.held and last < self.held[-1][0] - self.span:
            self.dropped += len(self.held)
            self.held = []
        merged = sorted(self.held + new, key=lambda event: event[0])
        merged = [event for event in merged if event[0] >= merged[-1][0] - self.span]
        self.held = merged[max(0, len(merged) - self.capacity) :]
        self.dropped += len(merged) - len(self.held)


packets = st.lists(
    st.one_of(
        st.lists(st.integers(0, 60), max_size=8),
        st.tuples(st.integers(0, 300), st.integers(0, 12)).map(lambda args: list(range(args[0], sum(args)))),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(packets=packets, capacity=st.integers(1, 20), span=st.integers(1, 100), fewest=st.integers(1, 8))
def test_any_packets_leave_what_a_sorted_list_leaves(
    packets: list[list[int]], capacity: int, span: int, fewest: int
) -> None:
    """Late, unsorted, stepping back, too many, growing and shrinking: same events, same count of dropped
    ones, same windows.
    """
    with mock.patch.object(buffer_module, "FEWEST", fewest):
        _compare_with_the_model(packets, capacity, span)


def _compare_with_the_model(packets: list[list[int]], capacity: int, span: int) -> None:
    buffer, model = buffer_of(capacity, span), Model(capacity, span)
    number = 0
    for times in packets:
        buffer.append(packet(times, number))
        model.append([(time, number + k) for k, time in enumerate(times)])
        number += len(times)
        assert content(buffer.window(10_000, 20_000)) == model.held
        assert (len(buffer), buffer.dropped) == (len(model.held), model.dropped)
        assert buffer.latest_ns == (model.held[-1][0] if model.held else None)
        for stop, duration in ((30, 10), (buffer.latest_ns or 0, 5), (100, 0), (-5, 3)):
            expected = [event for event in model.held if stop - duration < event[0] <= stop]
            assert content(buffer.window(stop, duration)) == expected


def test_a_window_ends_with_the_event_at_its_stop() -> None:
    """Successive windows share no event and miss none; the newest event is in the window ending at it."""
    buffer = buffer_of(10)
    buffer.append(packet([10, 20, 30]))
    assert content(buffer.window(30, 10)) == [(30, 2)]
    assert content(buffer.window(20, 10)) == [(20, 1)]


def test_a_window_is_a_copy() -> None:
    """Later packets that go round the ring do not change a window that was taken."""
    buffer = buffer_of(4)
    buffer.append(packet([1, 2, 3, 4]))
    window = buffer.window(4, 10)
    buffer.append(packet([5, 6, 7, 8], 4))
    assert content(window) == [(1, 0), (2, 1), (3, 2), (4, 3)]


def test_a_window_copies_its_own_events_and_no_more() -> None:
    """Of a hundred thousand events the last thousand take 13 bytes each."""
    buffer = buffer_of(100_000)
    buffer.append(packet(list(range(100_000))))
    buffer.window(99_999, 1_000)
    tracemalloc.start()
    window = buffer.window(99_999, 1_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(window) == 1_000
    assert peak < 1_000 * BYTES_PER_EVENT + 5_000


def test_late_packets_are_merged_in_place() -> None:
    """The same packet again and again allocates far less than it holds (130 kB), once there is room."""
    buffer, part = buffer_of(100_000), packet(list(range(10_000)))
    for _ in range(10):
        buffer.append(part)
    tracemalloc.start()
    for _ in range(20):
        buffer.append(part)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000
    assert (len(buffer), buffer.dropped) == (100_000, 200_000)


def resident_bytes() -> int:
    """Memory of this process that is in use, of all kinds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_is_what_the_seconds_need_however_long_the_stream() -> None:
    """A thousand packets that go through a buffer of 130 MB, a hundredth of which is held at a time, touch no
    more than four times what is held.
    """
    buffer = buffer_of(10_000_000, span_ns=100_000)
    buffer.append(packet([0]))
    before = resident_bytes()
    for k in range(1_000):
        buffer.append(packet(list(range(k * 10_000, (k + 1) * 10_000))))
    assert len(buffer) == 100_001
    assert buffer.capacity <= 4 * len(buffer)
    assert resident_bytes() - before < 20_000_000


def test_a_burst_takes_memory_and_gives_it_back() -> None:
    """Of a burst of 130 MB every event is held; a while later the system has the memory back."""
    buffer = buffer_of(10_000_000, span_ns=20_000_000)
    burst = np.arange(10_000_000)
    zeros = np.zeros(len(burst), np.uint16)
    buffer.append(packet([0]))
    before = resident_bytes()
    for k in range(0, len(burst), 1_000_000):
        part = slice(k, k + 1_000_000)
        buffer.append(
            Events(burst[part], zeros[part], zeros[part], zeros[part].view(np.uint8)[::2], SIDE, SIDE)
        )
    assert (len(buffer), buffer.dropped) == (10_000_000, 1)
    assert resident_bytes() - before > 125_000_000
    for k in range(3):
        buffer.append(packet([40_000_000 + k]))
    assert len(buffer) == 3
    assert resident_bytes() - before < 5_000_000


def test_a_late_packet_is_sorted_in_and_a_stale_one_starts_anew() -> None:
    """Within the span a packet is late; beyond it the clock stepped back, and what was held is dropped."""
    buffer = buffer_of(100, span_ns=50)
    buffer.append(packet([100, 110, 120]))
    buffer.append(packet([104, 106], 3))
    assert content(buffer.window(200, 200)) == [(100, 0), (104, 3), (106, 4), (110, 1), (120, 2)]
    assert buffer.dropped == 0
    buffer.append(packet([5, 7], 5))
    assert content(buffer.window(200, 200)) == [(5, 5), (7, 6)]
    assert buffer.dropped == 5


def test_clearing_forgets_without_counting() -> None:
    """After clear() the buffer is as new."""
    buffer = buffer_of(10)
    buffer.append(packet([1, 2]))
    buffer.clear()
    assert (len(buffer), buffer.latest_ns, buffer.dropped) == (0, None, 0)
    assert len(buffer.window(10, 10)) == 0


def test_overload_never_grows_the_buffer() -> None:
    """Ten times its capacity later, appending has allocated far less than a packet (130 kB)."""
    buffer = buffer_of(100_000)
    parts = [packet(list(range(k * 10_000, (k + 1) * 10_000))) for k in range(100)]
    for part in parts[:20]:
        buffer.append(part)
    tracemalloc.start()
    for part in parts[20:]:
        buffer.append(part)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000
    assert (len(buffer), buffer.dropped) == (100_000, 900_000)


def test_a_reader_beside_a_writer_sees_whole_packets_only() -> None:
    """Every window taken while another thread appends is sorted and has the fields of its own events."""
    buffer = buffer_of(5_000)
    stop = threading.Event()

    def write() -> None:
        for k in range(2_000):
            buffer.append(packet(list(range(k * 100, (k + 1) * 100)), k * 100 % SIDE))
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set():
        window = buffer.window(buffer.latest_ns or 0, 3_000)
        assert (np.diff(window.t) == 1).all()
        content(window)
    writer.join()


def test_events_of_another_sensor_are_refused() -> None:
    """A change of size in mid-stream is an error that names both sizes."""
    with pytest.raises(
        EventDecodingError, match="640 x 480 pixels cannot join those of one of 65536 x 65536"
    ):
        buffer_of(10).append(Events.empty(640, 480))


@pytest.mark.parametrize(("seconds", "max_bytes"), [(0.0, 1000), (1.0, BYTES_PER_EVENT - 1)])
def test_a_buffer_that_can_hold_nothing_is_refused(seconds: float, max_bytes: int) -> None:
    """It needs a positive span and room for one event."""
    with pytest.raises(EventDecodingError, match="can hold nothing"):
        EventBuffer(640, 480, seconds, max_bytes)
