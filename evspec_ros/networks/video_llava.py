"""Video-LLaVA (Lin et al. 2023, arXiv 2311.10122) as published for transformers: CLIP, projector, LLaMA.

Every frame goes through CLIP alone (there is no attention over time), so the features of a frame do not
depend on the other frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evspec_ros.errors import GenerationError
from evspec_ros.networks.clip import ClipConfig, ClipTower
from evspec_ros.networks.config_entries import number, refuse_other, section
from evspec_ros.networks.llama import LlamaConfig, LlamaDecoder, initialise


@dataclass(frozen=True)
class VideoLlavaConfig:
    """One Video-LLaVA: its decoder, its tower, and the layer of the tower that the projector reads."""

    text: LlamaConfig
    vision: ClipConfig
    image_token_id: int = 32000
    video_token_id: int = 32001
    vision_feature_layer: int = -2

    @property
    def vision_layers(self) -> int:
        """How many of the tower's layers run."""
        layer = self.vision_feature_layer
        return layer if layer >= 0 else self.vision.num_hidden_layers + 1 + layer

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> VideoLlavaConfig:
        """From a `config.json` of transformers 4 or 5; raises CheckpointError for what is not implemented."""
        layer = config.get("vision_feature_layer", cls.vision_feature_layer)
        refuse_other(
            "Video-LLaVA",
            projector_hidden_act=(config.get("projector_hidden_act", "gelu"), "gelu"),
            multimodal_projector_bias=(config.get("multimodal_projector_bias", True), True),
            **({} if isinstance(layer, int) else {"vision_feature_layer": (layer, cls.vision_feature_layer)}),
        )
        text = dict(section(config, "text_config"))
        if config.get("eos_token_id") is not None:
            text["eos_token_id"] = config["eos_token_id"]
        # transformers 4 looks into the text's config, 5 into the whole one
        text["tie_word_embeddings"] = any(
            found.get("tie_word_embeddings") or False for found in (config, text)
        )
        return cls(
            text=LlamaConfig.from_hf(text),
            vision=ClipConfig.from_hf(section(config, "vision_config")),
            image_token_id=number(config, "image_token_index", cls.image_token_id),
            video_token_id=number(config, "video_token_index", cls.video_token_id),
            vision_feature_layer=layer,
        )

    def to_hf(self) -> dict[str, Any]:
        """The same as a Hugging Face Video-LLaVA `config.json`."""
        return {
            "architectures": ["VideoLlavaForConditionalGeneration"],
            "model_type": "video_llava",
            "image_token_index": self.image_token_id,
            "video_token_index": self.video_token_id,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": self.vision_feature_layer,
            "vision_feature_select_strategy": "default",
            "image_seq_length": self.vision.tokens - 1,
            "video_seq_length": 8 * self.vision.tokens,
            "tie_word_embeddings": self.text.tied,
            "text_config": self.text.to_hf(),
            "vision_config": self.vision.to_hf(),
        }


class Projector(nn.Module):
    """Linear, GELU, linear: from the tower's width to the decoder's."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """CLIP features [..., vision hidden] -> decoder embeddings [..., D]."""
        out: Tensor = self.linear_2(F.gelu(self.linear_1(features)))
        return out


class VideoLlava(nn.Module):
    """The target: frames and a prompt in, logits `lm_head(decoder(embeddings).hidden)` out.

    The image tower of a published checkpoint is not part of it, as no prompt here holds single images.
    """

    def __init__(self, config: VideoLlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.video_tower = ClipTower(config.vision, config.vision_layers)
        self.projector = Projector(config.vision.hidden_size, config.text.hidden_size)
        self.decoder = LlamaDecoder(config.text)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        self.projector.apply(initialise)
        self.lm_head.apply(initialise)
        if config.text.tied:
            self.lm_head.weight = self.decoder.embed_tokens.weight

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """CLIP-normalised frames [F, 3, H, W] -> video embeddings [F * tokens, D], class tokens kept."""
        out: Tensor = self.projector(self.video_tower(pixels)).flatten(0, 1)
        return out

    def embed_prompt(self, ids: Tensor, video: Tensor) -> Tensor:
        """Prompt ids [T] with one video token -> embeddings [T - 1 + V, D], `video` [V, D] in its place.

        Raises GenerationError where the prompt does not hold exactly one video token.
        """
        places = (ids == self.config.video_token_id).nonzero().flatten().tolist()
        if len(places) != 1:
            raise GenerationError(
                f"The prompt holds {len(places)} video tokens (id {self.config.video_token_id}) instead of "
                "one; write <video> exactly once."
            )
        text = self.decoder.embed(ids)
        return torch.cat((text[: places[0]], video, text[places[0] + 1 :]))
