"""EAGLE drafting (arXiv 2401.15077) as a chain: the draft head goes on from the target's own features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from evspec_ros.engines.onnx_decoder import OnnxDecoder, OnnxDraftHead
from evspec_ros.networks.draft_head import EagleHead
from evspec_ros.networks.llama import KVCache
from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.sampling import Sampling, draw
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.tree import DraftTree

HeadStep: TypeAlias = Callable[[Tensor, Tensor, KVCache], tuple[Tensor, Tensor]]
"""Embeddings and features [1, T, D] as `EagleHead.forward` reads them, and its cache -> the last row's
predicted feature [1, 1, D] and what the target's head makes of it, logits [V]; the next call may overwrite
both.
"""


def head_step(target: DecoderTarget, head: EagleHead) -> HeadStep:
    """How a head drafts: by ONNX Runtime where the target's own steps run there, else by the modules."""
    lm_head = target.lm_head
    if isinstance(target.engine, OnnxDecoder) and isinstance(lm_head, nn.Linear):
        return OnnxDraftHead(head, target.decoder, lm_head)

    def by_modules(embeddings: Tensor, features: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        feature = head(embeddings, features, None, cache)[:, -1:]
        return feature, target.head(feature)[0, 0]

    return by_modules


class EagleDrafter:
    """Drafts a chain with an EagleHead; its cache holds the event rows, then one row per row that the target
    read.

    Rows computed from predicted features are forgotten before the target's own take their place.
    """

    name = "eagle"

    def __init__(self, target: DecoderTarget, head: EagleHead, events: EventSide) -> None:
        self.layers = (target.decoder.config.num_layers,)  # the last layer's output before the final norm
        self._target = target
        self._head = head
        self._events = events
        self._step = head_step(target, head)
        self._cache: KVCache | None = None
        self._known = 0  # cache rows that stem from the target's own features
        self._embeddings = self._features = torch.empty(0)  # rows not yet in the cache, [1, n, D] each

    def prepare(self, prompt: Prompt) -> None:
        """Have the events read."""
        self._events.begin(prompt)

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """Read events and prompt: keys and values of all rows but the last, which `propose` goes on from."""
        events = self._events.features()
        event_rows = 0 if events is None else len(events)
        cache = self._empty_cache(event_rows + prompt.embeddings.shape[1] + capacity)
        ahead = prompt.embeddings[:, 1:]
        own = features[0][None]
        if ahead.shape[1] > 0 or event_rows > 0:
            self._head.fill(ahead, own[:, :-1], None if events is None else events[None], cache)
        self._known = cache.length
        self._embeddings, self._features = self._embed([token]), own[:, -1:]

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> DraftTree:
        """Extend the chain token by token while the product of its steps' largest probabilities is at least
        p_min.
        """
        cache = self._cache
        assert cache is not None, "Cannot propose before start"
        cache.truncate(self._known)
        feature, logits = self._step(self._embeddings, self._features, cache)
        self._known = cache.length
        self._embeddings, self._features = self._embeddings[:, :0], self._features[:, :0]

        tokens: list[int] = []
        probabilities: list[float] = []
        distributions: list[Tensor] = []
        confidence = 1.0
        for _ in range(min(limits.n_max, limits.tree_size)):
            if tokens:
                feature, logits = self._step(self._embed(tokens[-1:]), feature, cache)
            likely, choice = torch.softmax(logits, dim=-1, dtype=torch.float32).max(dim=-1)
            probability, token = float(likely), int(choice)
            confidence *= probability
            if confidence < limits.p_min:  # decided before the draw, so that sampling stays exact
                break
            if not sampling.greedy:
                distribution = sampling.probabilities(logits).cpu()
                token = draw(distribution, generator)
                probability = float(distribution[token])
                distributions.append(distribution)
            tokens.append(token)
            probabilities.append(probability)
        return DraftTree.chain(tokens, probabilities, torch.stack(distributions) if distributions else None)

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """Queue the target's own features for the next `propose`, each beside the token emitted after it."""
        self._embeddings = torch.cat((self._embeddings, self._embed(tokens)), dim=1)
        self._features = torch.cat((self._features, features[0][None]), dim=1)

    def finish(self, tokens: Sequence[int]) -> None:
        """Nothing is learnt from a whole text."""

    def forget(self) -> None:
        """Every text begins anew."""

    def _embed(self, tokens: Sequence[int]) -> Tensor:
        return self._target.embed(torch.tensor([tokens], device=self._target.device))

    def _empty_cache(self, capacity: int) -> KVCache:
        """The cache, emptied; a larger one where it is too small."""
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = self._head.new_cache(capacity)
        self._cache.truncate(0)
        return self._cache
