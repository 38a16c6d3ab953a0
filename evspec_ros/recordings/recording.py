"""What every recording answers, whatever its format: what is in it, its events, its frames."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evspec_ros.events.bounds import NONE_OUTSIDE, Outside
from evspec_ros.events.streams import NO_MESSAGES, StreamCounts
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.times import doubts

DAMAGE = (  # what any library may raise on bytes that are not what they should be
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
OVERLAP_NS = 1_000_000_000  # how far consecutive pieces of one stream may step back in time

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What is to be read, "" where the recording is to decide.

    events, image: names of topics. columns: those of a text in their order, such as "t,x,y,p". time_unit:
    that of a text or an .npy file, one of times.UNITS.
    """

    events: str = ""
    image: str = ""
    columns: str = ""
    time_unit: str = ""


WHATEVER = Wanted()


@dataclass(frozen=True)
class Refusal:
    """A message that was left out.

    number: which message of its topic, from 1 on. log_ns: when it was recorded. reason: a sentence.
    """

    number: int
    log_ns: int
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return {"number": self.number, "log_ns": self.log_ns, "reason": self.reason}


@dataclass(frozen=True)
class Topic:
    """One stream of a recording.

    count: messages (rosbag2) or samples (other formats). left_out: why it is not read, "" where it is.
    read: what became of its messages in a pass over the recording. first_refusal: the first message that was
    left out of those that were read.
    """

    name: str
    type: str
    count: int
    left_out: str = ""
    read: StreamCounts = NO_MESSAGES
    first_refusal: Refusal | None = None

    def as_dict(self) -> dict[str, Any]:
        """Name, type, count and what is not as it should be: why the topic is not read, how many messages
        were left out and the first of them, losses, restarts.
        """
        fields: dict[str, Any] = {"name": self.name, "type": self.type, "count": self.count}
        wrong = {
            "left_out": self.left_out,
            "messages_left_out": self.read.refused,
            "first_left_out": self.first_refusal.as_dict() if self.first_refusal else None,
            "lost_messages": self.read.lost,
            "unplaced_events": self.read.unplaced,
            "corrupt_words": self.read.corrupt,
            "restarts": self.read.restarts,
            "last_restart": self.read.restart,
        }
        return fields | {name: value for name, value in wrong.items() if value}


