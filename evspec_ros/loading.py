"""From checkpoints to a SceneDescriber: what fits what, precision, memory, which drafter, which engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evspec_ros.choices import AUTO_DRAFTER
from evspec_ros.describer import SceneDescriber
from evspec_ros.engines.drafter import DrafterEngines, drafter_engines
from evspec_ros.engines.selection import choose_engine
from evspec_ros.errors import CheckpointError, GenerationError
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.heads import DraftPlan, begin_head, load_head, plan_drafting
from evspec_ros.networks.checkpoints import (
    Head,
    load_eventgpt,
    load_preprocessor_config,
    load_video_llava,
    read_eventgpt_config,
    read_video_llava_config,
)
from evspec_ros.networks.devices import compute_device
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.head_store import fingerprints
from evspec_ros.networks.memory import Checkpoints, memory_map, require_memory
from evspec_ros.networks.quantisation import compute_dtype, load_in
from evspec_ros.networks.quantisation import kv_dtype as dtype_of_cache
from evspec_ros.networks.tokenizer import compatibility, load_fitting_tokenizer, load_target_tokenizer
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.reading import EventReader, TargetReader, WindowReader
from evspec_ros.speculative.drafter import Drafter
from evspec_ros.speculative.drafters import A_HEAD, Drafters
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.learner import LEARNING_HEADS, Beginner, Learner, NoLearner
from evspec_ros.speculative.registry import DEFAULT_DRAFTER, DraftModels, drafter_kind, make_drafter
from evspec_ros.speculative.target import DecoderTarget

# From target, event model and the head that is to learn.
MakeLearner = Callable[[VideoLlava, EventGpt, Beginner], Learner]


def load_describer(
    target: Path,
    event_model: Path | None,
    draft_head: Path | None,
    *,
    drafter: str = AUTO_DRAFTER,
    device: str = "cpu",
    dtype: str = "float32",
    kv_dtype: str = "auto",
    exact_half: bool = False,
    backend: str = "auto",
    drafter_backend: str | DrafterEngines = "auto",
    overlap: str = "auto",
    event_pooling: int = 1,
    draft_head_dir: Path | None = None,
    learner: MakeLearner | None = None,
) -> SceneDescriber:
    """A describer from checkpoint directories, of which a drafter that does not need them reads none.

    draft_head: its directory, or NEW_HEAD for one that begins from nothing, or from what an earlier start
    left in draft_head_dir (None: the user's own folder for these models). drafter: one of DRAFTERS, or
    AUTO_DRAFTER, which goes without a head that is missing or cannot be used, and says so. dtype: one of
    `choices.PRECISIONS`; kv_dtype: one of KV_PRECISIONS, for the target's cache; exact_half: as
    `choose_engine`; backend: one of BACKENDS, for the target; drafter_backend: one of DRAFTER_BACKENDS, or
    engines; overlap: one of OVERLAPS; event_pooling: as `EventSide`; learner: makes what improves the head
    while it drafts.

    Raises CheckpointError for a checkpoint that cannot be used or does not fit the others, for an unknown
    precision and, before weights are read, where the memory does not suffice; GenerationError for an unknown
    drafter, one whose head is missing and one that has no head to improve; EngineError for a backend that
    cannot run the target or the drafter.
    """
    place = compute_device(device)
    number = compute_dtype(dtype, place)
    overlaps = place.type == "cuda" if overlap == "auto" else overlap == "on"
    asked = overlap == "on"
    events_config = None if event_model is None else read_eventgpt_config(event_model)
    sizes = Checkpoints(read_video_llava_config(target), events_config)
    plan = plan_drafting(drafter, draft_head, sizes)
    if not _reads_events(plan, overlaps):
        event_model = None
    sizes = replace(
        sizes,
        event_model=None if event_model is None else sizes.event_model,
        draft_head=plan.config,
        event_text=drafter_kind(plan.drafter).has_event_text(
            overlaps and (asked or plan.new or plan.config is None)
        ),
        learning=learner is not None,
    )
    require_memory(memory_map(sizes, dtype, kv_dtype, place), place)

    model = load_in(dtype, load_video_llava, target, place)
    target_reader = TargetReader(model, load_target_tokenizer(target, model.config), _preprocessor(target))
    events = None if event_model is None else load_in(dtype, load_eventgpt, event_model, place)
    beginner = None
    if plan.new and event_model is not None:
        pair = fingerprints(target, event_model, target_reader.tokenizer)
        beginner, plan = begin_head(plan, draft_head_dir, pair, sizes, event_pooling, number, place)
        head: Head | None = beginner.head
    else:
        head, plan = load_head(plan, number, place)
        if isinstance(head, LEARNING_HEADS):
            beginner = Beginner(head, event_pooling)
    engines = (
        drafter_backend
        if isinstance(drafter_backend, DrafterEngines)
        else drafter_engines(drafter_backend, (events, head), learns=learner is not None)
    )
    event_reader = None
    if event_model is not None and events is not None:
        tokenizer = load_fitting_tokenizer(event_model, events.config.text.vocab_size)
        event_reader = EventReader(events, engines.encoder(events), tokenizer, _preprocessor(event_model))

    cache_dtype = dtype_of_cache(kv_dtype)
    chosen = choose_engine(model.decoder, model.lm_head, backend, cache_dtype, exact_half=exact_half)
    end_tokens, decode = model.config.text.end_tokens, target_reader.tokenizer.decode
    decoder = DecoderTarget(model.decoder, model.lm_head, end_tokens, decode, cache_dtype, chosen.engine)
    taught, plan = _learner(learner, plan, model, event_reader, beginner)
    drafters = _drafters(
        plan, decoder, target_reader, event_reader, head, engines, taught, overlaps, event_pooling, asked
    )
    reader = WindowReader(target_reader, event_reader)
    return SceneDescriber(reader, decoder, drafters, taught, execution=str(chosen), drafting=str(engines))


def _reads_events(plan: DraftPlan, overlap: bool) -> bool:
    """Whether anybody needs the event model; of `combined` its head does, and the overlap."""
    if plan.drafter == DEFAULT_DRAFTER:
        return plan.config is not None or overlap
    return drafter_kind(plan.drafter).reads_events


def _preprocessor(path: Path) -> ClipPreprocessor:
    return ClipPreprocessor.from_config(load_preprocessor_config(path))


def _drafters(
    plan: DraftPlan,
    target: DecoderTarget,
    target_reader: TargetReader,
    event_reader: EventReader | None,
    head: Head | None,
    engines: DrafterEngines,
    learner: Learner,
    overlap: bool,
    pooling: int,
    event_text: bool,
) -> Drafters:
    """event_text: the event model's own text was asked for; beside a head it brings nothing on a CPU and is
    unmeasured on a GPU.

    Raises CheckpointError where the drafter is nothing without the event model's tokens and these mean
    something else to the target; where it is something without them, it goes on without.
    """
    lacking = [A_HEAD] if plan.drafter == DEFAULT_DRAFTER and head is None else []
    same_tokens = True
    if event_reader is not None:
        tokens = compatibility(target_reader.tokenizer, event_reader.tokenizer)
        same_tokens = tokens.same
        if not same_tokens and drafter_kind(plan.drafter).shares_tokens:
            problem = (
                f"The drafter {plan.drafter!r} cannot be used, choose one that hands no tokens over, such as "
                f"eagle3. {tokens.report}"
            )
            if plan.asked != AUTO_DRAFTER:
                raise CheckpointError(problem)
            plan, head = plan.without_head(problem), None
            lacking.append(A_HEAD)
        if not same_tokens and plan.drafter == DEFAULT_DRAFTER and overlap:
            lacking.append("eventgpt")
            left_out = f"The event model writes no drafts of its own. {tokens.report}"
            plan = replace(plan, left_out=(*plan.left_out, left_out))
    event_model = None if event_reader is None else event_reader.model

    def make(side: EventSide) -> Drafter:
        drafting = head if learner.drafts else None
        writes = same_tokens and (event_text or drafting is None)
        return make_drafter(plan.drafter, target, DraftModels(drafting, event_model, side, writes, engines))

    return Drafters(
        plan.drafter,
        make,
        learner,
        overlap=overlap,
        pooling=pooling,
        lacking=lacking,
        reason=plan.reason,
        left_out=" ".join(plan.left_out),
    )


def _learner(
    make: MakeLearner | None,
    plan: DraftPlan,
    target: VideoLlava,
    event_reader: EventReader | None,
    beginner: Beginner | None,
) -> tuple[Learner, DraftPlan]:
    """What teaches the head, and what became of the plan; raises GenerationError where a head is missing that
    could learn, or somebody who teaches it.
    """
    if make is None:
        if plan.new:
            raise GenerationError("A new draft head needs online distillation to learn; switch it on.")
        return NoLearner(), plan
    if beginner is not None and event_reader is not None:
        return make(target, event_reader.model, beginner), plan
    if plan.drafter == DEFAULT_DRAFTER and plan.config is None:
        left_out = "There is no draft head that could learn; ask for a new one."
        return NoLearner(), replace(plan, left_out=(*plan.left_out, left_out))
    raise GenerationError(
        f"The drafter {plan.asked!r} has no head that could learn while it drafts; switch online "
        "distillation off or choose eagle, eagle2, eagle3, block or combined."
    )
