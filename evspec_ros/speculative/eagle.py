"""EAGLE's ways of drafting: a head of one layer goes on from the target's own features.

A chain as in EAGLE (arXiv 2401.15077), or a tree of the most confident nodes as in EAGLE-2 (arXiv
2406.16858), which EAGLE-3 (arXiv 2503.01840) uses with another head.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from evspec_ros.engines.draft_head import HeadPass, LevelEngine
from evspec_ros.engines.drafter import DrafterEngines
from evspec_ros.engines.networks import CANDIDATES
from evspec_ros.networks.cuda_streams import has_streams
from evspec_ros.networks.devices import uploaded
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.llama import KVCache
from evspec_ros.speculative.device_growth import UnseenDepth, frontier_rows
from evspec_ros.speculative.device_levels import drawn_levels, grown_levels
from evspec_ros.speculative.device_tree import Draft
from evspec_ros.speculative.drafter import DraftLimits, Prompt, joined
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.growth import Growth
from evspec_ros.speculative.sampling import Sampling, chances_of, draw
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.tree import NO_DRAFT, ROOT, DraftTree

BRANCHES = CANDIDATES  # children that a node may have


class _PromptRows(NamedTuple):
    """A prompt's last rows, which the head has not read yet: embeddings [1, n, D] at t + 1, the target's
    features [n, layers * D] at t, and how many rows may follow.
    """

    embeddings: Tensor
    features: Tensor
    capacity: int


class EagleDrafter:
    """Drafts with a DraftHead, whose cache holds the event rows, then one row per row of the target's.

    Rows computed from the head's own outputs are dropped before the target's features take their place.
    Where the head has no positions left for a text, it drafts no more of it.
    branches: 1 drafts chains, which at a temperature are drawn; more grow trees, without chance.
    """

    def __init__(
        self,
        target: DecoderTarget,
        head: DraftHead,
        events: EventSide,
        name: str = "eagle",
        branches: int = 1,
        engines: DrafterEngines | None = None,
    ) -> None:
        """engines: of the head, by default those that run the target."""
        self.name = name
        self.layers = head.feature_layers(target.decoder.config.num_layers)
        self._head = head
        self._events = events
        self._branches = branches
        self._device = target.device
        self._depth = UnseenDepth()
        engines = engines or DrafterEngines.like(target.engine)
        self._engine = engines.head(head, target.decoder, target.lm_head)
        self._cache: KVCache | None = None
        self._prompt: _PromptRows | None = None
        self._positions = head.config.max_positions
        self._accepted_rows = 0  # of the cache, those of the target's own features
        self._ids: list[int] = []  # accepted tokens whose rows are not in the cache yet
        self._features: list[Tensor] = []  # theirs, [n, layers * D] each
        self._runs = 0  # of the head for the last draft

    def prepare(self, prompt: Prompt) -> None:
        """Have the events read."""
        self._events.begin(prompt)

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """Keep what the first `propose` reads; where another drafter is trusted there is none."""
        rows = self._head.context(prompt.embeddings.shape[1] - 1)
        rows_read = joined(feature[-rows - 1 :] for feature in features)
        embeddings = prompt.embeddings[:, prompt.embeddings.shape[1] - rows :]
        self._prompt = _PromptRows(embeddings, rows_read[:-1], capacity)
        self._ids, self._features = [token], [rows_read[-1:]]

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> Draft:
        """Nodes whose path's probability is at least the limits' floor, the likeliest ones."""
        assert self._ids, "Cannot propose twice without accept"
        unseen = has_streams(self._device)
        if self._prompt is not None:
            self._read_prompt(self._prompt, frontier_rows(limits, self._branches) if unseen else 0)
            self._prompt = None
        if self._accepted_rows + len(self._ids) > self._positions:
            self._accepted_rows, self._ids, self._features = self._positions, [], []
            return NO_DRAFT
        cache = self._cache
        assert cache is not None, "Cannot propose before start"
        cache.truncate(self._accepted_rows)
        ids, features = self._ids, torch.cat(self._features)
        self._accepted_rows += len(ids)
        self._ids, self._features = [], []
        left = max(1, self._positions - self._accepted_rows)  # one node needs no row
        limits = replace(limits, n_max=min(limits.n_max, left), tree_size=min(limits.tree_size, left))
        by_chance = self._branches == 1 and not sampling.greedy
        if unseen:
            return self._unseen(ids, features, cache, limits, (sampling, generator) if by_chance else None)
        root = self._engine.read(ids, features, cache)
        self._runs = 1
        if by_chance:
            tree = self._drawn_chain(root, cache, limits, sampling, generator)
        else:
            tree = self._grown_tree(root, cache, limits)
        return replace(tree, passes=self._runs)

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """Queue the target's own features for the next `propose`, each with the token emitted after it."""
        self._ids += tokens
        self._features.append(joined(features))
        self._depth.accepted(len(tokens))

    def finish(self, tokens: Sequence[int]) -> None:
        """Nothing is learnt from a whole text."""

    def forget(self) -> None:
        """Every text begins anew."""

    def _drawn_chain(
        self,
        root: HeadPass,
        cache: KVCache,
        limits: DraftLimits,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> DraftTree:
        """Drawn token after token, while the product of the steps' largest probabilities is high enough."""
        tokens: list[int] = []
        distributions: list[Tensor] = []
        confidence = expected_length = 1.0
        step = root
        for _ in range(min(limits.n_max, limits.tree_size)):
            if tokens:
                step = self._engine.run(tokens[-1:], step.output, cache)
                self._runs += 1
            confidence *= float(step.probabilities[0, 0])
            # before the draw, so that sampling stays exact
            if confidence < limits.floor(len(tokens), expected_length):
                break
            expected_length += confidence
            distributions.append(sampling.probabilities(step.logits[0]))
            tokens.append(draw(distributions[-1], generator))
            if tokens[-1] in limits.end_tokens:
                break
        if not tokens:
            return DraftTree.chain((), ())
        spread = torch.stack(distributions)
        return DraftTree.chain(tokens, chances_of(spread, tokens), spread)

    def _grown_tree(self, root: HeadPass, cache: KVCache, limits: DraftLimits) -> DraftTree:
        """A tree within the limits, from the head's output at its root."""
        growth = Growth(self._branches)
        growth.expand(ROOT, root.tokens[0].tolist(), root.probabilities[0].tolist(), root.output.clone())
        chain: deque[HeadPass] = deque()  # of the tip's likeliest continuation, computed in one run
        while (node := growth.select(limits)) is not None:
            if growth.chain:
                if not chain:
                    chain.extend(self._engine.run_chain(growth.tokens[node], growth.hidden(node), cache))
                    self._runs += 1
                level = chain.popleft()
            else:
                chain.clear()
                cache.truncate(self._accepted_rows + growth.rows - 1)
                ids, hidden = [growth.tokens[node]], growth.hidden(node)
                level = self._engine.run(ids, hidden, cache, *growth.position(node))
                self._runs += 1
            tokens, probabilities = level.tokens[0].tolist(), level.probabilities[0].tolist()
            growth.expand(node, tokens, probabilities, level.output.clone())
        return growth.tree()

    def _unseen(
        self,
        ids: list[int],
        features: Tensor,
        cache: KVCache,
        limits: DraftLimits,
        chance: tuple[Sampling, torch.Generator] | None,
    ) -> Draft:
        """What is drafted behind accepted tokens without a look at it, by chance where there is one."""
        engine = self._engine
        assert isinstance(engine, LevelEngine), "Heads that are on a GPU run there"
        root = engine.level(uploaded(torch.tensor(ids), self._device), self._head.fuse(features), cache)
        limits = self._depth.limits(limits)
        while frontier_rows(limits, self._branches) > cache.capacity - cache.length:
            limits = replace(limits, n_max=limits.n_max - 1)
        if limits.most_nodes == 0:
            return NO_DRAFT
        if chance is not None:
            return drawn_levels(engine, root, cache, limits, *chance)
        return grown_levels(engine, root, cache, limits, self._branches)

    def _read_prompt(self, prompt: _PromptRows, more: int) -> None:
        """Keys and values of the event rows and of the prompt's, in a cache with room for so many drafted
        rows more; the prompt's last one goes with the first token.
        """
        events = self._events.features()
        event_rows = 0 if events is None else len(events)
        rows = event_rows + len(prompt.features)
        if rows >= self._positions:
            self._accepted_rows = self._positions
            return
        cache = self._empty_cache(min(rows + 1 + prompt.capacity + more, self._positions))
        self._engine.read_prompt(prompt.embeddings, prompt.features, events, cache)
        self._accepted_rows = cache.length

    def _empty_cache(self, capacity: int) -> KVCache:
        """The cache, emptied; a larger one where it is too small."""
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = self._engine.new_cache(capacity)
        self._cache.truncate(0)
        return self._cache
