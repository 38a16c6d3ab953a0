"""Drafting a whole block in one pass (DFlash; JetSpec, arXiv 2606.18394): the rows that were accepted enter
the head's context, and the distributions of the next B tokens come out of the same run.

They do not depend on each other's outcomes. Greedy, the likeliest paths through them make a tree; sampled,
a token is drawn of each in turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evspec_ros.engines.block import BlockOutput
from evspec_ros.engines.drafter import DrafterEngines
from evspec_ros.networks.block_head import BlockHead
from evspec_ros.networks.cuda_streams import has_streams
from evspec_ros.networks.devices import fetched, uploaded
from evspec_ros.networks.draft_head import ReducedHead
from evspec_ros.networks.llama import KVCache
from evspec_ros.sizes import cache_rows
from evspec_ros.speculative.device_growth import drawn_chain, grown_paths
from evspec_ros.speculative.device_tree import DeviceTree, Draft
from evspec_ros.speculative.drafter import DraftLimits, Prompt, joined
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.growth import grow_paths
from evspec_ros.speculative.sampling import Sampling, chances_of, draw, drawn
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.tree import NO_DRAFT, DraftTree


class BlockDrafter:
    """Drafts with a BlockHead, whose cache holds the event rows, then one row per row of the target that it
    has read: the prompt's last ones and all that were accepted. Where the head has no positions left for a
    block, it drafts no more of the text.
    draws: at a temperature draft a chain that is drawn; else a tree without chance, as greedily.
    """

    name = "block"

    def __init__(
        self,
        target: DecoderTarget,
        head: BlockHead,
        events: EventSide,
        *,
        draws: bool = True,
        engines: DrafterEngines | None = None,
    ) -> None:
        """engines: of the head, by default those that run the target."""
        self.layers = head.feature_layers(target.decoder.config.num_layers)
        self._head = head
        self._device = target.device
        self._events = events
        self._draws = draws
        self._engine = (engines or DrafterEngines.like(target.engine)).block(head, target.decoder)
        self._cache: KVCache | None = None
        self._token = 0  # the last one emitted
        self._features: list[Tensor] = []  # [n, layers * D] each, of rows not yet in the cache
        self._capacity: int | None = None  # rows that may follow a prompt that was not read yet
        self._positions_left = True

    def prepare(self, prompt: Prompt) -> None:
        """Have the events read."""
        self._events.begin(prompt)

    def start(self, _: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """Keep what `propose` has to read, if it is ever asked: of a text that is known already it is not."""
        rows = self._head.context(len(features[0]) - 1) + 1
        self._features = [joined(feature[-rows:] for feature in features)]
        self._token, self._capacity, self._positions_left = token, capacity, True

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> Draft:
        """Paths whose probability is at least the limits' floor, or one that is drawn."""
        assert self._features, "Cannot propose before start, nor twice without accept"
        features = torch.cat(self._features)
        self._features = []
        early = max(0, len(features) - self._head.config.read_rows)  # more than one pass reads
        events = self._events.features() if self._capacity is not None else None
        event_rows = 0 if events is None else len(events)
        if self._capacity is not None:
            cache = self._empty_cache(event_rows + len(features) + self._capacity)
            self._capacity = None
        else:
            assert self._cache is not None
            cache = self._cache
        rows = cache.length + event_rows + len(features)
        self._positions_left &= rows + self._head.config.block <= self._head.config.max_positions
        if not self._positions_left:
            return NO_DRAFT
        self._engine.read(features[:early], events, cache)
        output = self._engine.run(features[early:], self._token, cache)
        unseen, chance = has_streams(self._device), self._draws and not sampling.greedy
        if unseen and limits.most_nodes == 0:
            return NO_DRAFT
        if chance:
            draw_chain = self._drawn_unseen if unseen else self._drawn
            return draw_chain(output, limits, sampling, generator)
        if unseen:
            return grown_paths(output.tokens, output.probabilities, limits)
        tokens, probabilities = fetched(output.tokens, output.probabilities)
        return grow_paths(tokens.tolist(), probabilities.tolist(), limits)

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """Queue the target's own features for the next `propose`."""
        self._token = tokens[-1]
        self._features.append(joined(features))

    def finish(self, tokens: Sequence[int]) -> None:
        """Nothing is learnt from a whole text."""

    def forget(self) -> None:
        """Every text begins anew."""

    def _drawn(
        self, output: BlockOutput, limits: DraftLimits, sampling: Sampling, generator: torch.Generator
    ) -> DraftTree:
        """A token of each position, while the product of their largest probabilities is high enough, which
        is decided before the draw, so that sampling stays exact.
        """
        spread = self._spread(output, sampling)
        tokens: list[int] = []
        confidence = gain = 1.0
        (probabilities,) = fetched(output.probabilities)
        for best in probabilities[: min(limits.n_max, limits.tree_size), 0].tolist():
            confidence *= best
            if confidence < limits.floor(len(tokens), gain):
                break
            gain += confidence
            tokens.append(draw(spread[len(tokens)], generator))
            if tokens[-1] in limits.end_tokens:
                break
        drawn = spread[: len(tokens)]
        return DraftTree.chain(tokens, chances_of(drawn, tokens), drawn if tokens else None)

    def _drawn_unseen(
        self, output: BlockOutput, limits: DraftLimits, sampling: Sampling, generator: torch.Generator
    ) -> DeviceTree:
        """The same without a look at what was drawn, by the host's random numbers."""
        count = min(limits.n_max, limits.most_nodes, len(output.logits))
        spread = self._spread(output, sampling)[:count]
        chances = torch.rand(count, generator=generator, dtype=torch.float64)
        tokens = drawn(spread, uploaded(chances, spread.device))
        return drawn_chain(tokens, spread, output.probabilities[:count, 0], limits)

    def _spread(self, output: BlockOutput, sampling: Sampling) -> Tensor:
        """The distributions [B, V] to draw from."""
        spread = sampling.probabilities(output.logits)
        if isinstance(self._head.lm_head, ReducedHead):
            every = spread.new_zeros(len(spread), self._head.config.vocab_size)
            spread = every.index_copy_(1, self._head.lm_head.tokens, spread)
        return spread

    def _empty_cache(self, capacity: int) -> KVCache:
        """The cache, emptied; a larger one where it is too small."""
        if self._cache is None or self._cache.capacity < capacity + self._head.config.read_rows:
            self._cache = self._engine.new_cache(cache_rows(capacity))
        self._cache.truncate(0)
        return self._cache
