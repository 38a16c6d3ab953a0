"""`evspec bench project`: what descriptions would take on a machine that is not here, by its roofs.

A pass of a decoder over n rows takes

    layers x layer_s + bytes / bytes_per_s + flops / flops_per_s

bytes: weights once, keys and values of all rows before; flops: 2 a weight and row, 4 x width a row and row
before it. That the two are added, and not the larger one taken, is what small passes show: reading weights
and computing hardly overlap there. A draft is a chain whose k-th token is accepted with the k-th share of the
acceptance, if all before it were; a turn drafts it, verifies it and emits 1 + sum of the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from operator import mul
from typing import Any

import torch

from evspec_ros.networks.block_head import BlockConfig
from evspec_ros.networks.devices import BANDWIDTHS
from evspec_ros.networks.llama import LlamaConfig
from evspec_ros.networks.memory import Checkpoints, memory_map, published
from evspec_ros.networks.quantisation import compute_dtype
from evspec_ros.networks.video_llava import VideoLlavaConfig
from evspec_ros.sizes import FRAMES, MAX_NEW_TOKENS

SIZES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 60)  # nodes of a draft
ACCEPTANCE = (0.8,)  # where none was measured
REACHED = 0.86  # of the memory's bandwidth: Orin's published int4 figure over its roof, 38 to 44 tokens/s
COMPUTED = 0.5  # of the tensor cores' peak in products as small as these


@dataclass(frozen=True)
class Roof:
    """What a machine reaches: bytes and floating-point operations a second, seconds that a layer of a pass
    takes besides; assumptions: a sentence each; frames, head: those of the tower and of draft heads, where
    something else computes them.
    """

    name: str
    device: torch.device
    bytes_per_s: float
    flops_per_s: float
    layer_s: float
    assumptions: tuple[str, ...]
    frames: Roof | None = None
    head: Roof | None = None


def _gpu(name: str, peak_flops: float, layer_s: float) -> Roof:
    return Roof(
        name,
        torch.device("cuda"),
        REACHED * BANDWIDTHS[name],
        COMPUTED * peak_flops,
        layer_s,
        (
            f"{REACHED:.0%} of the memory's {BANDWIDTHS[name] / 1e9:.1f} GB/s are reached",
            f"{COMPUTED:.0%} of {peak_flops / 1e12:.1f} TFLOP/s (float16, dense) are reached",
            f"a layer takes {layer_s * 1e6:.0f} us besides (captured graphs)",
        ),
    )


ROOFS = {
    "orin_agx_64gb": _gpu("orin_agx_64gb", 42.5e12, 10e-6),
    "orin_nx_16gb": _gpu("orin_nx_16gb", 25e12, 10e-6),
    "desktop": _gpu("desktop", 71e12, 5e-6),
}


@dataclass(frozen=True)
class Pass:
    """What a pass reads and computes."""

    layers: int
    bytes: float
    flops: float

    def seconds(self, roof: Roof) -> float:
        """What it takes."""
        return self.layers * roof.layer_s + self.bytes / roof.bytes_per_s + self.flops / roof.flops_per_s


def decoder_pass(config: LlamaConfig, rows: int, before: int, layer_bytes: float, itemsize: int) -> Pass:
    """Over `rows` rows behind `before` others, logits of each; layer_bytes: of all layers' weights."""
    logits = config.vocab_size * config.hidden_size
    return Pass(
        config.num_layers,
        layer_bytes + logits * itemsize + _cache_bytes(config, before, itemsize),
        rows * (2 * (_weights(config) + logits) + _attention(config, before + rows / 2)),
    )


def _weights(config: LlamaConfig) -> int:
    """Of the layers' products."""
    width, heads = config.hidden_size, config.num_heads * config.head_dim
    attention = 2 * width * heads + 2 * width * config.num_kv_heads * config.head_dim
    return config.num_layers * (attention + 3 * width * config.intermediate_size)


def _attention(config: LlamaConfig, before: float) -> float:
    return 4 * config.num_layers * config.num_heads * config.head_dim * before


def _cache_bytes(config: LlamaConfig, rows: int, itemsize: int) -> int:
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * rows * itemsize


def tower_pass(config: VideoLlavaConfig, frames: int, itemsize: int) -> Pass:
    """Over so many frames, from pixels to embeddings; what is before and behind the layers counts as one."""
    vision, layers, width = config.vision, config.vision_layers, config.vision.hidden_size
    weights = layers * (4 * width * width + 2 * width * vision.intermediate_size)
    weights += 3 * vision.patch_size**2 * width + (width + config.text.hidden_size) * config.text.hidden_size
    attention = 4 * layers * width * vision.tokens
    return Pass(layers + 1, weights * itemsize, frames * vision.tokens * (2 * weights + attention))


