"""Drafts from the stream's past texts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speculative_fakes import FakeTarget, Next, fake_prompt, markov

from evspec_ros.speculative import DraftLimits, DraftTree, NoDrafter, Prompt, generate
from evspec_ros.speculative import suffix as module
from evspec_ros.speculative.drafter import PassCosts
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.suffix import DEPTH, SuffixDrafter, SuffixTree, TokenRun

VOCABULARY = 6
TEXT = [10, 11, 12, 13, 14, 15, 16, 2]
GREEDY = Sampling(0.0, 1.0, 0)
LIMITS = DraftLimits(32, 32, end_tokens=frozenset((2,)))


def _after(
    drafter: SuffixDrafter, answer: list[int], limits: DraftLimits = LIMITS, prompt: Prompt | None = None
) -> DraftTree:
    """What is drafted behind an answer to a prompt."""
    prompt = prompt or fake_prompt([1])
    drafter.prepare(prompt)
    drafter.start(prompt, (), answer[0], 0)
    drafter.accept(answer[1:], ())
    return drafter.propose(limits, GREEDY, torch.Generator())


def _remembering(*texts: list[int]) -> SuffixDrafter:
    drafter = SuffixDrafter()
    for text in texts:
        drafter.prepare(fake_prompt([1]))
        drafter.finish(text)
    return drafter


def _likeliest(tree: DraftTree) -> list[int]:
    """The path of each node's first child."""
    path: list[int] = []
    at = -1
    for node, parent in enumerate(tree.parents.tolist()):
        if parent == at:
            path.append(int(tree.tokens[node]))
            at = node
    return path


def _saying(script: list[int]) -> Next:
    """After a prompt of one token, the script's tokens; behind them its last one again."""
    said = torch.nn.functional.one_hot(torch.tensor(script), 20) * 50.0
    return lambda history: said[min(len(history), len(script)) - 1]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (TEXT[:1], TEXT[1:]),  # followed to its end token
        ([10, 11, 9], TEXT[3:]),  # a substitution: aligned behind it, then by what follows
        ([9], TEXT[1:]),  # the first token already another
        ([10, 9, 9, 9, 12, 13], TEXT[4:]),  # an insertion: where two tokens match again
        ([10, 13, 14], TEXT[5:]),  # a deletion
        (TEXT, []),  # nothing follows the end
    ],
)
def test_it_goes_on_where_a_past_text_matches(answer: list[int], expected: list[int]) -> None:
    """Known answers, one per kind of change."""
    tree = _after(_remembering(TEXT), answer)
    assert _likeliest(tree) == expected
    assert tree.distributions is None


def test_what_followed_more_often_is_likelier() -> None:
    """Three ways to go on behind the same three tokens, of which the first was seen most and the last newest;
    the path through each is in the tree.
    """
    ways = [[3, 4, 5, 6, 2]] * 6 + [[7, 3, 4, 5, 8, 2]] * 2
    tree = _after(_remembering(*ways), [9, 9, 9, 3, 4, 5])
    chances = dict(zip(tree.paths(), tree.path_probabilities(), strict=True))
    assert chances[6,] > chances[8,] > 0
    assert {(6, 2), (8, 2)} <= set(chances)


def test_a_scene_that_comes_back_is_known_again() -> None:
    """The text before the last one is followed as soon as it is told apart from that."""
    other = [10, 11, 5, 6, 7, 8, 9, 2]
    assert _likeliest(_after(_remembering(TEXT, other), TEXT[:3])) == TEXT[3:]


def test_each_prompt_has_its_own_last_text() -> None:
    """Two questions asked in turn: what is followed from the first token on is the last answer to the same
    one.
    """
    drafter = SuffixDrafter()
    answers = {(1, 5): TEXT, (1, 6): [10, 3, 4, 5, 2]}
    for _ in range(2):
        for ids, answer in answers.items():
            drafter.prepare(fake_prompt(ids))
            drafter.finish(answer)
    for ids, answer in answers.items():
        assert _after(drafter, answer[:1], prompt=fake_prompt(ids)).tokens.tolist() == answer[1:]


@pytest.mark.parametrize("limits", [DraftLimits(3, 9), DraftLimits(9, 3)])
@pytest.mark.parametrize("answer", [TEXT[:1], [10, 9, 12, 13]])
def test_limits_are_kept(limits: DraftLimits, answer: list[int]) -> None:
    """n_max and tree_size, of a text that is followed and of one that differed."""
    tree = _after(_remembering(TEXT, [12, 13, 5, 6, 7, 8, 9, 2]), answer, limits)
    assert 0 < len(tree) <= limits.tree_size
    assert 0 < tree.depth <= limits.n_max
    assert 3 in (len(tree), tree.depth)


