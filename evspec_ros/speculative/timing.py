"""Clocks around the target and the drafter, so that the loop between them shows no time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from evspec_ros.networks.cuda_streams import Mark
from evspec_ros.speculative.device_tree import Draft
from evspec_ros.speculative.drafter import Drafter, DraftLimits, Prompt
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.shared_cache import Block
from evspec_ros.speculative.target import Target, TargetPass

Result = TypeVar("Result")


@dataclass(frozen=True)
class Span:
    """From one moment to another."""

    begin: Mark
    end: Mark

    @property
    def ms(self) -> float:
        """Milliseconds; on a GPU once its queue has come to the end."""
        return self.begin.ms_until(self.end)


NEVER = Span(Mark(0.0), Mark(0.0))


class Clock:
    """Wall-clock time; on an accelerator, when the work that was queued ends, which nobody waits for before
    the time is read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> Mark:
        """This moment."""
        return Mark.now(self._device)

    def timed(self, step: Callable[[], Result]) -> tuple[Result, Span]:
        """What a step gives, and when it ran."""
        started = self.now()
        result = step()
        return result, Span(started, self.now())


class TimedTarget:
    """A target, and when its passes ran: the last prefill, and the last verification, from `extend` until
    `keep` has returned, the decision between them included.
    """

    def __init__(self, target: Target, clock: Clock) -> None:
        self._target = target
        self._clock = clock
        self._extended = NEVER.begin
        self.prefilling = NEVER
        self.verifying = NEVER

    def prefill(self, prompts: Sequence[Tensor], capacity: int, layers: tuple[int, ...]) -> list[TargetPass]:
        """See Target."""
        passes, self.prefilling = self._clock.timed(lambda: self._target.prefill(prompts, capacity, layers))
        return passes

    def extend(self, blocks: Sequence[Block]) -> list[TargetPass]:
        """See Target."""
        self._extended = self._clock.now()
        return self._target.extend(blocks)

    def keep(self, rows: Sequence[Sequence[int]]) -> None:
        """See Target."""
        self._target.keep(rows)
        self.verifying = Span(self._extended, self._clock.now())


class TimedDrafter:
    """A drafter, and what it took of its text's time: before the prefill, and after it."""

    def __init__(self, drafter: Drafter, clock: Clock) -> None:
        self._drafter = drafter
        self._clock = clock
        self.layers = drafter.layers
        self._preparing = NEVER
        self._drafting: list[Span] = []

    @property
    def prepare_ms(self) -> float:
        """Milliseconds before the prefill."""
        return self._preparing.ms

    @property
    def draft_ms(self) -> float:
        """Milliseconds after it."""
        return sum(span.ms for span in self._drafting)

    def prepare(self, prompt: Prompt) -> None:
        """See Drafter."""
        _, self._preparing = self._clock.timed(lambda: self._drafter.prepare(prompt))

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """See Drafter."""
        self._draft(lambda: self._drafter.start(prompt, features, token, capacity))

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> Draft:
        """See Drafter."""
        return self._draft(lambda: self._drafter.propose(limits, sampling, generator))

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """See Drafter."""
        self._draft(lambda: self._drafter.accept(tokens, features))

    @property
    def untimed(self) -> Drafter:
        """For what is no part of its text's time: the text is complete."""
        return self._drafter

    def _draft(self, step: Callable[[], Result]) -> Result:
        result, span = self._clock.timed(step)
        self._drafting.append(span)
        return result
