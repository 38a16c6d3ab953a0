"""Answers with the event features taken away or exchanged: what a head can say without having seen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from evspec_ros.training.features import Answers, Batches, ModelPair, read_answers

ON, ZEROED, SHUFFLED = "on", "zeroed", "shuffled"
CONTROLS = (ON, ZEROED, SHUFFLED)


@dataclass(frozen=True, eq=False)
class Controlled:
    """Other batches, their event tokens as they are (ON), all zero (ZEROED), or those of the scene before in
    the batch, the last one's for the first (SHUFFLED).

    The event model reads the same answers again with what is in their place, so that nothing of the scene's
    own events is left in its features either; what it makes of a batch is kept.
    """

    pair: ModelPair
    batches: Batches
    control: str
    _read: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Answers:
        answers = self.batches[index]
        if self.control == ON:
            return answers
        events = torch.zeros_like(answers.events) if self.control == ZEROED else answers.events.roll(1, 0)
        if index not in self._read:
            last = self.pair.event_model.config.text.num_layers
            self._read[index] = read_answers(self.pair, events, answers.tokens, (last,))
        return replace(answers, events=events, event_features=self._read[index])
