"""Small networks with random weights: a target, draft heads of all kinds, an event model, and prompts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from evspec_ros.engines.drafter import DrafterEngines
from evspec_ros.networks.checkpoints import DRAFT_HEADS
from evspec_ros.networks.clip import ClipConfig
from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.llama import LlamaConfig, LlamaDecoder
from evspec_ros.speculative import (
    DecoderTarget,
    Drafter,
    DraftModels,
    EventSide,
    Prompt,
    drafter_kind,
    make_drafter,
)

VOCABULARY, EVENT_SIZE = 50, 12
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, num_kv_heads=2,
    head_dim=8, max_positions=96,
)  # fmt: skip


def random_target(seed: int = 0, kv_dtype: torch.dtype | None = None) -> DecoderTarget:
    """Weights large enough that texts vary and no two tokens are nearly tied."""
    torch.manual_seed(seed)
    decoder = LlamaDecoder(CONFIG).eval()
    lm_head = torch.nn.Linear(CONFIG.hidden_size, VOCABULARY, bias=False)
    with torch.no_grad():
        for parameter in (*decoder.parameters(), lm_head.weight):
            if parameter.dim() == 2:
                parameter.normal_(std=0.4)
            else:
                parameter.uniform_(0.5, 1.5)  # a norm that changes something when it is applied twice
    return DecoderTarget(
        decoder, lm_head, (), detokenize=lambda tokens: " ".join(map(str, tokens)), kv_dtype=kv_dtype
    )


def random_head(kind: str = "eagle") -> Any:
    """EAGLE-3's and the block head read the last five of the prompt's rows; the block is of four."""
    torch.manual_seed(0)
    sizes = DRAFT_HEADS[kind].config.for_target(CONFIG, EVENT_SIZE, 8)
    if kind in ("eagle3", "block"):
        sizes = replace(sizes, context=5)
    if kind == "block":
        sizes = replace(sizes, block=4)
    head = DRAFT_HEADS[kind].head(sizes).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.3)
    return head


def random_event_model() -> EventGpt:
    """Knows the target's tokens and one more, and no more positions than a text needs at times."""
    torch.manual_seed(4)
    clip = ClipConfig(8, 16, 1, 2, 32, 16, projection_dim=8)
    text = LlamaConfig(VOCABULARY + 1, EVENT_SIZE, 16, 2, 2, 2, 6, max_positions=32)
    model = EventGpt(EventGptConfig(text, clip)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def random_drafter(
    name: str,
    target: DecoderTarget,
    *,
    overlap: bool = False,
    pooling: int = 1,
    engines: DrafterEngines | None = None,
) -> Drafter:
    """Of that name, with a head of its kind and the event model."""
    kinds = drafter_kind(name).head_kinds
    events = EventSide(overlap=overlap, pooling=pooling)
    head = random_head(kinds[0]) if kinds else None
    return make_drafter(name, target, DraftModels(head, random_event_model(), events, engines=engines))


def random_prompts(count: int, rows: int = 12) -> list[Prompt]:
    """Embeddings as a projector makes them, so no tokens stand behind them; some with events."""
    generator = torch.Generator().manual_seed(1)
    prompts = []
    for index in range(count):
        embeddings = torch.randn(1, rows + index % 3, CONFIG.hidden_size, generator=generator)
        events = torch.randn(9, EVENT_SIZE, generator=generator)
        read = partial(torch.clone, events) if index % 2 else None
        prompts.append(Prompt(embeddings, (7,) * (rows + index % 3), read, ((1, 3), (4, 5, 6))))
    return prompts


@torch.inference_mode()
def naive_text(target: DecoderTarget, prompt: Prompt, length: int) -> list[int]:
    """The reference: a whole pass without a cache for every token."""
    embeddings, tokens = prompt.embeddings, []
    for _ in range(length):
        tokens.append(int(target.lm_head(target.decoder(embeddings).hidden[0, -1]).argmax()))
        embeddings = torch.cat((embeddings, target.embed(torch.tensor([tokens[-1:]]))), 1)
    return tokens
