"""EAGLE drafting (arXiv 2401.15077) as a chain: the draft head goes on from the target's own features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evspec_ros.networks.draft_head import EagleHead
from evspec_ros.networks.llama import KVCache
from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.sampling import Sampling, draw
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.tree import DraftTree


class EagleDrafter:
    """Drafts a chain with an EagleHead; its cache holds the event rows, then one row per row that the target
    read.

    Rows computed from predicted features are forgotten before the target's own take their place.
    """

    name = "eagle"

    def __init__(self, target: DecoderTarget, head: EagleHead) -> None:
        self.layers = (target.decoder.config.num_layers,)  # the last layer's output before the final norm
        self._target = target
        self._head = head
        self._cache: KVCache | None = None
        self._known = 0  # cache rows that stem from the target's own features
        self._embeddings = self._features = torch.empty(0)  # rows not yet in the cache, [1, n, D] each

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """Read events and prompt: keys and values of all rows but the last, which `propose` goes on from."""
        event_rows = 0 if prompt.events is None else len(prompt.events)
        cache = self._empty_cache(event_rows + prompt.embeddings.shape[1] + capacity)
        ahead = prompt.embeddings[:, 1:]
        own = features[0][None]
        if ahead.shape[1] > 0 or event_rows > 0:
            self._head.fill(ahead, own[:, :-1], None if prompt.events is None else prompt.events[None], cache)
        self._known = cache.length
        self._embeddings, self._features = self._embed([token]), own[:, -1:]

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> DraftTree:
        """Extend the chain token by token while the product of its steps' largest probabilities is at least
        p_min.
        """
        cache, target = self._cache, self._target
        assert cache is not None, "Cannot propose before start"
        cache.truncate(self._known)
        feature = self._head(self._embeddings, self._features, None, cache)[:, -1:]
        self._known = cache.length
        self._embeddings, self._features = self._embeddings[:, :0], self._features[:, :0]

        tokens: list[int] = []
        probabilities: list[float] = []
        distributions: list[Tensor] = []
        confidence = 1.0
        for _ in range(min(limits.n_max, limits.tree_size)):
            if tokens:
                feature = self._head(self._embed(tokens[-1:]), feature, None, cache)
            logits = target.head(feature)[0, 0]
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

    def _embed(self, tokens: Sequence[int]) -> Tensor:
        return self._target.embed(torch.tensor([tokens], device=self._target.device))

    def _empty_cache(self, capacity: int) -> KVCache:
        """The cache, emptied; a larger one where it is too small."""
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = self._head.new_cache(capacity)
        self._cache.truncate(0)
        return self._cache
