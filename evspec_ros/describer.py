"""The whole pipeline in one place: events + frames + a prompt in, a description out. No ROS."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evspec_ros.engines.selection import choose_engine
from evspec_ros.errors import CheckpointError, GenerationError
from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.types import Events
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.frames.types import Frame
from evspec_ros.networks.checkpoints import (
    Head,
    load_draft_head,
    load_eventgpt,
    load_preprocessor_config,
    load_video_llava,
    read_draft_head_config,
    read_eventgpt_config,
    read_video_llava_config,
)
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.frame_features import FrameFeatures
from evspec_ros.networks.memory import Checkpoints, memory_map, require_memory
from evspec_ros.networks.quantisation import compute_dtype, kv_dtype, load_in
from evspec_ros.networks.tokenizer import Tokenizer, load_target_tokenizer
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.prompts import DEFAULT_PROMPT, target_prompt
from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.generate import generate
from evspec_ros.speculative.registry import DraftModels, make_drafter
from evspec_ros.speculative.statistics import DecodingStatistics
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.verification import Acceptance

FRAMES = 8  # Video-LLaVA reads this many
KEPT_FRAMES = 4 * FRAMES  # whose embeddings are kept for the next windows
FRAMES_SECONDS = 1.0  # spread over this long, as the tiny checkpoints were taught
WINDOW_MS = 50.0  # EventGPT's task; it was made for at most 100


@dataclass(frozen=True)
class Limits:
    """How long, how freely and with how much drafting a description is written.

    temperature 0 is greedy; top_k 0 keeps all tokens. n_max: drafted tokens in a row; tree_size: draft nodes
    in all; p_min: drafting stops where its confidence falls below this. acceptance:
    one of choices.ACCEPTANCES.
    """

    max_new_tokens: int = 80
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    n_max: int = 8
    tree_size: int = 8
    p_min: float = 0.0
    acceptance: str = "exact"


@dataclass(frozen=True)
class Description:
    """What was said about one window, and what it cost.

    stamp_ns: ROS time of the window's end; window_ms: its length as asked for; tokens: emitted ids, the end
    token included. latency_ms: wall-clock milliseconds of each stage (draft and verify are parts of decode,
    and total is everything). reused_frames: of the window's frames, those that were not encoded for it, as an
    earlier window had them. lossless: the text is what the target alone would have written.
    """

    stamp_ns: int
    window_ms: float
    prompt: str
    text: str
    tokens: tuple[int, ...]
    latency_ms: dict[str, float]
    reused_frames: int
    statistics: DecodingStatistics
    drafter: str
    lossless: bool

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; `stamp` in seconds."""
        return {
            "stamp": self.stamp_ns / 1e9,
            "window_ms": self.window_ms,
            "prompt": self.prompt,
            "text": self.text,
            "tokens": len(self.tokens),
            "latency_ms": {stage: round(ms, 3) for stage, ms in self.latency_ms.items()},
            "reused_frames": self.reused_frames,
            "mean_accepted_length": self.statistics.mean_accepted_length,
            "statistics": self.statistics.as_dict(),
            "drafter": self.drafter,
            "lossless": self.lossless,
        }


@dataclass
class _Stages:
    """Lap times by name, in milliseconds; on a GPU a lap ends when its work has ended."""

    device: torch.device
    laps: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.laps[name] = (now - self._last) * 1e3
        self._last = now


