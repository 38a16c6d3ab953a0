"""Draft heads of EAGLE's kind (Li et al. 2024, arXiv 2401.15077): one layer over the target's own features.

EAGLE predicts the target's next *feature*, its last hidden state before the final norm, so that the target's
own norm (once) and output head turn it into a token; the head itself holds neither. EAGLE-3 reads several
layers' features and says tokens directly.

The head's sequence is E event rows, then one row per row of the target. Row t reads what stems from the
target's row t, or from the head's own row before, and the embedding that the target reads at t + 1 (a token,
or a place of the video), and yields the logits of t + 2.

Shapes: B batch, E event rows, T rows of the target, D the target's hidden size, d the head's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.attention import attention_mask
from evspec_ros.networks.config_entries import entries
from evspec_ros.networks.kernels import rotate
from evspec_ros.networks.llama import (
    DecoderLayer,
    KVCache,
    LlamaConfig,
    RMSNorm,
    Rotary,
    initialise,
)
from evspec_ros.networks.products import joint


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
        """From a head's `config.json`; raises CheckpointError for a missing entry."""
        return cls(**entries(cls, config))

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


class DraftHead(nn.Module):
    """One decoder layer over E event rows and one row per row of the target; what the kinds of heads share.

    A kind says how the target's features become what a row carries (`fuse`), what a row is made of (`rows`)
    and what its output says (`logits`). What comes out of one row is carried by the next.
    """

    def __init__(self, config: EagleConfig | Eagle3Config) -> None:
        super().__init__()
        self.config = config
        layer = config.layer
        self.layers = nn.ModuleList([DecoderLayer(layer)])
        self.rotary = Rotary(layer)

    def context(self, prompt_rows: int) -> int:
        """How many of the prompt's last rows it reads."""
        return prompt_rows

    def feature_layers(self, target_layers: int) -> tuple[int, ...]:
        """Which of the target's layers it reads the features of, as `LlamaDecoder.forward` counts them."""
        raise NotImplementedError

    def fuse(self, features: Tensor) -> Tensor:
        """The target's features [..., layers * D], one layer beside the other -> [..., d]."""
        raise NotImplementedError

    def rows(self, embeddings: Tensor, carried: Tensor, events: Tensor | None = None) -> Tensor:
        """Embeddings at t + 1 [B, T, D], carried [B, T, d], events [B, E, event_size] -> [B, E + T, d]."""
        raise NotImplementedError

    def readout(self, norm: RMSNorm, lm_head: nn.Module) -> tuple[RMSNorm, nn.Module]:
        """The norm and the output head that turn outputs [..., d] into logits [..., V] of the token at
        t + 2: the target's, which are given, or its own.
        """
        raise NotImplementedError

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of at most `capacity` rows, event rows included."""
        weight = next(self.layers.parameters())
        return KVCache(self.config.layer, capacity, dtype=weight.dtype, device=weight.device)

    def forward(
        self,
        embeddings: Tensor,
        carried: Tensor,
        events: Tensor | None = None,
        cache: KVCache | None = None,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Embeddings at t + 1 [B, T, D] and what is carried from t [B, T, d] -> outputs [B, T, d].

        events [B, E, event_size] begin a sequence; with a cache its rows come before the new ones, which are
        added. depths, visible: places of new rows in a tree; int64 [T], and bool [T, W] as in
        `attention_mask`.
        """
        rows = self.rows(embeddings, carried, events)
        start = 0 if cache is None else cache.length
        count = rows.shape[1]
        mask = attention_mask(start, count, visible, rows)
        cos, sin = (
            self.rotary.span(start, start + count) if depths is None else self.rotary.at(start + depths)
        )
        if cache is not None:
            cache.begin(count)
        out: Tensor = self.layers[0](rows, cos, sin, mask, cache)
        return out[:, count - embeddings.shape[1] :]

    def fill(self, embeddings: Tensor, carried: Tensor, events: Tensor | None, cache: KVCache) -> None:
        """Add rows to the cache as `forward` does, without their outputs: keys and values alone are
        computed.
        """
        rows = self.rows(embeddings, carried, events)
        batch, count, _ = rows.shape
        cos, sin = self.rotary.span(cache.length, cache.length + count)
        layer = cast("DecoderLayer", self.layers[0])
        attention, normed = layer.self_attn, layer.input_layernorm(rows)
        heads = joint(normed, (attention.k_proj, attention.v_proj))
        k, v = heads.view(batch, count, -1, attention.head_dim).transpose(1, 2).chunk(2, 1)  # [B, K, T, d]
        cache.begin(count)
        cache.write(0, rotate(k, cos, sin), v)


class EagleHead(DraftHead):
    """EAGLE: carries the target's last feature, or its own prediction of it; the target's head reads both."""

    def __init__(self, config: EagleConfig) -> None:
        super().__init__(config)
        self.events = nn.Linear(config.event_size, config.hidden_size)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size)  # fc and layers.0 are EAGLE's names
        self.apply(initialise)

    def feature_layers(self, target_layers: int) -> tuple[int, ...]:
        """The last layer's output before the final norm."""
        return (target_layers,)

    def fuse(self, features: Tensor) -> Tensor:
        """As they are."""
        return features

    def rows(self, embeddings: Tensor, carried: Tensor, events: Tensor | None = None) -> Tensor:
        """See DraftHead."""
        rows: Tensor = self.fc(torch.cat((embeddings, carried), dim=-1))
        return rows if events is None else torch.cat((self.events(events), rows), dim=1)

    def readout(self, norm: RMSNorm, lm_head: nn.Module) -> tuple[RMSNorm, nn.Module]:
        """The target's."""
        return norm, lm_head


