"""How much memory a target, an event model and a draft head take, from their configs alone.

Weights: the models are built without data and their parameters counted. KV caches, of the target, of the
event model and of a head that has one: as many rows as they are allocated with (`sizes`) for one prompt and
its answer, 2 (keys, values) x layers x key/value heads x head size; in int8 one byte each and a float32 scale
per row and head. Kept frames: their embeddings. Activations: the most that one moment of the prefill holds,
which is a layer's MLP over the P rows of the prompt,

    P x (3 D + 3 I)  values in the compute dtype

(the embeddings, the residual and its norm of width D; gate, up and their product of width I) and, where
weights are whole numbers, the largest projection as the product reads it, in the compute dtype (an int4
product on a GPU reads the packed weights themselves). Captured graphs, on a GPU: what each of them gives
(logits and three features of its rows, kept while it is), what the largest computes with in between, and a
workspace of the matrix library for target and event model each; computed, never measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.adapters import FeatureConfig
from evspec_ros.networks.block_head import BlockConfig
from evspec_ros.networks.checkpoints import DRAFT_HEADS, Head
from evspec_ros.networks.clip import CLIP_L_14_336
from evspec_ros.networks.draft_head import Eagle3Config, EagleConfig
from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.fit import HeadConfig
from evspec_ros.networks.llama import LlamaConfig
from evspec_ros.networks.quantisation import bits, compute_dtype, kv_dtype, weight_bytes
from evspec_ros.networks.video_llava import VideoLlava, VideoLlavaConfig
from evspec_ros.networks.weights import free_bytes
from evspec_ros.sizes import (
    EVENT_AHEAD,
    EVENT_IMAGES,
    FRAMES,
    KEPT_FRAMES,
    KEY_STEP,
    MAX_NEW_TOKENS,
    MEASURED_ROWS,
    ROW_BUCKETS,
    TREE_SIZE,
    UNSEEN_ROWS,
    cache_rows,
)

GIB = 2**30
TEXT_TOKENS = 64  # of a prompt around its video or its events
LEARNING = 5  # copies of a head that learns: the best, the one that learns, its gradients and their means
WORKSPACE = 32 * 2**20  # bytes that torch lets cuBLAS have on a large GPU
ANSWER_ROWS = MAX_NEW_TOKENS + TREE_SIZE


@dataclass(frozen=True)
class Checkpoints:
    """The sizes of what runs together; without an event model or a head where nobody drafts from them.

    event_text: the event model reads a prompt and not the events alone, and writes behind it. text_tokens: of
    a prompt around its video or its events. learning: the head learns while it drafts.
    """

    target: VideoLlavaConfig
    event_model: EventGptConfig | None = None
    draft_head: HeadConfig | None = None
    event_text: bool = True
    learning: bool = False
    text_tokens: int = TEXT_TOKENS

    @property
    def prompt_rows(self) -> int:
        """Rows that the target reads before it writes: every token of eight frames and the text."""
        return FRAMES * self.target.vision.tokens + self.text_tokens

    @property
    def rows(self) -> int:
        """Rows of the target's cache; measuring what passes cost takes more than an answer."""
        return cache_rows(self.prompt_rows + max(ANSWER_ROWS, MEASURED_ROWS))

    @property
    def event_tokens(self) -> int:
        """Tokens that the event model makes of events."""
        return 0 if self.event_model is None else EVENT_IMAGES + self.event_model.vision.tokens

    @property
    def event_rows(self) -> int:
        """Rows of the event model's cache."""
        if self.event_model is None or not self.event_text:
            return 0
        prompt = self.text_tokens + self.event_tokens
        positions = self.event_model.text.max_positions
        answer = 0 if isinstance(self.draft_head, FeatureConfig) else ANSWER_ROWS  # features of the prompt
        return cache_rows(max(prompt + EVENT_AHEAD, min(prompt + answer, positions)))

    def head_rows(self, device: torch.device) -> int:
        """Rows of the draft head's cache: those of the events, what it reads of the prompt, the answer; on a
        GPU every row that a tree may expand as well.
        """
        head = self.draft_head
        if not isinstance(head, EagleConfig | Eagle3Config):
            return 0
        before = self.prompt_rows - 1
        read = min(before, head.context) if isinstance(head, Eagle3Config) else before
        more = UNSEEN_ROWS if device.type == "cuda" else 0
        return min(self.event_tokens + read + 1 + ANSWER_ROWS + more, head.max_positions)


def published() -> Checkpoints:
    """Video-LLaVA-7B, EventGPT-7B and a head for them."""
    target = LlamaConfig(vocab_size=32064, max_positions=4096, rms_norm_eps=1e-5)
    event = LlamaConfig(vocab_size=32003, rms_norm_eps=1e-5)
    events = EVENT_IMAGES + CLIP_L_14_336.tokens
    vision = replace(CLIP_L_14_336, image_size=224)
    return Checkpoints(
        VideoLlavaConfig(target, vision),
        EventGptConfig(event, CLIP_L_14_336),
        EagleConfig.for_target(target, event.hidden_size, events),
    )


