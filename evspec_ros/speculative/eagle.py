"""EAGLE's ways of drafting: a head of one layer goes on from the target's own features.

A chain as in EAGLE (arXiv 2401.15077), or a tree of the most confident nodes as in EAGLE-2 (arXiv
2406.16858), which EAGLE-3 (arXiv 2503.01840) uses with another head.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evspec_ros.engines.draft_head import CANDIDATES, HeadPass
from evspec_ros.engines.selection import choose_head_engine
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.llama import KVCache
from evspec_ros.speculative.drafter import DraftLimits, Prompt, beside
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.growth import Growth
from evspec_ros.speculative.sampling import Sampling, draw
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.tree import ROOT, DraftTree

BRANCHES = CANDIDATES  # children that a node may have


class _Unread(NamedTuple):
    """A prompt's last rows: the embeddings [1, n, D] at t + 1, the features [n, layers * D] at t, and how
    many rows may follow.
    """

    ahead: Tensor
    features: Tensor
    capacity: int


class EagleDrafter:
    """Drafts with a DraftHead, whose cache holds the event rows, then one row per row that the target read.

    Rows computed from the head's own outputs are forgotten before the target's own take their place.
    branches: 1 drafts chains, which at a temperature are drawn; more grow trees, without chance.
    """

    def __init__(
        self,
        target: DecoderTarget,
        head: DraftHead,
        events: EventSide,
        name: str = "eagle",
        branches: int = 1,
    ) -> None:
        self.name = name
        self.layers = head.feature_layers(target.decoder.config.num_layers)
        self._target = target
        self._head = head
        self._events = events
        self._branches = branches
        # Where rows cost what they compute, as on a CPU, each is read when its turn comes; a GPU reads a few
        # of them as fast as one.
        self._width = 1 if target.device.type == "cpu" else branches
        self._engine = choose_head_engine(head, target.decoder, target.lm_head, target.engine.backend)
        self._cache: KVCache | None = None
        self._unread: _Unread | None = None
        self._known = 0  # cache rows that stem from the target's own features
        self._ids: list[int] = []  # rows not yet in the cache
        self._features: list[Tensor] = []  # [n, layers * D] each, theirs

    def prepare(self, prompt: Prompt) -> None:
        """Have the events read."""
        self._events.begin(prompt)

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """Keep what `propose` has to read, if it is ever asked: of a text that is known already it is not."""
        rows = self._head.context(prompt.embeddings.shape[1] - 1)
        known = beside(feature[-rows - 1 :] for feature in features)
        self._unread = _Unread(
            prompt.embeddings[:, prompt.embeddings.shape[1] - rows :], known[:-1], capacity
        )
        self._ids, self._features = [token], [known[-1:]]

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> DraftTree:
        """Nodes whose path's confidence is at least the limits' floor, the most confident ones."""
        assert self._ids, "Cannot propose twice without accept"
        if self._unread is not None:
            self._read_prompt(self._unread)
            self._unread = None
        cache = self._cache
        assert cache is not None, "Cannot propose before start"
        cache.truncate(self._known)
        said = self._engine.read(self._ids, torch.cat(self._features), cache)
        self._known = cache.length
        self._ids, self._features = [], []
        if self._branches == 1 and not sampling.greedy:
            return self._chain(said, cache, limits, sampling, generator)
        return self._grow(said, cache, limits)

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """Queue the target's own features for the next `propose`, each beside the token emitted after it."""
        self._ids += tokens
        self._features.append(beside(features))

    def finish(self, tokens: Sequence[int]) -> None:
        """Nothing is learnt from a whole text."""

    def forget(self) -> None:
        """Every text begins anew."""

    def _chain(
        self,
        said: HeadPass,
        cache: KVCache,
        limits: DraftLimits,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> DraftTree:
        """Drawn token after token, while the product of the steps' largest probabilities is high enough."""
        tokens: list[int] = []
        distributions: list[Tensor] = []
        confidence = gain = 1.0
        for _ in range(min(limits.n_max, limits.tree_size)):
            if tokens:
                said = self._engine.run(tokens[-1:], said.output, cache)
            confidence *= float(said.probabilities[0, 0])
            if confidence < limits.floor(len(tokens), gain):  # before the draw, so that sampling stays exact
                break
            gain += confidence
            distributions.append(sampling.probabilities(said.logits[0]).cpu())
            tokens.append(draw(distributions[-1], generator))
            if tokens[-1] in limits.end_tokens:
                break
        chances = [float(q[token]) for q, token in zip(distributions, tokens, strict=True)]
        return DraftTree.chain(tokens, chances, torch.stack(distributions) if distributions else None)

    def _grow(self, said: HeadPass, cache: KVCache, limits: DraftLimits) -> DraftTree:
        """A tree within the limits, from what was said behind the text."""
        growth = Growth(self._branches)
        growth.told(ROOT, said.tokens[0].tolist(), said.probabilities[0].tolist(), said.output.clone())
        ahead: deque[HeadPass] = deque()  # what the head says further on if it reads its own likeliest tokens
        while read := growth.take(self._width, limits):
            if growth.chain:
                if not ahead:
                    carried = growth.carried(read)
                    ahead.extend(self._engine.run_chain(growth.tokens[read[0]], carried, cache))
                said = ahead.popleft()
            else:
                ahead.clear()
                cache.truncate(self._known + growth.rows - len(read))
                ids = [growth.tokens[node] for node in read]
                said = self._engine.run(ids, growth.carried(read), cache, *growth.places(read))
            outputs = said.output.clone()
            told = zip(read, said.tokens.tolist(), said.probabilities.tolist(), strict=True)
            for row, (node, tokens, shares) in enumerate(told):
                growth.told(node, tokens, shares, outputs[row : row + 1])
        return growth.tree()

    def _read_prompt(self, unread: _Unread) -> None:
        """Keys and values of the event rows and of the prompt's; its last one goes with the token."""
        events = self._events.features()
        event_rows = 0 if events is None else len(events)
        cache = self._empty_cache(event_rows + len(unread.features) + 1 + unread.capacity)
        self._engine.read_prompt(unread.ahead, unread.features, events, cache)
        self._known = cache.length

    def _empty_cache(self, capacity: int) -> KVCache:
        """The cache, emptied; a larger one where it is too small."""
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = self._engine.new_cache(capacity)
        self._cache.truncate(0)
        return self._cache
