"""The whole pipeline in one place: events + frames + a prompt in, a description out. No ROS."""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from evspec_ros.engines.selection import choose_engine
from evspec_ros.errors import CheckpointError, Failure, GenerationError
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
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.fit import HeadConfig, require_head_fits
from evspec_ros.networks.frame_features import FrameFeatures
from evspec_ros.networks.memory import Checkpoints, memory_map, require_memory
from evspec_ros.networks.quantisation import compute_dtype, kv_dtype, load_in
from evspec_ros.networks.tokenizer import (
    Compatibility,
    Tokenizer,
    compatibility,
    load_fitting_tokenizer,
    load_target_tokenizer,
)
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.prompts import DEFAULT_PROMPT, EVENT_PROMPT, TARGET_PROMPT, asked
from evspec_ros.sizes import FRAMES, KEPT_FRAMES, MAX_NEW_TOKENS, TREE_SIZE
from evspec_ros.speculative.costs import PrefillCost, measure_costs, measure_passes, measure_prefill
from evspec_ros.speculative.drafter import Drafter, DraftLimits, NoDrafter, PassCosts, Prompt
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.generate import generate_together
from evspec_ros.speculative.guarded import GuardedDrafter
from evspec_ros.speculative.registry import DEFAULT_DRAFTER, DraftModels, drafter_kind, make_drafter
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.statistics import DecodingStatistics
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.verification import Acceptance

if TYPE_CHECKING:
    from evspec_ros.training.online import OnlineDistiller, OnlineSettings

FRAMES_SECONDS = 1.0  # spread over this long, as the tiny checkpoints were taught
WINDOW_MS = 50.0  # EventGPT's task; it was made for at most 100


