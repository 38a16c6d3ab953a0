"""Feature-level drafting as in the design paper: the event model's last feature, fused with the target's
last one, becomes the next, and so on; the target's own output head makes tokens of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evspec_ros.engines.drafter import DrafterEngines
from evspec_ros.networks.adapters import FeatureHead
from evspec_ros.networks.devices import fetched
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.event_side import EventSide, Prefilling
from evspec_ros.speculative.eventgpt import EventWriter
from evspec_ros.speculative.growth import grow_chain
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.tree import NO_DRAFT, DraftTree


class FeatureDrafter:
    """Chains drafted without sampling. It never sees a token: only the target's last feature and its own."""

    name = "feature"

    def __init__(
        self,
        target: DecoderTarget,
        head: FeatureHead,
        model: EventGpt,
        events: EventSide,
        engines: DrafterEngines | None = None,
    ) -> None:
        """engines: what computes the event model's rows, by default the best ones."""
        self.layers = (target.decoder.config.num_layers,)
        self._target = target
        self._head = head
        self._model = model
        self._writer = EventWriter(model, engines=engines)
        self._events = events
        self._adapted: Tensor | None = None  # [1, D], what the adapter made of the events; None without any
        self._last: Tensor | None = None  # [1, D], the feature before the next one

    def prepare(self, prompt: Prompt) -> None:
        """Read events and question."""
        self._events.begin(prompt, lambda features, prefilling: self._begin(prompt, features, prefilling))

    def start(self, _: Prompt, features: tuple[Tensor, ...], __: int, ___: int) -> None:
        """The target's feature at the prompt's last row is the first one before."""
        self._events.features()
        self._last = features[0][-1:].clone()

    def propose(self, limits: DraftLimits, *_: object) -> DraftTree:
        """Feature after feature, while the path's probability is at least the limits' floor."""
        if self._adapted is None:
            return NO_DRAFT
        assert self._last is not None, "Cannot propose before start"
        feature = self._last
        runs = 0

        def next_token(_: list[int]) -> tuple[int, float]:
            nonlocal feature, runs
            runs += 1
            feature = self._head(self._adapted, feature)
            probability, token = torch.softmax(self._target.head(feature)[0], -1, dtype=torch.float32).max(-1)
            found, chance = fetched(token, probability)
            return int(found), float(chance)

        tree = grow_chain(limits, min(limits.n_max, limits.tree_size), next_token)
        return replace(tree, passes=runs)

    def accept(self, _: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """The target's own feature takes the place of the drafted ones."""
        self._last = features[0][-1:].clone()

    def finish(self, tokens: Sequence[int]) -> None:
        """Nothing is learnt from a whole text."""

    def forget(self) -> None:
        """Every text begins anew."""

    def _begin(self, prompt: Prompt, features: Tensor | None, _: Prefilling) -> None:
        if features is None or prompt.event_ids is None:
            self._adapted = None
        else:
            self._adapted = self._head.adapter(self._writer.read_prompt(prompt.event_ids, features)[None])
