"""A tiny random pair of models, and noise in place of scenes."""

from __future__ import annotations

import torch

from evspec_ros.networks.clip import ClipConfig
from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.llama import LlamaConfig
from evspec_ros.networks.video_llava import VideoLlava, VideoLlavaConfig
from evspec_ros.training.features import ModelPair, SceneBatch

CLIP = ClipConfig(16, 32, 2, 2, 32, 16, projection_dim=16)
VIDEO_TOKEN, EOS = 39, 2
PROMPT = torch.tensor([1, 5, VIDEO_TOKEN, 7, 8])


def random_pair(seed: int = 0) -> ModelPair:
    """Large enough weights that the target's texts differ."""
    torch.manual_seed(seed)
    target = VideoLlava(
        VideoLlavaConfig(LlamaConfig(40, 32, 48, 3, 4, 4, 8, max_positions=96), CLIP, 38, VIDEO_TOKEN)
    )
    event_model = EventGpt(EventGptConfig(LlamaConfig(40, 24, 32, 1, 2, 2, 12, max_positions=96), CLIP))
    with torch.no_grad():
        for parameter in (*target.parameters(), *event_model.parameters()):
            if parameter.dim() >= 2:
                parameter.normal_(std=0.3)
    return ModelPair(target.eval(), event_model.eval(), PROMPT, (torch.tensor([1, 4]), torch.tensor([6, 9])))


def noise_scenes(start: int, stop: int) -> SceneBatch:
    """Scene k is always the same."""
    frames, events = zip(*(_noise(index) for index in range(start, stop)), strict=True)
    return SceneBatch(torch.stack(frames), torch.stack(events))


def _noise(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.randn(5, 3, 32, 32, generator=generator)