@dataclass(frozen=True)
class Limits:
    """How long, how freely and with how much drafting a description is written.

    temperature 0 is greedy; top_k 0 keeps all tokens. n_max: most drafted tokens in a row; tree_size: most
    draft nodes in all; within these a draft ends where its next node would cost more than it brings. p_min:
    drafting stops where its confidence falls below this. acceptance: one of choices.ACCEPTANCES.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    n_max: int = TREE_SIZE
    tree_size: int = TREE_SIZE
    p_min: float = 0.0
    acceptance: str = "exact"


@dataclass(frozen=True)
class Description:
    """What was said about one window, and what it cost.

    stamp_ns: ROS time of the window's end; window_ms: its length as asked for; tokens: emitted ids, the end
    token included. latency_ms: wall-clock milliseconds of each stage (see `_latencies`). prefill_slowdown:
    how much longer the window's prefill took with the event model beside it than alone. reused_frames: of the
    window's frames, those that were not encoded for it, as an earlier window had them. lossless: the text is
    what the target alone would have written. head_version: which draft head drafted, 0 being the one that was
    loaded, 1 the first that online distillation put into its place, and so on. draft_failure: why the drafter
    was left out of this text, which the target then wrote on alone, or why the head learnt nothing from the
    last ones; None where all went well.
    """

    stamp_ns: int
    window_ms: float
    prompt: str
    text: str
    tokens: tuple[int, ...]
    latency_ms: dict[str, float]
    prefill_slowdown: float
    reused_frames: int
    statistics: DecodingStatistics
    drafter: str
    lossless: bool
    head_version: int = 0
    draft_failure: Failure | None = None

    @property
    def draft_problem(self) -> str:
        """`draft_failure` in one line, "" without one."""
        return self.draft_failure.problem if self.draft_failure else ""

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; `stamp` in seconds."""
        return {
            "stamp": self.stamp_ns / 1e9,
            "window_ms": self.window_ms,
            "prompt": self.prompt,
            "text": self.text,
            "tokens": len(self.tokens),
            "latency_ms": {stage: round(ms, 3) for stage, ms in self.latency_ms.items()},
            "prefill_slowdown": round(self.prefill_slowdown, 3),
            "reused_frames": self.reused_frames,
            "mean_accepted_length": self.statistics.mean_accepted_length,
            "statistics": self.statistics.as_dict(),
            "drafter": self.drafter,
            "draft_problem": self.draft_problem,
            "head_version": self.head_version,
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


@dataclass(frozen=True, eq=False)
class EventReader:
    """The event model and what it reads with."""

    model: EventGpt
    tokenizer: Tokenizer
    preprocessor: ClipPreprocessor

    @classmethod
    def load(cls, path: Path, dtype: str, place: torch.device) -> EventReader:
        """From a checkpoint directory; raises CheckpointError."""
        model = load_in(dtype, load_eventgpt, path, place)
        tokenizer = load_fitting_tokenizer(path, model.config.text.vocab_size)
        return cls(model, tokenizer, ClipPreprocessor.from_config(load_preprocessor_config(path)))


class SceneDescriber:
    """Video-LLaVA describes, EventGPT and a draft head make it faster. One window at a time."""

    def __init__(
        self,
        target: VideoLlava,
        tokenizer: Tokenizer,
        frame_preprocessor: ClipPreprocessor,
        event_reader: EventReader | None = None,
        draft_head: Head | None = None,
        *,
        drafter: str = DEFAULT_DRAFTER,
        kv_precision: str = "auto",
        backend: str = "auto",
        overlap: bool = False,
        event_pooling: int = 1,
        online: OnlineSettings | None = None,
    ) -> None:
        """online: how the draft head goes on learning while it drafts; None: it does not. Raises
        GenerationError where the drafter has no head that could, CheckpointError where it is nothing without
        the event model's tokens and these are not the target's.
        """
        tokens = None if event_reader is None else compatibility(tokenizer, event_reader.tokenizer)
        if tokens is not None and drafter_kind(drafter).shares_tokens:
            _require_same_tokens(tokens, drafter)
        self._same_tokens = tokens is None or tokens.same
        self.drafter = drafter  # its name, and what of it is left out
        self.left_out = ""  # why, in a sentence
        if tokens is not None and not tokens.same and drafter == DEFAULT_DRAFTER and overlap:
            self.drafter += " without eventgpt"
            self.left_out = f"The event model writes no drafts of its own. {tokens.report}"
        cache_dtype = kv_dtype(kv_precision)
        chosen = choose_engine(target.decoder, target.lm_head, backend, cache_dtype)
        self.execution = str(chosen)  # what computes the target's passes, and why
        self._target = target
        self._tokenizer = tokenizer
        self._frame_preprocessor = frame_preprocessor
        self._event_reader = event_reader if drafter_kind(drafter).reads_events else None
        self._decoder = DecoderTarget(
            target.decoder,
            target.lm_head,
            target.config.text.end_tokens,
            tokenizer.decode,
            cache_dtype,
            chosen.engine,
        )
        self._drafting = drafter, draft_head, overlap, event_pooling
        self._warm = False
        self._online = self._distiller(online)
        self._drafters: list[Drafter] = []  # one for each prompt of a window
        self._sides: list[EventSide] = []  # theirs
        self._add_drafter()
        self._weight = target.lm_head.weight  # tells device and dtype
        self._frame_features = FrameFeatures(KEPT_FRAMES)
        self._costs: PassCosts | None = None
        self._prefill_cost: PrefillCost | None = None  # None where no event model runs beside it
        self._stream_ended = False

    @classmethod
    def load(
        cls,
        target: Path,
        event_model: Path | None,
        draft_head: Path | None,
        *,
        drafter: str = DEFAULT_DRAFTER,
        device: str = "cpu",
        dtype: str = "float32",
        kv_dtype: str = "auto",
        backend: str = "auto",
        overlap: str = "auto",
        event_pooling: int = 1,
        online: OnlineSettings | None = None,
    ) -> SceneDescriber:
        """From checkpoint directories, of which a drafter that does not need them reads none.

        dtype: one of `choices.PRECISIONS`; kv_dtype: one of KV_PRECISIONS, for the target's cache;
        backend: one of BACKENDS; overlap: one of OVERLAPS; event_pooling: as `EventSide`. Raises
        CheckpointError for a checkpoint that cannot be used or does not fit
        the others, for an unknown precision and, before weights are read, where the memory does not suffice;
        GenerationError for an unknown drafter or one whose head is missing; EngineError for a backend that
        cannot run the target.
        """
        kind = drafter_kind(drafter)
        place = compute_device(device)
        number = compute_dtype(dtype, place)
        event_model = event_model if kind.reads_events else None
        draft_head = draft_head if kind.head_kind else None
        beside = place.type == "cuda" if overlap == "auto" else overlap == "on"
        sizes = Checkpoints(
            read_video_llava_config(target),
            None if event_model is None else read_eventgpt_config(event_model),
            None if draft_head is None else read_draft_head_config(draft_head),
            event_text=kind.has_event_text(beside),
        )
        if sizes.draft_head is not None and draft_head is not None:
            _require_kind(sizes.draft_head, draft_head, drafter, kind.head_kind)
            event_size = None if sizes.event_model is None else sizes.event_model.text.hidden_size
            require_head_fits(sizes.draft_head, sizes.target.text, event_size, f"The draft head {draft_head}")
        require_memory(memory_map(sizes, dtype, kv_dtype, place), place)
        model = load_in(dtype, load_video_llava, target, place)
        tokenizer = load_target_tokenizer(target, model.config)
        frames = ClipPreprocessor.from_config(load_preprocessor_config(target))
        reader = None if event_model is None else EventReader.load(event_model, dtype, place)
        head = None if draft_head is None else load_draft_head(draft_head, number, place)
        return cls(
            model, tokenizer, frames, reader, head, drafter=drafter, kv_precision=kv_dtype, backend=backend,
            overlap=beside, event_pooling=event_pooling, online=online,
        )  # fmt: skip

    def warm_up(self) -> None:
        """Describe a blank window, so that all is compiled and allocated before the first real one, and
        measure what passes and drafts cost here. The first description does it, if nobody did before.
        """
        self._warm = True  # or the blank window would ask for it
        try:
            self._measure()
        except BaseException:
            self._warm = False
            raise

    def _measure(self) -> None:
        size = self._frame_preprocessor.size
        blank = np.zeros((size, size, 3), np.uint8)
        window = Events.empty(size, size), [Frame(0, blank) for _ in range(FRAMES)]
        self.describe(*window, stamp_ns=0)
        (prompt,) = self._prompts(*window, (DEFAULT_PROMPT,), _Stages(self._weight.device), {})
        if not isinstance(self._drafters[0], NoDrafter):
            drafter = GuardedDrafter(self._drafters[0])
            self._costs = measure_costs(self._decoder, drafter, prompt, measure_passes(self._decoder, prompt))
        if self._sides[0].overlap:
            self._prefill_cost = measure_prefill(self._decoder, prompt)
        self.forget_stream()
        self._decoder.forget()
        if self._online is not None and self._online.start():  # blank windows teach nothing
            self._drafters = [self._online.observed(drafter) for drafter in self._drafters]

    def forget_stream(self) -> None:
        """Let the next window begin a stream: what was said of earlier ones is no draft for it."""
        self._stream_ended = True

    def require_room(self, prompts: Sequence[str], limits: Limits) -> None:
        """Raise GenerationError where an answer within the limits to one of the prompts needs more positions
        than the target has, and for a prompt that holds what is no text.
        """
        video = FRAMES * self._target.config.vision.tokens
        for prompt in prompts:
            self._require_positions(len(_target_ids(self._tokenizer, prompt)) - 1 + video, limits)

    def _require_positions(self, rows: int, limits: Limits) -> None:
        """Raise GenerationError where a prompt of so many rows leaves too few positions for an answer."""
        positions = self._target.config.text.max_positions
        left = positions - rows - limits.tree_size
        if limits.max_new_tokens > left:
            raise GenerationError(
                f"max_new_tokens is {limits.max_new_tokens} and {max(0, left)} is the most that fits: of the "
                f"target's {positions} positions the prompt takes {rows} and a draft up to "
                f"{limits.tree_size} (tree_size); lower max_new_tokens or shorten the prompt."
            )

    def describe(
        self,
        events: Events,
        frames: Sequence[Frame],
        *,
        prompt: str = DEFAULT_PROMPT,
        stamp_ns: int,
        window_ms: float = WINDOW_MS,
        limits: Limits = Limits(),
        on_text: Callable[[str], None] = lambda _: None,
    ) -> Description:
        """`describe_all` with one prompt; on_text is called with the text so far whenever it grows."""
        (description,) = self.describe_all(
            events,
            frames,
            prompts=(prompt,),
            stamp_ns=stamp_ns,
            window_ms=window_ms,
            limits=limits,
            on_text=lambda _, text: on_text(text),
        )
        return description

    def describe_all(
        self,
        events: Events,
        frames: Sequence[Frame],
        *,
        prompts: Sequence[str],
        stamp_ns: int,
        window_ms: float = WINDOW_MS,
        limits: Limits = Limits(),
        on_text: Callable[[int, str], None] = lambda *_: None,
    ) -> tuple[Description, ...]:
        """Answer prompts about one window: its events (there may be none) and its frames (at least one,
        oldest first). The window is read once, and the answers are written together, each as it would be
        alone; without a prompt there is no answer.

        A frame that an earlier window had too is not encoded again, and a prompt that begins as the last one
        did is read from where they part. A drafter that raises anything is left out of its text and asked
        again in the next window. on_text is called with a prompt's number and its text so far whenever that
        grows. Raises GenerationError without frames, for a prompt that is too long or holds what is no text,
        and for impossible limits.
        """
        if not prompts:
            return ()
        if not frames:
            raise GenerationError("There is no frame to describe; wait until the RGB camera has sent one.")
        if not self._warm:
            self.warm_up()
        if self._online is not None and self._online.take():
            self._renew_drafters()
        while len(self._drafters) < len(prompts):
            self._add_drafter()
        if self._stream_ended:
            self._stream_ended = False
            for drafter in self._drafters:
                drafter.forget()
        stages = _Stages(self._weight.device)
        event_stages: dict[str, float] = {}
        known = len(self._frame_features.missing(frames))
        inputs = self._prompts(events, frames, prompts, stages, event_stages)
        for read in inputs:
            self._require_positions(read.embeddings.shape[1], limits)
        written: list[list[int]] = [[] for _ in prompts]
        drafters = [GuardedDrafter(drafter) for drafter in self._drafters[: len(prompts)]]

        def on_tokens(number: int, tokens: list[int]) -> None:
            written[number] += tokens
            on_text(number, self._tokenizer.decode(written[number]))

        with nullcontext() if self._online is None else self._online.writing():
            generations = generate_together(
                self._decoder,
                drafters,
                inputs,
                max_new_tokens=limits.max_new_tokens,
                sampling=Sampling(limits.temperature, limits.top_p, limits.top_k),
                seed=limits.seed,
                limits=DraftLimits(limits.n_max, limits.tree_size, limits.p_min, self._costs),
                acceptance=Acceptance(limits.acceptance),
                on_tokens=on_tokens,
            )
        stages.lap("generate")
        side = self._sides[0]
        learning = None if self._online is None else self._online.take_failure()
        cost = self._prefill_cost
        slowdown = cost.slowdown([found.statistics for found in generations]) if cost else 1.0
        return tuple(
            Description(
                stamp_ns=stamp_ns,
                window_ms=window_ms,
                prompt=prompt,
                text=generation.text,
                tokens=generation.tokens,
                latency_ms=_latencies(stages.laps, event_stages, generation.statistics, side),
                prefill_slowdown=slowdown,
                reused_frames=len(set(frames)) - known,
                statistics=generation.statistics,
                drafter=self.drafter,
                lossless=generation.lossless,
                head_version=0 if self._online is None else self._online.version,
                draft_failure=drafter.failure or learning,
            )
            for prompt, generation, drafter in zip(prompts, generations, drafters, strict=True)
        )

    def _add_drafter(self) -> None:
        """One more, for one more prompt."""
        name, head, overlap, pooling = self._drafting
        side = EventSide(overlap=overlap, pooling=pooling)
        model = None if self._event_reader is None else self._event_reader.model
        drafter = make_drafter(name, self._decoder, DraftModels(head, model, side, self._same_tokens))
        if self._online is not None and self._warm:
            drafter = self._online.observed(drafter)
        self._drafters.append(drafter)
        self._sides.append(side)

    def _renew_drafters(self) -> None:
        """Engines hold copies of a head's weights."""
        self._drafters.clear()
        self._sides.clear()
        self._add_drafter()

    def _distiller(self, settings: OnlineSettings | None) -> OnlineDistiller | None:
        """What teaches the head, for as long as the describer lives."""
        name, head, _, pooling = self._drafting
        if settings is None:
            return None
        if not isinstance(head, DraftHead) or self._event_reader is None:
            raise GenerationError(
                f"The drafter {name!r} has no head that could learn while it drafts; switch online "
                "distillation off or choose eagle, eagle2, eagle3 or combined."
            )
        from evspec_ros.training.features import ModelPair
        from evspec_ros.training.online import OnlineDistiller

        nothing = torch.empty(0, dtype=torch.int64, device=self._target.lm_head.weight.device)
        pair = ModelPair(self._target, self._event_reader.model, nothing, (nothing, nothing))
        distiller = OnlineDistiller(pair, head, settings, pooling)
        weakref.finalize(self, distiller.close)
        return distiller

    @torch.inference_mode()
    def _prompts(
        self,
        events: Events,
        frames: Sequence[Frame],
        questions: Sequence[str],
        stages: _Stages,
        event_stages: dict[str, float],
    ) -> list[Prompt]:
        """What the target reads for each question; the events are read when the first drafter wants them."""
        new = self._frame_features.missing(frames)
        video = self._frame_features.gather(frames, new, self._encode(new, stages))
        stages.lap("encode_frames")
        reader = self._event_reader
        read = None if reader is None else _once(lambda: self._event_features(events, event_stages))
        prompts = []
        for question in questions:
            ids = _target_ids(self._tokenizer, question)
            places = torch.tensor(ids, device=self._weight.device)
            embeddings = self._target.embed_prompt(places, video)[None]
            event_ids = None if reader is None else _event_ids(reader.tokenizer, question)
            prompts.append(Prompt(embeddings, tuple(ids), read, event_ids))
        return prompts

    def _event_features(self, events: Events, laps: dict[str, float]) -> Tensor:
        """EventGPT's event tokens [E, D_event]; how long each step took goes into laps."""
        assert self._event_reader is not None, "Nobody reads events without an event model"
        stages = _Stages(self._weight.device, laps)
        images = render_event_images(events)
        stages.lap("render")
        pixels = self._tensor(self._event_reader.preprocessor(list(images)))
        stages.lap("event_preprocess")
        features = self._event_reader.model.encode_events(pixels)
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


def _latencies(
    laps: dict[str, float], event_laps: dict[str, float], statistics: DecodingStatistics, side: EventSide
) -> dict[str, float]:
    """The stages by the names that are published.

    preprocess, encode_frames, event_wait, prefill and decode follow each other; draft and verify are parts of
    decode, total is everything. event_model is what the event model did, render, event_preprocess and
    event_features among it; of that, event_wait was waited for and event_hidden was not.
    """
    times = side.times
    read = {name: event_laps.get(name, 0.0) for name in ("render", "event_preprocess", "event_features")}
    in_prefill, in_draft = (0.0, times.waited_ms) if side.overlap else (times.waited_ms, 0.0)
    return {
        **read,
        "event_model": times.busy_ms,
        "event_hidden": times.hidden_ms,
        "preprocess": laps["preprocess"],
        "encode_frames": laps["encode_frames"],
        "event_wait": times.waited_ms,
        "prefill": statistics.prefill_ms - in_prefill,
        "draft": statistics.draft_ms - in_draft,
        "verify": statistics.verify_ms,
        "decode": statistics.decode_ms - in_draft,
        "total": sum(laps.values()),
    }


def _target_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    """The target's prompt; of its special tokens the template's alone, whatever the question holds."""
    return tokenizer.encode(TARGET_PROMPT, bos=True) + tokenizer.encode_plain(asked(question))


def _event_ids(tokenizer: Tokenizer, question: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The event model's prompt around its event tokens, likewise."""
    before, after = EVENT_PROMPT
    behind = tokenizer.encode(after) + tokenizer.encode_plain(asked(question))
    return tuple(tokenizer.encode(before, bos=True)), tuple(behind)


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


def _require_same_tokens(found: Compatibility, drafter: str) -> None:
    """Raise CheckpointError where the event model's tokens cannot be drafts for the target."""
    if not found.same:
        raise CheckpointError(
            f"The drafter {drafter!r} cannot be used, choose one that hands no tokens over, such as eagle3. "
            f"{found.report}"
        )


def _require_kind(head: HeadConfig, path: Path, drafter: str, wanted: str | None) -> None:
    """Raise CheckpointError for a head of another kind than the drafter's."""
    if head.kind != wanted:
        raise CheckpointError(
            f"{path} holds a draft head of kind {head.kind!r} and the drafter {drafter!r} needs one of kind "
            f"{wanted!r}; give such a one or choose another drafter."
        )


def compute_device(name: str) -> torch.device:
    """cpu, cuda or cuda:N, where there is such a thing; raises CheckpointError for all else."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise CheckpointError(f"There is no device {name!r} for the networks; choose cpu, cuda or cuda:N.")
    if name == "cpu":
        return torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise CheckpointError(
            f"The device {name} was asked for and torch sees no GPU; choose cpu or install torch for CUDA."
        )
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        raise CheckpointError(
            f"The device {name} was asked for and torch sees GPUs up to cuda:{count - 1}; choose one of them."
        )
    return torch.device(name)
