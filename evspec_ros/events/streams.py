"""What became of the messages of one topic, live or in a bag."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StreamCounts:
    """What became of the messages of one topic.

    messages: all that arrived; refused: those that could not be used; items: events or frames kept; lost:
    messages that never arrived, None where nothing tells; corrupt: unreadable words inside good packets;
    unplaced: events left out after a loss, for their time or place was not known; restarts: times the stream
    began anew (time or sequence went backwards, another size); problem: the last refusal, "" if none;
    restart: why the stream began anew the last time, "" if it never did.
    """

    messages: int = 0
    refused: int = 0
    items: int = 0
    lost: int | None = 0
    corrupt: int = 0
    unplaced: int = 0
    restarts: int = 0
    problem: str = ""
    restart: str = ""

    def plus(self, more: StreamCounts) -> StreamCounts:
        """The counts after further messages."""
        return StreamCounts(
            self.messages + more.messages,
            self.refused + more.refused,
            self.items + more.items,
            None if self.lost is None or more.lost is None else self.lost + more.lost,
            self.corrupt + more.corrupt,
            self.unplaced + more.unplaced,
            self.restarts + more.restarts,
            more.problem or self.problem,
            more.restart or self.restart,
        )


NO_MESSAGES = StreamCounts()
