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
from evspec_ros.networks.cuda_streams import has_streams
from evspec_ros.networks.devices import fetched
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.speculative.device_growth import UnseenDepth, grown_chain
from evspec_ros.speculative.device_tree import Draft
from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.event_side import EventSide, Prefilling
from evspec_ros.speculative.eventgpt import EventWriter
from evspec_ros.speculative.growth import grow_chain
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.tree import NO_DRAFT


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
        self._depth = UnseenDepth()
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

    def propose(self, limits: DraftLimits, *_: object) -> Draft:
        """Feature after feature, while the path's probability is at least the limits' floor."""
        if self._adapted is None:
            return NO_DRAFT
        assert self._last is not None, "Cannot propose before start"
        feature = self._last
        if has_streams(feature.device):
            return self._unseen(feature, self._depth.limits(limits))
        runs = 0

        def next_token(_: list[int]) -> tuple[int, float]:
            nonlocal feature, runs
            runs += 1
            feature, token, probability = self._next(feature)
            found, chance = fetched(token, probability)
            return int(found[0]), float(chance[0])

        tree = grow_chain(limits, min(limits.n_max, limits.tree_size), next_token)
        return replace(tree, passes=runs)

    def _unseen(self, feature: Tensor, limits: DraftLimits) -> Draft:
        """The same behind a feature [1, D] without a look at a token."""
        tokens, probabilities = list[Tensor](), list[Tensor]()
        for _ in range(min(limits.n_max, limits.most_nodes)):
            feature, token, probability = self._next(feature)
            tokens.append(token)
            probabilities.append(probability)
        if not tokens:
            return NO_DRAFT
        return grown_chain(torch.cat(tokens), torch.cat(probabilities), limits, passes=len(tokens))

    def _next(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The feature [1, D] behind another one, its likeliest token [1] and that one's probability [1]."""
        following = self._head(self._adapted, feature)
        logits = self._target.head(following)
        probability, token = torch.softmax(logits, -1, dtype=torch.float32).max(-1)
        return following, token, probability

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """The target's own feature takes the place of the drafted ones."""
        self._depth.accepted(len(tokens))
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
