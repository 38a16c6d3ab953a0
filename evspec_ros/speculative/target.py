"""The model whose text is wanted: it reads a prompt, judges draft trees and keeps the accepted rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from evspec_ros.engines.decoder import DecoderEngine, Rows, TorchDecoder
from evspec_ros.errors import GenerationError
from evspec_ros.networks.llama import KVCache, LlamaDecoder
from evspec_ros.speculative.tree import DraftTree


@dataclass(frozen=True, eq=False)
class TargetPass:
    """What one pass of the target gives.

    logits: [n, V], one row per row of the pass (a prefill gives its last row alone).
    features: one [n, D] per layer asked for, one row per row of the pass (a prefill gives all of its rows).
    Both may be overwritten by the next `extend`; copy what is to be kept for longer.
    """

    logits: Tensor
    features: tuple[Tensor, ...]


class Target(Protocol):
    """What the generate loop needs of a target. A new prefill discards what came before it."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens after which the text is complete."""

    def prefill(self, embeddings: Tensor, capacity: int, layers: tuple[int, ...]) -> TargetPass:
        """Read a prompt [1, P, D]; up to `capacity` rows may follow, with features of `layers` from now on.

        Raises GenerationError where prompt and capacity together exceed what the model can hold.
        """

    def extend(self, root: int, tree: DraftTree) -> TargetPass:
        """Read the root token and the tree's N nodes: N + 1 rows, each seeing its ancestors alone."""

    def keep(self, rows: Sequence[int]) -> None:
        """Of the rows of the last `extend`, keep these (ascending, a path from the root) and forget the
        others.
        """

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without special tokens."""


class DecoderTarget:
    """A LLaMA decoder with its output head as a Target; one static KV cache serves every generation.

    end_tokens: tokens after which the text is complete; detokenize: tokens -> text without special tokens.
    engine: what computes all passes but the prefill, by default the modules themselves.
    """

    def __init__(
        self,
        decoder: LlamaDecoder,
        lm_head: nn.Module,
        end_tokens: Collection[int],
        detokenize: Callable[[Sequence[int]], str],
        engine: DecoderEngine | None = None,
    ) -> None:
        self.decoder = decoder
        self.lm_head = lm_head
        self.end_tokens = frozenset(end_tokens)
        self._detokenize = detokenize
        self._engine = engine or TorchDecoder(decoder, lm_head)
        weight = decoder.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        self._layers: tuple[int, ...] = ()
        self._cache: KVCache | None = None
        self._read = 0  # rows in the cache that are not the last pass's

    def prefill(self, embeddings: Tensor, capacity: int, layers: tuple[int, ...]) -> TargetPass:
        """Read a prompt [1, P, D] with room for `capacity` more rows; GenerationError where they do not
        fit.
        """
        rows = embeddings.shape[1]
        limit = self.decoder.config.max_positions
        if rows + capacity > limit:
            raise GenerationError(
                f"A prompt of {rows} embedded tokens and {capacity} more exceed the {limit} positions; "
                "shorten the prompt or lower max_new_tokens."
            )
        self._layers = layers
        cache = self._empty_cache(rows + capacity)
        output = self.decoder(embeddings, cache, layers=layers)
        features = tuple(feature[0] for feature in output.features)
        return TargetPass(self.lm_head(output.hidden[0, -1:]), features)

    def extend(self, root: int, tree: DraftTree) -> TargetPass:
        """Read the root and the tree's nodes, each row at position prefix length + depth, seeing its
        ancestors.
        """
        assert self._cache is not None, "Cannot extend before a prefill"
        self._read = self._cache.length
        ids = torch.tensor([root, *tree.tokens.tolist()])
        if tree.is_chain:
            rows = Rows(ids)
        else:
            rows = Rows(ids, torch.from_numpy(tree.row_depths()), torch.from_numpy(tree.ancestors()))
        return TargetPass(*self._engine.run(rows, self._cache, self._layers))

    def keep(self, rows: Sequence[int]) -> None:
        """Gather these rows of the last `extend` in the cache and forget the others."""
        assert self._cache is not None, "Cannot keep rows before a prefill"
        if rows[-1] == len(rows) - 1:  # the first rows, as in every chain: they lie where they belong
            self._cache.truncate(self._read + len(rows))
        else:
            self._cache.keep(torch.tensor(rows, device=self.device))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without special tokens."""
        return self._detokenize(tokens)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [..., D] of token ids [...]."""
        return self.decoder.embed(tokens)

    def head(self, features: Tensor) -> Tensor:
        """Logits [..., V] of features [..., D] as the last layer leaves them: the final norm, once, then the
        head.
        """
        logits: Tensor = self.lm_head(self.decoder.norm(features))
        return logits

    def _empty_cache(self, capacity: int) -> KVCache:
        """The cache, emptied; a larger one where it is too small."""
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = KVCache(self.decoder.config, capacity, dtype=self.dtype, device=self.device)
        self._cache.truncate(0)
        return self._cache
