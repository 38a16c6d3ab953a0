"""Stamps that cannot be: a message stamped decades away from all others.

Drivers send the first message before their clock is set, or never stamp it at all. What most stamps of a
recording say is believed, wherever the log time may be.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from statistics import median_high

from rosbags.interfaces import Connection

from evspec_ros.recordings.recording import Piece, clipped
from evspec_ros.recordings.rosbag2_types import PACKET_TYPES

DAY_NS = 86_400_000_000_000
FAR_NS = 30 * DAY_NS  # no recording is that long
YEAR_NS = 365.25 * 86_400e9
SECOND_NS = 1_000_000_000

_STAMP_AT, _STAMP = 4, "<iI"  # in a serialised header of ROS 1 and of ROS 2


def header_stamp_ns(data: bytes) -> int:
    """The header stamp of a serialised message; raises struct.error where it is too short for one."""
    seconds, nanoseconds = struct.unpack_from(_STAMP, data, _STAMP_AT)
    return int(seconds) * SECOND_NS + int(nanoseconds)


@dataclass(frozen=True)
class Middle:
    """Where most of a recording's messages lie: stamp_ns, and how far their stamps are ahead of the log time.

    first_ns: the earliest stamp near it.
    """

    stamp_ns: int
    ahead_ns: int
    first_ns: int

    @classmethod
    def of(cls, sample: Collection[tuple[int, int]]) -> Middle | None:
        """That of some messages, each given by stamp and log time; None where there is none."""
        if not sample:
            return None
        middle = median_high(stamp_ns for stamp_ns, _ in sample)
        near = [one for one in sample if abs(one[0] - middle) <= FAR_NS]
        ahead = median_high(stamp_ns - log_ns for stamp_ns, log_ns in near)
        return cls(middle, ahead, min(stamp_ns for stamp_ns, _ in near))

    def about_log_time(self) -> str:
        """A sentence where the log time is a day or more away from the stamps, "" elsewhere."""
        days = abs(self.ahead_ns) / DAY_NS
        if days < 1:
            return ""
        where = "before" if self.ahead_ns > 0 else "after"
        return f"The log time lies {days:,.0f} days {where} the stamps; the stamps are what counts."

    def believes(self, stamp_ns: int) -> bool:
        """Whether a time is near enough to be one of this recording."""
        return abs(stamp_ns - self.stamp_ns) <= FAR_NS


@dataclass
class Strays:
    """Finds the stray messages in a pass over a recording, takes their times out, and counts them.

    middle: None where nothing is known, and everything believed. topic, stamp_ns: of the first stray.
    """

    middle: Middle | None
    count: int = 0
    topic: str = ""
    stamp_ns: int = 0
    _believed_ns: int = field(init=False)  # the last one
    _replaced_ns: int | None = field(init=False, default=None)  # in the message at hand

    def __post_init__(self) -> None:
        self._believed_ns = self.middle.first_ns if self.middle else 0

    def __str__(self) -> str:
        """One sentence; there has to be a stray."""
        assert self.middle
        years = (self.stamp_ns - self.middle.stamp_ns) / YEAR_NS
        return (
            f"{self.count:,} of the messages bear a stamp far from the others': the first, on {self.topic}, "
            f"{self.stamp_ns / 1e9:.3f} s, {abs(years):.1f} years {'before' if years < 0 else 'after'} them. "
            f"Such stamps are not used, and images that bear them are left out."
        )

    def placed(self, connection: Connection, log_ns: int, data: bytes) -> bytes:
        """A serialised message; of an event packet whose header stamp cannot be, one with another stamp.

        Its events have times of their own, and all that the stamp says is what the sensor's clock is on the
        host's, so a stamp after the log time, or right behind the one before, serves.
        """
        too_short = len(data) < _STAMP_AT + struct.calcsize(_STAMP)
        if self.middle is None or connection.msgtype not in PACKET_TYPES or too_short:
            return data
        stamp_ns = header_stamp_ns(data)
        if not self.middle.believes(stamp_ns):
            self._replaced_ns = stamp_ns
            by_log_ns = log_ns + self.middle.ahead_ns
            stamp_ns = by_log_ns if self.middle.believes(by_log_ns) else self._believed_ns + 1
            stamp = struct.pack(_STAMP, *divmod(stamp_ns, SECOND_NS))
            data = data[:_STAMP_AT] + stamp + data[_STAMP_AT + len(stamp) :]
        self._believed_ns = stamp_ns
        return data

    def cleared(self, piece: Piece) -> Piece:
        """The piece without the frame or the events whose time cannot be; that of a message just placed."""
        replaced_ns, self._replaced_ns = self._replaced_ns, None
        if replaced_ns is not None and not piece.read.refused:  # otherwise it is damaged as a whole
            self._count(piece.topic, replaced_ns)
        if self.middle is None:
            return piece
        if piece.frame is not None and not self.middle.believes(piece.frame.stamp_ns):
            self._count(piece.topic, piece.frame.stamp_ns)
            return replace(piece, frame=None)
        if piece.events is not None and len(piece.events):
            middle_ns = self.middle.stamp_ns - piece.offset_ns
            away = abs(piece.events.t - middle_ns) > FAR_NS
            if away.any():
                self._count(piece.topic, int(piece.events.t[away.argmax()]) + piece.offset_ns)
                near = clipped(piece.events, middle_ns - FAR_NS, middle_ns + FAR_NS + 1)
                return replace(piece, events=near)
        return piece

    def _count(self, topic: str, stamp_ns: int) -> None:
        if not self.count:
            self.topic, self.stamp_ns = topic, stamp_ns
        self.count += 1