class SceneDescriber:
    """Video-LLaVA describes, EventGPT and a draft head make it faster. One description at a time."""

    def __init__(
        self,
        target: VideoLlava,
        tokenizer: Tokenizer,
        frame_preprocessor: ClipPreprocessor,
        event_model: EventGpt | None = None,
        event_preprocessor: ClipPreprocessor | None = None,
        draft_head: Head | None = None,
        drafter: str = "eagle",
        kv_precision: str = "auto",
        backend: str = "auto",
    ) -> None:
        cache_dtype = kv_dtype(kv_precision)
        chosen = choose_engine(target.decoder, target.lm_head, backend, cache_dtype)
        self.execution = str(chosen)  # what computes the target's passes, and why
        self._target = target
        self._tokenizer = tokenizer
        self._frame_preprocessor = frame_preprocessor
        self._event_model = event_model
        self._event_preprocessor = event_preprocessor
        self._decoder = DecoderTarget(
            target.decoder, target.lm_head, (tokenizer.eos,), tokenizer.decode, cache_dtype, chosen.engine
        )
        self._drafter = make_drafter(
            drafter, self._decoder, DraftModels(draft_head, event_model, EventSide())
        )
        self._weight = target.lm_head.weight  # tells device and dtype
        self._frame_features = FrameFeatures(KEPT_FRAMES)

    @classmethod
    def load(
        cls,
        target: Path,
        event_model: Path | None,
        draft_head: Path | None,
        *,
        drafter: str = "eagle",
        device: str = "cpu",
        dtype: str = "float32",
        kv_dtype: str = "auto",
        backend: str = "auto",
    ) -> SceneDescriber:
        """From checkpoint directories; `none` drafts nothing and reads the target alone.

        dtype: one of `choices.PRECISIONS`; kv_dtype: one of KV_PRECISIONS, for the target's cache;
        backend: one of BACKENDS. Raises CheckpointError for a checkpoint that cannot be used or does not fit
        the others, for an unknown precision and, before weights are read, where the memory does not suffice;
        GenerationError for an unknown drafter or one whose head is missing; EngineError for a backend that
        cannot run the target.
        """
        place = compute_device(device)
        number = compute_dtype(dtype, place)
        alone = drafter == "none" or event_model is None or draft_head is None
        sizes = Checkpoints(
            read_video_llava_config(target),
            None if event_model is None or alone else read_eventgpt_config(event_model),
            None if draft_head is None or alone else read_draft_head_config(draft_head),
        )
        require_memory(memory_map(sizes, dtype, kv_dtype, place), place)
        model = load_in(dtype, load_video_llava, target, place)
        tokenizer = load_target_tokenizer(target, model.config)
        frames = ClipPreprocessor.from_config(load_preprocessor_config(target))
        if drafter == "none" or event_model is None or draft_head is None:
            return cls(model, tokenizer, frames, drafter=drafter, kv_precision=kv_dtype, backend=backend)
        events = load_in(dtype, load_eventgpt, event_model, place)
        head = load_draft_head(draft_head, number, place)
        if head.config.event_size != events.config.text.hidden_size:
            raise CheckpointError(
                f"The draft head {draft_head} was made for event features of {head.config.event_size} "
                f"values and {event_model} gives {events.config.text.hidden_size}; use the head that was "
                "trained for this event model."
            )
        event_frames = ClipPreprocessor.from_config(load_preprocessor_config(event_model))
        return cls(model, tokenizer, frames, events, event_frames, head, drafter, kv_dtype, backend)

    def warm_up(self) -> None:
        """Describe a blank window, so that all is compiled and allocated before the first real one."""
        size = self._frame_preprocessor.size
        blank = np.zeros((size, size, 3), np.uint8)
        self.describe(Events.empty(size, size), [Frame(0, blank) for _ in range(FRAMES)], stamp_ns=0)

    def describe(
        self,
        events: Events,
        frames: Sequence[Frame],
        *,
        prompt: str = DEFAULT_PROMPT,
        stamp_ns: int,
        window_ms: float = WINDOW_MS,
        limits: Limits = Limits(),
        on_text: Callable[[str], None] | None = None,
    ) -> Description:
        """Describe one window: its events (there may be none) and its frames (at least one, oldest first).

        A frame that an earlier window had too is not encoded again, and a prompt that begins as the last one
        did is read from where they part.
        on_text is called with the text so far whenever it grows. Raises GenerationError without frames, for a
        prompt that is too long and for impossible limits.
        """
        if not frames:
            raise GenerationError("There is no frame to describe; wait until the RGB camera has sent one.")
        stages = _Stages(self._weight.device)
        with torch.inference_mode():
            seen = self._event_features(events, stages)
            new = self._frame_features.missing(frames)
            video = self._frame_features.gather(frames, new, self._encode(new, stages))
            stages.lap("encode_frames")
            ids = self._tokenizer.encode(target_prompt(prompt), bos=True)
            places = torch.tensor(ids, device=self._weight.device)
            embeddings = self._target.embed_prompt(places, video)[None]
        written: list[int] = []

        def on_tokens(tokens: list[int]) -> None:
            written.extend(tokens)
            if on_text is not None:
                on_text(self._tokenizer.decode(written))

        generation = generate(
            self._decoder,
            self._drafter,
            Prompt(embeddings, tuple(ids), None if seen is None else lambda: seen),
            max_new_tokens=limits.max_new_tokens,
            temperature=limits.temperature,
            top_p=limits.top_p,
            top_k=limits.top_k,
            seed=limits.seed,
            limits=DraftLimits(limits.n_max, limits.tree_size, limits.p_min),
            acceptance=Acceptance(limits.acceptance),
            on_tokens=on_tokens,
        )
        stages.lap("generate")
        return Description(
            stamp_ns=stamp_ns,
            window_ms=window_ms,
            prompt=prompt,
            text=generation.text,
            tokens=generation.tokens,
            latency_ms=_latencies(stages.laps, generation.statistics),
            reused_frames=len(set(frames)) - len(new),
            statistics=generation.statistics,
            drafter=self._drafter.name,
            lossless=generation.lossless,
        )

    def _event_features(self, events: Events, stages: _Stages) -> Tensor | None:
        """EventGPT's pooled event tokens [E, D_event], or None where nobody drafts from them."""
        if self._event_model is None or self._event_preprocessor is None:
            return None
        images = render_event_images(events)
        stages.lap("render")
        pixels = self._tensor(self._event_preprocessor(list(images)))
        stages.lap("event_preprocess")
        features = self._event_model.encode_events(pixels)
        stages.lap("event_features")
        return features

    def _encode(self, frames: Sequence[Frame], stages: _Stages) -> Tensor:
        """Embeddings [F, tokens, D] of frames, of which there may be none."""
        images = [frame.image for frame in frames]
        pixels = self._tensor(self._frame_preprocessor(images)) if images else None
        stages.lap("preprocess")
        tokens, size = self._target.config.vision.tokens, self._target.config.text.hidden_size
        if pixels is None:
            return self._weight.new_empty(0, tokens, size)
        return self._target.encode_frames(pixels).view(-1, tokens, size)

    def _tensor(self, pixels: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
        return torch.from_numpy(pixels).to(self._weight.device, self._weight.dtype)


def _latencies(laps: dict[str, float], statistics: DecodingStatistics) -> dict[str, float]:
    """The stages by the names that are published."""
    return {
        "render": laps.get("render", 0.0),
        "preprocess": laps["preprocess"] + laps.get("event_preprocess", 0.0),
        "event_features": laps.get("event_features", 0.0),
        "encode_frames": laps["encode_frames"],
        "prefill": statistics.prefill_ms,
        "draft": statistics.draft_ms,
        "verify": statistics.verify_ms,
        "decode": statistics.decode_ms,
        "total": sum(laps.values()),
    }


def compute_device(name: str) -> torch.device:
    """cpu, cuda or cuda:N as torch knows it; CheckpointError where there is no such thing."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CheckpointError(f"There is no device {name!r}; choose cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CheckpointError(
            "The device cuda was asked for and torch sees no GPU; choose cpu or install torch for CUDA."
        )
    return device
