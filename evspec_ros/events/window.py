"""How much of the event stream one description looks at."""

from __future__ import annotations

from dataclasses import dataclass

from evspec_ros.errors import EventDecodingError

MAX_DURATION_NS = 100_000_000  # EventGPT was made for at most 100 ms (arXiv 2412.00832)


@dataclass(frozen=True)
class WindowSize:
    """The last `duration_ns`, the last `events` events where that is shorter; 0 events: by time alone.

    By count alone is by 100 ms and a count: fast motion fills such a window sooner than slow motion. Raises
    EventDecodingError for a duration that is not above 0 and at most 100 ms, and for a negative count.
    """

    duration_ns: int = 50_000_000
    events: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.duration_ns <= MAX_DURATION_NS or self.events < 0:
            raise EventDecodingError(
                f"An event window of {self.duration_ns / 1e6:g} ms and {self.events} events is impossible: "
                f"give it up to {MAX_DURATION_NS / 1e6:g} ms, and a count that is not negative."
            )

    @property
    def most(self) -> int | None:
        """The number of events that it never exceeds, None without a limit."""
        return self.events or None
