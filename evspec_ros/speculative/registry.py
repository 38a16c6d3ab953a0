"""The ways of drafting by the names used in parameters, commands and reports."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

from evspec_ros.choices import AUTO_DRAFTER
from evspec_ros.engines.drafter import DrafterEngines
from evspec_ros.errors import GenerationError
from evspec_ros.networks.adapters import Adapter, FeatureHead
from evspec_ros.networks.block_head import BlockHead
from evspec_ros.networks.draft_head import DraftHead, Eagle3Head, EagleHead
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.fit import require_head_fits
from evspec_ros.speculative.block import BlockDrafter
from evspec_ros.speculative.combined import CombinedDrafter
from evspec_ros.speculative.drafter import Drafter, NoDrafter
from evspec_ros.speculative.eagle import BRANCHES, EagleDrafter
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.eventgpt import EventGptDrafter
from evspec_ros.speculative.feature import FeatureDrafter
from evspec_ros.speculative.lookup import PromptLookupDrafter
from evspec_ros.speculative.suffix import SuffixDrafter
from evspec_ros.speculative.target import DecoderTarget

Head = TypeVar("Head", BlockHead, DraftHead, Eagle3Head, EagleHead, Adapter, FeatureHead)

DEFAULT_DRAFTER = "combined"
INGREDIENTS = ("eventgpt", "head", "suffix")  # of `combined`


@dataclass(frozen=True, eq=False)
class DraftModels:
    """What there is to draft with; every drafter takes what it needs.

    head: a trained head of one of the drafter's `head_kinds`; event_model: EventGPT, for the drafters that
    have it write; events: the side on which events are read; event_text: `combined` may draft what
    the event model writes, whose tokens mean to the target what they mean to it; engines: what runs all of
    this, by default what suits each.
    """

    head: nn.Module | None = None
    event_model: EventGpt | None = None
    events: EventSide = field(default_factory=EventSide)
    event_text: bool = True
    engines: DrafterEngines | None = None


@dataclass(frozen=True)
class DrafterKind:
    """One way of drafting: how it is made, the kinds of head that it can draft with, the best one first,
    whether it reads events and whether it is nothing without tokens of the event model that it hands over.
    """

    make: Callable[[DecoderTarget, DraftModels], Drafter]
    head_kinds: tuple[str, ...] = ()
    reads_events: bool = True
    shares_tokens: bool = False

    def has_event_text(self, overlap: bool) -> bool:
        """Whether the event model reads a prompt, which fills a cache, and not the events alone."""
        return self.shares_tokens or "feature" in self.head_kinds or (overlap and self.make is make_combined)


def _eagle(
    name: str, kind: type[DraftHead], branches: int
) -> Callable[[DecoderTarget, DraftModels], EagleDrafter]:
    def make(target: DecoderTarget, models: DraftModels) -> EagleDrafter:
        head = _head(models, name, kind, target)
        return EagleDrafter(target, head, models.events, name, branches, models.engines)

    return make


def _eventgpt(target: DecoderTarget, models: DraftModels) -> EventGptDrafter:
    model, vocabulary = _event_model(models, "eventgpt"), target.decoder.config.vocab_size
    return EventGptDrafter(model, models.events, vocabulary, engines=models.engines)


def _eventgpt_adapter(target: DecoderTarget, models: DraftModels) -> EventGptDrafter:
    name = "eventgpt_adapter"
    adapter = _head(models, name, Adapter, target)
    return EventGptDrafter(
        _event_model(models, name),
        models.events,
        target.decoder.config.vocab_size,
        name,
        lambda features: target.head(adapter(features)),
        models.engines,
    )


def _block(target: DecoderTarget, models: DraftModels, *, draws: bool = True) -> BlockDrafter:
    head = _head(models, "block", BlockHead, target)
    return BlockDrafter(target, head, models.events, draws=draws, engines=models.engines)


def _feature(target: DecoderTarget, models: DraftModels) -> FeatureDrafter:
    head = _head(models, "feature", FeatureHead, target)
    return FeatureDrafter(target, head, _event_model(models, "feature"), models.events, models.engines)


def make_combined(
    target: DecoderTarget, models: DraftModels, without: Collection[str] = ()
) -> CombinedDrafter:
    """The combined drafter of what there is, or for ablations what is left of it without some of INGREDIENTS.

    The event model writes only where the event side overlaps the target's prefill, where there is one and
    where its tokens are the target's.
    """
    able = models.event_model is not None and models.event_text
    writes = able and models.events.overlap and "eventgpt" not in without
    return CombinedDrafter(
        None if models.head is None or "head" in without else _part(target, models),
        None if "suffix" in without else SuffixDrafter(),
        _eventgpt(target, models) if writes else None,
    )


def _part(target: DecoderTarget, models: DraftModels) -> BlockDrafter | EagleDrafter:
    """What drafts with the head that there is, as a part of `combined`."""
    if isinstance(models.head, BlockHead):
        return _block(target, models, draws=False)
    return _eagle("combined", Eagle3Head, BRANCHES)(target, models)


DRAFTERS: Mapping[str, DrafterKind] = {
    "none": DrafterKind(lambda *_: NoDrafter(), reads_events=False),
    "prompt_lookup": DrafterKind(
        lambda target, _: PromptLookupDrafter(target.decoder.config.vocab_size), reads_events=False
    ),
    "eventgpt": DrafterKind(_eventgpt, shares_tokens=True),
    "eventgpt_adapter": DrafterKind(_eventgpt_adapter, ("eventgpt_adapter",), shares_tokens=True),
    "feature": DrafterKind(_feature, ("feature",)),
    "eagle": DrafterKind(_eagle("eagle", EagleHead, 1), ("eagle",)),
    "eagle2": DrafterKind(_eagle("eagle2", EagleHead, BRANCHES), ("eagle",)),
    "eagle3": DrafterKind(_eagle("eagle3", Eagle3Head, BRANCHES), ("eagle3",)),
    "block": DrafterKind(_block, ("block",)),
    "suffix": DrafterKind(lambda *_: SuffixDrafter(), reads_events=False),
    DEFAULT_DRAFTER: DrafterKind(make_combined, ("block", "eagle3")),
}
# What `auto` takes for each kind of head, and which of them need an event model.
_OF_HEADS = {"block": "combined", "eagle3": "combined", "eagle": "eagle2"}
_OF_EVENT_HEADS = {"eventgpt_adapter": "eventgpt_adapter", "feature": "feature"}


def drafters_of_heads(asked: str, *, event_model: bool) -> dict[str, str]:
    """By the kinds of head that can be used, the drafter that is made of each; raises GenerationError for a
    name that is neither AUTO_DRAFTER nor in DRAFTERS.
    """
    if asked == AUTO_DRAFTER:
        return _OF_HEADS | (_OF_EVENT_HEADS if event_model else {})
    return dict.fromkeys(drafter_kind(asked).head_kinds, asked)


def drafter_kind(name: str) -> DrafterKind:
    """The way of drafting of that name; raises GenerationError for a name that is not in DRAFTERS."""
    if name not in DRAFTERS:
        choices = ", ".join((AUTO_DRAFTER, *DRAFTERS))
        raise GenerationError(f"There is no drafter {name!r}; choose one of {choices}.")
    return DRAFTERS[name]


def make_drafter(name: str, target: DecoderTarget, models: DraftModels | None = None) -> Drafter:
    """The drafter of that name; raises GenerationError for a name that is not in DRAFTERS and for a model
    that is missing, CheckpointError for a head that does not fit.
    """
    return drafter_kind(name).make(target, models or DraftModels())


def _head(models: DraftModels, drafter: str, kind: type[Head], target: DecoderTarget) -> Head:
    head = models.head
    if not isinstance(head, kind):
        raise GenerationError(
            f"The drafter {drafter!r} needs a draft head of its kind; give one or choose 'none'."
        )
    model = models.event_model
    event_size = None if model is None else model.config.text.hidden_size
    require_head_fits(head.config, target.decoder.config, event_size)
    return head


def _event_model(models: DraftModels, drafter: str) -> EventGpt:
    if models.event_model is None:
        raise GenerationError(f"The drafter {drafter!r} needs the event model; give one or choose 'none'.")
    return models.event_model
