"""The ways of drafting by the names used in parameters, commands and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evspec_ros.errors import GenerationError
from evspec_ros.networks.draft_head import EagleHead
from evspec_ros.speculative.drafter import Drafter, NoDrafter
from evspec_ros.speculative.eagle import EagleDrafter
from evspec_ros.speculative.target import DecoderTarget


def _none(target: DecoderTarget, head: EagleHead | None) -> Drafter:  # noqa: ARG001
    return NoDrafter()


def _eagle(target: DecoderTarget, head: EagleHead | None) -> Drafter:
    if head is None:
        raise GenerationError("The drafter 'eagle' needs a draft head; give one or choose 'none'.")
    if head.config.hidden_size != target.decoder.config.hidden_size:
        raise GenerationError(
            f"The draft head was made for features of {head.config.hidden_size} values and the target has "
            f"{target.decoder.config.hidden_size}; give the head that was trained for this target."
        )
    return EagleDrafter(target, head)


DRAFTERS: Mapping[str, Callable[[DecoderTarget, EagleHead | None], Drafter]] = {
    "none": _none,
    "eagle": _eagle,
}


def make_drafter(name: str, target: DecoderTarget, head: EagleHead | None = None) -> Drafter:
    """The drafter of that name; raises GenerationError for a name that is not in DRAFTERS or a head that is
    missing.
    """
    if name not in DRAFTERS:
        raise GenerationError(f"There is no drafter {name!r}; choose one of {', '.join(DRAFTERS)}.")
    return DRAFTERS[name](target, head)
