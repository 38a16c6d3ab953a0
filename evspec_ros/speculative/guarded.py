"""A drafter that fails or stalls costs its text the drafts and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from evspec_ros.cancellation import WATCHDOG, Cancellation, check
from evspec_ros.errors import Failure
from evspec_ros.speculative.device_tree import Draft
from evspec_ros.speculative.drafter import Drafter, DraftLimits, Prompt
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.tree import NO_DRAFT

# A step of a drafter that takes longer than all of these stalls: seconds, passes of the target over one
# token, and times what the step usually takes.
STALL_S, STALL_PASSES, STALL_TIMES = 2.0, 50, 20
RECENT = 8  # steps over which the usual time is averaged

Result = TypeVar("Result")


class Patience:
    """How long each step of a drafter may take. pass_s: what the target's pass over one token takes; None
    while it was not measured, when much is still compiled and no step stalls.
    """

    def __init__(self) -> None:
        self.pass_s: float | None = None
        self._usual_s: dict[str, float] = {}

    def note(self, step: str, took_s: float) -> None:
        """A step was done in so many seconds."""
        usual_s = self._usual_s.get(step, took_s)
        self._usual_s[step] = usual_s + (took_s - usual_s) / RECENT

    def most_s(self, step: str) -> float:
        """Seconds after which the step stalls."""
        if self.pass_s is None:
            return math.inf
        return max(STALL_S, STALL_PASSES * self.pass_s, STALL_TIMES * self._usual_s.get(step, 0.0))


class GuardedDrafter:
    """Another drafter for one text, left out of it from its first exception on, or the first step that
    stalls, which is ended behind the layer that it computes: the target writes on alone.

    failure: why it was left out; None where it was not. Every drafter begins anew with `prepare`, so the next
    text may ask it again. patience: of the drafter, over all of its texts.
    """

    def __init__(self, drafter: Drafter, patience: Patience | None = None) -> None:
        self.name = drafter.name
        self.layers = drafter.layers
        self.failure: Failure | None = None
        self._drafter = drafter
        self._patience = patience or Patience()
        self._drafting = Cancellation.nested()

    def prepare(self, prompt: Prompt) -> None:
        """See Drafter."""
        self._ask("prepare", lambda: self._drafter.prepare(prompt), None)

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """See Drafter."""
        self._ask("start", lambda: self._drafter.start(prompt, features, token, capacity), None)

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> Draft:
        """See Drafter."""
        nothing: Draft = NO_DRAFT
        return self._ask("propose", lambda: self._drafter.propose(limits, sampling, generator), nothing)

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """See Drafter."""
        self._ask("accept", lambda: self._drafter.accept(tokens, features), None)

    def finish(self, tokens: Sequence[int]) -> None:
        """See Drafter."""
        self._ask("finish", lambda: self._drafter.finish(tokens), None)

    def forget(self) -> None:
        """See Drafter."""
        self._drafter.forget()

    def _ask(self, name: str, step: Callable[[], Result], otherwise: Result) -> Result:
        if self.failure is not None:
            return otherwise
        began, most_s = time.monotonic(), self._patience.most_s(name)
        try:
            with self._drafting.scope(), WATCHDOG.limit(self._drafting, most_s, _stalled(name, most_s)):
                result = step()
        except Exception as error:  # noqa: BLE001 - the text is the target's, whatever goes wrong in a drafter
            check()  # the text itself was cancelled
            self.failure = Failure.of(error)
            return otherwise
        if self._drafting.reason:  # too late, without a look at it
            self.failure = Failure(self._drafting.reason, "")
        else:
            self._patience.note(name, time.monotonic() - began)
        return result


def _stalled(step: str, most_s: float) -> str:
    return f"The drafter stalled: its step {step} took longer than {most_s:.1f} s."
