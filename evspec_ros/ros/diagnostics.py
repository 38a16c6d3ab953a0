"""What the node reports about itself: the figures of one description, and its health once a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from evspec_ros.description import Description
from evspec_ros.events.streams import StreamCounts
from evspec_ros.ros.recent import RecentDescriptions

UNCONFIGURED, INACTIVE, ACTIVE = "unconfigured", "inactive", "active"  # the value `state` of descriptions
SILENT_AFTER_S = 2.0  # a camera that sends nothing for this long is reported
DELAY_S = 3600.0  # no message is under way for so long: its stamp, or the clock, is wrong


@dataclass(frozen=True)
class Age:
    """How old a description's window was when it was published.

    ms: None where stamp and clock give no possible number; problem: why they do not, "" where they do.
    """

    ms: float | None
    problem: str = ""

    @classmethod
    def between(cls, stamp_ns: int, begun_ns: int, now_ns: int, silent_s: float) -> Age:
        """By the node's clock, which said begun_ns when the description was begun.

        silent_s: seconds since the last message arrived, by a clock that nobody sets.
        """
        age_s = (now_ns - stamp_ns) / 1e9
        if now_ns < begun_ns:
            back_s = (begun_ns - now_ns) / 1e9
            return cls(None, f"The clock stepped back by {back_s:.1f} s while the description was written.")
        if age_s < 0:
            return cls(None, f"The window is stamped {-age_s:.3f} s after now: set the camera's clock.")
        if age_s > silent_s + DELAY_S:
            return cls(
                None,
                f"The window is stamped {age_s:.0f} s before now, though its messages arrived just now: set "
                "the camera's clock, or use_sim_time where a bag is played with --clock.",
            )
        return cls(1000 * age_s)

    @property
    def shown(self) -> str:
        """Milliseconds, or that they are not known."""
        return "unknown" if self.ms is None else str(round(self.ms, 1))


def window_age_s(stamp_ns: int, now_ns: int, silent_s: float) -> float:
    """How long ago a window ended: by its stamp where that can be, else since the last message."""
    age = Age.between(stamp_ns, now_ns, now_ns, silent_s)
    return silent_s if age.ms is None else max(silent_s, age.ms / 1000)


@dataclass(frozen=True)
class Thresholds:
    """What is told as a warning and what as an error: seconds without a new description beyond the pause
    that was asked for, and the age of a window when its text is published.
    """

    warn_after_s: float = 5.0
    error_after_s: float = 30.0
    warn_age_s: float = 5.0
    error_age_s: float = 30.0

    def judge_pause(self, pause_s: float) -> bytes:
        """The level of seconds without a new description."""
        return _level(pause_s, self.warn_after_s, self.error_after_s)

    def judge_age(self, age_s: float) -> bytes:
        """The level of a window's age."""
        return _level(age_s, self.warn_age_s, self.error_age_s)


def _level(value: float, warning: float, error: float) -> bytes:
    if value >= error:
        return DiagnosticStatus.ERROR
    return DiagnosticStatus.WARN if value >= warning else DiagnosticStatus.OK


