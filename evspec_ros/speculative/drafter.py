"""What every way of drafting has in common, and the one that drafts nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from evspec_ros.speculative.device_tree import Draft
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.tree import NO_DRAFT, DraftTree


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a generation starts from: embeddings [1, P, D] for the target, videos already in their places.

    ids: the prompt's token ids, the video being one of them. events: reads the same moment's events and
    gives the event model's tokens [E, D_event], in another thread perhaps; None where there are none.
    event_ids: the event model's prompt, the ids before and those behind its event tokens.
    """

    embeddings: Tensor
    ids: tuple[int, ...] = ()
    events: Callable[[], Tensor] | None = None
    event_ids: tuple[tuple[int, ...], tuple[int, ...]] | None = None


@dataclass(frozen=True)
class PassCosts:
    """Milliseconds on this machine: verify_ms[n] of a target pass over n + 1 rows, draft_ms of drafting a
    node, begin_ms of what is drafted before the first node, however many follow.
    """

    verify_ms: tuple[float, ...]
    draft_ms: float
    begin_ms: float = 0.0

    def floor(self, nodes: int, gain: float) -> float:
        """How likely the next node must be accepted to be worth it, behind so many that gain so many tokens.

        The pass yields gain / cost tokens a millisecond without it; a node pays where its own probability
        over its own cost is more; what was spent before the first node is spent either way. Infinite where no
        larger pass was measured.
        """
        if nodes + 1 >= len(self.verify_ms):
            return float("inf")
        return gain / self.cost(nodes) * (self.verify_ms[nodes + 1] - self.verify_ms[nodes] + self.draft_ms)

    def cost(self, nodes: int) -> float:
        """Milliseconds of drafting and verifying so many nodes, which were measured."""
        return self.verify_ms[nodes] + self.begin_ms + nodes * self.draft_ms


@dataclass(frozen=True)
class DraftLimits:
    """n_max: tokens on a path; tree_size: nodes in all; p_min: stop where the path's confidence falls below
    it; costs: draft no node that costs more than it is expected to gain, once measured; end_tokens:
    nothing follows them.
    """

    n_max: int = 8
    tree_size: int = 8
    p_min: float = 0.0
    costs: PassCosts | None = None
    end_tokens: frozenset[int] = frozenset()

    def floor(self, nodes: int, gain: float) -> float:
        """The least confidence of another node behind so many, which gain so many tokens with the bonus."""
        return self.p_min if self.costs is None else max(self.p_min, self.costs.floor(nodes, gain))

    @property
    def most_nodes(self) -> int:
        """Nodes of the largest draft that may pay: of a larger one the last node would not, were all of them
        certain.
        """
        every = range(self.tree_size)
        return next((nodes for nodes in every if self.floor(nodes, nodes + 1.0) > 1.0), self.tree_size)


DEFAULT_LIMITS = DraftLimits()


class Drafter(Protocol):
    """Proposes tokens that the target may emit next; it can be wrong, it cannot change what is emitted.

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

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator, /) -> Draft:
        """A tree within the limits, to follow the last emitted token; no node follows an end token, it could
        never be emitted. On a GPU it may be one that the host has not seen.

        Its shape must not depend on the outcome of draws from a distribution that its nodes declare: deciding
        whether to draw is allowed, dropping what was drawn is not, or sampling would no longer be exact.
        """

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...], /) -> None:
        """The target emitted these tokens after the last one, which may complete the text.

        The features [len(tokens), D] per layer are its own at the rows before each of them: the token that
        was last until now and the accepted nodes.
        """

    def finish(self, tokens: Sequence[int], /) -> None:
        """The text is complete: all of its tokens, the end token included where it was reached."""

    def forget(self) -> None:
        """Begin as if nothing had been written before: the stream that the texts described has ended."""


def joined(features: Iterable[Tensor]) -> Tensor:
    """Several layers' features [n, D] each as a copy [n, layers * D]."""
    return torch.cat(tuple(features), -1)


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
