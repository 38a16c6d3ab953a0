"""The loop, with a target whose logits are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from speculative_fakes import (
    FakeTarget,
    ScriptedDrafter,
    excess,
    fake_prompt,
    following_script,
    markov,
    random_trees,
    sampled_chain,
)

from evspec_ros.errors import GenerationError
from evspec_ros.speculative import DraftLimits, DraftTree, Generation, NoDrafter, Prompt, generate

VOCABULARY = 10
LENGTH = 30
NEXT = markov(VOCABULARY, seed=0)


def _greedy(prompt: list[int], length: int = LENGTH) -> list[int]:
    """The reference: one argmax after the other."""
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(int(NEXT(tokens).argmax()))
    return tokens[len(prompt) :]


def _prompts(count: int) -> list[list[int]]:
    return np.random.default_rng(5).integers(0, VOCABULARY, (count, 4)).tolist()


def _run(
    prompt: list[int], drafter: object, end_tokens: tuple[int, ...] = (), **settings: object
) -> Generation:
    return generate(
        FakeTarget(NEXT, end_tokens), drafter, fake_prompt(prompt),
        **{"max_new_tokens": LENGTH, **settings},  # type: ignore[arg-type]
    )  # fmt: skip


def _drafters(prompt: list[int]) -> dict[str, object]:
    text = _greedy(prompt)
    return {
        "none": NoDrafter(),
        "perfect": following_script(text),
        "wrong": following_script(text, wrong_by=1),
        "random": random_trees(VOCABULARY, seed=1),
    }


@pytest.mark.parametrize("kind", ["none", "perfect", "wrong", "random"])
def test_greedy_text_does_not_depend_on_the_drafter(kind: str) -> None:
    """40 prompts, limits of several depths and sizes."""
    for prompt in _prompts(40):
        for limits in (DraftLimits(1, 1), DraftLimits(3, 7), DraftLimits(8, 20)):
            assert list(_run(prompt, _drafters(prompt)[kind], limits=limits).tokens) == _greedy(prompt)


def test_max_new_tokens_is_met_exactly() -> None:
    """For every length, even where a perfect draft would run past it."""
    prompt = _prompts(1)[0]
    for length in range(1, LENGTH):
        for drafter in _drafters(prompt).values():
            assert list(_run(prompt, drafter, max_new_tokens=length).tokens) == _greedy(prompt)[:length]


@pytest.mark.parametrize("kind", ["none", "perfect", "wrong", "random"])
def test_an_end_token_inside_a_block_ends_the_text(kind: str) -> None:
    """Any token of the text as the end token, so that it falls on every place of a block."""
    for prompt in _prompts(5):
        text = _greedy(prompt)
        for end in set(text):
            expected = text[: text.index(end) + 1]
            assert list(_run(prompt, _drafters(prompt)[kind], (end,)).tokens) == expected


def test_the_pieces_that_stream_out_are_the_text() -> None:
    """In order, nothing twice, nothing after the end token."""
    prompt = _prompts(1)[0]
    pieces: list[list[int]] = []
    generation = _run(prompt, _drafters(prompt)["perfect"], (_greedy(prompt)[20],), on_tokens=pieces.append)
    assert tuple(token for piece in pieces for token in piece) == generation.tokens
    assert generation.text == " ".join(map(str, generation.tokens))


def test_a_perfect_draft_needs_one_pass_per_block() -> None:
    """29 tokens after the prefill's, in blocks of 5 accepted and 1 bonus: 5 passes, the last one short."""
    prompt = _prompts(1)[0]
    found = _run(prompt, _drafters(prompt)["perfect"], limits=DraftLimits(5, 5)).statistics
    assert found.target_passes == 5
    assert found.accepted == found.drafted == 4 * 5 + 4
    assert found.accepted_by_position == found.drafted_by_position == (5, 5, 5, 5, 4)
    assert found.acceptance_rate == 1.0


def test_a_wrong_draft_costs_as_many_passes_as_none() -> None:
    """Nothing is accepted, one token per pass."""
    prompt = _prompts(1)[0]
    found = _run(prompt, _drafters(prompt)["wrong"]).statistics
    assert found.target_passes == LENGTH - 1
    assert found.accepted == 0
    assert found.mean_accepted_length == 1.0


def test_the_counts_add_up_for_any_drafter() -> None:
    """Every token is the prefill's, an accepted one or a pass's bonus."""
    for prompt in _prompts(20):
        for drafter in _drafters(prompt).values():
            generation = _run(prompt, drafter)
            found = generation.statistics
            assert found.tokens == len(generation.tokens) == 1 + found.accepted + found.target_passes
            assert found.accepted == sum(found.accepted_by_position)
            assert found.draft_ms + found.verify_ms <= found.decode_ms


def test_tokens_after_an_end_token_count_as_not_accepted() -> None:
    """The last block's statistics are those of what was emitted."""
    prompt = _prompts(1)[0]
    text = _greedy(prompt)
    end = next(token for token in text[2:] if text.index(token) >= 2)
    found = _run(prompt, following_script(text), (end,), limits=DraftLimits(25, 25)).statistics
    assert found.target_passes == 1
    assert found.tokens == text.index(end) + 1
    assert found.accepted == found.tokens - 1
    assert found.accepted_by_position == (1,) * found.accepted + (0,) * (25 - found.accepted)


