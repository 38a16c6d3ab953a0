"""From checkpoints to a SceneDescriber: what fits what, precision, memory, which drafter, which engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evspec_ros.describer import SceneDescriber
from evspec_ros.engines.drafter import DrafterEngines, drafter_engines
from evspec_ros.engines.selection import choose_engine
from evspec_ros.errors import CheckpointError, GenerationError
from evspec_ros.frames.clip import ClipPreprocessor
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
from evspec_ros.networks.devices import compute_device
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.fit import HeadConfig, require_head_fits
from evspec_ros.networks.memory import Checkpoints, memory_map, require_memory
from evspec_ros.networks.quantisation import compute_dtype, load_in
from evspec_ros.networks.quantisation import kv_dtype as dtype_of_cache
from evspec_ros.networks.tokenizer import compatibility, load_fitting_tokenizer, load_target_tokenizer
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.reading import EventReader, TargetReader, WindowReader
from evspec_ros.speculative.drafters import Drafters
from evspec_ros.speculative.learner import Learner, NoLearner
from evspec_ros.speculative.registry import DEFAULT_DRAFTER, DraftModels, drafter_kind, make_drafter
from evspec_ros.speculative.target import DecoderTarget

# From target, event model and the head that drafts, with the pooling of the event tokens that it reads.
MakeLearner = Callable[[VideoLlava, EventGpt, DraftHead, int], Learner]


def load_describer(
    target: Path,
    event_model: Path | None,
    draft_head: Path | None,
    *,
    drafter: str = DEFAULT_DRAFTER,
    device: str = "cpu",
    dtype: str = "float32",
    kv_dtype: str = "auto",
    backend: str = "auto",
    drafter_backend: str = "auto",
    overlap: str = "auto",
    event_pooling: int = 1,
    learner: MakeLearner | None = None,
) -> SceneDescriber:
    """A describer from checkpoint directories, of which a drafter that does not need them reads none.

    dtype: one of `choices.PRECISIONS`; kv_dtype: one of KV_PRECISIONS, for the target's cache; backend:
    one of BACKENDS, for the target; drafter_backend: one of DRAFTER_BACKENDS; overlap: one of OVERLAPS;
    event_pooling: as `EventSide`; learner: makes what improves the head while it drafts.
    Raises CheckpointError for a checkpoint that cannot be used or does not fit the
    others, for an unknown precision and, before weights are read, where the memory does not suffice;
    GenerationError for an unknown drafter, one whose head is missing and one that has no head to improve;
    EngineError for a backend that cannot run the target or the drafter.
    """
    kind = drafter_kind(drafter)
    place = compute_device(device)
    number = compute_dtype(dtype, place)
    event_model = event_model if kind.reads_events else None
    draft_head = draft_head if kind.head_kinds else None
    overlaps = place.type == "cuda" if overlap == "auto" else overlap == "on"
    sizes = Checkpoints(
        read_video_llava_config(target),
        None if event_model is None else read_eventgpt_config(event_model),
        None if draft_head is None else read_draft_head_config(draft_head),
        event_text=kind.has_event_text(overlaps),
    )
    if sizes.draft_head is not None and draft_head is not None:
        _require_kind(sizes.draft_head, draft_head, drafter, kind.head_kinds)
        event_size = None if sizes.event_model is None else sizes.event_model.text.hidden_size
        require_head_fits(sizes.draft_head, sizes.target.text, event_size, f"The draft head {draft_head}")
    require_memory(memory_map(sizes, dtype, kv_dtype, place), place)

    model = load_in(dtype, load_video_llava, target, place)
    target_reader = TargetReader(model, load_target_tokenizer(target, model.config), _preprocessor(target))
    event_model_read = None if event_model is None else load_in(dtype, load_eventgpt, event_model, place)
    head = None if draft_head is None else load_draft_head(draft_head, number, place)
    engines = drafter_engines(drafter_backend, (event_model_read, head))
    event_reader = None
    if event_model is not None and event_model_read is not None:
        tokenizer = load_fitting_tokenizer(event_model, event_model_read.config.text.vocab_size)
        encoder = engines.encoder(event_model_read)
        event_reader = EventReader(event_model_read, encoder, tokenizer, _preprocessor(event_model))

    cache_dtype = dtype_of_cache(kv_dtype)
    chosen = choose_engine(model.decoder, model.lm_head, backend, cache_dtype)
    end_tokens, decode = model.config.text.end_tokens, target_reader.tokenizer.decode
    decoder = DecoderTarget(model.decoder, model.lm_head, end_tokens, decode, cache_dtype, chosen.engine)
    taught = _learner(learner, drafter, model, event_reader, head, event_pooling)
    drafters = _drafters(
        drafter, decoder, target_reader, event_reader, head, engines, taught, overlaps, event_pooling
    )
    reader = WindowReader(target_reader, event_reader)
    return SceneDescriber(reader, decoder, drafters, taught, execution=str(chosen), drafting=str(engines))


def _preprocessor(path: Path) -> ClipPreprocessor:
    return ClipPreprocessor.from_config(load_preprocessor_config(path))


def _drafters(
    name: str,
    target: DecoderTarget,
    target_reader: TargetReader,
    event_reader: EventReader | None,
    head: Head | None,
    engines: DrafterEngines,
    learner: Learner,
    overlap: bool,
    pooling: int,
) -> Drafters:
    """Raises CheckpointError where the drafter is nothing without the event model's tokens and these mean
    something else to the target; where it is something without them, it goes on without.
    """
    same_tokens, shown, left_out = True, name, ""
    if event_reader is not None:
        tokens = compatibility(target_reader.tokenizer, event_reader.tokenizer)
        same_tokens = tokens.same
        if not same_tokens and drafter_kind(name).shares_tokens:
            raise CheckpointError(
                f"The drafter {name!r} cannot be used, choose one that hands no tokens over, such as eagle3. "
                f"{tokens.report}"
            )
        if not same_tokens and name == DEFAULT_DRAFTER and overlap:
            shown = f"{name} without eventgpt"
            left_out = f"The event model writes no drafts of its own. {tokens.report}"
    event_model = None if event_reader is None else event_reader.model
    return Drafters(
        shown,
        lambda side: make_drafter(name, target, DraftModels(head, event_model, side, same_tokens, engines)),
        learner,
        overlap=overlap,
        pooling=pooling,
        left_out=left_out,
    )


def _learner(
    make: MakeLearner | None,
    drafter: str,
    target: VideoLlava,
    event_reader: EventReader | None,
    head: Head | None,
    pooling: int,
) -> Learner:
    if make is None:
        return NoLearner()
    if not isinstance(head, DraftHead) or event_reader is None:
        raise GenerationError(
            f"The drafter {drafter!r} has no head that could learn while it drafts; switch online "
            "distillation off or choose eagle, eagle2, eagle3 or combined."
        )
    return make(target, event_reader.model, head, pooling)


def _require_kind(head: HeadConfig, path: Path, drafter: str, wanted: tuple[str, ...]) -> None:
    """Raise CheckpointError for a head of another kind than the drafter's."""
    if head.kind not in wanted:
        raise CheckpointError(
            f"{path} holds a draft head of kind {head.kind!r} and the drafter {drafter!r} needs one of kind "
            f"{' or '.join(map(repr, wanted))}; give such a one or choose another drafter."
        )
