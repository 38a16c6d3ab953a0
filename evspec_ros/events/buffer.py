"""The last few seconds of events."""

from __future__ import annotations

import mmap
import threading
from typing import TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from evspec_ros.errors import EventDecodingError
from evspec_ros.events.types import Events

BYTES_PER_EVENT = 8 + 2 + 2 + 1  # t, x, y, p
FEWEST = 4096  # events that there is room for at any time, 53 kB

_Scalar = TypeVar("_Scalar", bound=np.generic)


class EventBuffer:
    """The newest events of one sensor, sorted by time: at most `seconds` long and `max_bytes` large.

    The memory is a ring as large as the events need: it doubles where they do not fit, up to `max_bytes`, and
    is halved where they fill a quarter, so that appending costs the same on average and a burst takes memory
    for as long as its events are held. One thread may append while another takes windows.

    Events that arrive late, after newer ones, are sorted in where they belong. A packet whose events are all
    older than anything that the buffer may hold (newest time - seconds) cannot be merely late: the sensor's
    clock stepped back (a restarted driver, a replay from the start), so all that is held is discarded and the
    packet begins anew.

    `dropped` counts the events discarded too early: the oldest ones where `max_bytes` did not suffice, and
    those held at a step back. Events older than `seconds` are forgotten without being counted.
    """

    def __init__(self, width: int, height: int, seconds: float, max_bytes: int) -> None:
        if seconds <= 0 or max_bytes < BYTES_PER_EVENT:
            raise EventDecodingError(
                f"An event buffer of {seconds} s and {max_bytes} bytes can hold nothing: "
                f"give it more than 0 s and at least {BYTES_PER_EVENT} bytes."
            )
        self.width = width
        self.height = height
        self._span_ns = round(seconds * 1e9)
        self._most = max_bytes // BYTES_PER_EVENT
        self._reserve(min(FEWEST, self._most))
        self._start = 0  # where in the ring the oldest event lies
        self._count = 0
        self._dropped = 0
        self._lock = threading.Lock()
        self._compile()

    @property
    def latest_ns(self) -> int | None:
        """The time of the newest event, None if there is none."""
        with self._lock:
            return self._latest() if self._count else None

    @property
    def dropped(self) -> int:
        """The number of events discarded too early."""
        return self._dropped

    @property
    def capacity(self) -> int:
        """How many events the memory that is taken now has room for."""
        return self._capacity

    def __len__(self) -> int:
        return self._count

    def clear(self) -> None:
        """Forgets all events; they do not count as dropped."""
        with self._lock:
            self._start = self._count = 0
            self._fit(0)

    def append(self, events: Events) -> None:
        """Takes in a packet's events; raises EventDecodingError if they are of a sensor of another size."""
        if (events.width, events.height) != (self.width, self.height):
            raise EventDecodingError(
                f"Events of a sensor of {events.width} x {events.height} pixels cannot join those of one of "
                f"{self.width} x {self.height}: each sensor needs its own buffer."
            )
        if len(events) == 0:
            return
        if not _ascending(events.t):
            events = _sorted(events)
        with self._lock:
            packet_end = int(events.t[-1])
            if self._count and packet_end < self._latest() - self._span_ns:
                self._discard_oldest(self._count)
            newest = max(packet_end, self._latest()) if self._count else packet_end
            self._insert(self._without_expired(events, newest - self._span_ns))

    def window(self, stop_ns: int, duration_ns: int, most: int | None = None) -> Events:
        """The held events with stop_ns - duration_ns < t <= stop_ns, the last `most` of them at most.

        They are a copy, of these events alone.
        """
        with self._lock:
            stop = self._number_until(stop_ns)
            count = max(stop - self._number_until(stop_ns - duration_ns), 0)
            count = count if most is None else min(count, most)
            place = (self._start + stop - count) % self._capacity
            return Events(
                _unrolled(self._t, place, count),
                _unrolled(self._x, place, count),
                _unrolled(self._y, place, count),
                _unrolled(self._p, place, count),
                self.width,
                self.height,
            )

    def _compile(self) -> None:
        """Runs the kernels once, so that no packet has to wait for a compiler."""
        pixel, polarity = np.zeros(1, np.uint16), np.zeros(1, np.uint8)
        for t in (1, 0):  # in order, and late
            self.append(Events(np.array([t]), pixel, pixel, polarity, self.width, self.height))
        self.clear()
        self._dropped = 0

    def _latest(self) -> int:
        return int(self._t[(self._start + self._count - 1) % self._capacity])

    def _number_until(self, time_ns: int) -> int:
        return int(_number_until(self._t, self._start, self._count, time_ns))

    def _without_expired(self, events: Events, horizon_ns: int) -> Events:
        """Forgets what is older than the horizon, here and in the packet."""
        self._forget_oldest(self._number_until(horizon_ns - 1))
        return events[int(np.searchsorted(events.t, horizon_ns)) :]

    def _reserve(self, capacity: int) -> None:
        """Take memory for so many events: what was never written takes none, and all of it goes back to the
        system, whatever its size, once nothing refers to it.
        """
        memory = mmap.mmap(-1, capacity * BYTES_PER_EVENT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux; fewer page faults while the ring is filled
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._t = np.frombuffer(memory, np.int64, capacity)
        self._x, self._y = np.frombuffer(memory, np.uint16, 2 * capacity, 8 * capacity).reshape(2, -1)
        self._p = np.frombuffer(memory, np.uint8, capacity, 12 * capacity)
        self._capacity = capacity

    def _fit(self, number: int) -> None:
        """Grow or shrink the ring to what `number` events need, keeping those that are held."""
        if number > self._capacity:
            capacity = min(max(number, 2 * self._capacity), self._most)
        elif number <= self._capacity // 4:
            capacity = max(2 * number, min(FEWEST, self._most))
        else:
            return
        if capacity == self._capacity:
            return
        t, x, y, p = self._t, self._x, self._y, self._p
        self._reserve(capacity)
        start, count = self._start, self._count
        _unrolled(t, start, count, self._t[:count])
        _unrolled(x, start, count, self._x[:count])
        _unrolled(y, start, count, self._y[:count])
        _unrolled(p, start, count, self._p[:count])
        self._start = 0

    def _insert(self, events: Events) -> None:
        self._fit(self._count + len(events))
        excess = max(self._count + len(events) - self._capacity, 0)
        if not len(events) or not self._count or events.t[0] >= self._latest():
            self._append_in_order(events, excess)
        else:
            self._merge_late(events, excess)

    def _append_in_order(self, events: Events, excess: int) -> None:
        too_many = max(len(events) - self._capacity, 0)
        self._dropped += too_many
        self._discard_oldest(excess - too_many)
        events = events[too_many:]
        place = (self._start + self._count) % self._capacity
        for ring, new in (
            (self._t, events.t), (self._x, events.x), (self._y, events.y), (self._p, events.p)
        ):  # fmt: skip
            before_end = self._capacity - place
            ring[place : place + len(new)] = new[:before_end]
            ring[: max(len(new) - before_end, 0)] = new[before_end:]
        self._count += len(events)

    def _merge_late(self, events: Events, excess: int) -> None:
        too_old = int(_new_among_oldest(self._t, self._start, self._count, events.t, excess))
        self._dropped += too_old
        self._discard_oldest(excess - too_old)
        events = events[too_old:]
        _merge(
            self._start,
            self._count,
            self._t,
            self._x,
            self._y,
            self._p,
            events.t,
            events.x,
            events.y,
            events.p,
        )
        self._count += len(events)

    def _discard_oldest(self, number: int) -> None:
        self._dropped += number
        self._forget_oldest(number)

    def _forget_oldest(self, number: int) -> None:
        self._start = (self._start + number) % self._capacity
        self._count -= number


def _sorted(events: Events) -> Events:
    order = np.argsort(events.t, kind="stable")
    return Events(
        events.t[order], events.x[order], events.y[order], events.p[order], events.width, events.height
    )


def _unrolled(
    ring: NDArray[_Scalar], start: int, count: int, out: NDArray[_Scalar] | None = None
) -> NDArray[_Scalar]:
    before_end = min(count, len(ring) - start)
    return np.concatenate((ring[start : start + before_end], ring[: count - before_end]), out=out)


@njit(cache=True, nogil=True)
def _ascending(t: NDArray[np.int64]) -> bool:
    descents = 0
    for k in range(1, len(t)):  # to the end, whatever is found: so several are compared at once
        descents += t[k] < t[k - 1]
    return descents == 0


@njit(cache=True, nogil=True)
def _number_until(ring: NDArray[np.int64], start: int, count: int, time: int) -> int:
    """How many of the held times are <= time."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if ring[(start + middle) % len(ring)] <= time:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _new_among_oldest(
    ring: NDArray[np.int64], start: int, count: int, new: NDArray[np.int64], number: int
) -> int:
    """How many of the `number` oldest of all held and new times are new ones."""
    held_taken, new_taken = 0, 0
    while held_taken + new_taken < number:
        if held_taken < count and (
            new_taken == len(new) or ring[(start + held_taken) % len(ring)] <= new[new_taken]
        ):
            held_taken += 1
        else:
            new_taken += 1
    return new_taken


@njit(cache=True, nogil=True)
def _merge(
    start: int,
    count: int,
    t: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
    new_t: NDArray[np.int64],
    new_x: NDArray[np.uint16],
    new_y: NDArray[np.uint16],
    new_p: NDArray[np.uint8],
) -> None:
    """Merges sorted new events into the sorted ring from the back; of equal ones the held go first."""
    size = len(t)
    held, new = count - 1, len(new_t) - 1
    while new >= 0:
        to = start + held + new + 1
        to = to - size if to >= size else to
        source = start + held
        source = source - size if source >= size else source
        if held >= 0 and t[source] > new_t[new]:
            t[to], x[to], y[to], p[to] = t[source], x[source], y[source], p[source]
            held -= 1
        else:
            t[to], x[to], y[to], p[to] = new_t[new], new_x[new], new_y[new], new_p[new]
            new -= 1
