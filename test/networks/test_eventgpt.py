"""Our EventGPT against the paper's formulas written plainly over transformers' CLIP and LLaMA."""

from __future__ import annotations

import pytest
import torch
from random_models import CLIP
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM
from transformers import LlamaConfig as HfLlamaConfig

from evspec_ros.networks.eventgpt import EventGpt

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Five random event images [5, 3, H, W]."""
    return torch.randn(5, 3, CLIP.image_size, CLIP.image_size, generator=torch.Generator().manual_seed(9))


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


def reference_event_tokens(model: EventGpt, pixels: Tensor) -> Tensor:
    """One image after the other through CLIP, projector and adaptor; then the two means, token by token."""
    tower = CLIPVisionModel(CLIPVisionConfig(**CLIP.to_hf())).eval()
    tower.load_state_dict(model.visual_tower.clip.state_dict())
    weights = dict(model.state_dict())
    features = []  # one [tokens, D] per image
    for image in pixels:
        x = tower(image[None]).last_hidden_state[0]
        x = x @ weights["visual_projector.0.weight"].T + weights["visual_projector.0.bias"]
        x = torch.nn.functional.gelu(x)
        x = x @ weights["visual_projector.2.weight"].T + weights["visual_projector.2.bias"]
        features.append(x @ weights["feature_adaptor.weight"].T + weights["feature_adaptor.bias"])
    temporal = [sum(feature[place] for place in range(CLIP.tokens)) / CLIP.tokens for feature in features]
    spatial = [sum(feature[place] for feature in features) / len(features) for place in range(CLIP.tokens)]
    return torch.stack([*temporal, *spatial])


def test_event_tokens_are_five_temporal_then_spatial_means(eventgpt: EventGpt, pixels: Tensor) -> None:
    """Pooling gives the reference's 5 + tokens rows in the published order."""
    found = eventgpt.encode_events(pixels)
    assert found.shape == (5 + CLIP.tokens, 64)
    assert (found - reference_event_tokens(eventgpt, pixels)).abs().max() <= TOLERANCE


def test_logits_equal_the_reference(eventgpt: EventGpt, pixels: Tensor) -> None:
    """Prompt, events and the rest of the prompt through transformers' LLaMA give our logits."""
    theirs = LlamaForCausalLM(HfLlamaConfig(**eventgpt.config.text.to_hf())).eval()
    theirs.model.load_state_dict(eventgpt.decoder.state_dict())
    theirs.lm_head.load_state_dict(eventgpt.lm_head.state_dict())
    before, after = torch.tensor([1, 270, 280]), torch.tensor([290, 300, 310, 271])
    events = reference_event_tokens(eventgpt, pixels)
    embed = theirs.get_input_embeddings()
    inputs = torch.cat((embed(before), events, embed(after)))[None]
    expected = theirs(inputs_embeds=inputs).logits
    prompt = eventgpt.embed_prompt(before, eventgpt.encode_events(pixels), after)
    found = eventgpt.lm_head(eventgpt.decoder(prompt[None]).hidden)
    assert (found - expected).abs().max() <= TOLERANCE


def test_order_in_time_matters_and_is_kept(eventgpt: EventGpt, pixels: Tensor) -> None:
    """Reversing the images reverses the temporal tokens and leaves the spatial ones."""
    forwards, backwards = eventgpt.encode_events(pixels), eventgpt.encode_events(pixels.flip(0))
    assert torch.allclose(forwards[:5], backwards[:5].flip(0), atol=1e-5)
    assert torch.allclose(forwards[5:], backwards[5:], atol=1e-5)


def test_windows_of_a_batch_are_encoded_as_if_alone(eventgpt: EventGpt, pixels: Tensor) -> None:
    """Leading dimensions are windows, and no window sees another."""
    windows = torch.stack((pixels, pixels.flip(0), pixels * 0.5))
    alone = torch.stack([eventgpt.encode_events(window) for window in windows])
    assert torch.allclose(eventgpt.encode_events(windows), alone, atol=1e-5)