def test_the_drafter_sees_the_tokens_and_features_that_were_kept() -> None:
    """At each step: the emitted tokens, and the features of the rows before them, here those rows' tokens."""
    prompt = _prompts(1)[0]
    random = random_trees(3, seed=2)
    spy = ScriptedDrafter(random.guess, layers=(0,))
    seen: list[tuple[list[int], list[float]]] = []

    def start(prompt: Prompt, features: tuple[torch.Tensor, ...], token: int, capacity: int) -> None:
        seen.append(([token], features[0].flatten().tolist()))

    def accept(tokens: list[int], features: tuple[torch.Tensor, ...]) -> None:
        seen.append((list(tokens), features[0].flatten().tolist()))

    spy.start, spy.accept = start, accept  # type: ignore[method-assign, assignment]
    text = list(_run(prompt, spy).tokens)
    told = [token for tokens, _ in seen for token in tokens]
    rows = [value for _, values in seen for value in values]
    assert told == text[: len(told)]
    assert rows == [*prompt, *text[: len(told) - 1]]


def test_a_seeded_run_repeats_and_another_seed_differs() -> None:
    """Drafting and verification draw from one generator."""
    prompt = _prompts(1)[0]
    drafter = sampled_chain(markov(VOCABULARY, seed=9), prompt)
    texts = [_run(prompt, drafter, temperature=1.0, seed=seed).tokens for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("kind", ["none", "chain", "trees"])
def test_sampled_texts_are_distributed_as_the_target_s(kind: str) -> None:
    """The first three tokens of 4,000 texts, by chi-squared over all triples."""
    vocabulary, prompt = 4, [0, 1]
    following = markov(vocabulary, seed=3, sharpness=1.0)
    target = FakeTarget(following)
    drafter: object = {
        "none": NoDrafter(),
        "chain": sampled_chain(markov(vocabulary, seed=4, sharpness=1.0), prompt),
        "trees": random_trees(vocabulary, seed=5),
    }[kind]
    counts = torch.zeros(vocabulary, vocabulary, vocabulary)
    for seed in range(4000):
        a, b, c = generate(
            target, drafter, fake_prompt(prompt), max_new_tokens=3, temperature=1.3, top_k=3, seed=seed,
            limits=DraftLimits(2, 4),
        ).tokens  # type: ignore[arg-type]  # fmt: skip
        counts[a, b, c] += 1
    expected = torch.zeros_like(counts)
    for a in range(vocabulary):
        for b in range(vocabulary):
            before = [prompt, [*prompt, a], [*prompt, a, b]]
            pa, pb, pc = (_warped(following(history)) for history in before)
            expected[a, b] = pa[a] * pb[b] * pc
    assert excess(counts, expected) < 5.0


def _warped(logits: torch.Tensor) -> torch.Tensor:
    """Temperature 1.3, the three best tokens."""
    p = torch.softmax(logits / 1.3, -1)
    p[p.argmin()] = 0
    return p / p.sum()


@pytest.mark.parametrize("kind", ["none", "perfect", "wrong"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_of_nan_end_a_text_where_they_come(kind: str, temperature: float) -> None:
    """After its fifth token, told with that place; what was known by then has streamed out."""
    prompt = _prompts(1)[0]
    streamed: list[int] = []

    def failing(history: list[int]) -> torch.Tensor:
        return NEXT(history) * (float("nan") if len(history) >= len(prompt) + 5 else 1.0)

    with pytest.raises(GenerationError, match="behind token 5 of the text are not finite"):
        generate(
            FakeTarget(failing),
            _drafters(prompt)[kind],  # type: ignore[arg-type]
            fake_prompt(prompt),
            max_new_tokens=LENGTH,
            temperature=temperature,
            on_tokens=streamed.extend,
        )
    assert len(streamed) <= 5


def test_a_length_of_nothing_is_refused() -> None:
    """The message says what to give."""
    with pytest.raises(GenerationError, match="max_new_tokens"):
        _run([1, 2], NoDrafter(), max_new_tokens=0)


def test_without_room_for_drafts_the_target_decodes_alone() -> None:
    """Limits of zero are no draft, whatever the drafter would say."""
    prompt = _prompts(1)[0]
    for limits in (DraftLimits(0, 8), DraftLimits(8, 0)):
        generation = _run(prompt, _drafters(prompt)["perfect"], limits=limits)
        assert list(generation.tokens) == _greedy(prompt)
        assert generation.statistics.drafted == 0


def test_a_tree_is_cut_to_nothing_but_what_it_says() -> None:
    """A branch that the target does not take leaves no trace in what it has read."""
    prompt = _prompts(1)[0]
    text = _greedy(prompt)

    def guess(history: list[int], *_: object) -> DraftTree:
        right = text[len(history)]
        wrong = (right + 1) % VOCABULARY
        return DraftTree.from_parents([wrong, right, wrong], [-1, -1, 0], [0.5] * 3)

    target = FakeTarget(NEXT)
    generation = generate(target, ScriptedDrafter(guess), fake_prompt(prompt), max_new_tokens=LENGTH)
    assert list(generation.tokens) == text
    assert target.history == prompt + text[:-1]
    assert generation.statistics.mean_accepted_length > 1.8
