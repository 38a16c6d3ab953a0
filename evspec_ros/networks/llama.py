"""A LLaMA decoder that trains, prefills, steps and verifies draft trees against a static key/value cache.

Parameters carry the names of transformers' `LlamaModel` (`layers.0.self_attn.q_proj.weight`, ...), and on the
same weights the hidden states are equal to its (fp32, max |difference| <= 1e-4). Architecture: Touvron et al.
2023 (arXiv 2302.13971), grouped-query attention as in LLaMA 2.

Shapes: B batch, T new rows, S visible rows (cached prefix + new), D hidden size, H heads, K key/value heads,
d head size, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evspec_ros.cancellation import check
from evspec_ros.errors import GenerationError
from evspec_ros.networks.attention import attend, attention_mask
from evspec_ros.networks.config_entries import number, refuse_other, whole_numbers
from evspec_ros.networks.kernels import add_norm, gated, turned
from evspec_ros.networks.products import joint, lay_together


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of one decoder; a default is what an entry left out of a LLaMA `config.json` means."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    max_positions: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    bos_token_id: int = 1
    end_tokens: tuple[int, ...] = (2,)  # a text ends behind any of them
    tied: bool = False  # the output head's weights are the embeddings

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """From a LLaMA `config.json` of transformers 4 (`rope_theta`) or 5 (`rope_parameters`).

        Raises CheckpointError for what this decoder does not implement (biases, scaled rotary embeddings,
        another activation) and for an entry that is no number.
        """
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        refuse_other(
            "LLaMA decoder",
            hidden_act=(config.get("hidden_act", "silu"), "silu"),
            attention_bias=(config.get("attention_bias", False), False),
            mlp_bias=(config.get("mlp_bias", False), False),
            rope_type=(rope.get("rope_type", rope.get("type", "default")), "default"),
        )
        hidden_size = number(config, "hidden_size", cls.hidden_size)
        heads = number(config, "num_attention_heads", cls.num_heads)
        return cls(
            vocab_size=number(config, "vocab_size", cls.vocab_size),
            hidden_size=hidden_size,
            intermediate_size=number(config, "intermediate_size", cls.intermediate_size),
            num_layers=number(config, "num_hidden_layers", cls.num_layers),
            num_heads=heads,
            num_kv_heads=number(config, "num_key_value_heads", heads),
            head_dim=number(config, "head_dim", hidden_size // heads),
            max_positions=number(config, "max_position_embeddings", cls.max_positions),
            rms_norm_eps=number(config, "rms_norm_eps", cls.rms_norm_eps),
            rope_theta=number({**config, **rope}, "rope_theta", cls.rope_theta),
            bos_token_id=number(config, "bos_token_id", cls.bos_token_id),
            end_tokens=whole_numbers(config, "eos_token_id", cls.end_tokens),
            tied=bool(config.get("tie_word_embeddings", cls.tied)),
        )

    def to_hf(self) -> dict[str, Any]:
        """The same sizes as a LLaMA `config.json` of transformers 4, which transformers 5 reads as well."""
        return {
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": self.tied,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
        }

    @property
    def eos_token_id(self) -> int | list[int] | None:
        """The end tokens as a published config has them."""
        return self.end_tokens[0] if len(self.end_tokens) == 1 else list(self.end_tokens) or None


class KVCache:
    """Keys and values of every layer, `k` and `v` [L, B, K, capacity, d], preallocated.

    Rows `0 .. length-1` are valid. A pass of the decoder appends its rows in place; rolling back is a smaller
    `length`, and nothing is copied except by `keep`. Rows from `length` on that were forgotten are zeros when
    a pass runs: one that attends to the whole capacity under a mask multiplies them by nothing, and nothing
    times NaN, which a row may have held, is NaN.

    `dtype` is what the rows are kept in; they are read in the dtype in which they are written. With
    torch.int8 each row of each head keeps a float32 scale beside it (`quantise_rows`). A pass then sees its
    own rows rounded, too: what a row sees does not depend on how many rows were read at once, so that drafts
    are verified as plain decoding would decide (where a value does not lie on the edge between two steps).
    """

    divisible = False  # whether its keys may be read in parts, see `attention.attend`

    def __init__(
        self,
        config: LlamaConfig,
        capacity: int,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (2, config.num_layers, batch, config.num_kv_heads, capacity)
        self._kv = torch.zeros(*shape, config.head_dim, dtype=dtype, device=device)
        self.k, self.v = self._kv[0], self._kv[1]
        scales = 1 if dtype == torch.int8 else 0  # per row and head
        self._scales = torch.zeros(*shape, scales, dtype=torch.float32, device=device)
        self.capacity = capacity
        self.length = 0
        self._pass_start = 0  # the length before the last pass
        self._written = 0  # rows from here on are zeros

    @property
    def memory(self) -> tuple[Tensor, Tensor]:
        """Keys and values [2, L, B, K, capacity, d], scales of int8 rows [2, L, B, K, capacity, 1]."""
        return self._kv, self._scales

    def begin(self, rows: int) -> None:
        """Announce a pass of `rows` new rows; raises GenerationError where they do not fit."""
        if self.length + rows > self.capacity:
            raise GenerationError(
                f"The key/value cache holds {self.capacity} positions, {self.length} are taken and {rows} "
                "more were asked for; shorten the prompt or lower max_new_tokens."
            )
        self._pass_start = self.length
        self.length += rows
        if self._written > self.length:  # forgotten, and this pass does not take their place
            for stored in (self._kv, self._scales):
                stored[:, :, :, :, self.length : self._written] = 0
        self._written = self.length

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the announced rows of one layer [B, K, T, d]; all visible rows [B, K, S, d], as views where
        the cache's dtype is theirs.
        """
        return self._store(0, layer, k), self._store(1, layer, v)

    def turn(
        self, layer: int, heads: Tensor, sizes: tuple[int, int], cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of one layer's queries, keys and values of the announced rows [B, H + 2 K, T, d], sizes H and K,
        the queries, turned, and all visible keys and values as `write` gives them.
        """
        q, k, v = turned(heads, sizes, cos, sin)
        return q, *self.write(layer, k, v)

    def keep(self, rows: Tensor) -> None:
        """Of the rows that the last pass appended keep only `rows` [n] (indices into them, in this order)."""
        start, count = self._pass_start, rows.numel()
        for stored in (self._kv, self._scales):
            stored[:, :, :, :, start : start + count] = stored.index_select(4, rows + start)
        self.length = start + count

    def truncate(self, length: int) -> None:
        """Forget every row from `length` on."""
        assert 0 <= length <= self.length, "a cache cannot be rolled back to rows that it never held"
        self.length = length

    def _store(self, which: int, layer: int, new: Tensor) -> Tensor:
        """Append one layer's keys (0) or values (1); all visible ones."""
        start, stop = self._pass_start, self.length
        rows, scales = self._kv[which, layer, :, :, :stop], self._scales[which, layer, :, :, :stop]
        if rows.dtype == torch.int8:
            rows[:, :, start:], scales[:, :, start:] = quantise_rows(new)
            return dequantise_rows(rows, scales, new.dtype)
        rows[:, :, start:] = new
        return rows.to(new.dtype)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., d] as int8 [..., d] and float32 scales [..., 1]: the row's largest magnitude / 127.

    Each value times its scale is within half a scale of x.
    """
    exact = x.float()
    scale = (exact.abs().amax(-1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (exact / scale).round().to(torch.int8), scale


def dequantise_rows(rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `quantise_rows`, up to its rounding: [..., d] in `dtype`."""
    return (rows * scales).to(dtype)


