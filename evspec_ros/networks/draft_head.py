"""EAGLE's draft head (Li et al. 2024, arXiv 2401.15077): one layer that predicts the target's next feature.

A *feature* is the target's last hidden state before its final norm, so the target's own norm (once) and
output head turn a predicted feature into a token. The head itself holds neither: what it shares with the
target is handed to it.

The head's sequence is E event rows, then one row per row of the target. Row t reads the target's feature at t
and the embedding that the target reads at t + 1 (a token, or a place of the video), and yields the feature at
t + 1.

Shapes: B batch, E event rows, T rows of the target, D the target's hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.llama import (
    DecoderLayer,
    KVCache,
    LlamaConfig,
    Rotary,
    attention_mask,
    initialise,
    rotate,
)


@dataclass(frozen=True)
class EagleConfig:
    """The sizes of a head; `event_size` is the width of the event model's tokens, `max_positions` counts
    their rows as well as the target's.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    event_size: int
    max_positions: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    kind: str = "eagle"

    @classmethod
    def for_target(cls, target: LlamaConfig, event_size: int, event_rows: int) -> EagleConfig:
        """A head for a target's decoder, about a tenth of a ten-layer one or a thirty-second of Vicuna-7B's
        size.
        """
        return cls(
            hidden_size=target.hidden_size,
            intermediate_size=2 * target.hidden_size,
            num_heads=target.num_heads,
            num_kv_heads=target.num_kv_heads,
            head_dim=target.head_dim,
            event_size=event_size,
            max_positions=target.max_positions + event_rows,
            rms_norm_eps=target.rms_norm_eps,
            rope_theta=target.rope_theta,
        )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> EagleConfig:
        """From a head's `config.json`; raises CheckpointError for another kind of head and for a missing
        entry.
        """
        if config.get("kind") != "eagle":
            raise CheckpointError(
                f"The draft head's config names the kind {config.get('kind')!r} where 'eagle' is expected; "
                "give the head that belongs to the drafter."
            )
        try:
            return cls(**{field.name: config[field.name] for field in fields(cls)})
        except KeyError as error:
            raise CheckpointError(
                f"The draft head's config has no entry {error}; complete it or train the head again."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return asdict(self)

    @property
    def layer(self) -> LlamaConfig:
        """The one decoder layer; it embeds no tokens."""
        return LlamaConfig(
            vocab_size=0,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=1,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_positions=self.max_positions,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
        )


class EagleHead(nn.Module):
    """Predicted features from the target's features, the embeddings one step ahead and the event model's
    tokens.
    """

    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        self.config = config
        self.events = nn.Linear(config.event_size, config.hidden_size)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size)  # fc and layers.0 are EAGLE's names
        self.layers = nn.ModuleList([DecoderLayer(config.layer)])
        self.rotary = Rotary(config.layer)
        self.apply(initialise)

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of at most `capacity` rows, event rows included."""
        weight = self.fc.weight
        return KVCache(self.config.layer, capacity, dtype=weight.dtype, device=weight.device)

    def forward(
        self, embeddings: Tensor, features: Tensor, events: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Embeddings at t + 1 and features at t, both [B, T, D] -> predicted features at t + 1 [B, T, D].

        events [B, E, event_size] begin a sequence; with a cache its rows come before the new ones, which are
        added.
        """
        rows = self._inputs(embeddings, features, events)
        start = 0 if cache is None else cache.length
        count = rows.shape[1]
        mask = attention_mask(start, count, None, rows)
        if cache is not None:
            cache.begin(count)
        out: Tensor = self.layers[0](rows, *self.rotary.span(start, start + count), mask, cache)
        return out[:, count - embeddings.shape[1] :]

    def fill(self, embeddings: Tensor, features: Tensor, events: Tensor | None, cache: KVCache) -> None:
        """Add rows to the cache as `forward` does, without their predictions: keys and values alone are
        computed.
        """
        rows = self._inputs(embeddings, features, events)
        batch, count, _ = rows.shape
        cos, sin = self.rotary.span(cache.length, cache.length + count)
        layer = cast("DecoderLayer", self.layers[0])
        attention, normed = layer.self_attn, layer.input_layernorm(rows)
        shape = (batch, count, attention.num_kv_heads, attention.head_dim)
        k = attention.k_proj(normed).view(shape).transpose(1, 2)  # [B, K, T, d]
        v = attention.v_proj(normed).view(shape).transpose(1, 2)
        cache.begin(count)
        cache.write(0, rotate(k, cos, sin), v)

    def _inputs(self, embeddings: Tensor, features: Tensor, events: Tensor | None) -> Tensor:
        rows: Tensor = self.fc(torch.cat((embeddings, features), dim=-1))
        return rows if events is None else torch.cat((self.events(events), rows), dim=1)