@dataclass(frozen=True)
class EventTotals:
    """Exact sums over all events, in Python integers, on the sensor's own clock.

    t_first_ns, t_last_ns: times of the first and the last event in the sensor's order; None without events.
    outside: what was left out since the sensor does not have its place.
    """

    count: int = 0
    on: int = 0
    sum_t_ns: int = 0
    sum_x: int = 0
    sum_y: int = 0
    t_first_ns: int | None = None
    t_last_ns: int | None = None
    width: int = 0
    height: int = 0
    outside: Outside = NONE_OUTSIDE

    @property
    def off(self) -> int:
        """Events of falling brightness."""
        return self.count - self.on

    @property
    def size_that_holds_all(self) -> tuple[int, int] | None:
        """Width and height to give instead, where more than one event in a thousand was left out."""
        return self.outside.size_that_holds_all(self.count, self.width, self.height)

    def plus(self, events: Events, outside: Outside = NONE_OUTSIDE) -> EventTotals:
        """The totals after further events, with those that were left out among them."""
        outside = self.outside.plus(outside)
        if not len(events):
            size = (events.width, events.height) if outside.count else (self.width, self.height)
            return replace(self, outside=outside, width=size[0], height=size[1])
        return EventTotals(
            count=self.count + len(events),
            on=self.on + int(events.p.sum(dtype=np.int64)),
            sum_t_ns=self.sum_t_ns + exact_sum(events.t),
            sum_x=self.sum_x + int(events.x.sum(dtype=np.int64)),
            sum_y=self.sum_y + int(events.y.sum(dtype=np.int64)),
            t_first_ns=int(events.t[0]) if self.t_first_ns is None else self.t_first_ns,
            t_last_ns=int(events.t[-1]),
            width=events.width,
            height=events.height,
            outside=outside,
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them; those of events outside the sensor where there are some."""
        fields: dict[str, Any] = {
            "count": self.count,
            "on": self.on,
            "off": self.off,
            "sum_t_ns": self.sum_t_ns,
            "sum_x": self.sum_x,
            "sum_y": self.sum_y,
            "t_first_ns": self.t_first_ns,
            "t_last_ns": self.t_last_ns,
            "width": self.width,
            "height": self.height,
        }
        if not self.outside.count:
            return fields
        size = self.size_that_holds_all
        fields |= {"outside": self.outside.count, "first_outside": list(self.outside.first or ())}
        return fields | {"size_that_holds_all": list(size)} if size else fields


def exact_sum(times: NDArray[np.int64]) -> int:
    """The sum of int64 values as a Python integer, exact even where it exceeds 63 bits."""
    high = int((times >> 32).sum())
    low = int((times & 0xFFFFFFFF).sum())  # neither half overflows below 2^31 values
    return (high << 32) + low


@dataclass(frozen=True)
class RecordingInfo:
    """What one pass over a recording found.

    events: totals on the sensor's clock. start_ns <= every event and frame < stop_ns, on the recording's
    clock; both 0 in an empty recording. triggers: edges on the camera's external input. remarks: what is not
    as it should be with the recording as a whole, a sentence each.
    """

    events: EventTotals
    triggers: int
    frames: int
    start_ns: int
    stop_ns: int
    topics: tuple[Topic, ...]
    remarks: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last event or frame."""
        return max(self.stop_ns - self.start_ns - 1, 0) / 1e9

    def as_dict(self) -> dict[str, Any]:
        """What `evspec info --json` prints."""
        fields = {
            "events": self.events.as_dict(),
            "triggers": self.triggers,
            "frames": self.frames,
            "duration_s": self.duration_s,
            "topics": [topic.as_dict() for topic in self.topics],
        }
        return fields | {"remarks": list(self.remarks)} if self.remarks else fields


@dataclass(frozen=True, eq=False)
class Piece:
    """A lazily read bit of one topic: a message of a bag, a packet of a file.

    events are on the sensor's clock and offset_ns brings them onto the recording's; a frame's stamp is on the
    recording's clock already. read: what became of the message, where messages are counted; one that was left
    out has neither events nor a frame, and its time in the recording is log_ns. outside: the events in it
    that were left out since the sensor does not have their place.
    """

    topic: str
    samples: int
    events: Events | None = None
    frame: Frame | None = None
    offset_ns: int = 0
    triggers: int = 0
    read: StreamCounts = NO_MESSAGES
    log_ns: int = 0
    outside: Outside = NONE_OUTSIDE


class Recording(ABC):
    """Events and frames of a file or folder, read lazily: memory does not grow with the recording's length.

    All times that it hands out (events, frames, start_ns, stop_ns) are nanoseconds on one clock, the
    recording's; `info().events` alone stays on the sensor's clock. The two differ in bags, where a camera's
    own time is brought onto that of the header stamps, and in DSEC, which names the offset between them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned: set[str] = set()  # what was told of already

    @abstractmethod
    def pieces(self, *, events: bool = True, frames: bool = True) -> Iterator[Piece]:
        """Everything wanted, in the order of the file; pieces of streams that nobody wants may come too.

        Raises RecordingError where the file is damaged.
        """

    @property
    @abstractmethod
    def topics(self) -> tuple[Topic, ...]:
        """The streams of the recording."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is not as it should be, as far as it was read, a sentence each."""
        return ()

    @property
    def about_log_time(self) -> str:
        """A sentence where a bag's log time and its stamps are of different days, "" elsewhere."""
        return ""

    def events(self, start_ns: int | None = None, stop_ns: int | None = None) -> Iterator[Events]:
        """Consecutive pieces of the events with start_ns <= t < stop_ns, none of them empty.

        A stateful encoding is decoded from the recording's beginning, so read windows in one sweep.
        """
        for piece in self.pieces(frames=False):
            self._warn_once(piece)
            if piece.events is None or not len(piece.events):
                continue
            events = shifted(piece.events, piece.offset_ns)
            if stop_ns is not None and events.t[0] >= stop_ns + OVERLAP_NS:
                return
            events = clipped(events, start_ns, stop_ns)
            if len(events):
                yield events

    def frames(self, start_ns: int | None = None, stop_ns: int | None = None) -> Iterator[Frame]:
        """The frames with start_ns <= stamp < stop_ns."""
        for piece in self.pieces(events=False):
            self._warn_once(piece)
            if piece.frame is None:
                continue
            stamp = piece.frame.stamp_ns
            if stop_ns is not None and stamp >= stop_ns + OVERLAP_NS:
                return
            if (start_ns is None or stamp >= start_ns) and (stop_ns is None or stamp < stop_ns):
                yield piece.frame

    def _warn_once(self, piece: Piece) -> None:
        """Log what is left out of a topic when it is met first: whoever reads on does not ask info()."""
        if piece.read.refused and piece.topic not in self._warned:
            self._warned.add(piece.topic)
            logger.warning("%s of %s is not read as a whole: %s", piece.topic, self.path, piece.read.problem)
        outside = f"{piece.topic} outside"
        if piece.outside.count and piece.events is not None and outside not in self._warned:
            self._warned.add(outside)
            logger.warning(
                "%s of %s has events outside the sensor of %d x %d pixels, the first of them at %s; they are "
                "left out, and `evspec info` tells their number.",
                piece.topic,
                self.path,
                piece.events.width,
                piece.events.height,
                piece.outside.first,
            )

    @property
    def start_ns(self) -> int:
        """Time of the earliest event or frame; the first use reads the whole recording."""
        return self.survey.start_ns

    @property
    def stop_ns(self) -> int:
        """One nanosecond after the latest event or frame; the first use reads the whole recording."""
        return self.survey.stop_ns

    def info(self) -> RecordingInfo:
        """Totals, span and topics; the first use reads the whole recording."""
        survey = self.survey
        return RecordingInfo(
            survey.totals,
            survey.triggers,
            survey.frames,
            survey.start_ns,
            survey.stop_ns,
            tuple(survey.judged(topic) for topic in self.topics),
            (*self.remarks, *doubts(survey.totals.count, survey.start_ns, survey.stop_ns)),
        )

    @cached_property
    def survey(self) -> Survey:
        """The one pass behind info, start_ns and stop_ns."""
        survey = Survey()
        for piece in self.pieces():
            survey.add(piece)
        return survey


@dataclass
class Survey:
    """Running totals of a pass over a recording."""

    totals: EventTotals = EventTotals()
    triggers: int = 0
    frames: int = 0
    start_ns: int = 0
    stop_ns: int = 0
    samples: Counter[str] = field(default_factory=Counter)
    read: dict[str, StreamCounts] = field(default_factory=dict)  # by topic
    first_refusals: dict[str, Refusal] = field(default_factory=dict)  # likewise

    def add(self, piece: Piece) -> None:
        """Count one more piece."""
        self.samples[piece.topic] += piece.samples
        self.read[piece.topic] = self.read.get(piece.topic, NO_MESSAGES).plus(piece.read)
        if piece.read.refused and piece.topic not in self.first_refusals:
            refusal = Refusal(self.samples[piece.topic], piece.log_ns, piece.read.problem)
            self.first_refusals[piece.topic] = refusal
        self.triggers += piece.triggers
        if piece.frame is not None:
            self.frames += 1
            self._span(piece.frame.stamp_ns, piece.frame.stamp_ns)
        if piece.events is not None:
            self.totals = self.totals.plus(piece.events, piece.outside)
        if piece.events is not None and len(piece.events):
            times = piece.events.t
            self._span(int(times.min()) + piece.offset_ns, int(times.max()) + piece.offset_ns)

    def judged(self, topic: Topic) -> Topic:
        """The topic with what became of its messages."""
        read = self.read.get(topic.name, NO_MESSAGES)
        return replace(topic, read=read, first_refusal=self.first_refusals.get(topic.name))

    def _span(self, first_ns: int, last_ns: int) -> None:
        empty = self.stop_ns == self.start_ns
        self.start_ns = first_ns if empty else min(self.start_ns, first_ns)
        self.stop_ns = last_ns + 1 if empty else max(self.stop_ns, last_ns + 1)


def shifted(events: Events, offset_ns: int) -> Events:
    """The events on a clock that is offset_ns ahead; the same object where there is nothing to shift."""
    if not offset_ns:
        return events
    return Events(events.t + offset_ns, events.x, events.y, events.p, events.width, events.height)


def clipped(events: Events, start_ns: int | None, stop_ns: int | None) -> Events:
    """The events with start_ns <= t < stop_ns, also where t steps back now and then."""
    inside = np.ones(len(events), bool)
    if start_ns is not None:
        inside &= events.t >= start_ns
    if stop_ns is not None:
        inside &= events.t < stop_ns
    if inside.all():
        return events
    return Events(
        events.t[inside], events.x[inside], events.y[inside], events.p[inside], events.width, events.height
    )
