"""The drafters of the texts that are written together about one window."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evspec_ros.speculative.drafter import Drafter
from evspec_ros.speculative.event_side import EventSide, EventTimes
from evspec_ros.speculative.learner import Learner

A_HEAD = "a head"


class Drafters:
    """One drafter for each prompt of a window, with an event side of its own, made when it is first needed.

    chosen: which way of drafting, and why, in a sentence; left_out: why a part of it is left out, "" where
    none is.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[EventSide], Drafter],
        learner: Learner,
        *,
        overlap: bool = False,
        pooling: int = 1,
        lacking: Sequence[str] = (),
        reason: str = "",
        left_out: str = "",
    ) -> None:
        """overlap, pooling: as `EventSide`; lacking: parts of the way of drafting that are left out for good;
        reason: why it was chosen.
        """
        self.left_out = left_out
        self._name = name
        self._lacking = lacking
        self._reason = reason
        self.overlap = overlap
        self._make = make
        self._learner = learner
        self._pooling = pooling
        self._learning = False
        self._drafters: list[Drafter] = []
        self._sides: list[EventSide] = []
        self.get(1)

    @property
    def name(self) -> str:
        """Of the way of drafting, and what of it is left out."""
        lacking = [*self._lacking, *([] if self._learner.drafts else [A_HEAD])]
        return f"{self._name} without {' and '.join(lacking)}" if lacking else self._name

    @property
    def chosen(self) -> str:
        """Which way of drafting, and why."""
        return f"The drafter is {self.name}: {self._reason}."

    @property
    def event_times(self) -> EventTimes:
        """What reading the last window's events took."""
        return self._sides[0].times

    def get(self, count: int) -> list[Drafter]:
        """As many as there are prompts."""
        while len(self._drafters) < count:
            side = EventSide(overlap=self.overlap, pooling=self._pooling)
            drafter = self._make(side)
            self._drafters.append(self._learner.observed(drafter) if self._learning else drafter)
            self._sides.append(side)
        return self._drafters[:count]

    def learn(self) -> None:
        """Let the learner see what is written from now on; where it sees already, nothing."""
        if self._learner.start():
            self._learning = True
            self._drafters = [self._learner.observed(drafter) for drafter in self._drafters]

    def renew(self) -> None:
        """Make all anew where the learner has put another head into place: engines hold copies of weights."""
        if self._learner.take():
            self._drafters.clear()
            self._sides.clear()

    def forget(self) -> None:
        """Begin as if nothing had been written before."""
        for drafter in self._drafters:
            drafter.forget()
