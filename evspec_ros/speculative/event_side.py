"""The event model's part of a generation."""

from __future__ import annotations

from torch import Tensor

from evspec_ros.speculative.drafter import Prompt


class EventSide:
    """Reads one window's events at a time: begun before the target reads its prompt, due when it has."""

    def __init__(self) -> None:
        self._prompt: Prompt | None = None
        self._features: Tensor | None = None

    def begin(self, prompt: Prompt) -> None:
        """The events of this prompt are wanted soon."""
        self._prompt, self._features = prompt, None

    def features(self) -> Tensor | None:
        """The event model's pooled tokens [E, D_event]; None where the prompt has no events."""
        assert self._prompt is not None, "Cannot read events before begin"
        if self._features is None and self._prompt.events is not None:
            self._features = self._prompt.events()
        return self._features
