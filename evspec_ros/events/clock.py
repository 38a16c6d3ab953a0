"""From the sensor's time to ROS time."""

from __future__ import annotations

_PACKETS_AVERAGED = 1000  # about 4 s of a driver's packets
_REORDERING_NS = 100_000_000  # packets may overtake each other by this much
LEAP_NS = 1_000_000_000  # no transport is late by this much: one of the clocks was set


class SensorClock:
    """ROS time = sensor time + offset; the offset is a slow average of (header stamp - first sensor time).

    A driver stamps a packet when it arrives at the host, so each single difference carries the jitter of the
    transport; the average over the last thousand or so packets does not. The average starts anew when either
    clock steps back by more than 0.1 s (a restarted driver, a replay from the start) or when the difference
    leaps by more than 1 s (a clock that was set).
    """

    def __init__(self) -> None:
        self._offset = 0
        self._packets = 0
        self._last_stamp = 0
        self._last_sensor = 0

    def update(self, header_stamp_ns: int, first_sensor_ns: int) -> bool:
        """Learns from a packet's header stamp and its first event's sensor time; True if it started anew.

        The very first packet is no new start.
        """
        difference = header_stamp_ns - first_sensor_ns
        restarted = self._packets > 0 and (
            header_stamp_ns < self._last_stamp - _REORDERING_NS
            or first_sensor_ns < self._last_sensor - _REORDERING_NS
            or abs(difference - self._offset) > LEAP_NS
        )
        if restarted:
            self._packets = 0
        if self._packets == 0:
            self._offset = difference
        self._packets = min(self._packets + 1, _PACKETS_AVERAGED)
        self._offset += (difference - self._offset) // self._packets
        self._last_stamp, self._last_sensor = header_stamp_ns, first_sensor_ns
        return restarted

    @property
    def offset_ns(self) -> int:
        """ROS time minus sensor time; 0 before the first packet."""
        return self._offset

    @property
    def known(self) -> bool:
        """Whether there was a first packet."""
        return self._packets > 0

    def to_ros(self, sensor_ns: int) -> int:
        """ROS time of a sensor time, nanoseconds; the sensor time itself before the first packet."""
        return sensor_ns + self._offset
