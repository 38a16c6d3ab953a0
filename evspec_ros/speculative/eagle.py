"""EAGLE's ways of drafting: a head of one layer goes on from the target's own features.

A chain as in EAGLE (arXiv 2401.15077), or a tree grown where the head is confident and pruned to its most
confident nodes as in EAGLE-2 (arXiv 2406.16858), which EAGLE-3 (arXiv 2503.01840) uses with another head.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evspec_ros.engines.draft_head import CANDIDATES, HeadEngine, HeadPass, OnnxDraftHead, TorchDraftHead
from evspec_ros.engines.onnx_decoder import OnnxDecoder
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.llama import KVCache
from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.sampling import Sampling, draw
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.tree import ROOT, DraftTree, likeliest

BRANCHES = CANDIDATES  # rows that a tree grows from at each depth, and children that each of them may have


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
        rows = self._head.context(prompt.embeddings.shape[1] - 1)
        ahead = prompt.embeddings[:, prompt.embeddings.shape[1] - rows :]
        carried = self._fuse(tuple(feature[-rows - 1 :] for feature in features))
        if rows > 0 or event_rows > 0:
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
        if self._branches == 1 and not sampling.greedy:
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
        """Drawn token after token, while the product of the steps' largest probabilities is high enough."""
        tokens: list[int] = []
        distributions: list[Tensor] = []
        confidence = gain = 1.0
        for _ in range(min(limits.n_max, limits.tree_size)):
            if tokens:
                said = self._engine.run(tokens[-1:], said.output[-1:], cache)
            confidence *= float(said.chances[-1, 0])
            if confidence < limits.floor(len(tokens), gain):  # before the draw, so that sampling stays exact
                break
            gain += confidence
            distributions.append(sampling.probabilities(said.logits[-1]).cpu())
            tokens.append(draw(distributions[-1], generator))
        chances = [float(q[token]) for q, token in zip(distributions, tokens, strict=True)]
        return DraftTree.chain(tokens, chances, torch.stack(distributions) if distributions else None)

    def _tree(self, said: HeadPass, cache: KVCache, limits: DraftLimits) -> DraftTree:
        """Grown depth by depth from the most confident nodes of the last one; of all nodes the best ones
        stay.
        """
        tokens: list[int] = []
        parents: list[int] = []
        chances: list[float] = []  # of the whole path
        paths: dict[int, tuple[int, ...]] = {ROOT: ()}  # of the nodes that were read: their path's rows
        read, gain = 0, 1.0
        frontier = [ROOT]  # the nodes that `said` goes on from, in the order of its last rows
        ahead: deque[HeadPass] = deque()  # what it says further on if it reads its own likeliest tokens
        for depth in range(limits.n_max):
            first, grown = len(tokens), len(frontier)
            floor = limits.floor(read, gain)
            told = zip(frontier, said.tokens[-grown:].tolist(), said.chances[-grown:].tolist(), strict=True)
            for node, likely, shares in told:
                before = chances[node] if node != ROOT else 1.0
                for token, share in zip(likely[: self._branches], shares, strict=False):
                    if before * share < floor:
                        break  # the next ones are less likely still
                    tokens.append(token)
                    parents.append(node)
                    chances.append(before * share)
            best = sorted(range(first, len(tokens)), key=chances.__getitem__, reverse=True)
            best = sorted(best[: min(self._branches, limits.tree_size - read)])
            if not best or depth + 1 == limits.n_max:
                break
            carried = _rows(said.output, [frontier.index(parents[node]) - grown for node in best])
            frontier = best
            for row, node in enumerate(frontier, start=read):
                paths[node] = (*paths[parents[node]], row)
                gain += chances[node]
            read += len(frontier)
            if read == depth + 1 and frontier[0] == first:  # the likeliest token at every depth so far
                if not ahead:
                    ahead.extend(self._engine.run_on(tokens[first], carried, cache))
                said = ahead.popleft()
            else:
                cache.truncate(self._known + read - len(frontier))
                ahead.clear()
                ids = [tokens[node] for node in frontier]
                said = self._read(ids, carried, cache, [paths[node] for node in frontier])

        def enough(nodes: int, tokens_gained: float, chance: float) -> bool:
            return nodes == limits.tree_size or chance < limits.floor(nodes, tokens_gained)

        shares = [
            chance / (chances[parent] if parent != ROOT else 1.0)
            for chance, parent in zip(chances, parents, strict=True)
        ]
        return likeliest([DraftTree.from_parents(tokens, parents, shares)], enough)

    def _read(
        self, ids: list[int], carried: Tensor, cache: KVCache, paths: list[tuple[int, ...]]
    ) -> HeadPass:
        """A pass over nodes of one depth; each one's path, itself last, in rows behind what is known."""
        rows, depth = paths[-1][-1] + 1, len(paths[-1])
        if rows == depth:  # one row in every depth so far
            return self._engine.run(ids, carried, cache)
        visible = torch.zeros(len(ids), rows, dtype=torch.bool)
        for row, path in enumerate(paths):
            visible[row, list(path)] = True
        depths = torch.full((len(ids),), depth - 1 + len(ids) - rows, dtype=torch.int64)
        return self._engine.run(ids, carried, cache, depths, visible)

    def _fuse(self, features: tuple[Tensor, ...]) -> Tensor:
        """The target's features [n, D] per layer as the head carries them, [n, d]."""
        return self._head.fuse(torch.cat(features, -1) if len(features) > 1 else features[0]).clone()

    def _empty_cache(self, capacity: int) -> KVCache:
        """The cache, emptied; a larger one where it is too small."""
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = self._head.new_cache(capacity)
        self._cache.truncate(0)
        return self._cache


def _rows(outputs: Tensor, rows: list[int]) -> Tensor:
    """Some rows of outputs [T, d], counted from the end; one row as a view."""
    return outputs[rows[0] :][:1] if len(rows) == 1 else outputs[rows]
