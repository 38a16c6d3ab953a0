"""The seam between what is asked of a decoder's prefill, steps and verifications and what computes them.

The key/value cache belongs to the caller: every engine reads and extends the same memory, so that
`KVCache.keep` and `truncate` serve all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from evspec_ros.networks.devices import uploaded
from evspec_ros.networks.llama import KVCache, LlamaDecoder


@dataclass(frozen=True, eq=False)
class Rows:
    """T new rows behind the cached prefix, all on the CPU or all where the decoder is.

    ids: int64 [T], token ids. depths: int64 [T], position - prefix length; visible: bool [T, W] over the last
    W >= T rows, the new ones among them, True where a new row may see one, itself and earlier rows alone;
    what lies before these it sees. Both None: one after another, causal.
    """

    ids: Tensor
    depths: Tensor | None = None
    visible: Tensor | None = None


class DecoderPass(NamedTuple):
    """`logits` [T, V]; `features` one [T, D] per requested layer. An engine may overwrite them in its next
    pass.
    """

    logits: Tensor
    features: tuple[Tensor, ...]


class DecoderEngine(Protocol):
    """Computes prefills (a prompt's rows), steps (one row) and verifications (a tree's rows) of one decoder
    with its output head.

    backend: its name among `choices.BACKENDS`; same_rows: whether a row is computed by the same sums whatever
    stands beside it.
    """

    backend: str
    same_rows: bool

    def read(self, embeddings: Tensor, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """A prompt [P, D], or what of it is not in the cache yet, appended to the cache: logits [1, V] of its
        last row and the features of all rows, the caller's to keep; `layers` as in `LlamaDecoder.forward`.

        Raises GenerationError where the cache is full.
        """

    def prepare(self, cache: KVCache, layers: tuple[int, ...]) -> None:
        """Get ready for passes behind what the cache holds, so that none of them waits for anything."""

    def run(self, rows: Rows, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """One pass over `rows`, which are appended to the cache. Raises as `read`."""

    def describe(self) -> str:
        """What computes, in a few words."""


class TorchDecoder:
    """The modules themselves: any device, any precision. The other engines have to agree with it."""

    backend = "torch"
    same_rows = False

    def __init__(self, decoder: LlamaDecoder, lm_head: nn.Module) -> None:
        self._decoder = decoder
        self._lm_head = lm_head

    def read(self, embeddings: Tensor, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine."""
        output = self._decoder(embeddings[None], cache, layers=layers)
        features = tuple(feature[0] for feature in output.features)
        return DecoderPass(self._lm_head(output.hidden[0, -1:]), features)

    def prepare(self, cache: KVCache, layers: tuple[int, ...]) -> None:
        """There is nothing to prepare."""

    def run(self, rows: Rows, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine."""
        device = self._decoder.embed_tokens.weight.device
        positions = None if rows.depths is None else cache.length + uploaded(rows.depths, device)
        visible = None if rows.visible is None else uploaded(rows.visible, device)
        embeddings = self._decoder.embed(uploaded(rows.ids, device))[None]
        output = self._decoder(embeddings, cache, positions, visible, layers)
        features = tuple(feature[0] for feature in output.features)
        return DecoderPass(self._lm_head(output.hidden[0]), features)

    def describe(self) -> str:
        """Torch and the device."""
        return f"torch {torch.__version__} on {self._decoder.embed_tokens.weight.device}"
