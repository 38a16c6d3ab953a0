"""transformers on the same checkpoint: generate, its assisted generation, its prompt lookup."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList, VideoLlavaForConditionalGeneration

from evspec_ros.evaluation.decoder_speed import in_transformers
from evspec_ros.evaluation.peers import Peer, PeerModels, PeerText
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.networks.checkpoints import (
    load_eventgpt,
    load_preprocessor_config,
    read_video_llava_config,
)
from evspec_ros.networks.tokenizer import load_target_tokenizer
from evspec_ros.prompts import DEFAULT_PROMPT, target_prompt
from evspec_ros.sizes import FRAMES
from evspec_ros.windows import Window


class HuggingFacePeer:
    """VideoLlavaForConditionalGeneration.generate with further options."""

    def __init__(self, name: str, about: str, models: PeerModels, **options: Any) -> None:
        self.name, self.about = f"transformers {name}", about
        self._models, self._options = models, options

    def load(self) -> None:
        """See Peer."""
        path = self._models.target
        self._model: Any = VideoLlavaForConditionalGeneration.from_pretrained(path, torch_dtype=torch.float32)
        config = read_video_llava_config(path)
        self._tokenizer = load_target_tokenizer(path, config)
        self._preprocessor = ClipPreprocessor.from_config(load_preprocessor_config(path))
        ids = self._tokenizer.encode(target_prompt(DEFAULT_PROMPT), bos=True)
        video = config.video_token_id
        rows = FRAMES * config.vision.tokens
        expanded = [one for token in ids for one in ([token] * rows if token == video else [token])]
        self._ids = torch.tensor([expanded])
        self._end = sorted(config.text.end_tokens)

    def begin_stream(self) -> None:
        """Nothing is remembered."""

    @torch.inference_mode()
    def describe(self, window: Window) -> PeerText:
        """See Peer."""
        heard = FirstToken()
        began = time.perf_counter()
        pixels = self._preprocessor([frame.image for frame in window.frames])
        found = self._model.generate(
            input_ids=self._ids,
            attention_mask=torch.ones_like(self._ids),
            pixel_values_videos=torch.from_numpy(np.ascontiguousarray(pixels))[None],
            max_new_tokens=self._models.max_new_tokens,
            do_sample=False,
            eos_token_id=self._end,
            pad_token_id=self._end[0],
            stopping_criteria=StoppingCriteriaList([heard]),
            **self._options,
        )
        tokens = found[0, self._ids.shape[1] :].tolist()
        text = self._tokenizer.decode(tokens)
        ended = time.perf_counter()
        return PeerText(tuple(tokens), text, 1e3 * (heard.at - began), 1e3 * (ended - began))


class AssistedPeer(HuggingFacePeer):
    """Assisted by EventGPT's decoder, which shares the tokenizer; as an assistant it sees neither camera."""

    def load(self) -> None:
        """See Peer."""
        super().load()
        drafts = load_eventgpt(self._models.event_model, torch.float32, torch.device("cpu"))
        assistant = in_transformers(drafts.decoder, drafts.lm_head)
        assistant.generation_config.eos_token_id = self._end
        self._options = {"assistant_model": assistant}


class FirstToken(StoppingCriteria):
    """Notes when it was asked first: behind the first token, or the first ones where several come at once."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Never stop."""
        self.at = self.at or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def peers(models: PeerModels) -> list[Peer]:
    """Three."""
    return [
        HuggingFacePeer("generate", "plain decoding", models),
        AssistedPeer("assisted", "speculative decoding with EventGPT's decoder as assistant", models),
        HuggingFacePeer(
            "prompt lookup", "drafts copied out of the prompt", models, prompt_lookup_num_tokens=10
        ),
    ]
