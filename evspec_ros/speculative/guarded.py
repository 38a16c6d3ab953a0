"""A drafter that fails or stalls costs its text the drafts and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from evspec_ros.errors import Failure
from evspec_ros.speculative.device_tree import Draft
from evspec_ros.speculative.drafter import Drafter, DraftLimits, Prompt
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.tree import NO_DRAFT

STALL_S, STALL_PASSES = 2.0, 50  # a draft that takes longer than both brings nothing

Result = TypeVar("Result")


class GuardedDrafter:
    """Another drafter for one text, left out of it from its first exception or stalled draft on: the target
    writes on alone.

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

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> Draft:
        """See Drafter."""
        began = time.monotonic()
        tree: Draft = NO_DRAFT
        tree = self._ask(lambda: self._drafter.propose(limits, sampling, generator), tree)
        took_s = time.monotonic() - began
        if took_s > STALL_S and limits.costs is not None:  # measured, so all is compiled
            passes_s = STALL_PASSES * limits.costs.verify_ms[0] / 1e3
            if self.failure is None and took_s > passes_s:
                self.failure = Failure(f"The drafter stalled: one draft took {took_s:.1f} s.", "")
        return tree

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
