"""The stream's last descriptions as drafts: a slowly changing scene is described alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.growth import grow_chain
from evspec_ros.speculative.text_drafter import TextDrafter
from evspec_ros.speculative.tree import DraftTree

REMEMBERED = 8  # texts
LONGEST = 4  # tokens of a match that make it sure
SHORTEST = 2  # a single token occurs anywhere

# Hits and trials to begin with; a stream's text is expected to come back whole, 0.93 for forty tokens.
PRIORS = {"whole": (249.5, 250.0), "long": (8.0, 10.0), "short": (6.0, 10.0), "aligned": (5.0, 10.0)}


class RememberedText:
    """A text's tokens, and per n-gram of SHORTEST to LONGEST tokens the index after its first occurrence."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.positions: dict[tuple[int, ...], int] = {}
        for end in range(SHORTEST, len(self.tokens) + 1):
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                self.positions.setdefault(tuple(self.tokens[end - size : end]), end)


NOTHING = RememberedText(())


class PreviousDrafter(TextDrafter[str]):
    """Follows the last text; after a mismatch it goes on where the longest n-gram matches, else behind the
    token that the target replaced.
    """

    name = "previous"

    def __init__(self) -> None:
        super().__init__()
        self._memory: deque[RememberedText] = deque(maxlen=REMEMBERED)  # the newest first
        self._recent: list[int] = []  # the text's last tokens, at most LONGEST
        self._source = NOTHING
        self._position = 0  # the source's token that is expected next
        self._run = 0  # tokens that agreed since the last mismatch
        self._whole = True  # none has disagreed yet

    def finish(self, tokens: Sequence[int]) -> None:
        """Remember the text."""
        super().finish(tokens)
        self._memory.appendleft(RememberedText(tokens))

    def forget(self) -> None:
        """Remember no text."""
        self._memory.clear()

    def _prior(self, kind: str) -> tuple[float, float]:
        return PRIORS[kind]

    def _begin(self, prompt: Prompt) -> None:  # noqa: ARG002
        self._recent = []
        self._source = self._memory[0] if self._memory else NOTHING
        self._position = self._run = 0
        self._whole = True

    def _extend(self, tokens: Sequence[int]) -> None:
        source = self._source.tokens
        for token in tokens:
            if self._position < len(source) and source[self._position] == token:
                self._run += 1
            else:
                self._run, self._whole = 0, False
            self._position += 1
        self._recent = [*self._recent, *tokens][-LONGEST:]

    def _draft(self, limits: DraftLimits) -> tuple[DraftTree, list[str]]:
        if not self._whole:
            self._reenter()
        kind, ahead = self._match(), self._source.tokens[self._position :]
        rate = self._rate(kind)
        longest = min(len(ahead), limits.n_max, limits.tree_size)
        chain = grow_chain(limits, longest, lambda drafted: (ahead[len(drafted)], rate))
        return chain, [kind] * len(chain)

    def _match(self) -> str:
        if self._whole:
            return "whole"
        if self._run >= LONGEST:
            return "long"
        return "short" if self._run >= SHORTEST else "aligned"

    def _reenter(self) -> None:
        """Go where more of the last tokens agree than here, if there is such a place."""
        for size in range(len(self._recent), max(self._run, SHORTEST - 1), -1):
            gram = tuple(self._recent[-size:])
            for text in self._memory:
                position = text.positions.get(gram)
                if position is not None and position < len(text.tokens):
                    self._source, self._position, self._run = text, position, size
                    return
