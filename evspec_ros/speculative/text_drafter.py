"""What drafters have in common that copy from texts: no model, no features, and rates that they measure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.tree import ROOT, DraftTree

WINDOW = 256  # trials that a rate rests on before older ones begin to fade

Kind = TypeVar("Kind")


@dataclass
class AcceptanceRate:
    """How often a proposed token was emitted where all before it were; it starts as a few imagined trials."""

    hits: float
    trials: float

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self.hits / self.trials

    def count(self, hit: bool) -> None:
        """Add a trial; of a full window half fades."""
        self.hits += hit
        self.trials += 1
        if self.trials > WINDOW:
            self.hits, self.trials = self.hits / 2, self.trials / 2


class TextDrafter(ABC, Generic[Kind]):
    """Measures, per kind of match, how often a token that it proposes for it comes true."""

    layers: tuple[int, ...] = ()

    def __init__(self) -> None:
        self._rates: dict[Kind, AcceptanceRate] = {}
        self._proposed: list[tuple[int, int, Kind]] = []  # token, parent and kind of each node

    @abstractmethod
    def _prior(self, kind: Kind) -> tuple[float, float]:
        """The hits and trials that a kind of match begins with."""

    @abstractmethod
    def _begin(self, prompt: Prompt) -> None:
        """A new text begins."""

    @abstractmethod
    def _extend(self, tokens: Sequence[int]) -> None:
        """The text goes on by these tokens."""

    @abstractmethod
    def _draft(self, limits: DraftLimits) -> tuple[DraftTree, list[Kind]]:
        """Nodes whose path's probability is at least the limits' floor, and the kind of each."""

    def prepare(self, prompt: Prompt) -> None:
        """Begin a text."""
        self._proposed = []
        self._begin(prompt)

    def start(self, _: Prompt, __: tuple[Tensor, ...], token: int, ___: int) -> None:
        """Note the first token."""
        self._follow([token])

    def propose(self, limits: DraftLimits, *_: object) -> DraftTree:
        """What followed where the text matches, as far as its rates say that it pays."""
        tree, kinds = self._draft(limits)
        self._proposed = list(zip(tree.tokens.tolist(), tree.parents.tolist(), kinds, strict=True))
        return tree

    def accept(self, tokens: Sequence[int], _: tuple[Tensor, ...]) -> None:
        """Note the tokens and which of the proposed ones they confirm."""
        self._follow(tokens)

    def finish(self, _: Sequence[int]) -> None:
        """Nothing is left to note."""

    def forget(self) -> None:
        """Begin the next text without the earlier ones; the rates stay."""

    def _rate(self, kind: Kind) -> float:
        """How likely a token of that kind is emitted."""
        if kind not in self._rates:
            self._rates[kind] = AcceptanceRate(*self._prior(kind))
        return self._rates[kind].value

    def _follow(self, tokens: Sequence[int]) -> None:
        depths = {ROOT: 0}  # of the nodes that were emitted
        for node, (token, parent, kind) in enumerate(self._proposed):
            depth = depths.get(parent)
            if depth is not None and depth < len(tokens):  # what an end token cut off was never tried
                self._rates[kind].count(hit := tokens[depth] == token)
                if hit:
                    depths[node] = depth + 1
        self._proposed = []
        self._extend(tokens)
