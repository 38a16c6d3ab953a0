"""Drafts from the stream's past texts: a suffix tree of them, as in SuffixDecoding (arXiv 2411.04975).

A scene that changes slowly is described alike, and one that comes back as it was before; texts about other
scenes have their phrases in common.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.growth import grow_chain, grow_tree
from evspec_ros.speculative.text_drafter import TextDrafter
from evspec_ros.speculative.tree import NO_DRAFT, DraftTree

DEPTH = 12  # tokens of the longest run that is counted
REMEMBERED = 2048  # tokens of all texts but the last
ALIGNED_BELOW = 3  # tokens of a run that is surer than the place in the text
BRANCHES = 4  # tokens that are considered behind a run, the likeliest ones


class TokenRun:
    """A run of tokens that occurs in the texts: how often, in which text last, and what followed."""

    __slots__ = ("count", "followers", "newest")

    def __init__(self) -> None:
        self.followers: dict[int, TokenRun] = {}
        self.count = 0
        self.newest = 0


class SuffixTree:
    """Every run of up to DEPTH tokens of the newest texts, which have REMEMBERED tokens at most beside the
    last one. A token more costs DEPTH steps, and as many to forget it.
    """

    def __init__(self) -> None:
        self.texts: deque[tuple[tuple[int, ...], list[int]]] = deque()  # prompt and text, the oldest first
        self._root = TokenRun()
        self._tokens = 0
        self._number = 0  # of the last text

    def add(self, prompt: tuple[int, ...], text: Sequence[int]) -> None:
        """Remember a text and the prompt that it answers, and forget the oldest ones for it."""
        while self._tokens > REMEMBERED:
            _, oldest = self.texts.popleft()
            self._forget(oldest)
        self._number += 1
        self._tokens += len(text)
        self.texts.append((prompt, list(text)))
        ends = [self._root]  # the runs with which the text ends so far, by their length
        for token in text:
            longer = [run.followers.setdefault(token, TokenRun()) for run in ends[:DEPTH]]
            for run in longer:
                run.count += 1
                run.newest = self._number
            ends = [self._root, *longer]

    def last(self, prompt: tuple[int, ...]) -> tuple[list[int], bool]:
        """The last text that answers this prompt, or another one where there is none; whether it does."""
        for asked, text in reversed(self.texts):
            if asked == prompt:
                return text, True
        return (self.texts[-1][1], False) if self.texts else ([], False)

    def longest(self, tokens: Sequence[int]) -> tuple[TokenRun, int]:
        """The longest run with which these tokens end and behind which something followed; its length."""
        for first in range(max(0, len(tokens) - DEPTH + 1), len(tokens)):
            run: TokenRun | None = self._root
            for token in tokens[first:]:
                run = run.followers.get(token) if run else None
            if run and run.followers:
                return run, len(tokens) - first
        return self._root, 0

    def _forget(self, text: list[int]) -> None:
        self._tokens -= len(text)
        ends = [self._root]
        for token in text:
            longer = []
            for run in ends[:DEPTH]:
                follower = run.followers[token]
                follower.count -= 1
                if follower.count == 0:
                    del run.followers[token]
                longer.append(follower)
            ends = [self._root, *longer]


class Match(NamedTuple):
    """Why a token is proposed: `same`, no token of the text differs from the last one's; `aligned`, the last
    text's token at that place; else as what followed a run of `length` tokens, in so many quarters of all
    cases, and whether it did so where the run last occurred.
    """

    how: str
    length: int = 0
    quarters: int = 0
    newest: bool = False


class _Place(NamedTuple):
    """Behind which run the next token is looked for, and what led there: the drafted tokens, the last one's
    match.
    """

    run: TokenRun
    length: int
    drafted: tuple[int, ...] = ()
    match: Match = Match("")


SAME, ALIGNED = Match("same"), Match("aligned")


class SuffixDrafter(TextDrafter[Match]):
    """Follows the last text that answered the same prompt; from the first difference on a tree of what
    followed the longest run with which the text ends, or the last text's token at that place.
    """

    name = "suffix"

    def __init__(self) -> None:
        super().__init__()
        self._tree = SuffixTree()
        self._prompt: tuple[int, ...] = ()
        self._last: list[int] = []  # the text that is followed
        self._text: list[int] = []  # the text so far
        self._same = True

    def finish(self, tokens: Sequence[int]) -> None:
        """Remember the text."""
        self._tree.add(self._prompt, tokens)

    def forget(self) -> None:
        """Remember no text."""
        self._tree = SuffixTree()

    def _prior(self, kind: Match) -> tuple[float, float]:
        if kind == SAME:  # a stream's text is expected to come back whole, 0.93 for forty tokens
            return 249.5, 250.0
        if kind == ALIGNED:
            return 5.0, 10.0
        return 10.0 * (kind.quarters + 0.5) / 5 * (0.5 + kind.length / 2 / DEPTH), 10.0

    def _begin(self, prompt: Prompt) -> None:
        self._prompt = prompt.ids
        self._last, self._same = self._tree.last(prompt.ids)
        self._text = []

    def _extend(self, tokens: Sequence[int]) -> None:
        first = len(self._text)
        self._text += tokens
        self._same = self._same and self._last[first : len(self._text)] == list(tokens)

    def _draft(self, limits: DraftLimits) -> tuple[DraftTree, list[Match]]:
        ahead = self._last[len(self._text) :]
        if self._same and ahead:
            rate = self._rate(SAME)
            longest = min(len(ahead), limits.n_max, limits.tree_size)
            chain = grow_chain(limits, longest, lambda drafted: (ahead[len(drafted)], rate))
            return chain, [SAME] * len(chain)
        if not self._tree.texts:
            return NO_DRAFT, []
        tree, places = grow_tree(limits, _Place(*self._tree.longest(self._text[-DEPTH:])), self._options)
        return tree, [place.match for place in places]

    def _options(self, place: _Place) -> Iterable[tuple[int, float, _Place]]:
        """What may follow there: token, probability, and where it leads."""
        run, length, drafted, _ = place
        if drafted and (length == DEPTH or not run.followers):
            run, length = self._tree.longest([*self._text[-DEPTH:], *drafted][-DEPTH:])
        if len(run.followers) == 1 and length >= ALIGNED_BELOW:  # most places, and soon told
            ((token, longer),) = run.followers.items()
            match = Match("run", _ROUNDED[length], 4, newest=True)
            yield token, self._rate(match), _Place(longer, length + 1, (*drafted, token), match)
            return
        matches: dict[int, Match] = {}
        if length > 0:
            every = sum(follower.count for follower in run.followers.values())
            newest = max(follower.newest for follower in run.followers.values())
            for token, follower in run.followers.items():
                quarters = 4 * follower.count // every
                matches[token] = Match("run", _ROUNDED[length], quarters, follower.newest == newest)
        aligned = len(self._text)
        if not drafted and length < ALIGNED_BELOW and aligned < len(self._last):
            matches.setdefault(self._last[aligned], ALIGNED)
        rated = sorted(((self._rate(match), token, match) for token, match in matches.items()), reverse=True)
        for rate, token, match in rated[:BRANCHES]:
            longer = run.followers.get(token, _NOTHING)
            yield token, rate, _Place(longer, length + 1, (*drafted, token), match)


_NOTHING = TokenRun()
# Of the length of a run the least one that is rated as one with it.
_ROUNDED = (0, 1, 2, 3, 4, 4, 6, 6, *(9,) * (DEPTH - 8))
