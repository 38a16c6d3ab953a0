"""What the describer asks of whoever teaches the draft head while it drafts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from evspec_ros.errors import Failure
from evspec_ros.speculative.drafter import Drafter


class Learner(Protocol):
    """Learns from what the target writes and puts a better head into the place of the one that drafts."""

    @property
    def version(self) -> int:
        """Heads that have drafted, 0 being the one that was loaded."""

    def start(self) -> bool:
        """Begin to learn; False where it has begun already."""

    def observed(self, drafter: Drafter, /) -> Drafter:
        """The drafter, with what the target says to it kept to learn from."""

    def writing(self) -> AbstractContextManager[None]:
        """No step of learning begins meanwhile."""

    def take(self) -> bool:
        """Put a better head into the place of the one that drafts, if there is one; whoever holds its weights
        must read them anew.
        """

    def take_failure(self) -> Failure | None:
        """Why a step of learning failed, told once; None where none did."""

    def close(self) -> None:
        """End learning."""


class NoLearner:
    """The head that was loaded drafts, for good."""

    version = 0

    def start(self) -> bool:
        """Nothing begins."""
        return False

    def observed(self, drafter: Drafter) -> Drafter:
        """Nothing is kept."""
        return drafter

    def writing(self) -> AbstractContextManager[None]:
        """Nobody else computes."""
        return nullcontext()

    def take(self) -> bool:
        """There is no other head."""
        return False

    def take_failure(self) -> Failure | None:
        """Nothing failed."""
        return None

    def close(self) -> None:
        """Nothing ends."""
