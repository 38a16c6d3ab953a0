"""A drafter that fails costs its text the drafts and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from evspec_ros.errors import Failure
from evspec_ros.speculative.drafter import Drafter, DraftLimits, Prompt
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.tree import NO_DRAFT, DraftTree

Result = TypeVar("Result")


class GuardedDrafter:
    """Another drafter for one text, left out of it from its first exception on: the target writes on alone.

    failure: why it was left out; None where it was not. Every drafter begins anew with `prepare`, so the next
    text may ask it again.
    """

    def __init__(self, drafter: Drafter) -> None:
        self.name = drafter.name
        self.layers = drafter.layers
        self.failure: Failure | None = None
        self._drafter = drafter

    def prepare(self, prompt: Prompt) -> None:
        """See Drafter."""
        self._ask(lambda: self._drafter.prepare(prompt), None)

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """See Drafter."""
        self._ask(lambda: self._drafter.start(prompt, features, token, capacity), None)

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> DraftTree:
        """See Drafter."""
        return self._ask(lambda: self._drafter.propose(limits, sampling, generator), NO_DRAFT)

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """See Drafter."""
        self._ask(lambda: self._drafter.accept(tokens, features), None)

    def finish(self, tokens: Sequence[int]) -> None:
        """See Drafter."""
        self._ask(lambda: self._drafter.finish(tokens), None)

    def forget(self) -> None:
        """See Drafter."""
        self._drafter.forget()

    def _ask(self, step: Callable[[], Result], otherwise: Result) -> Result:
        if self.failure is not None:
            return otherwise
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - the text is the target's, whatever goes wrong in a drafter
            self.failure = Failure.of(error)
            return otherwise