@dataclass(frozen=True)
class MemoryMap:
    """Bytes by what they are for; step: bytes that the target reads to write one token."""

    dtype: str
    kv_dtype: str
    parts: dict[str, int]
    step: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def memory_map(checkpoints: Checkpoints, dtype: str, kv: str, device: torch.device) -> MemoryMap:
    """What the checkpoints take in a precision on a device; raises CheckpointError for an unknown one."""
    compute = compute_dtype(dtype, device)
    target, event_model, head = _without_data(checkpoints)
    parts = _model_bytes("target", target, dtype, device)
    if event_model is not None:
        parts |= _model_bytes("event model", event_model, dtype, device)
    if head is not None:
        parts["draft head"] = _bytes(head, compute)
    if head is not None and checkpoints.learning:
        parts["draft head: learning"] = LEARNING * _bytes(head, torch.float32)
    cache = _cache_bytes(checkpoints.target.text, checkpoints.rows, kv_dtype(kv) or compute)
    parts["KV cache"] = cache
    if event_model is not None:
        parts["event model: KV cache"] = _cache_bytes(
            event_model.config.text, checkpoints.event_rows, compute
        )
    if isinstance(checkpoints.draft_head, BlockConfig | EagleConfig | Eagle3Config):
        parts["draft head: KV cache"] = _cache_bytes(
            checkpoints.draft_head.layer, checkpoints.head_rows(device), compute
        )
    text, vision = checkpoints.target.text, checkpoints.target.vision
    parts["kept frames"] = KEPT_FRAMES * vision.tokens * text.hidden_size * compute.itemsize
    parts["activations"] = _activation_bytes(checkpoints, dtype, device)
    if device.type == "cuda":
        parts["CUDA graphs"] = _graph_bytes(checkpoints, compute)
    step = parts["target: decoder layers"] + _bytes(target.lm_head, compute) + cache
    return MemoryMap(dtype, kv, parts, step)


@lru_cache(maxsize=1)  # each precision of the same checkpoints asks for them again
def _without_data(checkpoints: Checkpoints) -> tuple[VideoLlava, EventGpt | None, Head | None]:
    config = checkpoints.draft_head
    with torch.device("meta"):
        return (
            VideoLlava(checkpoints.target),
            None if checkpoints.event_model is None else EventGpt(checkpoints.event_model),
            None if config is None else DRAFT_HEADS[config.kind].head(config),
        )


def require_memory(needed: MemoryMap, device: torch.device) -> None:
    """Raise CheckpointError, before anything is loaded, where less memory is free than is needed."""
    free = free_bytes(device)
    if free is not None and needed.total > free:
        raise CheckpointError(
            f"The networks need about {needed.total / GIB:.1f} GiB in {needed.dtype} (KV cache "
            f"{needed.kv_dtype}) and {device} has {free / GIB:.1f} GiB free; `evspec doctor` says which "
            "precision fits."
        )


def _bytes(module: nn.Module, dtype: torch.dtype) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) * dtype.itemsize


def _model_bytes(name: str, model: VideoLlava | EventGpt, dtype: str, device: torch.device) -> dict[str, int]:
    compute, layers = compute_dtype(dtype, device), model.decoder.layers
    return {
        f"{name}: decoder layers": _layer_bytes(layers, dtype, device),
        f"{name}: the rest": _bytes(model, compute) - _bytes(layers, compute),
    }


def _layer_bytes(layers: nn.Module, dtype: str, device: torch.device) -> int:
    """A decoder's layers: their projections in the precision, their norms in the compute dtype."""
    linears = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    compute = compute_dtype(dtype, device)
    norms = _bytes(layers, compute) - sum(_bytes(linear, compute) for linear in linears)
    return norms + sum(
        weight_bytes(linear.out_features, linear.in_features, dtype, device) for linear in linears
    )


def _cache_bytes(config: LlamaConfig, rows: int, dtype: torch.dtype) -> int:
    row = config.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)
    return 2 * config.num_layers * config.num_kv_heads * rows * row


def _activation_bytes(checkpoints: Checkpoints, dtype: str, device: torch.device) -> int:
    text = checkpoints.target.text
    values = checkpoints.prompt_rows * 3 * (text.hidden_size + text.intermediate_size)
    if dtype == "int8" or (dtype == "int4" and (device.type == "cpu" or bits(dtype, text.hidden_size) == 8)):
        values += text.hidden_size * text.intermediate_size
    return values * compute_dtype(dtype, device).itemsize


def _graph_bytes(checkpoints: Checkpoints, dtype: torch.dtype) -> int:
    """Of the target, and of the event model where it writes."""
    total = 0
    models = [(checkpoints.target.text, checkpoints.prompt_rows, checkpoints.rows)]
    if checkpoints.event_model is not None and checkpoints.event_rows:
        prompt = checkpoints.text_tokens + checkpoints.event_tokens
        models.append((checkpoints.event_model.text, prompt, checkpoints.event_rows))
    for text, prompt, rows in models:
        key_buckets = -(-rows // KEY_STEP) - prompt // KEY_STEP
        given = text.vocab_size + 3 * text.hidden_size  # values a row
        between = 3 * (text.hidden_size + text.intermediate_size) + rows
        values = key_buckets * sum(ROW_BUCKETS) * given + max(ROW_BUCKETS) * between
        total += values * dtype.itemsize + WORKSPACE
    return total
