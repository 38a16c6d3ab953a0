"""What the describer asks of whoever teaches the draft head while it drafts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from evspec_ros.errors import Failure
from evspec_ros.networks.block_head import BlockHead
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.head_store import HeadStore
from evspec_ros.speculative.drafter import Drafter

LEARNING_HEADS = (BlockHead, DraftHead)  # those that read the target's features alone


@dataclass(frozen=True, eq=False)
class Beginner:
    """A head that is to learn. pooling: of the event tokens that it reads; drafts: whether it drafts already,
    or once it is good enough; new: it began from nothing; store: where it is saved, None for nowhere.
    """

    head: BlockHead | DraftHead
    pooling: int = 1
    drafts: bool = True
    new: bool = False
    store: HeadStore | None = None


class Learner(Protocol):
    """Learns from what the target writes and puts a better head into the place of the one that drafts."""

    @property
    def version(self) -> int:
        """Heads that have drafted, 0 being the one that was loaded."""

    @property
    def drafts(self) -> bool:
        """Whether the head drafts, as all do but new ones that are not good enough yet."""

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
        """Why a step of learning or saving failed, told once; None where none did."""

    def save(self) -> None:
        """Keep what was learnt for the next start."""

    def close(self) -> None:
        """End learning, and save."""


class NoLearner:
    """The head that was loaded drafts, for good."""

    version = 0
    drafts = True

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

    def save(self) -> None:
        """Nothing was learnt."""

    def close(self) -> None:
        """Nothing ends."""
