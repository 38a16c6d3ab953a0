"""A draft head that says a whole block of tokens in one pass: DFlash's and JetSpec's kind, with events.

What the target has read stands beside the head as keys and values: the features of its rows, low, middle and
high ones fused into one, and the event model's tokens, projected by every layer on its own (KV injection).
What runs through the layers is the block alone: the last token, which the target has not read yet, and B - 1
masks. Row b of the block says the token at b + 1 behind the last one, so that B rows draft B tokens (other
than DFlash's, whose first row says nothing). Inside the block a row sees all rows (DFlash), or those up to
itself (JetSpec, arXiv 2606.18394).

`draft` is a function of tensors alone, of fixed shapes and with no branch on a value: what torch computes, a
CUDA graph captures and an ONNX graph is exported from. Attention is written out, as exporters and engines all
know its operators.

Shapes: S scenes, A blocks behind places of one text (one, when it drafts), B rows of a block, W rows of
context, L layers, H heads of h values, d the head's width, D the target's, n the tokens that it can say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from evspec_ros.cancellation import check
from evspec_ros.errors import CheckpointError
from evspec_ros.networks.config_entries import entries
from evspec_ros.networks.draft_head import ReducedHead, spread_layers, with_draft_tokens
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

BLOCK = 16  # rows
BEST = 8  # tokens given of each row


@dataclass(frozen=True)
class BlockConfig:
    """The sizes of a block head; the entries that `Eagle3Config` has, too, mean the same.

    block: B; causal: whether a row of the block sees those up to itself alone. max_positions counts event
    rows, the target's, and two blocks behind these.
    """

    target_size: int
    layers: tuple[int, ...]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    event_size: int
    max_positions: int
    block: int = BLOCK
    causal: bool = True
    context: int = 160
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tokens: tuple[int, ...] = ()
    kind: str = "block"

    @classmethod
    def for_target(cls, target: LlamaConfig, event_size: int, event_rows: int) -> BlockConfig:
        """Two layers of half the target's width, fusing a low, the middle and the last layer."""
        width = max(1, target.num_heads // 2) * target.head_dim
        return cls(
            target_size=target.hidden_size,
            layers=spread_layers(target.num_layers),
            vocab_size=target.vocab_size,
            hidden_size=width,
            intermediate_size=target.hidden_size * 3 // 2,
            num_layers=2,
            num_heads=width // target.head_dim,
            head_dim=target.head_dim,
            event_size=event_size,
            max_positions=target.max_positions + event_rows + 2 * BLOCK,
            rms_norm_eps=target.rms_norm_eps,
            rope_theta=target.rope_theta,
        )

    def of_rows(self, block: int) -> BlockConfig:
        """The same head with blocks of so many rows."""
        return replace(self, block=block, max_positions=self.max_positions + 2 * (block - self.block))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BlockConfig:
        """From a head's `config.json`; raises CheckpointError for a missing entry, impossible tokens or a
        block or number of layers that there cannot be.
        """
        found = with_draft_tokens(entries(cls, {"tokens": (), **config}))
        if found["block"] < 1 or not 1 <= found["num_layers"] <= 3:
            raise CheckpointError(
                f"The draft head's config names a block of {found['block']} rows and {found['num_layers']} "
                "layers, and a block head has at least one row and one to three layers; restore it or train "
                "the head again."
            )
        return cls(**{**found, "layers": tuple(found["layers"])})

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return {**asdict(self), "layers": list(self.layers), "tokens": list(self.tokens)}

    @property
    def layer(self) -> LlamaConfig:
        """Its decoder layers; they embed no tokens."""
        return LlamaConfig(
            vocab_size=0,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.head_dim,
            max_positions=self.max_positions,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
        )

    @property
    def read_rows(self) -> int:
        """N: the most rows of the target that one pass reads, those of a block accepted as a whole."""
        return self.block + 1


class Context(NamedTuple):
    """Keys and values of every layer, L of [S, H, W, h], and which rows a block sees, bool [S, A, W]."""

    k: Sequence[Tensor] | Tensor
    v: Sequence[Tensor] | Tensor
    visible: Tensor


class BlockPass(NamedTuple):
    """What one pass gives: keys and values [L, 1, H, N, h] of the rows that it read, logits [B, n], and the
    most probable tokens of each row of the block, int64 [B, BEST], with their probabilities, float32.
    """

    k: Tensor
    v: Tensor
    tokens: Tensor
    probabilities: Tensor
    logits: Tensor


class BlockHead(nn.Module):
    """One to three decoder layers over a block of rows, beside what was read of text and events."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        size, layer = config.hidden_size, config.layer
        self.layers = nn.ModuleList([DecoderLayer(layer) for _ in range(config.num_layers)])
        self.rotary = Rotary(layer)
        self.events = nn.Linear(config.event_size, size)
        self.fc = nn.Linear(len(config.layers) * config.target_size, size, bias=False)
        self.context_norm = RMSNorm(size, config.rms_norm_eps)
        self.embed = nn.Linear(config.target_size, size, bias=False)
        self.masks = nn.Embedding(config.block - 1, size)
        self.norm = RMSNorm(size, config.rms_norm_eps)
        self.lm_head = (
            ReducedHead(size, config.tokens, config.vocab_size)
            if config.tokens
            else nn.Linear(size, config.vocab_size, bias=False)
        )
        self.apply(initialise)

    def context(self, prompt_rows: int) -> int:
        """How many of the prompt's last rows it reads beside the very last one."""
        return min(prompt_rows, self.config.context)

    def feature_layers(self, target_layers: int) -> tuple[int, ...]:  # noqa: ARG002
        """Those of its config."""
        return self.config.layers

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one text of at most `capacity` rows, event rows included."""
        weight = self.fc.weight
        return KVCache(self.config.layer, capacity, dtype=weight.dtype, device=weight.device)

    def say(self, rows: Tensor) -> Tensor:
        """Logits [..., n] of the tokens that it can say, from normed rows [..., d]."""
        if isinstance(self.lm_head, ReducedHead):
            return self.lm_head.of_tokens(rows)
        logits: Tensor = self.lm_head(rows)
        return logits

    def project(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Context rows [S, W, d], before their norm, at positions int64 [W] -> every layer's keys and values
        [L, S, H, W, h].
        """
        attentions = [cast("DecoderLayer", layer).self_attn for layer in self.layers]
        projections = [one.k_proj for one in attentions] + [one.v_proj for one in attentions]
        heads = joint(self.context_norm(rows), projections)
        split = torch.unflatten(
            heads, -1, (2, len(attentions), -1, self.config.head_dim)
        )  # [S, W, 2, L, H, h]
        k, v = split.permute(2, 3, 0, 4, 1, 5).unbind(0)
        cos, sin = self.rotary.at(positions)
        return rotate(k, cos.to(k.dtype), sin.to(k.dtype)), v

    def fill(self, features: Tensor, events: Tensor | None, cache: KVCache) -> None:
        """Add events [E, event_size] and features [W, layers * D] of the target's rows to the cache."""
        rows = self.fc(features)
        if events is not None:
            rows = torch.cat((self.events(events), rows))
        positions = torch.arange(cache.length, cache.length + len(rows), device=rows.device)
        k, v = self.project(rows[None], positions)
        cache.begin(len(rows))
        for layer in range(len(self.layers)):
            cache.write(layer, k[layer], v[layer])

    def draft(
        self,
        features: Tensor,
        count: Tensor,
        last: Tensor,
        length: Tensor,
        past_k: Sequence[Tensor] | Tensor,
        past_v: Sequence[Tensor] | Tensor,
    ) -> BlockPass:
        """Read the first `count` of N rows that the target has read, and draft a block behind them.

        features [N, layers * D]; count int64 [1]; last [1, D], the target's embedding of the last token;
        length int64 [1], how many rows past_k and past_v hold, L of [1, H, C, h] each.
        """
        offsets = torch.arange(features.shape[0], device=features.device)
        k, v = self.project(self.fc(features)[None], length + offsets)
        held = torch.arange(past_k[0].shape[-2], device=features.device)
        contexts = (
            Context(k, v, (offsets < count)[None, None]),
            Context(past_k, past_v, (held < length)[None, None]),
        )
        logits = self(last[None], (length + count)[None], contexts)[0, 0]
        probabilities, tokens = torch.softmax(logits, -1, dtype=torch.float32).topk(
            min(BEST, logits.shape[-1]), -1
        )
        if isinstance(self.lm_head, ReducedHead):
            tokens = self.lm_head.tokens[tokens]
        return BlockPass(k, v, tokens, probabilities, logits)

    def forward(self, last: Tensor, first: Tensor, contexts: Sequence[Context]) -> Tensor:
        """The last tokens' embeddings [S, A, D], their positions int64 [S, A] and what their blocks see ->
        logits [S, A, B, n].
        """
        config = self.config
        masks = self.masks.weight.expand(*last.shape[:2], -1, -1)
        rows = torch.cat((self.embed(last)[:, :, None], masks.to(last.dtype)), 2)  # [S, A, B, d]
        offsets = torch.arange(config.block, device=last.device)
        cos, sin = self.rotary.at((first[:, :, None] + offsets).flatten(1))  # [S, 1, A * B, h]
        turn = cos.to(rows.dtype), sin.to(rows.dtype)
        inside = torch.ones(config.block, config.block, dtype=torch.bool, device=last.device)
        if config.causal:
            inside = inside.tril()
        for index, module in enumerate(self.layers):
            check()
            layer = cast("DecoderLayer", module)
            of_layer = [(known.k[index], known.v[index], known.visible) for known in contexts]
            mixed = self._mixed(layer, layer.input_layernorm(rows), turn, inside, of_layer)
            rows = rows + layer.self_attn.o_proj(mixed)
            rows = rows + layer.mlp(layer.post_attention_layernorm(rows))
        return self.say(self.norm(rows))

    def _mixed(
        self,
        layer: DecoderLayer,
        rows: Tensor,
        turn: tuple[Tensor, Tensor],
        inside: Tensor,
        contexts: Sequence[tuple[Tensor, Tensor, Tensor]],
    ) -> Tensor:
        """Attention of normed rows [S, A, B, d] over contexts, keys and values [S, H, W, h] and what is
        visible of them, and their own block -> [S, A, B, H * h].
        """
        attention, blocks = layer.self_attn, rows.shape[1:3]
        projected = joint(rows.flatten(1, 2), attention.together)
        heads = torch.unflatten(projected, -1, (3, -1, self.config.head_dim))
        heads = heads.permute(2, 0, 3, 1, 4)  # [3, S, H, A * B, h]
        turned = rotate(heads[:2], *turn)
        q, k, v = turned[0] * self.config.head_dim**-0.5, turned[1], heads[2]
        own_q, own_k, own_v = (torch.unflatten(part, 2, blocks) for part in (q, k, v))  # [S, H, A, B, h]
        scores = [(own_q @ own_k.transpose(-1, -2)).masked_fill(~inside, -torch.inf)]
        scores += [
            torch.unflatten(q @ keys.transpose(-1, -2), 2, blocks).masked_fill(
                ~visible[:, None, :, None], -torch.inf
            )
            for keys, _, visible in contexts
        ]
        shares = torch.softmax(torch.cat(scores, -1), -1, dtype=torch.float32).to(v.dtype)
        mixed, start = shares[..., : rows.shape[2]] @ own_v, rows.shape[2]
        for _, values, _ in contexts:
            stop = start + values.shape[-2]
            of_rows = shares[..., start:stop].flatten(2, 3) @ values
            mixed = mixed + torch.unflatten(of_rows, 2, blocks)
            start = stop
        return mixed.permute(0, 2, 3, 1, 4).flatten(3)