def test_every_node_pays() -> None:
    """The product of the nodes' probabilities is at least p_min, and with costs at least their floor."""
    drafter = _remembering(TEXT, [12, 13, 5, 6, 7, 8, 9, 2])
    costs = PassCosts(tuple(1 + 0.1 * rows for rows in range(20)), 0.1)
    for limits in (DraftLimits(9, 9, 0.2), DraftLimits(9, 9, 0.0, costs)):
        tree = _after(drafter, [10, 9, 12, 13], limits)
        assert len(tree) > 0
        gain = 1.0
        for node, path in enumerate(tree.path_probabilities()):
            assert path >= limits.floor(node, gain)
            gain += path


def test_the_probabilities_follow_what_comes_true() -> None:
    """One kind of match that always holds and one that never does; the last block counts, too."""
    drafter = _remembering(TEXT)
    for _ in range(50):
        _after(drafter, TEXT[:1])
        drafter.finish(TEXT)
    assert _after(drafter, TEXT[:1]).probabilities[0] > 0.98
    for _ in range(50):
        _forget_all_but(drafter, TEXT)
        _after(drafter, [9])
        drafter.accept([8], ())
    _forget_all_but(drafter, TEXT)
    assert _after(drafter, [9]).probabilities[0] < 0.1
    _forget_all_but(drafter, TEXT)
    assert _after(drafter, TEXT[:1]).probabilities[0] > 0.98


def _forget_all_but(drafter: SuffixDrafter, text: list[int]) -> None:
    drafter.forget()
    drafter.prepare(fake_prompt([1]))
    drafter.finish(text)


def test_an_unchanged_text_takes_one_pass() -> None:
    """The second time, at temperature 0 and 1; and once more as many as before where all was forgotten."""
    drafter = SuffixDrafter()
    for temperature in (0.0, 1.0):
        passes = []
        for forgotten in (True, False):
            if forgotten:
                drafter.forget()
            found = generate(
                FakeTarget(_saying(TEXT), (2,)), drafter, fake_prompt([1]), max_new_tokens=20,
                temperature=temperature, limits=DraftLimits(16, 16),
            )  # fmt: skip
            assert list(found.tokens) == TEXT
            passes.append(found.statistics.target_passes)
        assert passes == [len(TEXT) - 1, 1]


@pytest.mark.parametrize("end", [(), (0,), (3,)])
def test_the_text_is_that_without_drafts(end: tuple[int, ...]) -> None:
    """One drafter over 20 prompts of two tokens, so that texts recur in parts; several lengths."""
    following, drafter = markov(VOCABULARY, seed=1), SuffixDrafter()
    accepted = 0
    for ids in np.random.default_rng(1).integers(0, VOCABULARY, (20, 2)).tolist():
        for length in (1, 2, 17):
            none, drafted = (
                generate(FakeTarget(following, end), kind, fake_prompt(ids), max_new_tokens=length)
                for kind in (NoDrafter(), drafter)
            )
            assert drafted.tokens == none.tokens
            accepted += drafted.statistics.accepted
    assert accepted > 0


def _runs(run: TokenRun, before: tuple[int, ...] = ()) -> Counter[tuple[int, ...]]:
    """Every run of a tree and its count."""
    found: Counter[tuple[int, ...]] = Counter()
    for token, follower in run.followers.items():
        longer = (*before, token)
        found[longer] = follower.count
        found += _runs(follower, longer)
    return found


TEXTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(0, 60))
def test_the_tree_counts_every_run_of_what_it_remembers(texts: list[list[int]], remembered: int) -> None:
    """As if all runs of up to DEPTH tokens of the newest texts were listed; of any tokens the longest end
    with a follower is found.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "REMEMBERED", remembered)
        tree = SuffixTree()
        for text in texts:
            tree.add((), text)
    kept = [text for _, text in tree.texts]
    assert kept == texts[len(texts) - len(kept) :]
    assert sum(map(len, kept[:-1])) <= remembered
    expected = Counter(
        tuple(text[first:end])
        for text in kept
        for first in range(len(text))
        for end in range(first + 1, min(len(text), first + DEPTH) + 1)
    )
    assert _runs(tree._root) == expected
    for tokens in texts:
        ends = [size for size in range(1, min(len(tokens), DEPTH - 1) + 1) if _followed(kept, tokens[-size:])]
        assert tree.longest(tokens)[1] == max(ends, default=0)


def _followed(texts: list[list[int]], run: list[int]) -> bool:
    """Whether a run occurs anywhere but at the end of a text."""
    size = len(run)
    return any(text[at : at + size] == run for text in texts for at in range(len(text) - size))