class Rotary(nn.Module):
    """Rotary position embedding tables (Su et al. 2021, arXiv 2104.09864) in LLaMA's half-split layout.

    `cos` and `sin` are [max_positions, d]; the first half of `sin` is negated, so that a rotation is
    `x * cos + swap_halves(x) * sin`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
        positions = torch.arange(config.max_positions, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions, 1.0 / config.rope_theta**half)  # [max_positions, d/2]
        self.register_buffer("cos", torch.cat((angles.cos(), angles.cos()), -1), persistent=False)
        self.register_buffer("sin", torch.cat((-angles.sin(), angles.sin()), -1), persistent=False)

    def span(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """cos, sin [stop - start, d] of consecutive positions, as views; GenerationError beyond the table."""
        if stop > self.cos.shape[0]:
            raise GenerationError(
                f"The model was made for {self.cos.shape[0]} positions and {stop} were asked for; "
                "shorten the prompt or lower max_new_tokens."
            )
        return self.cos[start:stop], self.sin[start:stop]

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin of the given positions: [T] -> [T, d], [B, T] -> [B, 1, T, d]."""
        if positions.dim() == 2:
            positions = positions.unsqueeze(1)
        return self.cos[positions], self.sin[positions]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def added(self, changed: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Their sum, and its norm."""
        return add_norm(changed, residual, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention over the cached prefix and the new rows."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)
        lay_together(self.together)

    @property
    def together(self) -> tuple[nn.Linear, ...]:
        """The projections whose weights lie one behind another."""
        return self.q_proj, self.k_proj, self.v_proj

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None, index: int
    ) -> Tensor:
        """x [B, T, D] -> [B, T, D]; the other arguments are those of `DecoderLayer`."""
        batch, rows, _ = x.shape
        heads = joint(x, self.together).view(batch, rows, -1, self.head_dim).transpose(1, 2)
        sizes, cos, sin = (self.num_heads, self.num_kv_heads), cos.to(x.dtype), sin.to(x.dtype)
        if cache is None:
            q, k, v = turned(heads, sizes, cos, sin)
        else:
            q, k, v = cache.turn(index, heads, sizes, cos, sin)  # [B, H, T, d], [B, K, S, d]
        groups = self.num_heads // self.num_kv_heads
        divisible = cache is not None and cache.divisible
        mixed = attend(q, k, v, mask, groups, self.head_dim**-0.5, divisible=divisible)  # [B, T, H, d]
        out: Tensor = self.o_proj(mixed.reshape(batch, rows, -1))
        return out


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        lay_together(self.together)

    @property
    def together(self) -> tuple[nn.Linear, ...]:
        """The projections whose weights lie one behind another."""
        return self.gate_proj, self.up_proj

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        out: Tensor = self.down_proj(gated(joint(x, self.together)))
        return out


class DecoderLayer(nn.Module):
    """One pre-norm decoder layer; draft heads are built from it too."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        index: int = 0,
    ) -> Tensor:
        """hidden [B, T, D] -> [B, T, D].

        `cos`, `sin` come from `Rotary`, `mask` from `attention_mask` (None: causal over the new rows, which
        needs an empty cache or a single row). With a cache, call `cache.begin(T)` once before the first
        layer; `index` is this layer's place in it. Raises CancelledError, as `cancellation.check`.
        """
        residual, changed = self.parts(hidden, self.input_layernorm(hidden), cos, sin, mask, cache, index)
        return residual + changed

    def parts(
        self,
        residual: Tensor,
        normed: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: KVCache | None,
        index: int,
    ) -> tuple[Tensor, Tensor]:
        """The same from what enters and its norm, as two tensors whose sum it is: who norms what comes out
        adds them on the way.
        """
        check()
        attended = self.self_attn(normed, cos, sin, mask, cache, index)
        residual, normed = self.post_attention_layernorm.added(attended, residual)
        changed: Tensor = self.mlp(normed)
        return residual, changed


