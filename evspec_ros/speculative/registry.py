"""The ways of drafting by the names used in parameters, commands and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

from evspec_ros.errors import GenerationError
from evspec_ros.networks.draft_head import DraftHead, Eagle3Head, EagleHead
from evspec_ros.speculative.combined import CombinedDrafter
from evspec_ros.speculative.drafter import Drafter, NoDrafter
from evspec_ros.speculative.eagle import BRANCHES, EagleDrafter
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.lookup import PromptLookupDrafter
from evspec_ros.speculative.previous import PreviousDrafter
from evspec_ros.speculative.target import DecoderTarget

Head = TypeVar("Head", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class DraftModels:
    """What there is to draft with; every drafter takes what it needs.

    head: a trained head of the drafter's `head_kind`; events: the event model, ready to read.
    """

    head: nn.Module | None = None
    events: EventSide = field(default_factory=EventSide)


@dataclass(frozen=True)
class DrafterKind:
    """One way of drafting: how it is made, the kind of head that it needs and whether it reads events."""

    make: Callable[[DecoderTarget, DraftModels], Drafter]
    head_kind: str | None = None
    reads_events: bool = False


def _eagle(
    name: str, kind: type[DraftHead], branches: int
) -> Callable[[DecoderTarget, DraftModels], EagleDrafter]:
    def make(target: DecoderTarget, models: DraftModels) -> EagleDrafter:
        head = _head(models, name, kind)
        found = getattr(head.config, "target_size", head.config.hidden_size)
        if found != target.decoder.config.hidden_size:
            raise GenerationError(
                f"The draft head was made for features of {found} values and the target has "
                f"{target.decoder.config.hidden_size}; give the head that was trained for this target."
            )
        return EagleDrafter(target, head, models.events, name, branches)

    return make


def _combined(target: DecoderTarget, models: DraftModels) -> Drafter:
    head = _eagle("combined", Eagle3Head, BRANCHES)(target, models)
    return CombinedDrafter(head, PreviousDrafter())


DRAFTERS: Mapping[str, DrafterKind] = {
    "none": DrafterKind(lambda *_: NoDrafter()),
    "prompt_lookup": DrafterKind(lambda target, _: PromptLookupDrafter(target.decoder.config.vocab_size)),
    "eagle": DrafterKind(_eagle("eagle", EagleHead, 1), head_kind="eagle", reads_events=True),
    "eagle2": DrafterKind(_eagle("eagle2", EagleHead, BRANCHES), head_kind="eagle", reads_events=True),
    "eagle3": DrafterKind(_eagle("eagle3", Eagle3Head, BRANCHES), head_kind="eagle3", reads_events=True),
    "previous": DrafterKind(lambda *_: PreviousDrafter()),
    "combined": DrafterKind(_combined, head_kind="eagle3", reads_events=True),
}


def drafter_kind(name: str) -> DrafterKind:
    """The way of drafting of that name; raises GenerationError for a name that is not in DRAFTERS."""
    if name not in DRAFTERS:
        raise GenerationError(f"There is no drafter {name!r}; choose one of {', '.join(DRAFTERS)}.")
    return DRAFTERS[name]


def make_drafter(name: str, target: DecoderTarget, models: DraftModels | None = None) -> Drafter:
    """The drafter of that name; raises GenerationError for a name that is not in DRAFTERS and for a model
    that is missing or of another size.
    """
    return drafter_kind(name).make(target, models or DraftModels())


def _head(models: DraftModels, drafter: str, kind: type[Head]) -> Head:
    if not isinstance(models.head, kind):
        raise GenerationError(f"The drafter {drafter!r} needs a draft head; give one or choose 'none'.")
    return models.head
