"""The CLIP image tower (transformers' `CLIPVisionModel`) up to the layer that a multimodal model reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from evspec_ros.errors import CheckpointError


@dataclass(frozen=True)
class ClipConfig:
    """The sizes of one tower, named as in a CLIP vision `config.json`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def tokens(self) -> int:
        """Tokens of one image: the class token and one per patch."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ClipConfig:
        """From a complete CLIP vision config; raises CheckpointError where an entry is missing."""
        try:
            return cls(**{name: config[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise CheckpointError(
                f"The CLIP config has no entry {error}; complete config.json from the model's publisher."
            ) from error

    def to_hf(self) -> dict[str, Any]:
        """The same sizes as a CLIP vision `config.json`."""
        return {"model_type": "clip_vision_model", **asdict(self)}


CLIP_L_14_336 = ClipConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
    projection_dim=768,
)


class ClipTower(nn.Module):
    """pixels [N, 3, H, W] (CLIP-normalised) -> hidden states [N, tokens, hidden] after the first `layers` layers.

    Layers beyond those are never built: nobody would read what they compute.
    """

    def __init__(self, config: ClipConfig, layers: int) -> None:
        super().__init__()
        self.config = config
        self.clip = CLIPVisionModel(CLIPVisionConfig(**{**config.to_hf(), "num_hidden_layers": layers}))
        # The tower's only buffer is not part of a checkpoint: make it real when the rest is built on the meta device.
        embeddings = getattr(self.clip, "vision_model", self.clip).embeddings
        embeddings.position_ids = torch.arange(config.tokens, device="cpu").expand(1, -1)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden: Tensor = self.clip(pixels).last_hidden_state
        return hidden
