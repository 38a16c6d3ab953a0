"""EventGPT (Liu et al., CVPR 2025, arXiv 2412.00832): five images of events in, text out.

Each image goes through CLIP, a two-layer projector and a linear adaptor; the tokens are pooled to one per
image (the mean over space) followed by one per place (the mean over time).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evspec_ros.networks.clip import ClipConfig, ClipTower
from evspec_ros.networks.llama import LlamaConfig, LlamaDecoder, initialise


@dataclass(frozen=True)
class EventGptConfig:
    """One EventGPT: its decoder and its tower."""

    text: LlamaConfig
    vision: ClipConfig


class EventGpt(nn.Module):
    """The event model: logits are `lm_head(decoder(embeddings).hidden)`."""

    def __init__(self, config: EventGptConfig) -> None:
        super().__init__()
        self.config = config
        size = config.text.hidden_size
        self.visual_tower = ClipTower(config.vision, config.vision.num_hidden_layers)
        self.visual_projector = nn.Sequential(
            nn.Linear(config.vision.hidden_size, size), nn.GELU(), nn.Linear(size, size)
        )
        self.feature_adaptor = nn.Linear(size, size)
        self.decoder = LlamaDecoder(config.text)
        self.lm_head = nn.Linear(size, config.text.vocab_size, bias=False)
        for module in (self.visual_projector, self.feature_adaptor, self.lm_head):
            module.apply(initialise)
        if config.text.tied:
            self.lm_head.weight = self.decoder.embed_tokens.weight

    def encode_events(self, pixels: Tensor) -> Tensor:
        """CLIP-normalised images [..., N, 3, H, W] in order of time -> embeddings [..., N + tokens, D]."""
        return self.pool(self.visual_tower(pixels.flatten(0, -4)).unflatten(0, pixels.shape[:-3]))

    def pool(self, features: Tensor) -> Tensor:
        """The tower's features [..., N, tokens, vision hidden] -> embeddings [..., N + tokens, D]."""
        features = self.feature_adaptor(self.visual_projector(features))
        return torch.cat((features.mean(-2), features.mean(-3)), -2)  # temporal tokens, then spatial tokens

    def embed_prompt(self, before_ids: Tensor, event: Tensor, after_ids: Tensor) -> Tensor:
        """ids [a], event embeddings [E, D], ids [b] -> embeddings [a + E + b, D]."""
        return torch.cat((self.decoder.embed(before_ids), event, self.decoder.embed(after_ids)))
