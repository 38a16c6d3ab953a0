"""What both models read of a window: the target frames and a question, EventGPT events and the question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from evspec_ros.description import ENCODE_FRAMES, EVENT_FEATURES, EVENT_PREPROCESS, PREPROCESS, RENDER
from evspec_ros.engines.drafter import EventEncoder
from evspec_ros.events.types import Events
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.frames.types import Frame
from evspec_ros.networks.cuda_streams import Stages
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.frame_features import FrameFeatures
from evspec_ros.networks.pixels import PixelReader
from evspec_ros.networks.tokenizer import Tokenizer
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.prompts import EVENT_PROMPT, TARGET_PROMPT, asked
from evspec_ros.sizes import FRAMES, KEPT_FRAMES
from evspec_ros.speculative.drafter import Prompt


@dataclass(frozen=True, eq=False)
class TargetReader:
    """The target and what it reads with."""

    model: VideoLlava
    tokenizer: Tokenizer
    preprocessor: ClipPreprocessor

    def prompt_ids(self, question: str) -> list[int]:
        """The prompt's ids, one of them for the video; of the special tokens the template's alone, whatever
        the question holds.
        """
        question_ids = self.tokenizer.encode_plain(asked(question))
        return self.tokenizer.encode(TARGET_PROMPT, bos=True) + question_ids

    def prompt_rows(self, question: str) -> int:
        """Rows that the prompt takes, those of the video among them."""
        return len(self.prompt_ids(question)) - 1 + FRAMES * self.model.config.vision.tokens


@dataclass(frozen=True, eq=False)
class EventReader:
    """The event model and what it reads with; encoder: what runs its event encoder."""

    model: EventGpt
    encoder: EventEncoder
    tokenizer: Tokenizer
    preprocessor: ClipPreprocessor

    def prompt_ids(self, question: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The prompt's ids before and behind its event tokens; special tokens as in `TargetReader`."""
        before, after = EVENT_PROMPT
        behind = self.tokenizer.encode(after) + self.tokenizer.encode_plain(asked(question))
        return tuple(self.tokenizer.encode(before, bos=True)), tuple(behind)


@dataclass(frozen=True, eq=False)
class Reading:
    """A window as it was read: one prompt for each question, how many of its frames an earlier window had
    too, and the stages of both models so far. Those of the event model come when a drafter wants its tokens.
    """

    prompts: list[Prompt]
    reused_frames: int
    stages: Stages
    event_stages: Stages


class WindowReader:
    """Turns windows into prompts; a frame that two windows share is encoded once."""

    def __init__(self, target: TargetReader, events: EventReader | None) -> None:
        """events: None where no drafter reads them."""
        self.target = target
        self.events = events
        self._weight = target.model.lm_head.weight  # tells device and dtype
        self._pixels = PixelReader(target.preprocessor, self._weight)
        self._event_pixels = None if events is None else PixelReader(events.preprocessor, self._weight)
        self._frame_features = FrameFeatures(KEPT_FRAMES)

    @torch.inference_mode()
    def read(self, events: Events, frames: Sequence[Frame], questions: Sequence[str]) -> Reading:
        """What the target reads for each question about a window."""
        stages, event_stages = (Stages(self._weight.device) for _ in range(2))
        stages.begin()
        new = self._frame_features.missing(frames)
        video = self._frame_features.gather(frames, new, self._encode(new, stages))
        stages.lap(ENCODE_FRAMES)
        event_tokens = (
            None if self.events is None else _once(lambda: self._event_tokens(events, event_stages))
        )
        prompts = [self._prompt(question, video, event_tokens) for question in questions]
        return Reading(prompts, len(set(frames)) - len(new), stages, event_stages)

    def blank(self) -> tuple[Events, list[Frame]]:
        """A window that shows nothing."""
        size = self.target.preprocessor.size
        image = np.zeros((size, size, 3), np.uint8)
        return Events.empty(size, size), [Frame(0, image) for _ in range(FRAMES)]

    def _prompt(self, question: str, video: Tensor, event_tokens: Callable[[], Tensor] | None) -> Prompt:
        ids = self.target.prompt_ids(question)
        embeddings = self.target.model.embed_prompt(torch.tensor(ids, device=self._weight.device), video)
        event_ids = None if self.events is None else self.events.prompt_ids(question)
        return Prompt(embeddings[None], tuple(ids), event_tokens, event_ids)

    def _event_tokens(self, events: Events, stages: Stages) -> Tensor:
        """EventGPT's event tokens [E, D_event]."""
        assert self.events is not None, "Nobody reads events without an event model"
        assert self._event_pixels is not None
        stages.begin()
        images = self._event_pixels.drawn(events)
        stages.lap(RENDER)
        pixels = self._event_pixels.events(images)
        stages.lap(EVENT_PREPROCESS)
        tokens = self.events.encoder.encode(pixels)
        stages.lap(EVENT_FEATURES)
        return tokens

    def _encode(self, frames: Sequence[Frame], stages: Stages) -> Tensor:
        """Embeddings [F, tokens, D] of frames, of which there may be none."""
        images = [frame.image for frame in frames]
        pixels = self._pixels.frames(images) if images else None
        stages.lap(PREPROCESS)
        config = self.target.model.config
        tokens, size = config.vision.tokens, config.text.hidden_size
        if pixels is None:
            return self._weight.new_empty(0, tokens, size)
        return self.target.model.encode_frames(pixels).view(-1, tokens, size)


def _once(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A call that several drafters share, in threads of their own perhaps."""
    lock = Lock()
    found: list[Tensor] = []

    def first() -> Tensor:
        with lock:
            if not found:
                found.append(read())
            return found[0]

    return first
