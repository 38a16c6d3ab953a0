"""What every way of drafting has in common, and the one that drafts nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.tree import NO_DRAFT, DraftTree


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a generation starts from: embeddings [1, P, D] for the target, videos already in their places.

    ids: the prompt's token ids, the video being one of them. events: reads the same moment's events and
    gives the event model's pooled tokens [E, D_event], in another thread perhaps; None where there are none.
    """

    embeddings: Tensor
    ids: tuple[int, ...] = ()
    events: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class DraftLimits:
    """n_max: tokens on a path; tree_size: nodes in all; p_min: stop where the path's confidence falls below
    it.
    """

    n_max: int = 8
    tree_size: int = 8
    p_min: float = 0.0


DEFAULT_LIMITS = DraftLimits()


class Drafter(Protocol):
    """Proposes what the target may say next; it can be wrong, it cannot change what is said.

    Per generation: `prepare`, `start` where more than one token is to come, then `propose` and `accept` in
    turn, though `propose` may be left out, and at last `finish`.
    """

    @property
    def name(self) -> str:
        """Its name in DRAFTERS."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The target's layers whose incoming features `start` and `accept` are to receive."""

    def prepare(self, prompt: Prompt, /) -> None:
        """The target is about to read the prompt; what does not need the target may begin."""

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int, /) -> None:
        """The target has read the prompt, with features [P, D] per layer, and emitted its first token.

        Up to `capacity` rows follow the prompt in this generation, drafted ones included.
        """

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator, /) -> DraftTree:
        """A tree within the limits, to follow the last emitted token.

        Its shape must not depend on the outcome of draws from a distribution that its nodes declare: deciding
        whether to draw is allowed, dropping what was drawn is not, or sampling would no longer be exact.
        """

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...], /) -> None:
        """The target emitted these tokens after the last one.

        The features [len(tokens), D] per layer are its own at the rows before each of them: the token that
        was last until now and the accepted nodes.
        """

    def finish(self, tokens: Sequence[int], /) -> None:
        """The text is complete: all of its tokens, the end token included where it was reached."""

    def forget(self) -> None:
        """Begin as if nothing had been written before: the stream that the texts described has ended."""


class NoDrafter:
    """Plain autoregressive decoding, one token per pass of the target: the baseline."""

    name = "none"
    layers: tuple[int, ...] = ()

    def prepare(self, *_: object) -> None:
        """Nothing to begin."""

    def start(self, *_: object) -> None:
        """Nothing to start from."""

    def propose(self, *_: object) -> DraftTree:
        """Never a node."""
        return NO_DRAFT

    def accept(self, *_: object) -> None:
        """Nothing to follow."""

    def finish(self, *_: object) -> None:
        """Nothing to learn."""

    def forget(self) -> None:
        """Nothing is remembered."""
