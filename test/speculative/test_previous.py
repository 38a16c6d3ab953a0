"""Drafts from the stream's last descriptions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from speculative_fakes import FakeTarget, Next, fake_prompt, markov

from evspec_ros.speculative import DraftLimits, DraftTree, NoDrafter, generate
from evspec_ros.speculative.previous import REMEMBERED, PreviousDrafter
from evspec_ros.speculative.sampling import Sampling

VOCABULARY = 6
TEXT = [10, 11, 12, 13, 14, 15, 16, 2]
GREEDY = Sampling(0.0, 1.0, 0)


def _after(drafter: PreviousDrafter, answer: list[int], limits: DraftLimits | None = None) -> DraftTree:
    prompt = fake_prompt([1])
    drafter.prepare(prompt)
    drafter.start(prompt, (), answer[0], 0)
    drafter.accept(answer[1:], ())
    return drafter.propose(limits or DraftLimits(32, 32), GREEDY, torch.Generator())


def _remembering(*texts: list[int]) -> PreviousDrafter:
    drafter = PreviousDrafter()
    for text in texts:
        drafter.prepare(fake_prompt([1]))
        drafter.finish(text)
    return drafter


def _saying(script: list[int]) -> Next:
    """After a prompt of one token, the script's tokens; behind them its last one again."""
    said = torch.nn.functional.one_hot(torch.tensor(script), 20) * 50.0
    return lambda history: said[min(len(history), len(script)) - 1]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (TEXT[:1], TEXT[1:]),  # followed to its end token
        ([10, 11, 9], TEXT[3:]),  # a substitution: aligned behind it
        ([9], TEXT[1:]),  # the first token already another
        ([10, 9, 9, 9, 12, 13], TEXT[4:]),  # an insertion: where two tokens match again
        ([10, 13, 14], TEXT[5:]),  # a deletion
        (TEXT, []),  # nothing follows the end
    ],
)
def test_it_goes_on_where_the_last_text_still_matches(answer: list[int], expected: list[int]) -> None:
    """Known answers, one per kind of change."""
    tree = _after(_remembering(TEXT), answer)
    assert tree.tokens.tolist() == expected
    assert tree.distributions is None


def test_the_newest_text_is_preferred_and_old_ones_are_dropped() -> None:
    """An older text is found by its n-gram as long as it is remembered."""
    old = [3, 4, 5, 2]
    assert _after(_remembering(old, TEXT), [9, 3, 4]).tokens.tolist() == [5, 2]
    assert _after(_remembering(old, [3, 4, 6, 2]), [9, 3, 4]).tokens.tolist() == [6, 2]
    gone = _remembering(old, *([TEXT] * REMEMBERED))
    assert _after(gone, [9, 3, 4]).tokens.tolist() == TEXT[3:]


def test_limits_and_p_min_are_kept() -> None:
    """n_max, tree_size, and the product of the nodes' probabilities."""
    for limits in (DraftLimits(3, 9), DraftLimits(9, 3)):
        assert len(_after(_remembering(TEXT), TEXT[:1], limits)) == 3
    tree = _after(_remembering(TEXT), TEXT[:1], DraftLimits(9, 9, p_min=0.993))
    assert 0 < len(tree) < len(TEXT) - 1
    assert np.prod(tree.probabilities) >= 0.993 > np.prod(tree.probabilities) * tree.probabilities[0]


def test_the_probabilities_follow_what_comes_true() -> None:
    """One kind of match that always holds and one that never does; the last block counts, too."""
    drafter = _remembering(TEXT)
    for _ in range(50):
        _after(drafter, TEXT[:1])
        drafter.finish(TEXT)
    assert _after(drafter, TEXT[:1]).probabilities[0] > 0.98
    for _ in range(50):
        _after(drafter, [9])
        drafter.accept([8], ())
    assert _after(drafter, [9]).probabilities[0] < 0.1
    assert _after(drafter, TEXT[:1]).probabilities[0] > 0.98


def test_an_unchanged_text_takes_one_pass() -> None:
    """The second time, at temperature 0 and 1; and once more as many as before where all was forgotten."""
    drafter = PreviousDrafter()
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
    following, drafter = markov(VOCABULARY, seed=1), PreviousDrafter()
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