class DescriptionCounts:
    """Counts the node's descriptions and what went wrong; safe between threads.

    problem: why the last window was not described, "" where it was; last_problem: the last one of all, in
    whatever part of the node.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()
        self.begin()

    def reset(self) -> None:
        """Count from zero."""
        with self._lock:
            self.described = self.failed = self.errors = self.draft_failures = self.learning_failures = 0
            self.tokens = self.stale = self.still = 0
            self.woken_by = ""  # what happened last, with trigger activity
            self.decode_ms = 0.0
            self.problem = self.last_problem = ""
            self._untold = self._untold_draft = ""  # what no report has told of yet
            self.last: Description | None = None
            self.last_age = Age(None)
            self._recent = RecentDescriptions()

    def begin(self) -> None:
        """The node was activated: nothing was described since."""
        with self._lock:
            self.problem = ""
            self._described = self._resting = False
            self._expected_at = time.monotonic()

    def expect(self) -> None:
        """From now on descriptions are waited for."""
        with self._lock:
            self._resting = False
            self._expected_at = time.monotonic()

    def rest(self) -> None:
        """Count one window in which nothing happened."""
        with self._lock:
            self.still += 1
            self._resting = True

    def wake(self, news: str) -> None:
        """Something happened, which is told."""
        with self._lock:
            self._resting = False
            self.woken_by = news

    def judge_pause(self, thresholds: Thresholds, asked_s: float | None) -> tuple[bytes, str]:
        """Whether descriptions come, news among them; asked_s: the pause that was asked for, None where they
        come when they come.
        """
        with self._lock:
            pause_s = time.monotonic() - self._expected_at
            level = DiagnosticStatus.OK if asked_s is None else thresholds.judge_pause(pause_s - asked_s)
            if level != DiagnosticStatus.OK:
                return level, f"Nothing new was described for {pause_s:.1f} s"
            if asked_s is None and self._described and self._resting:
                return level, f"resting, for nothing happens; the last description came {pause_s:.1f} s ago"
            return level, "describing" if self._described else "waiting for the first window"

    def judge_age(self, thresholds: Thresholds) -> tuple[bytes, str]:
        """Whether the last window was described in time; by its stamp, where that can be."""
        with self._lock:
            age = self.last_age
        if age.problem:
            return DiagnosticStatus.WARN, age.problem
        age_s = (age.ms or 0.0) / 1000
        return thresholds.judge_age(age_s), f"The last window was {age_s:.1f} s old when it was described."

    def add(self, description: Description, age: Age, *, stale: bool) -> None:
        """Count one description, which was so old when it was published; stale: it was no news."""
        with self._lock:
            self.described += 1
            self.stale += stale
            if not stale:
                self._described = True
                self._expected_at = time.monotonic()
            self.tokens += len(description.tokens)
            self.decode_ms += description.latency_ms["decode"]
            self.last, self.last_age = description, age
            self._recent.add(description)
            self.problem = ""

    def fail(self, problem: str) -> None:
        """Count one window that could not be described."""
        with self._lock:
            self.failed += 1
            self.problem = self.last_problem = self._untold = problem

    def note(self, problem: str) -> None:
        """Count one problem beside the descriptions: in a callback, say."""
        with self._lock:
            self.errors += 1
            self.last_problem = self._untold = problem

    def fail_to_draft(self, problem: str) -> None:
        """Count one text that the target wrote without its drafter."""
        with self._lock:
            self.draft_failures += 1
            self.last_problem = self._untold_draft = problem

    def fail_to_learn(self, problem: str) -> None:
        """Count one time that the draft head learnt nothing, or was not saved."""
        with self._lock:
            self.learning_failures += 1
            self.last_problem = self._untold_draft = problem

    def tell(self) -> tuple[str, str]:
        """An error and a warning that have come since the last report, "" where none did: a problem is told
        though the next window was described well.
        """
        with self._lock:
            told = self._untold, self._untold_draft
            self._untold = self._untold_draft = ""
            return told

    def recent_stages(self) -> dict[str, Any]:
        """As `RecentDescriptions.stages`."""
        with self._lock:
            return self._recent.stages()

    def recent_decoding(self, step_ms: float | None) -> dict[str, Any]:
        """As `RecentDescriptions.decoding`."""
        with self._lock:
            return self._recent.decoding(step_ms)

    def values(self) -> dict[str, Any]:
        """The figures for /diagnostics."""
        with self._lock:
            values: dict[str, Any] = {
                "descriptions": self.described,
                "stale_descriptions": self.stale,
                "still_windows": self.still,
                "woken_by": self.woken_by,
                "last_description_s": round(time.monotonic() - self._expected_at, 3)
                if self._described
                else "never",
                "failures": self.failed,
                "errors": self.errors,
                "draft_failures": self.draft_failures,
                "learning_failures": self.learning_failures,
                "tokens_per_second": round(1000 * self.tokens / self.decode_ms, 1) if self.decode_ms else 0.0,
            }
            if self.last is not None:
                values |= {
                    "last_age_ms": self.last_age.shown,
                    "age_problem": self.last_age.problem,
                    "last_total_ms": round(self.last.latency_ms["total"], 1),
                    "mean_accepted_length": round(self.last.statistics.mean_accepted_length, 3),
                    "acceptance_rate": round(self.last.statistics.acceptance_rate, 3),
                    "head_version": self.last.head_version,
                    "lossless": self.last.lossless,
                    "equality": self.last.equality,
                }
            return values


@dataclass(frozen=True)
class Health:
    """One line of /diagnostics before it becomes a message."""

    name: str
    level: bytes
    message: str
    values: Mapping[str, Any]

    def as_message(self, node: str) -> DiagnosticStatus:
        """The message, its name beginning with the node's."""
        return DiagnosticStatus(
            name=f"{node}: {self.name}",
            hardware_id=node,
            level=self.level,
            message=self.message,
            values=key_values(self.values),
        )


