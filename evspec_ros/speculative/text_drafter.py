"""What drafters have in common that copy a continuation from texts: no model, no features, one chain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.growth import grow_chain
from evspec_ros.speculative.tree import DraftTree

WINDOW = 256  # trials that a rate rests on before older ones begin to fade


@dataclass
class AcceptanceRate:
    """How often a proposed token was emitted where all before it were; it starts as a few imagined trials."""

    hits: float
    trials: float

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self.hits / self.trials

    def count(self, hits: int, trials: int) -> None:
        """Add what was seen; of a full window half fades."""
        self.hits += hits
        self.trials += trials
        if self.trials > WINDOW:
            self.hits, self.trials = self.hits / 2, self.trials / 2


class TextDrafter(ABC):
    """Keeps the text so far and measures, per kind of match, how often its proposals come true."""

    layers: tuple[int, ...] = ()

    def __init__(self, priors: dict[str, tuple[float, float]]) -> None:
        """priors: per kind of match the hits and trials to begin with."""
        self._rates = {kind: AcceptanceRate(*prior) for kind, prior in priors.items()}
        self._kind = ""
        self._proposed: list[int] = []
        self._emitted = 0  # tokens of the text so far

    @abstractmethod
    def _begin(self, prompt: Prompt) -> None:
        """A new text begins."""

    @abstractmethod
    def _extend(self, tokens: Sequence[int]) -> None:
        """The text goes on by these tokens."""

    @abstractmethod
    def _continuation(self, length: int) -> tuple[str, list[int]]:
        """The kind of match and at most `length` tokens; the kind has no meaning where there are none."""

    def prepare(self, prompt: Prompt) -> None:
        """Begin a text."""
        self._emitted = 0
        self._proposed = []
        self._begin(prompt)

    def start(self, _: Prompt, __: tuple[Tensor, ...], token: int, ___: int) -> None:
        """Note the first token."""
        self._follow([token])

    def propose(self, limits: DraftLimits, *_: object) -> DraftTree:
        """The continuation of the match, while the product of its tokens' rates is at least the limits'
        floor.
        """
        self._kind, tokens = self._continuation(min(limits.n_max, limits.tree_size))
        rate = self._rates[self._kind].value if tokens else 0.0
        tree = grow_chain(limits, len(tokens), lambda drafted: (tokens[len(drafted)], rate))
        self._proposed = tree.tokens.tolist()
        return tree

    def accept(self, tokens: Sequence[int], _: tuple[Tensor, ...]) -> None:
        """Note the tokens and which of the proposed ones they confirm."""
        self._follow(tokens)

    def finish(self, tokens: Sequence[int]) -> None:
        """Note the last block, which `accept` does not see."""
        self._follow(tokens[self._emitted :])

    def forget(self) -> None:  # noqa: B027 - nothing is the right thing for a drafter of one text
        """Begin the next text without the earlier ones; the rates stay."""

    def _follow(self, tokens: Sequence[int]) -> None:
        if self._proposed:
            tried = min(len(self._proposed), len(tokens))  # what an end token cut off was never tried
            hits = 0
            while hits < tried and self._proposed[hits] == tokens[hits]:
                hits += 1
            self._rates[self._kind].count(hits, min(hits + 1, tried))
            self._proposed = []
        self._emitted += len(tokens)
        self._extend(tokens)
