"""Drafts from the prompt and the answer so far."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from speculative_fakes import FakeTarget, fake_prompt, markov
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from evspec_ros.speculative import DraftLimits, NoDrafter, generate
from evspec_ros.speculative.lookup import PromptLookupDrafter
from evspec_ros.speculative.sampling import Sampling

VOCABULARY = 6
GREEDY = Sampling(0.0, 1.0, 0)
GENERATOR = torch.Generator()


def _started(ids: list[int], answer: list[int]) -> PromptLookupDrafter:
    drafter = PromptLookupDrafter(VOCABULARY)
    prompt = fake_prompt(ids)
    drafter.prepare(prompt)
    drafter.start(prompt, (), answer[0], 0)
    drafter.accept(answer[1:], ())
    return drafter


def test_the_candidates_are_those_of_transformers() -> None:
    """300 random texts, prompts and answers of several lengths, up to 5 candidates."""
    random = np.random.default_rng(0)
    reference = PromptLookupCandidateGenerator(num_output_tokens=5, max_length=1000)
    found = 0
    for _ in range(300):
        ids, answer = (random.integers(0, VOCABULARY, random.integers(1, 9)).tolist() for _ in range(2))
        text = torch.tensor([ids + answer])
        expected = reference.get_candidates(text)[0][0, text.shape[1] :].tolist()
        tree = _started(ids, answer).propose(DraftLimits(5, 5), GREEDY, GENERATOR)
        assert tree.tokens.tolist() == expected
        assert tree.distributions is None
        found += len(tree) > 0
    assert found > 100


def test_the_video_s_place_is_never_drafted() -> None:
    """The candidates end before an id that is no token of the vocabulary."""
    for place in (-200, VOCABULARY):
        tree = _started([1, 2, 3, place, 4], [1, 2]).propose(DraftLimits(), GREEDY, GENERATOR)
        assert tree.tokens.tolist() == [3]


@pytest.mark.parametrize("end", [(), (0,), (3,)])
def test_the_text_is_that_without_drafts(end: tuple[int, ...]) -> None:
    """20 prompts, every end token and several lengths."""
    following = markov(VOCABULARY, seed=1)
    for ids in np.random.default_rng(1).integers(0, VOCABULARY, (20, 6)).tolist():
        for length in (1, 2, 17):
            none, drafted = (
                generate(FakeTarget(following, end), drafter, fake_prompt(ids), max_new_tokens=length)
                for drafter in (NoDrafter(), PromptLookupDrafter(VOCABULARY))
            )
            assert drafted.tokens == none.tokens