def draft_passes(
    sizes: Checkpoints, nodes: int, before: int, head_bytes: float, itemsize: int
) -> tuple[int, Pass]:
    """How many passes of the head a draft of so many nodes takes behind so many rows, and one of them.

    A block head reads what was accepted and says its whole block in one, whose beginning and end count as a
    layer; others say a node in each, by the target's logits.
    """
    head, text = sizes.draft_head, sizes.target.text
    if isinstance(head, BlockConfig):
        known = min(before, head.context) + sizes.event_tokens
        computed = 2 * head_bytes / itemsize + _attention(head.layer, known + head.read_rows)
        read = head_bytes + _cache_bytes(head.layer, known, itemsize)
        return 1, Pass(head.num_layers + 1, read, head.read_rows * computed)
    logits = text.vocab_size * text.hidden_size
    return nodes, Pass(1, head_bytes + logits * itemsize, 2 * (head_bytes / itemsize + logits))


@dataclass(frozen=True)
class Projection:
    """Milliseconds, and tokens a second behind the first word.

    draft_ms: of a draft of best_size nodes; verify_ms: by nodes; turn_tokens: what a turn with that draft
    emits; window_ms, plain_window_ms: a whole window of `tokens` tokens, with and without drafting; speedup:
    of decoding.
    """

    device: str
    precision: str
    frames_ms: float
    prefill_ms: float
    step_ms: float
    verify_ms: dict[int, float]
    draft_ms: float
    best_size: int
    turn_tokens: float
    tokens: int
    tokens_per_second: float
    plain_tokens_per_second: float
    speedup: float
    window_ms: float
    plain_window_ms: float
    assumptions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def emitted(acceptance: Sequence[float], nodes: int) -> float:
    """Tokens of a turn that verifies a chain of so many nodes; the last share holds for all further ones."""
    shares = [acceptance[min(k, len(acceptance) - 1)] for k in range(nodes)]
    products: list[float] = list(accumulate(shares, mul))
    return 1.0 + sum(products)


def project(
    roof: Roof,
    sizes: Checkpoints | None = None,
    precision: str = "float16",
    acceptance: Sequence[float] = ACCEPTANCE,
    tokens: int = MAX_NEW_TOKENS,
) -> Projection:
    """What a machine takes for checkpoints of these sizes (None: the published 7B ones). Raises
    CheckpointError for an unknown precision.
    """
    sizes = sizes or published()
    text = sizes.target.text
    parts = memory_map(sizes, precision, "auto", roof.device).parts
    layers, itemsize = parts["target: decoder layers"], compute_dtype(precision, roof.device).itemsize
    before = sizes.prompt_rows + tokens // 2

    def pass_ms(rows: int, behind: int) -> float:
        return 1e3 * decoder_pass(text, rows, behind, layers, itemsize).seconds(roof)

    def draft_ms(nodes: int) -> float:
        if sizes.draft_head is None or not nodes:
            return 0.0
        passes, one = draft_passes(sizes, nodes, before, parts["draft head"], itemsize)
        return 1e3 * passes * one.seconds(roof.head or roof)

    step = pass_ms(1, before)
    verify = {nodes: pass_ms(nodes + 1, before) for nodes in SIZES}
    costs = {nodes: (verify[nodes] + draft_ms(nodes)) / emitted(acceptance, nodes) for nodes in SIZES}
    best = min(costs, key=lambda nodes: costs[nodes])
    frames = 1e3 * tower_pass(sizes.target, FRAMES, itemsize).seconds(roof.frames or roof)
    prefill = pass_ms(sizes.prompt_rows, 0)
    return Projection(
        device=roof.name,
        precision=precision,
        frames_ms=frames,
        prefill_ms=prefill,
        step_ms=step,
        verify_ms=verify,
        draft_ms=draft_ms(best),
        best_size=best,
        turn_tokens=emitted(acceptance, best),
        tokens=tokens,
        tokens_per_second=1e3 / costs[best],
        plain_tokens_per_second=1e3 / step,
        speedup=step / costs[best],
        window_ms=frames + prefill + tokens * costs[best],
        plain_window_ms=frames + prefill + tokens * step,
        assumptions=(
            *roof.assumptions,
            f"a prompt of {sizes.prompt_rows:,} rows and a text of {tokens} tokens",
            "drafts are chains; acceptance by position: " + ", ".join(f"{one:.2f}" for one in acceptance),
            "reading the weights and computing do not overlap",
        ),
    )
