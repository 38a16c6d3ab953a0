"""From a file's times to nanoseconds, and which times are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evspec_ros.errors import RecordingError

UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}  # nanoseconds
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
LAST_NS = (
    1 << 62
) - 1  # in 2116; what is added to a time, such as a clock's offset, then fits into 64 bits too
_LAST_STAMP_S = (1 << 31) - 1  # builtin_interfaces/Time holds int32
_FEW = 100  # events, too few to judge a rate by
_SLOWEST, _FASTEST = 100.0, 2e9  # events a second that a camera may send on average
_LONGEST_S = 6 * 3600.0
_SHORTEST_S = 1e-4  # shorter ones are a burst, whose rate says nothing
DEFAULT_ADVICE = "its format knows no other unit, so write the times anew"


def nanoseconds(
    values: NDArray[Any], unit: str, path: Path, advice: str = DEFAULT_ADVICE
) -> NDArray[np.int64]:
    """Times of a file, in one of UNITS, as nanoseconds, rounded.

    Raises RecordingError for a time that is no number and for one beyond LAST_NS on either side of zero;
    advice: what its sentence ends with, where another unit would do.
    """
    if not len(values):
        return np.empty(0, np.int64)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RecordingError(f"A time among the events of {path} is no number; repair its t.")
    for value in (values.max().item(), values.min().item()):
        if abs(value) * UNITS[unit] > LAST_NS:
            raise beyond_range(value, unit, path, advice)
    if values.dtype.kind == "f":
        return np.round(values.astype(np.float64) * UNITS[unit]).astype(np.int64)
    return values.astype(np.int64) * UNITS[unit]


def beyond_range(value: float, unit: str, path: Path, advice: str = DEFAULT_ADVICE) -> RecordingError:
    """What to raise for a time that nanoseconds in 64 bits do not hold."""
    finer = list(UNITS)[list(UNITS).index(unit) + 1 :]
    fits = next((other for other in finer if abs(value) * UNITS[other] <= LAST_NS), None)
    years = abs(value) * UNITS[unit] / (365.2425 * 86_400e9)
    question = f"is it in {_NAMES[fits]}? If so, {advice}" if fits else "the file is damaged; copy it again"
    return RecordingError(
        f"The recording {path} has a time of {value} {_NAMES[unit]}, which are {years:,.0f} years and more "
        f"than 64 bits of nanoseconds hold: {question}."
    )


def doubts(events: int, start_ns: int, stop_ns: int) -> tuple[str, ...]:
    """What the length, the rate and the date of a recording let one ask about the unit of its times."""
    seconds = max(stop_ns - start_ns, 1) / 1e9
    told = []
    slow = events / seconds < _SLOWEST or seconds > _LONGEST_S
    if events >= _FEW and (slow or (events / seconds > _FASTEST and seconds > _SHORTEST_S)):
        other = "finer, such as ns for us or us for s" if slow else "coarser, such as us for ns"
        told.append(
            f"{events:,} events in {seconds:,.9g} s, {events / seconds:,.3g} a second, are unlikely for an "
            f"event camera: is the unit of the times a thousand or a million times {other}?"
        )
    if stop_ns > (_LAST_STAMP_S + 1) * UNITS["s"]:
        told.append(
            f"The recording ends {stop_ns / 1e9:,.0f} s after 1970, which no ROS stamp holds (they end in "
            f"January 2038), so it cannot be converted: are its times in another unit?"
        )
    return tuple(told)


def ros_stamp(stamp_ns: int, path: Path) -> tuple[int, int]:
    """Seconds and nanoseconds of a ROS stamp; raises RecordingError for times that it cannot hold.

    path: the recording that the time is of.
    """
    seconds, rest = divmod(stamp_ns, UNITS["s"])
    if not 0 <= seconds <= _LAST_STAMP_S:
        raise RecordingError(
            f"The recording {path} has a time of {seconds} seconds, and a ROS stamp holds 0 to "
            f"{_LAST_STAMP_S} (January 2038): are its times in another unit than they "
            f"were read in, or was its clock wrong?"
        )
    return seconds, rest
