"""The sensor's clock against that of ROS."""

from __future__ import annotations

import numpy as np
import pytest

from evspec_ros.events.clock import SensorClock

MS = 1_000_000
EPOCH = 1_700_000_000_000 * MS


def run(clock: SensorClock, packets: int, sensor: int, offset: int, drift: float = 0.0) -> int:
    """Packets every 4 ms whose arrival is 0 to 2 ms late; returns the sensor time after the last."""
    rng = np.random.default_rng(3)
    for _ in range(packets):
        sensor += 4 * MS
        clock.update(round(sensor * (1 + drift)) + offset + int(rng.integers(2 * MS)), sensor)
    return sensor


def test_the_first_packet_sets_the_offset_exactly() -> None:
    """Nothing to average yet, and no new start."""
    clock = SensorClock()
    assert clock.to_ros(7) == 7
    assert not clock.update(EPOCH + 5, 5)
    assert clock.to_ros(6) == EPOCH + 6


def test_the_jitter_of_single_packets_is_averaged_away() -> None:
    """After some seconds the offset stays within 0.1 ms although packets are 0 to 2 ms late."""
    clock = SensorClock()
    sensor = run(clock, 3000, 0, EPOCH)
    assert abs(clock.to_ros(sensor) - (sensor + EPOCH + MS)) < 0.1 * MS


def test_a_drifting_sensor_clock_is_followed() -> None:
    """At 100 ppm for 80 s (8 ms in all) the mapping lags by less than 1 ms."""
    clock = SensorClock()
    sensor = run(clock, 20_000, 0, EPOCH, drift=100e-6)
    assert abs(clock.to_ros(sensor) - (round(sensor * (1 + 100e-6)) + EPOCH + MS)) < MS


@pytest.mark.parametrize(
    ("stamp", "sensor"),
    [
        (EPOCH, 0),  # a replay from the start: both step back
        (EPOCH + 10_004 * MS, 4 * MS),  # a restarted driver: the sensor counts from zero
        (EPOCH - 5000 * MS, 10_004 * MS),  # the host's clock was set back
        (EPOCH + 20_000 * MS, 10_004 * MS),  # the host's clock was set forward
        (EPOCH + 9_500 * MS, 10_004 * MS),  # the host's clock was set back by half a second
        (EPOCH + 10_004 * MS, 9_500 * MS),  # the sensor's was
    ],
)
def test_a_clock_that_steps_starts_the_average_anew(stamp: int, sensor: int) -> None:
    """The first packet after the step is mapped to its own stamp, and the caller is told."""
    clock = SensorClock()
    for k in range(2500):
        assert not clock.update(EPOCH + k * 4 * MS, k * 4 * MS)
    assert clock.update(stamp, sensor)
    assert clock.to_ros(sensor) == stamp
    assert not clock.update(stamp + 4 * MS, sensor + 4 * MS)


def test_packets_that_overtake_each_other_are_no_step_back() -> None:
    """Two packets in the wrong order leave the average as it is."""
    clock = SensorClock()
    sensor = run(clock, 100, 0, EPOCH)
    before = clock.to_ros(0)
    assert not clock.update(EPOCH + sensor - 8 * MS, sensor - 8 * MS)
    assert abs(clock.to_ros(0) - before) < 0.1 * MS
