"""The model whose text is wanted: it reads a prompt, judges draft trees and keeps the accepted rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from evspec_ros.engines.decoder import DecoderEngine, Rows, TorchDecoder
from evspec_ros.errors import GenerationError
from evspec_ros.networks.devices import uploaded
from evspec_ros.networks.llama import KVCache, LlamaDecoder
from evspec_ros.sizes import cache_rows
from evspec_ros.speculative.shared_cache import Block, SharedCache


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
    """What the generate loop needs of a target, which writes one text or several at a time, numbered from 0.

    A new prefill takes the place of the one before it.
    """

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens after which the text is complete."""

    def prefill(self, prompts: Sequence[Tensor], capacity: int, layers: tuple[int, ...]) -> list[TargetPass]:
        """Read a prompt [1, P, D] for each text; up to `capacity` rows may follow each of them, with features
        of `layers` from now on.

        Raises GenerationError where prompt and capacity together exceed what the model can hold.
        """

    def extend(self, blocks: Sequence[Block]) -> list[TargetPass]:
        """Read each block's root and tree of N nodes in one pass: N + 1 rows, each seeing its own text and
        its ancestors alone.
        """

    def keep(self, rows: Sequence[Sequence[int]]) -> None:
        """Of each block of the last `extend`, keep these rows (ascending, a path from the root) and forget
        the others.
        """

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without special tokens."""


@dataclass(frozen=True, eq=False)
class _Prefilled:
    """The prompt that the cache begins with: embeddings [P, D]; features [P, D] of each of these layers."""

    embeddings: Tensor
    layers: tuple[int, ...]
    features: tuple[Tensor, ...]

    def common_rows(self, embeddings: Tensor, layers: tuple[int, ...]) -> int:
        """How many rows another prompt [Q, D] has in common with it from the first on, its last one never."""
        return _common_rows(self.embeddings, embeddings) if layers == self.layers else 0


class DecoderTarget:
    """A LLaMA decoder with its output head as a Target; one static KV cache serves every generation.

    A prompt that begins as the last one did (the same frames and another question, say) is read from where
    they part; of prompts read together what all begin with is kept once.

    end_tokens: tokens after which the text is complete; detokenize: tokens -> text without special tokens;
    kv_dtype: what the cache is kept in (as `KVCache`), the decoder's own dtype where it is None; engine: what
    computes the passes, by default the modules themselves; of several prompts all but the first are read by
    these.
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
        self._prompt: _Prefilled | None = None
        self._prefix = 0  # rows in the cache before those of the last pass
        self._shared: SharedCache | None = None  # where several texts are written

    def prefill(self, prompts: Sequence[Tensor], capacity: int, layers: tuple[int, ...]) -> list[TargetPass]:
        """Read prompts [1, P, D] with room for `capacity` more rows each; GenerationError where they do not
        fit.
        """
        for prompt in prompts:
            self._require_positions(prompt.shape[1], capacity)
        self._layers = layers
        first, *others = [prompt[0] for prompt in prompts]
        common = min((_common_rows(first, other) for other in others), default=len(first))
        own = len(first) + sum(len(other) - common for other in others)
        cache = self._cache_for(own + capacity * len(prompts))
        passes = [self._prefill_first(first, cache)]
        self.engine.prepare(cache, layers)
        self._shared = SharedCache(cache, len(first)) if others else None
        return passes + [self._prefill_other(other, common, passes[0], cache) for other in others]

    def _require_positions(self, rows: int, capacity: int) -> None:
        limit = self.decoder.config.max_positions
        if rows + capacity > limit:
            raise GenerationError(
                f"A prompt of {rows} embedded tokens and {capacity} more exceed the {limit} positions; "
                "shorten the prompt or lower max_new_tokens."
            )

    def _prefill_first(self, embeddings: Tensor, cache: KVCache) -> TargetPass:
        """Fill an empty cache with a prompt [P, D], from where it parts from the last one."""
        layers = self._layers
        last, self._prompt = self._prompt, None  # forgotten for good if this pass fails
        reused = last.common_rows(embeddings, layers) if last else 0
        cache.truncate(reused)
        output = self.engine.read(embeddings[reused:], cache, layers)
        features = output.features
        if last and reused:
            old = (feature[:reused] for feature in last.features)
            features = tuple(torch.cat(pair) for pair in zip(old, features, strict=True))
        self._prompt = _Prefilled(embeddings, layers, features)
        return TargetPass(output.logits, features, reused)

    def _prefill_other(
        self, embeddings: Tensor, common: int, first: TargetPass, cache: KVCache
    ) -> TargetPass:
        """Add what a prompt [P, D] has of its own behind the rows that it has in common with the first."""
        assert self._shared is not None
        rows = len(embeddings) - common
        visible = self._shared.add_prompt(common, rows, cache.length)
        positions = torch.arange(common, len(embeddings), device=self.device)
        mask = visible.to(self.device)
        output = self.decoder(embeddings[None, common:], cache, positions, mask, self._layers)
        features = tuple(
            torch.cat((old[:common], new[0]))
            for old, new in zip(first.features, output.features, strict=True)
        )
        return TargetPass(self.lm_head(output.hidden[0, -1:]), features, common)

    def forget(self) -> None:
        """Read the next prompt from its first row on, whatever came before it."""
        self._prompt = None

    def extend(self, blocks: Sequence[Block]) -> list[TargetPass]:
        """Read each block's root and nodes, each row at position its text's length + depth, attending to its
        text and its ancestors.
        """
        assert self._cache is not None, "Cannot extend before a prefill"
        self._prefix = self._cache.length
        if self._shared is not None:
            rows = self._shared.rows(blocks, self._prefix)
        else:
            (block,) = blocks
            rows = Rows(block.ids()) if block.tree.is_chain else block.rows()
        logits, features = self.engine.run(rows, self._cache, self._layers)
        if len(blocks) == 1:
            return [TargetPass(logits, features)]
        sizes = [len(block.tree) + 1 for block in blocks]
        parts = zip(*(torch.split(whole, sizes) for whole in (logits, *features)), strict=True)
        return [TargetPass(part[0], tuple(part[1:])) for part in parts]

    def keep(self, rows: Sequence[Sequence[int]]) -> None:
        """Gather these rows of the last `extend` in the cache and forget the others."""
        assert self._cache is not None, "Cannot keep rows before a prefill"
        if self._shared is not None:
            self._keep(self._shared.keep(rows, self._prefix))
        elif rows[0][-1] == len(rows[0]) - 1:  # the first rows, as in every chain: they lie where they belong
            self._cache.truncate(self._prefix + len(rows[0]))
        else:
            self._keep(rows[0])

    def _keep(self, rows: Sequence[int]) -> None:
        assert self._cache is not None, "Cannot keep rows before a prefill"
        self._cache.keep(uploaded(torch.tensor(rows), self.device))

    def rounds(self, *, branched: bool) -> bool:
        """Whether a row alone and in a draft are computed by sums that round differently enough to matter: in
        half precision, where passes have different shapes, or where a draft branched, as the keys of a branch
        lie elsewhere than those of a text.
        """
        half = self.decoder.embed_tokens.weight.dtype != torch.float32
        return half and (branched or not self.engine.same_rows)

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
            self._prompt = self._cache = None  # before there is another
            self._cache = KVCache(
                self.decoder.config, cache_rows(capacity), dtype=self.kv_dtype, device=self.device
            )
        return self._cache


def _common_rows(one: Tensor, other: Tensor) -> int:
    """How many rows another prompt [Q, D] has in common with [P, D] from the first on, its last one never."""
    rows = min(len(one), len(other) - 1)
    same = (one[:rows] == other[:rows]).all(-1)
    return int(same.cumprod(0).sum())
