"""The event model's own text: what it has read, how far it writes ahead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig as HfLlamaConfig
from transformers import LlamaForCausalLM

from evspec_ros.networks.clip import ClipConfig
from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.llama import LlamaConfig
from evspec_ros.sizes import EVENT_AHEAD
from evspec_ros.speculative import EventSide, Prompt
from evspec_ros.speculative.eventgpt import EventGptDrafter, EventWriter

VOCABULARY, SIZE = 40, 24
BEFORE, AFTER = (1, 4, 7), (6, 9, 3)


def _model(positions: int = 256) -> EventGpt:
    torch.manual_seed(0)
    text = LlamaConfig(VOCABULARY, SIZE, 32, 2, 2, 2, 12, max_positions=positions)
    model = EventGpt(EventGptConfig(text, ClipConfig(16, 32, 2, 2, 32, 16, projection_dim=16))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=0.4)
    return model


def _expected(model: EventGpt, events: Tensor, read: list[int]) -> Tensor:
    """transformers' probabilities [n, V] after the prompt and after each token read, without a cache."""
    theirs = LlamaForCausalLM(HfLlamaConfig(**model.config.text.to_hf())).eval()
    theirs.model.load_state_dict(model.decoder.state_dict())
    theirs.lm_head.load_state_dict(model.lm_head.state_dict())
    embed = theirs.model.embed_tokens
    whole = torch.cat((embed(torch.tensor(BEFORE)), events, embed(torch.tensor([*AFTER, *read]))))
    logits = theirs(inputs_embeds=whole[None], use_cache=False).logits[0]
    return torch.softmax(logits[-len(read) - 1 :], -1)


@torch.inference_mode()
def test_it_says_what_transformers_does_after_the_same_prompt_and_tokens() -> None:
    """Every id of the prompt is read, the last one too, in its place around the events."""
    model, events = _model(), torch.randn(5, SIZE, generator=torch.Generator().manual_seed(1))
    writer = EventWriter(model)
    for read in ([], [5, 8, 2], [7]):
        writer.read_prompt((BEFORE, AFTER), events)
        if read:
            writer.append(read)
        chances, tokens = _expected(model, events, read).max(-1)
        assert [token for token, _ in writer.next_tokens] == tokens.tolist()
        assert [chance for _, chance in writer.next_tokens] == pytest.approx(chances.tolist(), abs=1e-5)


@torch.inference_mode()
def test_every_id_of_the_prompt_counts() -> None:
    """Another one anywhere changes what is said first."""
    model, events = _model(), torch.randn(5, SIZE)
    writer = EventWriter(model)
    writer.read_prompt((BEFORE, AFTER), events)
    (_, chance), *_ = writer.next_tokens
    for place in range(6):
        ids = [*BEFORE, *AFTER]
        ids[place] += 11
        writer.read_prompt((ids[:3], ids[3:]), events)
        assert writer.next_tokens[0][1] != pytest.approx(chance, abs=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("rows", [7, 90, 95, 96, 97, 112, 128, 129])
def test_it_writes_so_far_ahead_whatever_the_prompt_s_length(rows: int) -> None:
    """While the target reads, and no further; the cache's size does not show."""
    drafter = EventGptDrafter(_model(), EventSide(), VOCABULARY)
    events = torch.randn(rows - len(BEFORE) - len(AFTER), SIZE)
    prompt = Prompt(torch.zeros(1, 1, SIZE), (), lambda: events, (BEFORE, AFTER))
    drafter._begin(prompt, events, lambda: True)
    assert len(drafter._writer.tokens) == EVENT_AHEAD
    said = [token for token, _ in drafter._writer.next_tokens]
    assert drafter._writer.tokens == said[:-1]


@torch.inference_mode()
def test_it_writes_no_further_than_the_model_has_positions() -> None:
    """Ninety rows of a hundred leave ten."""
    drafter = EventGptDrafter(_model(positions=100), EventSide(), VOCABULARY)
    events = torch.randn(84, SIZE)
    prompt = Prompt(torch.zeros(1, 1, SIZE), (), lambda: events, (BEFORE, AFTER))
    drafter._begin(prompt, events, lambda: True)
    assert len(drafter._writer.tokens) == 10
