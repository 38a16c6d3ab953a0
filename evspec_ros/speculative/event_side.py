"""The event model's part of a generation."""

from __future__ import annotations

from torch import Tensor

from evspec_ros.speculative.drafter import Prompt


class EventSide:
    """Reads one window's events at a time, before the target reads its prompt."""

    def __init__(self) -> None:
        self._features: Tensor | None = None

    def begin(self, prompt: Prompt) -> None:
        """Read the events of this prompt."""
        self._features = None if prompt.events is None else prompt.events()

    def features(self) -> Tensor | None:
        """The event model's pooled tokens [E, D_event]; None where the prompt has no events."""
        return self._features
