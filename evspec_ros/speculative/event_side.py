"""The event model's part of a generation: its events are read during the target's prefill, or when a drafter
asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evspec_ros.cancellation import Cancellation, wait_for
from evspec_ros.errors import GenerationError
from evspec_ros.networks.cuda_streams import Mark, SideStream
from evspec_ros.sizes import EVENT_IMAGES
from evspec_ros.speculative.drafter import Prompt
from evspec_ros.speculative.timing import Span

PATIENCE_S = 1.0  # for the end of what nobody wants any more
Prefilling = Callable[[], bool]  # whether the target is still reading its prompt
Then = Callable[[Tensor | None, Prefilling], None]


@dataclass(frozen=True)
class EventTimes:
    """Milliseconds that the event model worked on one prompt, and those of them that somebody waited for."""

    busy_ms: float = 0.0
    waited_ms: float = 0.0

    @property
    def hidden_ms(self) -> float:
        """What cost the description no time of its own."""
        return max(0.0, self.busy_ms - self.waited_ms)


class EventSide:
    """Has one prompt's events read at a time: with `overlap` by a thread of its own (on CUDA in a stream of
    its own), while the target reads its prompt; without, when they are asked for, which a text that others
    draft never does.

    pooling: how many neighbouring spatial event tokens are averaged into one, as SpecVLM compresses what a
    drafter sees (arXiv 2509.11815); the target's tokens stay.
    """

    def __init__(self, *, overlap: bool = False, pooling: int = 1) -> None:
        self.overlap = overlap
        self._pooling = pooling
        self._thread = ThreadPoolExecutor(1, "events") if overlap else None
        self._pending: Future[Tensor | None] | None = None
        self._reading = Cancellation()  # of what is pending
        self._patience_s = PATIENCE_S
        self._unread: tuple[Prompt, Then] | None = None
        self._found: Tensor | None = None
        self._wanted = False
        self._beside = SideStream()
        self._device = torch.device("cpu")
        self._worked: Span | None = None  # from when to when the event model did
        self._waited: Span | None = None  # from when to when the text had nothing else to do

    @property
    def times(self) -> EventTimes:
        """Of the last prompt; on a GPU from events in the event model's stream and in the one that asked."""
        if self._worked is None:
            return EventTimes()
        busy_ms = self._worked.ms
        if not self.overlap:
            return EventTimes(busy_ms, busy_ms)
        return EventTimes(busy_ms, 0.0 if self._waited is None else self._waited.ms)

    def begin(self, prompt: Prompt, then: Then = lambda *_: None) -> None:
        """Have the prompt's events read, then `then` done with the pooled tokens; it may go on for as long as
        the target is still reading, which without overlap it is not. Raises GenerationError where the thread
        does not come to an end with the prompt before.
        """
        self._end_reading()
        self._worked = self._waited = None
        self._device = prompt.embeddings.device
        self._found = None  # of the prompt before
        self._wanted = self.overlap
        if self._thread is None:
            self._unread = prompt, then
        else:
            self._reading = Cancellation.nested()
            self._pending = self._thread.submit(self._read_beside, self._reading, prompt, then)

    def features(self) -> Tensor | None:
        """The event model's tokens [E, D_event], pooled; None where the prompt has no events. What went wrong
        while they were read is raised here.
        """
        if self._unread is not None:
            unread, self._unread = self._unread, None
            self._found = self._read(*unread)
        if self._pending is not None:
            asked = Mark.now(self._device)
            self._wanted = False
            wait_for(self._pending)
            pending, self._pending = self._pending, None
            self._found = pending.result()
            self._waited = Span(asked, Mark.now(self._device))
        return self._found

    def _end_reading(self) -> None:
        """Of a text that was written without asking for its events, or that was given up."""
        self._wanted = False
        if self._pending is None:
            return
        self._reading.cancel("The events of an earlier text are not wanted any more.")
        if not wait_for(self._pending, self._patience_s):
            self._patience_s = 0.0  # once was enough
            raise GenerationError("The event model still reads the events of an earlier text.")
        self._pending, self._patience_s = None, PATIENCE_S

    def _read_beside(self, reading: Cancellation, prompt: Prompt, then: Then) -> Tensor | None:
        with reading.scope():
            return self._read(prompt, then)

    def _read(self, prompt: Prompt, then: Then) -> Tensor | None:
        """The tokens, done when they are given; from when to when they were read is noted."""
        device = prompt.embeddings.device
        with torch.inference_mode(), self._beside.on(device) if self.overlap else nullcontext():
            began = Mark.now(device)
            features = None if prompt.events is None else pooled(prompt.events(), self._pooling)
            then(features, lambda: self._wanted)
            worked = Span(began, Mark.now(device))
        self._worked = worked
        return features


def pooled(tokens: Tensor, factor: int) -> Tensor:
    """Event tokens [E, D]: those of time as they are, those of space averaged by `factor` neighbours each."""
    if factor == 1:
        return tokens
    over_time, over_space = tokens[:EVENT_IMAGES], tokens[EVENT_IMAGES:]
    means = F.avg_pool1d(over_space.mT[None], factor, ceil_mode=True)[0].mT
    return torch.cat((over_time, means))
