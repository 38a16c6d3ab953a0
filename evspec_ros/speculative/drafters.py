"""The drafters of the texts that are written together about one window."""

from __future__ import annotations

from collections.abc import Callable

from evspec_ros.speculative.drafter import Drafter
from evspec_ros.speculative.event_side import EventSide, EventTimes
from evspec_ros.speculative.learner import Learner


class Drafters:
    """One drafter for each prompt of a window, with an event side of its own, made when it is first needed.

    name: of the way of drafting, and what of it is left out; left_out: why, in a sentence, "" where nothing
    is.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[EventSide], Drafter],
        learner: Learner,
        *,
        overlap: bool = False,
        pooling: int = 1,
        left_out: str = "",
    ) -> None:
        """overlap, pooling: as `EventSide`."""
        self.name = name
        self.left_out = left_out
        self.overlap = overlap
        self._make = make
        self._learner = learner
        self._pooling = pooling
        self._learning = False
        self._drafters: list[Drafter] = []
        self._sides: list[EventSide] = []
        self.get(1)

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
