"""Clocks around the target and the drafter, so that the loop between them shows no time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from evspec_ros.speculative.drafter import Drafter, DraftLimits, Prompt
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.shared_cache import Block
from evspec_ros.speculative.target import Target, TargetPass
from evspec_ros.speculative.tree import DraftTree

Result = TypeVar("Result")


class Clock:
    """Wall-clock time; on an accelerator, when the work that was queued has ended."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None

    def now_ms(self) -> float:
        """Milliseconds since some moment."""
        if self._cuda is not None:
            torch.cuda.current_stream(self._cuda).synchronize()  # the event model has a stream of its own
        return time.perf_counter() * 1e3

    def timed(self, step: Callable[[], Result]) -> tuple[Result, float]:
        """What a step gives, and the milliseconds that it took."""
        started = self.now_ms()
        result = step()
        return result, self.now_ms() - started


class TimedTarget:
    """A target, and what its passes took: prefill_ms of the last prefill; pass_ms of the last verification,
    from `extend` until `keep` has returned, the decision between them included.
    """

    def __init__(self, target: Target, clock: Clock) -> None:
        self._target = target
        self._clock = clock
        self._extended_ms = 0.0
        self.prefill_ms = 0.0
        self.pass_ms = 0.0

    def prefill(self, prompts: Sequence[Tensor], capacity: int, layers: tuple[int, ...]) -> list[TargetPass]:
        """See Target."""
        passes, self.prefill_ms = self._clock.timed(lambda: self._target.prefill(prompts, capacity, layers))
        return passes

    def extend(self, blocks: Sequence[Block]) -> list[TargetPass]:
        """See Target."""
        self._extended_ms = self._clock.now_ms()
        return self._target.extend(blocks)

    def keep(self, rows: Sequence[Sequence[int]]) -> None:
        """See Target."""
        self._target.keep(rows)
        self.pass_ms = self._clock.now_ms() - self._extended_ms


class TimedDrafter:
    """A drafter, and what it took of its text's time: prepare_ms before the prefill, draft_ms after it."""

    def __init__(self, drafter: Drafter, clock: Clock) -> None:
        self._drafter = drafter
        self._clock = clock
        self.layers = drafter.layers
        self.prepare_ms = 0.0
        self.draft_ms = 0.0

    def prepare(self, prompt: Prompt) -> None:
        """See Drafter."""
        _, self.prepare_ms = self._clock.timed(lambda: self._drafter.prepare(prompt))

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """See Drafter."""
        self._draft(lambda: self._drafter.start(prompt, features, token, capacity))

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> DraftTree:
        """See Drafter."""
        return self._draft(lambda: self._drafter.propose(limits, sampling, generator))

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """See Drafter."""
        self._draft(lambda: self._drafter.accept(tokens, features))

    def finish(self, tokens: Sequence[int]) -> None:
        """See Drafter; the text is complete by then."""
        self._drafter.finish(tokens)

    def _draft(self, step: Callable[[], Result]) -> Result:
        result, took_ms = self._clock.timed(step)
        self.draft_ms += took_ms
        return result
