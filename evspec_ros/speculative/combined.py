"""The default: the stream's last description where it is still followed, else with an EAGLE-3 tree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.eagle import EagleDrafter
from evspec_ros.speculative.previous import PreviousDrafter
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.tree import DraftTree, likeliest

TRUSTED = 0.8  # what follows the last description with this probability needs no head


class CombinedDrafter:
    """Merges what the head and the last descriptions propose into one tree, drafted without chance.

    The head, which costs time, is asked only where the last descriptions are not trusted.
    """

    name = "combined"

    def __init__(self, head: EagleDrafter, previous: PreviousDrafter) -> None:
        self.layers = head.layers
        self._head = head
        self._previous = previous

    def prepare(self, prompt: Prompt) -> None:
        """Both begin."""
        self._head.prepare(prompt)
        self._previous.prepare(prompt)

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """Both start."""
        self._head.start(prompt, features, token, capacity)
        self._previous.start(prompt, features, token, capacity)

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> DraftTree:
        """One tree within the limits."""
        followed = _as_paths(self._previous.propose(limits, sampling, generator))
        trees = [followed]
        if len(followed) == 0 or followed.probabilities[0] < TRUSTED:
            trees.append(self._head.propose(limits, sampling, generator))

        def enough(nodes: int, gain: float, chance: float) -> bool:
            return nodes == limits.tree_size or chance < limits.floor(nodes, gain)

        return likeliest(trees, enough)

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """Both go on."""
        self._head.accept(tokens, features)
        self._previous.accept(tokens, features)

    def finish(self, tokens: Sequence[int]) -> None:
        """The text is remembered."""
        self._head.finish(tokens)
        self._previous.finish(tokens)

    def forget(self) -> None:
        """The texts are forgotten."""
        self._previous.forget()


def _as_paths(chain: DraftTree) -> DraftTree:
    """The chain with the probabilities of whole paths."""
    chances = list(accumulate(chain.probabilities.tolist(), mul))
    return DraftTree.chain(chain.tokens.tolist(), chances)