def key_values(values: Mapping[str, Any]) -> list[KeyValue]:
    """Figures as diagnostic_msgs carries them."""
    return [KeyValue(key=key, value=str(value)) for key, value in values.items()]


class StreamMonitor:
    """Judges one input stream by what changed in its counts since the last report."""

    def __init__(self, name: str, topic: str) -> None:
        self._name, self._topic = name, topic
        self._before = StreamCounts()
        self._at = time.monotonic()

    def report(
        self,
        counts: StreamCounts,
        received_at: float,
        more: Mapping[str, Any],
        misfit: str = "",
        publishers: Sequence[str] = (),
    ) -> Health:
        """Rates since the last report; refused messages are an error, losses and silence a warning.

        misfit: what is wrong with the publishers; an error where nothing arrives, else a warning.
        """
        now = time.monotonic()
        elapsed, before = now - self._at, self._before
        if counts.messages < before.messages:  # the counts were reset
            before = StreamCounts()
        self._at, self._before = now, counts
        age_s = now - received_at if received_at else None
        values = {
            "messages": counts.messages,
            "messages_per_second": round((counts.messages - before.messages) / elapsed, 1),
            self._name: counts.items,
            f"{self._name}_per_second": round((counts.items - before.items) / elapsed, 1),
            "age_s": "never" if age_s is None else round(age_s, 3),
            "lost_messages": "unknown" if counts.lost is None else counts.lost,
            "refused_messages": counts.refused,
            "corrupt_words": counts.corrupt,
            "unplaced_events": counts.unplaced,
            "restarts": counts.restarts,
            "last_restart": counts.restart,
            "last_problem": counts.problem,
            "publishers": ", ".join(publishers),
            **more,
        }
        level, message = self._judge(counts, before, age_s, misfit)
        return Health(self._name, level, message, values)

    def _judge(
        self, counts: StreamCounts, before: StreamCounts, age_s: float | None, misfit: str
    ) -> tuple[bytes, str]:
        if counts.refused > before.refused:
            return DiagnosticStatus.ERROR, f"{counts.problem} {misfit}".rstrip()
        if age_s is None or age_s > SILENT_AFTER_S:
            since = "yet" if age_s is None else f"for {age_s:.1f} s"
            silence = f"Nothing was received on {self._topic} {since}. {misfit}".rstrip()
            return DiagnosticStatus.ERROR if misfit else DiagnosticStatus.WARN, silence
        if misfit:
            return DiagnosticStatus.WARN, misfit
        lost, corrupt = (counts.lost or 0) - (before.lost or 0), counts.corrupt - before.corrupt
        if lost or corrupt:
            return DiagnosticStatus.WARN, (
                f"On {self._topic}, {lost} messages were lost on the way and {corrupt} words were unreadable."
            )
        if counts.restarts > before.restarts:
            return DiagnosticStatus.WARN, counts.restart or f"The stream on {self._topic} began anew."
        return DiagnosticStatus.OK, "receiving"
