"""Prompt lookup: what followed the last tokens where they first occurred, in the prompt or in the answer."""

from __future__ import annotations

from collections.abc import Sequence

from evspec_ros.speculative.drafter import Prompt
from evspec_ros.speculative.text_drafter import TextDrafter

LONGEST = 2  # tokens matched, as in transformers


class PromptLookupDrafter(TextDrafter):
    """Drafts as transformers' PromptLookupCandidateGenerator: the longest n-gram first, its first place."""

    name = "prompt_lookup"

    def __init__(self, vocabulary: int) -> None:
        """vocabulary: ids from here on, and negative ones, stand for other things and are never drafted."""
        super().__init__({str(size): (0.5 * size, 2.0 * size) for size in range(1, LONGEST + 1)})
        self._vocabulary = vocabulary
        self._text: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # n-gram -> the index after its first occurrence

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

    def _continuation(self, length: int) -> tuple[str, list[int]]:
        end = len(self._text)
        for size in range(min(LONGEST, end - 1), 0, -1):
            place = self._places[tuple(self._text[end - size :])]
            if place < end:
                return str(size), self._words(self._text[place : place + length])
        return "", []

    def _words(self, tokens: list[int]) -> list[int]:
        """The tokens before the first that is no word, such as a video's place."""
        for index, token in enumerate(tokens):
            if not 0 <= token < self._vocabulary:
                return tokens[:index]
        return tokens
