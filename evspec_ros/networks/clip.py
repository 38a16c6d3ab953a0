"""The CLIP image tower (transformers' `CLIPVisionModel`) up to the layer that a multimodal model reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from evspec_ros.cancellation import check
from evspec_ros.networks.config_entries import number, refuse_other

HIDDEN_ACT = "quick_gelu"


@dataclass(frozen=True)
class ClipConfig:
    """The sizes of one tower; a default is what an entry left out of a CLIP vision `config.json` means."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512
    layer_norm_eps: float = 1e-5

    @property
    def tokens(self) -> int:
        """Tokens of one image: the class token and one per patch."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ClipConfig:
        """From a CLIP vision `config.json`; raises CheckpointError for another activation or a non-number."""
        refuse_other("CLIP tower", hidden_act=(config.get("hidden_act", HIDDEN_ACT), HIDDEN_ACT))
        defaults = cls()
        names = [entry.name for entry in fields(cls)]
        return cls(**{name: number(config, name, getattr(defaults, name)) for name in names})

    def to_hf(self) -> dict[str, Any]:
        """The same sizes as a CLIP vision `config.json`."""
        return {"model_type": "clip_vision_model", "hidden_act": HIDDEN_ACT, **asdict(self)}


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
    """The first `layers` layers of a tower; those beyond are not built, as nobody would read their output."""

    def __init__(self, config: ClipConfig, layers: int) -> None:
        super().__init__()
        self.config = config
        self.clip = CLIPVisionModel(CLIPVisionConfig(**{**config.to_hf(), "num_hidden_layers": layers}))
        # The only buffer is in no checkpoint, so it has to be real when the rest is built on the meta device.
        tower = getattr(self.clip, "vision_model", self.clip)
        for layer in tower.encoder.layers:
            layer.register_forward_pre_hook(check)
        embeddings = tower.embeddings
        embeddings.position_ids = torch.arange(config.tokens, device="cpu").expand(1, -1)

    def forward(self, pixels: Tensor) -> Tensor:
        """CLIP-normalised pixels [N, 3, H, W] -> hidden states [N, tokens, hidden], class token first."""
        hidden: Tensor = self.clip(pixels).last_hidden_state
        return hidden
