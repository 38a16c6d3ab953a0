"""EAGLE's ways of drafting: a head of one layer goes on from the target's own features.

A chain as in EAGLE (arXiv 2401.15077), or a tree grown where the head is confident and pruned to its most
confident nodes as in EAGLE-2 (arXiv 2406.16858), which EAGLE-3 (arXiv 2503.01840) uses with another head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from evspec_ros.engines.draft_head import HeadEngine, HeadPass, OnnxDraftHead, TorchDraftHead
from evspec_ros.engines.onnx_decoder import OnnxDecoder
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.llama import KVCache
from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.sampling import Sampling, draw
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.tree import ROOT, DraftTree, likeliest

BRANCHES = 4  # rows that a tree grows from at each depth


def head_engine(target: DecoderTarget, head: DraftHead) -> HeadEngine:
    """How a head drafts: by ONNX Runtime where the target's own steps run there, else by the modules."""
    lm_head = target.lm_head
    if isinstance(target.engine, OnnxDecoder) and isinstance(lm_head, nn.Linear):
        return OnnxDraftHead(head, target.decoder, lm_head)
    return TorchDraftHead(head, target.decoder, lm_head)


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
        self._engine = head_engine(target, head)
        self._cache: KVCache | None = None
        self._known = 0  # cache rows that stem from the target's own features
        self._ids: list[int] = []  # rows not yet in the cache
        self._carried: list[Tensor] = []  # [n, d] each

    def prepare(self, prompt: Prompt) -> None:
        """Have the events read."""
        self._events.begin(prompt)

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """Read events and prompt: keys and values of all rows but the last, which `propose` goes on from."""
        events = self._events.features()
        event_rows = 0 if events is None else len(events)
        cache = self._empty_cache(event_rows + prompt.embeddings.shape[1] + capacity)
        ahead = prompt.embeddings[:, 1:]
        carried = self._fuse(features)
        if ahead.shape[1] > 0 or event_rows > 0:
            self._head.fill(ahead, carried[None, :-1], None if events is None else events[None], cache)
        self._known = cache.length
        self._ids, self._carried = [token], [carried[-1:]]

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> DraftTree:
        """Nodes whose path's confidence is at least the limits' floor, the most confident ones."""
        cache = self._cache
        assert cache is not None, "Cannot propose before start"
        assert self._ids, "Cannot propose twice without accept"
        cache.truncate(self._known)
        carried = torch.cat(self._carried) if len(self._carried) > 1 else self._carried[0]
        said = self._engine.run(self._ids, carried, cache)
        self._known = cache.length
        self._ids, self._carried = [], []
        if self._branches == 1:
            return self._chain(said, cache, limits, sampling, generator)
        return self._tree(said, cache, limits)

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """Queue the target's own features for the next `propose`, each beside the token emitted after it."""
        self._ids += tokens
        self._carried.append(self._fuse(features))

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
        """Token after token, while the product of the steps' largest probabilities is high enough."""
        tokens: list[int] = []
        probabilities: list[float] = []
        distributions: list[Tensor] = []
        confidence = gain = 1.0
        for _ in range(min(limits.n_max, limits.tree_size)):
            if tokens:
                said = self._engine.run(tokens[-1:], said.output[-1:], cache)
            probability, token = float(said.chances[-1, 0]), int(said.tokens[-1, 0])
            confidence *= probability
            if confidence < limits.floor(len(tokens), gain):  # before the draw, so that sampling stays exact
                break
            gain += confidence
            if not sampling.greedy:
                distribution = sampling.probabilities(said.logits[-1]).cpu()
                token = draw(distribution, generator)
                probability = float(distribution[token])
                distributions.append(distribution)
            tokens.append(token)
            probabilities.append(probability)
        return DraftTree.chain(tokens, probabilities, torch.stack(distributions) if distributions else None)

    def _tree(self, said: HeadPass, cache: KVCache, limits: DraftLimits) -> DraftTree:
        """Grown depth by depth from the most confident nodes of the last depth; its probabilities are those
        of whole paths.
        """
        tokens: list[int] = []
        parents: list[int] = []
        chances: list[float] = []
        rows: dict[int, int] = {}  # node -> its row among those that the head has read for this tree
        seen = np.zeros((0, 0), np.bool_)  # which of these rows each of them sees
        grown, gain = [(ROOT, 1.0)], 1.0  # nodes whose children are told in `said`, and their chances
        for depth in range(limits.n_max):
            first = len(tokens)
            floor = limits.floor(len(rows), gain)
            for row, (node, chance) in enumerate(grown, start=len(said.tokens) - len(grown)):
                for token, p in zip(said.tokens[row].tolist(), said.chances[row].tolist(), strict=True):
                    if chance * p >= floor:
                        tokens.append(token)
                        parents.append(node)
                        chances.append(chance * p)
            left = limits.tree_size - len(rows)
            order = sorted(range(first, len(tokens)), key=lambda node: -chances[node])
            frontier = sorted(order[: min(self._branches, left)])
            gain += sum(chances[node] for node in frontier)
            if not frontier or depth + 1 == limits.n_max:
                break
            count = len(rows)
            wider = np.zeros((count + len(frontier),) * 2, np.bool_)
            wider[:count, :count] = seen
            for place, node in enumerate(frontier, start=count):
                if parents[node] != ROOT:
                    wider[place] = wider[rows[parents[node]]]
                wider[place, place] = True
                rows[node] = place
            seen = wider
            from_rows = {
                node: row for row, (node, _) in enumerate(grown, start=len(said.tokens) - len(grown))
            }
            carried = said.output[[from_rows[parents[node]] for node in frontier]]
            ids = [tokens[node] for node in frontier]
            if len(frontier) == 1 and count == depth:  # a chain so far: one row after another
                said = self._engine.run(ids, carried, cache)
            else:
                depths = torch.full((len(ids),), depth - count, dtype=torch.int64)
                said = self._engine.run(ids, carried, cache, depths, torch.from_numpy(seen[count:]))
            grown = [(node, chances[node]) for node in frontier]
        whole = DraftTree.from_parents(tokens, parents, chances)

        def enough(nodes: int, tokens_gained: float, chance: float) -> bool:
            return nodes == limits.tree_size or chance < limits.floor(nodes, tokens_gained)

        return likeliest([whole], enough)

    def _fuse(self, features: tuple[Tensor, ...]) -> Tensor:
        """The target's features [n, D] per layer as the head carries them, [n, d]."""
        return self._head.fuse(torch.cat(features, -1) if len(features) > 1 else features[0]).clone()

    def _empty_cache(self, capacity: int) -> KVCache:
        """The cache, emptied; a larger one where it is too small."""
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = self._head.new_cache(capacity)
        self._cache.truncate(0)
        return self._cache