class DecoderOutput(NamedTuple):
    """`hidden` [B, T, D] after the final norm; `features` one [B, T, D] per requested layer index."""

    hidden: Tensor
    features: tuple[Tensor, ...]


class LlamaDecoder(nn.Module):
    """The decoder without its language-model head, which belongs to the model classes."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config)
        self.apply(initialise)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> embeddings [..., D]."""
        out: Tensor = self.embed_tokens(ids)
        return out

    def forward(
        self,
        embeddings: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
    ) -> DecoderOutput:
        """One pass over embeddings [B, T, D] behind what the cache holds; the new rows are appended to it.

        `positions` [T] or [B, T] default to those that follow the cache; a draft tree passes prefix length +
        depth. `mask` bool [T, T] says which new rows a new row sees (ancestors and itself; None: causal); the
        cached prefix is visible to all. `layers` asks for the hidden states that enter these layers, where
        num_layers means the last layer's output before the final norm. Raises GenerationError where the cache
        or the position table is too short.
        """
        rows, prefix = embeddings.shape[1], 0 if cache is None else cache.length
        rotary = self.rotary.span(prefix, prefix + rows) if positions is None else self.rotary.at(positions)
        additive = attention_mask(prefix, rows, mask, embeddings)
        if cache is not None:
            cache.begin(rows)
        return self.through(embeddings, rotary, additive, cache, layers)

    def through(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layers: tuple[int, ...],
    ) -> DecoderOutput:
        """All layers and the final norm; the arguments are those of `DecoderLayer`, `layers` as above."""
        entering = {0: hidden}
        cos, sin = (table.to(hidden.dtype) for table in rotary)  # once a pass; the tables are float32
        blocks = [cast("DecoderLayer", layer) for layer in self.layers]
        norms = [*(layer.input_layernorm for layer in blocks), self.norm]
        normed: Tensor = norms[0](hidden)
        for index, layer in enumerate(blocks):
            hidden, changed = layer.parts(hidden, normed, cos, sin, mask, cache, index)
            hidden, normed = norms[index + 1].added(changed, hidden)
            if index + 1 in layers:
                entering[index + 1] = hidden
        return DecoderOutput(normed, tuple(entering[index] for index in layers))


def initialise(module: nn.Module) -> None:
    """LLaMA's initialisation: normal with standard deviation 0.02, biases zero."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
