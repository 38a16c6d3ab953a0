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

CACHE_STEP = 128  # rows; a question some words longer than the last one still fits into the same cache


@dataclass(frozen=True, eq=False)
class TargetPass:
    """What one pass of the target gives.

    logits: [n, V], one row per row of the pass (a prefill gives its last row alone).
    features: one [n, D] per layer asked for, one row per row of the pass (a prefill gives all of its rows).
    reused: how many of the rows were not computed, as an earlier prompt began with the same.
    Both may be overwritten by the next `extend`; copy what is to be kept for longer.
    """

    logits: Tensor
    features: tuple[Tensor, ...]
    reused: int = 0


class Target(Protocol):
    """What the generate loop needs of a target. A new prefill takes the place of the one before it."""

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


@dataclass(frozen=True, eq=False)
class _Read:
    """The prompt that the cache begins with: embeddings [P, D]; features [P, D] of each of these layers."""

    embeddings: Tensor
    layers: tuple[int, ...]
    features: tuple[Tensor, ...]

    def common_rows(self, embeddings: Tensor, layers: tuple[int, ...]) -> int:
        """How many rows another prompt [Q, D] has in common with it from the first on, its last one never."""
        if layers != self.layers:
            return 0
        rows = min(len(self.embeddings), len(embeddings) - 1)
        same = (self.embeddings[:rows] == embeddings[:rows]).all(-1)
        return int(same.cumprod(0).sum())


class DecoderTarget:
    """A LLaMA decoder with its output head as a Target; one static KV cache serves every generation.

    A prompt that begins as the last one did (the same frames and another question, say) is read from where
    they part.

    end_tokens: tokens after which the text is complete; detokenize: tokens -> text without special tokens;
    kv_dtype: what the cache is kept in (as `KVCache`), the decoder's own dtype where it is None; engine: what
    computes all passes but the prefill, by default the modules themselves.
    """

    def __init__(
        self,
        decoder: LlamaDecoder,
        lm_head: nn.Module,
        end_tokens: Collection[int],
        detokenize: Callable[[Sequence[int]], str],
        kv_dtype: torch.dtype | None = None,
        engine: DecoderEngine | None = None,
    ) -> None:
        self.decoder = decoder
        self.lm_head = lm_head
        self.end_tokens = frozenset(end_tokens)
        self._detokenize = detokenize
        self.engine = engine or TorchDecoder(decoder, lm_head)
        weight = decoder.embed_tokens.weight
        self.device, self.kv_dtype = weight.device, kv_dtype or weight.dtype
        self._layers: tuple[int, ...] = ()
        self._cache: KVCache | None = None
        self._prompt: _Read | None = None
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
        cache = self._cache_for(rows + capacity)
        known, self._prompt = self._prompt, None  # forgotten for good if this pass fails
        reused = known.common_rows(embeddings[0], layers) if known else 0
        cache.truncate(reused)
        output = self.decoder(embeddings[:, reused:], cache, layers=layers)
        features = tuple(feature[0] for feature in output.features)
        if known and reused:
            old = (feature[:reused] for feature in known.features)
            features = tuple(torch.cat(pair) for pair in zip(old, features, strict=True))
        self._prompt = _Read(embeddings[0], layers, features)
        return TargetPass(self.lm_head(output.hidden[0, -1:]), features, reused)

    def forget(self) -> None:
        """Read the next prompt from its first row on, whatever came before it."""
        self._prompt = None

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
        return TargetPass(*self.engine.run(rows, self._cache, self._layers))

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

    def _cache_for(self, capacity: int) -> KVCache:
        """The cache as it is; a larger one, and no prompt read, where it is too small."""
        if self._cache is None or self._cache.capacity < capacity:
            steps = -(-capacity // CACHE_STEP)
            self._cache = KVCache(
                self.decoder.config, steps * CACHE_STEP, dtype=self.kv_dtype, device=self.device
            )
            self._prompt = None
        return self._cache
