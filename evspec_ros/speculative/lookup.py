"""Prompt lookup: what followed the last tokens where they first occurred, in the prompt or in the answer."""

from __future__ import annotations

from collections.abc import Sequence

from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.growth import grow_chain
from evspec_ros.speculative.text_drafter import TextDrafter
from evspec_ros.speculative.tree import DraftTree

LONGEST = 2  # tokens matched, as in transformers


class PromptLookupDrafter(TextDrafter[int]):
    """Drafts as transformers' PromptLookupCandidateGenerator: the longest n-gram first, its first place; the
    n-gram's length is the kind of match.
    """

    name = "prompt_lookup"

    def __init__(self, vocabulary: int) -> None:
        """vocabulary: ids from here on, and negative ones, stand for other things and are never drafted."""
        super().__init__()
        self._vocabulary = vocabulary
        self._text: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # n-gram -> the index after its first occurrence

    def _prior(self, kind: int) -> tuple[float, float]:
        return 0.5 * kind, 2.0 * kind

    def _begin(self, prompt: Prompt) -> None:
        self._text = []
        self._places = {}
        self._extend(prompt.ids)

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._text.append(token)
            end = len(self._text)
            for size in range(1, min(LONGEST, end) + 1):
                self._places.setdefault(tuple(self._text[end - size :]), end)

    def _draft(self, limits: DraftLimits) -> tuple[DraftTree, list[int]]:
        size, tokens = self._continuation(min(limits.n_max, limits.tree_size))
        rate = self._rate(size) if tokens else 0.0
        chain = grow_chain(limits, len(tokens), lambda drafted: (tokens[len(drafted)], rate))
        return chain, [size] * len(chain)

    def _continuation(self, length: int) -> tuple[int, list[int]]:
        """The size of the n-gram that occurred before, and at most `length` tokens that followed it."""
        end = len(self._text)
        for size in range(min(LONGEST, end - 1), 0, -1):
            place = self._places[tuple(self._text[end - size :])]
            if place < end:
                return size, self._words(self._text[place : place + length])
        return 0, []

    def _words(self, tokens: list[int]) -> list[int]:
        """The tokens before the first that is no word, such as a video's place."""
        for index, token in enumerate(tokens):
            if not 0 <= token < self._vocabulary:
                return tokens[:index]
        return tokens