@dataclass(frozen=True)
class Eagle3Config:
    """The sizes of an EAGLE-3 head: hidden_size is its own width d, target_size the target's D.

    layers: which of the target's features are fused, as `LlamaDecoder.forward` counts them; context: how many
    of the prompt's last rows it reads (as in ViSpec, arXiv 2509.15235, a draft head does well with few of a
    video's rows). tokens: those that it can say, () for all (EAGLE-3's reduced draft vocabulary, there called
    d2t).
    """

    target_size: int
    layers: tuple[int, ...]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    head_dim: int
    event_size: int
    max_positions: int
    context: int = 160
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tokens: tuple[int, ...] = ()
    kind: str = "eagle3"

    @classmethod
    def for_target(cls, target: LlamaConfig, event_size: int, event_rows: int) -> Eagle3Config:
        """A head of half the target's width, fusing a low, the middle and the last layer."""
        width = max(1, target.num_heads // 2) * target.head_dim
        return cls(
            target_size=target.hidden_size,
            layers=spread_layers(target.num_layers),
            vocab_size=target.vocab_size,
            hidden_size=width,
            intermediate_size=target.hidden_size * 3 // 2,
            num_heads=width // target.head_dim,
            head_dim=target.head_dim,
            event_size=event_size,
            max_positions=target.max_positions + event_rows,
            rms_norm_eps=target.rms_norm_eps,
            rope_theta=target.rope_theta,
        )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Eagle3Config:
        """From a head's `config.json`; raises CheckpointError for a missing entry, impossible tokens."""
        found = with_draft_tokens(entries(cls, {"tokens": (), **config}))
        return cls(**{**found, "layers": tuple(found["layers"])})

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return {**asdict(self), "layers": list(self.layers), "tokens": list(self.tokens)}

    @property
    def layer(self) -> LlamaConfig:
        """The one decoder layer; it embeds no tokens."""
        return LlamaConfig(
            vocab_size=0,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=1,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.head_dim,
            max_positions=self.max_positions,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
        )


def spread_layers(layers: int) -> tuple[int, ...]:
    """Of a target of so many layers a low one, the middle and the last, as EAGLE-3 reads them."""
    return tuple(sorted({min(2, layers), layers // 2, layers}))


def with_draft_tokens(found: dict[str, Any]) -> dict[str, Any]:
    """The entries of a config with `tokens` as a tuple; CheckpointError for tokens that there cannot be."""
    tokens = tuple(found["tokens"])
    if len(set(tokens) & set(range(found["vocab_size"]))) < len(tokens):
        raise CheckpointError(
            f"The draft head's config lists tokens twice or beyond its {found['vocab_size']}; restore it "
            "or train the head again."
        )
    return {**found, "tokens": tokens}


class ReducedHead(nn.Linear):
    """An output head [len(tokens), d] that can say some tokens alone; all others' logits are -inf."""

    def __init__(self, size: int, tokens: tuple[int, ...], vocabulary: int) -> None:
        super().__init__(size, len(tokens), bias=False)
        # not on the meta device, as they are in no checkpoint
        self.register_buffer("tokens", torch.tensor(tokens, device="cpu"), persistent=False)
        indices = torch.full((vocabulary,), len(tokens), device="cpu")
        indices[list(tokens)] = torch.arange(len(tokens), device="cpu")
        self.register_buffer("indices", indices, persistent=False)
        self.tokens: Tensor  # int64, in the order of the rows
        self.indices: Tensor  # int64 [V], each token's row, one beyond the last where it has none
        self.out_features = vocabulary

    def of_tokens(self, x: Tensor) -> Tensor:
        """Logits [..., len(tokens)]."""
        return F.linear(x, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> logits [..., V]."""
        return F.pad(self.of_tokens(x), (0, 1), value=float("-inf"))[..., self.indices]


class Eagle3Head(DraftHead):
    """EAGLE-3 (Li et al. 2025, arXiv 2503.01840): carries low, middle and high features fused into one, or
    its own last output, and says tokens directly by an output head of its own.

    Other than the paper's it may be narrower than the target (on a CPU its weights are what a draft costs),
    and the embedding is added to the normed carried row instead of being concatenated.
    """

    config: Eagle3Config

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.events = nn.Linear(config.event_size, size)
        self.fc = nn.Linear(len(config.layers) * config.target_size, size, bias=False)
        self.embed = nn.Linear(config.target_size, size, bias=False)
        self.carry_norm = RMSNorm(size, config.rms_norm_eps)
        self.norm = RMSNorm(size, config.rms_norm_eps)
        self.lm_head = (
            ReducedHead(size, config.tokens, config.vocab_size)
            if config.tokens
            else nn.Linear(size, config.vocab_size, bias=False)
        )
        self.apply(initialise)

    def context(self, prompt_rows: int) -> int:
        """Those of its config, where there are as many."""
        return min(prompt_rows, self.config.context)

    def feature_layers(self, target_layers: int) -> tuple[int, ...]:  # noqa: ARG002
        """Those of its config."""
        return self.config.layers

    def fuse(self, features: Tensor) -> Tensor:
        """One product over all layers' features."""
        fused: Tensor = self.fc(features)
        return fused

    def rows(self, embeddings: Tensor, carried: Tensor, events: Tensor | None = None) -> Tensor:
        """See DraftHead."""
        rows: Tensor = self.embed(embeddings) + self.carry_norm(carried)
        return rows if events is None else torch.cat((self.events(events), rows), dim=1)

    def readout(self, norm: RMSNorm, lm_head: nn.Module) -> tuple[RMSNorm, nn.Module]:  # noqa: ARG002
        """Its own."""
        return self.norm, self.lm_head
